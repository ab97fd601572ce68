"""Why do S3 and S4 stand where they stand, and are the learning rates right? One change at a time, into results/<profile>/ablations.json.

    .venv/bin/python bench/ablations.py                              the demo (about half an hour on two cores)
    .venv/bin/python bench/ablations.py --profile mini --seeds --changes "half the learning rate" "twice the learning rate"
                                                                     rates only, by held-out loss (about an hour and a half)

A variant differs from S1, S3 or S4 in one thing. What would help several objectives (learning rate, budget, teacher) is tried with each of them, so
that like is compared with like. The held-out loss of masked language modelling decides; scores are shown beside it, of seeds that the report does not
use. Variants are artefacts like any row: stopped, the same command goes on.
"""
import argparse
import os
import shlex
import sys
import time
from concurrent.futures import as_completed
from dataclasses import dataclass, replace

import torch

from distilherbert.artefact import duration, read_manifest, worker_pool, write_record
from distilherbert.distill import model_artefact
from distilherbert.evidence import expected_key
from distilherbert.klej import profile_groups, read_scores, scores_artefact, task_samples
from distilherbert.reproduce import at_once, rounded
from distilherbert.scenario import PRESETS, SettingsError, get_profile, get_scenario, unknown_name

DISTILBERT = PRESETS['distilbert']
RATES = {'twice the learning rate': 2, 'half the learning rate': 0.5}
BUDGETS = {'teacher with twice the tokens': 'teacher_tokens', 'twice the tokens': 'tokens'}
LOSSES = {'soft targets five times lighter': {'soft': DISTILBERT.soft/5}, 'temperature 1': {'temperature': 1.0}, 'no cosine': {'cosine': 0.0},
          'soft targets on all places': {'soft_targets_on': 'all'}}
LOWEST = 'the lowest layers copied'


@dataclass(frozen=True, eq=False)
class Variant:
    "A row with one change."
    row: str  # Row that is changed
    change: str = ''  # In words; empty for the row as it is
    objective: tuple = ()  # Changed fields of the loss
    factors: tuple = ()  # Fields of the profile and what they are multiplied with
    layer_map: tuple = ()  # Layers of the teacher that are copied

    def profile(self, base): return replace(base, **{f: type(getattr(base, f))(getattr(base, f)*x) for f, x in self.factors})

    def scenario(self):
        changed = {'objective': replace(DISTILBERT, name='changed', **dict(self.objective))} if self.objective else {}
        return replace(get_scenario(self.row), layer_map=self.layer_map, **changed)


def variants(layers, changes):
    "Rows as they are first, then each change; two that need the same new teacher stand apart, so that neither waits for it."
    rows = {'S4': 'lr_trained', 'S1': 'lr_scratch', 'S3': 'lr_trained'}
    every = [Variant(r) for r in rows]
    every += [Variant(r, c, factors=((rate, x),)) for c, x in RATES.items() for r, rate in rows.items()]
    every += [Variant('S4', c, objective=tuple(fields.items())) for c, fields in LOSSES.items()]
    every += [Variant(r, c, factors=((f, 2),)) for r in ('S4', 'S3') for c, f in BUDGETS.items()]
    every += [Variant('S4', LOWEST, layer_map=tuple(range(layers//2)))]
    return [v for v in every if not v.change or v.change in changes]


def make(variant, base, score):
    "Train a variant, and score it where that is asked for; its values."
    p, s = variant.profile(base), variant.scenario()
    counts = read_manifest(model_artefact(p, s).build())['counts']
    for group in profile_groups(p) if score else ():
        for seed in p.task_seeds: scores_artefact(p, s, seed, group).build()
    held = counts['heldout']
    return {'row': s.name, 'change': variant.change, 'tokens': counts['tokens'], 'heldout_loss': rounded(held['mlm']), 'kl': rounded(held.get('kl')),
            'agreement': rounded(held.get('agreement')),
            'score': round(list(task_samples(read_scores(p, s)['honest']).values())[-1][0], 4) if score else None}


def main():
    changes = [*RATES, *LOSSES, *BUDGETS, LOWEST]
    p = argparse.ArgumentParser(description='Ablations around S1, S3 and S4.')
    p.add_argument('--profile', default='demo', help='name or TOML file (default: demo)')
    p.add_argument('--seeds', nargs='*', type=int, default=[0, 1], help='fine-tuning seeds (default: 0 1; none: held-out losses only)')
    p.add_argument('--changes', nargs='+', default=changes, metavar='CHANGE', help='some of them (default: all): ' + '; '.join(changes))
    a = p.parse_args()
    for c in a.changes:
        if c not in changes: raise SettingsError(str(unknown_name('change', c, changes)))
    base, start = get_profile(a.profile), time.perf_counter()
    scored = replace(base, task_seeds=tuple(a.seeds), more_seeds=()) if a.seeds else base
    found = dict.fromkeys(variants(base.layers, a.changes))
    with worker_pool(at_once(base.threads, os.cpu_count(), torch.cuda.is_available())) as pool:
        waiting = {pool.submit(make, v, scored, bool(a.seeds)): v for v in found}
        for done in as_completed(waiting):
            v = waiting[done]
            found[v] = done.result()
            print(f'{v.row} {v.change or "as it is"}: held-out loss {found[v]["heldout_loss"]:.4f}', flush=True)
            file = write_record(base.name, 'ablations', {'seeds': a.seeds, 'variants': [f for f in found.values() if f]}, seed=base.seed,
                                key=expected_key(base, 'ablations'), seconds=round(time.perf_counter() - start, 1), units={'heldout_loss': 'nats', 'kl': 'nats', 'score': '%'},
                                command=shlex.join(['python', 'bench/ablations.py', *sys.argv[1:]]))
    print(f'written to {file} after {duration(time.perf_counter() - start)}')


if __name__ == '__main__':
    try: main()
    except SettingsError as e: raise SystemExit(str(e)) from e
