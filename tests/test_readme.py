"README's commands are run, and what cannot be run here is at least looked up."
import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import TOP, run_program

README = (TOP/'README.md').read_text('utf-8') if (TOP/'README.md').exists() else ''
BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```', README, re.M | re.S)
COMMANDS = [line for kind, text in BLOCKS if kind in ('bash', 'sh', 'shell')
            for line in text.replace('\\\n', ' ').splitlines() if line.strip() and not line.lstrip().startswith('#')]
EXAMPLES = [text for kind, text in BLOCKS if kind == 'python']
# Run the tests or the whole report; need a network, another environment, or the user's own data.
NOT_HERE = re.compile(r'^(make (report|test|docs|install)\b|distilherbert reproduce\b|git clone\b|cd\b|source\b|\. |pip install\b|python3? -m venv\b'
                      r'|DISTILHERBERT_DATA=|(papermill|distilherbert|accelerate|torchrun)\b.*\b(mini|base)\b)')


def bare(command): return re.sub(r'^(\w+=\S+\s+)+', '', command)


def test_readme_has_the_commands_people_look_for():
    text = '\n'.join(COMMANDS)
    for word in ('make report', 'make test', 'papermill nbs/05_distill.ipynb', 'papermill nbs/06_klej.ipynb', 'distilherbert run', 'pip install'):
        assert word in text, word
    assert EXAMPLES


@pytest.mark.parametrize('command', COMMANDS)
def test_programs_targets_and_files_exist(command):
    words = shlex.split(bare(command).replace('>', ' > '))
    if words[0] in ('cd', 'git', 'source', '.'): return
    if words[0] == 'make':
        known = re.findall(r'^([a-z-]+):', (TOP/'Makefile').read_text('utf-8'), re.M)
        assert {w for w in words[1:] if '=' not in w} <= set(known)
    for w in words:
        if re.match(r'(nbs|tests|bench|scripts)/', w): assert (TOP/w).exists(), w
    for option, kind in (('--profile', 'profile'), ('-p profile', 'profile'), ('-p scenario', 'scenario')):
        for name in re.findall(rf'{option} (\S+)', command):
            from distilherbert.scenario import get_profile, get_scenario
            if not name.endswith('.toml'): {'profile': get_profile, 'scenario': get_scenario}[kind](name)
    if words[0] == 'distilherbert':
        from distilherbert.reproduce import parser
        parser().parse_args(words[1:])


@pytest.mark.parametrize('command', [c for c in COMMANDS if not NOT_HERE.search(c)])
def test_commands_run(command):
    "As typed, at the top of the checkout; what the demo needs is made where it is not there yet."
    done = run_program('bash', '-c', f'set -euo pipefail\n{command}', timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_the_papermill_command_leaves_a_notebook_without_errors():
    outs = {m[1] for c in COMMANDS if not NOT_HERE.search(c) and (m := re.search(r'papermill nbs/\S+ (_runs/\S+\.ipynb)', c))}
    assert outs
    for out in outs:
        cells = json.loads((TOP/out).read_text('utf-8'))['cells']
        assert not [o for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error'], out


@pytest.mark.parametrize('n', range(len(EXAMPLES)))
def test_examples_run(n, tmp_path):
    done = run_program(sys.executable, '-W', 'error::DeprecationWarning:distilherbert', '-c', EXAMPLES[n], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_make_help_lists_every_target():
    done = subprocess.run(['make', 'help'], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0
    for target in ('report', 'render', 'test', 'docs', 'clean', 'install'): assert f'make {target} ' in done.stdout


def test_old_python_is_told_clearly(tmp_path):
    "A `python3` that is too old, in a folder of its own."
    old = tmp_path/'python3'
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 3.8.1";; *) exit 1;; esac\n')
    old.chmod(0o755)
    done = subprocess.run(['make', 'install', f'PYTHON={old}', f'VENV={tmp_path}/env'], cwd=TOP, capture_output=True, text=True)
    assert done.returncode != 0 and '3.11 or newer' in done.stderr and 'Python 3.8.1' in done.stderr and 'PYTHON=' in done.stderr
    assert not (tmp_path/'env').exists()
