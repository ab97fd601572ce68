"""All nine tasks for some rows: what they score, and what the maximum over epochs adds on each, into results/<profile>/nine.json.

    .venv/bin/python bench/nine.py                                    mini: S0, T0, S2 and S4, five seeds, five epochs (about an hour on two cores; models that are
                                                                      not there yet are trained first)
    .venv/bin/python bench/nine.py --epochs 20 --rows T0 S4           as many epochs as the report takes
    .venv/bin/python bench/nine.py --slices                           no training: what the slices of train cost, into results/bench/slices.json (seconds)

Real data is read from DISTILHERBERT_DATA. Fine-tunings are artefacts like any others: stopped, the same command goes on, and models are taken from where they are.
"""
import argparse
import os
import shlex
import sys
import time
from concurrent.futures import as_completed
from dataclasses import replace

import torch

from distilherbert.artefact import Progress, duration, worker_pool, write_record
from distilherbert.distill import model_artefact
from distilherbert.klej import TASKS, comparison_values, klej_values, load_group, profile_groups, scores_artefact
from distilherbert.reproduce import at_once
from distilherbert.scenario import SettingsError, get_profile
from distilherbert.world import WORLD_TASKS


def with_all_tasks(profile, **settings):
    "A profile with every task that its source has."
    p = get_profile(profile)
    return replace(p, tasks=tuple(WORLD_TASKS if p.task_source == 'world' else TASKS), more_seeds=(), **settings)


def tune(profile, row, seed, group): return scores_artefact(profile, row, seed, group).build()


def tune_all(p, rows):
    "Every fine-tuning that is not there yet, as many at once as the machine takes; the models before them."
    for tasks in profile_groups(p).values(): load_group(tasks, p)
    for row in rows: model_artefact(p, row).build()
    todo = [(row, seed, g) for seed in p.task_seeds for row in rows for g in profile_groups(p) if scores_artefact(p, row, seed, g).state() != 'current']
    bar = Progress(len(todo), 'Fine-tuning', 'runs')
    with worker_pool(at_once(p.threads, os.cpu_count(), torch.cuda.is_available())) as pool:
        for done in as_completed([pool.submit(tune, p, *piece) for piece in todo]):
            done.result()
            bar.update()


def slices(p):
    "Rows of every task by what they serve for, and how many that choose the epoch have a text in common with train."
    found = {}
    for tasks in profile_groups(p).values():
        data = load_group(tasks, p)
        seen = {t for texts in data.train.texts for t in texts}
        for t in data.tasks:
            found[t.name] = {'title': t.title, 'rows': len(data.train) + len(data.held) + data.dropped + (0 if t.sizes[1] else len(data.dev[t.name])),
                             'train': len(data.train), 'held': len(data.held), 'dev': len(data.dev[t.name]), 'dropped': data.dropped, 'dev_from_train': not t.sizes[1],
                             'held_shares': sum(any(x in seen for x in texts) for texts in data.held.texts)}
    return {t: found[t] for t in p.tasks}


def main():
    a = argparse.ArgumentParser(description='All nine tasks for some rows.')
    a.add_argument('--profile', default='mini', help='name or TOML file (default: mini)')
    a.add_argument('--rows', nargs='+', default=['S0', 'T0', 'S2', 'S4'], help='default: S0 T0 S2 S4')
    a.add_argument('--seeds', nargs='+', type=int, default=[42, 43, 44, 45, 46], help='default: 42 to 46')
    a.add_argument('--epochs', type=int, default=5, help='default: 5')
    a.add_argument('--slices', action='store_true', help='only count the rows')
    a = a.parse_args()
    start, command = time.perf_counter(), shlex.join(['python', 'bench/nine.py', *sys.argv[1:]])
    if a.slices:
        values = slices(with_all_tasks(a.profile, task_examples=0))
        return print(f'written to {write_record("bench", "slices", values, command=command)}')
    p = with_all_tasks(a.profile, task_epochs=a.epochs, task_seeds=tuple(a.seeds))
    tune_all(p, a.rows)
    values = {'epochs': a.epochs, 'seeds': a.seeds, 'rows': {row: klej_values(p, row) for row in a.rows},
              'inflation': comparison_values(p, a.rows)['inflation']}
    seconds = round(time.perf_counter() - start, 1)
    file = write_record(p.name, 'nine', values, units={'mean': '%', 'low': '%', 'high': '%', 'difference': 'points', 'majority': '%'}, seconds=seconds, command=command)
    for v in values['inflation']:
        if v['scenario'] == 'all': print(f"{v['task']:14} the maximum over {a.epochs} epochs adds {v['difference']:+.1f} ({v['low']:+.1f} to {v['high']:+.1f}) points")
    print(f'written to {file} after {duration(seconds)}')


if __name__ == '__main__':
    try: main()
    except SettingsError as e: raise SystemExit(str(e)) from e
