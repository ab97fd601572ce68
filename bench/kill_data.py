"""Kill -9 at random moments while text is cleaned and packed, into results/bench/kill_data.json.

    .venv/bin/python bench/kill_data.py                  30 kills, on a corpus of the embedded world (about 5 minutes)
    .venv/bin/python bench/kill_data.py --kills 3 --small   a smoke run that writes nothing

One process is undisturbed. Others are started again and again in folders of their own and killed at random moments, until all kills are
spent; each folder is then finished. Its files must be those of the undisturbed run, byte for byte, and the work that was finished before a kill
must not be done again: a shard that was there keeps its time of change.
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
from dataclasses import replace
from pathlib import Path

from distilherbert import clean
from distilherbert.artefact import write_record
from distilherbert.pack import rows_artefact
from distilherbert.scenario import get_profile


def build(documents, stretch):
    "What is killed: both parts from nothing to rows, in small stretches, so that there is much to resume."
    clean.STRETCH, clean.GROUP = stretch, 100
    profile = replace(get_profile('demo'), world_size=documents, vocab_size=600)
    for part in ('old', 'ccsub'): rows_artefact(profile, part).build()


def content(runs):
    "Checksums of everything that was made; manifests have dates in them."
    return {f.relative_to(runs).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(runs.rglob('*'))
            if f.is_file() and f.name != 'manifest.json' and f.suffix != '.lock'}


def start(runs, a):
    "A process that builds."
    return subprocess.Popen([sys.executable, __file__, '--build', str(a.documents), str(a.stretch)], env=os.environ | {'DISTILHERBERT_RUNS': str(runs)},
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


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=30, metavar='N', help='processes to kill (30)')
    p.add_argument('--documents', type=int, default=2500, metavar='N', help='documents of each part of the world (2,500)')
    p.add_argument('--stretch', type=int, default=25_000, metavar='N', help='characters in a file (25,000)')
    p.add_argument('--seed', type=int, default=0, metavar='N', help='seed of the moments (0)')
    p.add_argument('--small', action='store_true', help='600 documents, nothing written')
    p.add_argument('--build', nargs=2, type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.build: return build(*a.build)
    if a.small: a.documents, a.stretch = 600, 8000
    with tempfile.TemporaryDirectory() as d: values = kill(Path(d), a)
    print(f'{values["kills"]} kills, {values["rounds"]} folders, {values["files"]} files each: all as undisturbed; {values["kept"]:,} finished files seen '
          f'after kills, {values["again"]} of them made again.')
    if not a.small: print(f'written to {write_record("bench", "kill_data", values, n=values["kills"], seed=a.seed, command="python bench/kill_data.py")}')


def kill(folder, a):
    "Spend all kills; raises `SystemExit` when a file differs or finished work was done again."
    draw, begin = random.Random(a.seed), time.perf_counter()
    if start(folder/'undisturbed', a).wait(): raise SystemExit('The undisturbed run failed.')
    whole, expected = time.perf_counter() - begin, content(folder/'undisturbed')
    kills, rounds, kept, again, moments = 0, 0, 0, 0, []
    while kills < a.kills:
        runs, rounds = folder/f'killed{rounds}', rounds + 1
        runs.mkdir()
        for n in range(6):  # After five kills, or all of them, a folder is finished
            before, started = finished(runs), time.perf_counter()
            process = start(runs, a)
            try:
                error = process.communicate(timeout=None if n == 5 or kills == a.kills else draw.uniform(0.2, 1.0)*whole)[1]
                if not n: whole = min(whole, time.perf_counter() - started)  # Not killed: the machine has become faster
                if process.returncode: raise SystemExit(f'A run that goes on after {n} kills failed:\n{error}')
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                moments.append(round(sum(1 for _ in runs.rglob('*.npy'))/max(1, sum(f.endswith('.npy') for f in expected)), 3))
            after = finished(runs)
            kept, again = kept + len(before), again + sum(after.get(name) != t for name, t in before.items())
            if process.returncode == 0: break
        if content(runs) != expected:
            differ = sorted(k for k in expected.keys() | content(runs).keys() if expected.get(k) != content(runs).get(k))
            raise SystemExit(f'After kills these files differ: {", ".join(differ[:10])}')
    if again: raise SystemExit(f'{again} finished files were made again.')
    if not kept: raise SystemExit(f'None of {kills} kills came after a file was finished, so nothing is shown. Take more --kills, or more --documents.')
    return {'kills': kills, 'rounds': rounds, 'files': len(expected), 'kept': kept, 'again': again, 'share_of_rows_at_kill': moments,
            'undisturbed_seconds': round(whole, 2), 'documents': a.documents, 'stretch': a.stretch}


if __name__ == '__main__': main()
