"""Time of a training step against a step as DistilBERT published it, in one process, medians of interleaved rounds.

    .venv/bin/python bench/step.py                              processor: thin and base (15 minutes on two cores)
    .venv/bin/python bench/step.py --where cuda                 one GPU: the shape real in bf16 (minutes)
    .venv/bin/python bench/step.py --shapes tiny --rounds 2     seconds, to see that it works

"as published" is the baseline to beat: the same models, objective, number type, sequences, masks and optimiser settings, run eagerly,
with logits for every position of both models, of which `masked_select` takes those at masked positions, as in DistilBERT's code; and with
soft targets at all positions. "baseline" has our attention (SDPA) and a selection by index, which that code had not. "step" is the loop
itself, loading and masking included, dropout off; its variants write the outputs of the teacher, or read them. Sequences are packed random
texts. Written to the record bench/step, by place.
"""
import argparse
import os
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from distilherbert.artefact import provenance
from distilherbert.distill import TrainSettings, open_run, train
from distilherbert.pack import pack_texts
from distilherbert.results import read_records, write_record
from distilherbert.scenario import PRESETS, PROFILES
from distilherbert.student import bert_config, random_model, truncate

SHAPES = {  # name: profile's fields, vocabulary, sequences of a step, micro-batch
    'tiny': (dict(layers=2, hidden=32, heads=2, intermediate=64, max_len=32), 500, 8, 4),
    'thin': (dict(layers=4, hidden=128, heads=2, intermediate=512, max_len=128), 50_000, 16, 16),
    'real': (dict(layers=12, hidden=384, heads=12, intermediate=1536, max_len=128), 32_000, 256, 256),
    'base': (dict(layers=12, hidden=768, heads=12, intermediate=3072, max_len=512), 50_000, 4, 4),
}
OBJECTIVES = {'masked': 'distilbert', 'all': 'distilbert-all'}


class Packed(list):
    "Random texts of 130 tokens on average for 512 positions, packed: nearly full, as the report's are."
    def __init__(self, n, max_len, vocab, ends, seed):
        g, mean = np.random.default_rng(seed), max(2, 130*max_len//512)
        texts = (g.integers(5, vocab, size).astype(np.uint16) for size in g.geometric(1/mean, 2*n*max_len//mean))
        super().__init__(pack_texts(texts, ends, max_len, min_piece=40*max_len//512)[:n])
        self.tokens, self.pad_id = sum(map(len, self)), 1

    def token_counts(self, vocab_size): return np.bincount(np.concatenate(self), minlength=vocab_size)


def make_run(shape, objective, precision, folder, rows=0, micro_rows=0, threads=2, zero=0, outputs=None, **changes):
    "A run on random models and texts, without evaluations."
    fields, vocab, batch, micro = SHAPES[shape]
    profile, n = replace(PROFILES['demo'], **fields, dropout=0.0), 4*(rows or batch)
    ends = np.random.default_rng(1).random(vocab) < 0.6
    train, heldout = (Packed(size, profile.max_len, vocab, ends, seed) for seed, size in enumerate((n, 2)))
    data = SimpleNamespace(train=train, heldout=heldout, vocab_size=vocab, mask_id=4, sep_id=2, special_ids=range(5), ends_word=ends,
                           starts_word=np.zeros(vocab, bool))
    teacher = random_model(bert_config(profile, vocab, profile.layers), seed=0)
    settings = TrainSettings(tokens=10**6, learning_rate=1e-4, batch_rows=rows or batch, micro_rows=micro_rows or micro, mask_share=0.15,
                             max_len=profile.max_len, warmup_share=0.1, weight_decay=0.01, adam_beta2=0.98, clip=1.0, precision=precision,
                             threads=threads, seed=0, objective=asdict(PRESETS[objective]), evaluations=0, **changes)
    run = open_run(truncate(teacher), teacher, data, settings, Path(folder), zero=zero, outputs=outputs)
    run.data = data
    return run


def ours(run, steps=1):
    "Some steps of the loop; the loss of the first."
    run.steps = run.step + steps
    train(run)
    return float(run.losses['loss'])


def theirs(run, published, steps=1):
    "The same as DistilBERT has them: logits everywhere, selected afterwards, MLM on all of them with most labels ignored."
    o, student, teacher = run.objective, run.student.model, run.teacher_model.model
    for _ in range(steps):
        batch = run.make_batch(run.step)
        run.losses, everywhere = {'loss': 0.0}, o.soft_targets_on == 'all'
        for micro in batch.parts:
            b = micro.to(run.device)
            labels = torch.full((b.ids.numel(),), -100, device=run.device).index_copy_(0, b.positions, b.labels)
            tokens = b.attention.flatten() if b.attention is not None else torch.ones_like(labels, dtype=torch.bool)
            with run.accelerator.autocast():
                mine = student(b.ids, attention_mask=b.attention, output_hidden_states=True)
                with torch.no_grad(): guide = teacher(b.ids, attention_mask=b.attention, output_hidden_states=True)
                z, t, chosen = mine.logits.flatten(0, 1), guide.logits.flatten(0, 1), tokens if everywhere else labels != -100
                picked = (x.masked_select(chosen[:, None].expand_as(x)).view(-1, x.shape[-1]) if published else x[chosen] for x in (z, t))
                s, t = (x/o.temperature for x in picked)
                n = batch.totals.tokens if everywhere else batch.totals.masked
                soft = F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction='sum')*o.temperature**2/n
                mlm = F.cross_entropy(z, labels, ignore_index=-100, reduction='sum')/batch.totals.masked
                h, g = (m.hidden_states[-1].flatten(0, 1)[tokens] for m in (mine, guide))
                cos = F.cosine_embedding_loss(h, g, torch.ones(len(h), device=run.device), reduction='sum')/batch.totals.tokens
                loss = o.weights['soft']*soft + o.weights['mlm']*mlm + o.weights['cosine']*cos
            loss.backward()
            run.losses['loss'] += loss.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), run.settings.clip)
        run.plain.step()
        run.plain.zero_grad()
        run.step += 1
    return run.losses['loss']


def candidates(shape, precision, folder, threads):
    "Runs and their actions by name."
    made = {}
    for on, objective in OBJECTIVES.items():
        made[f'step, {on}'] = ours, make_run(shape, objective, precision, folder, threads=threads)
        for name, published in (('baseline', False), ('as published', True)):
            run = make_run(shape, objective, precision, folder, threads=threads)
            run.plain = torch.optim.AdamW(run.student.model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01)
            for model in (run.student.model, run.teacher_model.model) if published else (): model.set_attn_implementation('eager')
            made[f'{name}, {on}'] = partial(theirs, published=published), run
    for kept in ('written', 'read'):  # In turn, the same steps
        made[f'step, outputs {kept}'] = ours, make_run(shape, 'distilbert', precision, folder, threads=threads,
                                                       outputs=Path(folder)/'outputs')
    made['step, documents'] = ours, make_run(shape, 'distilbert', precision, folder, threads=threads, attention='text')
    return made


def timed(action, device):
    if device == 'cuda': torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - start


def step_tokens(run): return run.settings.batch_rows*run.data.train.tokens/len(run.data.train)


def compare(shape, precision, rounds, device, folder, threads):
    "Medians over interleaved rounds; a baseline whose first loss is another one is refused."
    steps = 5 if device == 'cuda' else 1
    with ExitStack() as stack:
        made = candidates(shape, precision, folder, threads)
        for _, run in made.values(): stack.enter_context(run)
        first = {name: action(run) for name, (action, run) in made.items()}
        for name, loss in first.items():
            wanted = first['step, all' if name.endswith('all') else 'step, masked']
            if name != 'step, documents' and abs(loss - wanted) > 0.01*wanted:
                raise SystemExit(f'{name} computes something else: {loss}, not {wanted}.')
        seconds = {name: [] for name in made}
        for _ in range(rounds):
            for name, (action, run) in made.items(): seconds[name].append(timed(partial(action, run, steps=steps), device)/steps)
        run, median = made['step, masked'][1], {k: statistics.median(v) for k, v in seconds.items()}
        load = [timed(lambda: run.make_batch(random.randrange(10**6)), 'cpu') for _ in range(rounds)]
    def times(name): return {on: round(median[f'{name}, {on}']/median[f'step, {on}'], 2) for on in OBJECTIVES}
    return {'precision': precision, 'sequences': run.settings.batch_rows, 'length': run.settings.max_len, 'vocabulary': run.data.vocab_size,
            'seconds': {k: round(v, 5) for k, v in median.items()},
            'spread': {k: [round(min(v), 5), round(max(v), 5)] for k, v in seconds.items()},
            'tokens_per_s': {k: round(step_tokens(run)/v) for k, v in median.items()},
            'times_published': times('as published'), 'times_baseline': times('baseline'),
            'read_share': round(median['step, outputs read']/median['step, masked'], 3),
            'loading_share': round(statistics.median(load)/median['step, masked'], 5)}


def main():
    p = argparse.ArgumentParser(description='Time of a training step against a baseline.')
    p.add_argument('--where', choices=('cpu', 'cuda'), default='cpu')
    p.add_argument('--shapes', nargs='+', choices=SHAPES, help='default: thin and base on a processor, real on a GPU')
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--precision', choices=('fp32', 'bf16', 'fp16'), help='default: fp32 on a processor, bf16 on a GPU')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--no-record', action='store_true', help='only print')
    a = p.parse_args()
    if (a.where == 'cuda') != torch.cuda.is_available():
        raise SystemExit('The loop uses a GPU where there is one: hide it with CUDA_VISIBLE_DEVICES=, or choose --where cuda.')
    start, values = time.perf_counter(), {'threads': a.threads}
    for shape in a.shapes or (('real',) if a.where == 'cuda' else ('thin', 'base')):
        precision = a.precision or ('bf16' if a.where == 'cuda' else 'fp32')
        with tempfile.TemporaryDirectory() as d:
            v = values[shape] = compare(shape, precision, a.rounds, a.where, d, a.threads) | {'made': provenance()}
            print(f'\n{shape}, {precision}, {v["sequences"]} sequences of {v["length"]}, vocabulary {v["vocabulary"]:,}')
            for k, s in v['seconds'].items(): print(f'  {k:24}{1000*s:10.1f} ms{v["tokens_per_s"][k]:>12,} tokens/s')
            for k in ('times_published', 'times_baseline', 'read_share', 'loading_share'): print(f'  {k}: {v[k]}')
    if a.no_record: return
    known, where = read_records('bench').get('step', {}).get('values', {}), torch.cuda.get_device_name(0) if a.where == 'cuda' else 'cpu'
    values = known | {where: known.get(where, {}) | values}
    print(write_record('bench', 'step', values, units={'seconds': 's'}, n=a.rounds,
                       seconds=round(time.perf_counter() - start, 1), command=f'python bench/step.py --where {a.where}'))


if __name__ == '__main__': main()
