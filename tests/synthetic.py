"Invented records in the layout that `distilherbert collect` writes; only ever in a temporary folder."
import json
import math
from dataclasses import asdict

from distilherbert.artefact import write_record
from distilherbert.evidence import TASKS, expected_key
from distilherbert.scenario import PROFILES, SCENARIOS, SettingsError

MADE = {'commit': '0123456789ab', 'machine': 'an invented machine, 2 cores', 'versions': {'python': '3.11.7'}, 'date': '2026-01-01T00:00:00Z'}
MEANS = {'S0': 52.0, 'S1': 60.0, 'S2': 63.0, 'S3': 66.0, 'S4': 68.5, 'S5': 68.9, 'T0': 74.0, 'T1': 74.5}


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


def write_models(profile):
    for s, scenario in SCENARIOS.items():
        trained = scenario.mlm or s == 'T0'
        end = 5.6 - MEANS[s]/100
        points = [{'step': 10*i, 'tokens': 50_000*i, 'mlm': end + 0.55**i, 'loss': 2*end, 'kl': 0.8*0.8**i if scenario.teacher else None,
                   'agreement': 0.8 - 0.6*0.7**i if scenario.teacher else None} for i in range(12)]
        layers = 4 if s.startswith('T') else 2
        write(profile, f'model-{s}', {
            'scenario': s, 'parameters': 70_000 + 50_000*layers, 'bytes': 280_000 + 200_000*layers, 'encoder_parameters': 50_000*layers, 'layers': layers,
            'hidden': 64, 'tokens': 2_000_000 if trained else 0, 'steps': 500 if trained else 0, 'tokens_per_s': 90_000.0 if trained else None,
            'heldout_loss': end, 'unigram_entropy': 6.1, 'train': points if trained else [], 'heldout': points if trained else []},
            seconds=60.0 if trained else 0.1)


def write_scores(profile):
    for s, mean in MEANS.items():
        tasks = {}
        for i, task in enumerate(TASKS):
            honest = reading(mean + 2*i - 2, 2000)
            best = {**honest, 'mean': honest['mean'] + 0.9}
            tasks[task] = {'metric': 'accuracy', 'n': 2000, 'examples_train': 250, 'cut': 0, 'majority': 40.0,
                           'readings': {'honest': honest, 'last': {**honest, 'mean': honest['mean'] - 0.1}, 'max': best}}
        tasks['mean'] = {'title': 'Mean of the tasks', 'readings': {r: {'mean': mean + x, 'low': mean + x - 1, 'high': mean + x + 1}
                                                                    for r, x in (('honest', 0.0), ('last', -0.1), ('max', 0.9))}}
        write(profile, f'klej-{s}', tasks, n=2000, seconds=45.0)
    pairs = [{'a': a, 'b': b, 'task': t, 'reading': 'honest', 'difference': MEANS[a] - MEANS[b], 'low': MEANS[a] - MEANS[b] - 1.2,
              'high': MEANS[a] - MEANS[b] + 1.2, 'n': 6000, 'seeds': 5}
             for a in MEANS for b in MEANS if a > b for t in (*TASKS, 'mean')]
    kept = [{'student': s, 'teacher': 'T0', 'task': 'mean', 'share': m/MEANS['T0'], 'low': m/MEANS['T0'] - 0.02, 'high': m/MEANS['T0'] + 0.02}
            for s, m in MEANS.items() if s.startswith('S')]
    write(profile, 'comparisons', {'pairs': pairs, 'kept': kept})


def write_deployment(profile):
    def form(share): return {'bytes': 4_000_000*share, 'peak_bytes': 3e8, 'score': 70.0, 'difference': 0.0, 'low': -1.0, 'high': 1.0, 'n': 2000,
                             'latency': {'32': 0.002*share, '128': None}, 'throughput': {'32': 900.0, '128': None}}
    rows = {s: {'parameters': 9, 'forms': {'torch': form(1.0), 'onnx': form(0.6), 'int8': form(0.3)}} for s in ('T0', 'S4')}
    write(profile, 'deployment', {'task': 'nkjp-ner', 'threads': 1, 'batch': 32, 'rounds': 7, 'rows': rows})


def write_ablations(profile):
    minus = {'difference': 1.0, 'low': -0.5, 'high': 2.5, 'n': 6000, 'seeds': 2}
    tried = [{'row': row, 'change': change, 'tokens': 9, 'heldout_loss': loss, 'kl': None, 'agreement': None, 'score': 60.0,
              'minus': {r: minus for r in ('S3', 'S4') if r != row or change}}
             for row, change, loss in (('S3', '', 1.5), ('S4', '', 1.6), ('S4', 'no cosine', 1.55), ('S3', 'twice the tokens', 1.4))]
    write(profile, 'ablations', {'seeds': [0, 1], 'variants': tried})


def write_all(profile='demo'):
    "A full set of invented records under `results_dir()`."
    settings = {'profile': json.loads(json.dumps(asdict(PROFILES[profile]))), 'T0_fit': {'heldout_loss': 4.86, 'unigram_entropy': 6.1, 'floor': 4.5}}
    write(profile, 'settings', settings)
    write_text(profile)
    write_models(profile)
    write_scores(profile)
    write_deployment(profile)
    write_ablations(profile)
    write(profile, 'time', {'total': 1500.0}, seconds=1500.0)
    write(profile, 'commands', {'cold': 900.0, 'warm': 20.0, 'render': 30.0, 'S4 cold': 240.0, 'S4 warm': 9.0})
