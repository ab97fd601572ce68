"What several test files share: where the checkout is, and how its programs are run."
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distilherbert.reproduce import SHARED_CORES

for name, value in SHARED_CORES.items(): os.environ.setdefault(name, value)  # before NumPy and PyTorch are loaded; results are the same

TOP = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((TOP/'nbs').glob('*.ipynb'))
# Each file is the work of one process (`--dist loadfile`): those that take longest begin first, so that no process waits for another at the end.
LONGEST = ('readme', 'devices', 'papermill', 'guides', 'cli', 'bench', 'distill', 'deploy', 'klej')


def pytest_collection_modifyitems(items):
    "Files in the order of `LONGEST`, the others behind; the order within a file stays."
    place = {f'test_{name}.py': n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def run_program(*args, env=None, cwd=TOP, timeout=600, **kw):
    "Run a program, its output captured as text; nothing of the caller's DISTILHERBERT_* settings is passed but the data."
    base = {k: v for k, v in os.environ.items() if not k.startswith('DISTILHERBERT_') or k == 'DISTILHERBERT_DATA'}
    base |= {'PATH': f'{Path(sys.executable).parent}{os.pathsep}{base["PATH"]}', 'PYTHONUNBUFFERED': '1'}
    return subprocess.run([str(a) for a in args], cwd=cwd, env=base | {k: str(v) for k, v in (env or {}).items()},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, **kw)


def wait_for_steps(runs, process, steps, row='T0'):
    "Wait until more than so many lines are in the log of a training; True when the process still runs."
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        logs = list((runs/'model').glob(f'.{row}-*.partial/metrics.jsonl'))
        if logs and logs[0].read_bytes().count(b'\n') > steps: return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope='session')
def run():
    "`run(program, *args, env={}, cwd=top, timeout=600)`: the finished process."
    return run_program
