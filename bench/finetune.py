"""Fine-tuning against transformers' Trainer with its defaults, in one process: examples/s, and the accuracy that both reach.

    .venv/bin/python bench/finetune.py                  NKJP-NER and PolEmo2.0-IN, whole texts, two thin layers, three seeds (minutes)
    .venv/bin/python bench/finetune.py --model FOLDER   from trained weights (as `_runs/model/T0-…`), six seeds: accuracy says something
    .venv/bin/python bench/finetune.py --small          the embedded world's tasks, seconds, no record: to see that it works

Both sides have the same weights, examples, batch size, epochs, longest text and maximum learning rate; all else of the Trainer is its
default, but for the checkpoint every 500 steps. Both are timed from texts to a trained model, in turns, without evaluation; the ratio is
the median over the seeds. Without --model the weights are random, so the constant guess stands beside. The record is `bench/finetune`.
"""
import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from distilherbert.klej import DeviceExamples, FineTuning, encode, exact, load_classifier, to_prediction
from distilherbert.pack import make_tokenizer
from distilherbert.results import read_records, write_record
from distilherbert.scenario import get_profile
from distilherbert.scores import TaskPredictions, compare
from distilherbert.student import bert_config, load_config, quiet, random_model, save_model
from distilherbert.tasks import TASKS, TaskSettings, load_group
from distilherbert.wheel import usable_positions

EXAMPLES = {'nkjp-ner': 1500, 'polemo2.0-in': 700}  # training examples: a review is nine times as long as a sentence


def train_with_ours(folder, data, settings, seed):
    "Seconds and processor time, and predictions on dev."
    start = np.array([time.perf_counter(), time.process_time()])
    with exact(settings.threads, seed) as device:
        tuning = FineTuning(folder, data, settings, seed, device)
        for _ in range(settings.epochs): tuning.train_epoch()
        taken = np.array([time.perf_counter(), time.process_time()]) - start
        return taken, to_prediction(tuning.predict(data.tasks[0].name), data.tasks[0])


def train_with_trainer(folder, data, settings, seed):
    "The same with transformers' Trainer: its defaults but for what is the same on both sides, and what it would write and print."
    start = np.array([time.perf_counter(), time.process_time()])
    with exact(settings.threads, seed) as device, tempfile.TemporaryDirectory() as out:
        model, tokenizer = load_classifier(folder, len(data.labels), seed)
        rows = tokenizer([t for (t,) in data.train.texts], truncation=True, max_length=settings.max_len)
        examples = [{**{k: v[i] for k, v in rows.items()}, 'labels': int(g)} for i, g in enumerate(data.train.gold)]
        dev = encode(data.dev[data.tasks[0].name], tokenizer, settings.max_len, model.config)
        arguments = TrainingArguments(out, per_device_train_batch_size=settings.batch, num_train_epochs=settings.epochs, seed=seed,
                                      learning_rate=settings.lr, save_strategy='no', report_to='none', disable_tqdm=True,
                                      use_cpu=device.type == 'cpu')
        trainer = Trainer(model, arguments, train_dataset=examples, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        taken = np.array([time.perf_counter(), time.process_time()]) - start
        return taken, to_prediction(DeviceExamples(dev, tokenizer.pad_token_id, device).logits(model), data.tasks[0])


def measure(folder, data, settings, seeds):
    "All sides with every seed, in turns."
    sides, found = {'ours': (train_with_ours, 'fp32'), 'bf16': (train_with_ours, 'bf16'), 'trainer': (train_with_trainer, 'fp32')}, {}
    for i, seed in enumerate(seeds):
        for side, (train, kind) in list(sides.items())[::1 - 2*(i % 2)]:
            found.setdefault(side, []).append(train(folder, data, replace(settings, precision=kind), seed))
    task, gold = data.tasks[0], data.dev[data.tasks[0].name].gold
    taken = {side: np.array([t for t, _ in runs]) for side, runs in found.items()}
    predictions = {side: {task.name: TaskPredictions(task, gold, np.stack([p for _, p in runs]), seeds)} for side, runs in found.items()}
    values = {'examples': len(data.train), 'constant': round(100*float(np.bincount(gold).max()/len(gold)), 2)}
    for side in sides:
        v = values[side] = {
            'examples_per_s': round(len(data.train)*settings.epochs/float(np.median(taken[side][:, 0])), 2),
            'seconds': taken[side][:, 0].round(2).tolist(), 'processor_s': taken[side][:, 1].round(2).tolist(),
            'accuracy': [round(float(x), 2) for x in predictions[side][task.name].scores()]}
        if side == 'trainer': continue
        v['ratio'], v['processor_ratio'] = (round(float(x), 3) for x in np.median(taken['trainer']/taken[side], axis=0))
        v['difference'] = compare(predictions[side], predictions['trainer'])[task.name]
    for side in ('ours', 'bf16'):
        v, theirs, d = values[side], values['trainer'], values[side]['difference']
        print(f"{task.title if side == 'ours' else '  in bf16':13} {v['examples_per_s']:8.1f} examples/s, "
              f"Trainer {theirs['examples_per_s']:8.1f}: "
              f"{v['ratio']:.2f} times ({v['processor_ratio']:.2f} in processor time); accuracy {np.mean(v['accuracy']):.1f} and "
              f"{np.mean(theirs['accuracy']):.1f} (constant guess {values['constant']:.1f}), difference {d['difference']:+.1f} "
              f"({d['low']:+.1f} to {d['high']:+.1f})", flush=True)
    return values


def main():
    p = argparse.ArgumentParser(description='Fine-tuning against the Trainer of transformers.')
    p.add_argument('--small', action='store_true', help='seconds, on the embedded world, without a record')
    p.add_argument('--model', help='model folder that both sides start from (random weights when left out)')
    p.add_argument('--max-len', type=int, default=512, help='longest text [tokens]')
    p.add_argument('--layers', type=int, default=2, help='of a random model')
    p.add_argument('--epochs', type=int, default=4)
    p.add_argument('--seeds', type=int, help='default: 3; with --model 6')
    a = p.parse_args()
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    start, seeds = time.perf_counter(), tuple(range(1, (a.seeds or (6 if a.model else 3)) + 1))
    profile, length = replace(get_profile('demo'), hidden=128, heads=2, intermediate=512, max_len=a.max_len), a.max_len
    if a.model: length = min(length, usable_positions(load_config(a.model)))
    settings = TaskSettings(0, a.epochs, 32, 5e-4 if a.model else 1e-3, length, 'fp32', 0.0, 0.1, 0.01, 1.0, 1, 0)
    if a.small: profile, settings = replace(profile, hidden=32, intermediate=64, max_len=64), replace(settings, max_len=64, epochs=2)
    source = 'world' if a.small else 'local'
    data = {t: load_group([TASKS[t]], source, replace(settings, examples=80 if a.small else n)) for t, n in EXAMPLES.items()}
    with tempfile.TemporaryDirectory() as d, quiet():
        folder = Path(a.model or d)
        if not a.model:
            texts = [t for g in data.values() for (t,) in g.train.texts]
            size = make_tokenizer(folder, 'train' if a.small else 'herbert', texts, 500, profile.max_len)['vocab_size']
            save_model(random_model(bert_config(profile, size, a.layers), 0), folder)
        tasks = {t: measure(folder, g, settings, seeds) for t, g in data.items()}
        if a.small: return
        config = load_config(folder)
        about = {'device': torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu', 'layers': config.num_hidden_layers,
                 'hidden': config.hidden_size, 'parameters': load_classifier(folder, 2, 0)[0].num_parameters(), 'batch': settings.batch,
                 'epochs': a.epochs, 'max_len': length, 'lr': settings.lr}
    name = f"{length} tokens, {about['layers']} layers{', trained' if a.model else ''}"
    options = [f'--{o.replace("_", "-")} {v}' for o, v in vars(a).items() if v not in (None, False) and v != p.get_default(o)]
    known = read_records('bench').get('finetune', {}).get('values', {})
    print(write_record('bench', 'finetune', known | {name: {**about, 'tasks': tasks}}, n=len(seeds),
                       seconds=round(time.perf_counter() - start, 1), command=' '.join(['.venv/bin/python bench/finetune.py', *options]),
                       units={'examples_per_s': '1/s', 'seconds': 's', 'processor_s': 's', 'accuracy': '%', 'difference': 'points'}))


if __name__ == '__main__': main()
