"05 and 06 as papermill runs them: on a small world, from a TOML file, again, wrongly, and redirected."
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import TOP, run_program, wait_for_steps
from test_cli import tiny

PAPERMILL = Path(sys.executable).with_name('papermill')
DISTIL, KLEJ = TOP/'nbs'/'05_distill.ipynb', TOP/'nbs'/'06_klej.ipynb'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a small profile, and the environment in which its artefacts lie there too."
    top = tmp_path_factory.mktemp('papermill')
    return top, tiny(top), {'DISTILHERBERT_RUNS': top/'runs', 'DISTILHERBERT_RESULTS': top/'results'}


def papermill(*args, env, cwd, **kw): return run_program(PAPERMILL, *args, '--no-progress-bar', env=env, cwd=cwd, **kw)


def notebook(text): return json.loads(text)['cells']


def shown(cells): return ''.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []) if o['output_type'] == 'stream')


@pytest.fixture(scope='module')
def distilled(place):
    "S4 on the small world, run from another folder."
    top, file, env = place
    done = papermill(DISTIL, top/'S4.ipynb', '-p', 'scenario', 'S4', '-p', 'profile', file, env=env, cwd=top)
    assert done.returncode == 0, done.stdout + done.stderr
    return notebook((top/'S4.ipynb').read_text('utf-8'))


def test_distillation_leaves_a_model_folder(place, distilled):
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    folder, = (place[0]/'runs'/'model').glob('S4-*')
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.num_hidden_layers == 1 and len(tokenizer) <= model.config.vocab_size
    assert list((place[0]/'runs'/'model').glob('T0-*')), 'its teacher was made on the way'


def test_executed_notebook_has_no_error_and_no_rubble(distilled):
    assert not [o for c in distilled for o in c.get('outputs', []) if o['output_type'] == 'error']
    assert '\r' not in shown(distilled)


def test_second_time_makes_nothing_and_says_so_redirected_to_a_file(place, distilled):
    """`papermill notebook -p ... > out.ipynb` writes the notebook to standard output.
    How many seconds the second time takes is measured by bench/times.py; a test beside others could not tell."""
    top, file, env = place
    before = {f: f.stat().st_mtime_ns for f in (top/'runs').rglob('*') if f.is_file() and '.lock' not in f.name}
    done = papermill(DISTIL, '-p', 'scenario', 'S4', '-p', 'profile', file, env=env, cwd=top)
    assert done.returncode == 0, done.stderr
    assert 'was there already' in shown(notebook(done.stdout))
    assert before == {f: f.stat().st_mtime_ns for f in before}


def test_scores(place, distilled):
    top, file, env = place
    done = papermill(KLEJ, top/'S4-klej.ipynb', '-p', 'scenario', 'S4', '-p', 'profile', file, env=env, cwd=top)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [o for c in notebook((top/'S4-klej.ipynb').read_text('utf-8')) for o in c.get('outputs', []) if o['output_type'] == 'error']


@pytest.mark.parametrize('source', [DISTIL, KLEJ], ids=lambda f: f.stem)
def test_unknown_scenario_stops_at_once(place, source):
    top, file, env = place
    done = papermill(source, top/'wrong.ipynb', '-p', 'scenario', 's4', env=env, cwd=top)
    assert done.returncode == 1 and 'Did you mean S4' in done.stderr
    cells = notebook((top/'wrong.ipynb').read_text('utf-8'))
    failed = next(i for i, c in enumerate(cells) for o in c.get('outputs', []) if o['output_type'] == 'error')
    assert all(not c.get('outputs') for c in cells[failed + 1:] if c['cell_type'] == 'code'), 'nothing ran after the check'
    assert failed < 12, 'settings are checked at the top'


@pytest.mark.parametrize('source', [DISTIL, KLEJ], ids=lambda f: f.stem)
def test_help_lists_the_parameters(source):
    done = run_program(PAPERMILL, '--help-notebook', source)
    assert done.returncode == 0, done.stderr
    for word in ('scenario', 'profile', 'S4', 'demo', 'TOML'): assert word in done.stdout


def test_reproduce_runs_the_grid_and_skips_what_is_done(place, distilled):
    "A row and the teacher that it is cut from, through papermill, the records, the report; and again, with nothing to do."
    top, file, env = place
    command = (sys.executable, '-m', 'distilherbert.reproduce', 'reproduce', '--profile', file, '--rows', 'S2')
    first = run_program(*command, env=env, cwd=top, timeout=1800)
    assert first.returncode == 0, first.stdout + first.stderr
    assert 'T0 05_distill' in first.stdout and 'S2 06_klej' in first.stdout and 'records in' in first.stdout
    names = {f.name for f in (top/'runs'/'notebooks'/'tiny').iterdir()}
    assert {'T0-05_distill.ipynb', 'T0-06_klej.ipynb', 'S2-05_distill.ipynb', 'S2-06_klej.ipynb', '07_report.ipynb'} <= names
    assert not [n for n in names if 'partial' in n]
    second = run_program(*command, env=env, cwd=top, timeout=1800)
    assert second.returncode == 0 and 'nothing to train' in second.stdout


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGTERM that could be caught')
def test_reproduce_takes_its_kernels_with_it(tmp_path):
    "Asked to stop, it lets the chapter save where it is, and leaves no process behind."
    command = (sys.executable, '-m', 'distilherbert.reproduce', 'reproduce', '--profile', tiny(tmp_path, teacher_tokens=3_000_000), '--rows', 'T0')
    env = {'DISTILHERBERT_RUNS': tmp_path/'runs', 'DISTILHERBERT_RESULTS': tmp_path/'results', 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen(command, env=os.environ | {k: str(v) for k, v in env.items()}, cwd=tmp_path, stdin=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
        assert wait_for_steps(tmp_path/'runs', p, 5), 'T0 does not train'
        started = psutil.Process(p.pid).children(recursive=True)
        assert any('ipykernel' in ' '.join(c.cmdline()) for c in started)
        p.send_signal(signal.SIGTERM)
        assert p.wait(120) == 143
    assert not psutil.wait_procs(started, timeout=120)[1]
    assert list(tmp_path.glob('runs/model/.T0-*.partial/checkpoints/*.pt')), 'its steps are saved'


def test_failed_chapter_is_named_and_kept(place):
    "A learning rate that no model survives."
    top, _, env = place
    (top/'wild').mkdir()
    file = tiny(top/'wild', lr_scratch=1e30)
    done = run_program(sys.executable, '-m', 'distilherbert.reproduce', 'reproduce', '--profile', file, '--rows', 'T0', env=env, cwd=top)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    for word in ('05_distill.ipynb', 'NonFiniteLoss', 'lr_scratch', 'T0-05_distill.partial.ipynb', 'with -v'): assert word in done.stderr, done.stderr
