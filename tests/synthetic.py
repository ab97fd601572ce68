"Invented records in the layout that `distilherbert collect` writes; only ever in a temporary folder."
import json
import math
from dataclasses import asdict

from distilherbert.artefact import write_record
from distilherbert.evidence import TASKS, expected_key
from distilherbert.klej import INTERVAL
from distilherbert.scenario import PROFILES, SCENARIOS, SettingsError

MADE = {'commit': '0123456789ab', 'machine': 'an invented machine, 2 cores', 'versions': {'python': '3.11.7'}, 'date': '2026-01-01T00:00:00Z'}
# What one hopes for, and what one may get: the teacher no better than S0, copying harmful, S3 ahead of S4.
MEANS = {'S0': 52.0, 'S1': 60.0, 'S2': 63.0, 'S3': 66.0, 'S4': 68.5, 'S5': 68.9, 'T0': 74.0, 'T1': 74.5}
NEGATIVE = {'S0': 60.0, 'S1': 59.5, 'S2': 56.0, 'S3': 63.0, 'S4': 60.2, 'S5': 63.3, 'T0': 60.5, 'T1': 64.0}


def key_of(profile, what):
    try: return expected_key(profile, what)
    except (ImportError, SettingsError): return 'needsthedata'


def reading(mean, n, seeds=5):
    half = 196*math.sqrt(mean/100*(1 - mean/100)/n)
    return {'mean': mean, 'low': mean - half, 'high': mean + half, 'seeds': {str(s): mean + s - 2 for s in range(seeds)}}


def write(profile, what, values, **options):
    write_record(profile, what, values, key=key_of(profile, what), command=f'distilherbert collect --profile {profile}', made=MADE, **options)


def write_text(profile):
    part = {'documents': 9000, 'lines_read': 120_000, 'rejected': {'short': 14_000, 'symbols': 6000, 'markup': 120}, 'changed': {'markup': 9000},
            'duplicates': 8000, 'kept': 91_880, 'chars_kept': 6_000_000}
    scores = {r: {'precision': 0.999, 'recall': 0.998, 'n': 5000} for r in ('short', 'symbols', 'duplicates')} if profile == 'demo' else {}
    write(profile, 'clean', {'parts': {'old': part, 'ccsub': part}, 'scores': scores}, seconds=25.0)
    rows = {'texts': 91_880, 'rows': 31_000, 'heldout_rows': 620, 'tokens': 1_900_000, 'mean_length': 62.3, 'dropped_tokens': 900, 'unk_share': 0.0,
            'lengths': [[0, 100], [8, 30_000], [16, 40_000], [24, 18_000], [32, 3780]], 'row_lengths': [[56, 4_000], [60, 27_000]]}
    write(profile, 'pack', {'old': rows, 'ccsub': rows}, seconds=40.0)


def end_of(mean): return 5.6 - mean/100


def mean_on(means, scenario, task, swing):
    "What comes from T0 may be better at names and worse at the rest; the mean of the tasks is the same."
    if scenario in ('S0', 'S1') or task == 'mean': return means[scenario]
    return means[scenario] + (2*swing if task == 'nkjp-ner' else -swing)


def write_models(profile, means=MEANS):
    for s, scenario in SCENARIOS.items():
        trained = scenario.mlm or s == 'T0'
        end = end_of(means[s])
        way = end_of(means['T0']) - end if s == 'T1' else 1.0
        points = [{'step': 10*i, 'tokens': 50_000*i, 'mlm': end + way*0.55**i, 'loss': 2*end, 'kl': 0.8*0.8**i if scenario.teacher else None,
                   'agreement': 0.8 - 0.6*0.7**i if scenario.teacher else None} for i in range(12)]
        layers = 4 if s.startswith('T') else 2
        write(profile, f'model-{s}', {
            'scenario': s, 'parameters': 70_000 + 50_000*layers, 'bytes': 280_000 + 200_000*layers, 'encoder_parameters': 50_000*layers, 'layers': layers,
            'hidden': 64, 'tokens': 2_000_000 if trained else 0, 'steps': 500 if trained else 0, 'passes': 1.25 if trained else 0.0, 'tokens_per_s': 90_000.0 if trained else None,
            'heldout_loss': end, 'unigram_entropy': 6.1, 'train': points if trained else [], 'heldout': points if trained else []},
            seconds=60.0 if trained else 0.1)


def write_scores(profile, means=MEANS, swing=0.0):
    for s, mean in means.items():
        tasks = {}
        for i, task in enumerate(TASKS):
            honest = reading(mean_on(means, s, task, swing) + 2*i - 2, 2000)
            best = {**honest, 'mean': honest['mean'] + 0.9}
            tasks[task] = {'metric': 'accuracy', 'n': 2000, 'examples_train': 250, 'cut': 0, 'majority': 40.0,
                           'readings': {'honest': honest, 'last': {**honest, 'mean': honest['mean'] - 0.1}, 'max': best}}
        tasks['mean'] = {'title': 'Mean of the tasks', 'readings': {r: {'mean': mean + x, 'low': mean + x - 1, 'high': mean + x + 1}
                                                                    for r, x in (('honest', 0.0), ('last', -0.1), ('max', 0.9))}}
        write(profile, f'klej-{s}', tasks, n=2000, seconds=45.0)
    pairs, kept = [], []
    for t in (*TASKS, 'mean'):
        on = {s: mean_on(means, s, t, swing) for s in means}
        pairs += [{'a': a, 'b': b, 'task': t, 'reading': 'honest', 'difference': on[a] - on[b], 'low': on[a] - on[b] - 1.2, 'high': on[a] - on[b] + 1.2,
                   'n': 6000, 'seeds': 5} for a in means for b in means if a > b]
        kept += [{'student': s, 'teacher': 'T0', 'task': t, 'share': m/on['T0'], 'low': m/on['T0'] - 0.02, 'high': m/on['T0'] + 0.02}
                 for s, m in on.items() if s.startswith('S')]
    write(profile, 'comparisons', {'pairs': pairs, 'kept': kept, 'interval': INTERVAL})


def write_deployment(profile):
    def form(share): return {'bytes': 4_000_000*share, 'peak_bytes': 3e8, 'score': 70.0, 'difference': 0.0, 'low': -1.0, 'high': 1.0, 'n': 2000,
                             'latency': {'32': 0.002*share, '128': None}, 'throughput': {'32': 900.0, '128': None}}
    rows = {s: {'parameters': 9, 'forms': {'torch': form(1.0), 'onnx': form(0.6), 'int8': form(0.3)}} for s in ('T0', 'S4')}
    write(profile, 'deployment', {'task': 'nkjp-ner', 'threads': 1, 'batch': 32, 'rounds': 7, 'rows': rows})


def write_ablations(profile, means=MEANS):
    tried = [('S1', '', 0.0), ('S3', '', 0.0), ('S4', '', 0.0), ('S4', 'no cosine', -0.02), ('S3', 'twice the tokens', -0.1), ('S4', 'twice the tokens', -0.05),
             ('S1', 'half the learning rate', -0.03), ('S1', 'twice the learning rate', 0.04), ('S3', 'twice the learning rate', 0.02),
             ('S4', 'twice the learning rate', -0.004), ('S4', 'soft targets five times lighter', -0.04)]
    write(profile, 'ablations', {'seeds': [0, 1], 'variants': [
        {'row': s, 'change': change, 'tokens': 9, 'heldout_loss': end_of(means[s]) + more, 'kl': None, 'agreement': None, 'score': means[s] - 100*more}
        for s, change, more in tried]})


def write_all(profile='demo', means=MEANS, swing=0.0):
    "A full set of invented records under `results_dir()`."
    settings = {'profile': json.loads(json.dumps(asdict(PROFILES[profile]))), 'T0_fit': {'heldout_loss': 4.86, 'unigram_entropy': 6.1, 'floor': 4.5}}
    write(profile, 'settings', settings)
    write_text(profile)
    write_models(profile, means)
    write_scores(profile, means, swing)
    write_deployment(profile)
    write_ablations(profile, means)
    write(profile, 'time', {'model': 360.2, 'total': 1500.0}, seconds=1500.0)
    write(profile, 'commands', {'cold': 900.0, 'warm': 20.0, 'render': 30.0, 'S4 cold': 240.0, 'S4 warm': 9.0})
