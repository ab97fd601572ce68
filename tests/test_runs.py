"Several processes: the same curve as one, killed, stopped, and with ZeRO-2."
import importlib.util
import signal

import psutil
import pytest
from conftest import begin_training, check_saved, end_training, link_inputs, log_of, write_tiny

from distilherbert import distill as D
from distilherbert import pipeline
from distilherbert.artefact import read_manifest
from distilherbert.scenario import SCENARIOS, SettingsError, get_profile

DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec('deepspeed') is None, reason='needs DeepSpeed: pip install -e ".[deepspeed]"')
TORCHRUN = ('-m', 'torch.distributed.run', '--nproc-per-node', '2')
LONGER = dict(micro_rows=4, tokens=15_000, teacher_tokens=15_000, checkpoint_minutes=0.001)


def train(folder, *args, launcher=TORCHRUN): return end_training(folder, *args, launcher=launcher)[1]


def kill_in_the_middle(folder, one, *args):
    "SIGKILL to the launcher and both processes at once; torchrun gives each process a session of its own."
    process = begin_training(folder, len(D.read_metrics(one))//2, *args, launcher=TORCHRUN)
    for p in (*psutil.Process(process.pid).children(recursive=True), process): p.kill()
    process.communicate()
    assert list((folder/'model').glob('.S4-*.partial/checkpoints/*.pt'))


def content(folder): return (folder/'model.safetensors').read_bytes(), log_of(folder)


def check_curve(one, two):
    "The same log to rounding."
    one, two = log_of(one), log_of(two)
    assert len(one) == len(two) > 20
    for a, b in zip(one, two, strict=True):
        a, b = ({k: v for k, v in line.items() if k != 'heldout_agreement'} for line in (a, b))
        assert a == pytest.approx(b, abs=1e-4)


@pytest.fixture(scope='module')
def alone(tiny, tmp_path_factory):
    "A profile whose 15 sequences a step are 7 and 8 for two processes, in micro-batches of 4; and its models by one process."
    file = write_tiny(tmp_path_factory.mktemp('alone'), batch_rows=15, **LONGER)
    return file, *(pipeline.build_model(get_profile(file), SCENARIOS[s]) for s in ('T0', 'S4'))


def test_two_processes_killed_follow_the_curve_of_one(alone, tiny, tmp_path):
    "Resumed, S4 ends with the bytes of an undisturbed run."
    profile, teacher, one = alone
    calm, rough = (link_inputs(tiny, tmp_path/name, teacher) for name in ('calm', 'rough'))
    undisturbed = train(calm, profile, 'S4')
    check_curve(one, undisturbed)
    kill_in_the_middle(rough, one, profile, 'S4')
    resumed = train(rough, profile, 'S4')
    assert content(resumed) == content(undisturbed) and read_manifest(resumed)['counts']['processes'] == 2
    assert not list((rough/'model').glob('.*.partial'))


@pytest.mark.slow
def test_sigterm_stops_both_processes_and_one_goes_on(alone, tiny, tmp_path):
    profile, teacher, _ = alone
    folder = link_inputs(tiny, tmp_path/'runs')
    process = begin_training(folder, 5, profile, 'T0', launcher=TORCHRUN)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    check_saved(folder, 'T0')
    said, made = end_training(folder, profile, 'T0')
    assert 'So far 2 processes trained it, now 1: the same to rounding' in said
    check_curve(teacher, made)


@pytest.mark.slow
@pytest.mark.parametrize('options', [('--multi_gpu',), pytest.param(('--use_deepspeed', '--zero_stage', '2'), marks=DEEPSPEED)])
def test_accelerate_launches_processes(alone, tiny, tmp_path, options):
    "On a processor, too, `--multi_gpu` starts several."
    launcher = '-m', 'accelerate.commands.launch', *options, '--num_processes', '2', '--mixed_precision', 'no'
    made = train(link_inputs(tiny, tmp_path/'runs'), alone[0], 'T0', launcher=launcher)
    check_curve(alone[1], made)
    assert read_manifest(made)['counts']['processes'] == 2


@pytest.mark.slow
def test_relations_follow_the_curve_of_one_process(alone, tiny, tmp_path):
    "Although they do not reach what follows the last projections."
    scenario = tmp_path/'relations.toml'
    scenario.write_text('init = "truncated"\nsource = "T0"\nteacher = "T0"\nobjective = "relations"')
    check_curve(*(train(link_inputs(tiny, tmp_path/n, alone[1]), alone[0], str(scenario), launcher=launcher)
                  for n, launcher in (('one', ()), ('two', TORCHRUN))))


@pytest.mark.slow
@DEEPSPEED
def test_zero_follows_the_curve_of_one_and_survives_a_kill(alone, tiny, tmp_path, monkeypatch):
    "Soft targets, hidden states and MLM by two processes with ZeRO-2; 16 sequences, because each needs as many micro-batches."
    _, teacher, _ = alone
    profile, zero = write_tiny(tmp_path, batch_rows=16, **LONGER), ('--zero', '2')
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path/'compiled'))
    one = train(link_inputs(tiny, tmp_path/'one'), profile, 'S4', launcher=())
    built = next((tmp_path/'one'/'model').glob('T0-*'))
    calm = train(link_inputs(tiny, tmp_path/'calm', built), profile, 'S4', *zero)
    check_curve(one, calm)
    rough = link_inputs(tiny, tmp_path/'rough', built)
    kill_in_the_middle(rough, one, profile, 'S4', *zero)
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(rough))
    with pytest.raises(SettingsError, match='saved with ZeRO-2 by 2 processes.*go on in the same way'):
        pipeline.build_model(get_profile(profile), SCENARIOS['S4'])
    assert content(train(rough, profile, 'S4', *zero)) == content(calm)
    assert not (tmp_path/'compiled').exists(), 'nothing is compiled on a processor'
