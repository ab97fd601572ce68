"""Kill a training run at random moments, during checkpoints too, and compare its end with that of a run that was left alone.

    .venv/bin/python bench/kill_train.py                 T0 and S4: 15 kills each of one process and of two (15 to 30 minutes)
    .venv/bin/python bench/kill_train.py --kills 3 --processes 1 --scenarios S4

A kill is SIGKILL to all processes of the run at once. In turn it comes while a checkpoint is being written, while the run makes steps, and at any moment from the start
of the process on: while it starts, cuts its log, loads a checkpoint, writes the finished model or renames its folder. The run is started again with the same command
until it ends, and must say that it goes on where a checkpoint was left; runs are repeated until there were enough kills. Their weights must be the same bytes and their
logs the same lines but for the clock's fields; else the script fails. Written to results/bench/kill_train.json.
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

from distilherbert.artefact import duration, write_record
from distilherbert.distill import CLOCK, read_metrics

TOP = Path(__file__).resolve().parents[1]
GOES_ON = 'Goes on after step'
KINDS = ('checkpoint', 'step', 'any moment')
PROFILE = """like = "demo"
world_size = 400
vocab_size = 400
layers = 2
hidden = 64
heads = 2
intermediate = 128
max_len = 32
dropout = 0.1
teacher_tokens = 60_000
tokens = 60_000
batch_rows = 16
micro_rows = 16
teacher_margin = -10.0
threads = 1
checkpoint_minutes = 0.0005
"""


def command(profile, scenario, processes):
    launcher = [sys.executable] if processes == 1 else [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(processes)]
    return [*launcher, '-m', 'distilherbert.distill', '--scenario', scenario, '--profile', str(profile)]


def begin(top, runs, scenario, processes):
    env = {k: v for k, v in os.environ.items() if not k.startswith('DISTILHERBERT_')}
    env |= {'DISTILHERBERT_RUNS': str(runs), 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONUNBUFFERED': '1'}
    return subprocess.Popen(command(top/'small.toml', scenario, processes), cwd=TOP, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate()
    if process.returncode: raise SystemExit(f'A run failed that nobody killed:\n{out[-2000:]}{err[-4000:]}')
    return Path(out.strip().splitlines()[-1]), GOES_ON in out


def content(folder):
    log = [{k: v for k, v in l.items() if k not in CLOCK} for l in read_metrics(folder)]
    return hashlib.sha256((folder/'model.safetensors').read_bytes()).hexdigest(), hashlib.sha256(json.dumps(log).encode()).hexdigest(), len(log) - 1


def kill_all(process):
    "SIGKILL to a program and all that it started (torchrun gives each of its processes a session of its own); what it had printed."
    first = psutil.Process(process.pid)
    first.suspend()  # It starts no more
    for p in (*first.children(recursive=True), first):
        with contextlib.suppress(psutil.NoSuchProcess): p.kill()
    return process.communicate()[0]


def partial(runs, scenario): return next((runs/'model').glob(f'.{scenario}-*.partial'), None)


def lines(work):
    try: return (work/'metrics.jsonl').read_bytes().count(b'\n')
    except FileNotFoundError: return 0


def killed(process, runs, scenario, before):
    "Kill a run; what it was doing."
    out, work = kill_all(process), partial(runs, scenario)
    now = lines(work) if work else 0
    return {'lines': now, 'in_checkpoint': bool(work) and (work/'checkpoints'/'part').exists(), 'no_new_line': now <= before, 'resumed': GOES_ON in out}


def kill_at_any_moment(process, runs, scenario, chance, seconds, before):
    "Kill a run at a random moment from its start on; what it was doing, or None when it ended first."
    try: process.wait(chance.uniform(0, seconds))
    except subprocess.TimeoutExpired: return killed(process, runs, scenario, before)


def kill_somewhere(process, runs, scenario, chance, stride, in_checkpoint, before):
    "Kill a run that made some steps; what it was doing, or None when it ended first."
    work, seen, target = None, None, None
    while process.poll() is None:
        work = work or partial(runs, scenario)
        if work:
            now = lines(work)
            if now and seen is None: seen, target = now, now + chance.randint(2, stride)
            if target is not None and now >= target and (not in_checkpoint or (work/'checkpoints'/'part').exists()):
                if not in_checkpoint: time.sleep(chance.random()/20)
                return killed(process, runs, scenario, before)
        time.sleep(0.0005)
    return None


def trial(top, scenario, processes, wanted, chance):
    "Kill runs until there were enough kills; the record of it."
    start, kills, ends, resumed = time.perf_counter(), [], [], 0
    calm = content(finish(begin(top, make_runs(top, scenario, f'calm-{scenario}-{processes}'), scenario, processes))[0])
    whole, stride = time.perf_counter() - start, max(4, 2*calm[2]//10)
    while len(kills) < wanted:
        runs = make_runs(top, scenario, f'rough-{scenario}-{processes}-{len(ends)}')
        while True:
            work = partial(runs, scenario)
            saved = bool(work and list((work/'checkpoints').glob('*.pt')))
            before, kind = lines(work) if work else 0, KINDS[len(kills) % len(KINDS)]
            process = begin(top, runs, scenario, processes)
            if len(kills) == wanted: done = None
            elif kind == 'any moment': done = kill_at_any_moment(process, runs, scenario, chance, whole, before)
            else: done = kill_somewhere(process, runs, scenario, chance, stride, kind == 'checkpoint', before)
            folder, went_on = finish(process) if done is None else (None, done['resumed'])
            too_soon = done is not None and kind == 'any moment'  # It may not have come to say so
            if went_on != saved and not (saved and too_soon): raise SystemExit(f'A checkpoint was {"left, and the run began anew" if saved else "not there, and the run went on"}: {runs}')
            resumed += went_on
            if done is None: break
            kills.append(done | {'kind': kind})
            print(f'{scenario}, {processes} process(es): kill {len(kills)} of {wanted} ({kind}) after {done["lines"]} lines' + (', in a checkpoint' if done['in_checkpoint'] else '')
                  + (', before a new line' if done['no_new_line'] else ''), flush=True)
        ends.append(content(folder))
        if ends[-1] != calm: raise SystemExit(f'The run that was killed ended differently: {ends[-1]}, undisturbed {calm}. Its folder: {runs}')
        shutil.rmtree(runs)
    if not resumed: raise SystemExit('No run was picked up: every kill came before the first checkpoint.')
    return {'kills': len(kills), 'in_checkpoint': sum(k['in_checkpoint'] for k in kills), 'at_any_moment': sum(k['kind'] == 'any moment' for k in kills),
            'before_a_new_line': sum(k['no_new_line'] for k in kills), 'resumed': resumed, 'runs_ended': len(ends), 'steps': calm[2],
            'same_weights': sum(e[0] == calm[0] for e in ends), 'same_log': sum(e[1] == calm[1] for e in ends),
            'weights_sha256': calm[0], 'seconds': round(time.perf_counter() - start, 1)}


def make_runs(top, scenario, name):
    "A folder of artefacts with everything that the model of a scenario is made from."
    runs = top/name
    for stage in ('text', 'tokenizer', 'rows', 'model'):
        (runs/stage).mkdir(parents=True)
        for f in (top/'data'/stage).iterdir():
            if not f.name.startswith(('.', f'{scenario}-')): (runs/stage/f.name).symlink_to(f)
    return runs


def main():
    p = argparse.ArgumentParser(description='Training survives being killed.')
    p.add_argument('--kills', type=int, default=15, help='for each scenario and number of processes')
    p.add_argument('--scenarios', nargs='+', default=['T0', 'S4'], choices=['T0', 'S4'])
    p.add_argument('--processes', type=int, nargs='+', default=[1, 2])
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--no-record', action='store_true', help='only print')
    args = p.parse_args()
    start, chance = time.perf_counter(), random.Random(args.seed)
    top = Path(tempfile.mkdtemp())
    (top/'small.toml').write_text(PROFILE)
    finish(begin(top, top/'data', 'S4', 1))
    values = {f'{s}, {n} process(es)': trial(top, s, n, args.kills, chance) for s in args.scenarios for n in args.processes}
    shutil.rmtree(top)
    for k, v in values.items():
        print(f'{k}: {v["kills"]} kills, {v["in_checkpoint"]} while a checkpoint was written, {v["at_any_moment"]} at any moment, {v["before_a_new_line"]} before a new line, {v["resumed"]} times picked up; {v["runs_ended"]} runs ended, all the same')
    if args.no_record: return
    file = write_record('bench', 'kill_train', values, units={'seconds': 's'}, n=sum(v['kills'] for v in values.values()), seed=args.seed,
                        seconds=round(time.perf_counter() - start, 1), command='python bench/kill_train.py')
    print(f'written to {file} ({duration(time.perf_counter() - start)})')


if __name__ == '__main__': main()
