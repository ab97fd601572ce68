"""The whole grid on one device, in commands of a few minutes that go on from each other.

    python bench/grid.py --gather /path/to/data --data _runs/data     beforehand: copy what the device needs into one folder
    python bench/grid.py --data _runs/data --out out                  there, until it prints "Everything is there."
    python bench/grid.py --unpack out/grid.tar.gz                     at home: records to results/, logs and predictions to _runs/grid/

The first command makes text and rows, measures the device, prints a plan for --budget minutes and writes it to `_runs/<profile>.toml`: T0 gets as many
tokens as it can see in --teacher-minutes, every other row as many as S4 can see in --student-minutes; fine-tunings get as many epochs as fit into
what is left, and fewer seeds where even FEWEST epochs do not fit. Then the models are trained, T0 first, and the rows are scored, --at-once
fine-tunings at a time: one seed for every row, then more seeds for the rows that the profile names in `more_seeds`.

After --minutes a command stops what runs. Training goes on from its checkpoint the next time; a fine-tuning begins anew, so one is only started when it
should end in time. All along, records, logs (of unfinished runs too) and predictions are kept in one archive, --out/grid.tar.gz; weights stay where
they are. What fails is named, and what does not need it goes on.
"""
import argparse
import heapq
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

import distilherbert
from distilherbert.artefact import Artefact, commit, digest, duration, read_manifest, write_json, write_record
from distilherbert.clean import text_artefact
from distilherbert.distill import build_model, is_trained, model_artefact, peak_flops
from distilherbert.klej import build_scores, exact, load_group, prepare, profile_groups, scores_artefact, train_epoch
from distilherbert.pack import rows_artefact
from distilherbert.plan import encoder_flops, layers_of, probe, teacher_shape, text_table, train_flops
from distilherbert.reproduce import collect, given, newest
from distilherbert.scenario import FITTED, SettingsError, get_profile, get_scenario, required, results_dir, runs_dir, seeds_of

ORDER = ('S0', 'T0', 'S2', 'T1', 'S4', 'S3', 'S1', 'S5') # Models in this order; S0 and S2 need no training
SHARED = ('text', 'herbert-base-cased') # Of the data folder, beside the tasks
FEWEST = 5 # Epochs of a fine-tuning, before seeds are given up for more
PLANNED = 0.9 # Share of the budget that the plan gives away: evaluation, checkpoints and the ends of commands take the rest
KEEP_SECONDS = 30.0 # Between two archives while something runs [s]


def gather(source, target, profile):
    "Copy text, tokenizer and the tasks of the profile into one folder."
    for name in (*SHARED, *(f'klej/klej_{t}' for t in profile.tasks)):
        if not (source/name).is_dir(): raise SettingsError(f'There is no folder {source/name} to gather.')
        shutil.copytree(source/name, target/name, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*profile.text_without))
    size = sum(f.stat().st_size for f in target.rglob('*') if f.is_file())
    print(f'{target}: {size/2**20:.1f} MiB')


class Ledger:
    "What was measured and how much time was spent, kept from command to command."
    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.start = folder/'ledger.json', time.monotonic()
        self.values = json.loads(self.file.read_text('utf-8')) if self.file.exists() else {'spent': 0.0, 'training': 0.0, 'tuning': 0.0, 'slow': {}}
        self.before = self.values['spent']
        self.values['code'] = code()

    def save(self, **values):
        self.values |= values | {'spent': self.before + time.monotonic() - self.start}
        write_json(self.file, self.values)


def code():
    "Hash of the package's modules: a copy without its history cannot name a commit."
    files = sorted(Path(distilherbert.__file__).parent.glob('*.py'))
    return sha256(''.join(map(digest, files)).encode()).hexdigest()[:16]


@dataclass
class Piece:
    "A process of its own that makes something."
    artefact: Artefact # What it makes
    call: tuple # A function of this script, and its arguments
    needs: tuple = () # What must be there first
    seconds: float = 0.0 # About how long it takes, where it cannot be interrupted

    @property
    def name(self): return f'{self.artefact.stage}/{self.artefact.label}'


def start(function, *arguments):
    "A function of this script in a process of its own."
    program = f'import sys; from bench.grid import {function}; {function}(*sys.argv[1:])'
    return subprocess.Popen([sys.executable, '-c', program, *map(str, arguments)], cwd=Path(__file__).resolve().parents[1])


def end(processes):
    "Ask processes to stop, and wait until they have."
    for p in processes: p.send_signal(signal.SIGTERM)
    until = time.monotonic() + 30
    for p in processes:
        try: p.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired: p.kill()


def make_rows(profile):
    "Text, rows of both parts, and the model that needs no training."
    p, workers = get_profile(profile), os.cpu_count() or 1
    text_artefact(p, workers).build()
    for part in (('old',) if p.teacher == 'scratch' else ()) + ('ccsub',): rows_artefact(p, part, workers).build()
    build_model(p, 'S0')


def probe_training(profile, seconds, out):
    "Tokens per second of T0 and S4, and what the device could do at most."
    p = get_profile(profile)
    shape, start = teacher_shape(p), time.monotonic()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ''
    rates = {s: probe(shape, get_scenario(s), float(seconds)) for s in ('T0', 'S4')}
    write_json(Path(out), {'rates': rates, 'device': card, 'peak_flops': peak_flops(card, p.precision), 'probe_seconds': time.monotonic() - start})


def probe_tuning(profile, group, number, of, seconds, folder):
    "Examples per second of one fine-tuning of several that run at the same time."
    p, folder = get_profile(profile), Path(folder)
    data = load_group(profile_groups(p)[group], p)
    few = replace(data, train=data.train.pick(np.arange(min(len(data.train), 20*p.task_batch))))
    with exact(p, 0) as device:
        tuning = prepare(model_artefact(p, 'S0').path, few, p, 0, device)[0]
        train_epoch(tuning, 0)  # the first one warms up
        (folder/f'{number}.ready').touch()
        while len(list(folder.glob('*.ready'))) < int(of): time.sleep(0.05)
        start, epoch = time.monotonic(), 0
        while epoch == 0 or time.monotonic() - start < float(seconds):
            epoch += 1
            train_epoch(tuning, epoch)
        pace = epoch*len(few.train)/(time.monotonic() - start)
    scored = len(data.held) + sum(map(len, data.scored.values()))
    write_json(folder/f'{number}.json', {'group': group, 'epoch_seconds': (len(data.train) + scored/3)/pace})


def train_row(profile, row): build_model(profile, row)


def score_row(profile, row, seed, group):
    p = replace(get_profile(profile), task_seeds=(int(seed),))
    build_scores(p, row, [profile_groups(p)[group][0].name])


def finished(calls, deadline):
    "Run functions at the same time to their end; raises when one fails or the time is over."
    processes = [start(*c) for c in calls]
    try:
        while any(p.poll() is None for p in processes):
            for p, c in zip(processes, calls, strict=True):
                if p.poll(): raise SettingsError(f'{" ".join(map(str, c))} failed with exit status {p.returncode}; see above.')
            if time.monotonic() > deadline: raise TimeoutError
            time.sleep(0.1)
    finally: end([p for p in processes if p.poll() is None])
    for p, c in zip(processes, calls, strict=True):
        if p.returncode: raise SettingsError(f'{" ".join(map(str, c))} failed with exit status {p.returncode}; see above.')


def measure(profile, ledger, at_once, seconds, deadline):
    "Make the rows and measure the device; what was measured before is not measured again."
    known = ledger.values
    if 'rows_seconds' not in known:
        began = time.monotonic()
        finished([('make_rows', profile)], deadline)
        ledger.save(rows_seconds=time.monotonic() - began)
    with tempfile.TemporaryDirectory() as d:
        if 'rates' not in known:
            began = time.monotonic()
            finished([('probe_training', profile, seconds, f'{d}/rates')], deadline)
            found = json.loads(Path(d, 'rates').read_text())
            inside = found.pop('probe_seconds')
            ledger.save(**found, measuring_seconds=time.monotonic() - began, startup=time.monotonic() - began - inside)
        if 'epochs' not in known:
            began, groups = time.monotonic(), list(profile_groups(profile))
            count = max(at_once, len(groups))
            finished([('probe_tuning', profile, groups[n % len(groups)], n, count, seconds/2, d) for n in range(count)], deadline)
            found = [json.loads(Path(d, f'{n}.json').read_text()) for n in range(count)]
            epochs = {g: float(np.mean([f['epoch_seconds'] for f in found if f['group'] == g])) for g in groups}
            ledger.save(epochs=epochs, measuring_seconds=known['measuring_seconds'] + time.monotonic() - began)


def tuning_seconds(known, shape, row, group, epochs):
    "About how long one fine-tuning takes beside others: measured for S0, and longer with more layers."
    layers = [layers_of(shape, get_scenario(s)) for s in (row, 'S0')]
    return known['startup'] + epochs*known['epochs'][group]*layers[0]/layers[1]


def makespan(seconds, slots):
    "When the last of several jobs ends, if each is started as soon as a slot is free."
    free = [0.0]*slots
    for s in seconds: heapq.heappush(free, heapq.heappop(free) + s)
    return max(free)


def tunings(p, known, rows):
    "Row, seed, group and seconds of all fine-tunings: seed by seed, the longest first."
    shape = teacher_shape(p)
    every = [(seed, row, g, tuning_seconds(known, shape, row, g, p.task_epochs)) for row in rows for seed in seeds_of(p, get_scenario(row)) for g in profile_groups(p)]
    return sorted(every, key=lambda t: (p.task_seeds.index(t[0]), -t[3]))


def training_seconds(p, known, rows):
    "About how long each model takes that is trained."
    shape, rates = teacher_shape(p), known['rates']
    def rate(s): return rates[s] if s in rates else rates['T0' if s == 'T1' else 'S4']*train_flops(shape, get_scenario('T0' if s == 'T1' else 'S4'))/train_flops(shape, get_scenario(s))
    trained = [s for s in ORDER if s in needed(rows) and is_trained(p, get_scenario(s))]
    return {s: known['startup'] + (p.teacher_tokens if s == 'T0' else p.tokens)/rate(s) for s in trained}


def needed(rows): return {n for s in rows for n in (*required(get_scenario(s)), s)}


def fit(profile, known, a):
    "The profile with budgets that the device can afford, and by how many seconds they are too large all the same."
    tokens = {f: max(1000, int(round(60*m*known['rates'][s], -3))) for f, m, s in (('teacher_tokens', a.teacher_minutes, 'T0'), ('tokens', a.student_minutes, 'S4'))}
    seeds = tuple(a.seeds or profile.task_seeds)
    p = replace(profile, **tokens, task_seeds=seeds, fitted=FITTED)
    left = PLANNED*60*a.budget - known['spent'] - sum(training_seconds(p, known, a.rows).values())
    for count in range(len(seeds), 0, -1):
        for epochs in range(profile.task_epochs, min(FEWEST, profile.task_epochs) - 1, -1):
            q = replace(p, task_seeds=seeds[:count], task_epochs=epochs)
            times = [t[-1] for t in tunings(q, known, a.rows)]
            missing = max(makespan(times, a.at_once) - left, max(times) - PLANNED*60*a.minutes)
            if missing <= 0: return q, 0.0
    return q, missing


def plan_text(p, known, a, missing):
    "The plan as a table, and what to do where it does not fit."
    lines = [('text and rows', known['rows_seconds']), ('measuring', known['measuring_seconds']), *training_seconds(p, known, a.rows).items()]
    for n, seed in enumerate(p.task_seeds):
        times = [t[-1] for t in tunings(p, known, a.rows) if t[0] == seed]
        if times: lines.append((f'{len(times)} fine-tunings, seed {n + 1}', makespan(times, a.at_once)))
    total = sum(s for _, s in lines)
    table = text_table(['phase', '>minutes'], [(name, f'{s/60:.2f}') for name, s in (*lines, ('together', total))])
    budgets = f'T0 sees {p.teacher_tokens:,} tokens, every other row {p.tokens:,}; {p.task_epochs} epochs, seeds {", ".join(map(str, p.task_seeds))}.'
    said = [table, budgets, f'The budget is {a.budget:g} minutes, in commands of {a.minutes:g}.']
    if missing: said.append(f'This does not fit: {missing/60:.1f} minutes are missing. Give the models less (--teacher-minutes, --student-minutes), score fewer rows (--rows), '
                            f'or allow more (--budget, --minutes): remove {runs_dir()/p.name}.toml and type the command again.')
    return '\n'.join(said)


def planned(profile, ledger, a, deadline):
    "The file of the fitted profile; measured once, then read."
    file = runs_dir()/f'{profile.name}.toml'
    if not file.exists():
        measure(a.profile, ledger, a.at_once, a.probe_seconds, deadline)
        ledger.save()
        p, missing = fit(teacher_shape(profile).profile, ledger.values, a)
        text = plan_text(p, ledger.values, a, missing)
        print(text, flush=True)
        (ledger.file.parent/'plan.txt').write_text(text + '\n', 'utf-8')
        part = file.with_suffix('.part')
        part.write_text('\n'.join(f'{k} = {json.dumps(v)}' for k, v in asdict(p).items()) + '\n', 'utf-8')
        os.replace(part, file)
    return file


def pieces(file, ledger, rows):
    "What is to be made: models one at a time, then fine-tunings."
    p, known = get_profile(file), ledger.values
    model = {s: model_artefact(p, s) for s in ORDER if s in needed(rows)}
    models = [Piece(a, ('train_row', file, s), tuple(model[n] for n in required(get_scenario(s)))) for s, a in model.items()]
    scores = [Piece(a, ('score_row', file, row, seed, g), (model[row],), max(seconds, known['slow'].get(a.label, 0.0)))
              for seed, row, g, seconds in tunings(p, known, rows) for a in [scores_artefact(p, row, seed, g)]]
    return models, scores


class Worker:
    "Runs pieces until they are there, have failed, or the time is over."
    def __init__(self, ledger, deadline, keep):
        self.ledger, self.deadline, self.keep, self.failed = ledger, deadline, keep, []

    def ready(self, piece): return all(n.state() == 'current' for n in piece.needs) and piece.seconds <= self.deadline - time.monotonic()

    def run(self, phase, todo, at_once):
        "Returns what is still to be done."
        waiting, running = [p for p in todo if p.artefact.state() != 'current'], []
        kept = seen = time.monotonic()
        try:
            while (waiting or running) and time.monotonic() < self.deadline:
                for p in (p for p in list(waiting) if len(running) < at_once and self.ready(p)):
                    waiting.remove(p)
                    running.append((p, start(*p.call), time.monotonic()))
                if not running: break
                time.sleep(0.2)
                self.ledger.values[phase] += time.monotonic() - seen
                seen = time.monotonic()
                over = [r for r in running if r[1].poll() is not None]
                running = [r for r in running if r not in over]
                self.failed += [(p, process.returncode) for p, process, _ in over if process.returncode]
                if over or time.monotonic() - kept > KEEP_SECONDS:
                    try: self.keep(bool(over) and phase == 'training')
                    except (OSError, RuntimeError, ValueError) as e: print(f'No records yet ({type(e).__name__}: {e}); the work goes on.', flush=True)
                    kept = time.monotonic()
            return waiting + [p for p, *_ in running]
        finally:
            end([process for _, process, _ in running])
            late = {p.artefact.label: 1.5*(time.monotonic() - began) for p, _, began in running if 0 < p.seconds < time.monotonic() - began}
            self.ledger.save(slow=self.ledger.values['slow'] | late)


def phases(p, known, models, scores):
    "Seconds, tokens per second and share of the device's peak of everything that was done."
    shape, peak = teacher_shape(p), known['peak_flops']
    def pace(name, seconds, tokens, flops, **more):
        return {'phase': name, 'seconds': round(seconds, 1), 'tokens': tokens, 'tokens_per_s': round(tokens/seconds), 'share_of_peak': flops/seconds/peak if peak else None, **more}
    made = [{'phase': 'text and rows', 'seconds': round(known['rows_seconds'], 1)}, {'phase': 'measuring', 'seconds': round(known['measuring_seconds'], 1)}]
    for piece in models:
        c = read_manifest(piece.artefact.path)['counts'] if piece.artefact.state() == 'current' else {}
        if c.get('train_seconds'):
            row = piece.artefact.label
            made.append(pace(row, c['train_seconds'], c['tokens'], c['tokens']*train_flops(shape, get_scenario(row)), passes=round(c['passes'], 2)))
    sums = {}
    for piece in scores:
        if piece.artefact.state() != 'current': continue
        m, (_, _, row, _, group) = read_manifest(piece.artefact.path), piece.call
        tokens, train = m['counts']['tokens'], m['counts']['tokens']['train']
        length = round(train/m['counts']['train'])
        work = (2*train + sum(tokens.values()))*encoder_flops(layers_of(shape, get_scenario(row)), shape.profile.hidden, shape.profile.intermediate, length)
        sums.setdefault(group, []).append(p.task_epochs*np.array([m['seconds']/p.task_epochs, train, m['counts']['train'], work]))
    for group, runs in sums.items():
        seconds, tokens, examples, work = np.sum(runs, axis=0).tolist()
        made.append(pace(f'fine-tuning on {group}', seconds, round(tokens), work, examples_per_s=round(examples/seconds, 1), runs=len(runs)))
    if sums:
        _, tokens, examples, work = np.sum([r for runs in sums.values() for r in runs], axis=0).tolist()
        seconds = known['tuning']
        made.append(pace('fine-tuning, together', seconds, round(tokens), work, examples_per_s=round(examples/seconds, 1), runs=sum(map(len, sums.values()))))
    return made


def current(pieces): return [p for p in pieces if p.artefact.state() == 'current']


def write_records(file, ledger, models, scores, a):
    "Records of everything that is there; of the seeds after the first, those that all rows have which should."
    p, made = get_profile(file), current(models)
    if not made: return
    later = [s for s in p.task_seeds[1:] if all(x.artefact.state() == 'current' for x in scores if x.call[3] == s)]
    collect(replace(p, task_seeds=(p.task_seeds[0], *later)))
    known = ledger.values
    values = {'device': known['device'], 'peak_flops': known['peak_flops'], 'budget_minutes': a.budget, 'minutes': round(known['spent']/60, 2), 'at_once': a.at_once,
              'phases': phases(p, known, models, scores)}
    write_record(p.name, 'grid', values, units={'seconds': 's', 'tokens_per_s': '1/s', 'examples_per_s': '1/s', 'peak_flops': '1/s'}, command='python bench/grid.py',
                 made=newest([read_manifest(x.artefact.path) for x in (*made, *current(scores))]))
    print(f'records of {len(made)} models and {len(current(scores))} of {len(scores)} fine-tunings in {results_dir()/p.name}', flush=True)


def archive(file, ledger, models, scores, out):
    "One file that holds records, logs and predictions; there whole or not at all."
    name, part = get_profile(file).name, out/'.grid.part'
    found = {f'results/{name}/{f.name}': f for f in (results_dir()/name).glob('*.json')}
    found |= {f'grid/{name}/{f.name}': f for f in (file, ledger.file, ledger.file.parent/'plan.txt')}
    for a in (x.artefact for x in (*models, *scores)):
        for folder, label in ((a.path, a.path.name), (a.partial, f'{a.path.name}.partial')):
            for f in ('manifest.json', 'metrics.jsonl', 'predictions.npz'): found[f'grid/{name}/{a.stage}/{label}/{f}'] = folder/f
    with tarfile.open(part, 'w:gz') as tar:
        for inside, f in sorted(found.items()):
            if f.is_file(): tar.add(f, inside)
    os.replace(part, out/'grid.tar.gz')


def unpack(file):
    "Put records under results/ and the rest under _runs/grid/, and name the commit where the code here is the code that ran."
    with tempfile.TemporaryDirectory() as d:
        with tarfile.open(file) as tar: tar.extractall(d, filter='data')
        for ledger in Path(d).glob('grid/*/ledger.json'):
            same = json.loads(ledger.read_text('utf-8'))['code'] == code()
            if not same: print('The code here is not the code that ran: the records name no commit of here.')
            for f in Path(d, 'results', ledger.parent.name).glob('*.json'):
                record = json.loads(f.read_text('utf-8'))
                if same and record['provenance']['commit'] == 'none': write_json(f, record | {'provenance': record['provenance'] | {'commit': commit()}})
        for inside, target in (('results', results_dir()), ('grid', runs_dir()/'grid')):
            if Path(d, inside).is_dir(): shutil.copytree(Path(d, inside), target, dirs_exist_ok=True)
    print(f'records in {results_dir()}, logs and predictions in {runs_dir()/"grid"}')


def arguments(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--profile', default='base', help='name or TOML file')
    p.add_argument('--data', type=Path, help='folder of text, tokenizer and tasks; DISTILHERBERT_DATA when left out')
    p.add_argument('--out', type=Path, default=Path('out'), help='where the archive goes')
    p.add_argument('--minutes', type=float, default=8.5, help='when this command stops')
    p.add_argument('--budget', type=float, default=28.0, help='minutes of all commands together')
    p.add_argument('--teacher-minutes', type=float, default=7.0, help='for T0')
    p.add_argument('--student-minutes', type=float, default=2.0, help='for each other row')
    p.add_argument('--probe-seconds', type=float, default=20.0, help='for each measurement of the device')
    p.add_argument('--at-once', type=int, default=6, help='fine-tunings at the same time')
    p.add_argument('--seeds', type=int, nargs='+', help='of the fine-tunings, instead of those of the profile')
    p.add_argument('--rows', nargs='+', default=ORDER, choices=ORDER, help='rows to score, with the models they need')
    p.add_argument('--gather', type=Path, metavar='FOLDER', help='copy the data from there into --data, and stop')
    p.add_argument('--unpack', type=Path, metavar='FILE', help='put what an archive holds where it belongs, and stop')
    return p.parse_args(words)


def work(a):
    "One command; returns what is to be said at its end, and whether something failed."
    deadline, profile = time.monotonic() + 60*a.minutes, get_profile(a.profile)
    a.profile = given(a.profile)
    a.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(runs_dir()/'grid'/profile.name)
    os.environ['DISTILHERBERT_RESULTS'] = str(ledger.file.parent/'results')
    try: file = planned(profile, ledger, a, deadline)
    except TimeoutError: return 'Time is over: the same command goes on from here.', False
    finally: ledger.save()
    models, scores = pieces(file, ledger, a.rows)
    def keep(records):
        ledger.save()
        try:
            if records: write_records(file, ledger, models, scores, a)
        finally: archive(file, ledger, models, scores, a.out)
    worker, whole = Worker(ledger, deadline, keep), len(current(models)) == len(models)
    try:
        left = worker.run('training', models, 1)
        endless = [p for p in scores if whole and p.artefact.state() != 'current' and p.seconds > deadline - time.monotonic()]
        left += worker.run('tuning', [p for p in scores if p not in endless], a.at_once)
    finally: keep(True)
    print(f'{duration(ledger.values["spent"])} of {a.budget:g} minutes are spent.')
    bad = [f'{p.name} failed with exit status {status}; see above.' for p, status in worker.failed]
    bad += [f'{p.name} takes about {p.seconds/60:.1f} minutes, more than a command has: raise --minutes.' for p in endless]
    if bad: return '\n'.join([*bad, 'What does not need it was made; the same command tries again.']), True
    return ('Time is over: the same command goes on from here.' if left else 'Everything is there.'), False


def main():
    a = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is stopped and kept, as at the end of the minutes
    if a.unpack: return unpack(a.unpack)
    if a.gather and not a.data: raise SettingsError('--gather needs --data: the folder to copy into.')
    if a.gather: return gather(a.gather, a.data, get_profile(a.profile))
    if a.data: os.environ['DISTILHERBERT_DATA'] = str(a.data.resolve())
    said, failed = work(a)
    if failed: raise SystemExit(said)
    print(said)


if __name__ == '__main__':
    try: main()
    except SettingsError as e: raise SystemExit(str(e)) from e
