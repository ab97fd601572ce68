"README is the home page; its commands and those of the guides exist, and `make test-all` runs them as a reader types them."
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pages
import pytest
from conftest import TOP, run_program

from distilherbert.reproduce import parse
from distilherbert.scenario import PROFILES, SCENARIOS, get_profile, get_scenario

README = (TOP/'README.md').read_text('utf-8')
GUIDES = {g.stem.rpartition('_')[2]: g for g in sorted((TOP/'nbs').glob('2?_guide_*.ipynb'))}
FENCE = re.compile(r'^```(\w*)[^\n]*\n(?:# file: (\S+)\n)?(.*?)^```', re.M | re.S)
MAKEFILE = re.findall(r'^([a-z-]+):', (TOP/'Makefile').read_text('utf-8'), re.M)
# Run the tests or the whole report, or need another environment, a network or the user's own data.
NOT_HERE = re.compile(r'^(make|pip install|source)\b|^DISTILHERBERT_DATA=|\b(reproduce|distil|finetune|classifier|onnx8|real|paper)\b')


class Block(NamedTuple):
    "A fenced block of README or of a guide: its kind, the name of the file that it shows, if any, and its lines."
    kind: str
    file: str
    text: str

    @property
    def long(self): return self.text.startswith('# long')

    @property
    def commands(self): return [x for x in self.text.splitlines() if x.strip() and not x.startswith('#')]*(self.kind == 'bash')


def blocks(page):
    if page == 'README': texts = [README]
    else: texts = [''.join(c['source']) for c in json.loads(GUIDES[page].read_text('utf-8'))['cells'] if c['cell_type'] == 'markdown']
    return [Block(*m) for text in texts for m in FENCE.findall(text)]


def write_files(page, folder):
    for b in blocks(page):
        if b.file: (folder/b.file).write_text(b.text, 'utf-8')


def check_command(words):
    "Would a command be understood? Its program, target, files, options and names exist."
    words = [w for w in words if not re.match(r'\w+=', w) and w != '&']
    if not words or words[0] in ('export', 'wait', 'head', 'ls', 'source', 'pip'): return
    program, *rest = words
    for option, name in re.findall(r'(scenario|profile) (\S+)', ' '.join(rest)):
        if not name.endswith('.toml'): assert name in (SCENARIOS if option == 'scenario' else PROFILES), words
        elif not name.startswith('mine'): (get_scenario if option == 'scenario' else get_profile)(name)
    if program == 'distilherbert': parse(rest)
    elif program == 'make': assert set(rest) <= set(MAKEFILE), words
    elif program == 'papermill': assert [(TOP/w).is_file() for w in rest if w.startswith('nbs/')] == [True], words
    elif words[:2] == ['python', '-m']: assert (TOP/'distilherbert'/f'{rest[1].partition(".")[2]}.py').is_file(), words
    elif program == 'python': assert os.path.isfile(rest[0]) or (TOP/rest[0]).is_file(), words
    else: assert program in ('sbatch', 'bash') and os.path.isfile(rest[0]), f'who would check {words}?'


def run_block(program, kind='bash', **options):
    program = ('bash', '-c', f'set -euo pipefail\n{program}') if kind == 'bash' else (sys.executable, '-c', program)
    done = run_program(*program, timeout=1200, **options)
    assert done.returncode == 0, f'{program[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    assert 'Traceback' not in done.stderr and not re.search(r'^\S+: line \d+: ', done.stderr, re.M), done.stderr
    return done.stdout


@pytest.mark.parametrize('page', ['README', *GUIDES])
def test_blocks_say_what_they_are_and_commands_would_be_understood(page, tmp_path, monkeypatch):
    found = blocks(page)
    kinds = {'bash', 'python', 'toml', 'text' if page == 'README' else ''}
    assert found and {b.kind for b in found} <= kinds, 'a block of another kind would be run by nobody'
    assert all(b.file for b in found if b.kind == 'toml') and sum(b.long for b in found) < len(found)/2, 'most of a guide is run'
    monkeypatch.chdir(tmp_path)  # where the guide's files are
    write_files(page, tmp_path)
    for command in (c for b in found if not b.file for c in b.commands): check_command(shlex.split(command))


def test_readme_is_the_home_page_and_has_what_people_look_for(tmp_path):
    assert pages.readme(TOP/'nbs'/'index.ipynb') == README, 'run `make readme` and commit README.md'
    links = re.findall(r'\]\(([^)#]+)', README)
    assert links and not [x for x in links if not x.startswith('https://') and not (TOP/x).exists()]
    text = '\n'.join(c for b in blocks('README') for c in b.commands)
    wanted = ('make report', 'make test', 'papermill nbs/05_distill.ipynb', 'nbs/06_klej.ipynb', 'distilherbert run', 'pip install')
    assert not [command for command in wanted if command not in text] and 'make test-all' in README
    assert list(GUIDES) == ['run', 'distil', 'cluster', 'records', 'task'], 'a guide for each subject'
    examples = [b.text for b in blocks('README') if b.kind == 'python']
    for example in examples: run_block(example, 'python', cwd=tmp_path, env={'PYTHONWARNINGS': 'error::DeprecationWarning:distilherbert'})
    assert examples


@pytest.mark.slow
def test_commands_of_readme_run():
    "In order, at the top of the checkout and with its artefacts; what is missing of the demo is made."
    for command in (c for b in blocks('README') for c in b.commands if not NOT_HERE.search(c)):
        run_block(command, env={'DISTILHERBERT_RUNS': TOP/'_runs'})
        if m := re.search(r'papermill nbs/\S+ (_runs/\S+\.ipynb)', command):
            cells = json.loads((TOP/m[1]).read_text('utf-8'))['cells']
            assert not [o for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error'], command


@pytest.mark.slow
@pytest.mark.parametrize(('subject', 'expected'), [
    ('run', ('S4 (tiny)', 'absent')), ('distil', ("(None, 'symbols'", "(None, 'short'", 'ends.toml', 'majority class')),
    ('cluster', ('S4 (tiny)', 'klej-S4.json')), ('records', ('distilherbert', 'klej-S4', 'polemo2.0-in')),
    ('task', ('question', '% on test'))])
def test_a_guide_does_what_it_says(subject, expected, tmp_path):
    "Its commands in order, in an empty folder."
    for name in ('nbs', 'results'): (tmp_path/name).symlink_to(TOP/name)
    write_files(subject, tmp_path)
    env = {'DISTILHERBERT_RUNS': tmp_path/'runs', 'OMP_NUM_THREADS': 1}
    output = '\n'.join(run_block(b.text, b.kind, env=env, cwd=tmp_path) for b in blocks(subject)
                       if b.kind in ('bash', 'python') and not b.file and not b.long)
    for words in expected: assert words in output
    if subject == 'run': assert list(tmp_path.glob('runs/scores/S4-*')) and (tmp_path/'S4.ipynb').is_file()
    if subject == 'distil': assert len(list(tmp_path.glob('runs/model/student-*'))) == 1, 'the saved settings make what the command made'


def write_script(file, text):
    file.write_text(f'#!/bin/bash\n{text}\n')
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(('kind', 'code', 'log'), [('saves', 143, ['started', 'saved', 'requeue 77']), ('fails', 1, []), ('ends', 0, [])])
def test_the_job_script_saves_and_requeues(kind, code, log, tmp_path):
    "SIGTERM comes to the shell, as from `--signal=B:TERM`; the run saves for a moment, or has failed, or has ended."
    write_files('cluster', tmp_path)
    saves = "trap 'sleep 0.3; echo saved >> log; exit 143' TERM; echo started >> log; while :; do sleep 0.05; done"
    write_script(tmp_path/'distilherbert', {'saves': saves, 'fails': 'exit 1', 'ends': 'exit 0'}[kind])
    write_script(tmp_path/'scontrol', 'echo "$@" >> log')
    (tmp_path/'log').touch()
    env = os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_ARRAY_TASK_ID': '4', 'SLURM_JOB_ID': '77'}
    with subprocess.Popen(['bash', 'students.sbatch'], cwd=tmp_path, env=env) as p:
        if kind == 'saves':
            while 'started' not in (tmp_path/'log').read_text(): time.sleep(0.02)
            p.send_signal(signal.SIGTERM)
        assert p.wait(timeout=60) == code
    assert (tmp_path/'log').read_text().splitlines() == log


def test_make_help_lists_every_target_and_an_old_python_is_rejected(tmp_path):
    listed = re.findall(r'^  make ([a-z-]+)', run_program('make', 'help').stdout, re.M)
    assert set(MAKEFILE) - set(listed) == {'announce', 'lessons'}, 'parts of others'
    old = write_script(tmp_path/'python3', 'case "$1" in --version) echo "Python 3.8.1";; *) exit 1;; esac')
    done = run_program('make', 'install', f'PYTHON={old}', f'VENV={tmp_path}/env')
    assert done.returncode != 0 and '3.11 or newer' in done.stderr and 'Python 3.8.1' in done.stderr and not (tmp_path/'env').exists()
