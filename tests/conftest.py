"What all tests share: a clean environment, how programs are run, and one tiny profile that is built once."
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP/'tools'))  # For `import pages`
NOTEBOOKS = sorted((TOP/'nbs').glob('*.ipynb'))
# `--dist loadfile` gives each file to one process: the files that take longest start first.
LONGEST = ('commands', 'bench', 'papermill', 'runs', 'cli', 'paper', 'package', 'distill', 'classify', 'klej', 'pages')

needs_data = pytest.mark.skipif('DISTILHERBERT_DATA' not in os.environ, reason='DISTILHERBERT_DATA names no folder of real data')


def pytest_configure(config):
    "Remove the user's own settings; artefacts of the whole test run go to one temporary folder, which all workers share."
    if hasattr(config, 'workerinput'): return  # a worker of pytest-xdist inherits the environment made here
    for name in [n for n in os.environ if n.startswith('DISTILHERBERT_') and n != 'DISTILHERBERT_DATA']: del os.environ[name]
    config.runs = tempfile.mkdtemp(prefix='distilherbert-tests-')
    os.environ['DISTILHERBERT_RUNS'] = config.runs
    for name, value in (('OMP_WAIT_POLICY', 'PASSIVE'), ('OPENBLAS_NUM_THREADS', '1')): os.environ.setdefault(name, value)


def pytest_unconfigure(config):
    if hasattr(config, 'runs'): shutil.rmtree(config.runs, ignore_errors=True)


def pytest_collection_modifyitems(items):
    "Order the files by `LONGEST`; the order within a file stays."
    place = {f'test_{name}.py': n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def run_program(*args, env=None, cwd=TOP, timeout=600):
    "Run a program and capture its output as text."
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    env = os.environ | {'PATH': path, 'PYTHONUNBUFFERED': '1'} | {k: str(v) for k, v in (env or {}).items()}
    args = [str(a) for a in args]
    return subprocess.run(args, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)


def wait_for_steps(runs, process, steps, scenario='T0'):
    "Wait until the log of a training in progress has more than so many lines; True while the process still runs."
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        logs = list((Path(runs)/'model').glob(f'.{scenario}-*.partial/metrics.jsonl'))
        if logs and logs[0].read_bytes().count(b'\n') > steps: return True
        time.sleep(0.01)
    return False


def training(profile, scenario, *more, launcher=()):
    "The command that trains a scenario, for `python` or for a launcher of several processes."
    return sys.executable, *launcher, '-m', 'distilherbert.distill', '--scenario', scenario, '--profile', str(profile), *more


def begin_training(runs, steps, *args, **launcher):
    "A training in a folder of artefacts that has logged more than so many lines, and still runs."
    env = os.environ | {'DISTILHERBERT_RUNS': str(runs), 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(training(*args, **launcher), cwd=TOP, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_for_steps(runs, process, steps, args[1]), process.communicate()
    return process


def end_training(runs, *args, **launcher):
    "Train to the end: what is printed, and the folder of the model."
    done = run_program(*training(*args, **launcher), env={'DISTILHERBERT_RUNS': runs, 'OMP_NUM_THREADS': 1})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, Path(done.stdout.strip().splitlines()[-1])


def check_saved(runs, scenario):
    "After SIGTERM: the checkpoint has the last step of the log, which is returned."
    log, = (runs/'model').glob(f'.{scenario}-*.partial/metrics.jsonl')
    last = json.loads(log.read_text().splitlines()[-1])['step']
    assert int(sorted(log.parent.glob('checkpoints/*.pt'))[-1].name.split('-')[0]) == last
    return last


SENTENCE = 'Numer {} ma swoje zdanie, a w nim kilka słów.'


def noisy_corpus(documents=300, seed=0):
    "Documents with markup, short lines, duplicates within and across corpora, and odd gaps."
    rng, lines = random.Random(seed), []
    for _ in range(documents):
        for _ in range(rng.randrange(1, 6)):
            s = SENTENCE.format(rng.randrange(900))
            lines.append(rng.choice([s, s, s, f'<p>{s}</p>', f'{s} http://a.example/b', 'Menu', '*** ### ***', f'  {s}\t',
                                     s.replace(' ', '&nbsp;'), unicodedata.normalize('NFD', s)]))
        lines.append(rng.choice(['', '', ' ', '\t']))
    return '\n'.join(lines)


def link_inputs(tiny, folder, *models):
    "A folder of artefacts with the text and sequences of the tiny profile, and some models."
    for stage in ('text', 'tokenizer', 'sequences', 'model'):
        (folder/stage).mkdir(parents=True)
        for f in models if stage == 'model' else (tiny.runs/stage).glob('[!.]*'): (folder/stage/f.name).symlink_to(f)
    return folder


def log_of(folder):
    "The log of a training run without the clock's fields."
    from distilherbert.artefact import read_metrics
    from distilherbert.runs import CLOCK
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(folder)]


def write_tiny(folder, **changes):
    "Write `tiny.toml`, a profile so small that a scenario takes seconds."
    fields = dict(like='demo', world_size=300, vocab_size=300, layers=2, hidden=16, heads=2, intermediate=32, max_len=32, task_max_len=32,
                  teacher_tokens=20_000, tokens=10_000, batch_rows=16, micro_rows=16, teacher_margin=-10.0,
                  task_examples=60, task_epochs=2, task_seeds=[1, 2], threads=1) | changes
    file = Path(folder)/'tiny.toml'
    file.write_text('\n'.join(f'{k} = {json.dumps(v)}' for k, v in fields.items()))
    return file


def write_task(root, name, splits):
    "An official folder of a task: rows (dicts) for each split."
    from pandas import DataFrame

    from distilherbert.tasks import TASKS
    (place := root/f'klej_{name}').mkdir(parents=True, exist_ok=True)
    quoting = {'quoting': csv.QUOTE_MINIMAL} if TASKS[name].quoted else {'quoting': csv.QUOTE_NONE, 'quotechar': '\0'}
    for split, rows in splits.items(): DataFrame(rows).to_csv(place/f'{split}.tsv', sep='\t', index=False, **quoting)
    return root


def damage(folder, file, change):
    """Damage a file of a folder. It is removed, or gets a content (bytes), or a share of the old one (a number); a dict or a function
    changes what JSON or safetensors hold."""
    path = Path(folder)/file
    if change is None: path.unlink()
    elif isinstance(change, bytes): path.write_bytes(change)
    elif isinstance(change, float): path.write_bytes(path.read_bytes()[:int(path.stat().st_size*change)])
    elif path.suffix == '.json':
        old = json.loads(path.read_text('utf-8'))
        path.write_text(json.dumps(old | change if isinstance(change, dict) else change(old)), 'utf-8')
    else:
        from safetensors.torch import load_file, save_file
        save_file(change(load_file(path)), path, {'format': 'pt'})
    return folder


@pytest.fixture(scope='session')
def tiny():
    "The artefacts of the tiny profile: text, tokenizer, sequences, the models T0 and S4, and their scores."
    from distilherbert import pipeline
    from distilherbert.scenario import get_profile, get_scenario
    runs = Path(os.environ['DISTILHERBERT_RUNS'])
    with FileLock(runs/'.tiny.lock'):
        (runs/'profiles').mkdir(exist_ok=True)
        file = write_tiny(runs/'profiles')
        profile = get_profile(file)
        made = SimpleNamespace(profile=profile, file=file, runs=runs, text=pipeline.build_text(profile),
                               tokenizer=pipeline.build_tokenizer(profile),
                               sequences={part: pipeline.build_sequences(profile, part) for part in ('old', 'ccsub')},
                               models={name: pipeline.build_model(profile, get_scenario(name)) for name in ('T0', 'S4')})
        made.scores = {(name, group, seed): folder for name in made.models
                       for group, runs in pipeline.build_scores(profile, get_scenario(name)).items() for seed, folder in runs.items()}
    return made
