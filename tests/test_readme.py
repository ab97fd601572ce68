"README is the home page, and its commands exist; `make test-all` runs them too."
import json
import re
import shlex
import subprocess
import sys

import pages
import pytest
from conftest import TOP, check_command, run_program

README = (TOP/'README.md').read_text('utf-8')
BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```', README, re.M | re.S)
COMMANDS = [line for kind, text in BLOCKS if kind == 'bash' for line in text.splitlines() if line.strip() and not line.startswith('#')]
EXAMPLES = [text for kind, text in BLOCKS if kind == 'python']
# Run the tests or the whole report, or need another environment, a network or the user's own data.
NOT_HERE = re.compile(r'^(make|pip install|source)\b|^DISTILHERBERT_DATA=|\b(reproduce|distil|finetune|classifier|onnx8|real|paper)\b')


def test_readme_is_the_home_page():
    assert pages.readme(TOP/'nbs'/'index.ipynb') == README, 'run `make readme` and commit README.md'


def test_links_lead_to_files():
    links = re.findall(r'\]\(([^)#]+)', README)
    assert links and not [x for x in links if not x.startswith('https://') and not (TOP/x).exists()]


def test_readme_has_the_commands_people_look_for():
    text = '\n'.join(COMMANDS)
    wanted = ('make report', 'make test', 'papermill nbs/05_distill.ipynb', 'nbs/06_klej.ipynb', 'distilherbert run', 'pip install')
    assert not [command for command in wanted if command not in text]
    assert EXAMPLES and 'make test-all' in README


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_would_be_understood(command): check_command(shlex.split(command))


@pytest.mark.slow
def test_commands_run():
    "As typed, in order, at the top of the checkout and with its artefacts; what is missing of the demo is made."
    for command in (c for c in COMMANDS if not NOT_HERE.search(c)):
        done = run_program('bash', '-c', f'set -euo pipefail\n{command}', env={'DISTILHERBERT_RUNS': TOP/'_runs'}, timeout=1200)
        assert done.returncode == 0, f'{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}'
        if m := re.search(r'papermill nbs/\S+ (_runs/\S+\.ipynb)', command):
            cells = json.loads((TOP/m[1]).read_text('utf-8'))['cells']
            assert not [o for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error'], command


@pytest.mark.parametrize('n', range(len(EXAMPLES)))
def test_examples_run(n, tmp_path):
    done = run_program(sys.executable, '-W', 'error::DeprecationWarning:distilherbert', '-c', EXAMPLES[n], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_make_help_lists_every_target():
    done = subprocess.run(['make', 'help'], cwd=TOP, capture_output=True, text=True)
    listed = re.findall(r'^  make ([a-z-]+)', done.stdout, re.M)
    targets = re.findall(r'^([a-z-]+):', (TOP/'Makefile').read_text('utf-8'), re.M)
    assert done.returncode == 0 and set(targets) - set(listed) == {'announce', 'lessons'}, 'parts of others'


def test_old_python_is_rejected_clearly(tmp_path):
    "A `python3` that is too old, in a folder of its own."
    old = tmp_path/'python3'
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 3.8.1";; *) exit 1;; esac\n')
    old.chmod(0o755)
    done = subprocess.run(['make', 'install', f'PYTHON={old}', f'VENV={tmp_path}/env'], cwd=TOP, capture_output=True, text=True)
    assert done.returncode != 0 and '3.11 or newer' in done.stderr and 'Python 3.8.1' in done.stderr and 'PYTHON=' in done.stderr
    assert not (tmp_path/'env').exists()
