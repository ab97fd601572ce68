"05 and 06 as papermill runs them: on a tiny profile, again, wrongly, and redirected."
import json
import sys
from pathlib import Path

import pytest
from conftest import TOP, run_program

PAPERMILL = Path(sys.executable).with_name('papermill')

each_source = pytest.mark.parametrize('source', [TOP/'nbs'/'05_distill.ipynb', TOP/'nbs'/'06_klej.ipynb'], ids=lambda f: f.stem)


def papermill(*args, cwd): return run_program(PAPERMILL, *args, '--no-progress-bar', cwd=cwd)


def errors(cells): return [i for i, c in enumerate(cells) for o in c.get('outputs', []) if o['output_type'] == 'error']


@each_source
def test_a_run_again_makes_nothing_and_goes_to_standard_output(tiny, tmp_path, source):
    "`papermill notebook -p ... > out.ipynb` writes the notebook to standard output; run from any folder."
    before = {f: f.stat().st_mtime_ns for f in tiny.models['S4'].rglob('*')}
    done = papermill(source, '-p', 'scenario', 'S4', '-p', 'profile', tiny.file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)['cells']
    assert not errors(cells) and r'\r' not in json.dumps([c.get('outputs') for c in cells])
    assert (str(tiny.models['S4'].name) in done.stdout) == (source.stem == '05_distill')
    assert before == {f: f.stat().st_mtime_ns for f in tiny.models['S4'].rglob('*')}


@each_source
def test_unknown_scenario_stops_at_once_and_help_lists_the_parameters(tmp_path, source):
    done = papermill(source, tmp_path/'wrong.ipynb', '-p', 'scenario', 's4', cwd=tmp_path)
    assert done.returncode == 1 and 'Did you mean S4' in done.stderr
    cells = json.loads((tmp_path/'wrong.ipynb').read_text('utf-8'))['cells']
    failed = errors(cells)[0]
    assert all(not c.get('outputs') for c in cells[failed + 1:] if c['cell_type'] == 'code'), 'nothing ran after the check'
    assert failed < 12, 'settings are checked at the top'
    done = run_program(PAPERMILL, '--help-notebook', source)
    assert done.returncode == 0 and all(word in done.stdout for word in ('scenario', 'profile', 'S4', 'demo', 'TOML')), done.stderr
