"""All nine tasks for some scenarios: what they score, and what choosing the epoch on dev adds on each, into the record <profile>/nine.

    .venv/bin/python bench/nine.py                                  `real`: S0, T0, S2 and S4, six seeds, five epochs
    .venv/bin/python bench/nine.py --epochs 20 --scenarios T0 S4    as many epochs as the report takes

Real data is read from DISTILHERBERT_DATA. Models that are not there are trained first. Fine-tunings are artefacts like any others:
stopped, the same command goes on.
"""
import argparse
import os
import shlex
import sys
import time
from dataclasses import replace

from distilherbert.artefact import duration, worker_pool
from distilherbert.pipeline import build_model, build_scores, task_groups
from distilherbert.results import write_record
from distilherbert.scenario import SettingsError, as_typed, get_profile, get_scenario
from distilherbert.scores import klej_values, read_scores, selection_bias
from distilherbert.tasks import TASKS, TaskSettings, load_group
from distilherbert.world import WORLD_TASKS


def main():
    a = argparse.ArgumentParser(description='All nine tasks for some scenarios.')
    a.add_argument('--profile', default='real', help='name or TOML file (default: real)')
    a.add_argument('--scenarios', nargs='+', default=['S0', 'T0', 'S2', 'S4'], help='default: S0 T0 S2 S4')
    a.add_argument('--seeds', nargs='+', type=int, default=[1, 2, 3, 4, 5, 6], help='default: 1 to 6')
    a.add_argument('--epochs', type=int, default=5, help='default: 5')
    a.add_argument('--processes', type=int, default=0, help='fine-tunings at a time (default: as many as cores allow)')
    a = a.parse_args()
    start, p = time.perf_counter(), get_profile(a.profile)
    p = replace(p, tasks=tuple(WORLD_TASKS if p.task_source == 'world' else TASKS), task_epochs=a.epochs, task_seeds=tuple(a.seeds))
    groups = task_groups(p.tasks).values()
    for group in groups: load_group(group, p.task_source, TaskSettings.of(p))  # bad files show before anything is trained
    scenarios = [get_scenario(s) for s in a.scenarios]
    for s in scenarios: build_model(p, s)
    with worker_pool(a.processes or max(1, os.cpu_count()//p.threads)) as pool:  # the locks of the artefacts share the work out
        jobs = [pool.submit(build_scores, replace(p, task_seeds=(seed,)), s, [g[0].name])
                for seed in p.task_seeds for s in scenarios for g in groups]
        for job in jobs: job.result()
    folders = {s.name: build_scores(p, s) for s in scenarios}
    values = {'epochs': a.epochs, 'seeds': a.seeds, 'scenarios': {s: klej_values(f) for s, f in folders.items()},
              'selection_bias': selection_bias({s: read_scores(f) for s, f in folders.items()})}
    for v in values['selection_bias']:
        if v['scenario'] == 'all':
            print(f"{v['task']:14} the best of {a.epochs} epochs on dev adds {v['difference']:+.1f} points "
                  f"({v['low']:+.1f} to {v['high']:+.1f})")
    seconds = round(time.perf_counter() - start, 1)
    units = {'selections': '%', 'selection_bias': 'points', 'majority': '%'}
    command = shlex.join(['python', 'bench/nine.py', *sys.argv[1:]])
    file = write_record(p.name, 'nine', values, units=units, seconds=seconds, command=command)
    print(f'written to {file} after {duration(seconds)} (profile {as_typed(p)})')


if __name__ == '__main__':
    try: main()
    except SettingsError as e: raise SystemExit(str(e)) from e
