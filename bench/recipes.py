"""Other recipes than those of the grid, on the profile `real`, trained and scored on one machine. Each set writes a record of its name.

    DISTILHERBERT_DATA=... .venv/bin/python bench/recipes.py recipes   what students of E0 imitate; all else is the same
    DISTILHERBERT_DATA=... .venv/bin/python bench/recipes.py layers    which layers of E0 are copied; nothing is trained but the classifier
    DISTILHERBERT_DATA=... .venv/bin/python bench/recipes.py rates     other learning rates for S3 and S4
    DISTILHERBERT_DATA=... .venv/bin/python bench/recipes.py taught    fine-tuning with the predictions of a fine-tuned teacher
    DISTILHERBERT_DATA=... .venv/bin/python bench/recipes.py again     S4h, trained a second time with other masks and another order
    DISTILHERBERT_DATA=... .venv/bin/python bench/recipes.py maps      how far the layers of the set `layers` alone are from all of E0
    .venv/bin/python bench/recipes.py recipes layers rates taught again maps --small  all sets on the embedded world, without a record

A set takes hours; finished parts are not repeated. `--only` names some recipes of the set.
"""
import argparse
import itertools
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from distilherbert.artefact import read_manifest
from distilherbert.distill import TrainSettings, evaluate, open_run
from distilherbert.objective import cosine_distance
from distilherbert.pack import Sequences, pad_sequences
from distilherbert.pipeline import build_scores, model_artefact, sequences_artefact, train_settings
from distilherbert.results import write_record
from distilherbert.scenario import SCENARIOS, Objective, Scenario, get_profile
from distilherbert.scores import compare, klej_values, load_run, read_scores, retention, select_epochs
from distilherbert.student import check_layer_map, load_masked_lm, truncate
from distilherbert.tasks import TASKS, task_groups


@dataclass(frozen=True)
class Recipe:
    scenario: Scenario
    changes: dict = field(default_factory=dict)  # Of the profile


def of_grid(*names): return {n: Recipe(SCENARIOS[n]) for n in names}
S4H = SCENARIOS['S4h']
ALL = Objective('hidden-relations', {'cosine': 1.0, 'hidden': 1.0, 'relations': 1.0})
SETS = {
    'recipes': of_grid('E0', 'S2h', 'S4h') | {n: Recipe(replace(S4H, name=n, objective=o)) for n, o in (('R', 'relations'), ('HR', ALL))},
    'layers': of_grid('E0', 'S2h') | {n: Recipe(replace(SCENARIOS['S2h'], name=n, layer_map=tuple(layers))) for n, layers in (
        ('first', range(6)), ('last', (0, *range(7, 12))), ('both-ends', (0, 1, 2, 9, 10, 11)))},
    'rates': of_grid('S2') | {
        f'{s}-{rate:g}': Recipe(SCENARIOS[s], {'lr_trained': rate}) for s in ('S3', 'S4') for rate in (1e-4, 3e-4, 9e-4)},
    'taught': of_grid('E0', 'S2h', 'S4h') | {
        'S4h-taught': Recipe(SCENARIOS['S7']), 'S2h-taught': Recipe(Scenario('S2h-taught', 'copy', 'S2h', task_teacher='E0'))},
    'again': of_grid('S2h', 'S4h') | {'S4h-again': Recipe(S4H, {'seed': 1})},
}
SETS['maps'] = SETS['layers']


def of_world(recipe):
    "The same recipe where there is no E0: with T0 in its place."
    s = recipe.scenario
    if s.init == 'copy': s = replace(SCENARIOS[s.source], name=s.name, task_teacher='T0')
    if s.source == 'E0': s = replace(s, source='T0', teacher=s.teacher and 'T0', layer_map=s.layer_map and (0, 1))
    return replace(recipe, scenario=SCENARIOS['T0'] if s.name == 'E0' else s)


def heldout(profile, student):
    "Every loss of the students of E0 on the same held-out sequences."
    s = replace(student, objective=ALL)
    models = (load_masked_lm(model_artefact(profile, x).path)[0] for x in (student, SCENARIOS[student.teacher]))
    settings, sequences = TrainSettings(**train_settings(profile, s)), Sequences.open(sequences_artefact(profile).path)
    with tempfile.TemporaryDirectory() as d, open_run(*models, sequences, settings, Path(d)) as run: return evaluate(run)


def distances(profile, recipes, few=64):
    "Mean cosine distance of the last hidden states of some layers from those of the whole encoder, on held-out sequences."
    model, _ = load_masked_lm(model_artefact(profile, recipes['E0'].scenario).path)
    heldout = Sequences.open(sequences_artefact(profile).path).heldout
    ids, lengths = map(torch.from_numpy, pad_sequences(heldout, np.arange(min(few, len(heldout))), profile.max_len))
    real = torch.arange(profile.max_len) < lengths[:, None]

    @torch.no_grad()
    def states(model): return model.eval().base_model(ids, attention_mask=real).last_hidden_state[real]
    whole = states(model)
    return {n: {'layers': [*check_layer_map(r.scenario.layer_map, model.config)], 'tokens': len(whole),
                'distance': round(float(cosine_distance(states(truncate(model, r.scenario.layer_map)), whole).mean()), 4)}
            for n, r in recipes.items() if n != 'E0'}


def validation(folders):
    "Mean accuracy on the slice of train that selects the epoch, in percent."
    runs = [(load_run(f), task_groups(TASKS)[g][0]) for g, by_seed in folders.items() for f in by_seed.values()]
    right = [r['pred/validation'][select_epochs(r, t)['heldout']] == r['gold/validation'] for r, t in runs]
    return round(100*float(np.mean(right)), 2)


def measure(profile, recipes, objectives):
    "The values of the record; `objectives`: do the recipes differ in their objectives, so that all losses of each are of interest?"
    runs, values = {}, {}
    for n, recipe in recipes.items():
        p, s = replace(profile, **recipe.changes), recipe.scenario
        folders = build_scores(p, s)
        runs[n] = read_scores(folders)['heldout']
        values[n] = {'scores': {t: v['selections']['heldout'] for t, v in klej_values(folders).items()},
                     'validation': validation(folders), **recipe.changes}
        made = read_manifest(model_artefact(p, s).path)
        c = made['counts']
        if c.get('tokens'):
            found = heldout(p, s) if objectives and s.teacher else c['heldout']
            values[n] |= {'heldout': {k: round(v, 5) for k, v in found.items()}, 'tokens': c['tokens'],
                          'seconds_per_million_tokens': round(1e6*c['train_seconds']/c['tokens'], 1),
                          'machine': made['provenance']['machine'], **({'weights': dict(s.loss.weights)} if s.teacher else {})}
        if 'E0' in runs: values[n]['retention'] = {t: retention(x.estimate, runs['E0'][t].estimate) for t, x in runs[n].items()}
        print(n, values[n], flush=True)
    pairs = [{'a': a, 'b': b, 'task': t, 'selection': 'heldout', **x} for b, a in itertools.combinations(runs, 2)
             for t, x in compare(runs[a], runs[b]).items()]
    return values | {'pairs': pairs}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('sets', nargs='+', choices=SETS)
    p.add_argument('--only', nargs='+', metavar='RECIPE', help='some recipes of a set (default: all)')
    p.add_argument('--small', action='store_true', help='the embedded world, without a record')
    a = p.parse_args()
    profile = get_profile('demo' if a.small else 'real')
    if a.small:
        profile = replace(profile, world_size=400, vocab_size=600, teacher_tokens=30_000, tokens=8000, teacher_margin=-9.0,
                          tasks=('nkjp-ner',), task_examples=60, task_epochs=1, task_seeds=(1, 2))
    for name in a.sets:
        start, recipes = time.perf_counter(), {n: r for n, r in SETS[name].items() if n in (a.only or SETS[name])}
        if unknown := set(a.only or ()) - set(recipes): p.error(f'{name} has no {", ".join(unknown)}; it has {", ".join(SETS[name])}')
        if a.small: recipes = {n: of_world(r) for n, r in recipes.items()}
        values = distances(profile, recipes) if name == 'maps' else measure(profile, recipes, name == 'recipes')
        if a.small: continue
        command = f'python bench/recipes.py {name}' + (f' --only {" ".join(a.only)}' if a.only else '')
        print(write_record('bench', name, values, n=len(profile.task_seeds), seed=profile.seed, command=command,
                           seconds=round(time.perf_counter() - start, 1),
                           units={'scores': '%', 'validation': '%', 'pairs': 'points', 'seconds_per_million_tokens': 's'}))


if __name__ == '__main__': main()
