"The guides are true: their commands exist, and `make test-all` writes their files and runs their commands in order, in an empty folder."
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from conftest import TOP, check_command, run_program

GUIDES = sorted((TOP/'nbs').glob('2?_guide_*.ipynb'))
FENCE = re.compile(r'^```(\w*)[^\n]*\n(.*?)^```', re.M | re.S)
each_guide = pytest.mark.parametrize('guide', GUIDES, ids=lambda g: g.stem)


@dataclass(frozen=True)
class Block:
    "A fenced block of a guide."
    kind: str
    text: str

    @property
    def file(self):
        m = re.match(r'# file: (\S+)\n', self.text)
        return m[1] if m else ''

    @property
    def long(self): return self.text.startswith('# long')

    @property
    def commands(self): return [x for x in self.text.splitlines() if x.strip() and not x.startswith('#')]


def blocks(guide):
    cells = json.loads(guide.read_text('utf-8'))['cells']
    return [Block(m[1], m[2]) for c in cells if c['cell_type'] == 'markdown' for m in FENCE.finditer(''.join(c['source']))]


def test_there_is_a_guide_for_each_subject():
    assert [g.stem.rpartition('_')[2] for g in GUIDES] == ['run', 'distil', 'cluster', 'records', 'task']


@each_guide
def test_blocks_say_what_they_are(guide):
    found = blocks(guide)
    assert found and {b.kind for b in found} <= {'bash', 'python', 'toml'}, 'a block of another kind would be run by nobody'
    assert all(b.file for b in found if b.kind == 'toml'), 'a TOML file has a name'
    assert sum(b.long for b in found) < len(found)/2, 'most of a guide is run'


@each_guide
def test_commands_would_be_understood(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the guide's files are
    for b in blocks(guide):
        if b.file: (tmp_path/b.file).write_text(b.text.partition('\n')[2], 'utf-8')
    for command in (c for b in blocks(guide) if b.kind == 'bash' and not b.file for c in b.commands): check_command(shlex.split(command))


@pytest.mark.slow
@pytest.mark.parametrize(('subject', 'expected'), [
    ('run', ('S4 (tiny)', 'absent')), ('distil', ("(None, 'symbols'", "(None, 'short'", 'ends.toml', 'majority class')),
    ('cluster', ('S4 (tiny)', 'klej-S4.json')), ('records', ('distilherbert', 'klej-S4', 'polemo2.0-in')),
    ('task', ('question', '% on test'))])
def test_a_guide_does_what_it_says(subject, expected, tmp_path):
    guide, output = next(g for g in GUIDES if g.stem.endswith(subject)), []
    for name in ('nbs', 'results'): (tmp_path/name).symlink_to(TOP/name)
    for block in blocks(guide):
        if block.file: (tmp_path/block.file).write_text(block.text.partition('\n')[2], 'utf-8')
        elif block.kind in ('bash', 'python') and not block.long:
            program = ('bash', '-c', f'set -euo pipefail\n{block.text}') if block.kind == 'bash' else (sys.executable, '-c', block.text)
            done = run_program(*program, env={'DISTILHERBERT_RUNS': tmp_path/'runs', 'OMP_NUM_THREADS': 1}, cwd=tmp_path, timeout=1200)
            assert done.returncode == 0, f'{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
            assert 'Traceback' not in done.stderr and not re.search(r'^\S+: line \d+: ', done.stderr, re.M), done.stderr
            output.append(done.stdout)
    for words in expected: assert words in '\n'.join(output)
    if subject == 'run': assert list(tmp_path.glob('runs/scores/S4-*')) and (tmp_path/'S4.ipynb').is_file()
    if subject == 'distil': assert len(list(tmp_path.glob('runs/model/student-*'))) == 1, 'the saved settings make what the command made'


@pytest.mark.parametrize(('kind', 'code', 'log'), [('saves', 143, ['started', 'saved', 'requeue 77']), ('fails', 1, []), ('ends', 0, [])])
def test_the_job_script_saves_and_requeues(kind, code, log, tmp_path):
    "SIGTERM comes to the shell, as from `--signal=B:TERM`; the run saves for a moment, or has failed, or has ended."
    script, = (b for b in blocks(next(g for g in GUIDES if 'cluster' in g.stem)) if b.file == 'students.sbatch')
    (tmp_path/script.file).write_text(script.text.partition('\n')[2])
    saves = "trap 'sleep 0.3; echo saved >> log; exit 143' TERM; echo started >> log; while :; do sleep 0.05; done"
    run = {'saves': saves, 'fails': 'exit 1', 'ends': 'exit 0'}[kind]
    for name, text in (('distilherbert', run), ('scontrol', 'echo "$@" >> log')):
        (tmp_path/name).write_text(f'#!/bin/bash\n{text}\n')
        (tmp_path/name).chmod(0o755)
    (tmp_path/'log').touch()
    env = os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_ARRAY_TASK_ID': '4', 'SLURM_JOB_ID': '77'}
    with subprocess.Popen(['bash', script.file], cwd=tmp_path, env=env) as p:
        if kind == 'saves':
            while 'started' not in (tmp_path/'log').read_text(): time.sleep(0.02)
            p.send_signal(signal.SIGTERM)
        assert p.wait(timeout=60) == code
    assert (tmp_path/'log').read_text().splitlines() == log and '#SBATCH --signal=B:TERM@' in script.text
