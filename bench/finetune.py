"""Fine-tuning against transformers' Trainer with its defaults, in one process run: examples/s, and the accuracy that both reach.

    .venv/bin/python bench/finetune.py                                            NKJP-NER and PolEmo2.0-IN, a small model on the processor (about 20 minutes)
    .venv/bin/python bench/finetune.py --max-len 128 --epochs 4   the same with texts cut as the profile mini cuts them: most reviews fill a row
    .venv/bin/python bench/finetune.py --small                                    the embedded world's tasks, seconds, no record: to see that it works

Same model, examples, batch size, epochs, longest text and maximum learning rate on both sides; everything else of the Trainer is its default (linear
schedule, random batches padded to their longest text, all positions of all layers, all embeddings). Both are timed from texts to a trained model, with loading
and tokens, without evaluation. The model has random weights (its speed is that of trained ones) and the shape and settings of the profile mini; real data is
read from DISTILHERBERT_DATA. Seeds alternate between both sides; the difference in accuracy on dev has the interval of the paired bootstrap over examples and
seeds. Written to results/bench/finetune.json, under the longest text.
"""
import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

from distilherbert.artefact import read_records, write_record
from distilherbert.klej import (
    EVAL_TOKENS,
    TASKS,
    Evaluator,
    Reading,
    difference,
    encode,
    exact,
    load_classifier,
    load_group,
    prepare,
    to_prediction,
    train_epoch,
)
from distilherbert.pack import load_tokenizer, train_tokenizer, write_tokenizer
from distilherbert.scenario import data_dir, get_profile
from distilherbert.student import bert_config, quiet, random_model, save_model

NAMES = ('nkjp-ner', 'polemo2.0-in')


def make_model(folder, profile, data):
    "A random model of the profile's shape, with its tokenizer."
    if profile.task_source == 'world':
        write_tokenizer(Path(folder), train_tokenizer((t for d in data.values() for (t,) in d.train.texts), profile.vocab_size), profile.max_len)
    else: load_tokenizer(data_dir('herbert-base-cased')).save_pretrained(folder)
    config = bert_config(profile, len(load_tokenizer(Path(folder))), profile.layers)
    save_model(random_model(config, 0), folder)


def ours(folder, data, profile, seed):
    "Seconds, and predictions on dev."
    start = time.perf_counter()
    with exact(profile, seed) as device:
        tuning, look, _ = prepare(folder, data, profile, seed, device)
        for epoch in range(profile.task_epochs): train_epoch(tuning, epoch)
        seconds = time.perf_counter() - start
        return seconds, to_prediction(look[data.tasks[0].name](tuning.model, profile.precision), data.tasks[0])


def trainers(folder, data, profile, seed):
    "The same with transformers' Trainer."
    start = time.perf_counter()
    with exact(profile, seed) as device, tempfile.TemporaryDirectory() as out:
        model, tokenizer = load_classifier(folder, len(data.labels), seed)
        rows = tokenizer([t for (t,) in data.train.texts], truncation=True, max_length=profile.task_max_len)
        examples = [{**{k: v[i] for k, v in rows.items()}, 'labels': int(g)} for i, g in enumerate(data.train.gold)]
        given = TrainingArguments(out, per_device_train_batch_size=profile.task_batch, num_train_epochs=profile.task_epochs, learning_rate=profile.task_lr,
                                  seed=seed, save_strategy='no', report_to='none', disable_tqdm=True, use_cpu=device.type == 'cpu')
        trainer = Trainer(model, given, train_dataset=examples, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seconds = time.perf_counter() - start
        dev = encode(data.dev[data.tasks[0].name], tokenizer, profile.task_max_len)
        look = Evaluator(dev, tokenizer.pad_token_id, device, EVAL_TOKENS[device.type])
        return seconds, to_prediction(look(model, profile.precision), data.tasks[0])


def compare(folder, data, profile):
    "Both sides with every seed, in turns."
    found = {side: [] for side in (ours, trainers)}
    for seed in profile.task_seeds:
        for side in found: found[side].append(side(folder, data, profile, seed))
    task, gold = data.tasks[0], data.dev[data.tasks[0].name].gold
    work = len(data.train)*profile.task_epochs
    values = {side.__name__: {'examples_per_s': round(work/float(np.median([s for s, _ in runs])), 2), 'seconds': [round(s, 2) for s, _ in runs]}
              for side, runs in found.items()}
    readings = [{task.name: Reading(task, gold, np.stack([p for _, p in runs]), profile.task_seeds)} for runs in found.values()]
    for r, v in zip(readings, values.values(), strict=True): v['accuracy'] = [round(float(x), 2) for x in r[task.name].scores()]
    ratios = [b/a for (a, _), (b, _) in zip(*found.values(), strict=True)]
    return values | {'ratio': round(float(np.median(ratios)), 3), 'ratios': [round(r, 3) for r in ratios], 'examples': len(data.train),
                     'constant': round(100*float(np.bincount(gold).max()/len(gold)), 2), 'difference': difference(*readings)[task.name]}


def main():
    p = argparse.ArgumentParser(description='Fine-tuning against the Trainer of transformers.')
    p.add_argument('--small', action='store_true', help='seconds, on the embedded world, without a record')
    p.add_argument('--examples', type=int, default=3000, help='training examples of a task')
    p.add_argument('--epochs', type=int, default=2)
    p.add_argument('--max-len', type=int, default=512, help='longest text [tokens]')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    profile = replace(get_profile('mini'), tasks=NAMES, task_examples=a.examples, task_epochs=a.epochs, task_seeds=tuple(range(1, a.seeds + 1)), threads=a.threads,
                      max_len=a.max_len, task_max_len=a.max_len)
    if a.small:
        profile = replace(profile, task_source='world', task_examples=80, task_epochs=2, vocab_size=500, layers=2, hidden=32, heads=2, intermediate=64,
                          max_len=64, task_max_len=64)
    start, tasks = time.perf_counter(), {}
    data = {t: load_group([t], profile) for t in NAMES}
    with tempfile.TemporaryDirectory() as folder, quiet():
        make_model(folder, profile, data)
        size = sum(x.numel() for x in BertForSequenceClassification.from_pretrained(folder).parameters())
        for t in NAMES:
            tasks[t] = v = compare(Path(folder), data[t], profile)
            d = v['difference']
            print(f"{TASKS[t].title:13} {v['ours']['examples_per_s']:8.1f} examples/s, Trainer {v['trainers']['examples_per_s']:8.1f}: {v['ratio']:.2f} times; accuracy "
                  f"{np.mean(v['ours']['accuracy']):.1f} and {np.mean(v['trainers']['accuracy']):.1f} (constant answer {v['constant']:.1f}), difference "
                  f"{d['difference']:+.1f} ({d['low']:+.1f} to {d['high']:+.1f})", flush=True)
    if a.small: return
    shape = {f: getattr(profile, f) for f in ('layers', 'hidden', 'heads', 'intermediate', 'precision', 'threads', 'task_batch', 'task_epochs', 'task_lr', 'task_max_len')}
    values = read_records('bench').get('finetune', {}).get('values', {})
    values[str(a.max_len)] = {'device': 'cuda' if torch.cuda.is_available() else 'cpu', 'parameters': size, 'settings': shape, 'tasks': tasks}
    print(write_record('bench', 'finetune', values, units={'examples_per_s': '1/s', 'seconds': 's', 'accuracy': '%', 'difference': 'points'}, n=a.seeds,
                       seconds=round(time.perf_counter() - start, 1), command=f'.venv/bin/python bench/finetune.py --max-len {a.max_len} --epochs {a.epochs}').name)


if __name__ == '__main__': main()
