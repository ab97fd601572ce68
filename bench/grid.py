"""The whole grid on one device, in commands of a few minutes that go on from each other.

    python bench/grid.py --out out --minutes 8.5            until it prints that everything is there
    python bench/grid.py --gather ../data --data _data      beforehand: copy what the device needs into one folder

The first command measures the device and writes `_runs/<profile>.toml`: T0 gets as many tokens as it can see in --teacher-minutes, every other
row as many as S4 can see in --student-minutes. Then the models are trained, T0 first, and the rows are scored, --at-once fine-tunings at a
time, one seed after the other. At the end of its minutes a command stops what runs (training goes on from its checkpoint the next
time) and writes records, logs and predictions under --out; weights stay where they are. The seeds scored for every row are collected.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from distilherbert.artefact import read_manifest, write_record
from distilherbert.distill import build_model, model_artefact
from distilherbert.klej import build_scores, profile_groups, scores_artefact
from distilherbert.plan import probe, teacher_shape, train_flops
from distilherbert.reproduce import collect
from distilherbert.scenario import SCENARIOS, SettingsError, get_profile, get_scenario, required, results_dir, runs_dir

PEAK = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12} # bf16, dense [FLOP/s], from NVIDIA's data sheets
ORDER = ('S0', 'T0', 'S2', 'T1', 'S4', 'S3', 'S1', 'S5') # Models in this order; S0 and S2 need no training
SHARED = ('text', 'herbert-base-cased') # Of the data folder, beside the tasks


def gather(source, target, tasks):
    "Copy text, tokenizer and the tasks of the profile into one folder."
    for name in (*SHARED, *(f'klej/klej_{t}' for t in tasks)):
        if not (source/name).is_dir(): raise SettingsError(f'There is no folder {source/name} to gather.')
        shutil.copytree(source/name, target/name, dirs_exist_ok=True, ignore=shutil.ignore_patterns('*-ocr-*'))
    size = sum(f.stat().st_size for f in target.rglob('*') if f.is_file())
    print(f'{target}: {size/2**20:.1f} MiB')


def fitted(name, teacher_minutes, student_minutes, seeds):
    "The profile with budgets that this device can afford; measured once, then read."
    file = runs_dir()/f'{get_profile(name).name}.toml'
    if not file.exists():
        shape = teacher_shape(get_profile(name))
        rates = {s: probe(shape, SCENARIOS[s], 20.0) for s in ('T0', 'S4')}
        teacher, student = (round(60*m*rates[s], -3) for m, s in ((teacher_minutes, 'T0'), (student_minutes, 'S4')))
        print(f'measured: T0 {rates["T0"]:,.0f} tokens/s, S4 {rates["S4"]:,.0f} tokens/s', flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        budgets = {'teacher_tokens': max(1000, int(teacher)), 'tokens': max(1000, int(student)), 'task_seeds': seeds}
        file.write_text('\n'.join(f'{k} = {json.dumps(v)}' for k, v in (asdict(shape.profile) | budgets).items()) + '\n')
    return file


def start(*call):
    "A stage in a process of its own."
    code = f'import sys; from bench.grid import {call[0]}; {call[0]}(*sys.argv[1:])'
    return subprocess.Popen([sys.executable, '-c', code, *call[1:]], cwd=Path(__file__).resolve().parents[1])


def train_row(profile, row): build_model(profile, row)


def score_row(profile, row, seed, group):
    p = replace(get_profile(profile), task_seeds=(int(seed),))
    build_scores(p, row, [profile_groups(p)[group][0].name])


def pieces(file, rows):
    "What is to be made: models one at a time, then fine-tunings, all rows with one seed before the next seed."
    p, needed = get_profile(file), {n for s in rows for n in (*required(get_scenario(s)), s)}
    models = [(model_artefact(p, s), ('train_row', str(file), s)) for s in ORDER if s in needed]
    scores = [(scores_artefact(p, s, seed, g), ('score_row', str(file), s, str(seed), g)) for seed in p.task_seeds for s in rows
              for g in profile_groups(p)]
    return models, scores


def work(todo, at_once, deadline):
    "Run pieces until they are there or the time is over; a piece that fails stops everything."
    waiting, running = [c for a, c in todo if a.state() != 'current'], []
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < at_once: running.append((start(*waiting[0]), waiting.pop(0)))
            time.sleep(0.2)
            for process, call in running:
                if process.poll(): raise SystemExit(f'{" ".join(call)} failed with exit status {process.returncode}.')
            running = [r for r in running if r[0].poll() is None]
        return not waiting and not running
    finally:
        for process, _ in running: process.send_signal(signal.SIGTERM)
        for process, _ in running: process.wait()


def phases(file):
    "Tokens per second and share of the card's peak of every trained row."
    p = get_profile(file)
    shape, device = teacher_shape(p), torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
    peak, made = next((v for k, v in PEAK.items() if k in device), None), {}
    for a in (model_artefact(p, s) for s in ORDER):
        if a.state() != 'current' or not (c := read_manifest(a.path)['counts']).get('train_seconds'): continue
        pace = c['tokens']/c['train_seconds']
        made[a.label] = {'tokens': c['tokens'], 'seconds': c['train_seconds'], 'tokens_per_s': round(pace), 'passes': c['passes'],
                         'share_of_peak': pace*train_flops(shape, get_scenario(a.label))/peak if peak else None}
    return {'device': device, 'rows': made}


def bring_back(file, models, scores, out):
    "Records, logs and predictions under `out`."
    p = get_profile(file)
    complete = [seed for seed in p.task_seeds if all(a.state() == 'current' for a, c in scores if c[3] == str(seed))]
    os.environ['DISTILHERBERT_RESULTS'] = str(out/'results')
    collect(replace(p, task_seeds=tuple(complete)) if complete else p)
    write_record(p.name, 'grid', phases(file), command=f'python bench/grid.py --profile {p.name}', units={'tokens_per_s': '1/s', 'seconds': 's'})
    for a, _ in (*models, *scores):
        if a.state() != 'current': continue
        for name in ('manifest.json', 'metrics.jsonl', 'predictions.npz'):
            if (a.path/name).is_file():
                target = out/'runs'/a.stage/a.path.name
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(a.path/name, target/name)
    print(f'records in {results_dir()/p.name}; complete seeds: {complete or "none"}')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--profile', default='base', help='name or TOML file')
    p.add_argument('--out', type=Path, default=Path('out'), help='where records, logs and predictions go')
    p.add_argument('--minutes', type=float, default=8.5, help='when this command stops')
    p.add_argument('--teacher-minutes', type=float, default=7.0, help='for T0')
    p.add_argument('--student-minutes', type=float, default=2.0, help='for each other row')
    p.add_argument('--at-once', type=int, default=6, help='fine-tunings at the same time')
    p.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44], help='of the fine-tunings')
    p.add_argument('--rows', nargs='+', default=ORDER, choices=ORDER, help='rows to score, with the models they need')
    p.add_argument('--data', type=Path, help='folder of text, tokenizer and tasks; DISTILHERBERT_DATA when left out')
    p.add_argument('--gather', type=Path, metavar='FOLDER', help='copy the data from there into --data, and stop')
    a = p.parse_args()
    deadline = time.monotonic() + 60*a.minutes
    if a.gather: return gather(a.gather, a.data, get_profile(a.profile).tasks)
    if a.data: os.environ['DISTILHERBERT_DATA'] = str(a.data.resolve())
    file = fitted(a.profile, a.teacher_minutes, a.student_minutes, a.seeds)
    models, scores = pieces(file, a.rows)
    done = work(models, 1, deadline) and work(scores, a.at_once, deadline)
    bring_back(file, models, scores, a.out.resolve())
    print('Everything is there.' if done else 'Time is over: the same command goes on from here.')


if __name__ == '__main__':
    try: main()
    except SettingsError as e: raise SystemExit(str(e)) from e
