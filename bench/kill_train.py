"""Kill a training run at random moments, during checkpoints too, and compare its end with that of a run that was left alone.

    .venv/bin/python bench/kill_train.py                 T0 and S4: 15 kills each of one process and of two (15 to 30 minutes)
    .venv/bin/python bench/kill_train.py --kills 3 --processes 1 --scenarios S4

A kill is SIGKILL to all processes of the run: in turn while it writes a checkpoint, while it makes steps, and at any moment.
The same command is started again until it ends, and must resume where there is a checkpoint. Weights must be the same bytes and logs the
same lines but for the clock's fields; else the script fails. Written to the record bench/kill_train.
"""
import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from distilherbert.artefact import digest
from distilherbert.distill import read_metrics
from distilherbert.results import write_record
from distilherbert.runs import CLOCK

TOP, RESUMES = Path(__file__).resolve().parents[1], 'Resumes after step'
KINDS = ('checkpoint', 'step', 'any moment')
PROFILE = dict(like='demo', world_size=400, vocab_size=400, layers=2, hidden=64, heads=2, intermediate=128, max_len=32, dropout=0.1,
               teacher_tokens=60_000, tokens=60_000, teacher_margin=-10.0, checkpoint_minutes=0.0005)


def begin(top, runs, scenario, processes):
    env = {k: v for k, v in os.environ.items() if not k.startswith('DISTILHERBERT_')}
    env |= {'DISTILHERBERT_RUNS': str(runs), 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONUNBUFFERED': '1'}
    launcher = ['-m', 'torch.distributed.run', '--nproc-per-node', str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, '-m', 'distilherbert.distill', '--scenario', scenario, '--profile', str(top/'small.toml')]
    return subprocess.Popen(command, cwd=TOP, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    "The folder of a run that nobody killed, and whether it was resumed."
    out, err = process.communicate()
    if process.returncode: raise SystemExit(f'A run failed that nobody killed:\n{out[-2000:]}{err[-4000:]}')
    return Path(out.strip().splitlines()[-1]), RESUMES in out


def content(folder):
    log = [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(folder)]
    return digest(folder/'model.safetensors'), hashlib.sha256(json.dumps(log).encode()).hexdigest(), log[-1]['step']


def partial(runs, scenario): return next((runs/'model').glob(f'.{scenario}-*.partial'), None)


def lines(work):
    try: return (work/'metrics.jsonl').read_bytes().count(b'\n')
    except (FileNotFoundError, TypeError): return 0


def kill(process, runs, scenario):
    "SIGKILL to a program and all that it started (torchrun gives each of its processes a session of its own); what it was doing."
    first = psutil.Process(process.pid)
    first.suspend()  # It starts no more
    for p in (*first.children(recursive=True), first):
        with contextlib.suppress(psutil.NoSuchProcess): p.kill()
    out, work = process.communicate()[0], partial(runs, scenario)
    return {'lines': lines(work), 'in_checkpoint': bool(work) and (work/'checkpoints'/'part').exists(), 'resumed': RESUMES in out}


def kill_somewhere(process, runs, scenario, chance, kind, seconds, stride):
    "Kill a run; what it was doing, or None when it ended first."
    if kind == 'any moment':
        try: process.wait(chance.uniform(0, seconds))
        except subprocess.TimeoutExpired: return kill(process, runs, scenario)
        return None
    target = None
    while process.poll() is None:
        work = partial(runs, scenario)
        if target is None and (now := lines(work)): target = now + chance.randint(2, stride)
        if target and lines(work) >= target and (kind == 'step' or (work/'checkpoints'/'part').exists()):
            if kind == 'step': time.sleep(chance.random()/20)
            return kill(process, runs, scenario)
        time.sleep(0.0005)
    return None


def make_runs(top, scenario, name):
    "A folder of artefacts with everything that the model of a scenario is made from."
    for stage in ('text', 'tokenizer', 'sequences', 'model'):
        (top/name/stage).mkdir(parents=True)
        for f in (top/'data'/stage).glob('[!.]*'):
            if not f.name.startswith(f'{scenario}-'): (top/name/stage/f.name).symlink_to(f)
    return top/name


def trial(top, scenario, processes, wanted, chance):
    "Kill runs until there were enough kills; the record of it."
    start, kills, ends, resumed = time.perf_counter(), [], [], 0
    calm = content(finish(begin(top, make_runs(top, scenario, f'calm-{scenario}-{processes}'), scenario, processes))[0])
    seconds, stride = time.perf_counter() - start, max(4, 2*calm[2]//10)
    while len(kills) < wanted:
        runs, done = make_runs(top, scenario, f'rough-{scenario}-{processes}-{len(ends)}'), True
        while done:
            work, kind = partial(runs, scenario), KINDS[len(kills) % len(KINDS)]
            saved, before = bool(work and list((work/'checkpoints').glob('*.pt'))), lines(work)
            process = begin(top, runs, scenario, processes)
            done = kill_somewhere(process, runs, scenario, chance, kind, seconds, stride) if len(kills) < wanted else None
            folder, went_on = (None, done['resumed']) if done else finish(process)
            early = done and kind == 'any moment'  # It may not have come to say so
            if went_on != saved and not (saved and early): raise SystemExit(f'Checkpoint left: {saved}; resumed: {went_on}. Folder: {runs}')
            resumed += went_on
            if done:
                kills.append(done | {'kind': kind, 'no_new_line': done['lines'] <= before})
                print(f'{scenario}, {processes} process(es): kill {len(kills)} of {wanted} ({kind}) after {done["lines"]} lines'
                      f'{", in a checkpoint" if done["in_checkpoint"] else ""}', flush=True)
        ends.append(content(folder))
        if ends[-1] != calm: raise SystemExit(f'The run that was killed ended differently: {ends[-1]}, undisturbed {calm}. Folder: {runs}')
        shutil.rmtree(runs)
    if not resumed: raise SystemExit('No run was resumed: every kill came before the first checkpoint.')
    return {'kills': len(kills), 'in_checkpoint': sum(k['in_checkpoint'] for k in kills), 'resumed': resumed, 'runs_ended': len(ends),
            'at_any_moment': sum(k['kind'] == KINDS[2] for k in kills), 'before_a_new_line': sum(k['no_new_line'] for k in kills),
            'same_weights': sum(e[0] == calm[0] for e in ends), 'same_log': sum(e[1] == calm[1] for e in ends)}


def main():
    p = argparse.ArgumentParser(description='Training survives being killed.')
    p.add_argument('--kills', type=int, default=15, help='for each scenario and number of processes')
    p.add_argument('--scenarios', nargs='+', default=['T0', 'S4'], choices=['T0', 'S4'])
    p.add_argument('--processes', type=int, nargs='+', default=[1, 2])
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    start, chance = time.perf_counter(), random.Random(a.seed)
    with tempfile.TemporaryDirectory() as d:
        top = Path(d)
        (top/'small.toml').write_text('\n'.join(f'{k} = {json.dumps(v)}' for k, v in PROFILE.items()))
        finish(begin(top, top/'data', 'S4', 1))
        values = {f'{s}, {n} process(es)': trial(top, s, n, a.kills, chance) for s in a.scenarios for n in a.processes}
    print(write_record('bench', 'kill_train', values, n=sum(v['kills'] for v in values.values()), seed=a.seed,
                       seconds=round(time.perf_counter() - start, 1), command='python bench/kill_train.py'))


if __name__ == '__main__': main()
