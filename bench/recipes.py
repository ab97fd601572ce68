"""Recipes for students of the unchanged encoder E0, trained and scored on one machine, into the record bench/recipes.

    DISTILHERBERT_DATA=... .venv/bin/python bench/recipes.py      all of them (hours; finished parts are not repeated)
    .venv/bin/python bench/recipes.py --only R HR                 these alone
    .venv/bin/python bench/recipes.py --small                     the embedded world, without a record: to see that it works

All students have every second layer of the teacher, and the text, order, budget and learning rate of the profile `real`; only the
objective differs. Afterwards every loss of every recipe is measured on the same held-out sequences.
"""
import argparse
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from distilherbert.artefact import read_manifest
from distilherbert.distill import TrainSettings, evaluate, open_run
from distilherbert.pack import Sequences
from distilherbert.pipeline import build_scores, model_artefact, scores_folders, sequences_artefact, train_settings
from distilherbert.results import write_record
from distilherbert.scenario import SCENARIOS, Objective, get_profile
from distilherbert.scores import compare, klej_values, load_run, read_scores, retention, select_epochs
from distilherbert.student import load_masked_lm
from distilherbert.tasks import TASKS

ALL = Objective('hidden-relations', {'cosine': 1.0, 'hidden': 1.0, 'relations': 1.0})
RECIPES = {s.name: s for s in (
    SCENARIOS['E0'], SCENARIOS['S4h'], replace(SCENARIOS['S4h'], name='R', objective='relations'),
    replace(SCENARIOS['S4h'], name='HR', objective=ALL))}


def heldout(profile, student):
    "Every loss of every recipe on held-out sequences."
    s = replace(student, objective=ALL)
    models = (load_masked_lm(model_artefact(profile, x).path)[0] for x in (student, RECIPES['E0']))
    settings, sequences = TrainSettings(**train_settings(profile, s)), Sequences.open(sequences_artefact(profile).path)
    with tempfile.TemporaryDirectory() as d, open_run(*models, sequences, settings, Path(d)) as run:
        return {name: round(x, 5) for name, x in evaluate(run).items()}


def validation(folders):
    "Mean accuracy on the slice of train that selects the epoch, in percent."
    runs = [(load_run(f), TASKS[t]) for t, by_seed in folders.items() for f in by_seed.values()]
    right = [r['pred/validation'][select_epochs(r, t)['heldout']] == r['gold/validation'] for r, t in runs]
    return round(100*float(np.mean(right)), 2)


def measure(profile, names):
    "The values of the record."
    runs, values = {}, {}
    for n in names:
        s, folders = RECIPES[n], scores_folders(profile, RECIPES[n])
        runs[n] = read_scores(folders)['heldout']
        values[n] = {'scores': {t: v['selections']['heldout'] for t, v in klej_values(folders).items()}, 'validation': validation(folders)}
        if not s.teacher: continue
        made = read_manifest(model_artefact(profile, s).path)
        values[n] |= {
            'weights': dict(s.loss.weights), 'heldout': heldout(profile, s), 'tokens': made['counts']['tokens'],
            'seconds_per_million_tokens': round(1e6*made['counts']['train_seconds']/made['counts']['tokens'], 1),
            'machine': made['provenance']['machine']}
        if 'E0' in runs: values[n]['retention'] = {t: retention(x.estimate, runs['E0'][t].estimate) for t, x in runs[n].items()}
    print(*values.items(), sep='\n', flush=True)
    pairs = [{'a': a, 'b': b, 'task': t, **x} for a, b in itertools.combinations(names, 2) for t, x in compare(runs[b], runs[a]).items()]
    return values | {'pairs': pairs}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=RECIPES, default=[*RECIPES], help=f'default: {" ".join(RECIPES)}')
    p.add_argument('--small', action='store_true', help='the embedded world, without a record')
    a = p.parse_args()
    start, profile = time.perf_counter(), get_profile('demo' if a.small else 'real')
    if a.small:
        profile = replace(profile, world_size=400, vocab_size=600, teacher_tokens=30_000, tokens=8000, teacher_margin=-9.0,
                          tasks=('nkjp-ner',), task_examples=60, task_epochs=1, task_seeds=(1, 2))
        for s in RECIPES.values(): RECIPES[s.name] = SCENARIOS['T0'] if s.name == 'E0' else replace(s, source='T0', teacher='T0')
    names = [n for n in RECIPES if n in a.only]
    for n in names: build_scores(profile, RECIPES[n])
    values = measure(profile, names)
    if a.small: return
    print(write_record('bench', 'recipes', values, n=len(profile.task_seeds), seed=profile.seed,
                       seconds=round(time.perf_counter() - start, 1), command=' '.join(['python bench/recipes.py --only', *names]),
                       units={'scores': '%', 'validation': '%', 'pairs': 'points', 'seconds_per_million_tokens': 's'}))


if __name__ == '__main__': main()
