"""One process, two with DDP and two with ZeRO-2: time of a step, and memory of each process, on the same sequences.

    .venv/bin/python bench/devices.py              float32, on two GPUs where there are two, else on the processor (minutes)
    .venv/bin/python bench/devices.py --shape tiny --no-record

It starts itself under torchrun. ZeRO-2 is left out where there is no DeepSpeed. The record is bench/devices.
"""
import argparse
import importlib.util
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

from distilherbert.distill import read_metrics
from distilherbert.results import write_record
from distilherbert.runs import gather

sys.path.insert(0, str(Path(__file__).resolve().parent))
from step import SHAPES, make_run, ours

KINDS = {'one process': (1, 0), 'two, DDP': (2, 0), 'two, ZeRO-2': (2, 2)}


def tensor_bytes(value):
    "Bytes of all tensors in a nested state."
    if torch.is_tensor(value): return value.numel()*value.element_size()
    if isinstance(value, dict): value = list(value.values())
    return sum(map(tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


def work(shape, zero, steps):
    "What each process does; the first prints what was measured."
    with tempfile.TemporaryDirectory() as d, make_run(shape, 'distilbert', 'fp32', d, rows=8, micro_rows=4, threads=1, zero=zero) as run:
        ours(run, steps)
        own = run.engine.optimizer if run.engine else run.optimizer
        parts = [own.optimizer.state_dict()['state'], [*own.single_partition_of_fp32_groups]] if run.engine else own.state_dict()['state']
        times = [line['seconds'] for line in read_metrics(d)][2:] or [0.0]
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10
        seconds, state, rss = gather(run.accelerator, (statistics.median(times), tensor_bytes(parts)/2**20, rss)).max(0).tolist()
        if run.first: print(json.dumps({'seconds': round(seconds, 4), 'optimizer_mib': round(state, 2), 'peak_rss_mib': round(rss)}))


def main():
    p = argparse.ArgumentParser(description='Several processes: time and memory.')
    p.add_argument('--shape', choices=SHAPES, default='thin')
    p.add_argument('--steps', type=int, default=12)
    p.add_argument('--no-record', action='store_true', help='only print')
    p.add_argument('--work', type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.work is not None: return work(a.shape, a.work, a.steps)
    start, values = time.perf_counter(), {}
    for kind, (many, zero) in KINDS.items():
        if zero and importlib.util.find_spec('deepspeed') is None: continue
        launcher = ['-m', 'torch.distributed.run', '--nproc-per-node', str(many)] if many > 1 else []
        command = [sys.executable, *launcher, __file__, '--shape', a.shape, '--steps', str(a.steps), '--work', str(zero)]
        done = subprocess.run(command, env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
        if done.returncode: raise SystemExit(done.stdout[-1000:] + done.stderr[-4000:])
        values[kind] = json.loads(done.stdout.strip().splitlines()[-1])
        print(f'{kind:14}', values[kind], flush=True)
    if a.no_record: return
    units, values = {'seconds': 's', 'optimizer_mib': 'MiB', 'peak_rss_mib': 'MiB'}, {'shape': a.shape, 'sequences': 8, 'kinds': values}
    print(write_record('bench', 'devices', values, n=a.steps, units=units, seconds=round(time.perf_counter() - start, 1),
                       command='python bench/devices.py'))


if __name__ == '__main__': main()
