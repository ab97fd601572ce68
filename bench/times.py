"""Wall-clock times of the commands that README names, into results/demo/time.json.

    .venv/bin/python bench/times.py            S4 and the report, cold and warm, and a rendering (up to 40 minutes)
    .venv/bin/python bench/times.py --test     `make test` as well

Run it on a machine that does nothing else, with `.venv` in place. Whatever is run goes to a temporary folder; the last
rendering puts the pages back to the committed records.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distilherbert.artefact import duration, read_records, write_record

TOP = Path(__file__).resolve().parents[1]
S4 = ['papermill', 'nbs/05_distill.ipynb', '{out}/S4.ipynb', '-p', 'scenario', 'S4', '--no-progress-bar']


def seconds(command, **env):
    "Run a command at the top of the checkout; its output is shown when it fails."
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    start = time.perf_counter()
    done = subprocess.run(command, cwd=TOP, env=os.environ | {'PATH': path} | env, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f'{" ".join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}')
    return round(time.perf_counter() - start, 1)


def main():
    p = argparse.ArgumentParser(description='Times of the commands in README.')
    p.add_argument('--test', action='store_true', help='time `make test` as well')
    times = {}
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        command = [word.format(out=d) for word in S4]
        for name in ('S4 cold', 'S4 warm'): times[name] = seconds(command, DISTILHERBERT_RUNS=f'{d}/S4')
        for name in ('cold', 'warm'): times[name] = seconds(['make', 'report'], DISTILHERBERT_RUNS=f'{d}/all', DISTILHERBERT_RESULTS=f'{d}/results')
    for target in ('render', *(['test'] if args.test else [])): times[target] = seconds(['make', target])
    for name, s in times.items(): print(f'{name:10} {duration(s)}')
    known = read_records('demo')['time']
    file = write_record('demo', 'time', known['values'] | times, units=known['units'] | {name: 's' for name in times}, command=known['command'])
    print(f'written to {file.relative_to(TOP)}')


if __name__ == '__main__': main()
