"""Kill -9 at random moments while text is cleaned and packed, into results/bench/kill_data.json.

    .venv/bin/python bench/kill_data.py                     30 kills with one process and 30 with two workers, on the embedded world (about 10 minutes)
    .venv/bin/python bench/kill_data.py --kills 3 --small   a smoke run that writes nothing

One process is undisturbed. Others are started again and again in folders of their own and killed at random moments, until all kills are
spent; each folder is then finished. Its files must be those of the undisturbed run, byte for byte, and the work that was finished before a kill
must not be done again: a shard that was there keeps its time of change. Only the parent is killed: its workers must end by themselves.

Moments are drawn stage by stage (text, rows of "old", rows of "ccsub"): a number of finished files after which the kill comes, and a moment more.
"""
import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil

from distilherbert import clean
from distilherbert.artefact import write_record
from distilherbert.clean import text_artefact
from distilherbert.pack import rows_artefact
from distilherbert.scenario import get_profile

STAGES = {'text': ('text', '*-?????.txt'), 'rows of old': ('rows', 'ids-?????.npy', 'old-'), 'rows of ccsub': ('rows', 'ids-?????.npy', 'ccsub-')}
GONE = 30 # Seconds in which the workers of a killed process must have ended


def build(documents, stretch, workers):
    "What is killed: both parts from nothing to rows, in small stretches, so that there is much to resume."
    clean.STRETCH, clean.GROUP = stretch, 100
    profile = replace(get_profile('demo'), world_size=documents, vocab_size=600)
    text_artefact(profile, workers).build()
    for part in ('old', 'ccsub'): rows_artefact(profile, part, workers).build()


def content(runs):
    "Checksums of everything that was made; manifests have dates in them."
    return {f.relative_to(runs).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(runs.rglob('*'))
            if f.is_file() and f.name != 'manifest.json' and f.suffix != '.lock'}


def start(runs, a, workers):
    "A process that builds."
    return subprocess.Popen([sys.executable, __file__, '--build', str(a.documents), str(a.stretch), str(workers)], env=os.environ | {'DISTILHERBERT_RUNS': str(runs)},
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(runs):
    "Files of finished work with their times of change. In a folder that is not complete, those that its own notes call finished."
    files = {}
    for folder in [*runs.glob('text/*/'), *runs.glob('rows/*/')]:
        complete, note = (folder/'manifest.json').is_file(), folder/'.progress.json'
        stretches = json.loads(note.read_text())['stretches'] if note.is_file() else 0
        for f in folder.glob('*-?????.*'):
            number = f.stem.rsplit('-', 1)[1]
            there = complete or (f.suffix == '.txt' and int(number) < stretches) or (f.suffix == '.npy' and (folder/f'.shard-{number}.json').is_file())
            if there and f.suffix in ('.txt', '.npy'): files[folder.name.strip('.').removesuffix('.partial'), f.name] = f.stat().st_mtime_ns
    return files


def pieces(runs):
    "Files that each stage has made so far."
    return {stage: sum(1 for folder in (runs/kind).glob('*/') if folder.name.strip('.').startswith(*label or ('',)) for _ in folder.glob(pattern))
            for stage, (kind, pattern, *label) in STAGES.items()}


def kill_at(process, runs, moment, delay):
    "Kill a process, but not its workers, once a stage has made so many files. False when it ended before."
    stage, n = moment
    while pieces(runs)[stage] < n:
        if process.poll() is not None: return False
        time.sleep(0.002)
    time.sleep(delay)
    workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if left := psutil.wait_procs(workers, timeout=GONE)[1]: raise SystemExit(f'{len(left)} processes outlive their killed parent by {GONE} s: {left}')
    return process.returncode == -signal.SIGKILL


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=30, metavar='N', help='processes to kill, for each number of workers (30)')
    p.add_argument('--workers', type=int, nargs='+', default=[1, 2], metavar='N', help='numbers of workers (1 and 2)')
    p.add_argument('--documents', type=int, default=2500, metavar='N', help='documents of each part of the world (2,500)')
    p.add_argument('--stretch', type=int, default=25_000, metavar='N', help='characters in a file (25,000)')
    p.add_argument('--seed', type=int, default=0, metavar='N', help='seed of the moments (0)')
    p.add_argument('--small', action='store_true', help='600 documents, nothing written')
    p.add_argument('--build', nargs=3, type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.build: return build(*a.build)
    if a.small: a.documents, a.stretch = 600, 8000
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as d:
        if start(Path(d)/'undisturbed', a, 1).wait(): raise SystemExit('The undisturbed run failed.')
        whole = time.perf_counter() - begin
        values = {f'workers={n}': kill(Path(d), a, n) for n in a.workers}
    for what, v in values.items():
        print(f'{what}: {v["kills"]} kills, {v["rounds"]} folders, {v["files"]} files each: all as undisturbed; {v["kept"]:,} finished files seen '
              f'after kills, {v["again"]} of them made again; kills by stage: {v["by_stage"]}')
    if a.small: return
    values |= {'undisturbed_seconds': round(whole, 2), 'documents': a.documents, 'stretch': a.stretch}
    print(f'written to {write_record("bench", "kill_data", values, n=a.kills*len(a.workers), seed=a.seed, seconds=round(time.perf_counter() - begin, 1), command="python bench/kill_data.py")}')


def kill(folder, a, workers):
    "Spend all kills; raises `SystemExit` when a file differs, finished work was done again, or a worker lives on."
    draw, expected, files = random.Random(f'{a.seed} {workers}'), content(folder/'undisturbed'), pieces(folder/'undisturbed')
    kills, rounds, kept, again, moments = 0, 0, 0, 0, []
    stages = [*STAGES]
    while kills < a.kills:
        runs, rounds = folder/f'killed-{workers}-{rounds}', rounds + 1
        (runs/'text').mkdir(parents=True)
        some = sorted((stages.index(s), draw.randrange(files[s])) for s in (stages[(kills + i) % len(stages)] for i in range(min(5, a.kills - kills))))
        for at in [*some, None]:  # After five kills, or all of them, a folder is finished
            before, process = finished(runs), start(runs, a, workers)
            if at is None:
                error = process.communicate()[1]
                if process.returncode: raise SystemExit(f'A run that goes on after kills failed:\n{error}')
            elif kill_at(process, runs, (stages[at[0]], at[1]), draw.uniform(0, 0.1)):
                kills += 1
                made = pieces(runs)
                stage = next((s for s in reversed(stages) if made[s]), 'text')
                moments.append([stage, round(made[stage]/files[stage], 3)])
            elif process.returncode: raise SystemExit(f'A run failed before it was killed:\n{process.communicate()[1]}')
            after = finished(runs)
            kept, again = kept + len(before), again + sum(after.get(name) != t for name, t in before.items())
        if content(runs) != expected:
            differ = sorted(k for k in expected.keys() | content(runs).keys() if expected.get(k) != content(runs).get(k))
            raise SystemExit(f'After kills these files differ: {", ".join(differ[:10])}')
    if again: raise SystemExit(f'{again} finished files were made again.')
    if not kept: raise SystemExit(f'None of {kills} kills came after a file was finished, so nothing is shown. Take more --kills, or more --documents.')
    return {'kills': kills, 'rounds': rounds, 'files': len(expected), 'kept': kept, 'again': again, 'moments': moments,
            'by_stage': dict(Counter(stage for stage, _ in moments))}


if __name__ == '__main__': main()
