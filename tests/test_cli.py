"The command `distilherbert`: words, answers, exit codes; status and cost; the runner of the grid."
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
from conftest import TOP, run_program, wait_for_steps, write_tiny

from distilherbert import artefact, reproduce, status
from distilherbert.pipeline import model_artefact, train_settings
from distilherbert.scenario import get_profile, get_scenario

COMMAND = (sys.executable, '-m', 'distilherbert.reproduce')


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "A folder of artefacts of one's own."
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))
    return tmp_path/'runs'


@pytest.fixture
def typed(capsys):
    "`typed('status', '--profile', file)`: the command in this process, which has loaded PyTorch already."
    def command(*words):
        capsys.readouterr()
        code = reproduce.main([str(w) for w in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)
    return command


def lines_of(done): return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize('verb', reproduce.VERBS)
def test_each_verb_has_help_with_an_example_that_is_understood(verb):
    example, = re.findall(r'^example: (distilherbert .+)$', reproduce.parser(verb).format_help().replace('\n  ', ' '), re.M)
    assert reproduce.parse(shlex.split(example)[1:])[0] == verb and verb in reproduce.parser().format_help()
    assert all(a.help for a in reproduce.parser(verb)._actions), 'every argument is explained'


@pytest.mark.parametrize('args, words', [
    ('run S4 --profile dmo', ['Unknown profile', 'Did you mean demo']), ('status --profile absent.toml', ['There is no file absent.toml']),
    ('reproduce S44', ['Unknown scenario', 'Did you mean S4']), ('rum S4', ['invalid choice']), ('', ['COMMAND']),
    ('predict S4 Jadę --tsak x', ['unrecognized arguments']), ('status --profile mine.toml', ['Did you mean tokens', 'mine.toml']),
    ('collect', ['runs', 'distilherbert run S4']), ('status S4 --profile trade.toml', ["Unknown task 'trade'"]),
    ('run S0', ["DISTILHERBERT_WORKERS is 'all'"])])
def test_wrong_words_and_settings_end_with_2_and_an_answer(typed, capsys, runs, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('DISTILHERBERT_WORKERS', 'all')
    for name, setting in (('mine', 'token = 5'), ('trade', 'tasks = ["trade"]')):
        (tmp_path/f'{name}.toml').write_text(f'like = "demo"\n{setting}\n')
    try: done = typed(*args.split())
    except SystemExit as e: done = SimpleNamespace(returncode=e.code, stderr=capsys.readouterr().err)
    assert done.returncode == 2 and all(w in done.stderr for w in words) and 'Traceback' not in done.stderr, done.stderr
    assert not (runs/'results').exists()


def test_verbose_shows_where_an_error_came_from_and_output_may_be_cut_off():
    done = run_program('distilherbert', 'run', 's4', '-v')
    assert done.returncode == 2 and 'Traceback' in done.stderr and 'Did you mean S4' in done.stderr
    done = subprocess.run(f'{" ".join(COMMAND)} status | head -1', shell=True, capture_output=True, text=True, cwd=TOP, timeout=300)
    assert done.stdout.startswith('Profile demo') and 'Traceback' not in done.stderr and 'Broken' not in done.stderr


def test_status_knows_what_is_there_stale_damaged_being_built_and_of_others(tiny, typed, runs, tmp_path):
    for stage in ('text', 'tokenizer', 'sequences', 'model'):
        shutil.copytree(tiny.runs/stage, runs/stage, ignore=shutil.ignore_patterns('.*'))
    def states(file, *more): return {tuple(line[:3]) for line in lines_of(typed('status', *more, '--profile', file))}
    assert {('model', 'S4', 'current'), ('model', 'T0', 'current'), ('model', 'S5', 'absent')} <= states(tiny.file)
    assert not any('S5' in line for line in states(tiny.file, 'S4')), 'only the scenarios that were asked for'
    assert {('model', 'S4', 'stale'), ('model', 'S4', 'absent'), ('model', 'T0', 'current')} <= states(write_tiny(tmp_path, tokens=12_000))
    (tmp_path/'theirs').mkdir()
    theirs = typed('status', '--profile', write_tiny(tmp_path/'theirs', name='theirs', tokens=12_000)).stdout
    assert 'stale' not in theirs and re.search(r'Made for other profiles.*: .*\btiny \(', theirs)
    (model_artefact(tiny.profile, get_scenario('S4')).path/'model.safetensors').write_bytes(b'')
    absent = model_artefact(tiny.profile, get_scenario('S0'))
    absent.partial.mkdir()
    with artefact.FileLock(absent.path.with_name(f'.{absent.path.name}.lock')): found = states(tiny.file)
    assert {('model', 'S4', 'damaged'), ('model', 'S0', 'building')} <= found


def test_cost_without_a_network_of_a_scenario_of_ones_own_and_of_what_is_there(tiny, typed, tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    done = typed('cost', 'S4', '--profile', 'paper')
    for words in ('3,826,000,000', 'Assumed as in HerBERT', 'Together about'): assert words in done.stdout, done.stderr
    (tmp_path/'ends.toml').write_text('like = "S4"\nlayer_map = [0]\n')
    assert [line[0] for line in lines_of(typed('cost', tmp_path/'ends.toml', '--profile', tiny.file))[4:6]] == ['T0', 'ends']
    config, _ = status.teacher_config(tiny.profile)
    def cost(name, **changes): return status.scenario_cost(replace(tiny.profile, **changes), get_scenario(name), config, 1e9)
    there, s5, more = cost('S4'), cost('S5'), cost('S5', tokens=1_000_000)
    assert there.train_s == there.evaluate_s == there.tune_s == 0 and s5.tune_s > 0 and more.evaluate_s > s5.evaluate_s > 0
    assert more.train_s/s5.train_s == pytest.approx(100)
    alone, taught = (status.tuning_flops(tiny.profile, config, teacher) for teacher in (None, config))
    assert taught > alone > 0, 'a teacher in fine-tuning reads the examples, too'
    s4 = get_scenario('S4')
    masked, everywhere, hidden = (status.training_flops(train_settings(tiny.profile, s), config, config)[0] for s in (
        s4, replace(s4, objective='distilbert-all'), replace(s4, mlm=False, objective='hidden')))
    assert everywhere > masked > hidden > 0, 'soft targets everywhere need logits everywhere'


def test_run_says_what_it_builds_and_finds_what_is_there_and_collect_writes_records_twice_the_same(tiny, typed, tmp_path):
    file = write_tiny(tmp_path, tasks=['nkjp-ner'], task_seeds=[1], task_epochs=1)
    done = run_program('distilherbert', 'run', 'S0', '--profile', file, env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert done.returncode == 0, done.stderr
    assert 'S0 (tiny): to be made: text/' in done.stdout and re.search(r'model/S0 is there \(\d+ s\): ', done.stderr)
    assert '\x1b' not in done.stdout + done.stderr and '\r' not in done.stdout + done.stderr, 'nothing is drawn over itself in a pipe'
    done = typed('run', 'S4', '--profile', tiny.file)
    assert done.returncode == 0 and done.stdout == f'S4 (tiny) is there: {tiny.models["S4"]}\n', done.stdout
    folder, collected = tiny.runs/'results'/'tiny', typed('collect', '--profile', tiny.file)
    assert collected.returncode == 0 and str(folder/'model-S4.json') in collected.stdout, collected.stderr
    before = {f: f.read_bytes() for f in folder.rglob('*.json')}
    run_program('distilherbert', 'collect', '--profile', tiny.file)  # another process: nothing depends on what this one remembers
    assert before == {f: f.read_bytes() for f in folder.rglob('*.json')}


@pytest.mark.slow
def test_reproduce_runs_the_grid_and_skips_what_is_done(runs, tmp_path):
    "A scenario and the teacher that it is cut from, through papermill, and the records; again, there is nothing to do."
    file = write_tiny(tmp_path)
    first = run_program(*COMMAND, 'reproduce', 'S2', '--profile', file, cwd=tmp_path, timeout=1800)
    assert first.returncode == 0, first.stdout + first.stderr
    assert '2 of 2 scenarios to run: T0, S2' in first.stdout and '[2/2]' in first.stdout and 'records in' in first.stdout
    notebooks = {f.name for f in (runs/'notebooks'/'tiny').iterdir()}
    assert notebooks == {f'{s}-{n}.ipynb' for s in ('T0', 'S2') for n in ('05_distill', '06_klej')}
    assert (runs/'results'/'tiny'/'klej-S2.json').is_file()
    second = run_program(*COMMAND, 'reproduce', 'S2', '--profile', file, cwd=tmp_path)
    assert second.returncode == 0 and 'nothing to train' in second.stdout
    next((runs/'scores').glob('S2-*')).rename(runs/'elsewhere')
    assert [e.source.stem for e in reproduce._executions(get_profile(file), 'S2', str(file))] == ['06_klej'], 'only what is missing'


@pytest.mark.slow
def test_reproduce_takes_its_kernels_with_it(runs, tmp_path):
    "Asked to stop, it lets the training save where it is, and leaves no process behind."
    file = write_tiny(tmp_path, teacher_tokens=3_000_000)
    with subprocess.Popen((*COMMAND, 'reproduce', 'T0', '--profile', str(file)), cwd=tmp_path, stdin=subprocess.DEVNULL,
                          env=os.environ | {'OMP_NUM_THREADS': '1'}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
        assert wait_for_steps(runs, p, 5), 'T0 does not train'
        started = psutil.Process(p.pid).children(recursive=True)
        assert any('ipykernel' in ' '.join(c.cmdline()) for c in started)
        p.send_signal(signal.SIGTERM)
        assert p.wait(120) == 143
    assert not psutil.wait_procs(started, timeout=120)[1]
    assert list(runs.glob('model/.T0-*.partial/checkpoints/*')), 'its steps are saved'


@pytest.mark.slow
def test_a_failed_notebook_is_named_and_kept(runs, tmp_path):
    "A learning rate that no model survives."
    done = run_program(*COMMAND, 'reproduce', 'T0', '--profile', write_tiny(tmp_path, lr_scratch=1e30), cwd=tmp_path)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    for word in ('05_distill.ipynb', 'NonFiniteLoss', 'lr_scratch', 'T0-05_distill.partial.ipynb', 'with -v'):
        assert word in done.stderr, done.stderr
