"""Time of a training step against a step as DistilBERT published it, in one process run, medians of interleaved rounds.

    .venv/bin/python bench/step.py                              processor: the shapes mini and base, masking, loading (about 17 minutes on two cores)
    .venv/bin/python bench/step.py --where cuda                 one GPU: base in bf16 and fp16, the largest micro-batch, peak memory (under 8 minutes)
    .venv/bin/python bench/step.py --shapes tiny --rounds 2     seconds, to see that it works

"as published" is the baseline to beat: the same models, objective, number type, rows, masks and optimiser settings, run eagerly (attention, too), with logits for every
position of both models, of which the masked ones are then selected by `masked_select`, as in DistilBERT's code; and, separately, with soft targets on all positions.
"baseline" is a stricter one, with our attention (SDPA) and a selection by index, which that code had not. Both take MLM over all logits, with the label
-100 where nothing is masked, as it did. "step" is the loop's own `train_step`, loading and masking included, dropout off. The number type is the faster one for both
sides: float32 on a processor (a product in bfloat16 takes longer there where AMX is missing), bf16 on a GPU. These rows are full and random: only their shape matters.
"packed rows" are random texts packed by the project's own packer, as full as the report's: where one of them is not full the attention has a mask.
"compiled" is a step with `compile = true`, measured on a GPU, or with --compile; compiling itself comes before the first round.
On a GPU the peak of memory is taken for each candidate alone, and loading for the rows of a step in the profile paper.
Written to results/bench/step.json, under the place it ran on.
"""
import argparse
import gc
import os
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from distilherbert.artefact import duration, provenance, read_records, write_record
from distilherbert.distill import OutOfMemory, Run, Stream, TrainSettings, micro_batches, own_sep, peak_tokens, train_step
from distilherbert.objective import Marks, mask_rows
from distilherbert.pack import pack_texts
from distilherbert.scenario import get_profile
from distilherbert.student import bert_config, random_model, truncate

SHAPES = {  # name: profile's fields, vocabulary, rows of a step, micro-batch
    'tiny': (dict(layers=2, hidden=32, heads=2, intermediate=64, max_len=32), 500, 8, 4),
    'mini': (dict(layers=4, hidden=128, heads=2, intermediate=512, max_len=128), 50_000, 16, 16),
    'base': (dict(layers=12, hidden=768, heads=12, intermediate=3072, max_len=512), 50_000, 4, 4),
}
REPORT = get_profile('paper')  # Its rows of a step are loaded on a GPU
TEXT_TOKENS = 130  # Of a random text on average: packed rows then hold 507 of 512 tokens, as the report's do


class FullRows(list):
    "Random rows, every place used; a text ends after every eighth of a row."
    def __init__(self, n, max_len, vocab, seed):
        g = np.random.default_rng(seed)
        rows = g.integers(5, vocab, (n, max_len)).astype(np.uint16)
        rows[:, 0], rows[:, max_len//8 - 1::max_len//8] = 0, 2
        super().__init__(rows)
        self.tokens, self.pad_id = n*max_len, 1


class PackedRows(list):
    "Random texts, packed."
    def __init__(self, n, max_len, vocab, ends, seed):
        g, mean = np.random.default_rng(seed), max(2, TEXT_TOKENS*max_len//512)
        texts = (g.integers(5, vocab, size).astype(np.uint16) for size in g.geometric(1/mean, 2*n*max_len//mean))
        super().__init__(pack_texts(texts, ends, max_len, min_piece=40*max_len//512)[:n])
        self.tokens, self.pad_id = sum(map(len, self)), 1


def make_data(n, max_len, vocab, packed=False):
    ends = np.random.default_rng(1).random(vocab) < 0.6
    return SimpleNamespace(train=PackedRows(n, max_len, vocab, ends, 0) if packed else FullRows(n, max_len, vocab, 0), heldout=FullRows(2, max_len, vocab, 1),
                           vocab_size=vocab, pad_id=1, mask_id=4, sep_id=2, special_ids=range(5), ends_word=ends, starts_word=np.zeros(vocab, bool))


def make_run(shape, objective, precision, folder, rows=0, micro_rows=0, attention='row', threads=2, zero=0, packed=False, compile=False):
    fields, vocab, batch, micro = SHAPES[shape]
    profile = replace(get_profile('demo'), **fields, dropout=0.0)
    data = make_data(4*(rows or batch), profile.max_len, vocab, packed)
    teacher = random_model(bert_config(profile, vocab, profile.layers), seed=0)
    settings = TrainSettings(tokens=10**6, objective=objective, learning_rate=1e-4, batch_rows=rows or batch, micro_rows=micro_rows or micro, max_len=profile.max_len,
                             mask_share=0.15, warmup_share=0.1, weight_decay=0.01, adam_beta2=0.98, clip=1.0, precision=precision, threads=threads, seed=0,
                             attention=attention, compile=compile)
    return Run(truncate(teacher), teacher, data, settings, Path(folder), zero)


def pick(logits, places, published):
    "The logits of some places; DistilBERT's code selects them one by one."
    return torch.masked_select(logits, places[:, None].expand_as(logits)).view(-1, logits.shape[-1]) if published else logits[places]


def baseline_step(run, optimizer, published=False):
    "DistilBERT's step: logits everywhere, selected afterwards, MLM on all of them with most labels ignored."
    s, o, acc = run.settings, run.objective, run.accelerator
    student, teacher = run.student.model, run.teacher.model
    index, epoch = run.stream.at(run.step)
    pieces, totals = micro_batches(run.rows.train, index, epoch, s.micro_rows, run.marks, run.rows.pad_id, s.max_len, s.mask_share, s.seed)
    whole = 0.0
    for piece in pieces:
        b = piece.to(acc.device)
        labels = torch.full(b.ids.shape, -100, device=acc.device).flatten()
        labels[b.masked] = b.labels
        with acc.autocast():
            mine = student(b.ids, attention_mask=b.attention, output_hidden_states=True)
            with torch.no_grad(): theirs = teacher(b.ids, attention_mask=b.attention, output_hidden_states=True)
            z, t = mine.logits.flatten(0, 1), theirs.logits.flatten(0, 1)
            places = labels != -100 if o.soft_targets_on == 'masked' else torch.zeros_like(labels, dtype=torch.bool).index_fill_(0, b.tokens, True)
            n = totals.masked if o.soft_targets_on == 'masked' else totals.tokens
            chosen, wanted = (pick(x, places, published)/o.temperature for x in (z, t))
            soft = F.kl_div(F.log_softmax(chosen, -1), F.softmax(wanted, -1), reduction='sum')*o.temperature**2/n
            mlm = F.cross_entropy(z, labels, ignore_index=-100, reduction='sum')/totals.masked
            h, g = (m.hidden_states[-1].flatten(0, 1)[b.tokens] for m in (mine, theirs))
            cos = F.cosine_embedding_loss(h, g, torch.ones(len(h), device=acc.device), reduction='sum')/totals.tokens
            loss = o.soft*soft + o.mlm*mlm + o.cosine*cos
        loss.backward()
        whole += loss.item()
    torch.nn.utils.clip_grad_norm_(student.parameters(), s.clip)
    optimizer.step()
    optimizer.zero_grad()
    run.step += 1
    return whole


def timed(action, device):
    if device == 'cuda': torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - start


def forget(device):
    "Give back what is no longer used."
    gc.collect()
    if device == 'cuda': torch.cuda.empty_cache()


def peak_gib(action, device):
    "Peak memory of the GPU while something runs; None on a processor."
    if device != 'cuda': return None
    torch.cuda.reset_peak_memory_stats()
    timed(action, device)
    return round(torch.cuda.max_memory_allocated()/2**30, 2)


def plain_adamw(run):
    "AdamW as torch gives it."
    return torch.optim.AdamW(run.student.model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01)


def ours(objective, **changes):
    "How to make our step: the action and its run."
    def make(shape, precision, folder, threads):
        run = make_run(shape, objective, precision, folder, threads=threads, **changes)
        return partial(train_step, run), run
    return make


def theirs(objective, published):
    "How to make a baseline's step: the action and its run."
    def make(shape, precision, folder, threads):
        run = make_run(shape, objective, precision, folder, threads=threads)
        if published:
            for model in (run.student.model, run.teacher.model): model.set_attn_implementation('eager')
        return partial(baseline_step, run, plain_adamw(run), published), run
    return make


OBJECTIVES = {'masked': 'distilbert', 'all': 'distilbert-all'}
CANDIDATES = {f'{name}, {on}': make for on, o in OBJECTIVES.items()
              for name, make in (('step', ours(o)), ('baseline', theirs(o, False)), ('as published', theirs(o, True)))} | {
    'step, masked, packed rows': ours('distilbert', packed=True), 'step, masked, compiled': ours('distilbert', compile=True),
    'step, masked, attention in texts': ours('distilbert', attention='text')}


def same_losses(actions):
    "The first step of each: a baseline that computes something else is refused."
    first = {name: action() for name, action in actions.items()}
    for on in OBJECTIVES:
        loss, others = first[f'step, {on}']['loss'], [first[f'{name}, {on}'] for name in ('baseline', 'as published')]
        if max(abs(loss - other) for other in others) > 0.01*loss: raise SystemExit(f'The baseline computes something else: its losses are {others}, ours {loss}.')


def loader(run, rows):
    "An action that loads and masks so many rows."
    s, step, data = run.settings, iter(range(10**9)), make_data(4*rows, run.settings.max_len, run.rows.vocab_size, packed=True)
    stream = Stream(s.seed, len(data.train), rows)
    return lambda: micro_batches(data.train, *stream.at(next(step)), s.micro_rows, run.marks, data.pad_id, s.max_len, s.mask_share, s.seed, own_sep(data, s))


def step_tokens(run):
    "Tokens of a step on average."
    return run.settings.batch_rows*run.rows.train.tokens/len(run.rows.train)


def compare(shape, precision, rounds, device, folder, threads, compile):
    "Medians over interleaved rounds, the first of which is thrown away."
    chosen = {name: make for name, make in CANDIDATES.items() if compile or 'compiled' not in name}
    made = {name: make(shape, precision, folder, threads) for name, make in chosen.items()}
    same_losses({name: action for name, (action, _) in made.items()})
    run, tokens = made['step, masked'][1], {name: step_tokens(r) for name, (_, r) in made.items()}
    loaded = REPORT.batch_rows if device == 'cuda' else run.settings.batch_rows
    actions = {name: action for name, (action, _) in made.items()} | {'loading and masking': loader(run, loaded)}
    seconds = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items(): seconds[name].append(timed(action, device))
    median = {k: statistics.median(v[1:]) for k, v in seconds.items()}
    s, per_row = run.settings, median['step, masked']/run.settings.batch_rows
    values = {'precision': precision, 'rows': s.batch_rows, 'row_length': s.max_len, 'vocabulary': run.rows.vocab_size, 'seconds': {k: round(v, 5) for k, v in median.items()},
              'spread': {k: [round(min(v[1:]), 5), round(max(v[1:]), 5)] for k, v in seconds.items()},
              'tokens_per_s': {k: round(n/median[k]) for k, n in tokens.items()},
              'packed_row_length': round(tokens['step, masked, packed rows']/s.batch_rows, 2),
              'times_published': {k: round(median[f'as published, {k}']/median[f'step, {k}'], 2) for k in OBJECTIVES},
              'times_baseline': {k: round(median[f'baseline, {k}']/median[f'step, {k}'], 2) for k in OBJECTIVES},
              'attention_in_texts_cost': round(median['step, masked, attention in texts']/median['step, masked'] - 1, 4),
              'loaded_rows': loaded, 'loading_share': round(median['loading and masking']/loaded/per_row, 5)}
    made = actions = run = None
    if device == 'cuda': values['peak_gib'] = {name: alone(make, shape, precision, 1, device, folder, threads)['peak_gib'] for name, make in chosen.items()}
    return values


def alone(make, shape, precision, rounds, device, folder, threads):
    "One candidate with nothing else in memory."
    forget(device)
    action, run = make(shape, precision, folder, threads)
    seconds = [timed(action, device) for _ in range(rounds + 1)][1:]
    median = statistics.median(seconds)
    return {'precision': precision, 'seconds': round(median, 5), 'tokens_per_s': round(step_tokens(run)/median), 'peak_gib': peak_gib(action, device)}


def python_masker(ids, marks, share, rng):
    "Whole-word masking as BERT's collators do it: for each row group tokens to words, shuffle the words, take them until the share is reached, then 80/10/10."
    out, special, ends = ids.copy(), marks.special.tolist(), marks.ends.tolist()
    for b, row in enumerate(ids.tolist()):
        words, open_word = [], False
        for i, t in enumerate(row):
            if special[t]: open_word = False
            elif open_word: words[-1].append(i)
            else: words.append([i])
            open_word = not special[t] and not ends[t]
        rng.shuffle(words)
        wanted, covered = max(1, round(share*len(row))), set()
        for word in words:
            if len(covered) >= wanted: break
            if len(covered) + len(word) <= wanted: covered.update(word)
        labels = [i in covered for i in range(len(row))]
        for i in np.flatnonzero(labels).tolist():
            fate = rng.random()
            if fate < 0.8: out[b, i] = marks.mask_id
            elif fate < 0.9: out[b, i] = rng.randrange(5, len(special))
    return out


def masking(rounds, rows=2100):
    "Time to mask a batch, ours and the Python one's."
    import random
    data = make_data(1, 512, 50_000)
    special = np.arange(50_000) < 5
    marks = Marks(special, data.ends_word, data.starts_word, 4)
    ids = np.random.default_rng(0).integers(5, 50_000, (rows, 512))
    ours, theirs = [], []
    for r in range(rounds + 1):
        ours.append(timed(partial(mask_rows, ids, np.arange(rows), np.full(rows, r), 0, 0.15, marks), 'cpu'))
        if r < 3: theirs.append(timed(lambda: python_masker(ids, marks, 0.15, random.Random(0)), 'cpu'))
    a, b = statistics.median(ours[1:]), statistics.median(theirs)
    return {'rows': rows, 'milliseconds': round(1000*a, 1), 'python_milliseconds': round(1000*b, 1), 'times_python': round(b/a, 1)}


def with_rows(shape, precision, folder, device, threads, rows, steps, **changes):
    "Pace and memory of packed rows, or as the changes say, with micro-batches of so many rows; None where memory runs out, which the loop answers with smaller ones."
    try:
        run = make_run(shape, 'distilbert', precision, folder, rows=rows, micro_rows=rows, threads=threads, **{'packed': True} | changes)
        seconds = []
        while run.micro_rows == rows and len(seconds) < steps: seconds.append(timed(partial(train_step, run), device))
        if run.micro_rows != rows: return None
        pace, most = step_tokens(run)/statistics.median(seconds[steps//3:]), peak_tokens(run)
        return {'tokens_per_s': round(pace), 'share_of_peak': round(pace/most, 4) if most else None, 'peak_gib': peak_gib(partial(train_step, run), device)}
    except (torch.OutOfMemoryError, OutOfMemory): return None


BEST = {'full rows': {'packed': False}, 'packed rows, compiled': {'compile': True}}


def largest(shape, precision, folder, device, threads, limit, compile, steps=8):
    "Double the micro-batch until memory runs out; tokens/s of each, and of full rows and a compiled step with the best."
    found, rows = {}, SHAPES[shape][3]
    while rows <= limit:
        got = with_rows(shape, precision, folder, device, threads, rows, steps)
        forget(device)
        print(f'micro-batch {rows}: {got or "out of memory"}', flush=True)
        if got is None: break
        found[rows] = got
        rows *= 2
    if not found: raise SystemExit(f'Memory runs out with {rows} rows of the shape {shape} already: take a smaller shape.')
    best = max(found, key=lambda r: found[r]['tokens_per_s'])
    return {'by_micro_batch': {str(k): v for k, v in found.items()}, 'largest_micro_batch': max(found), 'best_micro_batch': best,
            **{k: found[best][k] for k in ('tokens_per_s', 'share_of_peak')},
            'with_the_best': {name: with_rows(shape, precision, folder, device, threads, best, steps, **changes) for name, changes in BEST.items()
                              if compile or 'compile' not in changes}}


def show(shape, v):
    print(f'\n{shape}, {v["precision"]}, {v["rows"]} rows of {v["row_length"]} ({v["packed_row_length"]} packed), vocabulary {v["vocabulary"]:,}')
    for k, s in v['seconds'].items(): print(f'  {k:36}{1000*s:10.1f} ms{v["tokens_per_s"].get(k, 0) or "":>12}' + (' tokens/s' if k in v['tokens_per_s'] else ''))
    times = lambda key: f'masked {v[key]["masked"]}, all {v[key]["all"]}'
    print(f'  times the step as published: {times("times_published")}; times the stricter baseline: {times("times_baseline")}; loading and masking '
          f'{100*v["loading_share"]:.2f} % of a step (measured with {v["loaded_rows"]} rows); attention in texts costs {100*v["attention_in_texts_cost"]:.1f} %', flush=True)


def main():
    p = argparse.ArgumentParser(description='Time of a training step against a baseline.')
    p.add_argument('--where', choices=('cpu', 'cuda'), default='cpu')
    p.add_argument('--shapes', nargs='+', choices=SHAPES, help='default: mini and base on a processor, base on a GPU')
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--precision', choices=('fp32', 'bf16', 'fp16'), help='default: fp32 on a processor, bf16 on a GPU')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--compile', action='store_true', help='measure compiled steps on a processor, too')
    p.add_argument('--limit', type=int, default=1024, help='largest micro-batch that is tried on a GPU')
    p.add_argument('--no-record', action='store_true', help='only print')
    args = p.parse_args()
    if args.where == 'cuda' and not torch.cuda.is_available(): raise SystemExit('There is no GPU here: leave --where cuda away.')
    if args.where == 'cpu' and torch.cuda.is_available(): raise SystemExit('There is a GPU, and the loop would use it: set CUDA_VISIBLE_DEVICES= to time the processor.')
    args.compile |= args.where == 'cuda'
    if args.where == 'cuda': SHAPES['base'] = (*SHAPES['base'][:2], 32, 32)
    start, values = time.perf_counter(), {'threads': args.threads, 'torch': torch.__version__}
    with tempfile.TemporaryDirectory() as d:
        values['masking'] = masking(args.rounds)
        print('masking', values['masking'], flush=True)
        for shape in args.shapes or (('base',) if args.where == 'cuda' else ('mini', 'base')):
            precision = args.precision or ('bf16' if args.where == 'cuda' else 'fp32')
            values[shape] = compare(shape, precision, args.rounds, args.where, d, args.threads, args.compile) | {'made': provenance() | {'rounds': args.rounds}}
            show(shape, values[shape])
            forget(args.where)
            if args.where == 'cuda':
                values[shape]['fp16'] = alone(CANDIDATES['step, masked'], shape, 'fp16', args.rounds, args.where, d, args.threads)
                print('  fp16', values[shape]['fp16'], flush=True)
                values[shape]['largest'] = largest(shape, precision, d, args.where, args.threads, args.limit, args.compile)
                print('  with the best', values[shape]['largest']['with_the_best'], flush=True)
    if args.no_record: return
    known = read_records('bench').get('step', {}).get('values', {})
    where = torch.cuda.get_device_name(0) if args.where == 'cuda' else 'cpu'
    file = write_record('bench', 'step', known | {where: known.get(where, {}) | values}, units={'seconds': 's', 'peak_gib': 'GiB'}, n=args.rounds, seconds=round(time.perf_counter() - start, 1),
                        command=f'python bench/step.py --where {args.where}')
    print(f'written to {file} ({duration(time.perf_counter() - start)})')


if __name__ == '__main__': main()
