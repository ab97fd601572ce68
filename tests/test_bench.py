"The scripts in bench/ at a size of seconds."
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from dataclasses import asdict, replace

import pytest
import torch
from conftest import TOP, run_program
from test_cli import tiny

from distilherbert import distill
from distilherbert.evidence import ABLATED, Evidence, expected_key, how_to_make, record_state, table_grid, table_pairs, why_stale
from distilherbert.reproduce import collect_settings
from distilherbert.scenario import PROFILES, get_profile

ASKED = Namespace(rows=('S0', 'T0', 'S2', 'S4'), seeds=None, at_once=2, budget=28.0, minutes=8.5, teacher_minutes=7.0, student_minutes=2.0)


@pytest.fixture(scope='module')
def grid():
    "The script as a module."
    spec = importlib.util.spec_from_file_location('grid', TOP/'bench'/'grid.py')
    module = sys.modules['grid'] = importlib.util.module_from_spec(spec)  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


def measured(epoch, startup=5.0):
    "A ledger of a device on which an epoch of S0 takes so many seconds."
    return {'rates': {'T0': 1e5, 'S4': 2e5}, 'startup': startup, 'epochs': {'nkjp-ner': epoch, 'polemo2.0': 2*epoch}, 'spent': 60.0, 'rows_seconds': 30.0,
            'measuring_seconds': 30.0}


def profile(tmp_path, **changes): return get_profile(tiny(tmp_path, task_epochs=20, task_seeds=[1, 2, 3], more_seeds=['S2', 'S4'], **changes))


def inside(archive):
    with tarfile.open(archive) as t: return t.getnames()


def test_one_seed_for_every_row_then_more_for_some(grid, tmp_path):
    order = [(seed, row, group) for seed, row, group, _ in grid.tunings(profile(tmp_path), measured(1.0), ASKED.rows)]
    assert {row for seed, row, _ in order[:8]} == set(ASKED.rows) and {seed for seed, *_ in order[:8]} == {1}
    assert order[0] == (1, 'T0', 'polemo2.0'), 'the longest first'
    assert [seed for seed, *_ in order[8:]] == [2]*4 + [3]*4 and {row for _, row, _ in order[8:]} == {'S2', 'S4'}


def test_the_plan_gives_up_epochs_then_seeds_then_says_so(grid, tmp_path):
    p, found = profile(tmp_path), {}
    for epoch in (0.1, 5.0, 15.0, 500.0):
        q, missing = grid.fit(p, measured(epoch), ASKED)
        found[epoch] = len(q.task_seeds), q.task_epochs, missing > 0
        assert q.fitted == grid.FITTED and (q.teacher_tokens, q.tokens) == (42_000_000, 24_000_000)
        text = grid.plan_text(q, measured(epoch), ASKED, missing)
        assert ('does not fit' in text) == (missing > 0) and 'The budget is 28 minutes' in text
    assert found[0.1] == (3, 20, False) and found[500.0] == (1, grid.FEWEST, True)
    assert found[5.0][0] == 3 and grid.FEWEST <= found[5.0][1] < 20 and not found[5.0][2]
    assert found[15.0][0] < 3 and found[15.0][1] >= grid.FEWEST and not found[15.0][2]
    q, missing = grid.fit(p, measured(10.0), Namespace(**vars(ASKED) | {'minutes': 2.0, 'budget': 1000.0}))
    assert max(t[-1] for t in grid.tunings(q, measured(10.0), ASKED.rows)) <= 120 or missing > 0, 'a fine-tuning ends within a command'
    assert grid.makespan([3, 3, 2, 1], 2) == 5 and grid.makespan([], 2) == 0


def test_fitted_budgets_make_no_record_stale(tmp_path):
    base = PROFILES['base']
    def state(**changes):
        ran = json.loads(json.dumps(asdict(replace(base, teacher_tokens=5, task_seeds=(42,), **changes))))
        record = {'what': 'settings', 'values': {'profile': ran}}
        reason = why_stale('base', record)
        return reason, record_state(Evidence('base', {'settings': record}, {'settings': reason}), 'settings')
    reason, shown = state(fitted=('teacher_tokens', 'task_seeds'))
    assert reason == '' and shown == 'current; fitted to the device: teacher_tokens = 5, task_seeds = 42'
    assert 'teacher_tokens: 5 then' in state(fitted=('task_seeds',))[0]
    assert 'lr_scratch: 1.0 then' in state(fitted=('teacher_tokens', 'task_seeds'), lr_scratch=1.0)[0]
    with pytest.raises(ValueError, match='names budgets'): replace(base, fitted=('lr_scratch',))
    ran = tmp_path/'base.toml'
    for p, known in ((replace(base, teacher_tokens=5, fitted=('teacher_tokens',)), True), (replace(base, teacher_tokens=5, lr_scratch=1.0, fitted=('teacher_tokens',)), False)):
        ran.write_text('\n'.join(f'{k} = {json.dumps(v)}' for k, v in asdict(p).items()))
        if known: assert get_profile(ran) == p, 'the script reads its own file of a built-in profile'
        else:
            with pytest.raises(ValueError, match='named like the built-in base'): get_profile(ran)
    assert 'bench/grid.py' in how_to_make('base') and collect_settings(profile(tmp_path)) == [], 'nothing is there'


def test_the_page_says_how_many_seeds_a_pair_has():
    def pair(a, b, seeds): return {'a': a, 'b': b, 'task': 'mean', 'reading': 'honest', 'difference': 1.0, 'low': 0.5, 'high': 2.0, 'n': 9, 'seeds': seeds}
    def shown(*pairs): return table_pairs(Evidence('base', {'comparisons': {'values': {'pairs': pairs}}}, {}))
    both = shown(pair('S2', 'S0', 1), pair('S4', 'S2', 3))
    assert '| S2 − S0 (1 seed) |' in both and '| S4 − S2 (3 seeds) |' in both and '1 or 3 fine-tuning seeds' in both
    assert '| S4 − S2 |' in shown(pair('S4', 'S2', 3), pair('S2', 'S0', 3)), 'where all have the same, the caption says it'


def test_a_copy_without_history_gets_its_commit_at_home(grid, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(tmp_path/'results'))
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))
    for code, commit, said in ((grid.code(), grid.commit(), ''), ('another', 'none', 'is not the code that ran')):
        there = tmp_path/code
        for name, value in (('grid/base/ledger.json', {'code': code}), ('results/base/grid.json', {'provenance': {'commit': 'none'}})):
            (there/name).parent.mkdir(parents=True)
            (there/name).write_text(json.dumps(value))
        with tarfile.open(tmp_path/'grid.tar.gz', 'w:gz') as t:
            for name in ('grid', 'results'): t.add(there/name, name)
        grid.unpack(tmp_path/'grid.tar.gz')
        assert json.loads((tmp_path/'results/base/grid.json').read_text())['provenance']['commit'] == commit
        assert said in capsys.readouterr().out and (tmp_path/'runs/grid/base/ledger.json').is_file()


def stopped(command, env, signal_number, enough):
    "Start the script, send a signal to all its processes once there is enough to lose; its exit status."
    base = {k: v for k, v in os.environ.items() if not k.startswith('DISTILHERBERT_')} | {k: str(v) for k, v in env.items()}
    with subprocess.Popen([str(c) for c in command], env=base, cwd=TOP, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        try:
            while not enough() and process.poll() is None: time.sleep(0.1)
            os.killpg(process.pid, signal_number)
            return process.wait(120)
        finally:
            if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_grid_goes_on_from_command_to_command(tmp_path):
    "Out of time, asked to stop, and killed; then a model that fails costs only what needs it; then everything is there, in one file."
    file, out, runs = tiny(tmp_path, task_epochs=2, task_seeds=[1, 2], more_seeds=['S4'], teacher_margin=20.0), tmp_path/'out', tmp_path/'runs'
    env = {'DISTILHERBERT_RUNS': runs, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
    command = [sys.executable, 'bench/grid.py', '--profile', file, '--out', out, '--teacher-minutes', '0.2', '--student-minutes', '0.005',
               '--probe-seconds', '1', '--at-once', '2', '--rows', 'T0', 'S4']
    first = run_program(*command, '--minutes', '0.01', env=env)
    assert first.returncode == 0 and 'Time is over' in first.stdout, first.stdout + first.stderr
    def steps(): return sum(len(f.read_text().splitlines()) for f in runs.glob('model/.T0-*.partial/metrics.jsonl'))
    assert stopped(command, env, signal.SIGTERM, lambda: steps() > 5) == 143
    assert any('.partial/metrics.jsonl' in name for name in inside(out/'grid.tar.gz')), 'the log of an unfinished run comes back'
    budget, seen = (runs/'tiny.toml').read_text(), steps()
    assert stopped(command, env, signal.SIGKILL, lambda: steps() > seen + 5) == -signal.SIGKILL
    failed = run_program(*command, '--minutes', '9', env=env, timeout=900)
    assert failed.returncode == 1 and 'model/S4 failed' in failed.stderr and 'T0 is not fit to teach' in failed.stderr, failed.stdout + failed.stderr
    assert {'results/tiny/model-T0.json', 'results/tiny/klej-T0.json'} <= set(inside(out/'grid.tar.gz')), 'what does not need it is made'
    assert (runs/'tiny.toml').read_text() == budget and 'hidden = 16' in budget, 'the device was measured once'
    (runs/'tiny.toml').write_text(budget.replace('teacher_margin = 20.0', 'teacher_margin = -10.0'))
    last = run_program(*command, '--minutes', '9', env=env, timeout=900)
    assert last.returncode == 0 and 'Everything is there' in last.stdout, last.stdout + last.stderr
    assert [f.name for f in out.iterdir()] == ['grid.tar.gz'] and not any(n.endswith('.safetensors') for n in inside(out/'grid.tar.gz'))
    check_archive(out/'grid.tar.gz', tmp_path/'home')


def check_archive(archive, home):
    "Unpacked at home, the records say what was run, how fast, and on how many seeds."
    done = run_program(sys.executable, 'bench/grid.py', '--unpack', archive, env={'DISTILHERBERT_RUNS': home/'runs', 'DISTILHERBERT_RESULTS': home/'results'})
    assert done.returncode == 0, done.stderr
    records = {f.stem: json.loads(f.read_text()) for f in (home/'results'/'tiny').iterdir()}
    phases = {p['phase']: p for p in records['grid']['values']['phases']}
    assert list(phases) == ['text and rows', 'measuring', 'T0', 'S4', 'fine-tuning on polemo2.0', 'fine-tuning on nkjp-ner', 'fine-tuning, together']
    assert all(p['tokens_per_s'] > 0 and 0 < p['share_of_peak'] < 1 for p in phases.values() if 'tokens' in p)
    assert phases['fine-tuning, together']['runs'] == 6 and all(p['examples_per_s'] > 0 for n, p in phases.items() if 'tuning' in n)
    seeds = {s: set(records[f'klej-{s}']['values']['nkjp-ner']['readings']['last']['seeds']) for s in ('T0', 'S4')}
    assert seeds == {'T0': {'1'}, 'S4': {'1', '2'}} and {p['seeds'] for p in records['comparisons']['values']['pairs']} == {1}
    assert records['settings']['values']['profile']['fitted'] == ['teacher_tokens', 'tokens', 'task_epochs', 'task_seeds']
    assert len(list(home.glob('runs/grid/tiny/scores/*/predictions.npz'))) == 6 and list(home.glob('runs/grid/tiny/model/T0-*/metrics.jsonl'))
    shown = table_grid(Evidence('tiny', records, {}))
    assert '| fine-tuning, together |' in shown and 'Fitted to the device: teacher_tokens = ' in shown


@pytest.fixture
def step(monkeypatch):
    "bench/step.py as a module."
    monkeypatch.syspath_prepend(str(TOP/'bench'))
    return importlib.import_module('step')


def full_above(monkeypatch, rows):
    "A device whose memory holds so many rows."
    right = distill.micro_loss

    def perhaps(student, teacher, objective, batch, *args):
        if len(batch.ids) > rows: raise torch.OutOfMemoryError('CUDA out of memory.')
        return right(student, teacher, objective, batch, *args)
    monkeypatch.setattr(distill, 'micro_loss', perhaps)


def test_the_largest_micro_batch_is_the_last_one_that_the_loop_did_not_cut(step, monkeypatch, tmp_path, capsys):
    full_above(monkeypatch, 10)
    found = step.largest('tiny', 'fp32', tmp_path, 'cpu', 1, limit=64, compile=False, steps=3)
    assert list(found['by_micro_batch']) == ['4', '8'] and found['largest_micro_batch'] == 8
    assert found['with_the_best'].keys() == {'full rows'} and found['with_the_best']['full rows']['tokens_per_s'] > 0
    assert 'micro-batch 16: out of memory' in capsys.readouterr().out
    assert all(v['tokens_per_s'] > 0 and v['peak_gib'] is None for v in found['by_micro_batch'].values())
    full_above(monkeypatch, 0)
    with pytest.raises(SystemExit, match='Memory runs out with 4 rows of the shape tiny already'): step.largest('tiny', 'fp32', tmp_path, 'cpu', 1, limit=64, compile=False, steps=3)


def test_packed_rows_are_as_full_as_the_reports(step):
    rows = step.make_data(3000, 512, 50_000, packed=True).train
    assert len(rows) == 3000 and rows.tokens/3000 == pytest.approx(506.59, abs=0.5) and min(map(len, rows)) < 512


def test_a_candidate_alone_is_measured_in_its_own_number_type(step, tmp_path):
    found = step.alone(step.CANDIDATES['step, masked'], 'tiny', 'bf16', 1, 'cpu', tmp_path, 1)
    assert found['precision'] == 'bf16' and found['tokens_per_s'] > 0
    distill.make_accelerator('fp32', threads=1, clip=1.0)  # accelerate's state is one for a process


def test_gathering_names_what_is_missing(tmp_path):
    done = run_program(sys.executable, 'bench/grid.py', '--gather', tmp_path, '--data', tmp_path/'to', env=dict(os.environ), cwd=TOP)
    assert done.returncode and f'There is no folder {tmp_path}/text' in done.stderr


def test_each_ablation_is_a_model_of_its_own(tmp_path):
    file = tiny(tmp_path, teacher_tokens=5_000, tokens=5_000, task_examples=30, task_epochs=1)
    env = {'DISTILHERBERT_RUNS': tmp_path/'runs', 'DISTILHERBERT_RESULTS': tmp_path/'results', 'OMP_NUM_THREADS': '1'}
    done = run_program(sys.executable, 'bench/ablations.py', '--profile', file, '--seeds', '1', env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path/'results'/'tiny'/'ablations.json').read_text())
    tried = record['values']['variants']
    assert record['key'] == expected_key(str(file), 'ablations') and {v['row'] for v in tried} == set(ABLATED)
    assert len({(v['row'], v['change']) for v in tried}) == len(tried) == len(list((tmp_path/'runs'/'model').glob('S?-*')))
    assert all(v['heldout_loss'] > 0 and v['score'] > 0 for v in tried)
