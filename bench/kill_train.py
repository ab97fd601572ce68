"""Kill a training run at random moments, during checkpoints too, and compare its end with that of a run that was left alone.

    .venv/bin/python bench/kill_train.py                 30 kills of one process, 30 of two (10 to 20 minutes)
    .venv/bin/python bench/kill_train.py --kills 3 --processes 1

A kill is SIGKILL to all processes of the run at once. Every second one waits until a checkpoint is being written. The run is started again with the same command
until it ends; runs are repeated until there were enough kills. Their weights must be the same bytes and their logs the same lines but for the clock's fields; else the
script fails. Written to results/bench/kill_train.json.
"""
import argparse
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
micro_rows = 6
teacher_margin = -10.0
threads = 1
checkpoint_minutes = 0.0005
"""


def command(profile, processes):
    launcher = [sys.executable] if processes == 1 else [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(processes)]
    return [*launcher, '-m', 'distilherbert.distill', '--scenario', 'T0', '--profile', str(profile)]


def begin(top, runs, processes):
    env = {k: v for k, v in os.environ.items() if not k.startswith('DISTILHERBERT_')}
    env |= {'DISTILHERBERT_RUNS': str(runs), 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
    return subprocess.Popen(command(top/'small.toml', processes), cwd=TOP, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate()
    if process.returncode: raise SystemExit(f'A run failed that nobody killed:\n{out[-2000:]}{err[-4000:]}')
    return Path(out.strip().splitlines()[-1])


def content(folder):
    log = [{k: v for k, v in l.items() if k not in CLOCK} for l in read_metrics(folder)]
    return hashlib.sha256((folder/'model.safetensors').read_bytes()).hexdigest(), hashlib.sha256(json.dumps(log).encode()).hexdigest(), len(log) - 1


def kill_all(process):
    "SIGKILL to a program and all that it started (torchrun gives each of its processes a session of its own)."
    for p in (*psutil.Process(process.pid).children(recursive=True), process): p.kill()
    process.communicate()


def lines(work):
    try: return (work/'metrics.jsonl').read_bytes().count(b'\n')
    except FileNotFoundError: return 0


def kill_somewhere(process, runs, chance, stride, in_checkpoint):
    "Kill a run that made some steps; what it was doing, or None when it ended first."
    work, seen, target = None, None, None
    while process.poll() is None:
        work = work or next((runs/'model').glob('.T0-*.partial'), None)
        if work:
            now = lines(work)
            if now and seen is None: seen, target = now, now + chance.randint(2, stride)
            if target is not None and now >= target and (not in_checkpoint or (work/'checkpoints'/'part').exists()):
                if not in_checkpoint: time.sleep(chance.random()/20)
                kill_all(process)
                return {'lines': lines(work), 'in_checkpoint': (work/'checkpoints'/'part').exists()}
        time.sleep(0.0005)
    return None


def trial(top, processes, wanted, chance):
    "Kill runs until there were enough kills; the record of it."
    start, kills, ends = time.perf_counter(), [], 0
    calm = content(finish(begin(top, make_runs(top, f'calm-{processes}'), processes)))
    stride = max(4, 2*calm[2]//10)
    while len(kills) < wanted:
        runs = make_runs(top, f'rough-{processes}-{ends}')
        while True:
            process = begin(top, runs, processes)
            done = kill_somewhere(process, runs, chance, stride, len(kills) % 2 == 0) if len(kills) < wanted else None
            if done is None: break
            kills.append(done)
            print(f'{processes} process(es): kill {len(kills)} of {wanted} after {done["lines"]} lines' + (', in a checkpoint' if done['in_checkpoint'] else ''), flush=True)
        end = content(finish(process))
        if end != calm: raise SystemExit(f'The run that was killed ended differently: {end}, undisturbed {calm}. Its folder: {runs}')
        ends += 1
        shutil.rmtree(runs)
    return {'kills': len(kills), 'in_checkpoint': sum(k['in_checkpoint'] for k in kills), 'runs_ended': ends, 'steps': calm[2], 'same_weights': True, 'same_log': True,
            'weights_sha256': calm[0], 'seconds': round(time.perf_counter() - start, 1)}


def make_runs(top, name):
    "A folder of artefacts with text, tokenizer and rows, without models."
    runs = top/name
    for stage in ('text', 'tokenizer', 'rows'):
        (runs/stage).mkdir(parents=True)
        for f in (top/'data'/stage).iterdir():
            if not f.name.startswith('.'): (runs/stage/f.name).symlink_to(f)
    return runs


def main():
    p = argparse.ArgumentParser(description='Training survives being killed.')
    p.add_argument('--kills', type=int, default=30, help='for each number of processes')
    p.add_argument('--processes', type=int, nargs='+', default=[1, 2])
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--no-record', action='store_true', help='only print')
    args = p.parse_args()
    start, chance = time.perf_counter(), random.Random(args.seed)
    top = Path(tempfile.mkdtemp())
    (top/'small.toml').write_text(PROFILE)
    finish(begin(top, top/'data', 1))
    values = {str(n): trial(top, n, args.kills, chance) for n in args.processes}
    shutil.rmtree(top)
    for n, v in values.items(): print(f'{n} process(es): {v["kills"]} kills, {v["in_checkpoint"]} while a checkpoint was written; {v["runs_ended"]} runs ended, all the same')
    if args.no_record: return
    file = write_record('bench', 'kill_train', values, units={'seconds': 's'}, n=sum(v['kills'] for v in values.values()), seed=args.seed,
                        seconds=round(time.perf_counter() - start, 1), command='python bench/kill_train.py')
    print(f'written to {file} ({duration(time.perf_counter() - start)})')


if __name__ == '__main__': main()
