"The command `distilherbert` as a person types it."
import argparse
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import TOP, run_program, wait_for_steps

from distilherbert import artefact, corpus, distill, klej, plan, reproduce
from distilherbert.clean import BadText
from distilherbert.distill import NonFiniteLoss, UnfitTeacher
from distilherbert.scenario import SettingsError, get_profile, get_scenario

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


@pytest.fixture
def typed(home, monkeypatch, capsys):
    "`typed('status', '--profile', file)`: the command in this process, which has loaded PyTorch already; the programs themselves are run by other tests."
    for k, v in home.items(): monkeypatch.setenv(k, str(v))

    def command(*words):
        capsys.readouterr()
        code = reproduce.main([str(w) for w in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)
    return command


def check_failure(done, code, *words):
    assert done.returncode == code, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    for w in words: assert w in done.stderr, done.stderr


def test_help_has_examples_and_exit_codes(run):
    done = run('distilherbert', '--help')
    assert done.returncode == 0
    for word in (*COMMANDS, 'examples:', 'exit codes:', '130 stopped with Ctrl-C, 143 with SIGTERM', 'DISTILHERBERT_RUNS', 'DISTILHERBERT_DATA'): assert word in done.stdout


def test_a_command_answers_when_asked_for_help(run):
    done = run('distilherbert', 'run', '--help')
    assert done.returncode == 0 and 'example: distilherbert run' in done.stdout and 'DISTILHERBERT_WORKERS=8' in done.stdout


def subcommands(): return next(a.choices for a in reproduce.parser()._actions if isinstance(a, argparse._SubParsersAction))


@pytest.mark.parametrize('command', subcommands())
def test_each_command_has_help_with_an_example_that_is_understood(command):
    text = subcommands()[command].format_help()
    example, = re.findall(r'^example: (distilherbert .+)$', text, re.M)
    program, *arguments = shlex.split(example)
    assert program == 'distilherbert' and reproduce.parsed(arguments).command == command
    assert all(a.help for a in subcommands()[command]._actions), 'every argument is explained'


def on_a_terminal(*command, env=()):
    "What a program draws on a terminal, and its exit code."
    ours, theirs = pty.openpty()
    p = subprocess.Popen(command, cwd=TOP, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {'TERM': 'xterm-256color', **dict(env)})
    os.close(theirs)
    drawn = b''
    while True:
        try: piece = os.read(ours, 4096)
        except OSError: break  # The other side was closed
        if not piece: break
        drawn += piece
    os.close(ours)
    return drawn.decode(), p.wait(timeout=60)


def test_no_colours_where_they_are_not_wanted():
    "NO_COLOR (https://no-color.org) on a terminal; through a pipe nothing but text, even where a colour is forced on others."
    drawn, code = on_a_terminal(sys.executable, '-m', 'distilherbert.reproduce', 'run', 's4', env={'NO_COLOR': '1'}.items())
    assert code == 2 and 'Did you mean S4' in drawn and not re.search(r'\x1b\[[0-9;]*m', drawn)
    done = run_program(sys.executable, '-m', 'distilherbert.reproduce', 'run', 's4', env={'CLICOLOR_FORCE': '1', 'TERM': 'xterm-256color'})
    assert 'Did you mean S4' in done.stderr and '\x1b' not in done.stdout + done.stderr


class Screen(io.StringIO):
    "What claims to be a terminal."
    def isatty(self): return True


def counting(monkeypatch, seconds, steps, terminal):
    "A bar over so many steps that take so long, by a clock of our own: when what was written, on stdout and stderr."
    clock, streams, seen = [0.0], {'stdout': io.StringIO(), 'stderr': Screen() if terminal else io.StringIO()}, []
    monkeypatch.setattr(artefact, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))
    for name, stream in streams.items(): monkeypatch.setattr(sys, name, stream)
    bar = artefact.Progress(steps, 'S4 (mini)', 'steps')
    for _ in range(steps):
        clock[0] += seconds
        bar.update(1, 'loss 3.102 (mlm 2.900, soft 0.040), 9,000 tokens/s, 12 % of peak')
        for name, stream in streams.items():
            if stream.getvalue(): seen.append((clock[0], name, stream.getvalue()))
            stream.seek(0), stream.truncate()
    return seen


def test_a_terminal_gets_one_line_a_second_in_place(monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    seen = counting(monkeypatch, 0.25, 41, terminal=True)
    assert [t for t, _, _ in seen] == [*range(1, 11), 10.25] and {name for _, name, _ in seen} == {'stderr'}
    assert all(text.startswith('\r\x1b[K') and text.count('\n') == 0 for _, _, text in seen[:-1]) and seen[-1][2].endswith('\n')
    assert 'loss 3.102 (mlm 2.900, soft 0.040), 9,000 tokens/s, 12 % of peak' in seen[3][2] and '6 s left' in seen[3][2] and '16/41 steps' in seen[3][2]


def test_a_line_never_fills_a_narrow_terminal(monkeypatch):
    "A wrapped line would leave its upper half behind."
    monkeypatch.setenv('COLUMNS', '50')
    seen = counting(monkeypatch, 1, 5, terminal=True)
    assert len(seen) == 5 and all(len(text.removeprefix('\r\x1b[K')) == 49 for _, _, text in seen[:-1])


def test_a_log_gets_lines_ever_more_rarely(monkeypatch):
    "A run of a day: a line after two seconds, then after twice the time, at last every ten minutes, and the end."
    seen = counting(monkeypatch, 1, 86_400, terminal=False)
    times = [t for t, _, _ in seen]
    assert times[:9] == [2, 6, 14, 30, 62, 126, 254, 510, 1022] and {b - a for a, b in zip(times[9:-2], times[10:-1], strict=True)} == {600}
    assert times[-1] == 86_400 and len(times) < 160
    assert all(name == 'stdout' and text.endswith('\n') and text.count('\n') == 1 and '\x1b' not in text and '\r' not in text for _, name, text in seen)


def test_commands_read_and_write_utf8_in_any_locale():
    "As on Windows: a pipe has an encoding without the blocks of a bar, and without most Polish letters."
    program = """import sys
from distilherbert import reproduce
from distilherbert.artefact import progress
reproduce.carry_out = lambda a: print(*progress('ab', 'Letters'), sys.stdin.read())
sys.exit(reproduce.main(['status']))"""
    done = subprocess.run([sys.executable, '-c', program], input='Zażółć gęślą jaźń'.encode(), capture_output=True, cwd=TOP, timeout=60,
                          env=os.environ | {'PYTHONIOENCODING': 'cp1252', 'PYTHONUTF8': '0'})
    assert done.returncode == 0, done.stderr.decode()
    assert '█' in done.stdout.decode('utf-8') and done.stdout.decode('utf-8').split('\n')[-2] == 'a b Zażółć gęślą jaźń'


def test_a_bar_that_ends_at_once_is_one_line(monkeypatch):
    assert len(counting(monkeypatch, 0.001, 30, terminal=False)) == len(counting(monkeypatch, 0.001, 30, terminal=True)) == 1


def test_the_script_of_the_cluster_asks_for_another_turn(tmp_path):
    "`rows.sbatch` of the guide, with a run that saves for a moment after SIGTERM, and one that fails; SIGTERM comes to the shell, as from `--signal=B:TERM`."
    import signal
    guide = json.loads((TOP/'nbs'/'22_guide_cluster.ipynb').read_text('utf-8'))
    prose = '\n'.join(''.join(c['source']) for c in guide['cells'])
    script = re.search(r'^# file: rows.sbatch\n(.*?)^```', prose, re.M | re.S)[1]
    assert '#SBATCH --signal=B:TERM@' in script
    (tmp_path/'rows.sbatch').write_text(script)
    saves = "trap 'sleep 0.3; echo saved >> log; exit 143' TERM; echo started >> log; while :; do sleep 0.05; done"
    for name, text in {'saves/distilherbert': saves, 'fails/distilherbert': 'exit 1', 'ends/distilherbert': 'exit 0', 'scontrol': 'echo "$@" >> log'}.items():
        file = tmp_path/name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/bash\n{text}\n')
        file.chmod(0o755)
    for kind, code in {'saves': 143, 'fails': 1, 'ends': 0}.items():
        (tmp_path/'log').write_text('')
        env = os.environ | {'PATH': f'{tmp_path/kind}:{tmp_path}:{os.environ["PATH"]}', 'SLURM_ARRAY_TASK_ID': '4', 'SLURM_JOB_ID': '77'}
        p = subprocess.Popen(['bash', 'rows.sbatch'], cwd=tmp_path, env=env)
        if kind == 'saves':
            while 'started' not in (tmp_path/'log').read_text(): time.sleep(0.02)
            p.send_signal(signal.SIGTERM)
        assert p.wait(timeout=60) == code
        assert (tmp_path/'log').read_text().split('\n')[:-1] == (['started', 'saved', 'requeue 77'] if kind == 'saves' else [])


def imported(log):
    "Top-level packages in what `-X importtime` wrote."
    return {m[1] for m in re.finditer(r'^import time:.*\| *(\w+)', log, re.M)}


def test_help_answers_at_once(run):
    "It must not load PyTorch, however deep."
    done = run(sys.executable, '-X', 'importtime', '-m', 'distilherbert.reproduce', '--help')
    assert done.returncode == 0 and 'argparse' in imported(done.stderr) and 'distilherbert' in imported(done.stderr)
    assert not imported(done.stderr) & {'torch', 'transformers', 'accelerate', 'datasets', 'pandas'}


@pytest.mark.parametrize('log', ['import time:  1 |  2 | torch', 'import time:  1 |  2 |   torch', 'import time:  1 |  2 |       torch._C'])
def test_an_import_is_found_at_any_depth(log): assert imported(f'import time: self [us] | cumulative | imported package\n{log}\n') == {'imported', 'torch'}


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
    (['run', 'S4', 'S5'], ['unrecognized arguments: S5']),
    (['predict', 'S4', '--task', 'nkjp-ner', 'Jadę .', '--tsak'], ['unrecognized arguments: Jadę . --tsak']),
    ([], ['COMMAND']),
], ids=lambda v: ' '.join(v) if isinstance(v, list) else None)
def test_wrong_words_are_answers(run, home, args, words):
    check_failure(run('distilherbert', *args, env=home), 2, *words)


def test_misspelt_field_of_a_profile(run, home, tmp_path):
    file = tmp_path/'mine.toml'
    file.write_text('like = "demo"\ntoken = 5\n')
    check_failure(run('distilherbert', 'status', '--profile', file, env=home), 2, 'Did you mean tokens', 'mine.toml')


def test_missing_data_says_what_to_set(typed, monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_DATA', '')
    check_failure(typed('run', 'S0', '--profile', 'mini'), 2, 'DISTILHERBERT_DATA')


@pytest.mark.parametrize('workers', ['0', '-2', 'all', '1.5'])
def test_a_number_of_workers_that_is_none(monkeypatch, capsys, home, workers):
    monkeypatch.setenv('DISTILHERBERT_WORKERS', workers)
    assert reproduce.main(['status']) == 2
    assert f"DISTILHERBERT_WORKERS is '{workers}'; it should be a number of processes" in capsys.readouterr().err


def test_verbose_shows_where_an_error_came_from(run, home):
    done = run('distilherbert', 'run', 's4', '-v', env=home)
    assert done.returncode == 2 and 'Traceback' in done.stderr and 'Did you mean S4' in done.stderr


def test_status_of_nothing(typed):
    done = typed('status')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith('Profile demo: 0 of ') and 'distilherbert reproduce' in lines[-1]
    assert sum(' absent ' in line for line in lines) == int(lines[0].split(' of ')[1].split()[0])


def test_commands_that_are_said_and_recorded_can_be_typed(home, monkeypatch, tmp_path):
    "A profile or a row of one's own is its file; without its profile a command would train another one."
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(home['DISTILHERBERT_RESULTS']))
    own = get_profile(tiny(tmp_path))
    absent = plan.Standing('model', 'S4', 'absent', 0, tmp_path)
    assert plan.status_notes('mine/tiny.toml', [absent])[-1].endswith('distilherbert run S4 --profile mine/tiny.toml)')
    made = {'key': 'a'*12, 'stage': 'model', 'version': 1, 'seconds': 1.0, 'provenance': {'date': '2026'}}
    monkeypatch.setattr(reproduce, 'plan', lambda *a: ['one'])
    monkeypatch.setattr(reproduce, 'current', lambda *a: [made])
    monkeypatch.setattr(reproduce, 'teacher_fit', lambda p: {})
    monkeypatch.setattr(corpus, 'contamination_artefact', lambda p, part: SimpleNamespace(build=lambda: tmp_path))
    monkeypatch.setattr(corpus, 'read_manifest', lambda folder: made | {'counts': {}})
    monkeypatch.setattr(corpus, 'count_together', lambda *a: {})
    reproduce.keep(own, 'numbers', {}, [made], 'distilherbert run S4'), reproduce.collect_settings(own), corpus.contamination(own)
    records = artefact.read_records('tiny')
    assert set(records) == {'numbers', 'settings', 'time', 'contamination'}
    for r in records.values(): assert r['command'].endswith(' --profile tiny.toml')


def test_a_task_of_ones_own_is_planned_and_priced_without_its_scores(typed, tmp_path):
    file = tiny(tmp_path, tasks=['trade'])
    priced = typed('cost', 'S4', '--profile', file, '--no-probe')
    assert priced.returncode == 0 and 'Not in it are the scores of trade' in priced.stdout, priced.stderr
    listed = typed('status', '--profile', file)
    assert listed.returncode == 0 and 'Not in it are the scores of trade' in listed.stdout and ' scores ' not in listed.stdout.split('Not in it')[0], listed.stderr
    assert listed.stdout.splitlines()[-1] == f'Next: python -m distilherbert.distill --scenario S4 --profile {file}'
    check_failure(typed('run', 'S4', '--profile', file), 2, "Unknown task 'trade'")


def test_a_row_of_ones_own_is_listed_and_recorded(typed, home, monkeypatch, tmp_path):
    file, row = tiny(tmp_path), tmp_path/'ends.toml'
    row.write_text('like = "S4"\nlayer_map = [0]\n')
    def make(work):
        (work/'model.safetensors').write_text('')
        return {'parameters': 10, 'encoder_parameters': 8, 'layers': 1, 'hidden': 4}
    def stage(name): return lambda profile, s, *more: artefact.Artefact(name, get_scenario(s).name, 1, {}, (), make)
    monkeypatch.setattr(distill, 'model_artefact', stage('model'))
    monkeypatch.setattr(klej, 'scores_artefact', stage('scores'))
    monkeypatch.setattr(klej, 'klej_values', lambda profile, s: {'of': get_scenario(s).name})
    monkeypatch.setattr(klej, 'read_scores', lambda profile, s: {})
    for a in plan.row_artefacts(get_profile(file), get_scenario(row)): a.build()
    listed = typed('status', '--profile', file, '--rows', row)
    assert listed.returncode == 0 and any(line.split()[:3] == ['model', 'ends', 'current'] for line in listed.stdout.splitlines()), listed.stderr
    assert ' S5 ' not in listed.stdout
    assert typed('collect', '--profile', file, '--rows', row).returncode == 0
    records = artefact.read_records('tiny')
    assert set(records) == {'model-ends', 'klej-ends', 'settings', 'time'} and records['klej-ends']['values']['of'] == 'ends'
    assert records['model-ends']['command'] == 'distilherbert run ends.toml --profile tiny.toml'
    assert records['settings']['values']['scenarios'][-1]['name'] == 'ends' and reproduce.is_collected(get_profile(file), [str(row)])
    artefact.write_record('tiny', 'comparisons', {'interval': 'plain percentile'}, key='', command='')
    assert not reproduce.is_collected(get_profile(file), [str(row)]), 'intervals were made another way'


@pytest.mark.parametrize('gigabytes, chapters', [(1, 1), (6, 4), (64, 8)])
def test_chapters_at_once_fit_into_memory(monkeypatch, gigabytes, chapters):
    monkeypatch.setattr(reproduce, 'free_memory', lambda: gigabytes*10**9)
    assert reproduce.at_once(1, 8, False) == chapters and reproduce.at_once(1, 8, True) == 1


def test_collect_of_nothing(typed, home):
    done = typed('collect')
    check_failure(done, 2, 'Nothing is there to collect', str(home['DISTILHERBERT_RUNS']), 'distilherbert run S4 --profile demo')
    assert not done.stdout.strip() and not home['DISTILHERBERT_RESULTS'].exists()


def test_output_may_be_cut_off(home):
    command = f'{sys.executable} -m distilherbert.reproduce status | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=TOP, timeout=300)
    assert done.stdout.startswith('Profile demo') and 'Traceback' not in done.stderr and 'Broken' not in done.stderr


def test_cost_without_and_with_a_probe(typed, tmp_path):
    file = tiny(tmp_path)
    done = typed('cost', 'S4', '--profile', file, '--no-probe')
    assert done.returncode == 0, done.stderr
    assert 'FLOPs' in done.stdout and 'Together about' in done.stdout
    done = typed('cost', '--scenario', 'S5', '--profile', file)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines()[3:6]]
    assert rows == ['T0', 'T1', 'S5'] and 'probe' in done.stdout


def test_cost_of_the_report_without_a_network(run, home):
    done = run('distilherbert', 'cost', 'S4', '--profile', 'paper', '--no-probe', env=home | {'HF_HUB_OFFLINE': '1'})
    assert done.returncode == 0, done.stderr
    assert '3,826,000,000' in done.stdout and 'Assumed' in done.stdout


def test_run_status_collect(run, typed, home, tmp_path):
    "A row from nothing, found again, seen by status, and collected into records."
    file = tiny(tmp_path)
    first = run('distilherbert', 'run', 'S4', '--profile', file, env=home)
    assert first.returncode == 0, first.stderr
    assert 'S4 (tiny) is there' in first.stdout and 'model/T0' in first.stdout
    assert '\x1b' not in first.stdout + first.stderr and '\r' not in first.stdout + first.stderr, 'nothing is drawn over itself in a pipe'
    assert re.search(r'model/T0 is there \(\d+ s\): ', first.stderr), 'a stage says how long it took'
    second = typed('run', 'S4', '--profile', file)
    assert second.returncode == 0 and 'to be made' not in second.stdout
    status = typed('status', '--profile', file).stdout
    assert any(line.split()[:3] == ['model', 'S4', 'current'] for line in status.splitlines())
    assert any(line.split()[:3] == ['model', 'S5', 'absent'] for line in status.splitlines())
    collected = typed('collect', '--profile', file)
    assert collected.returncode == 0, collected.stderr
    folder = home['DISTILHERBERT_RESULTS']/'tiny'
    names = {f.stem for f in folder.glob('*.json')}
    assert {'settings', 'clean', 'pack', 'model-T0', 'model-S4', 'klej-S4', 'time'} <= names and 'model-S5' not in names
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    run('distilherbert', 'collect', '--profile', file, env=home)  # Another process: nothing depends on what this one remembers
    assert before == {f.name: f.read_bytes() for f in folder.iterdir()}, 'collecting twice writes the same bytes'
    # another setting: what was made is stale, and is not touched
    status = typed('status', '--profile', tiny(tmp_path, tokens=12_000)).stdout
    stands = {tuple(line.split()[:3]) for line in status.splitlines()}
    assert {('model', 'S4', 'stale'), ('model', 'S4', 'absent'), ('model', 'T0', 'current')} <= stands
    # another profile with the same rows of the table: this one's are not said to be useless
    (tmp_path/'theirs').mkdir()
    theirs = tiny(tmp_path/'theirs', name='theirs', tokens=12_000)
    status = typed('status', '--profile', theirs).stdout
    assert any(line.split()[:3] == ['model', 'S4', 'other'] for line in status.splitlines()) and ' stale ' not in status
    assert 'other: made for another profile, which may still read them: tiny (' in status


class Training:
    "`distilherbert run T0` of a profile that takes longer than anybody waits."
    def __init__(self, file, home):
        env = os.environ | {k: str(v) for k, v in home.items()} | {'PYTHONUNBUFFERED': '1'}
        self.work = home['DISTILHERBERT_RUNS']/'model'
        self.process = subprocess.Popen([sys.executable, '-m', 'distilherbert.reproduce', 'run', 'T0', '--profile', str(file)], env=env, cwd=TOP,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def lines(self): return [line for f in self.work.glob('.T0-*.partial/metrics.jsonl') for line in f.read_text().splitlines()]

    def wait(self, lines):
        "Wait until the log has more lines than that."
        wait_for_steps(self.work.parent, self.process, lines)

    def interrupt(self, lines):
        "Wait, press Ctrl-C, and return what was said."
        self.wait(lines)
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 130 and 'Traceback' not in err, out + err
        return out, err


def test_stopped_with_ctrl_c(home, typed, tmp_path):
    "SIGINT during training: exit code 130, how far it came, a word on how to go on; and the next run goes on. `status` knows whether it is being built."
    file, stopped = tiny(tmp_path, teacher_tokens=3_000_000), r'Stopped after step (\d+) of (\d+); the same command goes on from there\.'
    def state(): return next(line.split()[2] for line in typed('status', '--profile', file).stdout.splitlines() if line.split()[:2] == ['model', 'T0'])
    first = Training(file, home)
    first.wait(1)
    assert state() == 'building'
    _, err = first.interrupt(5)
    assert state() == 'absent'
    step, steps = re.search(stopped, err).groups()
    assert list(first.work.glob('.T0-*.partial/checkpoints/*.pt')), 'it saved before it stopped'
    out, err = Training(file, home).interrupt(len(first.lines()) + 5)
    assert f'Goes on after step {step} of {steps}.' in out and int(re.search(stopped, err)[1]) > int(step)


@pytest.mark.parametrize('error, code, said', [
    (BadText('old.txt.gz ends too early'), 1, 'BadText: old.txt.gz ends too early'), (UnfitTeacher('T0 is not fit to teach'), 1, 'UnfitTeacher: T0 is not'),
    (NonFiniteLoss('The loss of step 3'), 1, 'NonFiniteLoss: The loss of step 3'), (SettingsError('Unknown profile'), 2, ': Unknown profile'),
    (FileNotFoundError(2, 'No such file', 'x.txt'), 1, 'x.txt'), (KeyboardInterrupt(), 130, 'The same command goes on from there')], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize('command', ['distilherbert', 'python -m distilherbert.distill'])
def test_both_commands_end_the_same_way(monkeypatch, capsys, command, error, code, said):
    def fail(*args): raise error
    monkeypatch.setattr(reproduce, 'run', fail)
    monkeypatch.setattr(distill, 'build_model', fail)
    assert (reproduce.main(['run', 'S4']) if command == 'distilherbert' else distill.main([])) == code
    err = capsys.readouterr().err
    assert err.startswith(f'{command}: ') and said in err and 'Traceback' not in err
    assert ('the same command with -v' in err) == (code == 1)


def test_what_is_written_is_flushed_on_windows_too(tmp_path, monkeypatch):
    "There a folder cannot be opened, and only what is open for writing can be flushed."
    (tmp_path/'file').write_text('x')
    opened = []
    theirs = SimpleNamespace(name='nt', O_RDWR=os.O_RDWR, O_RDONLY=os.O_RDONLY, fsync=os.fsync, close=os.close,
                             open=lambda path, flags: opened.append((path, flags)) or os.open(path, flags))
    monkeypatch.setattr(artefact, 'os', theirs)
    artefact.flush(tmp_path/'file')
    artefact.flush(tmp_path)
    assert opened == [(tmp_path/'file', os.O_RDWR)]


def test_run_program_hides_settings_of_the_caller(monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_RUNS', '/nowhere')
    done = run_program(sys.executable, '-c', 'import os; print("DISTILHERBERT_RUNS" in os.environ)')
    assert done.stdout.strip() == 'False'
