"The scripts in bench/ at a size of seconds."
import importlib
import json
import os
import sys

import pytest
import torch
from conftest import TOP, run_program
from test_cli import tiny

from distilherbert import distill
from distilherbert.evidence import ABLATED, expected_key


def test_the_grid_goes_on_from_command_to_command(tmp_path):
    "Stopped by its own clock, started again until everything is there; the rows and seeds are those asked for."
    file, out = tiny(tmp_path, teacher_tokens=200_000), tmp_path/'out'
    env = {'DISTILHERBERT_RUNS': tmp_path/'runs', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, 'bench/grid.py', '--profile', file, '--out', out, '--teacher-minutes', '0.01', '--student-minutes', '0.005',
               '--seeds', '1', '--at-once', '2', '--rows', 'T0', 'S4']
    first = run_program(*command, '--minutes', '0.1', env=env, cwd=TOP, timeout=600)
    assert first.returncode == 0 and 'Time is over' in first.stdout, first.stdout + first.stderr
    budget = (tmp_path/'runs'/'tiny.toml').read_text()
    assert 'hidden = 16' in budget and 'teacher_tokens = 200000' not in budget, 'the device was measured'
    last = run_program(*command, '--minutes', '9', env=env, cwd=TOP, timeout=900)
    assert (tmp_path/'runs'/'tiny.toml').read_text() == budget, 'and only once'
    assert last.returncode == 0 and 'Everything is there' in last.stdout, last.stdout + last.stderr
    assert 'complete seeds: [1]' in last.stdout
    records = {f.stem: json.loads(f.read_text()) for f in (out/'results'/'tiny').iterdir()}
    rows = records['grid']['values']['rows']
    assert set(rows) == {'S4', 'T0'} and all(r['tokens_per_s'] > 0 for r in rows.values())
    assert records['klej-S4']['values']['nkjp-ner']['readings']['last']['seeds'].keys() == {'1'}
    assert len(list(out.glob('runs/scores/*/predictions.npz'))) == 2*2 and not list(out.rglob('*.safetensors'))


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
