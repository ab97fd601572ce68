"Several processes: the same curve as one, killed, stopped, and with ZeRO-2."
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import TOP, run_program, wait_for_steps

from distilherbert import devices
from distilherbert import distill as D
from distilherbert.artefact import read_manifest
from distilherbert.scenario import SettingsError
from distilherbert.student import load_masked_lm

PROFILE = """like = "demo"
world_size = 200
vocab_size = 200
layers = 2
hidden = 32
heads = 2
intermediate = 64
max_len = 32
dropout = {dropout}
teacher_tokens = 15_000
tokens = 15_000
batch_rows = 15
micro_rows = 4
teacher_margin = -10.0
threads = 1
checkpoint_minutes = 0.001
"""
DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec('deepspeed') is None, reason='ZeRO-2 needs DeepSpeed (pip install -e ".[deepspeed]")')
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2')
LAUNCH = (sys.executable, '-m', 'accelerate.commands.launch')


def write_profile(folder, dropout=0.0, rows=15):
    file = folder/f'small-{rows}.toml'
    file.write_text(PROFILE.format(dropout=dropout).replace('batch_rows = 15', f'batch_rows = {rows}'))
    return file


def link(source, runs, stages=('text', 'tokenizer', 'rows')):
    "A folder of artefacts that begins with those of another."
    for stage in stages:
        (runs/stage).mkdir(parents=True)
        for f in (source/stage).iterdir():
            if not f.name.startswith('.'): (runs/stage/f.name).symlink_to(f)
    return runs


def program(profile, scenario, *more): return ['-m', 'distilherbert.distill', '--scenario', scenario, '--profile', str(profile), *more]


def train(runs, profile, scenario, *more, launcher=(sys.executable,), env=None):
    "The finished model's folder."
    done = run_program(*launcher, *program(profile, scenario, *more), env={'DISTILHERBERT_RUNS': runs, 'OMP_NUM_THREADS': 1} | (env or {}))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert load_masked_lm(folder) and read_manifest(folder)['counts']['steps'] == len(D.read_metrics(folder)) - 1
    return folder


def content(folder):
    "Weights and log, without the clock's fields."
    return (folder/'model.safetensors').read_bytes(), [{k: v for k, v in l.items() if k not in D.CLOCK} for l in D.read_metrics(folder)]


def same_curve(a, b):
    a, b = D.read_metrics(a), D.read_metrics(b)
    assert [l['tokens'] for l in a] == [l['tokens'] for l in b] and len(a) > 20
    for one, other in zip(a, b, strict=True):
        fields = [k for k in one if k not in D.CLOCK and k not in ('heldout_agreement', 'lr')]
        assert {k: one[k] for k in fields} == pytest.approx({k: other[k] for k in fields}, abs=1e-4)
        assert one.get('lr') == other.get('lr')


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "T0 and S4 by one process, with a ragged last micro-batch."
    top = tmp_path_factory.mktemp('alone')
    return top, train(top/'runs', write_profile(top), 'S4')


def test_two_processes_follow_the_curve_of_one(alone, tmp_path):
    "The teacher is trained by two processes as well; 15 rows are 7 and 8, in micro-batches of 4."
    top, one = alone
    two = train(link(top/'runs', tmp_path/'runs'), top/'small-15.toml', 'S4', launcher=TORCHRUN)
    same_curve(one, two)
    same_curve(next((top/'runs'/'model').glob('T0-*')), next((tmp_path/'runs'/'model').glob('T0-*')))
    assert not list((tmp_path/'runs'/'model').glob('.*.partial'))


@DEEPSPEED
def test_zero_follows_the_curve_of_one(alone, tmp_path):
    "A teacher and the student that it teaches: soft targets, hidden states and MLM, by two processes with ZeRO-2."
    top, one = alone
    two = train(link(top/'runs', tmp_path/'two'), top/'small-15.toml', 'S4', '--zero', '2', launcher=TORCHRUN, env={'TORCH_EXTENSIONS_DIR': tmp_path/'compiled'})
    same_curve(one, two)
    same_curve(next((top/'runs'/'model').glob('T0-*')), next((tmp_path/'two'/'model').glob('T0-*')))
    assert read_manifest(two)['counts']['processes'] == 2 and {'mlm', 'soft', 'cos', 'heldout_kl'} <= set(D.read_metrics(two)[-1])
    assert not (tmp_path/'compiled').exists(), 'nothing has to be compiled on a processor'


def test_zero_without_deepspeed_says_what_to_install(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(devices, 'find_spec', lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'distilherbert\[deepspeed\]'"): devices.wanted_zero(2)
    assert devices.wanted_zero(0) == 0


@DEEPSPEED
def test_accelerate_launches_deepspeed(alone, tmp_path):
    top, _ = alone
    launcher = (*LAUNCH, '--use_deepspeed', '--zero_stage', '2', '--num_processes', '2', '--mixed_precision', 'no')
    two = train(link(top/'runs', tmp_path/'two'), top/'small-15.toml', 'T0', launcher=launcher)
    same_curve(next((top/'runs'/'model').glob('T0-*')), two)
    assert read_manifest(two)['counts']['processes'] == 2


def test_accelerate_launches_processes(alone, tmp_path):
    "On a processor, too, `--multi_gpu` starts several; with `--cpu` it is one process, whatever number is given."
    top, _ = alone
    one = next((top/'runs'/'model').glob('T0-*'))
    launched = train(link(top/'runs', tmp_path/'one'), top/'small-15.toml', 'T0', launcher=(*LAUNCH, '--cpu', '--num_processes', '2'))
    assert content(launched) == content(one) and 'processes' not in read_manifest(launched)['counts']
    two = train(link(top/'runs', tmp_path/'two'), top/'small-15.toml', 'T0', launcher=(*LAUNCH, '--multi_gpu', '--num_processes', '2', '--mixed_precision', 'no'))
    same_curve(one, two)
    assert read_manifest(two)['counts']['processes'] == 2


def begin(runs, profile, *more):
    env = {k: v for k, v in os.environ.items() if not k.startswith('DISTILHERBERT_')}
    return subprocess.Popen([*TORCHRUN, *program(profile, 'T0', *more)], cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=env | {'DISTILHERBERT_RUNS': str(runs), 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'})


@pytest.mark.parametrize('zero, moments', [((), (0.2, 0.4, 0.6)), pytest.param(('--zero', '2'), (0.5,), marks=DEEPSPEED)], ids=['ddp', 'zero'])
def test_two_processes_killed_end_with_the_same_weights(alone, tmp_path, monkeypatch, zero, moments):
    "With dropout; SIGKILL to the launcher and both processes at once, early and late in the run. `bench/kill_train.py` does it more often."
    top, _ = alone
    profile = write_profile(tmp_path, dropout=0.1, rows=8)
    calm = train(link(top/'runs', tmp_path/'calm'), profile, 'T0', *zero, launcher=TORCHRUN)
    runs, chance = link(top/'runs', tmp_path/'rough'), random.Random(2)
    for part in moments:
        process = begin(runs, profile, *zero)
        assert wait_for_steps(runs, process, int(part*len(D.read_metrics(calm)))), process.communicate()
        time.sleep(chance.random()/20)
        for p in (*psutil.Process(process.pid).children(recursive=True), process): p.kill()  # torchrun gives each of its processes a session of its own
        process.communicate()
    assert list((runs/'model').glob('.T0-*.partial/checkpoints/*.pt'))
    if zero:
        monkeypatch.setenv('DISTILHERBERT_RUNS', str(runs))
        with pytest.raises(SettingsError, match='saved with ZeRO-2 by 2 processes: go on in the same way'): D.build_model(profile, 'T0')
    assert content(train(runs, profile, 'T0', *zero, launcher=TORCHRUN)) == content(calm)


def test_sigterm_stops_both_processes_and_one_goes_on(alone, tmp_path):
    top, _ = alone
    runs = link(top/'runs', tmp_path/'runs')
    process = begin(runs, top/'small-15.toml')
    assert wait_for_steps(runs, process, 5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    log, = (runs/'model').glob('.T0-*.partial/metrics.jsonl')
    last = json.loads(log.read_text().splitlines()[-1])['step']
    assert int(sorted(log.parent.glob('checkpoints/*.pt'))[-1].name.split('-')[0]) == last
    done = run_program(sys.executable, *program(top/'small-15.toml', 'T0'), env={'DISTILHERBERT_RUNS': runs})
    assert done.returncode == 0 and 'So far 2 processes trained it, now 1 do: the same to rounding' in done.stdout
    same_curve(next((top/'runs'/'model').glob('T0-*')), Path(done.stdout.strip().splitlines()[-1]))


def test_too_many_processes_are_refused(alone, tmp_path):
    top, _ = alone
    done = run_program(*TORCHRUN, *program(write_profile(tmp_path, rows=1), 'T0'), env={'DISTILHERBERT_RUNS': link(top/'runs', tmp_path/'runs')})
    assert done.returncode and 'A step of 1 rows cannot be shared by 2 processes' in done.stderr
