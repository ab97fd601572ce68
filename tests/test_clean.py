"Cleaning, reading and deduplication against slow references, bad files, a bad network, and kills."
import gzip
import itertools
import json
import lzma
import os
import random
import re
import sys
import unicodedata
from collections import Counter
from functools import partial, reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
from conftest import SENTENCE, noisy_corpus, run_program
from hub import Server
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distilherbert import clean, sources
from distilherbert.artefact import fingerprint
from distilherbert.clean import clean_block, clean_corpus, clean_text, explain_lines, explain_text, line_kinds, read_texts
from distilherbert.scenario import SettingsError
from distilherbert.sources import BadText, Block, text_sources

WORDS = 'zwykłe słowa, jakich pełno wszędzie'
ANY = st.text(st.characters(exclude_categories=()), max_size=80)
MARKUP = """< > & ; / " # p b br <script> </script> <style> <!-- --> <![CDATA[ ]]> <? amp lt amp; &amp; &lt; &gt; &#60; &#x3c; &#0; &#xd800;
    &not http:// HTTP:// www. WWW. wWw. .pl a.b/c ( ) . , : ! ó ż × ÷ kot 12 中 🙂 — „ <table> <td> <title> <textarea> <plaintext>
    <template> <svg> </ <p> <br/> </b> <b> &oacute; &nbsp; &#133; &shy; &#769; हि กำ""".split()
PIECES = [*MARKUP, *' \n\t\0\xa0\u2028\ud800\ufeff\x85\u202f\xad\u0301\u0338\u0323\u037e\u212a\u1100\u1161\u11a8', '  ', 'słowo ',
          '<p title="', '<img alt="a > b">', 'e\u0301', 'z\u0307', 'ą\u0301']
MESSY = st.lists(st.sampled_from(PIECES), max_size=30).map(''.join) | st.tuples(ANY, st.sampled_from(PIECES), ANY).map(''.join)
BITS = st.lists(st.sampled_from([*PIECES, 'ww.', '://', '§', '½', '\u0378', '\u200b']) | st.text(max_size=20), max_size=3).map(''.join)
LINE = st.tuples(BITS, st.sampled_from(['', WORDS, WORDS, f'{WORDS}, {WORDS}']), BITS, st.sampled_from(['', '\n', '\n\n', '\n \n']))
LINES = st.lists(LINE.map(''.join), max_size=12).map(''.join)


def slow_clean(text):
    "Every rule on every text, in order, symbols counted one by one."
    nfc = partial(unicodedata.normalize, 'NFC')
    text = clean.remove_markup(nfc(' '.join(re.sub('[\ud800-\udfff\0]', '\ufffd', text).split())))
    if text is None: return None
    text, symbols, letter = ' '.join(clean.URL.sub(' ', text).split()), 0, False
    for c in text:
        letter = c.isalnum() or letter and unicodedata.category(c).startswith('M')
        symbols += not (letter or c in ' ,.')
    return text if len(text) >= 15 and 10*symbols <= len(text) else None


@settings(max_examples=600, deadline=None)
@given(ANY | MESSY | LINE.map(''.join))
@example('')
@example('<'*1000)
@example('&lt;p&gt;' + '&amp;'*20)
def test_any_text_is_cleaned_like_the_slow_way_and_stays_clean(text):
    cleaned, rule, _ = explain_text(text)
    assert cleaned == clean_text(text) == slow_clean(text)
    assert rule == 'kept' if cleaned is not None else rule in clean.RULES
    if cleaned is not None:
        assert explain_text(cleaned) == (cleaned, 'kept', ()) and unicodedata.is_normalized('NFC', cleaned)
        assert cleaned.encode().decode() == cleaned == ' '.join(cleaned.split())


def test_lines_are_cleaned_at_once_as_one_by_one():
    "Every character, behind a letter that it might compose with; and what surrounds a line."
    lines = [f'Ala ma kota{c} i psa.' for c in map(chr, range(0x110000)) if not '\ud800' <= c <= '\udfff' and c != '\n']
    lines += [f'{c}{WORDS} {m}{d}' for m in ('', '&lt;', '<b>', 'www.a.pl', 'http://a.pl') for c in '\t\r \xa0a' for d in '\t\r \xa0a']
    kinds = line_kinds('\n'.join(lines))
    assert sum(kinds == clean.KEPT) > 60_000
    expected = [*map(explain_text, lines)]
    assert [e for e, kind, line in zip(expected, kinds, lines, strict=True) if kind == clean.KEPT and e != (line, 'kept', ())] == []
    assert [pair for pair in zip(explain_lines(lines, kinds), expected, strict=True) if pair[0] != pair[1]] == []
    kept = itertools.compress(lines, kinds == clean.KEPT)
    assert not any(map(unicodedata.combining, ''.join(kept))), 'marks could be in the wrong order'


def line_by_line(text, old_share):
    "What `clean_block` should return, each line through `explain_text`."
    done, texts = clean.CleanBlock(), []
    for document in (d.strip() for d in re.split(r'\n\s*\n', text) if d.strip()):
        part = 'old' if clean.xxh3_64_intdigest(document.encode(), seed=1) < old_share*2**64 else 'ccsub'
        done.counts[part]['documents'] += 1
        for line in document.split('\n'):
            cleaned, rule, changes = explain_text(line)
            done.counts[part].update(['lines_read', *([f'rejected {rule}'] if cleaned is None else [f'changed {c}' for c in changes])])
            if cleaned is None: continue
            texts.append(cleaned)
            done.parts += bytes([sources.PARTS.index(part)])
    done.texts, done.keys = [t.encode() for t in texts], clean.text_keys(map(clean.visible, texts)).tobytes()
    return done


@settings(max_examples=500, deadline=None)
@given(LINES.map(lambda t: re.sub('[\ud800-\udfff]', '', t)), st.sampled_from([0.0, 0.5]))
@example('', 0.0)
@example('&#1<b>23;</b> i jeszcze kilka słów', 0.0)
@example('<p>zwykłe\u202fsłowa,&#160; jakich pełno</p>', 0.0)
def test_a_block_is_cleaned_as_its_lines_one_by_one(text, old_share):
    assert clean_block(Block(text), old_share) == line_by_line(text, old_share)


@pytest.mark.parametrize('text, cleaned', [
    ('Ala ma <b>k</b>ota, a kot<br>ma Alę<br/>od dawna', 'Ala ma kota, a kot ma Alę od dawna'),
    ('Przed <SCRIPT>var x = "</p>";</SCRIPT> <a title="a > b" href="http://x.example/?a=b&c=d">odnośnikiem</a>', 'Przed odnośnikiem'),
    ('Pok&oacute;j&nbsp;by&#322; czysty&hellip; i &lt;b&gt;tani&lt;/b&gt;', 'Pokój był czysty… i tani'),
    ('Jeśli a < b i b < c, to a < c zawsze i wszędzie', 'Jeśli a < b i b < c, to a < c zawsze i wszędzie'),
    ('zaz\u0307o\u0301łc\u0301 e&#769;l<b>e\u0301</b>gant et e<i>\u0301</i>le\u0300ve', 'zażółć élégant et élève'),
    ('ภาษาไทยเขียนติดกันไม่เว้นวรรค', 'ภาษาไทยเขียนติดกันไม่เว้นวรรค'), ('<b>k</b> <br>'*10_000, 'k '*9_999 + 'k'),
    ('<img src="data:image/png;base64,' + 'a/b+'*1_000_000 + f'">{WORDS}', WORDS), ('<b>' + 'a'*14 + '</b>' + ' '*30, None),
    ('http://a.example/bardzo-dlugi-adres', None), ('a' + '\u0301'*60, None)], ids=lambda text: repr(text)[:40])
def test_texts_by_hand(text, cleaned): assert clean_text(text) == cleaned


HOSTILE = """
import resource
from distilherbert.clean import explain_text
WORDS = 'zwykłe słowa, jakich pełno '
fonts = ''.join(f'<font color=c{i}>' for i in range(1900))
shapes = [f'<p>{fonts}' + f'<p>{WORDS}'*3000, f'<p>{fonts[:9000]}' + f'<p>{WORDS}'*3000, # Elements that are reopened
          '<a ' + ' '.join(f'a{i}=1' for i in range(100_000)) + f'>{WORDS}</a>', '<a ' + ' '.join(map(str, range(1002))) + f'>{WORDS}',
          f'&lt;p{" a"*2000}&gt;{WORDS}', '<a x="'*100_000 + WORDS, '<div>'*300_000 + WORDS, '<b>x</b> '*6_000_000]
used = 4096*int(open('/proc/self/statm').read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,)*2)
print(*(explain_text(text)[1] for text in shapes))
for text in ('<!--'*100_000, '<a href="'*100_000, '&amp;'*100_000, '<b><i>'*50_000, ' '*10_000_000 + WORDS,
             WORDS + '\\u0301\\u0323'*1_000_000, ('z' + '\\U0001d165'*99)*20_000): explain_text(text)
"""


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='memory is limited and read as Linux does it')
def test_hostile_texts_take_little_time_and_memory():
    done = run_program(sys.executable, '-c', HOSTILE, timeout=120)
    assert done.returncode == 0 and done.stdout.split() == ['markup']*8, done.stdout + done.stderr


HALVES = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**64 - 1, 2**63, 2**40])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(HALVES, st.integers(0, 2)), max_size=200), st.sampled_from([1, 7, 1000]))
def test_first_occurrences_are_those_of_a_set(keys, sorted_at_a_time):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, 'SORTED', sorted_at_a_time)
        found = clean.first_occurrences(np.array(keys, np.uint64).reshape(-1, 2)).tolist()
    assert found == [key not in keys[:i] for i, key in enumerate(keys)]


@settings(deadline=None)
@given(st.lists(st.sampled_from(['a', 'bb\n', '\n\n', '\n', '\r\n\r\n', 'ż', '   ']), max_size=60).map(''.join), st.integers(1, 40),
       st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_blocks_depend_only_on_the_text(text, block, sizes):
    whole, pieces, at = text.encode(), [], 0
    while at < len(whole):
        pieces.append(whole[at:at + sizes[len(pieces) % len(sizes)]])
        at += len(pieces[-1])
    blocks = list(sources.cut_blocks(pieces, block))
    assert blocks == list(sources.cut_blocks([whole], block)) and b''.join(blocks) == whole
    assert all(b.endswith((b'\n\n', b'\n\r\n')) for b in blocks[:-1])


def test_an_overlong_document_is_cut_at_a_line_end(monkeypatch):
    monkeypatch.setattr(sources, 'LONGEST', 64)
    text = b'0123456789\n'*50 + b'x'*16_000 + b'\n'
    blocks = list(sources.cut_blocks([text], 16))
    assert len(blocks) > 5 and b''.join(blocks) == text and all(b.endswith((b'9\n', b'x\n')) for b in blocks)


GOOD = ('\n'.join(SENTENCE.format(i) for i in range(3000)) + '\n').encode()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    "Blocks and shards are small, so that a little text has several."
    monkeypatch.delenv('DISTILHERBERT_CC100', raising=False)
    monkeypatch.setattr(sources, 'BLOCK', 4096)
    monkeypatch.setattr(clean, 'SHARD', 20_000)


def build(work, text, old_share=0.4, without=(), **options):
    "Clean a text into a folder of its own; its counts."
    work.mkdir(exist_ok=True)
    found = text_sources(str(text), without, column='body')
    return clean_corpus(work, found, old_share, unread=sources.unread_files(str(text), without), **options)


def build_from(folder, **files):
    "Clean files that are written to a folder: the counts, and the texts in order."
    folder.mkdir()
    for name, data in files.items(): (folder/name.replace('_', '.')).write_bytes(data)
    return build(folder/'.work', folder), every_text(folder/'.work')


def content(folder): return {f.name: f.read_bytes() for f in sorted(folder.glob('[a-z]*.txt'))}


def every_text(folder): return [t for part in sources.PARTS if list(folder.glob(f'{part}-*')) for t in read_texts(folder, part)]


def total(counts, *path):
    "A count of both parts together."
    return sum(reduce(getitem, path, part) for part in counts['parts'].values())


@pytest.fixture
def corpus(tmp_path):
    "A folder with three files, one of each kind."
    folder = tmp_path/'corpus'
    folder.mkdir()
    (folder/'a.txt').write_text(noisy_corpus(seed=1), 'utf-8')
    (folder/'b.txt.xz').write_bytes(lzma.compress(noisy_corpus(seed=2).encode()))
    (folder/'c.txt.gz').write_bytes(gzip.compress(noisy_corpus(seed=3).replace('\n', '\r\n').encode()))
    return folder


@pytest.mark.parametrize('workers', [1, 2])
def test_the_stage_does_what_the_plain_way_does(tmp_path, corpus, workers):
    counts, seen = build(tmp_path/'work', corpus, workers=workers), set()
    expected, found = {part: [] for part in sources.PARTS}, {part: Counter() for part in sources.PARTS}
    texts = [(corpus/'a.txt').read_text('utf-8'), noisy_corpus(seed=2), noisy_corpus(seed=3).replace('\n', '\r\n')]
    for done in (line_by_line(t, 0.4) for t in texts):
        for text, part in zip(done.texts, (sources.PARTS[p] for p in done.parts), strict=True):
            found[part]['duplicates' if text in seen else 'kept'] += 1
            if text not in seen: expected[part].append(text.decode())
            seen.add(text)
        for part in found: found[part].update(done.counts[part])
    for part in sources.PARTS:
        assert list(read_texts(tmp_path/'work', part)) == expected[part]
        assert counts['parts'][part] == clean.tidy_counts(found[part] + Counter(chars_kept=sum(map(len, expected[part]))))
    assert counts['lines'] == sum(t.count('\n') for t in texts) and len(content(tmp_path/'work')) > 8, 'several shards'


def test_the_first_lines_are_those_of_head(tmp_path):
    "A source that ends too soon is not the first lines of anything."
    text = noisy_corpus(seed=5)
    for name, some in (('t.txt', text), ('h.txt', '\n'.join(text.split('\n')[:500]) + '\n')): (tmp_path/name).write_text(some, 'utf-8')
    assert build(tmp_path/'limited', tmp_path/'t.txt', lines=500)['lines'] == build(tmp_path/'head', tmp_path/'h.txt')['lines'] == 500
    assert content(tmp_path/'limited') == content(tmp_path/'head')
    with pytest.raises(BadText, match=r'asks for 501 lines, but there are 500 in h\.txt.*`text_lines = 0`'):
        build(tmp_path/'more', tmp_path/'h.txt', lines=501)


class Killed(BaseException):
    "Stands for a kill."


def dying(real, after, calls):
    "A function that is called so many times, and then no more."
    def call(*args, **options):
        if len(calls) >= after: raise Killed
        calls.append(args[0])
        return real(*args, **options)
    return call


@pytest.mark.parametrize('name, after', [('clean_block', 0), ('clean_block', 14), ('write_whole', 3), ('write_whole', 17)])
def test_a_run_that_was_killed_goes_on_and_ends_the_same(tmp_path, corpus, monkeypatch, name, after):
    "Between two blocks, while shards are written, and while they are copied without duplicates: these stay as they are."
    undisturbed, work, again = build(tmp_path/'undisturbed', corpus), tmp_path/'work', []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(clean, name, dying(getattr(clean, name), after, []))
        build(work, corpus)
    (work/'.ccsub-00001.txt.123.part').write_bytes(b'half a fi')
    there, note = {f: f.stat().st_mtime_ns for f in work.glob('[a-z]*.txt')}, work/clean.NOTE
    finished = json.loads(note.read_text())['blocks'] if note.is_file() else 0
    monkeypatch.setattr(clean, 'clean_block', dying(clean_block, 10**6, again))
    assert build(work, corpus) == undisturbed and content(work) == content(tmp_path/'undisturbed')
    assert len(again) == sum(1 for s in text_sources(str(corpus)) for _ in s.blocks()) - finished, 'finished shards are not cleaned again'
    assert all(f.stat().st_mtime_ns == t for f, t in there.items()) and bool(there) == (after == 17) and (finished or not after)


def many_documents(word, n):
    "Several blocks of documents that no other file has."
    return ''.join(f'{word} numer {i} ma swoje zdanie,\na w nim kilka zwykłych słów o liczbie {i}.\n\n' for i in range(n)).encode()


def zst(data):
    import pyarrow
    return pyarrow.compress(data, codec='zstd', asbytes=True)


LATE, WIDE = many_documents('Zepsuty', 1500), 'Ala ma kota, a kot ma psa i nic wiecej.\n'*50
XZ, GZ, RETURNS = lzma.compress(LATE), gzip.compress(LATE, mtime=0), GOOD[:GOOD.index(b'Numer 1000 ')].replace(b'\n', b'\r')
BAD_SUM = GZ[:-8] + bytes(4) + GZ[-4:]
BAD = [
    *((f'm.txt.{kind}', data, rf'm\.txt\.{kind} is a {fault}') for kind, packed in (('xz', XZ), ('gz', GZ), ('zst', zst(LATE)))
      for data, fault in ((b'', 'truncated archive'), (packed[:-9], 'truncated archive'), (b'To nie archiwum.', 'broken'))),
    ('m.txt.xz', XZ + b'i jeszcze cos', 'broken archive'), ('m.txt.gz', BAD_SUM, 'm.txt.gz is a broken archive'),
    ('m.txt.xz', XZ[:len(XZ)//2] + bytes([XZ[len(XZ)//2] ^ 0xff]) + XZ[len(XZ)//2 + 1:], 'broken archive.* near byte'),
    ('m.txt', LATE + 'gęś'.encode('iso-8859-2') + b'\n', rf'm\.txt is not UTF-8: byte at offset {len(LATE) + 1:,} .*line 4,501'),
    *(('m.txt', data, f'm.txt is not text: .* are NUL, .* at offset {where}') for data, where in (
        (WIDE.encode('utf-16-be'), '[013] of its text .0x00., in line 1'),
        (LATE + WIDE.encode('utf-16-le'), r'[\d,]+ of its text .0x00., in line 4,50[12]'))),
    ('m.txt', RETURNS, '(1,000|999) carriage returns .* at offset 46 '),
    ('m.txt', LATE + b'x'*70_000, r'm\.txt has no line end in the 65,536 bytes'),
    ('m.jsonl', b'{"body": "a"}\n\n{"body": 1}\n', 'm.jsonl, line 3: .body. is 1, not text'),
    ('m.jsonl', b'{"body": ' + b'['*50_000, 'm.jsonl, line 1 is not JSON'),
    ('m.parquet', b'PAR1', 'm.parquet is no Parquet file'),
    ('m.parquet', [{'id': 1, 'text': 'x'}], "m.parquet, row 1 has no column 'body'; it has id, text")]


@pytest.mark.parametrize(('name', 'data', 'fault'), BAD, ids=[f'{n}-{b[0]}' for n, b in enumerate(BAD)])
def test_a_bad_file_is_named_with_the_place_of_its_fault_and_left_out_whole(tmp_path, monkeypatch, caplog, name, data, fault):
    "Even where the fault comes late, after many good blocks."
    for limit, value in {'LONGEST': 1 << 14, 'LONGEST_LINE': 1 << 16, 'CHUNK': 1000}.items(): monkeypatch.setattr(sources, limit, value)
    for folder in ('good', 'both'):
        (tmp_path/folder).mkdir()
        for good in ('a.txt', 'z.txt'): (tmp_path/folder/good).write_bytes(many_documents(f'Dobry {good}', 100))
    if isinstance(data, list): write_rows(tmp_path/'both'/name, data)
    else: (tmp_path/'both'/name).write_bytes(data)
    with pytest.raises(BadText, match=fault): build(tmp_path/'stop', tmp_path/'both')
    made, alone = build(tmp_path/'made', tmp_path/'both', on_bad_file='skip'), build(tmp_path/'alone', tmp_path/'good')
    assert content(tmp_path/'made') == content(tmp_path/'alone') and made['parts'] == alone['parts']
    assert re.search(fault, *made['bad_files']) and f'Left out: {made["bad_files"][0]}' in caplog.text


def test_where_nothing_is_left_the_error_says_why(tmp_path):
    for n, data in enumerate((b'', b'Menu\n\nStart\n', b'\0'*10)):
        with pytest.raises(BadText, match=r'Nothing is left of a\.txt'): build_from(tmp_path/f'{n}', a_txt=data)
    (tmp_path/'m.txt.xz').write_bytes(b'')
    with pytest.raises(BadText, match='Nothing is left of.*truncated archive'): build(tmp_path/'x', tmp_path/'m.txt.xz', on_bad_file='skip')


def test_odd_but_good_files_lose_nothing(tmp_path):
    "A byte-order mark, other line ends, archives of several parts, a few NULs, half a letter, and a line of ten megabytes."
    half = GOOD.index(b'\n', len(GOOD)//2) + 1
    several = [pack(GOOD[:half]) + b'\0'*8 + pack(GOOD[half:]) + b'\0'*4 for pack in (lzma.compress, gzip.compress)]
    whole = [('a_txt', b'\xef\xbb\xbf' + GOOD.replace(b'\n', b'\r\n')), ('a_txt', GOOD.replace(b' ', b'\r')),
             *zip(('a_txt_xz', 'a_txt_gz'), several)]
    for n, (name, data) in enumerate(whole):
        counts, texts = build_from(tmp_path/f'{n}', **{name: data})
        assert counts['lines'] == total(counts, 'kept') == 3000 and set(texts) == set(GOOD.decode().splitlines())
    counts, _ = build_from(tmp_path/'rare', a_txt=GOOD.replace(b'zdanie,', b'zdanie\0,', 9))
    assert (total(counts, 'changed', 'characters'), total(counts, 'kept')) == (9, 3000)
    long = 'Bardzo długa linia, która się nie kończy, tylko trwa. '*200_000
    counts, texts = build_from(tmp_path/'long', a_txt=f'{SENTENCE}\n{long}\n<p>{long}</p>\n\n{SENTENCE.format(1)}\n'.encode())
    assert sorted(map(len, texts)) == sorted([len(SENTENCE), len(SENTENCE.format(1)), len(long) - 1])
    letter = b'{"body": "Ala ma kota \\ud800 i psa."}'
    assert build_from(tmp_path/'letter', **{'a.jsonl': letter})[1] == ['Ala ma kota \ufffd i psa.']


@pytest.mark.skipif(not Path('/proc/self/mem').exists(), reason='a file that nobody may read, as on Linux')
def test_a_file_that_the_system_refuses_to_read_is_named(tmp_path):
    (tmp_path/'t').mkdir()
    (tmp_path/'t'/'b.txt').symlink_to('/proc/self/mem')
    with pytest.raises(BadText, match=r'^b\.txt cannot be read from byte 0 on: Input/output'): build(tmp_path/'work', tmp_path/'t')


def test_files_that_are_not_read_or_have_an_impossible_name_are_named(tmp_path, corpus, caplog):
    for name in ('b.TXT', '.hidden', 'left-out.bin', os.fsdecode(b'g\xb3.md')): (corpus/name).write_bytes(GOOD)
    (corpus/'empty.txt').touch()
    (corpus/'folder.txt').mkdir()
    (corpus/'gone.txt').symlink_to(corpus/'nowhere.txt')
    ending = f'its name does not end in {sources.ENDINGS}'
    unread = {'b.TXT': ending, 'empty.txt': 'empty', 'folder.txt': 'a folder', 'gone.txt': 'a link to what is not there',
              r'g\udcb3.md': ending}
    found = build(tmp_path/'after', corpus, without=('left-out*',))['unread_files']
    assert found == [f'{name}: {why}' for name, why in unread.items()] and all(f'Not read: {file}' in caplog.text for file in found)
    (corpus/os.fsdecode(b'g\xb3.txt')).write_bytes(GOOD)
    with pytest.raises(SettingsError, match=r"'g\\udcb3\.txt' is not UTF-8"): build(tmp_path/'last', corpus)


ROWS = [{'id': 1, 'body': f'{SENTENCE.format(1)}\n\n{SENTENCE.format(2)}'}, {'id': 2, 'body': None}, {'id': 3, 'body': ''},
        *({'id': n, 'body': f'  {SENTENCE.format(n)}\r\n{SENTENCE.format(-n)} \n\n'} for n in range(3, 400))]
PACK = {'.jsonl': lambda data: b'\xef\xbb\xbf' + data.replace(b'\n', b'\r\n') + b'\n\n', '.zst': zst}


def write_rows(file, rows=ROWS):
    "Rows as a file of the kind that its name says."
    import pyarrow
    from pyarrow import parquet
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == '.parquet': parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=50)
    else: file.write_bytes(PACK[file.suffix]('\n'.join(json.dumps(r, ensure_ascii=False) for r in rows).encode()))
    return file


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.zst', 'a.parquet', 'data set'])
def test_a_row_is_a_document(tmp_path, name):
    "The same texts, by hand, from each kind of table; and the file alone is its folder."
    file = write_rows(tmp_path/'t'/('train.parquet' if name == 'data set' else name))
    path = f'hf:{file.parent}' if name == 'data set' else str(file)
    counts = build(tmp_path/'work', path)
    assert sorted(every_text(tmp_path/'work')) == sorted(SENTENCE.format(n) for n in (1, 2, *(k for n in range(3, 400) for k in (n, -n))))
    source, = text_sources(path, column='body')
    sizes = [b.size for b in source.blocks()]
    assert total(counts, 'documents') == 398 and len(sizes) > 5, 'a block is no whole file'
    assert [source.identity] != [s.identity for s in text_sources(path)], 'the column is part of it'
    if name != 'data set': assert sum(sizes) == pytest.approx(file.stat().st_size, rel=0.01)


def test_sources_are_read_in_order_and_known_by_their_content(tmp_path, corpus):
    identity = lambda folder, **options: [s.identity for s in text_sources(str(folder), **options)]
    before = identity(corpus)
    corpus.rename(moved := tmp_path/'moved')
    assert identity(moved) == before and identity(moved, without=('a*', '*-no-such-*')) == before[1:]
    (moved/'a.txt').write_text('Inny tekst niż przedtem.', 'utf-8')
    assert identity(moved)[0] == {'file': fingerprint(moved/'a.txt')} != before[0] and identity(moved)[1:] == before[1:]
    assert identity('world', world_size=9) != identity('world', world_size=9, seed=1) != identity('world', world_size=8, seed=1)
    found = text_sources((str(moved/'c.txt.gz'), str(moved), 'hf:owner/name:pl'))
    assert [s.name for s in found] == ['c.txt.gz', 'a.txt', 'b.txt.xz', 'c.txt.gz', 'hf:owner/name:pl']
    (tmp_path/'empty').mkdir()
    for place, without, fault in ((moved, ('*',), r'other than \*'), (tmp_path/'nowhere', (), 'There is no file or folder'),
                                  (tmp_path/'empty', (), 'no text in .*empty.*wanted are files')):
        with pytest.raises(SettingsError, match=fault): text_sources(str(place), without)


@pytest.fixture
def server(monkeypatch):
    "A server of CC-100 as it should be; tests spoil it."
    rng = random.Random(0)
    text = ''.join(SENTENCE.format(rng.randrange(10**9)) + ('\n\n' if rng.random() < .3 else '\n') for _ in range(20_000))
    with Server(lzma.compress(text.encode(), preset=0)) as s:
        s.text = text
        monkeypatch.setenv('DISTILHERBERT_CC100', s.address)
        monkeypatch.setattr(sources.time, 'sleep', lambda seconds: None)
        yield s


def test_a_dropped_connection_is_taken_up_where_it_broke(server):
    third = len(server.data)//3
    server.drop_after, server.status = [third, 0, 1000], [503, 200]
    assert b''.join(sources.http_chunks(server.address)) == server.data
    assert server.asked[:3] == [None, None, f'bytes={third}-'] and len(server.asked) == 5


@pytest.mark.parametrize('fault, message', [
    ({'ranges': False, 'drop_after': [50_000]}, 'broke after 50,000 bytes, and the server cannot go on from there'),
    ({'tags': ['"1"', '"2"'], 'drop_after': [50_000]}, 'or the file has changed'),
    ({'drop_after': [50_000] + [0]*100}, 'broke after 50,000 bytes and cannot be opened again'),
    ({'status': [404]}, r'answers 404.*curl -LO http.*cc100/pl\.txt\.xz'), ({'lie': 1000}, 'broke after|cannot go on|416')])
def test_a_server_that_cannot_go_on_is_an_error(server, fault, message):
    vars(server).update(fault)
    with pytest.raises(BadText, match=message): list(sources.http_chunks(server.address))


def test_a_local_copy_comes_before_the_address(tmp_path, monkeypatch):
    file = tmp_path/'data'/'cc100'/'pl.txt.xz'
    file.parent.mkdir(parents=True)
    file.write_bytes(lzma.compress(GOOD))
    monkeypatch.setenv('DISTILHERBERT_DATA', str(tmp_path/'data'))
    assert build(tmp_path/'work', 'cc100')['lines'] == 3000
    for named, message in ((tmp_path/'none.xz', 'is no file'), ('ftp://a.example/pl.txt.xz', 'neither a file nor http')):
        monkeypatch.setenv('DISTILHERBERT_CC100', str(named))
        with pytest.raises(SettingsError, match=message): text_sources('cc100')
