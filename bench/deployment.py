"""What fine-tuned classifiers cost to use, next to their teacher: size, memory, latency and throughput of each format.

    .venv/bin/python bench/deployment.py T0 S4 --task nkjp-ner --profile real    trained ones, with their scores on dev
    .venv/bin/python bench/deployment.py T0 S4 --profile paper --untrained       random weights of the same shape: costs without scores

All models are measured in turns: each round visits every one of them, and the median of the rounds counts, so that what else the machine
does hits all alike. Peak memory is that of a process of its own that classifies one batch.
"""
import argparse
import inspect
import json
import subprocess
import sys
import tempfile
import time
from copy import copy
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from distilherbert.artefact import Progress, read_manifest, write_json
from distilherbert.classify import export_onnx, load_runner, open_classifier
from distilherbert.klej import exact, load_classifier, logits_of
from distilherbert.pack import load_tokenizer
from distilherbert.pipeline import build_classifier, build_tokenizer, classifier_artefact
from distilherbert.results import write_record
from distilherbert.scenario import as_typed, get_profile, get_scenario
from distilherbert.scores import TaskPredictions, compare
from distilherbert.status import config_of, size_text, teacher_config, text_table
from distilherbert.student import save_model
from distilherbert.tasks import TaskSettings, get_task, load_group
from distilherbert.wheel import usable_positions

LENGTHS, BATCH = (32, 128, 512), 32 # Tokens of a text; texts at a time, for throughput
FORMATS = ('torch', 'torch on GPU', 'onnx', 'int8')


def outputs_of(folder): return max(1, len(json.loads((folder/'classifier.json').read_text('utf-8'))['labels']))


def torch_forward(folder, device='cpu'):
    "PyTorch on texts of equal length: ids `(B, T)` to logits."
    model = load_classifier(folder, outputs_of(folder), None)[0].eval().to(device)
    def forward(ids):
        ids = torch.from_numpy(ids).to(device)
        with torch.inference_mode(): return logits_of(model, ids, torch.zeros_like(ids), None).cpu().numpy()
    return forward


def onnx_forward(folder, threads):
    "ONNX Runtime on texts of equal length: ids `(B, T)` to logits."
    session = load_runner(folder, threads)[0]
    return lambda ids: session.run(None, {'ids': ids, 'types': np.zeros_like(ids), 'keep': np.ones(ids.shape, bool)})[0]


def seconds_of(forward, ids, least=0.02):
    "Mean time of a call, repeated until `least` seconds have passed."
    start, calls = time.perf_counter(), 0
    while calls < 1 or time.perf_counter() - start < least:
        forward(ids)
        calls += 1
    return (time.perf_counter() - start)/calls


def measure_times(forwards, rounds, most=float('inf')):
    """Latency [s] and throughput [texts/s] by length, and of how many visits they are the median, for `forwards`: key -> (function,
    positions, entries of the vocabulary). An input size that has taken `most` seconds is not visited again."""
    sizes = [(n, t) for t in LENGTHS for n in (1, BATCH)]
    ids = {(n, t): np.random.default_rng(0).integers(2**31, size=(n, t)) for n, t in sizes}
    seconds, spent, bar = {}, dict.fromkeys(sizes, 0.0), Progress((rounds + 1)*len(sizes), 'Measuring', 'visits')
    for number in range(rounds + 1):
        for size in sizes:
            start = time.perf_counter()
            for key, (forward, positions, vocabulary) in forwards.items():
                if size[1] > positions or spent[size] >= most: continue
                seconds.setdefault((key, *size), []).append(seconds_of(forward, ids[size] % vocabulary, 0.02 if number else 0))
            spent[size] += time.perf_counter() - start
            bar.update()
    counted = {k: v[1:] for k, v in seconds.items() if len(v) > 1}  # the first visit warms up
    middle = {k: float(np.median(v)) for k, v in counted.items()}
    def by_length(key, n, value): return {str(t): value(middle[key, n, t]) if (key, n, t) in middle else None for t in LENGTHS}
    def visits(key, n): return {str(t): len(counted.get((key, n, t), ())) for t in LENGTHS}
    return {key: {'latency': by_length(key, 1, lambda s: s), 'throughput': by_length(key, BATCH, lambda s: BATCH/s),
                  'visits': {'latency': visits(key, 1), 'throughput': visits(key, BATCH)}} for key in forwards}


PROGRAM = """import sys
import numpy as np
folder, tokens, threads, device = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ids = np.full((BATCH, tokens), 5)
sys.path.insert(0, folder)
if LOAD == 'onnx':
    from run import load_runner
    load_runner(folder, threads)[0].run(None, dict(ids=ids, types=0*ids, keep=ids > 0))
else:
    import torch
    from pathlib import Path
    from distilherbert.klej import load_classifier, logits_of
    torch.set_num_threads(threads)
    SOURCE
    torch_forward(Path(folder), device)(ids)
if device == 'cuda': print(torch.cuda.max_memory_allocated())
else: print(1024*int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))
"""


def peak_bytes(folder, tokens, threads, device='cpu'):
    "Most memory of a process that classifies one batch, or most that its tensors took on the GPU [bytes]."
    kind = 'onnx' if (folder/'model.onnx').is_file() else 'torch'
    source = f'import json\n{inspect.getsource(outputs_of)}\n{inspect.getsource(torch_forward)}'.replace('\n', '\n    ')
    program = PROGRAM.replace('BATCH', str(BATCH)).replace('LOAD', repr(kind)).replace('SOURCE', source)
    done = subprocess.run([sys.executable, '-c', program, str(folder), str(tokens), str(threads), device], capture_output=True, text=True)
    if done.returncode: raise SystemExit(f'Measuring the memory of {folder} failed:\n{done.stderr[-2000:]}')
    return int(done.stdout.split()[-1])


def untrained_classifier(profile, scenario, folder):
    "A classifier of a scenario's shape with random weights."
    tokenizer, config = build_tokenizer(profile), copy(config_of(teacher_config(profile)[0], scenario))
    config.num_labels = 2
    folder.mkdir()
    save_model(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config), folder)
    load_tokenizer(tokenizer).save_pretrained(folder)
    about = {'tasks': [profile.tasks[0]], 'texts': 1, 'labels': ['0', '1'], 'scale': [], 'max_len': usable_positions(config)}
    write_json(folder/'classifier.json', about)
    return folder


def measure(profile, scenarios, task, rounds, untrained):
    "Values of the record, and the number of examples behind its scores."
    rows, forwards, dev = {}, {}, None
    with tempfile.TemporaryDirectory() as d, exact(profile.threads, profile.seed):
        if not untrained: dev = load_group([task], profile.task_source, TaskSettings.of(profile)).dev[task.name]
        for s in scenarios:
            folder = untrained_classifier(profile, s, Path(d)/s.name) if untrained else build_classifier(profile, s, task.name)
            folders = {'torch': folder, **{f: export_onnx(folder, Path(d)/f'{s.name}-{f}', int8=f == 'int8') for f in ('onnx', 'int8')}}
            config = load_classifier(folder, outputs_of(folder), None)[0].config
            tokens, formats, first = max(n for n in (32, 128) if n <= max(32, usable_positions(config))), {}, None
            places = {f: (at, 'cpu') for f, at in folders.items()}
            if torch.cuda.is_available(): places['torch on GPU'] = folder, 'cuda'
            for f, (at, device) in places.items():
                file = at/('model.onnx' if (at/'model.onnx').is_file() else 'model.safetensors')
                formats[f] = {'bytes': file.stat().st_size, 'peak_bytes': peak_bytes(at, tokens, profile.threads, device)}
                forward = onnx_forward(at, profile.threads) if file.name == 'model.onnx' else torch_forward(at, device)
                forwards[s.name, f] = forward, usable_positions(config), config.vocab_size
                if dev is None or device == 'cuda': continue
                r = TaskPredictions(task, dev.gold, open_classifier(at, profile.threads).predict(dev.texts)[None], (0,), (0,))
                first = first or r
                difference = compare({task.name: r}, {task.name: first})[task.name]
                formats[f] |= {'score': round(float(r.scores()[0]), 4), 'same': float(np.mean(r.pred == first.pred)), 'n': len(dev),
                               **{k: difference[k] for k in ('difference', 'low', 'high')}}
            about = {} if untrained else read_manifest(folder)['counts']
            rows[s.name] = {**{k: about[k] for k in ('seed', 'epoch') if k in about}, 'peak_tokens': tokens, 'formats': formats,
                            'parameters': sum(w.numel() for w in load_file(folder/'model.safetensors').values())}
        for (name, f), times in measure_times(forwards, rounds, 20.0 if untrained else float('inf')).items():
            rows[name]['formats'][f].update(times)
    about = {'task': '', 'metric': ''} if untrained else {'task': task.name, 'metric': task.metric}
    return {**about, 'untrained': untrained, 'threads': profile.threads, 'batch': BATCH, 'rounds': rounds, 'rows': rows}, dev and len(dev)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('scenarios', nargs='*', help='scenarios (default: T0 S4)')
    a.add_argument('--profile', default='demo', help='demo, real, paper, or a TOML file (default: demo)')
    a.add_argument('--task', default='', help='task (default: the first of the profile)')
    a.add_argument('--rounds', type=int, default=7, help='times that each model is visited (default: 7)')
    a.add_argument('--untrained', action='store_true', help='random weights: costs without scores')
    a = a.parse_args()
    profile, start = get_profile(a.profile), time.perf_counter()
    scenarios, task = [get_scenario(s) for s in a.scenarios or ('T0', 'S4')], get_task(a.task or profile.tasks[0])
    values, n = measure(profile, scenarios, task, a.rounds, a.untrained)
    key = '' if a.untrained else ' '.join(classifier_artefact(profile, s, task.name).key for s in scenarios)
    options = '--untrained' if a.untrained else f'--task {task.name}'
    units = {'latency': 's', 'throughput': '1/s', 'bytes': 'bytes', 'peak_bytes': 'bytes', 'score': '%', 'difference': 'points'}
    file = write_record(profile.name, 'deployment', values, n=n, key=key, units=units, seconds=round(time.perf_counter() - start, 1),
                        command=f'python bench/deployment.py {" ".join(map(as_typed, scenarios))} {options} --profile {as_typed(profile)}')
    def number(x, form, scale=1.0): return '-' if x is None else f'{x*scale:{form}}'
    times = (f'>{h} ({t})' for t in LENGTHS for h in ('ms', 'texts/s'))
    header, lines = ['scenario', 'format', '>million', '>file', '>memory', *times, '>score', '>against torch'], []
    for name, row in values['rows'].items():
        for f, x in ((f, row['formats'][f]) for f in FORMATS if f in row['formats']):
            times = [cell for t in map(str, LENGTHS) for cell in (number(x['latency'][t], '.2f', 1e3), number(x['throughput'][t], '.1f'))]
            scores = [f'{x["score"]:.1f}', f'{x["difference"]:+.1f} ({x["low"]:+.1f} to {x["high"]:+.1f})'] if 'score' in x else ['-', '-']
            sizes = [f'{row["parameters"]/1e6:.2f}', size_text(x['bytes']), size_text(x['peak_bytes'])]
            lines.append([name, f, *sizes, *times, *scores])
    print(text_table(header, lines), file, sep='\n')


if __name__ == '__main__': main()
