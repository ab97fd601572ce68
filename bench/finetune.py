"""Fine-tuning against transformers' Trainer with its defaults, in one process run: examples/s, and the accuracy that both reach.

    .venv/bin/python bench/finetune.py                  NKJP-NER and PolEmo2.0-IN, whole texts, two thin layers, three seeds, one thread (some minutes)
    .venv/bin/python bench/finetune.py --max-len 128    texts cut as the profile mini cuts them: most reviews fill a row, so that no padding can be saved
    .venv/bin/python bench/finetune.py --layers 4       as deep as the profile mini: the last layer, which runs at one position only, is a smaller share
    .venv/bin/python bench/finetune.py --model FOLDER   from a model that was trained, as T0 of mini (`_runs/model/T0-…`), five seeds: where accuracy says something
    .venv/bin/python bench/finetune.py --shape base     the three report tasks for one model of a profile's shape, on one GPU: how long 20 epochs take
    .venv/bin/python bench/finetune.py --small          the embedded world's tasks, seconds, no record: to see that it works (also with --shape)

Same weights at the start, examples, batch size, epochs, longest text and maximum learning rate on both sides. Everything else of the Trainer is its default, as
`arguments` shows: fused AdamW, linear schedule, no evaluation, no workers, batches drawn at random and padded to their longest text by the collator that comes
with the tokenizer. Only the checkpoint every 500 steps is off, which favours the Trainer. It computes all positions of all layers and all embeddings; we sort
texts of similar length into batches, run the last layer at one position, and keep the embeddings that the task uses.

A third column is ours with products in bfloat16 (`task_precision`): whether it is faster, and what it costs in accuracy.

Like with like: both sides are timed from texts to a trained model: loading, the tokens of train and dev, training. Neither evaluates in that time, and no
slice is held out, as there is no epoch to choose. The ratio is given in seconds and in processor time, which other work on the machine disturbs less; it is the
median over the seeds, whose sides follow each other, the one that starts changing places. Without --model the weights are random (their speed is that of
trained ones), with the width and settings of the profile mini; real data is read from DISTILHERBERT_DATA. Such a model learns something about whole reviews in a few
hundred examples, and next to nothing about names: the constant answer stands beside the accuracy. The difference on dev to the Trainer has the interval of the paired
bootstrap over examples and seeds. Written to results/bench/finetune.json, under the longest text and the layers.

--shape takes all examples, texts and settings of a profile, evaluates every epoch and holds a slice out, as for the scores. The tasks' fine-tunings run beside each
other in processes of their own; the time is from the first start to the last prediction, loading included.
"""
import argparse
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

from distilherbert.artefact import read_records, worker_pool, write_record
from distilherbert.klej import (
    EVAL_TOKENS,
    TASKS,
    Evaluator,
    Reading,
    chosen_epochs,
    difference,
    encode,
    exact,
    finetune,
    load_classifier,
    load_group,
    prepare,
    profile_groups,
    score,
    to_prediction,
    train_epoch,
    tuning_precision,
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
        return seconds, to_prediction(look[data.tasks[0].name](tuning.model, tuning_precision(profile)), data.tasks[0])


def ours_bf16(folder, data, profile, seed):
    "The same with products in bfloat16."
    return ours(folder, data, replace(profile, task_precision='bf16'), seed)


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
    "All sides with every seed, in turns."
    found = {side: [] for side in (ours, ours_bf16, trainers)}
    for i, seed in enumerate(profile.task_seeds):
        for side in list(found)[::1 - 2*(i % 2)]: found[side].append(side(folder, data, profile, seed))
    task, gold = data.tasks[0], data.dev[data.tasks[0].name].gold
    times = {side.__name__: np.array([s for s, _ in runs]) for side, runs in found.items()}
    readings = {side.__name__: {task.name: Reading(task, gold, np.stack([p for _, p in runs]), profile.task_seeds)} for side, runs in found.items()}
    values = {side: {'examples_per_s': round(len(data.train)*profile.task_epochs/float(np.median(s[:, 0])), 2), 'seconds': s[:, 0].round(2).tolist(),
                     'processor_s': s[:, 1].round(2).tolist(), 'accuracy': [round(float(x), 2) for x in readings[side][task.name].scores()]}
              for side, s in times.items()}
    for side in ('ours', 'ours_bf16'):
        ratios = times['trainers']/times[side]
        middle = [round(float(x), 3) for x in np.median(ratios, axis=0)]
        values[side] |= {'ratio': middle[0], 'processor_ratio': middle[1], 'ratios': ratios[:, 0].round(3).tolist(),
                         'difference': difference(readings[side], readings['trainers'])[task.name]}
    return values | {'examples': len(data.train), 'constant': round(100*float(np.bincount(gold).max()/len(gold)), 2)}


def show(task, v):
    "The values of a task in two lines."
    for side, name in (('ours', task.title), ('ours_bf16', '  in bf16')):
        d = v[side]['difference']
        print(f"{name:13} {v[side]['examples_per_s']:8.1f} examples/s, Trainer {v['trainers']['examples_per_s']:8.1f}: {v[side]['ratio']:.2f} times "
              f"({v[side]['processor_ratio']:.2f} in processor time); accuracy "
              f"{np.mean(v[side]['accuracy']):.1f} and {np.mean(v['trainers']['accuracy']):.1f} (constant answer {v['constant']:.1f}), difference "
              f"{d['difference']:+.1f} ({d['low']:+.1f} to {d['high']:+.1f})", flush=True)


def tune(folder, profile, group):
    "One fine-tuning as for the scores: seconds, examples, and the readings of each task."
    start, data = time.perf_counter(), load_group(profile_groups(profile)[group], profile)
    with quiet(): run, _ = finetune(folder, data, profile, profile.task_seeds[0])
    scores = {t.name: {r: round(score(t.metric, run[f'gold/{t.name}'], run[f'pred/{t.name}'][e]), 2) for r, e in chosen_epochs(run, t).items() if r != 'test'}
              for t in data.tasks}
    return {'seconds': round(time.perf_counter() - start, 1), 'examples': len(data.train), 'scores': scores}


def tune_all(folder, profile):
    "The fine-tunings of all tasks beside each other: seconds in all, and each group."
    start, groups = time.perf_counter(), list(profile_groups(profile))
    with worker_pool(len(groups)) as pool:
        found = dict(zip(groups, pool.map(tune, *zip(*((folder, profile, g) for g in groups), strict=True)), strict=True))
    return {'seconds': round(time.perf_counter() - start, 1), 'groups': found}


def record(name, values, a, seeds, start):
    "Put values beside those of other sizes."
    options = [f'--{o.replace("_", "-")} {v}' for o, v in vars(a).items() if v not in (None, False)]
    known = read_records('bench').get('finetune', {}).get('values', {})
    values = {'device': torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu', **values}
    print(write_record('bench', 'finetune', known | {name: values}, n=seeds, seconds=round(time.perf_counter() - start, 1),
                       units={'examples_per_s': '1/s', 'seconds': 's', 'processor_s': 's', 'accuracy': '%', 'difference': 'points', 'scores': '%'},
                       command=' '.join(['.venv/bin/python bench/finetune.py', *options])).name)


def describe(profile, folder):
    "The model and the settings of a measurement."
    names = ('precision', 'task_precision', 'threads', 'task_batch', 'task_epochs', 'task_lr', 'task_max_len')
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    shape = {'layers': config.num_hidden_layers, 'hidden': config.hidden_size, 'heads': config.num_attention_heads, 'intermediate': config.intermediate_size}
    size = sum(x.numel() for x in BertForSequenceClassification.from_pretrained(folder, local_files_only=True).parameters())
    return {'parameters': size, 'settings': shape | {f: getattr(profile, f) for f in names}}


def main():
    p = argparse.ArgumentParser(description='Fine-tuning against the Trainer of transformers.')
    p.add_argument('--small', action='store_true', help='seconds, on the embedded world, without a record')
    p.add_argument('--model', help='model folder that both sides start from (random weights when left out)')
    p.add_argument('--shape', help='no comparison: the time of the report\'s tasks at the settings of a profile, as base')
    p.add_argument('--max-len', type=int, default=512, help='longest text [tokens]')
    p.add_argument('--layers', type=int, default=2, help='of a random model')
    p.add_argument('--epochs', type=int, help='default: 4; with --shape those of the profile')
    p.add_argument('--seeds', type=int, help='default: 3; with --model 5')
    a = p.parse_args()
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    start, small = time.perf_counter(), {'task_source': 'world', 'vocab_size': 500, 'hidden': 32, 'heads': 2, 'intermediate': 64, 'max_len': 64, 'task_max_len': 64}
    with tempfile.TemporaryDirectory() as d, quiet():
        folder = Path(shutil.copytree(a.model, f'{d}/model') if a.model else d)
        if a.shape:
            profile = replace(get_profile(a.shape), task_seeds=(42,), **(small | {'layers': 2, 'task_examples': 80} if a.small else {}))
            profile = replace(profile, task_epochs=a.epochs or profile.task_epochs)
            if not a.model: make_model(folder, profile, {g: load_group(t, profile) for g, t in profile_groups(profile).items()})
            values = tune_all(folder, profile)
            print(f"{profile.name}, {profile.task_epochs} epochs: {values['seconds']:.0f} s; "
                  + ', '.join(f"{g} {v['seconds']:.0f} s" for g, v in values['groups'].items()))
            if not a.small: record(f'{profile.name}, {profile.task_epochs} epochs', values | describe(profile, folder), a, 1, start)
            return
        seeds = a.seeds or (5 if a.model else 3)
        profile = replace(get_profile('mini'), tasks=NAMES, task_epochs=a.epochs or 4, task_seeds=tuple(range(1, seeds + 1)), threads=1, selection_share=0.0,
                          layers=a.layers, max_len=a.max_len, task_max_len=a.max_len, **({} if a.model else {'task_lr': 1e-3}))
        if a.small: profile = replace(profile, **small, task_epochs=a.epochs or 2)
        if a.model: profile = replace(profile, task_max_len=min(profile.task_max_len, AutoConfig.from_pretrained(folder, local_files_only=True).max_position_embeddings))
        data = {t: load_group([t], replace(profile, task_examples=80 if a.small else n)) for t, n in EXAMPLES.items()}
        if not a.model: make_model(folder, profile, data)
        tasks = {}
        for t in NAMES:
            tasks[t] = compare(folder, data[t], profile)
            show(TASKS[t], tasks[t])
        if a.small: return
        about = describe(profile, folder)
        name = f"{profile.task_max_len} tokens, {about['settings']['layers']} layers{', trained' if a.model else ''}"
        record(name, about | {'tasks': tasks}, a, seeds, start)


if __name__ == '__main__': main()
