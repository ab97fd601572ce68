"""Wall-clock times of the commands that README names, into results/demo/commands.json.

    .venv/bin/python bench/times.py                  the tests, S4 and the report, cold and warm, and a rendering (about an hour)
    .venv/bin/python bench/times.py --only S4 test   these alone; what else is known stays in the record

Run it on a machine that does nothing else, with `.venv` in place. Whatever is trained goes to a temporary folder, or to the
one that `--keep` names; the rendering at the end of `report` puts the pages back to the committed records.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distilherbert.artefact import duration, read_records, write_record
from distilherbert.evidence import expected_key

TOP = Path(__file__).resolve().parents[1]
PARTS = ['test', 'S4', 'report']  # The tests first: they compare the pages with the records, which change here
S4 = ['papermill', 'nbs/05_distill.ipynb', '{out}/S4.ipynb', '-p', 'scenario', 'S4', '--no-progress-bar']


def seconds(command, **env):
    "Run a command at the top of the checkout; its output is shown when it fails."
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    start = time.perf_counter()
    done = subprocess.run(command, cwd=TOP, env=os.environ | {'PATH': path} | env, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f'{" ".join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}')
    return round(time.perf_counter() - start, 1)


def measure(what, folder):
    "The times of a part, by name."
    if what == 'test': return {what: seconds(['make', what])}
    env = {'DISTILHERBERT_RUNS': f'{folder}/{what}', 'DISTILHERBERT_RESULTS': f'{folder}/results'}
    if what == 'S4': return {f'S4 {name}': seconds([word.format(out=folder) for word in S4], **env) for name in ('cold', 'warm')}
    return {name: seconds(['make', 'report'], **env) for name in ('cold', 'warm')} | {'render': seconds(['make', 'render'])}


def record(times):
    "Write times beside those that were measured with the same code."
    key, old = expected_key('demo', 'commands'), read_records('demo').get('commands', {})
    values = (old['values'] if old.get('key') == key else {}) | times
    return write_record('demo', 'commands', values, key=key, units={name: 's' for name in values}, command='python bench/times.py')


def main():
    p = argparse.ArgumentParser(description='Times of the commands in README.')
    p.add_argument('--only', nargs='+', choices=PARTS, default=PARTS, help=f'default: {" ".join(PARTS)}')
    p.add_argument('--keep', metavar='FOLDER', help='a new or empty folder for what is trained')
    a = p.parse_args()
    if a.keep:
        Path(a.keep).mkdir(parents=True, exist_ok=True)
        if any(Path(a.keep).iterdir()): raise SystemExit(f'{a.keep} is not empty: what is there would not be made again, nor timed. Name another folder.')
    with tempfile.TemporaryDirectory() as d:
        for what in sorted(a.only, key=PARTS.index):
            times = measure(what, a.keep or d)
            for name, s in times.items(): print(f'{name:10} {duration(s)}', flush=True)
            print(f'written to {record(times).relative_to(TOP)}', flush=True)


if __name__ == '__main__': main()
