"The command `distilherbert` as a person types it."
import json
import subprocess
import sys

import pytest
from conftest import TOP, run_program

COMMANDS = ('run', 'reproduce', 'status', 'cost', 'collect')


@pytest.fixture
def home(tmp_path):
    "Folders of one's own for artefacts and records."
    return {'DISTILHERBERT_RUNS': tmp_path/'runs', 'DISTILHERBERT_RESULTS': tmp_path/'results'}


def tiny(folder, **changes):
    "A profile so small that a row takes seconds."
    fields = dict(like='demo', world_size=300, vocab_size=300, layers=2, hidden=16, heads=2, intermediate=32, max_len=32, task_max_len=32,
                  teacher_tokens=20_000, tokens=10_000, batch_rows=16, micro_rows=16, teacher_margin=-10.0,
                  task_examples=60, task_epochs=2, task_seeds=[1], threads=1) | changes
    file = folder/'tiny.toml'
    file.write_text('\n'.join(f'{k} = {json.dumps(v)}' for k, v in fields.items()))
    return file


def check_failure(done, code, *words):
    assert done.returncode == code, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    for w in words: assert w in done.stderr, done.stderr


def test_help_has_examples_and_exit_codes(run):
    done = run('distilherbert', '--help')
    assert done.returncode == 0
    for word in (*COMMANDS, 'examples:', 'exit codes:', 'DISTILHERBERT_RUNS', 'DISTILHERBERT_DATA'): assert word in done.stdout


@pytest.mark.parametrize('command', COMMANDS)
def test_each_command_has_help_with_an_example(run, command):
    done = run('distilherbert', command, '--help')
    assert done.returncode == 0 and f'example: distilherbert {command}' in done.stdout


def test_help_answers_at_once(run):
    "It must not load PyTorch."
    done = run(sys.executable, '-X', 'importtime', '-m', 'distilherbert.reproduce', '--help')
    assert done.returncode == 0 and '| torch' not in done.stderr.replace('|   ', '| ')


def test_module_form(run):
    done = run(sys.executable, '-m', 'distilherbert.reproduce', '--version')
    assert done.returncode == 0 and done.stdout.startswith('distilherbert 0.')


@pytest.mark.parametrize('args, words', [
    (['run', 's4'], ['Unknown scenario', 'Did you mean S4']),
    (['run', 'S4', '--profile', 'mimi'], ['Unknown profile', 'Did you mean mini']),
    (['status', '--profile', 'absent.toml'], ['There is no file absent.toml']),
    (['cost', 'S9'], ['Unknown scenario', 'S0']),
    (['reproduce', '--rows', 'S44'], ['Unknown scenario', 'Did you mean S4']),
    (['rum', 'S4'], ['invalid choice']),
    ([], ['COMMAND']),
], ids=lambda v: ' '.join(v) if isinstance(v, list) else None)
def test_wrong_words_are_answers(run, home, args, words):
    check_failure(run('distilherbert', *args, env=home), 2, *words)


def test_misspelt_field_of_a_profile(run, home, tmp_path):
    file = tmp_path/'mine.toml'
    file.write_text('like = "demo"\ntoken = 5\n')
    check_failure(run('distilherbert', 'status', '--profile', file, env=home), 2, 'Did you mean tokens', 'mine.toml')


def test_missing_data_says_what_to_set(run, home):
    done = run('distilherbert', 'run', 'S0', '--profile', 'mini', env=home | {'DISTILHERBERT_DATA': ''})
    check_failure(done, 2, 'DISTILHERBERT_DATA')


def test_verbose_shows_where_an_error_came_from(run, home):
    done = run('distilherbert', 'run', 's4', '-v', env=home)
    assert done.returncode == 2 and 'Traceback' in done.stderr and 'Did you mean S4' in done.stderr


def test_status_of_nothing(run, home):
    done = run('distilherbert', 'status', env=home)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith('Profile demo: 0 of ') and 'distilherbert reproduce' in lines[-1]
    assert sum(' absent ' in line for line in lines) == int(lines[0].split(' of ')[1].split()[0])


def test_output_may_be_cut_off(home):
    command = f'{sys.executable} -m distilherbert.reproduce status | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=TOP, timeout=300)
    assert done.stdout.startswith('Profile demo') and 'Traceback' not in done.stderr and 'Broken' not in done.stderr


def test_cost_without_and_with_a_probe(run, home, tmp_path):
    file = tiny(tmp_path)
    done = run('distilherbert', 'cost', 'S4', '--profile', file, '--no-probe', env=home)
    assert done.returncode == 0, done.stderr
    assert 'FLOPs' in done.stdout and 'Together about' in done.stdout
    done = run('distilherbert', 'cost', '--scenario', 'S5', '--profile', file, env=home)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines()[3:6]]
    assert rows == ['T0', 'T1', 'S5'] and 'probe' in done.stdout


def test_cost_of_the_report_without_a_network(run, home):
    done = run('distilherbert', 'cost', 'S4', '--profile', 'paper', '--no-probe', env=home | {'HF_HUB_OFFLINE': '1'})
    assert done.returncode == 0, done.stderr
    assert '3,826,000,000' in done.stdout and 'Assumed' in done.stdout


def test_run_status_collect(run, home, tmp_path):
    "A row from nothing, found again, seen by status, and collected into records."
    file = tiny(tmp_path)
    first = run('distilherbert', 'run', 'S4', '--profile', file, env=home)
    assert first.returncode == 0, first.stderr
    assert 'S4 (tiny) is there' in first.stdout and 'model/T0' in first.stdout
    second = run('distilherbert', 'run', 'S4', '--profile', file, env=home)
    assert second.returncode == 0 and 'to be made' not in second.stdout
    status = run('distilherbert', 'status', '--profile', file, env=home).stdout
    assert any(line.split()[:3] == ['model', 'S4', 'current'] for line in status.splitlines())
    assert any(line.split()[:3] == ['model', 'S5', 'absent'] for line in status.splitlines())
    collected = run('distilherbert', 'collect', '--profile', file, env=home)
    assert collected.returncode == 0, collected.stderr
    folder = home['DISTILHERBERT_RESULTS']/'tiny'
    names = {f.stem for f in folder.glob('*.json')}
    assert {'settings', 'clean', 'pack', 'model-T0', 'model-S4', 'klej-S4', 'time'} <= names and 'model-S5' not in names
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    run('distilherbert', 'collect', '--profile', file, env=home)
    assert before == {f.name: f.read_bytes() for f in folder.iterdir()}, 'collecting twice writes the same bytes'
    # another setting: what was made is stale, and is not touched
    status = run('distilherbert', 'status', '--profile', tiny(tmp_path, tokens=12_000), env=home).stdout
    stands = {tuple(line.split()[:3]) for line in status.splitlines()}
    assert {('model', 'S4', 'stale'), ('model', 'S4', 'absent'), ('model', 'T0', 'current')} <= stands


def test_stopped_with_ctrl_c(home, tmp_path):
    "SIGINT during training: exit code 130, a word on how to go on, and the next run goes on."
    import os
    import signal
    import time
    file = tiny(tmp_path, teacher_tokens=3_000_000)
    env = os.environ | {k: str(v) for k, v in home.items()} | {'PYTHONUNBUFFERED': '1'}
    p = subprocess.Popen([sys.executable, '-m', 'distilherbert.reproduce', 'run', 'T0', '--profile', str(file)], env=env, cwd=TOP,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    work = home['DISTILHERBERT_RUNS']/'model'
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and p.poll() is None:
        logs = list(work.glob('.T0-*.partial/metrics.jsonl')) if work.exists() else []
        if logs and len(logs[0].read_text().splitlines()) > 20: break
        time.sleep(0.2)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130, out + err
    assert 'Traceback' not in err
    assert list(work.glob('.T0-*.partial/checkpoints/*.pt')), 'it saved before it stopped'


def test_run_program_hides_settings_of_the_caller(monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_RUNS', '/nowhere')
    done = run_program(sys.executable, '-c', 'import os; print("DISTILHERBERT_RUNS" in os.environ)')
    assert done.stdout.strip() == 'False'
