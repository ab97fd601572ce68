"""Why do S4 and S3 stand where they stand? One change at a time, into results/<profile>/ablations.json.

    .venv/bin/python bench/ablations.py                              the demo (about half an hour on two cores)
    .venv/bin/python bench/ablations.py --profile mini --seeds 0     hours

A variant differs from S3 or S4 in one thing; what would help both objectives (learning rate, budget, teacher) is tried with
both. The held-out loss of masked language modelling decides; scores are shown beside it, of seeds that the report does not
use. Variants are artefacts like any row: stopped, the same command goes on.
"""
import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch

from distilherbert.artefact import duration, read_manifest, write_record
from distilherbert.distill import model_artefact
from distilherbert.klej import difference, profile_groups, read_scores, scores_artefact, task_samples
from distilherbert.reproduce import at_once, rounded
from distilherbert.scenario import PRESETS, get_profile, get_scenario

DISTILBERT = PRESETS['distilbert']


@dataclass(frozen=True, eq=False)
class Variant:
    "A row with one change."
    row: str  # Row that is changed
    change: str  # In words
    objective: dict  # Changed fields of the loss
    factors: dict  # Fields of the profile and what they are multiplied with
    layer_map: tuple = ()  # Layers of the teacher that are copied

    def profile(self, base): return replace(base, **{f: type(getattr(base, f))(getattr(base, f)*x) for f, x in self.factors.items()})

    def scenario(self):
        changed = {'objective': replace(DISTILBERT, name='changed', **self.objective)} if self.objective else {}
        return replace(get_scenario(self.row), layer_map=self.layer_map, **changed)


def variants(layers):
    "Two that need the same new teacher stand far apart, so that neither waits for it."
    both = [('teacher with twice the tokens', {'teacher_tokens': 2}), ('twice the tokens', {'tokens': 2}),
            ('twice the learning rate', {'lr_trained': 2}), ('half the learning rate', {'lr_trained': 0.5}), ('', {})]
    losses = [('soft targets on all places', {'soft_targets_on': 'all'}), ('temperature 1', {'temperature': 1.0}),
              ('soft targets five times lighter', {'soft': DISTILBERT.soft/5}), ('no cosine', {'cosine': 0.0})]
    return [*(Variant('S4', change, {}, factors) for change, factors in both), *(Variant('S4', change, objective, {}) for change, objective in losses),
            Variant('S4', 'the lowest layers copied', {}, {}, tuple(range(layers//2))), *(Variant('S3', change, {}, factors) for change, factors in both)]


def make(variant, base):
    "Train and score a variant; its values."
    p, s = variant.profile(base), variant.scenario()
    counts = read_manifest(model_artefact(p, s).build())['counts']
    for group in profile_groups(p):
        for seed in p.task_seeds: scores_artefact(p, s, seed, group).build()
    held = counts['heldout']
    return {'row': s.name, 'change': variant.change, 'tokens': counts['tokens'], 'heldout_loss': rounded(held['mlm']),
            'kl': rounded(held.get('kl')), 'agreement': rounded(held.get('agreement'))}


def honest(variant, base): return read_scores(variant.profile(base), variant.scenario())['honest']


def scored(found, base):
    "The values with each variant's mean of tasks, and its difference from plain S3 and S4."
    plain = {v.row: honest(v, base) for v in found if not v.change}
    for v, values in found.items():
        own = honest(v, base)
        values['score'] = round(list(task_samples(own).values())[-1][0], 4)
        values['minus'] = {row: list(difference(own, other).values())[-1] for row, other in plain.items() if row != v.row or v.change}
    return [*found.values()]


def main():
    p = argparse.ArgumentParser(description='Ablations around S3 and S4.')
    p.add_argument('--profile', default='demo', help='name or TOML file (default: demo)')
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1], help='fine-tuning seeds (default: 0 1)')
    a = p.parse_args()
    base, start = replace(get_profile(a.profile), task_seeds=tuple(a.seeds)), time.perf_counter()
    found = dict.fromkeys(variants(base.layers))
    with ProcessPoolExecutor(at_once(base.threads, os.cpu_count(), torch.cuda.is_available()), get_context('spawn')) as pool:
        waiting = {pool.submit(make, v, base): v for v in found}
        for done in as_completed(waiting):
            v = waiting[done]
            found[v] = done.result()
            print(f'{v.row} {v.change or "as it is"}: held-out loss {found[v]["heldout_loss"]:.4f}', flush=True)
    seconds = round(time.perf_counter() - start, 1)
    file = write_record(base.name, 'ablations', {'seeds': a.seeds, 'variants': scored(found, base)}, seed=base.seed, seconds=seconds,
                        units={'heldout_loss': 'nats', 'kl': 'nats', 'score': '%', 'minus': 'points'}, command=' '.join(['python bench/ablations.py --profile', a.profile, '--seeds', *map(str, a.seeds)]))
    print(f'written to {file} after {duration(seconds)}')


if __name__ == '__main__': main()
