"""Time of a training step against a DistilBERT-style baseline, in one process run, medians of interleaved rounds.

    .venv/bin/python bench/step.py                              processor: the shapes mini and base, masking, loading (about 10 minutes on two cores)
    .venv/bin/python bench/step.py --where cuda                 one GPU: base in bf16, the largest micro-batch, peak memory (under 8 minutes)
    .venv/bin/python bench/step.py --shapes tiny --rounds 2     seconds, to see that it works

The baseline is written below: the same models, objective, number type, rows, masks and optimiser settings, run eagerly, with logits for every position of both
models of which the masked ones are then selected; and, separately, with soft targets on all positions. Its attention is ours (SDPA), which is more than DistilBERT's
code had; "as published" is the same step with eager attention and logits selected by `masked_select`, as in that code. Both take MLM over all logits, with the label
-100 where nothing is masked, as it did. "step" is the loop's own `train_step`, loading and masking included, dropout off. The number type is the faster one for both
sides: float32 on a processor (a product in bfloat16 takes longer there where AMX is missing), bf16 on a GPU. Rows are full and random: only their shape matters.
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

from distilherbert.artefact import duration, read_records, write_record
from distilherbert.distill import Run, TrainSettings, micro_batches, own_sep, train_step
from distilherbert.objective import Marks, mask_rows
from distilherbert.scenario import get_profile
from distilherbert.student import bert_config, random_model, truncate

SHAPES = {  # name: profile's fields, vocabulary, rows of a step, micro-batch
    'tiny': (dict(layers=2, hidden=32, heads=2, intermediate=64, max_len=32), 500, 8, 4),
    'mini': (dict(layers=4, hidden=128, heads=2, intermediate=512, max_len=128), 50_000, 16, 16),
    'base': (dict(layers=12, hidden=768, heads=12, intermediate=3072, max_len=512), 50_000, 4, 4),
}
FLOPS_PER_TOKEN, PEAK = 519e6, 989e12  # base: teacher forward, student forward and backward; one H100 or H200 in bf16
S4_TOKENS = 2*1913e6  # The report's S4


class FullRows(list):
    "Random rows, every place used; a text ends after every eighth of a row."
    def __init__(self, n, max_len, vocab, seed):
        g = np.random.default_rng(seed)
        rows = g.integers(5, vocab, (n, max_len)).astype(np.uint16)
        rows[:, 0], rows[:, max_len//8 - 1::max_len//8] = 0, 2
        super().__init__(rows)
        self.tokens, self.pad_id = n*max_len, 1


def make_data(n, max_len, vocab):
    ends = np.random.default_rng(1).random(vocab) < 0.6
    return SimpleNamespace(train=FullRows(n, max_len, vocab, 0), heldout=FullRows(2, max_len, vocab, 1), vocab_size=vocab, pad_id=1, mask_id=4, sep_id=2,
                           special_ids=range(5), ends_word=ends, starts_word=np.zeros(vocab, bool))


def make_run(shape, objective, precision, folder, rows=0, micro_rows=0, attention='row', threads=2, zero=0):
    fields, vocab, batch, micro = SHAPES[shape]
    profile = replace(get_profile('demo'), **fields, dropout=0.0)
    data = make_data(4*(rows or batch), profile.max_len, vocab)
    teacher = random_model(bert_config(profile, vocab, profile.layers), seed=0)
    settings = TrainSettings(tokens=10**6, objective=objective, learning_rate=1e-4, batch_rows=rows or batch, micro_rows=micro_rows or micro, max_len=profile.max_len,
                             mask_share=0.15, warmup_share=0.1, weight_decay=0.01, adam_beta2=0.98, clip=1.0, precision=precision, threads=threads, seed=0,
                             attention=attention)
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


def peak(action):
    "Peak memory of the GPU while something runs [GiB]."
    torch.cuda.reset_peak_memory_stats()
    timed(action, 'cuda')
    return round(torch.cuda.max_memory_allocated()/2**30, 2)


def plain_adamw(run):
    "AdamW as torch gives it."
    return torch.optim.AdamW(run.student.model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01)


def candidates(shape, precision, folder, threads):
    "What is compared: for each name an action that makes one step."
    actions = {}
    for name, objective in (('masked', 'distilbert'), ('all', 'distilbert-all')):
        mine, theirs, published = (make_run(shape, objective, precision, folder, threads=threads) for _ in range(3))
        actions[f'step, {name}'] = partial(train_step, mine)
        actions[f'baseline, {name}'] = partial(baseline_step, theirs, plain_adamw(theirs))
        for model in (published.student.model, published.teacher.model): model.set_attn_implementation('eager')
        actions[f'as published, {name}'] = partial(baseline_step, published, plain_adamw(published), published=True)
        loss, *others = actions[f'step, {name}']()['loss'], actions[f'baseline, {name}'](), actions[f'as published, {name}']()
        if max(abs(loss - other) for other in others) > 0.01*loss: raise SystemExit(f'The baseline computes something else: its losses are {others}, ours {loss}.')
    alone = make_run(shape, 'distilbert', precision, folder, attention='text', threads=threads)
    actions['step, masked, attention in texts'] = partial(train_step, alone)
    return actions, mine


def compare(shape, precision, rounds, device, folder, threads):
    "Medians over interleaved rounds, the first of which is thrown away."
    actions, run = candidates(shape, precision, folder, threads)
    seconds = {name: [] for name in (*actions, 'loading and masking')}
    s = run.settings
    def load():
        index, epoch = run.stream.at(run.step)
        micro_batches(run.rows.train, index, epoch, s.micro_rows, run.marks, run.rows.pad_id, s.max_len, s.mask_share, s.seed, own_sep(run.rows, s))
    for _ in range(rounds + 1):
        for name, action in (*actions.items(), ('loading and masking', load)): seconds[name].append(timed(action, device))
    median = {k: statistics.median(v[1:]) for k, v in seconds.items()}
    tokens = s.batch_rows*s.max_len
    values = {'precision': precision, 'rows': s.batch_rows, 'row_length': s.max_len, 'vocabulary': run.rows.vocab_size, 'seconds': {k: round(v, 5) for k, v in median.items()},
              'spread': {k: [round(min(v[1:]), 5), round(max(v[1:]), 5)] for k, v in seconds.items()},
              'tokens_per_s': {k: round(tokens/v) for k, v in median.items() if k != 'loading and masking'},
              'times_baseline': {k: round(median[f'baseline, {k}']/median[f'step, {k}'], 2) for k in ('masked', 'all')},
              'times_published': {k: round(median[f'as published, {k}']/median[f'step, {k}'], 2) for k in ('masked', 'all')},
              'attention_in_texts_cost': round(median['step, masked, attention in texts']/median['step, masked'] - 1, 4),
              'loading_share': round(median['loading and masking']/median['step, masked'], 5)}
    if device == 'cuda': values['peak_gib'] = {name: peak(action) for name, action in actions.items()}
    return values


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


def largest(shape, precision, folder, device, limit):
    "Double the micro-batch until memory runs out; tokens/s of each."
    found = {}
    rows = SHAPES[shape][3]
    while rows <= limit:
        try:
            run = make_run(shape, 'distilbert', precision, folder, rows=rows, micro_rows=rows)
            action = partial(train_step, run)
            times = [timed(action, device) for _ in range(8)][3:]
            found[rows] = {'tokens_per_s': round(rows*run.settings.max_len/statistics.median(times)), 'peak_gib': peak(action)}
            print(f'micro-batch {rows}: {found[rows]}', flush=True)
        except torch.cuda.OutOfMemoryError:
            print(f'micro-batch {rows}: out of memory', flush=True)
            break
        finally:
            run = action = None
            gc.collect()
            torch.cuda.empty_cache()
        rows *= 2
    best = max(found, key=lambda r: found[r]['tokens_per_s'])
    speed = found[best]['tokens_per_s']
    return {'by_micro_batch': {str(k): v for k, v in found.items()}, 'largest_micro_batch': max(found), 'best_micro_batch': best, 'tokens_per_s': speed,
            'share_of_peak': round(speed*FLOPS_PER_TOKEN/PEAK, 4), 'hours_of_the_reports_S4': round(S4_TOKENS/speed/3600, 2)}


def show(shape, v):
    print(f'\n{shape}, {v["precision"]}, {v["rows"]} rows of {v["row_length"]}, vocabulary {v["vocabulary"]:,}')
    for k, s in v['seconds'].items(): print(f'  {k:36}{1000*s:10.1f} ms{v["tokens_per_s"].get(k, 0) or "":>12}' + (' tokens/s' if k in v['tokens_per_s'] else ''))
    print(f'  times the baseline: masked {v["times_baseline"]["masked"]}, all {v["times_baseline"]["all"]}; the step as published: {v["times_published"]["masked"]}, '
          f'{v["times_published"]["all"]}; loading and masking {100*v["loading_share"]:.2f} % of a step; '
          f'attention in texts costs {100*v["attention_in_texts_cost"]:.1f} %', flush=True)


def main():
    p = argparse.ArgumentParser(description='Time of a training step against a baseline.')
    p.add_argument('--where', choices=('cpu', 'cuda'), default='cpu')
    p.add_argument('--shapes', nargs='+', choices=SHAPES, help='default: mini and base on a processor, base on a GPU')
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--precision', choices=('fp32', 'bf16', 'fp16'), help='default: fp32 on a processor, bf16 on a GPU')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--limit', type=int, default=1024, help='largest micro-batch that is tried on a GPU')
    p.add_argument('--no-record', action='store_true', help='only print')
    args = p.parse_args()
    if args.where == 'cuda' and not torch.cuda.is_available(): raise SystemExit('There is no GPU here: leave --where cuda away.')
    if args.where == 'cpu' and torch.cuda.is_available(): raise SystemExit('There is a GPU, and the loop would use it: set CUDA_VISIBLE_DEVICES= to time the processor.')
    if args.where == 'cuda': SHAPES['base'] = (*SHAPES['base'][:2], 32, 32)
    start, values = time.perf_counter(), {'threads': args.threads, 'torch': torch.__version__}
    with tempfile.TemporaryDirectory() as d:
        values['masking'] = masking(args.rounds)
        print('masking', values['masking'], flush=True)
        for shape in args.shapes or (('base',) if args.where == 'cuda' else ('mini', 'base')):
            precision = args.precision or ('bf16' if args.where == 'cuda' else 'fp32')
            values[shape] = compare(shape, precision, args.rounds, args.where, d, args.threads)
            show(shape, values[shape])
            gc.collect()
        if args.where == 'cuda': values['largest'] = largest('base', args.precision or 'bf16', d, 'cuda', args.limit)
    if args.no_record: return
    known = read_records('bench').get('step', {}).get('values', {})
    where = torch.cuda.get_device_name(0) if args.where == 'cuda' else 'cpu'
    file = write_record('bench', 'step', known | {where: known.get(where, {}) | values}, units={'seconds': 's', 'peak_gib': 'GiB'}, n=args.rounds, seconds=round(time.perf_counter() - start, 1),
                        command=f'python bench/step.py --where {args.where}')
    print(f'written to {file} ({duration(time.perf_counter() - start)})')


if __name__ == '__main__': main()
