"""Kill -9 at random moments while text is cleaned and packed, into the record bench/kill_data.

    python bench/kill_data.py                     30 kills each with one, two and four workers, on the embedded world (15 minutes)

Runs in folders of their own are killed and started again until all kills are spent, then finished. Their files must be
those of an undisturbed run, byte for byte, and a file that was there keeps its time of change. Only the parent is killed: its workers
must end by themselves. A moment is a number of finished files of a stage, and up to a tenth of a second more.
"""
import argparse
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
from glob import glob  # That of pathlib fails where a folder is renamed meanwhile
from pathlib import Path

import psutil

from distilherbert import clean, sources
from distilherbert.artefact import digest
from distilherbert.pipeline import sequences_artefact, text_artefact
from distilherbert.results import write_record
from distilherbert.scenario import get_profile

STAGES = {'clean': 'text/*/.texts-?????', 'deduplicate': 'text/*/*-?????.txt', 'pack': 'sequences/*/ids-?????.npy'}


def build(documents, shard):
    "What is killed: both parts from nothing to sequences, in small shards, so that there is much to resume."
    clean.SHARD, sources.GROUP = shard, 100
    profile = replace(get_profile('demo'), world_size=documents, vocab_size=600)
    text_artefact(profile).build()
    for part in ('old', 'ccsub'): sequences_artefact(profile, part).build()


def start(runs, a, workers):
    "A process that builds."
    env = os.environ | {'DISTILHERBERT_RUNS': str(runs), 'DISTILHERBERT_WORKERS': str(workers)}
    return subprocess.Popen([sys.executable, __file__, '--build', str(a.documents), str(a.shard)], env=env, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def content(runs):
    "Checksums of everything that was made; manifests have dates in them."
    files = (f for f in runs.rglob('*') if f.is_file() and f.suffix not in ('.lock', '.json'))
    return {f.relative_to(runs).as_posix(): digest(f) for f in files}


def pieces(runs): return Counter({stage: len(glob(pattern, root_dir=runs, include_hidden=True)) for stage, pattern in STAGES.items()})


def finished(runs):
    "Files of finished work with their times of change: in a folder that is not complete, those that its own notes call finished."
    files = {}
    for f in (f for pattern in STAGES.values() for f in runs.glob(pattern)):
        folder, number, note = f.parent, f.stem.rsplit('-', 1)[1], f.parent/clean.NOTE
        there = (folder/'manifest.json').is_file() or f.suffix == '.txt' or (folder/f'.shard-{number}.json').is_file()
        if f.suffix == '': there = note.is_file() and int(number) < json.loads(note.read_text())['shards']
        if there: files[folder.name.strip('.').removesuffix('.partial'), f.name] = f.stat().st_mtime_ns
    return files


def kill_at(process, runs, stage, n, delay):
    "Kill a process, but not its workers, once a stage has made so many files. False when it ended before."
    while pieces(runs)[stage] < n:
        if process.poll() is not None: return False
        time.sleep(0.002)
    time.sleep(delay)
    workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if left := psutil.wait_procs(workers, timeout=30)[1]: raise SystemExit(f'These processes outlive their killed parent by 30 s: {left}')
    return process.returncode == -signal.SIGKILL


def kill(folder, a, workers):
    "Spend all kills; raises `SystemExit` when a file differs, finished work was done again, or a worker lives on."
    kills, rounds, kept, again, moments = 0, 0, 0, 0, []
    draw, expected = random.Random(f'{a.seed} {workers}'), content(folder/'undisturbed')
    files = pieces(folder/'undisturbed') # Notes are removed at the end: there are as many cleaned shards as files of a part
    files['clean'] = files['deduplicate']//2
    while kills < a.kills:
        runs, rounds = folder/f'killed-{workers}-{rounds}', rounds + 1
        runs.mkdir()
        stages = [[*STAGES][(kills + i) % len(STAGES)] for i in range(min(5, a.kills - kills))]
        some = sorted(([*STAGES].index(s), draw.randrange(files[s])) for s in stages)
        for at in [*some, None]: # After five kills, or all of them, a folder is finished
            before, process = finished(runs), start(runs, a, workers)
            if at is None:
                error = process.communicate()[1]
                if process.returncode: raise SystemExit(f'A run that goes on after kills failed:\n{error}')
            elif kill_at(process, runs, [*STAGES][at[0]], at[1], draw.uniform(0, 0.1)):
                kills += 1
                moments.append(next((s for s in reversed(STAGES) if pieces(runs)[s]), 'clean'))
            elif process.returncode: raise SystemExit(f'A run failed before it was killed:\n{process.communicate()[1]}')
            after = finished(runs)
            kept, again = kept + len(before), again + sum(after.get(name, t) != t for name, t in before.items())
        if content(runs) != expected: raise SystemExit(f'These files differ: {sorted(content(runs).items() ^ expected.items())[:10]}')
    if again or not kept: raise SystemExit(f'{again} of {kept} finished files were made again after {kills} kills.')
    by_stage = dict(Counter(moments))
    print(f'workers={workers}: {kills} kills, {len(expected)} files in each of {rounds} folders, all as undisturbed; {kept:,} finished '
          f'files seen after kills, none made again; kills by stage: {by_stage}', flush=True)
    return {'kills': kills, 'rounds': rounds, 'files': len(expected), 'kept': kept, 'again': again, 'by_stage': by_stage}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=30, metavar='N', help='processes to kill, for each number of workers (30)')
    p.add_argument('--workers', type=int, nargs='+', default=[1, 2, 4], metavar='N', help='numbers of workers (1, 2 and 4)')
    p.add_argument('--seed', type=int, default=0, metavar='N', help='seed of the moments (0)')
    p.add_argument('--small', action='store_true', help='600 documents instead of 2,500, nothing written')
    p.add_argument('--build', nargs=2, type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.build: return build(*a.build)
    a.documents, a.shard, begin = *((600, 8000) if a.small else (2500, 25_000)), time.perf_counter()
    with tempfile.TemporaryDirectory() as d:
        if start(Path(d)/'undisturbed', a, 1).wait(): raise SystemExit('The undisturbed run failed.')
        values = {f'workers={n}': kill(Path(d), a, n) for n in a.workers}
    if a.small: return
    print(write_record('bench', 'kill_data', values | {'documents': a.documents, 'shard': a.shard}, n=a.kills*len(a.workers), seed=a.seed,
                       seconds=round(time.perf_counter() - begin, 1), command='python bench/kill_data.py'))


if __name__ == '__main__': main()
