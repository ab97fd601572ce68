"""Fine-tuning against transformers' Trainer with its defaults, in one process run: examples/s, and the accuracy that both reach.

    .venv/bin/python bench/finetune.py                  NKJP-NER and PolEmo2.0-IN, whole texts, two thin layers, three seeds, one thread (some minutes)
    .venv/bin/python bench/finetune.py --max-len 128    texts cut as the profile mini cuts them: most reviews fill a row, so that no padding can be saved
    .venv/bin/python bench/finetune.py --layers 4       as deep as the profile mini: the last layer, which runs at one position only, is a smaller share
    .venv/bin/python bench/finetune.py --small          the embedded world's tasks, seconds, no record: to see that it works

Same weights at the start, examples, batch size, epochs, longest text and maximum learning rate on both sides. Everything else of the Trainer is its default, as
`arguments` shows: fused AdamW, linear schedule, no evaluation, no workers, batches drawn at random and padded to their longest text by the collator that comes
with the tokenizer. Only the checkpoint every 500 steps is off, which favours the Trainer. It computes all positions of all layers and all embeddings; we sort
texts of similar length into batches, run the last layer at one position, and keep the embeddings that the task uses.

Like with like: both sides are timed from texts to a trained model: loading, the tokens of train and dev, training. Neither evaluates in that time, and no
slice is held out, as there is no epoch to choose. The ratio is given in seconds and in processor time, which other work on the machine disturbs less; it is the
median over the seeds, whose two sides follow each other, the one that starts changing places. The model has random weights (its speed is that of trained ones) and
the width and settings of the profile mini; real data is read from DISTILHERBERT_DATA. Such a model learns something about whole reviews in a few hundred
examples, and next to nothing about names: the constant answer stands beside the accuracy. The difference of both on dev has the interval of the paired
bootstrap over examples and seeds. Written to results/bench/finetune.json, under the longest text and the layers.
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

EXAMPLES = {'nkjp-ner': 1500, 'polemo2.0-in': 700} # training examples: a review is nine times as long as a sentence
NAMES = tuple(EXAMPLES)


def make_model(folder, profile, data):
    "A random model of the profile's shape, with its tokenizer."
    if profile.task_source == 'world':
        write_tokenizer(Path(folder), train_tokenizer((t for d in data.values() for (t,) in d.train.texts), profile.vocab_size), profile.max_len)
    else: load_tokenizer(data_dir('herbert-base-cased')).save_pretrained(folder)
    config = bert_config(profile, len(load_tokenizer(Path(folder))), profile.layers)
    save_model(random_model(config, 0), folder)


class Clock:
    "Seconds, and processor time of this process."
    def __init__(self): self.start = time.perf_counter(), time.process_time()

    def read(self): return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def ours(folder, data, profile, seed):
    "Seconds and processor time, and predictions on dev."
    clock = Clock()
    with exact(profile, seed) as device:
        tuning, look, _ = prepare(folder, data, profile, seed, device)
        for epoch in range(profile.task_epochs): train_epoch(tuning, epoch)
        seconds = clock.read()
        return seconds, to_prediction(look[data.tasks[0].name](tuning.model, profile.precision), data.tasks[0])


def arguments(out, profile, seed, device):
    "Settings of the Trainer: its defaults but for what is the same on both sides, and what it would write and print."
    return TrainingArguments(out, per_device_train_batch_size=profile.task_batch, num_train_epochs=profile.task_epochs, learning_rate=profile.task_lr,
                             seed=seed, save_strategy='no', report_to='none', disable_tqdm=True, use_cpu=device.type == 'cpu')


def trainers(folder, data, profile, seed):
    "The same with transformers' Trainer."
    clock = Clock()
    with exact(profile, seed) as device, tempfile.TemporaryDirectory() as out:
        model, tokenizer = load_classifier(folder, len(data.labels), seed)
        rows = tokenizer([t for (t,) in data.train.texts], truncation=True, max_length=profile.task_max_len)
        examples = [{**{k: v[i] for k, v in rows.items()}, 'labels': int(g)} for i, g in enumerate(data.train.gold)]
        dev = encode(data.dev[data.tasks[0].name], tokenizer, profile.task_max_len)
        look = Evaluator(dev, tokenizer.pad_token_id, device, EVAL_TOKENS[device.type])
        trainer = Trainer(model, arguments(out, profile, seed, device), train_dataset=examples, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seconds = clock.read()
        return seconds, to_prediction(look(model, profile.precision), data.tasks[0])


def compare(folder, data, profile):
    "Both sides with every seed, in turns."
    found = {side: [] for side in (ours, trainers)}
    for i, seed in enumerate(profile.task_seeds):
        for side in list(found)[::1 - 2*(i % 2)]: found[side].append(side(folder, data, profile, seed))
    task, gold = data.tasks[0], data.dev[data.tasks[0].name].gold
    times = {side.__name__: np.array([s for s, _ in runs]) for side, runs in found.items()}
    values = {side: {'examples_per_s': round(len(data.train)*profile.task_epochs/float(np.median(s[:, 0])), 2), 'seconds': s[:, 0].round(2).tolist(),
                     'processor_s': s[:, 1].round(2).tolist()} for side, s in times.items()}
    readings = [{task.name: Reading(task, gold, np.stack([p for _, p in runs]), profile.task_seeds)} for runs in found.values()]
    for r, v in zip(readings, values.values(), strict=True): v['accuracy'] = [round(float(x), 2) for x in r[task.name].scores()]
    ratios = times['trainers']/times['ours']
    middle = [round(float(x), 3) for x in np.median(ratios, axis=0)]
    return values | {'ratio': middle[0], 'processor_ratio': middle[1], 'ratios': ratios[:, 0].round(3).tolist(), 'examples': len(data.train),
                     'constant': round(100*float(np.bincount(gold).max()/len(gold)), 2), 'difference': difference(*readings)[task.name]}


def main():
    p = argparse.ArgumentParser(description='Fine-tuning against the Trainer of transformers.')
    p.add_argument('--small', action='store_true', help='seconds, on the embedded world, without a record')
    p.add_argument('--max-len', type=int, default=512, help='longest text [tokens]')
    p.add_argument('--layers', type=int, default=2)
    p.add_argument('--seeds', type=int, default=3)
    a = p.parse_args()
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    profile = replace(get_profile('mini'), tasks=NAMES, task_epochs=4, task_lr=1e-3, task_seeds=tuple(range(1, a.seeds + 1)), threads=1, selection_share=0.0,
                      layers=a.layers, max_len=a.max_len, task_max_len=a.max_len)
    counts = EXAMPLES
    if a.small:
        counts = dict.fromkeys(NAMES, 80)
        profile = replace(profile, task_source='world', task_epochs=2, vocab_size=500, hidden=32, intermediate=64, max_len=64, task_max_len=64)
    start, tasks = time.perf_counter(), {}
    data = {t: load_group([t], replace(profile, task_examples=n)) for t, n in counts.items()}
    with tempfile.TemporaryDirectory() as folder, quiet():
        make_model(folder, profile, data)
        size = sum(x.numel() for x in BertForSequenceClassification.from_pretrained(folder).parameters())
        for t in NAMES:
            tasks[t] = v = compare(Path(folder), data[t], profile)
            d = v['difference']
            print(f"{TASKS[t].title:13} {v['ours']['examples_per_s']:8.1f} examples/s, Trainer {v['trainers']['examples_per_s']:8.1f}: {v['ratio']:.2f} times "
                  f"({v['processor_ratio']:.2f} in processor time); accuracy "
                  f"{np.mean(v['ours']['accuracy']):.1f} and {np.mean(v['trainers']['accuracy']):.1f} (constant answer {v['constant']:.1f}), difference "
                  f"{d['difference']:+.1f} ({d['low']:+.1f} to {d['high']:+.1f})", flush=True)
    if a.small: return
    shape = {f: getattr(profile, f) for f in ('layers', 'hidden', 'heads', 'intermediate', 'precision', 'threads', 'task_batch', 'task_epochs', 'task_lr', 'task_max_len')}
    values = read_records('bench').get('finetune', {}).get('values', {})
    values[f'{a.max_len} tokens, {a.layers} layers'] = {'device': 'cuda' if torch.cuda.is_available() else 'cpu', 'parameters': size, 'settings': shape, 'tasks': tasks,
                                                        'seconds': round(time.perf_counter() - start, 1)}
    print(write_record('bench', 'finetune', values, units={'examples_per_s': '1/s', 'seconds': 's', 'processor_s': 's', 'accuracy': '%', 'difference': 'points'},
                       n=a.seeds, seconds=round(time.perf_counter() - start, 1),
                       command=f'.venv/bin/python bench/finetune.py --max-len {a.max_len} --layers {a.layers} --seeds {a.seeds}').name)


if __name__ == '__main__': main()
