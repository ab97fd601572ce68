"The guides say what works: their files are written, their commands typed and their examples run, in order, in an empty folder."
import importlib.util
import json
import re
import shlex
import sys
from dataclasses import dataclass

import pytest
from conftest import TOP, run_program

GUIDES = sorted((TOP/'nbs').glob('2?_guide_*.ipynb'))
SUBJECTS = ('row', 'language', 'cluster', 'records', 'task')
FENCE = re.compile(r'^```(\w*)[^\n]*\n(.*?)^```', re.M | re.S)


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


def blocks(guide):
    cells = json.loads(guide.read_text('utf-8'))['cells']
    return [Block(m[1], m[2]) for c in cells if c['cell_type'] == 'markdown' for m in FENCE.finditer(''.join(c['source']))]


def commands(block): return [x for x in block.text.splitlines() if x.strip() and not x.startswith('#')]


def carry_out(guide, folder):
    "Everything that a reader would do, from top to bottom; the output of the commands."
    for name in ('nbs', 'bench'): (folder/name).symlink_to(TOP/name)
    env, shown = {'DISTILHERBERT_RUNS': folder/'runs', 'DISTILHERBERT_RESULTS': folder/'made', 'OMP_NUM_THREADS': 1}, []
    if 'records' in guide.stem:
        (folder/'results').symlink_to(TOP/'results')
        env['DISTILHERBERT_RESULTS'] = TOP/'results'
    for block in blocks(guide):
        if block.file:
            (folder/block.file).write_text(block.text.partition('\n')[2], 'utf-8')
        elif block.kind in ('bash', 'python') and not block.long:
            program = ('bash', '-c', f'set -euo pipefail\n{block.text}') if block.kind == 'bash' else (sys.executable, '-c', block.text)
            done = run_program(*program, env=env, cwd=folder, timeout=1200)
            assert done.returncode == 0, f'{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
            assert 'Traceback' not in done.stderr and not re.search(r'^\S+: line \d+: ', done.stderr, re.M), 'bash has nothing to complain about'
            shown.append(done.stdout)
    return '\n'.join(shown)


def card_example(folder):
    "The five lines of a model card, run as they stand beside the folder that they name."
    text, = re.findall(r'^```python\n(.*?)^```', (folder/'tiny-S4'/'README.md').read_text('utf-8'), re.M | re.S)
    assert len([x for x in text.splitlines() if x.strip()]) <= 5
    done = run_program(sys.executable, '-c', text, cwd=folder, env={'HF_HUB_OFFLINE': 1})
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr[-2000:]


def grid_script():
    spec = importlib.util.spec_from_file_location('grid', TOP/'bench'/'grid.py')
    grid = importlib.util.module_from_spec(spec)
    sys.modules['grid'] = grid  # a dataclass looks its module up
    spec.loader.exec_module(grid)
    return grid


def guide_of(subject): return next(g for g in GUIDES if g.stem.endswith(subject))


def test_there_is_a_guide_for_each_subject():
    assert {g.stem.rpartition('_')[2] for g in GUIDES} == set(SUBJECTS)


@pytest.mark.parametrize('guide', GUIDES, ids=lambda g: g.stem)
def test_blocks_say_what_they_are(guide):
    found = blocks(guide)
    assert found and {b.kind for b in found} <= {'bash', 'python', 'toml'}, 'a block of another kind would be run by nobody'
    assert all(b.file for b in found if b.kind == 'toml'), 'a TOML file has a name'
    skipped, run = [c for b in found if b.long for c in commands(b)], [c for b in found if b.kind != 'toml' and not b.long for c in commands(b)]
    assert len(run) > 3*len(skipped), 'most of a guide is run'


@pytest.mark.parametrize('guide', GUIDES, ids=lambda g: g.stem)
def test_programs_of_long_commands_exist(guide):
    "What is too long to be run is at least a command that would be understood."
    from distilherbert.reproduce import parser
    from distilherbert.scenario import get_profile, get_scenario
    for command in (c for b in blocks(guide) if b.long for line in commands(b) for c in line.split(' && ')):
        words = [w for w in shlex.split(command) if not re.match(r'\w+=', w) and w not in ('&', 'wait')]
        if not words: continue
        if words[0] == 'distilherbert':
            a = parser().parse_args(words[1:])
            get_profile(a.profile), get_scenario(getattr(a, 'scenario', 'S4'))
        elif words[:3] == ['python', '-m', 'pip']:
            pinned = (TOP/'constraints.txt').read_text('utf-8').splitlines()
            assert all(w in pinned for w in words if '==' in w), command
        elif words[:2] == ['python', 'bench/grid.py']: grid_script().arguments(words[2:])
        elif words[0] == 'make': assert re.search(rf'^{words[1]}:', (TOP/'Makefile').read_text('utf-8'), re.M), command
        elif words[:2] == ['python', '-m']: assert (TOP/'distilherbert'/f'{words[2].partition(".")[2]}.py').is_file(), command
        else: assert words[0] in ('sbatch', 'bash') and words[1] == 'rows.sbatch', f'who would check {command}?'


@pytest.mark.parametrize(('subject', 'said'), [
    ('row', ('S4 (tiny) is there', 'absent')), ('language', ('findet', 'ends.toml', "(None, 'symbols')", "(None, 'short')")),
    ('cluster', ('S4 (tiny) is there', 'klej-S4.json', '3,826,000,000', 'Everything is there.', 'records in ')), ('records', ('distilherbert run S4', 'klej-S4', 'polemo2.0-in')),
    ('task', ('question', 'mood: '))])
def test_a_guide_does_what_it_says(subject, said, tmp_path):
    shown = carry_out(guide_of(subject), tmp_path)
    for words in said:
        assert words in shown, f'{words!r} is not in\n{shown[-3000:]}'
    if subject == 'row': assert len(list((tmp_path/'runs'/'scores').glob('S4-*'))) > 0 and (tmp_path/'S4.ipynb').is_file()
    if subject == 'row': card_example(tmp_path)
    if subject == 'cluster': assert (tmp_path/'rows.sbatch').read_text('utf-8').startswith('#!/bin/bash\n#SBATCH')
    if subject == 'language': assert len(list((tmp_path/'runs'/'model').glob('S4-*'))) == 2, 'two teachers, two students of the same name'
