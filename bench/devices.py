"""One process, two with DDP and two with ZeRO-2: time of a step, and memory of each process, on the same rows.

    .venv/bin/python bench/devices.py              the shape mini in float32, on two GPUs where there are two, else on the processor (minutes; hide a single GPU with CUDA_VISIBLE_DEVICES=)
    .venv/bin/python bench/devices.py --shape tiny --no-record

It starts itself under torchrun. Written to results/bench/devices.json.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from distilherbert.artefact import write_record
from distilherbert.devices import everyones
from distilherbert.distill import train_step

sys.path.insert(0, str(Path(__file__).resolve().parent))
from step import SHAPES, make_run  # the bench beside, for its shapes

TOP = Path(__file__).resolve().parents[1]
KINDS = {'one process': (1, 0), 'two, DDP': (2, 0), 'two, ZeRO-2': (2, 2)}


def tensor_bytes(value):
    "Bytes of all tensors in a nested state."
    if torch.is_tensor(value): return value.numel()*value.element_size()
    if isinstance(value, dict): value = value.values()
    return sum(map(tensor_bytes, value)) if isinstance(value, (list, tuple)) or hasattr(value, '__iter__') and not isinstance(value, str) else 0


def work(shape, zero, steps):
    "What each process does; the first prints what was measured."
    with tempfile.TemporaryDirectory() as d:
        run = make_run(shape, 'distilbert', 'fp32', d, rows=8, micro_rows=4, threads=1, zero=zero)
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            train_step(run)
            times.append(time.perf_counter() - start)
        acc = run.accelerator
        if zero:
            own = acc.deepspeed_engine_wrapped.engine.optimizer
            state = tensor_bytes(own.optimizer.state_dict()['state']) + tensor_bytes(own.single_partition_of_fp32_groups)
        else: state = tensor_bytes(run.optimizer.state_dict()['state'])
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10
        seconds, state, rss = everyones(acc, (statistics.median(times[2:]), state/2**20, rss)).max(0).tolist()
        if acc.is_main_process:
            print(json.dumps({'seconds': round(seconds, 4), 'optimizer_mib': round(state, 2), 'peak_rss_mib': round(rss)}))


def main():
    p = argparse.ArgumentParser(description='Several processes: time and memory.')
    p.add_argument('--shape', choices=SHAPES, default='mini')
    p.add_argument('--steps', type=int, default=12)
    p.add_argument('--no-record', action='store_true', help='only print')
    p.add_argument('--work', type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.work is not None: return work(args.shape, args.work, args.steps)
    start, values = time.perf_counter(), {}
    for kind, (many, zero) in KINDS.items():
        launcher = [sys.executable] if many == 1 else [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(many)]
        done = subprocess.run([*launcher, str(Path(__file__)), '--shape', args.shape, '--steps', str(args.steps), '--work', str(zero)],
                              env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(TOP)}, capture_output=True, text=True)
        if done.returncode: raise SystemExit(done.stdout[-1000:] + done.stderr[-4000:])
        values[kind] = json.loads(done.stdout.strip().splitlines()[-1])
        print(f'{kind:14}', values[kind], flush=True)
    if args.no_record: return
    file = write_record('bench', 'devices', {'shape': args.shape, 'rows': 8, 'kinds': values}, units={'seconds': 's', 'optimizer_mib': 'MiB', 'peak_rss_mib': 'MiB'},
                        n=args.steps, seconds=round(time.perf_counter() - start, 1), command='python bench/devices.py')
    print(f'written to {file}')


if __name__ == '__main__': main()
