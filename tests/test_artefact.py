"Artefacts: complete or absent, made once, and keyed by what decides their content; how commands end."
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import active_children

import pytest
from conftest import TOP
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from distilherbert import artefact
from distilherbert.artefact import Artefact, DamagedArtefact, Interrupted, guarded, read_manifest, verify
from distilherbert.scenario import SettingsError


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch): monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))


def write(work):
    (work/'sub').mkdir(parents=True, exist_ok=True)
    for name, text in (('a.txt', 'one'), ('sub/b.txt', 'two'), ('.note', 'a note of the stage')): (work/name).write_text(text)
    return {'files': 2}


def stage(make=write, **changes):
    return Artefact(**{'stage': 'text', 'label': 'x', 'version': 1, 'settings': {'n': 1}, 'inputs': (), 'make': make} | changes)


def never(work): pytest.fail('made again')


def killed(*args): raise KeyboardInterrupt


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none() | st.lists(st.integers()), max_size=5))
def test_a_key_depends_on_what_decides_the_content_only_and_asking_for_it_writes_nothing(values):
    a, b = stage(settings=values), stage(len, settings=dict(reversed(values.items())), note='x', resumable=True, parallel=True)
    assert a.key == b.key and len(a.key) == 12
    def chain(**changes): return stage(stage='c', inputs=(stage(stage='b', inputs=(stage(**{'settings': values} | changes),)),)).key
    changes = ({}, {'version': 2}, {'label': 'y'}, {'stage': 'other'}, {'settings': {**values, 'one more': 1}}, {'inputs': (a,)})
    assert len({chain(**c) for c in changes}) == len(changes) and not artefact.runs_dir().exists()


def test_a_manifest_states_everything_and_what_is_there_is_not_made_again(monkeypatch):
    monkeypatch.setattr(artefact, 'PACKAGES', ('numpy', 'no-such-package'))
    made = stage(inputs=(source := stage(label='source'),), note='demo')
    assert made.state() == 'absent' and made.build() == made.path and made.state() == source.state() == 'current'
    m = read_manifest(made.path)
    assert {k: m[k] for k in made.identity()} == made.identity() and (m['note'], m['key'], m['counts']) == ('demo', made.key, {'files': 2})
    assert m['inputs'] == {'text/source': source.key} and set(m['files']) == {'a.txt', 'sub/b.txt'} and not (made.path/'.note').exists()
    assert set(m['provenance']['versions']) == {'python', 'numpy'} and {'commit', 'machine', 'date'} <= set(m['provenance'])
    with pytest.raises(ValueError): artefact.write_json(made.path/'manifest.json', float('nan'))
    assert replace(made, make=never).build() == made.path and verify(made.path) == [], 'the old file stays'


@pytest.mark.parametrize('resumable', [False, True])
def test_an_interrupted_stage_leaves_nothing_that_looks_finished(resumable):
    a, left = stage(lambda work: write(work) and killed(), resumable=resumable), []
    with pytest.raises(KeyboardInterrupt): a.build()
    assert a.state() == 'absent' and not a.path.exists() and a.partial.is_dir()
    replace(a, make=lambda work: left.extend(f.name for f in work.iterdir()) or write(work)).build()
    assert sorted(left) == (['.note', 'a.txt', 'sub'] if resumable else []) and a.state() == 'current'


@pytest.mark.parametrize('damaged', [False, True])
def test_a_run_killed_just_before_the_rename_needs_only_the_rename(monkeypatch, damaged):
    a = stage(resumable=True)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(artefact, 'publish', killed)
        a.build()
    if damaged: (a.partial/'a.txt').write_text('two')  # of the same size
    replace(a, make=write if damaged else never).build()
    assert verify(a.path) == [] and (a.path/'a.txt').read_text() == 'one'


@pytest.mark.parametrize('damage, found', [
    (lambda f: (f/'a.txt').unlink(), 'a.txt'), (lambda f: (f/'sub'/'b.txt').write_text('longer'), 'sub/b.txt'),
    (lambda f: (f/'manifest.json').unlink(), 'manifest.json'), (lambda f: (f/'manifest.json').write_bytes(b'{"\xff'), 'manifest.json')])
def test_damage_is_named_and_says_what_to_do(damage, found):
    a = stage()
    damage(a.build())
    assert a.state() == 'damaged'
    with pytest.raises(DamagedArtefact, match=f'{found}.*Remove the folder'): a.build()


def test_two_that_ask_at_once_make_it_once():
    calls, begun = [], threading.Event()
    def slow(work):
        calls.append(begun.set())
        time.sleep(0.3)
        return write(work)
    a, other = stage(slow), stage(slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(a.build)
        begun.wait()
        assert other.state() == 'building' and other.build() == a.path == first.result()
    assert len(calls) == 1 and other.state() == 'current'


@pytest.mark.parametrize('parallel', [False, True])
def test_a_group_builds_together_and_the_first_writes(parallel):
    made, source = [], stage(lambda work: made.append('source') or write(work), label='source')
    a = stage(lambda work: made.append(work) or write(work), parallel=parallel, inputs=(source,))
    barrier, said = threading.Barrier(2, timeout=20), []
    def together(first):
        def broadcast(value):
            if first: said.append(value)
            barrier.wait()
            value = said[-1]
            barrier.wait()
            return value
        return replace(a).build(first, broadcast)
    with ThreadPoolExecutor(2) as pool: folders = [*pool.map(together, (True, False))]
    assert folders == [a.path]*2 and made == ['source', *[a.partial]*(1 + parallel)] and verify(a.path) == []


@pytest.mark.parametrize('error, code, words', [
    (SettingsError('Unknown profile'), 2, 'Unknown profile'), (KeyboardInterrupt(signal.SIGTERM), 143, 'The same command goes on'),
    (Interrupted(15, 3, 9), 143, 'after step 3 of 9'), (FileNotFoundError(2, 'No such file', 'x.txt'), 1, 'x.txt'),
    (DamagedArtefact('a folder'), 1, 'a command: a folder'), (MemoryError(), 1, 'lower `micro_rows`'),
    (RuntimeError('[enforce fail] DefaultCPUAllocator: not enough'), 1, 'Memory ran out'),
    (ValueError('torch.OutOfMemoryError: CUDA'), 1, 'Memory ran out'), (None, 0, ''),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), 'x'), 1, 'DISTILHERBERT_RUNS to a folder on a larger disk'),
    *((e, 1, 'The disk is full, or a quota is used up') for e in (  # of NumPy, safetensors, and from within a notebook
        OSError('4096 requested and 0 written'), SafetensorError('I/O error: No space left on device (os error 28)'),
        RuntimeError('05.ipynb stopped: OSError: [Errno 28] No space left on device')))], ids=repr)
def test_errors_become_a_message_and_an_exit_code(capsys, monkeypatch, error, code, words):
    def work():
        if error: raise error
    before = signal.getsignal(signal.SIGTERM)
    assert guarded(work, 'a command', 'demo') == code and signal.getsignal(signal.SIGTERM) == before
    err = capsys.readouterr().err
    assert (err.startswith('a command: ') and words in err) if error else err == ''
    assert 'Traceback' not in err and ('same command with -v' in err) == (code == 1)
    monkeypatch.setenv('RANK', '1')
    assert guarded(work, 'a command', 'demo') == code and (not isinstance(error, Interrupted) or capsys.readouterr().err == '')
    with pytest.raises(KeyError): guarded(lambda: {}[1], 'a command', 'demo')  # A bug shows where it is


def test_commands_read_and_write_utf8_in_any_locale_and_sigterm_stops_them():
    program = """import os, signal, sys
from distilherbert.artefact import Progress, guarded
def work():
    Progress(1, 'Letters').update()
    print(sys.stdin.read(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(guarded(work, 'a command', 'demo'))"""
    done = subprocess.run([sys.executable, '-c', program], input='Zażółć gęślą jaźń'.encode(), capture_output=True, cwd=TOP, timeout=60,
                          env=os.environ | {'PYTHONIOENCODING': 'cp1252', 'PYTHONUTF8': '0'})
    bar, text, _ = done.stdout.decode('utf-8').split('\n')
    assert done.returncode == 143 and '█' in bar and text == 'Zażółć gęślą jaźń' and b'Stopped' in done.stderr, done.stderr


def test_an_error_stops_the_workers():
    with pytest.raises(ValueError, match='invalid literal'), artefact.worker_pool(2) as pool:
        pool.submit(time.sleep, 60)
        pool.submit(int, 'x').result()
    end = time.monotonic() + 30
    while active_children() and time.monotonic() < end: time.sleep(0.01)
    assert not active_children()
