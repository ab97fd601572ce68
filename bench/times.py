"""Wall-clock times of the commands that README names: the record `commands` of `demo` (`make records` moves it into results/).

    .venv/bin/python bench/times.py                  tests, S4 and the report, cold and warm, and a rendering (about an hour)
    .venv/bin/python bench/times.py --only S4 test   these alone; the rest of the record in results/ stays

Run it on an idle machine, with `.venv` in place. What is trained goes to a temporary folder, or to the one that `--keep` names.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distilherbert.artefact import duration
from distilherbert.results import read_records, write_record

TOP = Path(__file__).resolve().parents[1]
PARTS = ['test', 'test-all', 'S4', 'report']
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
    if what.startswith('test'): return {what: seconds(['make', what])}
    env = {'DISTILHERBERT_RUNS': f'{folder}/{what}'}
    if what == 'S4': return {f'S4 {name}': seconds([word.format(out=folder) for word in S4], **env) for name in ('cold', 'warm')}
    return {name: seconds(['make', 'report'], **env) for name in ('cold', 'warm')} | {'render': seconds(['make', 'render'])}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=PARTS, default=PARTS, help=f'default: {" ".join(PARTS)}')
    p.add_argument('--keep', metavar='FOLDER', help='a new or empty folder for what is trained')
    a = p.parse_args()
    if a.keep and Path(a.keep).is_dir() and any(Path(a.keep).iterdir()):
        p.error(f'{a.keep} is not empty: what is there would not be made again, nor timed. Name another folder.')
    if a.keep: Path(a.keep).mkdir(parents=True, exist_ok=True)
    values = read_records('demo').get('commands', {}).get('values', {})
    with tempfile.TemporaryDirectory() as d:
        for what in sorted(a.only, key=PARTS.index):
            times = measure(what, a.keep or d)
            for name, s in times.items(): print(f'{name:10} {duration(s)}', flush=True)
            values |= times
            print(write_record('demo', 'commands', values, units=dict.fromkeys(values, 's'), command='python bench/times.py'), flush=True)


if __name__ == '__main__': main()
