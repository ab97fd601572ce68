"""Speed and memory of the way from text to rows, into results/bench/data.json.

    DISTILHERBERT_DATA=... .venv/bin/python bench/data.py            all parts but spark (about 20 minutes on two cores)
    .venv/bin/python bench/data.py --only growth spark --spark 1 4 16   some parts; the others stay in the record
    .venv/bin/python bench/data.py --small                           the embedded world, a smoke run that writes nothing

Every stage is measured beside its baseline in the same process run, medians of three; memory and growth in a process for each size.
Run it on a machine that does nothing else: a part that had to share the cores says so, here and in the record.
"""
import argparse
import bisect
import itertools
import json
import lzma
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

from bs4 import BeautifulSoup

from distilherbert import clean, pack
from distilherbert.artefact import provenance, read_manifest, read_records, write_record
from distilherbert.clean import BLOCK, Block, Seen, clean_block, cut_blocks, digests_of, read_texts, text_artefact
from distilherbert.pack import Packer, load_tokenizer, open_tokenizer, plain_backend, rows_artefact, tokenizer_artefact
from distilherbert.scenario import data_dir, get_profile
from distilherbert.world import world_documents

TOP = Path(__file__).resolve().parents[1]
FILES = ('web-news-pl', 'statutes-pl', 'books-pl')
TIMES, SIZES = 3, (1, 4, 16)
URL = re.compile(r'https?://\S+|www\.\S+')
CORES = len(os.sched_getaffinity(0))


# Baselines, written as plainly as the released code

def released_clean(line):
    "BeautifulSoup, addresses, white space, length, share of symbols counted one by one."
    text = ' '.join(URL.sub(' ', BeautifulSoup(line, 'html.parser').get_text()).split())
    symbols = sum(not (c.isalnum() or c in ' ,.') for c in text)
    return text if len(text) >= 15 and 10*symbols <= len(text) else None


def set_of_strings(texts):
    "Deduplication by a set of strings."
    seen, kept = set(), []
    for t in texts:
        if t not in seen:
            seen.add(t)
            kept.append(t)
    return kept


def best_fit(lengths, max_len):
    """Rows that best-fit-decreasing needs: texts longer than a row are split into whole rows and a rest, then each piece, the longest first, goes where
    least is left. No token is lost. (TRL's `bfd` cuts off what is longer than a row, or splits it as here, depending on its version.)"""
    pieces = sorted((p for n in lengths for p in [*[max_len - 1]*(n//(max_len - 1)), n % (max_len - 1)] if p), reverse=True)
    room, rows = [], 0  # Free places of the open rows, rising
    for p in pieces:
        need = min(p + 1, max_len - 1)
        at = bisect.bisect_left(room, need)
        if at == len(room):
            rows += 1
            left = max_len - 1 - need
        else: left = room.pop(at) - need
        if left: bisect.insort(room, left)
    return rows


# Measuring

def timed(work):
    "Seconds of each of `TIMES` runs, and what the last one returned."
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return [round(s, 6) for s in seconds], result


def stage(name, bytes_, lines, baseline, ours, share):
    "A line of the table; `share` says whether the target is a share of the baseline's speed or a multiple of it."
    base, mine = statistics.median(baseline), statistics.median(ours)
    row = {'baseline_seconds': baseline, 'seconds': ours, 'ratio': round(base/mine, 3), 'MB_per_s': round(bytes_/1e6/mine, 2),
           'baseline_MB_per_s': round(bytes_/1e6/base, 2), 'lines_per_s': round(lines/mine), 'baseline_lines_per_s': round(lines/base)}
    print(f'{name:34} {row["MB_per_s"]:8.1f} MB/s {row["lines_per_s"]:10,} lines/s   '
          f'{"%.1f %% of" % (100*row["ratio"]) if share else "%.1f times" % row["ratio"]} the baseline', flush=True)
    return row


def corpus(folder, small):
    "The three sources as plain files; the embedded world in a smoke run."
    folder.mkdir()
    if small:
        text = '\n\n'.join('\n'.join(d) for d in world_documents('ccsub', 300, 5)) + '\n'
        (folder/'world.txt').write_text(text, 'utf-8')
    else:
        for name in FILES: (folder/f'{name}.txt').write_bytes(lzma.decompress((data_dir('text')/f'{name}.txt.xz').read_bytes()))
    return sorted(folder.glob('*.txt'))


def bench_clean(files):
    "One core: every line through BeautifulSoup, against blocks through `clean_block`."
    texts = [f.read_text('utf-8') for f in files]
    blocks = [Block(b.decode()) for t in texts for b in cut_blocks([t.encode()], BLOCK)]
    lines = [line for t in texts for line in t.split('\n') if line]
    warnings.simplefilter('ignore') # BeautifulSoup warns of lines that look like addresses
    base, _ = timed(lambda: sum(released_clean(line) is not None for line in lines))
    ours, done = timed(lambda: [clean_block(b, 0.0) for b in blocks])
    row = stage('clean, one core', sum(len(t.encode()) for t in texts), len(lines), base, ours, False)
    return row, [t for d in done for t in d.texts]


def bench_deduplicate(texts):
    "One core: a set of strings, against batches of digests."
    strings, size = [t.decode() for t in texts], sum(map(len, texts))
    base, kept = timed(lambda: set_of_strings(strings))
    def ours():
        seen, kept = Seen(), []
        for i in range(0, len(texts), 8192):
            some = texts[i:i + 8192]
            kept += [t for t, new in zip(some, seen.add(digests_of(some)), strict=True) if new]
        return seen, kept
    mine, (seen, same) = timed(ours)
    if [t.encode() for t in kept] != same: raise SystemExit('The two ways of deduplication disagree.')
    row = stage('deduplicate, one core', size, len(texts), base, mine, True)
    held = sys.getsizeof(set(kept)) + sum(map(sys.getsizeof, kept))
    return row | {'unique_lines': len(kept), 'bytes_a_line': round(seen.table.nbytes/seen.used, 1), 'baseline_bytes_a_line': round(held/len(kept), 1),
                  **bytes_a_key(100_000 if len(texts) < 100_000 else 4_000_000)}


def bytes_a_key(n):
    "The most that the table holds, and that it takes while it grows, for each of its keys; measured on `n` invented ones, from half of them on."
    seen, held, peak = Seen(), [], []
    tracemalloc.start()
    for i in range(0, n, 8192):
        keys = digests_of(str(j).encode() for j in range(i, i + 8192))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0] - seen.table.nbytes
        seen.add(keys)
        if 2*seen.used > n:
            held.append(seen.table.nbytes/seen.used)
            peak.append((tracemalloc.get_traced_memory()[1] - before)/seen.used)
    tracemalloc.stop()
    return {'held_bytes_a_key': round(max(held), 1), 'peak_bytes_a_key': round(max(peak), 1), 'keys': n}


RUNS = itertools.count()


def fresh_runs(folder):
    "Artefacts are made anew from here on."
    os.environ['DISTILHERBERT_RUNS'] = str(folder/f'runs{next(RUNS)}')


def bench_pack(profile, folder):
    "All cores: the tokenizer alone, against packing from text on disk to rows on disk, and against everything from the text file on, as users run it."
    def prepared():
        fresh_runs(folder)
        text_artefact(profile).build()
        tokenizer_artefact(profile).build()
    prepared()
    texts = list(read_texts(text_artefact(profile).path, 'ccsub'))
    backend = plain_backend(load_tokenizer(tokenizer_artefact(profile).path))
    size, tokens = sum(len(t.encode()) + 1 for t in texts), 0
    alone, packed, whole = [], [], []
    for _ in range(TIMES):  # Taken in turns, so that a machine that slows down slows all alike
        start = time.perf_counter()
        tokens = sum(map(len, backend.encode_batch_fast(texts, add_special_tokens=False)))
        alone.append(round(time.perf_counter() - start, 3))
        prepared()
        start = time.perf_counter()
        rows_artefact(profile).build()
        packed.append(round(time.perf_counter() - start, 3))
        fresh_runs(folder)
        start = time.perf_counter()
        rows_artefact(profile).build()
        whole.append(round(time.perf_counter() - start, 3))
    print(f'the tokenizer alone: {tokens/statistics.median(alone)/1e6:.2f}M tokens/s on {CORES} cores')
    counts = read_manifest(rows_artefact(profile).path)['counts']
    return {'pack': stage('tokenise and pack, all cores', size, len(texts), alone, packed, True) | {'tokens': tokens, 'rows': counts['rows']},
            'whole': stage('whole pipeline, all cores', size, len(texts), alone, whole, True)}


def bench_workers(files, profile, folder, sizes):
    "Cleaning and packing with one process and with one for each core: from what size on do workers pay?"
    found = []
    for times in sizes:
        text = folder/f'w{times}'
        grown(files, text, times)
        p, seconds = replace(profile, text=str(text)), {}
        for workers in (1, max(2, CORES)):
            fresh_runs(folder)
            tokenizer_artefact(p).build()
            start = time.perf_counter()
            text_artefact(p, workers).build()
            middle = time.perf_counter()
            rows_artefact(p, workers=workers).build()
            seconds[str(workers)] = {'clean': round(middle - start, 2), 'pack': round(time.perf_counter() - middle, 2)}
        found.append({'bytes': sum(f.stat().st_size for f in text.iterdir()), 'seconds': seconds})
        print(f'{found[-1]["bytes"]/1e6:.0f} MB, seconds by number of workers: {seconds}', flush=True)
    return found


# Where the time goes

class Clock:
    "Adds up the seconds spent in some functions, none of which calls another one of them."
    def __init__(self): self.seconds, self.undo = {}, []

    def watch(self, owner, name, label):
        "Count calls of a function; of a generator, the time in which it makes its next item."
        real = getattr(owner, name)
        def added(start): self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - start
        def call(*args, **options):
            start = time.perf_counter()
            try: result = real(*args, **options)
            finally: added(start)
            return items(result) if hasattr(result, '__next__') else result
        def items(made):
            while True:
                start = time.perf_counter()
                try: item = next(made)
                except StopIteration: return
                finally: added(start)
                yield item
        self.undo.append((owner, name, real))
        setattr(owner, name, call)

    def shares(self, work, rest):
        "Run something; seconds of each label, and of the rest."
        start = time.perf_counter()
        work()
        whole = time.perf_counter() - start
        for owner, name, real in self.undo: setattr(owner, name, real)
        return {label: round(t, 3) for label, t in (self.seconds | {rest: whole - sum(self.seconds.values())}).items()}


def bench_profile(profile, folder):
    "Seconds of each step of both stages, in one process, as users run it."
    fresh_runs(folder)
    tokenizer_artefact(profile).build()
    cleaning = Clock()
    for owner, name, label in ((clean, 'file_blocks', 'read and decode'), (clean, 'quick_look', 'quick looks at many lines'), (clean, 'settle_lines', 'plain markup'),
                               (clean, 'clean_and_tell', 'line by line'), (clean, 'digests_of', 'keys'), (Seen, 'add', 'deduplicate'), (clean, 'put_whole', 'write')):
        cleaning.watch(owner, name, label)
    found = {'clean': cleaning.shares(text_artefact(profile).build, 'the rest: documents, lines, counts')}
    packing = Clock()
    for owner, name, label in ((pack, 'encode_ahead', 'wait for the tokenizer'), (Packer, 'add', 'pack'), (pack.RowWriter, 'add', 'lay out rows'), (pack.RowWriter, 'write', 'write')):
        packing.watch(owner, name, label)
    found['pack'] = packing.shares(rows_artefact(profile).build, 'the rest: ids to numbers, counts')
    for what, steps in found.items():
        print(what, *(f'{label} {100*t/sum(steps.values()):.0f} %' for label, t in steps.items()), sep='; ', flush=True)
    return found


# Packing, source by source

def packing_facts(files, profile, tokenizer):
    "What packing makes of each source, and what best-fit packing would save."
    _, ends, starts = open_tokenizer(str(tokenizer))
    backend, facts = plain_backend(load_tokenizer(tokenizer)), {}
    for file in files:
        blocks = (Block(b.decode()) for b in cut_blocks([file.read_bytes()], BLOCK))
        seen, texts = Seen(), []
        for done in (clean_block(b, 0.0) for b in blocks):
            texts += [t.decode() for t, new in zip(done.texts, seen.add(digests_of(done.texts)), strict=True) if new]
        ids = [e.ids for i in range(0, len(texts), 8192) for e in backend.encode_batch_fast(texts[i:i + 8192], add_special_tokens=False)]
        packer = Packer(ends, profile.max_len, profile.min_piece, starts=starts)
        for text in ids: packer.add(text)
        packer.close()
        lengths, n = [len(text) for text in ids], len(packer.rows)
        places, bfd = sum(map(len, packer.rows)), best_fit(lengths, profile.max_len)
        facts[file.name.removesuffix('.txt')] = {
            'texts': packer.texts, 'text_tokens': sum(lengths), 'rows': n, 'mean_length': round(places/n, 2), 'max_len': profile.max_len,
            'share_used': round(places/n/profile.max_len, 5), 'dropped_tokens': packer.dropped_tokens, 'split_texts': packer.split_texts,
            'bfd_rows': bfd, 'bfd_dropped_tokens': 0, 'bfd_saves': round(1 - bfd/n, 5), 'bfd_split_texts': sum(k >= profile.max_len for k in lengths)}
        print(f'{file.name:18} {n:8,} rows of {places/n:.2f} tokens, {packer.split_texts:,} texts cut, {packer.dropped_tokens:,} tokens dropped; '
              f'best fit: {bfd:,} rows ({100*(1 - bfd/n):+.2f} %)', flush=True)
    return facts


# Memory and growth

def grown(files, folder, times):
    "The corpus several times, with an edit in every line of a copy, so that no copy is a duplicate of another."
    folder.mkdir()
    for copy in range(times):
        for f in files:
            with open(f, encoding='utf-8') as lines, open(folder/f'{copy:02d}-{f.name}', 'w', encoding='utf-8') as to:
                to.writelines(line if not line.strip() or not copy else f'{line.rstrip()} wydanie {copy}\n' for line in lines)


class Weighed(Seen):
    "Says how large its table became."
    most = 0

    def add(self, digests):
        new = super().add(digests)
        Weighed.most = max(Weighed.most, self.table.nbytes)
        return new


def peak_since_asked():
    "Peak memory since the last call [MB]."
    status = Path('/proc/self/status').read_text()
    Path('/proc/self/clear_refs').write_text('5')
    return round(int(re.search(r'VmHWM:\s+(\d+)', status)[1])/1024)


def measure_growth(text, tokenizer):
    "Run in a process of its own: clean and pack one folder, and say what it took."
    p, clean.Seen = replace(get_profile('base'), text=text, old_share=0.0, tokenizer=tokenizer), Weighed
    start = time.perf_counter()
    cleaned = text_artefact(p).build()
    middle, clean_peak = time.perf_counter(), peak_since_asked()
    rows_artefact(p).build()
    pack_peak, kept = peak_since_asked(), read_manifest(cleaned)['counts']['parts']['ccsub']['kept']
    print(json.dumps({'unique_lines': kept, 'clean_seconds': round(middle - start, 2), 'pack_seconds': round(time.perf_counter() - middle, 2),
                      'clean_peak_MB': clean_peak, 'pack_peak_MB': pack_peak, 'peak_MB': max(clean_peak, pack_peak), 'hashes_MB': round(Weighed.most/2**20),
                      'bytes': sum(f.stat().st_size for f in Path(text).iterdir())}))


def bench_growth(files, folder, tokenizer, sizes):
    "Peak memory and time at each size."
    found = []
    for times in sizes:
        grown(files, folder/f'x{times}', times)
        env = os.environ | {'DISTILHERBERT_RUNS': str(folder/f'runs-x{times}')}
        done = subprocess.run([sys.executable, __file__, '--growth', str(folder/f'x{times}'), str(tokenizer)], env=env, capture_output=True, text=True)
        if done.returncode: raise SystemExit(done.stderr)
        found.append({'times': times, **json.loads(done.stdout.splitlines()[-1])})
        print(f'{times:3} times: {found[-1]["peak_MB"]:,} MB at most, of which {found[-1]["hashes_MB"]:,} are hashes, {found[-1]["clean_seconds"]} s to clean, {found[-1]["pack_seconds"]} s to pack', flush=True)
    return found


# A cluster

def bench_spark(files, profile, folder, sizes):
    "The same text to texts and rows, in one process as users run it and on Spark with as many cores."
    from distilherbert.spark import open_session, spark_artefacts
    start = time.perf_counter()
    session = open_session(f'local[{CORES}]', {'spark.ui.enabled': 'false', 'spark.driver.memory': '4g'})
    opened, found = time.perf_counter() - start, []
    for n in sizes:
        grown(files, folder/f's{n}', n)
        p = replace(profile, text=str(folder/f's{n}'))
        os.environ['DISTILHERBERT_RUNS'] = str(folder/f'runs-spark{n}')
        tokenizer_artefact(p).build()
        start = time.perf_counter()
        rows_artefact(p).build()
        middle = time.perf_counter()
        spark_artefacts(p, sorted((folder/f's{n}').glob('*.txt')), session)[1].build()
        found.append({'bytes': sum(f.stat().st_size for f in (folder/f's{n}').iterdir()), 'plain_seconds': round(middle - start, 1),
                      'spark_seconds': round(time.perf_counter() - middle, 1), 'start_seconds': round(opened, 1)})
        print(f'{found[-1]["bytes"]/1e6:.0f} MB: {found[-1]["plain_seconds"]} s in one process, {found[-1]["spark_seconds"]} s on Spark', flush=True)
    session.stop()
    return found


def bench_speed(files, profile, folder):
    "Each stage beside its baseline."
    row, texts = bench_clean(files)
    return {'clean': row, 'deduplicate': bench_deduplicate(texts), **bench_pack(profile, folder)}


PARTS = ('speed', 'packing', 'profile', 'workers', 'growth', 'spark')


def measure(part, a, files, profile, folder):
    "What a part measured, and under what circumstances."
    tokenizer = tokenizer_artefact(profile).build()
    parts = {'speed': lambda: bench_speed(files, profile, folder), 'packing': lambda: packing_facts(files, profile, tokenizer),
             'profile': lambda: bench_profile(profile, folder), 'workers': lambda: bench_workers(files, profile, folder, (1,) if a.small else (1, 4)),
             'growth': lambda: bench_growth(files, folder, tokenizer, (1, 2) if a.small else SIZES), 'spark': lambda: bench_spark(files, profile, folder, a.spark)}
    before, start = os.getloadavg()[0], time.perf_counter()
    if before > CORES: print(f'{part}: others are at work on this machine: its load is {before:.1f} before we begin, for {CORES} cores. Times will be too long.', file=sys.stderr)
    values = parts[part]()
    command = f'python bench/data.py --only {part}' + (f' --spark {" ".join(map(str, a.spark))}' if part == 'spark' else '')
    return values, {'command': command, 'seconds': round(time.perf_counter() - start, 1), 'cores': CORES, 'repeats': TIMES,
                    'load_before': round(before, 2), 'load_after': round(os.getloadavg()[0], 2), **provenance()}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--small', action='store_true', help='the embedded world, nothing written')
    p.add_argument('--only', nargs='+', choices=PARTS, default=PARTS[:-1], help='parts to measure (all but spark, which needs the extra); the others stay in the record')
    p.add_argument('--spark', nargs='+', type=int, default=[1, 4], metavar='TIMES', help='sizes to measure Spark at, as multiples of the text (1 4; 16 takes a quarter of an hour)')
    p.add_argument('--growth', nargs=2, metavar=('TEXT', 'TOKENIZER'), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.growth: return measure_growth(*a.growth)
    values, made, start = {}, {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        files = corpus(folder/'text', a.small)
        os.environ['DISTILHERBERT_RUNS'] = str(folder/'runs')
        tokenizer = 'herbert'
        if a.small: tokenizer = str(tokenizer_artefact(replace(get_profile('demo'), world_size=300, vocab_size=600)).build())
        profile = replace(get_profile('base'), text=str(folder/'text'), old_share=0.0, tokenizer=tokenizer)
        for part in a.only:
            os.environ['DISTILHERBERT_RUNS'] = str(folder/'runs')
            values[part], made[part] = measure(part, a, files, profile, folder)
        values['bytes'] = sum(f.stat().st_size for f in files)
    if a.small: return print('A smoke run: nothing is written.')
    known = read_records('bench').get('data', {'values': {}})['values']
    values = {k: v for k, v in known.items() if k in PARTS} | values | {'made': known.get('made', {}) | made}
    file = write_record('bench', 'data', values, n=TIMES, seconds=round(time.perf_counter() - start, 1), command='python bench/data.py',
                        units={'seconds': 's', 'MB_per_s': 'MB/s', 'peak_MB': 'MB', 'bytes_a_line': 'bytes'})
    print(f'written to {file}')


if __name__ == '__main__':
    multiprocessing.freeze_support()
    main()
