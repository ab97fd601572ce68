"Packing against a brute-force packer written from the rules, tokenizers of every layout, rows on disk."
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
import time
from array import array
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import run_program
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from distilherbert import clean, pack
from distilherbert.artefact import read_manifest
from distilherbert.clean import read_texts
from distilherbert.pack import (
    Packer,
    Rows,
    batch_rows,
    build_rows,
    ends_word,
    is_heldout,
    load_tokenizer,
    mark_of,
    pack_texts,
    rows_artefact,
    tokenizer_artefact,
    train_tokenizer,
    word_marks,
)
from distilherbert.scenario import SettingsError, get_profile

DATA = os.environ.get('DISTILHERBERT_DATA')
HERBERT = Path(DATA).resolve()/'herbert-base-cased' if DATA else None
needs_data = pytest.mark.skipif(not DATA, reason='DISTILHERBERT_DATA is not set: no real tokenizer or text here')


def brute_force(texts, ends, max_len, min_piece, cls_id, sep_id, starts=None):
    "Rules 1 to 4 as they are written down, and nothing clever."
    rows, row, dropped = [], [cls_id], 0
    holds_a_text = False
    waiting = [list(t) for t in texts if len(t)]
    while waiting:
        text = waiting.pop(0)
        f = max_len - len(row)
        if len(text) + 1 <= f:
            row += text + [sep_id]
            holds_a_text = True
            continue
        if len(text) <= f: cut = len(text)
        else: cut = max([k for k in range(1, f + 1) if ends[text[k - 1]] or (starts is not None and starts[text[k]])], default=0)
        if cut < min_piece:
            if holds_a_text:
                rows.append(row)
                row, holds_a_text = [cls_id], False
                waiting.insert(0, text)
                continue
            cut = f
        rows.append(row + text[:cut])
        row, holds_a_text = [cls_id], False
        rest = text[cut:]
        if len(rest) >= min_piece: waiting.insert(0, rest)
        else: dropped += len(rest)
    if row != [cls_id]: rows.append(row)
    return rows, dropped


LENGTHS = st.tuples(st.integers(4, 40), st.floats(0, 1)).map(lambda p: (p[0], max(1, int(p[1]*(p[0] - 2)))))
TEXTS = st.lists(st.lists(st.integers(3, 12), max_size=100), max_size=25)


@settings(max_examples=500, deadline=None)
@given(TEXTS, LENGTHS, st.lists(st.booleans(), min_size=13, max_size=13), st.none() | st.lists(st.booleans(), min_size=13, max_size=13))
def test_packing_is_what_the_rules_say(texts, lengths, ends, starts):
    max_len, min_piece = lengths
    packer = Packer(ends, max_len, min_piece, 0, 2, starts)
    for t in texts: packer.add(t)
    packer.close()
    rows, dropped = brute_force(texts, ends, max_len, min_piece, 0, 2, starts)
    assert [r.tolist() for r in packer.rows] == rows and packer.dropped_tokens == dropped
    again = pack_texts((np.array(t, np.uint16) for t in texts), np.array(ends), max_len, min_piece, starts_word=starts)
    assert [r.tolist() for r in again] == rows and all(r.ndim == 1 and np.issubdtype(r.dtype, np.integer) for r in again)


@settings(max_examples=300, deadline=None)
@given(TEXTS, LENGTHS, st.lists(st.booleans(), min_size=13, max_size=13))
def test_no_token_is_lost_and_no_row_too_long(texts, lengths, ends):
    max_len, min_piece = lengths
    packer = Packer(ends, max_len, min_piece)
    for t in texts: packer.add(t)
    packer.close()
    inside = [i for row in packer.rows for i in row[1:] if i != 2]
    assert sum(map(len, texts)) == len(inside) + packer.dropped_tokens
    assert all(1 < len(row) <= max_len and row[0] == 0 and 0 not in row[1:].tolist() for row in packer.rows)
    assert packer.texts == sum(map(bool, texts)) and packer.split_texts <= packer.cuts
    left = iter(i for t in texts for i in t)
    assert all(any(i == j for j in left) for i in inside), 'the order is kept'


@pytest.mark.parametrize('min_piece', [7, 8, 100])
def test_a_shortest_piece_that_fits_nowhere_is_an_error(min_piece):
    with pytest.raises(ValueError, match='must be under max_len - 1 = 7'): pack_texts([[1]], [True]*2, max_len=8, min_piece=min_piece)
    pack_texts([[1]], [True]*2, max_len=8, min_piece=6)


def test_corner_cases_by_hand():
    ends = np.zeros(10, bool)
    ends[[0, 2, 9]] = True
    as_lists = lambda texts, **k: [r.tolist() for r in pack_texts(texts, ends, max_len=8, min_piece=3, **k)]
    assert as_lists([]) == as_lists([[], []]) == []
    assert as_lists([[5]*6]) == [[0, 5, 5, 5, 5, 5, 5, 2]], 'fits with its separator'
    assert as_lists([[5]*7]) == [[0, 5, 5, 5, 5, 5, 5, 5]], 'fits without it, and stays whole'
    assert as_lists([[5]*8]) == [[0, 5, 5, 5, 5, 5, 5, 5]], 'cut hard, and the rest dropped'
    assert as_lists([[9], [5, 5, 5, 5, 5]]) == [[0, 9, 2, 5, 5, 5, 5, 5]]
    assert as_lists([[9]*3, [5, 5, 5]]) == [[0, 9, 9, 9, 2, 5, 5, 5]], 'whole without a separator: at least the shortest piece'
    assert as_lists([[9]*4, [5, 9]]) == [[0, 9, 9, 9, 9, 2], [0, 5, 9, 2]], 'whole, but shorter than the shortest piece'
    assert as_lists([[9]*6, [5]]) == [[0, 9, 9, 9, 9, 9, 9, 2], [0, 5, 2]]
    assert pack_texts([[7]], np.ones(8, bool), cls_id=5, sep_id=6)[0].tolist() == [5, 7, 6]


# Tokenizers

TEXT = ['Ala ma kota, a kot ma Alę.', 'Kot, kotek i kocur: wszystkie trzy mruczą.', 'Zażółć gęślą jaźń, proszę pana!', 'Koty mają kocięta i mleko.']*3


def test_training_gives_the_same_tokenizer_in_every_process():
    code = f'from distilherbert.pack import train_tokenizer; print(ascii(train_tokenizer({TEXT!r}, 90).to_str()))'
    made = {subprocess.run([sys.executable, '-c', code], env=os.environ | {'PYTHONHASHSEED': seed, 'PYTHONPATH': str(Path(__file__).parents[1])},
                           capture_output=True, text=True, check=True).stdout for seed in ('1', '2')}
    assert made == {ascii(train_tokenizer(TEXT, 90).to_str()) + '\n'}


def slow_merges(counts, room):
    "Byte-pair encoding by counting everything again for each merge."
    words, merges = {w: [*w[:-1], w[-1] + '</w>'] for w in counts}, []
    while len(merges) < room:
        pairs = Counter()
        for w, tokens in words.items():
            for p in zip(tokens, tokens[1:], strict=False): pairs[p] += counts[w]
        best = min(pairs, key=lambda p: (-pairs[p], p), default=None)
        if best is None or pairs[best] < 2: break
        merges.append(best)
        words = {w: pack.merge_pair(t, best) for w, t in words.items()}
    return merges


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text('abcó', min_size=1, max_size=8), st.integers(1, 9), max_size=20), st.integers(0, 30))
def test_merges_are_those_of_the_slow_way(words, room):
    assert pack.learn_merges(Counter(words), room) == slow_merges(words, room)


def test_a_trained_tokenizer_knows_its_text_and_its_size():
    t = train_tokenizer(TEXT, 90)
    assert t.get_vocab_size() == 90 and [t.id_to_token(i) for i in range(5)] == list(pack.SPECIAL)
    assert all(3 not in t.encode(text).ids for text in TEXT)
    assert t.encode('☃').ids == [0, 3, 2]
    with pytest.raises(SettingsError, match=r'vocab_size = 20 is too small: .* Write `vocab_size = \d+` or more') as raised: train_tokenizer(TEXT, 20)
    least = int(re.search(r'`vocab_size = (\d+)`', str(raised.value))[1])
    assert train_tokenizer(TEXT, least).get_vocab_size() == least
    with pytest.raises(SettingsError): train_tokenizer(TEXT, least - 1)


@needs_data
def test_the_layout_is_that_of_herbert():
    ours, theirs = json.loads(train_tokenizer(TEXT, 90).to_str()), json.loads((HERBERT/'tokenizer.json').read_text('utf-8'))
    for t in (ours, theirs):
        for k in ('vocab', 'merges'): t['model'].pop(k)
        t['model'].pop('ignore_merges', None)
    assert ours == theirs


def trained(model, trainer, pre, normalizer=None, decoder=None):
    t = Tokenizer(model)
    t.pre_tokenizer = pre
    if normalizer: t.normalizer = normalizer
    if decoder: t.decoder = decoder
    t.train_from_iterator(TEXT*5, trainer)
    return t


SPECIAL = ['[CLS]', '[PAD]', '[SEP]', '[UNK]', '[MASK]']
LAYOUTS = {
    '</w>': lambda: train_tokenizer(TEXT, 90),
    '##': lambda: trained(models.WordPiece(unk_token='[UNK]'), trainers.WordPieceTrainer(vocab_size=110, special_tokens=SPECIAL, show_progress=False),
                          pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=False)),
    '▁': lambda: trained(models.BPE(unk_token='[UNK]'), trainers.BpeTrainer(vocab_size=110, special_tokens=SPECIAL, show_progress=False),
                         pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()),
    'Ġ': lambda: trained(models.BPE(), trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, show_progress=False,
                                                           initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
                         pre_tokenizers.ByteLevel(add_prefix_space=True)),
}


@pytest.mark.parametrize('mark', LAYOUTS)
def test_words_end_where_the_tokenizer_says(mark):
    t = LAYOUTS[mark]()
    vocabulary = t.get_vocab()
    assert mark_of(list(vocabulary)) == mark
    ends, starts = word_marks(t)
    assert len(ends) == len(starts) == t.get_vocab_size() and np.array_equal(ends_word(t), ends)
    assert ends[:5].all() and starts[:5].all() == (mark != '</w>')
    for text in TEXT:
        e = t.encode(text, add_special_tokens=False)
        for k in range(1, len(e.ids)):
            found = ends[e.ids[k - 1]] or starts[e.ids[k]]
            if mark in ('</w>', '##'): assert found == (e.word_ids[k] != e.word_ids[k - 1]), e.tokens[k - 1:k + 1]
            else: assert found == (text[e.offsets[k][0]] == ' ' or text[e.offsets[k][0] - 1] == ' '), e.tokens[k - 1:k + 1]


@pytest.mark.parametrize('mark', LAYOUTS)
def test_texts_are_cut_at_words_in_every_layout(mark):
    t = LAYOUTS[mark]()
    ends, starts = word_marks(t)
    texts = [t.encode(' '.join(random.Random(i).choices(TEXT, k=3)), add_special_tokens=False).ids for i in range(30)]
    rows = pack_texts(texts, ends, 32, 8, 0, 2, starts)
    assert [r.tolist() for r in rows] == brute_force(texts, ends, 32, 8, 0, 2, starts)[0]


def test_an_unknown_token_is_a_word_and_a_vocabulary_without_marks_is_an_error():
    t = train_tokenizer(TEXT, 90)
    assert ends_word(t)[t.token_to_id('<unk>')]
    with pytest.raises(ValueError, match='marks neither ends nor starts'): mark_of(['kot', 'pies', 'ryba'])


@needs_data
def test_herberts_words_end_where_its_pre_tokenizer_says():
    tokenizer = load_tokenizer(HERBERT)
    ends, starts = word_marks(tokenizer)
    assert (len(ends), ends[:5].all(), starts.any()) == (50_000, True, False)
    for text in real_texts(300):
        e = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        for k in range(1, len(e.ids)):
            if e.ids[k - 1] != 3: assert ends[e.ids[k - 1]] == (e.word_ids[k] != e.word_ids[k - 1])


# Which tokenizer

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))


@pytest.fixture
def small(): return replace(get_profile('demo'), world_size=150, vocab_size=400, max_len=32, min_piece=6, heldout_share=0.1)


def test_a_trained_tokenizer_is_loaded_by_transformers(small):
    folder = tokenizer_artefact(small).build()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = Tokenizer.from_file(str(folder/'tokenizer.json'))
    for text in islice(read_texts(clean.build_text(small), 'ccsub'), 50):
        assert tokenizer(text)['input_ids'] == plain.encode(text).ids
    assert [tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id] == list(range(5))
    assert tokenizer.decode(tokenizer('Ala')['input_ids'], skip_special_tokens=True).strip() == 'Ala'


def test_a_folder_is_copied_and_its_path_is_not_in_the_key(small, tmp_path):
    made = tokenizer_artefact(small).build()
    for name in ('here', 'there'):
        (tmp_path/name).mkdir()
        for f in made.glob('*.json'):
            if f.name != 'manifest.json': (tmp_path/name/f.name).write_bytes(f.read_bytes())
        (tmp_path/name/'pytorch_model.bin').touch()
    a, b = (tokenizer_artefact(replace(small, tokenizer=str(tmp_path/name))) for name in ('here', 'there'))
    assert a.key == b.key
    assert 'pytorch_model.bin' not in {f.name for f in a.build().iterdir()}
    assert (a.path/'tokenizer.json').read_bytes() == (made/'tokenizer.json').read_bytes()


def test_a_tokenizer_that_is_not_there(small, tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match="There is no tokenizer './none'"): tokenizer_artefact(replace(small, tokenizer='./none'))
    with pytest.raises(SettingsError, match='holds no tokenizer'): tokenizer_artefact(replace(small, tokenizer=str(tmp_path)))
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    with pytest.raises(SettingsError, match='DISTILHERBERT_DATA'): tokenizer_artefact(replace(small, tokenizer='herbert'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    code = ('from dataclasses import replace; from distilherbert.pack import *; from distilherbert.scenario import get_profile\n'
            "tokenizer_artefact(replace(get_profile('demo'), tokenizer='nobody/no-such-tokenizer')).build()")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert 'cannot be fetched from the hub' in done.stderr and 'give their folder as `tokenizer`' in done.stderr


def test_a_tokenizer_without_a_mask_is_an_error(small, tmp_path):
    folder = tokenizer_artefact(small).build()
    (tmp_path/'t').mkdir()
    (tmp_path/'t'/'tokenizer.json').write_bytes((folder/'tokenizer.json').read_bytes())
    config = json.loads((folder/'tokenizer_config.json').read_text())
    (tmp_path/'t'/'tokenizer_config.json').write_text(json.dumps({k: v for k, v in config.items() if k != 'mask_token'}))
    with pytest.raises(SettingsError, match='has no mask token'): load_tokenizer(tmp_path/'t')


@needs_data
def test_both_layouts_of_herbert_on_the_hub_are_the_same_tokenizer(small, tmp_path):
    "The hub has vocab.json and merges.txt, but no tokenizer.json."
    for f in ('vocab.json', 'merges.txt', 'config.json', 'tokenizer_config.json', 'special_tokens_map.json'):
        (tmp_path/f).write_bytes((HERBERT/f).read_bytes())
    (tmp_path/'tokenizer_config.json').write_text('{"tokenizer_class": "HerbertTokenizer"}')
    whole, parts = (load_tokenizer(tokenizer_artefact(replace(small, tokenizer=str(f))).build()) for f in (HERBERT, tmp_path))
    for text in real_texts(100): assert whole(text)['input_ids'] == parts(text)['input_ids']
    assert all(np.array_equal(a, b) for a, b in zip(word_marks(whole), word_marks(parts), strict=True))


# Rows on disk

def test_the_rows_are_those_of_the_texts(small):
    folder = build_rows(small, 'ccsub')
    rows, tokenizer = Rows.open(folder), load_tokenizer(tokenizer_artefact(small).path)
    texts = [tokenizer(t, add_special_tokens=False)['input_ids'] for t in read_texts(clean.build_text(small), 'ccsub')]
    expected, dropped = brute_force(texts, rows.ends_word, 32, 6, 0, 2)
    sets = [iter(rows.heldout), iter(rows.train)]
    share, seed = small.heldout_share, small.data_seed
    for row in expected: assert next(sets[not is_heldout(np.array(row), share, seed)]).tolist() == row
    counts = read_manifest(folder)['counts']
    assert len(rows.train) + len(rows.heldout) == len(expected) == counts['rows'] and len(rows.heldout) == counts['heldout_rows'] > 10
    assert rows.train.tokens + rows.heldout.tokens == sum(map(len, expected)) == counts['tokens'] and rows.heldout.tokens == counts['heldout_tokens']
    assert counts['dropped_tokens'] == dropped and counts['texts'] == len(texts) and counts['text_tokens'] == sum(map(len, texts))
    assert abs(counts['mean_length'] - np.mean([len(r) for r in expected])) < 1e-9 and counts['share_used'] == counts['mean_length']/32
    assert sum(n for _, n in counts['row_lengths']) == len(expected) and sum(n for _, n in counts['lengths']) == len(texts)
    for (low, n), (high, _) in zip(counts['row_lengths'], [*counts['row_lengths'][1:], (33, 0)], strict=True):
        assert n == sum(low <= len(r) < high for r in expected)


def test_rows_say_what_masking_needs(small):
    rows = Rows.open(build_rows(small, 'old'))
    assert (rows.cls_id, rows.pad_id, rows.sep_id, rows.unk_id, rows.mask_id) == (0, 1, 2, 3, 4) and rows.special_ids == (0, 1, 2, 3, 4)
    assert rows.vocab_size == len(rows.ends_word) == len(rows.starts_word) == 400 and rows.max_len == 32
    assert isinstance(rows.train[0], np.ndarray) and rows.train[0].dtype == np.int64
    ids, lengths = batch_rows(rows.train, [3, 0, 3], 40)
    assert ids.shape == (3, 40) and ids.dtype == np.int64 and lengths.tolist() == [len(rows.train[i]) for i in (3, 0, 3)]
    for b, i in enumerate((3, 0, 3)):
        assert ids[b, :lengths[b]].tolist() == rows.train[i].tolist() and (ids[b, lengths[b]:] == 1).all()
    with pytest.raises(IndexError): rows.train[len(rows.train)]


def arrays(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir()) if f.name not in ('manifest.json', 'README.md')}


def test_the_number_of_workers_changes_no_byte(small, tmp_path, monkeypatch):
    monkeypatch.setattr(clean, 'STRETCH', 10_000)
    monkeypatch.setattr(clean, 'GROUP', 20)
    folders = []
    for workers in (1, 4):
        monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/f'runs{workers}'))
        monkeypatch.setenv('DISTILHERBERT_WORKERS', str(workers))
        folders.append(rows_artefact(small, 'ccsub').build())
    assert arrays(folders[0]) == arrays(folders[1]) and len(list(folders[0].glob('ids-*.npy'))) > 1
    assert read_manifest(folders[0])['counts'] == read_manifest(folders[1])['counts']


@pytest.mark.parametrize('dies_at', [0, 1, 2])
def test_finished_shards_are_not_packed_again(small, monkeypatch, tmp_path, dies_at):
    monkeypatch.setattr(clean, 'STRETCH', 6_000)
    monkeypatch.setattr(clean, 'GROUP', 20)
    undisturbed = arrays(build_rows(small))
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'again'))
    real, written = pack.RowWriter.write, []
    def dies(self, work, shard):
        real(self, work, shard)
        if shard == dies_at: raise KeyboardInterrupt
    a = rows_artefact(small)
    monkeypatch.setattr(pack.RowWriter, 'write', dies)
    with pytest.raises(KeyboardInterrupt): a.build()
    monkeypatch.setattr(pack.RowWriter, 'write', lambda self, work, shard: written.append(shard) or real(self, work, shard))
    assert arrays(a.build()) == undisturbed
    assert written == list(range(dies_at, len(list(a.path.glob('ids-*.npy')))))


def test_the_key_follows_what_rows_depend_on(small):
    key = rows_artefact(small).key
    for change in ({'max_len': 33}, {'min_piece': 7}, {'data_seed': 1}, {'heldout_share': 0.2}, {'vocab_size': 401}, {'world_size': 151}):
        assert rows_artefact(replace(small, **change)).key != key, change
    for change in ({'seed': 7}, {'threads': 1}, {'name': 'x'}, {'tokens': 5}): assert rows_artefact(replace(small, **change)).key == key, change
    assert rows_artefact(small, 'old').key != key
    with pytest.raises(SettingsError, match='There is no part'): rows_artefact(small, 'new')


def test_the_split_is_by_content_and_seed():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 50_000, 60) for _ in range(20_000)]
    chosen = [is_heldout(r, 0.01, 0) for r in rows]
    assert 140 < sum(chosen) < 260
    assert [is_heldout(r.astype(np.uint16), 0.01, 0) for r in rows[:500]] == chosen[:500], 'whatever the storage'
    assert [is_heldout(r, 0.01, 1) for r in rows] != chosen and not any(is_heldout(r, 0.0, 0) for r in rows)


def test_ids_that_do_not_fit_are_an_error_and_larger_vocabularies_have_32_bits():
    assert (pack.id_type(65_535), pack.id_type(65_536)) == (np.uint16, np.uint32)
    writer = pack.RowWriter(100, 0.0, 0)
    with pytest.raises(OverflowError, match='Token 100 is outside the vocabulary of 100'): writer.add([array('I', [0, 100, 2])])
    writer = pack.RowWriter(70_000, 0.0, 0)
    writer.add([array('I', [0, 69_999, 2])])
    assert writer.ids[0].dtype == np.uint32 and writer.ids[0].tolist() == [0, 69_999, 2]


def test_a_text_of_which_no_row_comes_is_an_error(tmp_path, small):
    s = pack.PackSettings(str(tokenizer_artefact(small).build()), 32, 6, 0.1, 0)
    (tmp_path/'ccsub-00000.txt').write_text('')
    with pytest.raises(ValueError, match='Not one row'): pack.write_rows(tmp_path, [tmp_path/'ccsub-00000.txt'], s, 'Pack')


# Faults

def test_three_kills_leave_the_same_bytes():
    "The script that leaves a record of thirty, with three and a small text."
    done = run_program(sys.executable, 'bench/kill_data.py', '--kills', '3', '--workers', '1', '--small', timeout=900)
    assert done.returncode == 0 and '3 kills' in done.stdout and '0 of them made again' in done.stdout, done.stdout + done.stderr
    assert int(re.search(r'([\d,]+) finished files seen', done.stdout)[1].replace(',', '')) > 0, done.stdout


BUILD = """
from dataclasses import replace
from distilherbert import clean
from distilherbert.pack import rows_artefact
from distilherbert.scenario import get_profile
clean.STRETCH, clean.GROUP = 5000, 20
p = replace(get_profile('demo'), world_size=400, vocab_size=400, max_len=32, min_piece=6)
clean.text_artefact(p, 2).build()
rows_artefact(p, 'ccsub', 2).build()
"""


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path, monkeypatch):
    "Killed while two workers clean, and again while they pack: no process is left, and what is made then is what an undisturbed run makes."
    monkeypatch.setattr(clean, 'STRETCH', 5000)
    monkeypatch.setattr(clean, 'GROUP', 20)
    p, runs = replace(get_profile('demo'), world_size=400, vocab_size=400, max_len=32, min_piece=6), tmp_path/'killed'
    undisturbed = rows_artefact(p, 'ccsub').build()
    for made in ('text/.*.partial/*-?????.txt', 'rows/.*.partial/ids-?????.npy'):
        parent = subprocess.Popen([sys.executable, '-c', BUILD], env=os.environ | {'DISTILHERBERT_RUNS': str(runs), 'PYTHONPATH': str(Path(__file__).parents[1])}, stdout=subprocess.DEVNULL)
        while len(list(runs.glob(made))) < 2:
            assert parent.poll() is None, f'it ended before there was {made}'
            time.sleep(0.005)
        workers = [w for w in psutil.Process(parent.pid).children(recursive=True) if 'spawn_main' in ' '.join(w.cmdline())]
        parent.kill()
        parent.wait()
        assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=60)[1]
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(runs))
    a = rows_artefact(p, 'ccsub')
    assert a.state() == 'absent' and a.partial.is_dir() and arrays(a.build()) == arrays(undisturbed)
    assert not list(runs.rglob('*.part')) and content_of_text(runs) == content_of_text(undisturbed.parents[1])


def content_of_text(runs): return {f.name: f.read_bytes() for f in runs.glob('text/*/*.txt')}


def test_the_bench_of_the_data_runs_small():
    done = run_program(sys.executable, 'bench/data.py', '--small', timeout=900)
    assert done.returncode == 0 and 'A smoke run: nothing is written.' in done.stdout, done.stdout + done.stderr
    for what in ('clean, one core', 'deduplicate, one core', 'tokenise and pack', 'whole pipeline', 'best fit', 'wait for the tokenizer', 'by number of workers', '2 times'): assert what in done.stdout


def on_a_small_disk(disk, runs):
    "Text and rows meet a full disk once each and go on where there is room; the test below calls it where `disk` is mounted."
    p = replace(get_profile('demo'), world_size=1500, vocab_size=400, max_len=32, min_piece=6)
    clean.STRETCH = 20_000
    os.environ['DISTILHERBERT_RUNS'] = runs
    undisturbed = arrays(build_rows(p))
    os.environ['DISTILHERBERT_RUNS'] = f'{disk}/runs'
    a = rows_artefact(p)
    for a_stage in (a.inputs[0], a):  # The tokenizer is too small to
        with pytest.raises(OSError, match=rf'The disk is full .* while building .*{a_stage.stage}.*free some space'): fill_and_build(Path(disk), a_stage)
        assert a_stage.state() == 'absent' and not a_stage.path.exists()
        a_stage.build()
    assert arrays(a.path) == undisturbed
    print('Both went on.')


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_artefact(tmp_path):
    "On a disk of 20 MB in a name space of its own, so that nobody needs to be root."
    (tmp_path/'disk').mkdir()
    small = f'mount -t tmpfs -o size=20m tmpfs {tmp_path}/disk && exec "$@"'
    inside = lambda *command: subprocess.run(['unshare', '-Urm', 'sh', '-c', small, 'sh', *command], cwd=Path(__file__).parent, capture_output=True, text=True)
    if not shutil.which('unshare') or inside('true').returncode: pytest.skip('a small file system needs `unshare -Urm`, which this system does not allow')
    done = inside(sys.executable, '-c', 'import sys, test_pack; test_pack.on_a_small_disk(*sys.argv[1:])', tmp_path/'disk', tmp_path/'runs')
    assert done.returncode == 0 and 'Both went on.' in done.stdout, done.stderr


def fill_and_build(folder, artefact):
    "Leave 100 kB free, then build."
    free = os.statvfs(folder)
    (folder/'ballast').write_bytes(bytes(max(0, free.f_bavail*free.f_frsize - 100_000)))
    try: artefact.build()
    finally: (folder/'ballast').unlink()


# Real text

def real_texts(n):
    lines = []
    for f in sorted((Path(DATA).resolve()/'text').glob('*.txt.xz')):
        with lzma.open(f, 'rt', encoding='utf-8') as file: lines += [t for line in islice(file, 400*n//100) if (t := clean.clean_text(line))]
    return random.Random(0).sample(lines, min(n, len(lines)))


@needs_data
@pytest.mark.parametrize('max_len, min_piece', [(128, 40), (512, 40), (64, 8)])
def test_real_text_is_packed_as_the_rules_say(max_len, min_piece):
    tokenizer = load_tokenizer(HERBERT)
    ends, _ = word_marks(tokenizer)
    texts = [e.ids for e in pack.plain_backend(tokenizer).encode_batch_fast(real_texts(3000), add_special_tokens=False)]
    rows, _ = brute_force(texts, ends, max_len, min_piece, 0, 2)
    assert [r.tolist() for r in pack_texts(texts, ends, max_len, min_piece)] == rows
    assert sum(map(len, rows))/len(rows) > 0.9*max_len
