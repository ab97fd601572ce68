"05 and 06 as papermill runs them: on a tiny profile, again, wrongly, and redirected."
import json
import sys
from pathlib import Path

import pytest
from conftest import TOP, run_program

PAPERMILL = Path(sys.executable).with_name('papermill')
DISTIL, KLEJ = TOP/'nbs'/'05_distill.ipynb', TOP/'nbs'/'06_klej.ipynb'


def papermill(*args, cwd): return run_program(PAPERMILL, *args, '--no-progress-bar', cwd=cwd)


def cells_of(text): return json.loads(text)['cells']


def outputs(cells, kind): return [o for c in cells for o in c.get('outputs', []) if o['output_type'] == kind]


def text_of(cells): return ''.join(''.join(o['text']) for o in outputs(cells, 'stream'))


def test_a_distillation_again_makes_nothing_and_goes_to_standard_output(tiny, tmp_path):
    "`papermill notebook -p ... > out.ipynb` writes the notebook to standard output; run from any folder."
    before = {f: f.stat().st_mtime_ns for f in tiny.models['S4'].rglob('*')}
    done = papermill(DISTIL, '-p', 'scenario', 'S4', '-p', 'profile', tiny.file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = cells_of(done.stdout)
    assert not outputs(cells, 'error') and str(tiny.models['S4'].name) in json.dumps(cells) and '\r' not in text_of(cells)
    assert before == {f: f.stat().st_mtime_ns for f in tiny.models['S4'].rglob('*')}


def test_scores(tiny, tmp_path):
    done = papermill(KLEJ, tmp_path/'S4-klej.ipynb', '-p', 'scenario', 'S4', '-p', 'profile', tiny.file, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not outputs(cells_of((tmp_path/'S4-klej.ipynb').read_text('utf-8')), 'error')


@pytest.mark.parametrize('source', [DISTIL, KLEJ], ids=lambda f: f.stem)
def test_unknown_scenario_stops_at_once(tmp_path, source):
    done = papermill(source, tmp_path/'wrong.ipynb', '-p', 'scenario', 's4', cwd=tmp_path)
    assert done.returncode == 1 and 'Did you mean S4' in done.stderr
    cells = cells_of((tmp_path/'wrong.ipynb').read_text('utf-8'))
    failed = next(i for i, c in enumerate(cells) if outputs([c], 'error'))
    assert all(not c.get('outputs') for c in cells[failed + 1:] if c['cell_type'] == 'code'), 'nothing ran after the check'
    assert failed < 12, 'settings are checked at the top'


@pytest.mark.parametrize('source', [DISTIL, KLEJ], ids=lambda f: f.stem)
def test_help_lists_the_parameters(source):
    done = run_program(PAPERMILL, '--help-notebook', source)
    assert done.returncode == 0, done.stderr
    for word in ('scenario', 'profile', 'S4', 'demo', 'TOML'): assert word in done.stdout
