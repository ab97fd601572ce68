"""Damaged bytes into everything that reads a file of the user's: each must be read, or refused with an error of ours that names the file.

    .venv/bin/python bench/fuzz.py                          two minutes for each reader (half an hour)
    .venv/bin/python bench/fuzz.py --seconds 5 --only toml  one reader; the same --seed gives the same damage
    .venv/bin/python bench/fuzz.py --seconds 1 --no-record  to see that it works

A fault is another exception, more than ten seconds, or code of the file that ran. The record is bench/fuzz; first examples are kept.
"""
import argparse
import contextlib
import lzma
import random
import shutil
import signal
import tempfile
import time
import zlib
from collections import Counter, deque
from pathlib import Path

import pyarrow
from pyarrow import parquet

from distilherbert.artefact import DamagedArtefact, read_manifest
from distilherbert.classify import open_classifier
from distilherbert.pack import load_tokenizer
from distilherbert.pipeline import build_classifier, build_model
from distilherbert.results import write_record
from distilherbert.scenario import SettingsError, get_profile, get_scenario
from distilherbert.sources import BadText, text_sources
from distilherbert.student import load_masked_lm
from distilherbert.tasks import TASKS, TaskError, get_task, read_rows, read_tsv

OURS = (SettingsError, TaskError, BadText, DamagedArtefact)
LIMIT = 10 # Seconds for one small file
PIECES = (b'\0', b'\xff\xfe', b'\xef\xbb\xbf', b'\xed\xa0\x80', b'"', b"'", b'\t', b'\r', b'\n', b'{', b'[[[[', b'-1', b'1e999', b'NaN',
          b'null', b'9'*11, b'"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForMaskedLM": "evil.Evil", "AutoTokenizer": "evil.E"},')
EVIL = 'from pathlib import Path\nPath({mark!r}).touch()\nclass Evil: pass\n'


class Slow(Exception):
    "The limit is over."


def damaged(data, rng):
    "A copy of some bytes with one to four faults."
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        a = rng.randrange(min(len(data), 4096) if rng.random() < 0.7 else len(data)) if data else 0
        match rng.randrange(5):
            case 0: data[a:a + 1] = bytes([rng.randrange(256)])
            case 1: del data[a:a + rng.choice((1, 8, 200, len(data)))]
            case 2: data[a:a] = rng.choice(PIECES)
            case 3: data[a:a] = data[a:a + rng.choice((4, 64))]*rng.choice((1, 50))
            case 4: data[a:a + 8] = rng.randbytes(8)
    return bytes(data)


def readers(work):
    "Name to the files that are damaged in turn, and a function that reads the folder they lie in."
    tiny = work/'tiny.toml'
    tiny.write_text('like = "demo"\nworld_size = 300\nvocab_size = 300\nlayers = 2\nhidden = 16\nheads = 2\nintermediate = 32\n'
                    'max_len = 32\nteacher_tokens = 5_000\nteacher_margin = -10.0\n'
                    'task_examples = 60\ntask_epochs = 1\ntask_seeds = [1]\ntask_max_len = 32\n')
    p = get_profile(tiny)
    model, classifier = build_model(p, get_scenario('T0')), build_classifier(p, get_scenario('T0'))
    text = '\n\n'.join('Pokój był czysty, a obsługa bardzo miła.\nDrugie zdanie jest też dość długie.' for _ in range(40)).encode()
    packed = zlib.compressobj(wbits=31)
    table, flat = TASKS['ar'], TASKS['nkjp-ner']
    parquet.write_table(pyarrow.table({'text': [f'Zdanie {i}.' for i in range(50)]}), table_file := pyarrow.BufferOutputStream())
    rows = b'text\trating\n"a ""b"" c"\t3.0\nd\t1.0\n'
    def read_text(folder):
        for source in text_sources(str(folder)): deque(source.blocks(), maxlen=0)
    def read_task(folder):
        with contextlib.chdir(folder): get_task('mine.toml:a')
    made = {
        'text': ({'a.txt': text, 'b.txt.gz': packed.compress(text) + packed.flush(), 'c.txt.xz': lzma.compress(text),
                  'd.txt.zst': pyarrow.compress(text, codec='zstd', asbytes=True)}, read_text),
        'tables of text': ({'a.jsonl': b'{"text": "a"}\n'*9, 'b.parquet': table_file.getvalue().to_pybytes()}, read_text),
        'tsv': ({'a.tsv': rows}, lambda d: read_tsv(d/'a.tsv', table, ('text', 'rating'))),
        'tsv without quotes': ({'a.tsv': b'sentence\ttarget\na b\ttime\n'*20}, lambda d: read_tsv(d/'a.tsv', flat, ('sentence', 'target'))),
        'csv': ({'a.csv': rows.replace(b'\t', b',')}, lambda d: read_rows(d/'a.csv', ('text', 'rating'))),
        'jsonl': ({'a.jsonl': b'{"text": "a", "rating": 1}\n'*9}, lambda d: read_rows(d/'a.jsonl', ('text', 'rating'))),
        'profile': ({'mine.toml': tiny.read_bytes()}, lambda d: get_profile(d/'mine.toml')),
        'scenario': ({'mine.toml': b'like = "S4"\nlayer_map = [0, 1]\n[objective]\nmlm = 1.0\n'}, lambda d: get_scenario(d/'mine.toml')),
        'task': ({'mine.toml': b'[tasks.a]\ntrain = "a.csv"\ntext = ["text"]\nlabel = "rating"\n',
                  'a.csv': rows.replace(b'\t', b',')}, read_task),
        'manifest': ({'manifest.json': (model/'manifest.json').read_bytes()}, read_manifest),
    }
    for name, folder, files, read in (
            ('model', model, ('config.json', 'model.safetensors'), load_masked_lm),
            ('tokenizer', model, ('tokenizer.json', 'tokenizer_config.json'), load_tokenizer),
            ('classifier', classifier, ('classifier.json', 'config.json', 'model.safetensors'), open_classifier)):
        made[name] = ({f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}, read, files)
    return {name: (files, read, *(rest or [tuple(files)])) for name, (files, read, *rest) in made.items()}


def fuzz(name, files, read, targets, seconds, rng, work):
    "Counts of one reader, and the faults with their number."
    counts, faults, mark, end = Counter(), Counter(), work/'ran', time.monotonic() + seconds
    def stop(*_): raise Slow
    signal.signal(signal.SIGALRM, stop)
    while time.monotonic() < end:
        folder = work/'case'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file, data in files.items(): (folder/file).write_bytes(data)
        (folder/'evil.py').write_text(EVIL.format(mark=str(mark)))
        target = rng.choice(targets)
        (folder/target).write_bytes(damaged(files[target], rng))
        signal.alarm(LIMIT)
        try: read(folder)
        except OURS as e:
            named = folder.name in str(e) or Path(target).stem in str(e)
            kind, fault = 'refused', '' if named else f'{type(e).__name__} without the file: {e}'[:120]
        except Slow: kind, fault = 'slow', f'more than {LIMIT} seconds'
        except Exception as e: kind, fault = 'other', f'{type(e).__name__}: {e}'[:120]
        else: kind, fault = 'read', ''
        finally: signal.alarm(0)
        if mark.exists(): fault = 'code of the file ran'
        counts[kind] += 1
        if not fault: continue
        if fault not in faults: shutil.copytree(folder, work/'faults'/f'{name}-{len(faults)}')
        faults[fault] += 1
    return {'cases': sum(counts.values()), 'refused': counts['refused'], 'read': counts['read'], 'faults': dict(faults)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seconds', type=float, default=120, help='for each reader')
    p.add_argument('--only', default='', help='one reader')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--no-record', action='store_true')
    a, work, found, start = p.parse_args(), Path(tempfile.mkdtemp(prefix='fuzz-')), {}, time.perf_counter()
    for name, parts in readers(work).items():
        if a.only not in ('', name): continue
        found[name] = fuzz(name, *parts, a.seconds, random.Random(f'{a.seed}/{name}'), work)
        print(f'{name:20} {found[name]["cases"]:7,} cases, {found[name]["refused"]:7,} refused, {found[name]["read"]:7,} read', flush=True)
        for fault, n in found[name]['faults'].items(): print(f'    {n:5} × {fault}')
    if not a.no_record: print(write_record('bench', 'fuzz', found, seconds=time.perf_counter() - start, command='python bench/fuzz.py'))
    if any(v['faults'] for v in found.values()): raise SystemExit(f'Examples of the faults: {work/"faults"}')
    shutil.rmtree(work)


if __name__ == '__main__': main()
