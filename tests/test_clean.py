"Cleaning, reading and deduplication against slow references, bad files, a bad network, and kills."
import errno
import gzip
import html.entities
import http.server
import io
import lzma
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distilherbert import clean
from distilherbert.artefact import read_manifest
from distilherbert.clean import (
    BadText,
    Block,
    Seen,
    clean_and_tell,
    clean_block,
    clean_text,
    cut_blocks,
    deduplicate,
    digests_of,
    explain_text,
    fold,
    http_chunks,
    is_too_deep,
    read_texts,
    score_cleaning,
    settle_markup,
    text_artefact,
    text_sources,
)
from distilherbert.scenario import SettingsError, get_profile

ANY = st.text(st.characters(exclude_categories=()), max_size=80)
PIECES = ['<', '>', '&', ';', '/', '"', '#', ' ', '\n', '\t', '\0', '\xa0', '\u2028', '\ud800', '\ufeff', '×', '÷', 'p', 'b', 'br', 'script', '<script>',
          '</script>', '<style>', '<!--', '-->', '<![CDATA[', ']]>', '<?', 'amp', 'lt', 'amp;', '&amp;', '&lt;', '&gt;', '&#60;', '&#x3c;', '&#0;',
          '&#xd800;', '&not', 'http://', 'https://', 'HTTP://', 'www.', 'WWW.', 'wWw.', '.pl', 'a.b/c', '(', ')', '.', ',', ':', '!', 'ó', 'ż', 'słowo ',
          'kot', '12', '中', '🙂', 'e\u0301', '<table>', '<td>', '<title>', '<textarea>', '<plaintext>', '<xmp>', '<template>', '<svg>', '<p title="', '</']
MESSY = st.lists(st.sampled_from(PIECES), max_size=30).map(''.join) | st.tuples(ANY, st.sampled_from(PIECES), ANY).map(''.join)


def slow_clean(text):
    "The rules without any short cut: every rule on every text, symbols counted one by one."
    text = ' '.join(re.sub('[\ud800-\udfff\0]', '\ufffd', text).split())
    text = settle_markup(text)
    if text is None: return None
    text = ' '.join(clean.URL.sub(' ', text).split())
    symbols = sum(not (c.isalnum() or c in ' ,.') for c in text)
    return text if len(text) >= 15 and 10*symbols <= len(text) else None


@settings(max_examples=600, deadline=None)
@given(ANY | MESSY | st.tuples(MESSY, st.just(' zwykłe słowa, jakich pełno wszędzie')).map(''.join))
@example('')
@example('\ud800'*20)
@example('<'*1000)
@example('&lt;p&gt;' + '&amp;'*20)
def test_any_text_is_cleaned_like_the_slow_way_and_stays_clean(text):
    cleaned, rule = explain_text(text)
    assert cleaned == clean_text(text) == slow_clean(text)
    assert rule == 'kept' if cleaned is not None else rule in clean.RULES
    if cleaned is not None:
        assert explain_text(cleaned) == (cleaned, 'kept')
        assert clean_and_tell(cleaned)[2] == ()
        assert cleaned.encode().decode() == cleaned == fold(cleaned)


ORDINARY = ['Zażółć gęślą jaźń, proszę pana', ' ', '  ', '. ', '\xa0', '«', '»', '\xad', '„', '”', '–', '\u2009', '\u2028', '€', 'ww.', 'Ww.', '://', 'ß', '×', '!', '\t', '\x7f',
            '\r', 'słowo', 'Ж', '½', '\u2010', '\u2027', '\x85', '§', '\u0378']


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(st.sampled_from(ORDINARY), max_size=8).map(''.join) | MESSY, max_size=12))
def test_a_quick_look_at_many_lines_is_right_about_each(lines):
    lines = [''.join(c for c in line if not '\ud800' <= c <= '\udfff' and c != '\n') for line in lines]
    raw, verdict = clean.quick_look(lines)
    assert [r.decode() for r in raw] == lines and len(verdict) == len(lines)
    for line, v in zip(lines, verdict.tolist(), strict=True):
        if v == clean.KEEP: assert clean_and_tell(line) == (line, 'kept', ()), line
        if v == clean.SHORT: assert clean_and_tell(line) == (None, 'short', ()), line
        assert v != clean.CLOSER or len(line) >= 15


def test_a_quick_look_misses_no_character():
    odd = [c for c in map(chr, range(0x110000)) if not '\ud800' <= c <= '\udfff' and c != '\n' and (c in '<&' or not c.isprintable())]
    verdict = clean.quick_look([f'Ala ma kota, a kot ma Alę{c} i psa.' for c in odd])[1]
    assert [c for c, v in zip(odd, verdict.tolist(), strict=True) if v != clean.CLOSER] == []


def line_by_line(text, old_share):
    "What `clean_block` should say, each line through `clean_and_tell`."
    texts, parts, counts = [], [], {part: Counter() for part in clean.PARTS}
    for document in (d.strip() for d in clean.GAP.split(text) if d.strip()):
        part = clean.part_of(document, old_share)
        counts[part]['documents'] += 1
        for line in document.split('\n'):
            cleaned, rule, changes = clean_and_tell(line)
            counts[part]['lines_read'] += 1
            if cleaned is None: counts[part][f'rejected {rule}'] += 1
            else:
                texts.append(cleaned.encode())
                parts.append(clean.PARTS.index(part))
                counts[part].update(f'changed {c}' for c in changes)
    return texts, bytes(parts), digests_of(texts).tobytes(), counts


def assert_block_is_clean(text, old_share=0.0):
    done = clean_block(Block(text), old_share)
    assert (done.texts, done.parts, done.keys, done.counts) == line_by_line(text, old_share)


TAGGED = ['<p>', '</p>', '<p/>', '<br />', '<b>', '</b>', '<i>', '<a href="x://y?a=b&c">', '</a>', '<img alt="a > b" src="c"/>', '<img alt="a  b">', '<img alt="\xa0">',
          '<img alt="\u202f">', '<img alt="<b>">', "<img alt='c'>", '<li>', '<h1>', '</h2>', '<hr>', '<div class="">', '<span>', '<em>', '</em>', '<sup>', '<ul>', '</ol>',
          '<figure>', '<blockquote>', '<u>', '<B>', '<p ', 'p>', 'b>', '<', '&', '&oacute;', '&nbsp;', '&#160;', '&#8211;', '&#1', '23;', '&NewLine;', '&Tab;', '&shy;',
          '&ensp;', '&#129;', '&#133;', '&notit;', '&amp;', 'amp;', 'lt;', '&o', 'acute;', '\u202f', '\u2028', '\x85', '\r', '\0', '\x0b', '\xad', '\ufeff', '🙂', ' ', '  ',
          'kot', ' ma ', 'zwykłe słowa, jakich pełno', 'www.a.pl', '\n', '\n\n', '\n \n', '*', '<td>', '<table>', '<script>', '</script>', '<!--', '<title>', '<select>']
LINES = st.lists(st.sampled_from(TAGGED) | st.sampled_from(PIECES) | st.text(max_size=20), max_size=40).map(''.join)


@settings(max_examples=800, deadline=None)
@given(LINES.map(lambda t: re.sub('[\ud800-\udfff]', '', t)), st.sampled_from([0.0, 0.5]))
@example('', 0.0)
@example('<<b>p>'*5, 0.0)
@example('&#1<b>23;</b> i jeszcze kilka słów', 0.0)
@example('<a<br> href="x">zwykłe słowa, jakich pełno</a>', 0.0)
@example('<p>zwykłe\u202fsłowa,&#160; jakich pełno</p>', 0.0)
@example('zwykłe słowa,&NewLine;jakich pełno <br>', 0.0)
def test_a_block_is_cleaned_as_its_lines_one_by_one(text, old_share): assert_block_is_clean(text, old_share)


def test_every_plain_tag_and_entity_is_what_the_parser_makes_of_it():
    names = re.findall(r'[a-z][a-z\d]*', ' '.join(p.pattern.split('(?:')[1].split(')')[0].replace('h[1-6]', 'h1|h6') for p in (clean.PLAIN_BREAK, clean.PLAIN_INLINE)))
    assert len(names) > 20
    lines = [f'Ala <{a}>ma<{b} title="x">kota</{a}>, a kot</{b}> ma<{a}/>Alę' for a in names for b in names]
    lines += [f'<b>Ala ma {e if e[-1] == ";" else e + ";"} i kota</b>' for e in (f'&{name}' for name in html.entities.html5)]
    lines += [f'<b>Ala ma &#{n}; i kota</b>' for n in (*range(10_000), 55296, 65535, 65536, 128512, 1114111, 1114112)]
    assert_block_is_clean('\n'.join(lines))


def test_a_block_with_a_line_of_ten_megabytes():
    sentence = 'To jest <b>zdanie</b>,&nbsp;a po  nim następne.<br/>'
    for line in (sentence*200_000, '<b>'*100_000 + 'x', ' '*10_000_000 + 'Ala ma kota, a kot ma Alę', '<a x="'*100_000, '&'*1_000_000):
        done = clean_block(Block(f'Ala ma kota, a kot ma Alę.\n{line}\nmenu'), 0.0)
        texts = [clean_text(t) for t in ('Ala ma kota, a kot ma Alę.', line)]
        assert done.texts == [t.encode() for t in texts if t is not None]


@pytest.mark.parametrize('text, cleaned', [
    ('<p>Pierwszy akapit</p><p>drugi akapit</p>', 'Pierwszy akapit drugi akapit'),
    ('Ala ma <b>k</b>ota, a kot ma Alę', 'Ala ma kota, a kot ma Alę'),
    ('Linia pierwsza<br/>linia druga<br>trzecia', 'Linia pierwsza linia druga trzecia'),
    ('Przed skryptem <SCRIPT>var x = "</p>";</SCRIPT> po nim', 'Przed skryptem po nim'),
    ('<a title="a > b" href="http://x.example/?a=b&c=d">odnośnik do strony</a>', 'odnośnik do strony'),
    ('Tom &amp;amp; Jerry to kreskówka', 'Tom & Jerry to kreskówka'),
    ('Pok&oacute;j&nbsp;by&#322; czysty&hellip; i tani', 'Pokój był czysty… i tani'),
    ('&lt;b&gt;pogrubione słowa&lt;/b&gt; dwa razy', 'pogrubione słowa dwa razy'),
    ('Jeśli a < b i b < c, to a < c zawsze i wszędzie', 'Jeśli a < b i b < c, to a < c zawsze i wszędzie'),
    ('Zobacz https://a.example/b?c=d#e, potem www.b.example/x. Koniec', 'Zobacz , potem . Koniec'),
    ('Quixote, Vox, Xawery: litery q, v, x', 'Quixote, Vox, Xawery: litery q, v, x'),
    ('Съешь же ещё этих мягких булок', 'Съешь же ещё этих мягких булок'),
    ('tylko dwadzieścia <i>liter', 'tylko dwadzieścia liter'),
    ('kilka\tróżnych\u2003odstępów\r\n i\x0bkoniec', 'kilka różnych odstępów i koniec'),
    ('<p>za krótki</p>', None), ('http://a.example/bardzo-dlugi-adres', None), ('   ', None), ('===== *** =====', None),
    ('\0'*50 + 'tekst z samych zer', None), ('A\0l\0a\0 \0m\0a\0 \0k\0o\0t\0a\0', None)])
def test_texts_by_hand(text, cleaned): assert clean_text(text) == cleaned


def test_markup_that_goes_on_after_four_passes_is_rejected():
    escaped = lambda times: '&' + 'amp;'*times + ' zwykły tekst o niczym'
    assert [explain_text(escaped(n))[1] for n in (3, 4, 5, 50)] == ['kept', 'kept', 'markup', 'markup']


def test_limits_are_exact_and_measured_on_the_cleaned_text():
    assert clean_text('a'*14) is None and clean_text('a'*15) == 'a'*15
    assert clean_text('<b>' + 'a'*14 + '</b>' + ' '*30) is None
    for n in range(15, 120):
        most = n//10
        assert clean_text('a'*(n - most) + '-'*most) is not None and clean_text('a'*(n - most - 1) + '-'*(most + 1)) is None
        assert clean_text('ż'*(n - most) + '„'*most) is not None and clean_text('ż'*(n - most - 1) + '„'*(most + 1)) is None
    assert clean_text(' , .'.join('abcdefg')) is not None, 'space, comma and full stop are not counted against a text'
    assert clean_text('a_b_c_d_e_f_g_h') is None, 'an underscore is a symbol'


def test_hostile_markup_takes_no_long_time():
    begin = time.perf_counter()
    assert explain_text('<div>'*300_000 + 'tekst, który ktoś ukrył bardzo głęboko')[1] == 'markup'
    assert clean_text('<p>To jest zdanie, a po nim następne.</p>'*100_000).startswith('To jest zdanie, a po nim następne. To')
    assert not is_too_deep('<p>a<br><img src="b"><div></div>'*10_000)
    for t in ('<!--'*100_000, '<a href="'*100_000, '&amp;'*100_000, '<b><i>'*50_000): explain_text(t)
    assert time.perf_counter() - begin < 30


HOSTILE = """
import resource
from distilherbert.clean import Block, clean_block, explain_text
WORDS = 'zwykłe słowa, jakich pełno '
fonts = ''.join(f'<font color=c{i}>' for i in range(1900))
shapes = {'reopened': f'<p>{fonts}' + f'<p>{WORDS}'*3000, 'few, but often': f'<p>{fonts[:9000]}' + f'<p>{WORDS}'*3000,
          'attributes': '<a ' + ' '.join(f'a{i}=1' for i in range(100_000)) + f'>{WORDS}</a>', 'names alone': '<a ' + ' '.join(map(str, range(1002))) + f'>{WORDS}',
          'escaped': f'&lt;p{" a"*2000}&gt;{WORDS}', 'unclosed quotes': '<a x="'*100_000 + WORDS, 'one long line': '<b>x</b> '*(60_000_000//9)}
used = 4096*int(open('/proc/self/statm').read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,)*2)
for name, text in shapes.items(): print(name, explain_text(text)[1], sep=': ')
shapes.pop('one long line')
done = clean_block(Block('\\n'.join([WORDS, *shapes.values(), WORDS])), 0.0)
print(len(done.texts), done.counts['ccsub']['rejected markup'])
"""


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='memory is limited and read as Linux does it')
def test_hostile_markup_is_rejected_in_little_memory():
    done = subprocess.run([sys.executable, '-c', HOSTILE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *rules, block = done.stdout.splitlines()
    assert [r.split(': ')[1] for r in rules] == ['markup']*7 and block == '2 6', done.stdout


def test_markup_up_to_the_limits_is_kept():
    words = ' zwykłe słowa, jakich pełno'
    tag = lambda n: '<p ' + ' '.join(f'a{i}="b / c"' for i in range(n)) + f'>{words}'
    assert explain_text(tag(clean.WIDEST)) == (words.strip(), 'kept') and explain_text(tag(clean.WIDEST + 1)) == (None, 'markup')
    for line in (tag(clean.WIDEST), tag(clean.WIDEST + 1), '<b>'*1500 + f'<p>{words}</p>'*100, f'<b>{words}'*1000 + '<br>'): assert_block_is_clean(line)
    picture = '<img src="data:image/png;base64,' + 'a/b+'*1_000_000 + f'">{words}'
    assert clean_text(picture) == words.strip(), 'one attribute, however long'
    assert clean_text(f'<p>{words}</p>'*100_000).startswith('zwykłe') and not is_too_deep(f'<b>{words}</b>'*80_000)


def test_the_quick_look_never_hides_a_symbol_or_a_space():
    for c in map(chr, range(0x110000)):
        if '\ud800' <= c <= '\udfff': continue
        if not (c.isalnum() or c in ' ,.'): assert clean.marks(c), f'U+{ord(c):04x} is a symbol without a mark'
        if c.isspace(): assert not clean.is_folded(f'a{c}b') or c == ' ', f'U+{ord(c):04x} is white space that is not seen'


def test_precision_and_recall_on_the_world():
    scores = score_cleaning(size=1500, seed=99)
    assert set(scores) == {'kept', 'markup', 'urls', 'short', 'symbols', 'duplicates'}
    for rule, s in scores.items(): assert s['precision'] >= 0.99 and s['recall'] >= 0.99 and s['n'] > 100, (rule, s)


# Deduplication

@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=12), st.integers(1, 64))
def test_a_set_of_keys_is_a_set(batches, slots):
    seen, known = Seen(slots), set()
    for batch in batches:
        answer = seen.add(digests_of(str(i).encode() for i in batch)).tolist()
        for i, new in zip(batch, answer, strict=True):
            assert new == (i not in known)
            known.add(i)
    assert seen.used == len(known)


def test_keys_that_want_the_same_slot_and_differ_in_one_half():
    keys = np.array([[8, 1], [16, 1], [8, 2], [8, 1], [24, 7], [16, 1]], np.uint64)
    assert Seen(8).add(keys).tolist() == [True, True, True, False, True, False]


@given(st.lists(st.sampled_from(['a', 'b', 'ż', '\ud800', 'długi tekst']), max_size=50), st.integers(1, 7))
def test_deduplicate_keeps_first_occurrences_in_order(texts, batch): assert list(deduplicate(texts, batch)) == list(dict.fromkeys(texts))


# Blocks and documents

@settings(deadline=None)
@given(st.lists(st.sampled_from(['a', 'bb\n', '\n\n', '\n', '\r\n\r\n', 'ż', '   ']), max_size=60).map(''.join), st.integers(1, 40), st.data())
def test_blocks_depend_only_on_the_text(text, block, data):
    whole, sizes = text.encode(), data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    pieces, at = [], 0
    while at < len(whole):
        pieces.append(whole[at:at + sizes[len(pieces) % len(sizes)]])
        at += len(pieces[-1])
    blocks = list(cut_blocks(pieces, block))
    assert blocks == list(cut_blocks([whole], block)) and b''.join(blocks) == whole
    assert all(b.endswith((b'\n\n', b'\n\r\n')) for b in blocks[:-1])


def test_an_overlong_document_is_cut_at_a_line(monkeypatch):
    monkeypatch.setattr(clean, 'LONGEST', 64)
    text = b'0123456789\n'*50
    blocks = list(cut_blocks([text], 16))
    assert len(blocks) > 5 and b''.join(blocks) == text and all(b.endswith(b'9\n') for b in blocks)


def test_a_document_keeps_its_part_whatever_its_neighbours():
    documents = [f'To jest dokument numer {i}, o niczym szczególnym.' for i in range(400)]
    part = {d: clean.part_of(d, 0.6) for d in documents}
    assert 190 < sum(p == 'old' for p in part.values()) < 290
    for d in documents[:50]: assert clean_block(Block(f'Inny tekst przed nim.\n\n{d}\n\n'), 0.6).counts[part[d]]['documents'] >= 1
    assert {clean.part_of(d, 0.0) for d in documents} == {'ccsub'}


def test_a_table_never_takes_more_than_it_holds_at_most():
    rng, seen, worst = np.random.default_rng(0), Seen(), 0
    tracemalloc.start()
    try:
        for _ in range(60):
            keys = rng.integers(0, 2**64, (8192, 2), dtype=np.uint64)
            tracemalloc.reset_peak()
            seen.add(keys)
            if seen.used > 200_000: worst = max(worst, tracemalloc.get_traced_memory()[1]/seen.used)
    finally: tracemalloc.stop()
    assert 16/Seen.FULL < worst < 50, f'{worst:.0f} bytes a key, of which batches and pieces in the making are 10'


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**64 - 1, 2**63, 2**40]), max_size=300), st.integers(1, 9), st.sampled_from([1, 3, 16]))
def test_a_table_with_crowded_slots_grows_right(halves, slots, piece):
    "Keys that want one slot, at the start, the end, and across pieces."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, 'PIECE', piece)
        patch.setattr(clean, 'ROOM', 2)
        seen, known = Seen(slots), set()
        for i in range(0, len(halves), 7):
            batch = [(h, 1 + j % 3) for j, h in enumerate(halves[i:i + 7])]
            new = seen.add(np.array(batch, np.uint64)).tolist()
            for key, n in zip(batch, new, strict=True):
                assert n == (key not in known)
                known.add(key)
        assert not len(known) or not seen.add(np.array([*known], np.uint64)).any()


def test_a_table_that_grows_keeps_its_keys():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, (20_000, 2), dtype=np.uint64)
    keys[:50, 0] = np.arange(50, dtype=np.uint64) + np.uint64(2**64 - 50)  # At home in the last slot of every table
    seen = Seen(2)
    for i in range(0, len(keys), 137): assert seen.add(keys[i:i + 137]).all()
    assert 16/Seen.FULL <= seen.table.nbytes/seen.used <= 40
    assert seen.used == 20_000 and not seen.add(keys[rng.permutation(20_000)]).any() and seen.used == 20_000


# The whole stage, on folders

SENTENCE = 'Numer {} ma swoje zdanie, a w nim kilka słów.'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Artefacts of these tests live in a folder of their own, and blocks are small."
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))
    monkeypatch.delenv('DISTILHERBERT_CC100', raising=False)
    monkeypatch.setattr(clean, 'BLOCK', 4096)


def profile_of(folder, **changes): return replace(get_profile('mini'), text=str(folder), **changes)


def content(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob('*.txt'))}


def noisy_corpus(documents=300, seed=0):
    rng, lines = random.Random(seed), []
    for _ in range(documents):
        for _ in range(rng.randrange(1, 6)):
            s = SENTENCE.format(rng.randrange(900))
            lines.append(rng.choice([s, s, s, f'<p>{s}</p>', f'{s} http://a.example/b', 'Menu', '*** ### ***', s.replace(' ', '&nbsp;'), f'  {s}\t']))
        lines.append(rng.choice(['', '', ' ', '\t']))
    return '\n'.join(lines)


@pytest.fixture
def corpus(tmp_path):
    "A folder with three files, one of each kind."
    folder = tmp_path/'corpus'
    folder.mkdir()
    (folder/'a.txt').write_text(noisy_corpus(seed=1), 'utf-8')
    (folder/'b.txt.xz').write_bytes(lzma.compress(noisy_corpus(seed=2).encode()))
    (folder/'c.txt.gz').write_bytes(gzip.compress(noisy_corpus(seed=3).replace('\n', '\r\n').encode()))
    return folder


def naive(texts, old_share):
    "What the stage should leave, the plain way: a set of strings, no blocks."
    seen, parts, counts = set(), {'old': [], 'ccsub': []}, {'old': Counter(), 'ccsub': Counter()}
    for t in texts:
        for document in (d.strip() for d in re.split(r'\n\s*\n', t) if d.strip()):
            part = clean.part_of(document, old_share)
            for line in document.split('\n'):
                text, rule = explain_text(line)
                counts[part]['lines_read'] += 1
                counts[part][rule if text is None else 'duplicates' if text in seen else 'kept'] += 1
                if text is not None and text not in seen: parts[part].append(text)
                seen.add(text)
    return parts, counts


@pytest.mark.parametrize('workers', [1, 4])
def test_the_stage_does_what_the_plain_way_does(corpus, workers):
    folder = text_artefact(profile_of(corpus, old_share=0.4), workers=workers).build()
    texts = [(corpus/'a.txt').read_text('utf-8'), noisy_corpus(seed=2), noisy_corpus(seed=3).replace('\n', '\r\n')]
    parts, counts = naive(texts, 0.4)
    for part in parts:
        assert list(read_texts(folder, part)) == parts[part]
        found = read_manifest(folder)['counts']['parts'][part]
        assert found['lines_read'] == counts[part]['lines_read'] == sum(found['rejected'].values()) + found['duplicates'] + found['kept']
        assert {**found['rejected'], 'duplicates': found['duplicates'], 'kept': found['kept']} == \
               {r: counts[part][r] for r in (*clean.RULES, 'duplicates', 'kept')}
        assert found['chars_kept'] == sum(map(len, parts[part]))
    assert read_manifest(folder)['counts']['lines'] == sum(t.count('\n') for t in texts)


def test_the_number_of_workers_changes_no_byte(corpus, monkeypatch, tmp_path):
    monkeypatch.setattr(clean, 'STRETCH', 20_000)
    folders = []
    for workers in (1, 4):
        monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/f'runs{workers}'))
        monkeypatch.setenv('DISTILHERBERT_WORKERS', str(workers))
        a = text_artefact(profile_of(corpus, old_share=0.4))
        folders.append(a.build())
    assert content(folders[0]) == content(folders[1]) and len(content(folders[0])) > 4
    assert read_manifest(folders[0])['counts'] == read_manifest(folders[1])['counts']
    assert read_manifest(folders[0])['key'] == read_manifest(folders[1])['key']


def test_the_key_knows_contents_not_paths(corpus, tmp_path):
    a = text_artefact(profile_of(corpus))
    corpus.rename(tmp_path/'moved')
    assert text_artefact(profile_of(tmp_path/'moved')).key == a.key
    assert text_artefact(profile_of(tmp_path/'moved', old_share=0.1)).key != a.key
    assert text_artefact(profile_of(tmp_path/'moved', text_lines=10)).key != a.key
    (tmp_path/'moved'/'a.txt').write_text('Inny tekst niż przedtem.', 'utf-8')
    assert text_artefact(profile_of(tmp_path/'moved')).key != a.key


def test_files_are_left_out_by_name(corpus):
    names = lambda **fields: [s.name for s in clean.text_sources(profile_of(corpus, **fields))]
    everything = names()
    assert names(text_without=(everything[0], '*-no-such-*')) == everything[1:]
    assert text_artefact(profile_of(corpus, text_without=(everything[0],))).key != text_artefact(profile_of(corpus)).key
    with pytest.raises(SettingsError, match=r'other than \*'): names(text_without=('*',))


@pytest.mark.parametrize('lines', [4, 7, 100, 500])
def test_the_first_lines_are_those_of_head(tmp_path, lines):
    text, folder = noisy_corpus(seed=5), tmp_path/'t'
    folder.mkdir()
    (folder/'a.txt').write_text(text, 'utf-8')
    head = '\n'.join(text.split('\n')[:lines]) + '\n'
    (tmp_path/'h').mkdir()
    (tmp_path/'h'/'a.txt').write_text(head, 'utf-8')
    limited = text_artefact(profile_of(folder, text_lines=lines, old_share=0.3)).build()
    assert read_manifest(limited)['counts']['lines'] == lines
    assert content(limited) == content(text_artefact(profile_of(tmp_path/'h', old_share=0.3)).build())


def test_fewer_lines_than_asked_for_are_no_corpus(corpus):
    "A source that ends too soon is not the first 50 million lines of anything."
    lines = read_manifest(text_artefact(profile_of(corpus)).build())['counts']['lines']
    assert text_artefact(profile_of(corpus, text_lines=lines)).build().is_dir()
    short = text_artefact(profile_of(corpus, text_lines=lines + 1))
    with pytest.raises(clean.BadText, match=rf'asks for {lines + 1:,} lines, but .* {lines:,}\..*`text_lines = 0`'): short.build()
    assert not short.path.is_dir()


class Killed(BaseException):
    "Stands for a kill between two blocks."


@pytest.mark.parametrize('after', [0, 1, 5, 11, 14])
def test_a_run_that_was_killed_goes_on_and_ends_the_same(corpus, monkeypatch, tmp_path, after):
    monkeypatch.setattr(clean, 'STRETCH', 20_000)
    undisturbed = content(text_artefact(profile_of(corpus, old_share=0.4)).build())
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'again'))
    real, calls = clean.clean_block, []
    def dies(block, share):
        if len(calls) == after: raise Killed
        calls.append(block)
        return real(block, share)
    a = text_artefact(profile_of(corpus, old_share=0.4))
    monkeypatch.setattr(clean, 'clean_block', dies)
    with pytest.raises(Killed): a.build()
    for part in ('ccsub-00099.txt', '.ccsub-00098.txt.123.part'): (a.partial/part).write_bytes(b'half a fi')
    assert not a.path.exists()
    finished = clean.resume_note(a.partial)['blocks']
    again = []
    monkeypatch.setattr(clean, 'clean_block', lambda b, s: again.append(b) or real(b, s))
    assert content(a.build()) == undisturbed
    assert len(again) == len(list(b for s in text_sources(profile_of(corpus)) for b in s.blocks())) - finished


def test_old_and_new_parts_of_the_world(monkeypatch):
    p = replace(get_profile('demo'), world_size=60)
    folder = text_artefact(p).build()
    assert {f.name for f in folder.glob('*.txt')} == {'old-00000.txt', 'ccsub-00000.txt'}
    assert text_artefact(replace(p, old_share=0.5)).key == text_artefact(p).key, 'the world has parts of its own'


# Bad input: each is an error that names the file and the place, or is counted

def build_from(tmp_path, **files):
    folder = tmp_path/'bad'
    folder.mkdir(exist_ok=True)
    for name, data in files.items(): (folder/name.replace('_', '.')).write_bytes(data)
    return text_artefact(profile_of(folder)).build()


GOOD = ('\n'.join(SENTENCE.format(i) for i in range(3000)) + '\n').encode()


def test_a_truncated_archive(tmp_path):
    for name, pack in (('a_txt_xz', lzma.compress), ('a_txt_gz', gzip.compress)):
        packed = pack(GOOD)
        for keep in (0, 10, len(packed)//2, len(packed) - 1):
            with pytest.raises(BadText, match=r'a\.txt\.(xz|gz) is a (truncated|broken) archive'): build_from(tmp_path, **{name: packed[:keep]})
        (tmp_path/'bad'/name.replace('_', '.')).unlink()


def test_a_broken_archive(tmp_path):
    for name, pack in (('a_txt_xz', lzma.compress), ('a_txt_gz', gzip.compress)):
        packed = bytearray(pack(GOOD))
        packed[len(packed)//2] ^= 0xff
        with pytest.raises(BadText, match='broken archive.* near byte'): build_from(tmp_path, **{name: bytes(packed)})
        with pytest.raises(BadText, match='broken archive'): build_from(tmp_path, **{name: b'To nie jest archiwum, tylko tekst.'})
        with pytest.raises(BadText, match='broken archive'): build_from(tmp_path, **{name: pack(GOOD) + b'i jeszcze cos'})
        (tmp_path/'bad'/name.replace('_', '.')).unlink()


def test_several_streams_in_one_archive_are_one_text(tmp_path):
    half = GOOD.index(b'\n', len(GOOD)//2) + 1
    folder = build_from(tmp_path, a_txt_xz=lzma.compress(GOOD[:half]) + b'\0'*8 + lzma.compress(GOOD[half:]) + b'\0'*4)
    assert read_manifest(folder)['counts']['lines'] == 3000


@pytest.mark.parametrize('encoding', ['iso-8859-2', 'utf-16', 'cp1250'])
def test_a_file_that_is_not_utf8(tmp_path, encoding):
    before = GOOD.decode()
    data = before.encode() + 'gęś i żółw'.encode(encoding) + b'\n'
    with pytest.raises(BadText) as e: build_from(tmp_path, a_txt=data)
    offset = next(i for i in range(len(GOOD), len(data)) if not is_utf8(data[len(GOOD):i + 1]))
    assert 'a.txt is not UTF-8' in str(e.value) and 'line 3,001' in str(e.value)
    assert abs(int(re.search(r'offset ([\d,]+)', str(e.value))[1].replace(',', '')) - offset) <= 3


def is_utf8(data):
    try: data.decode()
    except UnicodeDecodeError as e: return e.reason == 'unexpected end of data'
    return True


def test_a_byte_order_mark_is_no_text(tmp_path):
    folder = build_from(tmp_path, a_txt=b'\xef\xbb\xbf' + GOOD)
    assert next(read_texts(folder, 'ccsub' if (folder/'ccsub-00000.txt').exists() else 'old'))[0] == 'N'


def test_a_folder_without_text(tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(SettingsError, match='There is no text in .*empty: it holds nothing'): text_sources(profile_of(tmp_path/'empty'))
    (tmp_path/'empty'/'a.pdf').touch()
    with pytest.raises(SettingsError, match=r'it holds a\.pdf; wanted are'): text_sources(profile_of(tmp_path/'empty'))
    with pytest.raises(SettingsError, match='There is no folder'): text_sources(profile_of(tmp_path/'nowhere'))


@pytest.mark.parametrize('data', [b'', b'\n\n\n', b'Menu\n\nStart\n', b'\0'*10])
def test_text_of_which_nothing_is_left(tmp_path, data):
    with pytest.raises(BadText, match=r'Nothing is left of a\.txt'): build_from(tmp_path, a_txt=data)


def test_a_line_of_ten_megabytes(tmp_path):
    long = 'Bardzo długa linia, która się nie kończy, tylko trwa. '*200_000
    folder = build_from(tmp_path, a_txt=f'{SENTENCE}\n{long}\n<p>{long}</p>\n\n{SENTENCE.format(1)}\n'.encode())
    texts = [t for part in ('old', 'ccsub') if list(folder.glob(f'{part}-*')) for t in read_texts(folder, part)]
    assert sorted(map(len, texts)) == sorted([len(SENTENCE), len(SENTENCE.format(1)), len(long) - 1])
    counts = read_manifest(folder)['counts']['parts']
    assert sum(p['duplicates'] for p in counts.values()) == 1 and sum(p['lines_read'] for p in counts.values()) == 4


def test_a_nul_and_an_empty_line_lose_nothing(tmp_path):
    folder = build_from(tmp_path, a_txt=f'\n\n{SENTENCE.format(1)}\n\n\n \n{SENTENCE.format(2)}\0\n{SENTENCE.format(3)}'.encode())
    texts = {t for part in ('old', 'ccsub') if list(folder.glob(f'{part}-*')) for t in read_texts(folder, part)}
    assert texts == {SENTENCE.format(1), SENTENCE.format(2) + '\ufffd', SENTENCE.format(3)}


def many_documents(word, n=4000):
    "Several blocks of documents that no other file has."
    return ''.join(f'{word} numer {i} ma swoje zdanie,\na w nim kilka zwykłych słów o liczbie {i}.\n\n' for i in range(n)).encode()


def damaged(text):
    "Ways in which a file of many documents can be broken at its very end, by name, and what its error says."
    xz, gz = lzma.compress(text), gzip.compress(text)
    return {'b.txt.xz': (xz[:-1], 'truncated archive'), 'c.txt.gz': (gz[:-8] + bytes(4) + gz[-4:], 'broken archive'), 'd.txt.gz': (gz[:-1], 'truncated archive'),
            'e.txt': (text + 'gęś i żółw'.encode('iso-8859-2'), f'not UTF-8: byte at offset {len(text) + 1:,} '), 'f.txt': (text + bytes(9000), 'is not text: 9,000 of'),
            'g.txt': (text + 'Ala ma kota, a kot ma psa\n'.encode('utf-16-le')*200, 'is not text'), 'h.txt': (text + b'x'*70_000, 'no line end in the 65,536 bytes')}


@pytest.mark.parametrize('name', damaged(b''))
def test_of_a_file_that_is_broken_at_its_end_nothing_is_kept(tmp_path, monkeypatch, name, caplog):
    monkeypatch.setattr(clean, 'LONGEST', 1 << 14)
    monkeypatch.setattr(clean, 'LONGEST_LINE', 1 << 16)
    monkeypatch.setattr(clean, 'CHUNK', 1000)
    data, error = damaged(many_documents('Zepsuty'))[name]
    for folder in ('good', 'both'):
        (tmp_path/folder).mkdir()
        for good in ('a.txt', 'z.txt'): (tmp_path/folder/good).write_bytes(many_documents(f'Dobry {good}', 500))
    (tmp_path/'both'/name).write_bytes(data)
    blocks = next(s for s in text_sources(profile_of(tmp_path/'both')) if s.name == name).blocks()
    assert sum('Zepsuty' in next(blocks).text for _ in range(20)) == 20, 'the damage comes late'
    with pytest.raises(BadText, match=f'{re.escape(name)}.*{error}'): text_artefact(profile_of(tmp_path/'both')).build()
    made, alone = (text_artefact(profile_of(tmp_path/folder, old_share=0.4, on_bad_file='skip')).build() for folder in ('both', 'good'))
    counts = read_manifest(made)['counts']
    assert content(made) == content(alone) and counts['parts'] == read_manifest(alone)['counts']['parts']
    assert counts['sources'] == ['a.txt', 'z.txt'] and len(counts['bad_files']) == 1 and name in counts['bad_files'][0] and error in counts['bad_files'][0]
    assert f'Left out: {name}' in caplog.text


def test_a_run_that_skipped_a_file_goes_on_after_a_kill(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(clean, 'STRETCH', 20_000)
    (corpus/'aa.txt.xz').write_bytes(damaged(many_documents('Zepsuty'))['b.txt.xz'][0])
    a, real, calls = text_artefact(profile_of(corpus, on_bad_file='skip')), clean.clean_block, []
    def dies(block, share):
        if len(calls) == 9: raise Killed
        calls.append(block)
        return real(block, share)
    monkeypatch.setattr(clean, 'clean_block', dies)
    with pytest.raises(Killed): a.build()
    assert clean.resume_note(a.partial)['blocks']
    monkeypatch.setattr(clean, 'clean_block', real)
    counts, texts = read_manifest(a.build())['counts'], content(a.path)
    assert [b.split()[0] for b in counts['bad_files']] == ['aa.txt.xz']
    (corpus/'aa.txt.xz').unlink()
    assert texts == content(text_artefact(profile_of(corpus)).build())


def test_skipping_is_a_field_of_the_profile_and_reaches_the_rows(tmp_path, corpus):
    from distilherbert.pack import Rows, build_rows
    (corpus/'bad.txt.xz').write_bytes(lzma.compress(GOOD)[:500])
    (tmp_path/'mine.toml').write_text(f'like = "demo"\nname = "mine"\ntext = "{corpus}"\nvocab_size = 400\nmax_len = 32\nold_share = 0.4\n')
    with pytest.raises(BadText, match='bad.txt.xz'): build_rows(tmp_path/'mine.toml')
    with open(tmp_path/'mine.toml', 'a') as f: f.write('on_bad_file = "skip"\n')
    folder = build_rows(tmp_path/'mine.toml')
    assert len(Rows.open(folder).train) > 100 and 'bad.txt.xz is a truncated archive' in (folder/'README.md').read_text('utf-8')
    (corpus/'bad.txt.xz').unlink()
    good = build_rows(replace(get_profile(tmp_path/'mine.toml'), on_bad_file='stop'))
    arrays = lambda folder: {f.name: f.read_bytes() for f in folder.glob('*.npy')}
    assert good != folder and arrays(good) == arrays(folder)


@pytest.mark.skipif(not Path('/proc/self/mem').exists(), reason='needs a file that the system refuses to read')
def test_a_file_that_the_system_cannot_read_is_named_and_can_be_skipped(tmp_path, corpus, caplog):
    (corpus/'b.txt').symlink_to('/proc/self/mem')
    with pytest.raises(BadText, match=r'^b\.txt cannot be read from byte 0 on: Input/output error'): text_artefact(profile_of(corpus)).build()
    counts = read_manifest(text_artefact(profile_of(corpus, on_bad_file='skip')).build())['counts']
    assert counts['bad_files'][0].startswith('b.txt cannot be read from byte 0 on: Input/output error') and counts['sources'] == ['a.txt', 'b.txt.xz', 'c.txt.gz']


@pytest.mark.parametrize('error', [errno.EIO, errno.EACCES])
def test_a_disk_that_fails_in_the_middle_is_named_with_the_byte(tmp_path, corpus, monkeypatch, error):
    class Failing(io.BytesIO):
        def read(self, n=-1):
            if self.tell() >= 3000: raise OSError(error, os.strerror(error))
            return super().read(n)
    monkeypatch.setattr(clean, 'CHUNK', 1000)
    monkeypatch.setattr(clean, 'open', lambda path, *mode, **k: Failing(Path(path).read_bytes()) if Path(path).name == 'a.txt' else open(path, *mode, **k), raising=False)
    with pytest.raises(BadText, match=rf'^a\.txt cannot be read from byte 3,000 on: {os.strerror(error)}'): text_artefact(profile_of(corpus)).build()
    counts = read_manifest(text_artefact(profile_of(corpus, on_bad_file='skip')).build())['counts']
    assert 'byte 3,000' in counts['bad_files'][0] and counts['sources'] == ['b.txt.xz', 'c.txt.gz']


def test_files_that_are_not_read_are_named(corpus, caplog):
    from distilherbert.pack import build_rows
    p = replace(get_profile('demo'), text=str(corpus), vocab_size=400, max_len=32, old_share=0.4, text_without=('left-out*',))
    key, counts = text_artefact(p).key, read_manifest(text_artefact(p).build())['counts']
    assert counts['unread_files'] == [] and 'Not read' not in caplog.text
    for name in ('b.txt.bz2', 'b.TXT', 'README.md', '.hidden', 'left-out.bin'): (corpus/name).write_text('Ala ma kota.')
    (corpus/'empty.txt').touch()
    (corpus/'folder.txt').mkdir()
    (corpus/'gone.txt').symlink_to(corpus/'nowhere.txt')
    (corpus/'new.txt').write_text(SENTENCE.format('nowy'))
    said = ['README.md: its name does not end in .txt, .txt.gz, .txt.xz', 'b.TXT: its name does not end in .txt, .txt.gz, .txt.xz',
            'b.txt.bz2: its name does not end in .txt, .txt.gz, .txt.xz', 'empty.txt: empty', 'folder.txt: a folder', 'gone.txt: a link to what is not there']
    folder = text_artefact(p).build()
    assert read_manifest(folder)['counts']['unread_files'] == said and all(f'Not read: {file}' in caplog.text for file in said)
    card = (build_rows(p)/'README.md').read_text('utf-8')
    assert text_artefact(p).key != key and all(f'- {file}\n' in card for file in said)
    (corpus/'b.TXT').unlink()
    assert text_artefact(p).build() == folder, 'what is not read is not in the key'


def test_a_file_whose_lines_end_in_carriage_returns_is_an_error(tmp_path):
    with pytest.raises(BadText, match=r'a\.txt has 3,000 carriage returns where its lines should end, the first one at offset 46 '): build_from(tmp_path, a_txt=GOOD.replace(b'\n', b'\r'))
    with pytest.raises(BadText, match='carriage returns where'): build_from(tmp_path, a_txt=GOOD.replace(b'\n', b'\r') + b'\n')
    windows = read_manifest(build_from(tmp_path, a_txt=GOOD.replace(b'\n', b'\r\n')))['counts']
    stray = read_manifest(build_from(tmp_path, a_txt=GOOD.replace(b' ', b'\r')))['counts']
    assert windows['lines'] == stray['lines'] == 3000 and [sum(p['kept'] for p in c['parts'].values()) for c in (windows, stray)] == [3000, 3000]


def test_files_of_which_all_are_bad_are_an_error(tmp_path):
    (tmp_path/'t').mkdir()
    for name in 'ab': (tmp_path/'t'/f'{name}.txt.xz').write_bytes(lzma.compress(GOOD)[:500])
    with pytest.raises(BadText, match='Nothing is left of.*a.txt.xz is a truncated.*b.txt.xz is a truncated'): text_artefact(profile_of(tmp_path/'t', on_bad_file='skip')).build()
    for text in ('cc100', 'world'):
        with pytest.raises(SettingsError, match='on_bad_file = "skip" is for a folder'): replace(get_profile('demo'), text=text, on_bad_file='skip')
    with pytest.raises(SettingsError, match='There is: stop, skip'): profile_of(tmp_path/'t', on_bad_file='ignore')


def test_memory_does_not_grow_with_a_line_without_end(monkeypatch):
    monkeypatch.setattr(clean, 'LONGEST', 1 << 12)
    monkeypatch.setattr(clean, 'LONGEST_LINE', 1 << 14)
    given = 0
    def chunks():
        nonlocal given
        yield b'Ala ma kota.\n\n'
        for _ in range(10_000):
            given += 1000
            yield b'x'*1000
    with pytest.raises(BadText, match=r'dom\.txt has no line end in the 16,384 bytes from offset 14 of its text'): list(cut_blocks(chunks(), 256, 'dom.txt'))
    assert given < 3*(1 << 14), 'reading stops at the limit'
    below = b'x'*16_000 + b'\n'
    assert b''.join(cut_blocks([below]*3, 256, 'dom.txt')) == below*3


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be', 'utf-32-le'])
def test_nuls_by_the_dozen_are_no_text(tmp_path, encoding):
    sentence = 'Ala ma kota, a kot ma psa i nic wiecej.\n'
    with pytest.raises(BadText, match=r'a\.txt is not text: .* are NUL, the first one at offset [013] of its text \(0x00\), in line 1'):
        build_from(tmp_path, a_txt=(sentence*50).encode(encoding))
    with pytest.raises(BadText, match=r'first one at offset [\d,]+ of its text \(0x00\), in line 3,00[12]'): build_from(tmp_path, a_txt=GOOD + (sentence*50).encode(encoding))
    rare = read_manifest(build_from(tmp_path, a_txt=GOOD.replace(b'zdanie,', b'zdanie\0,', 9)))['counts']['parts']
    assert sum(p['changed']['characters'] for p in rare.values()) == 9 and sum(p['kept'] for p in rare.values()) == 3000


def test_a_missing_part_says_what_there_is(corpus):
    folder = text_artefact(profile_of(corpus, old_share=0.0)).build()
    with pytest.raises(SettingsError, match="no part 'old'; it has ccsub"): list(read_texts(folder, 'old'))


# CC-100 over HTTP

class Server(http.server.ThreadingHTTPServer):
    "Serves one file, as badly as told."
    daemon_threads = True

    def __init__(self, data):
        self.data, self.drop_after, self.ranges, self.status, self.tags, self.asked, self.lie = data, [], True, [], ['"1"'], [], 0
        super().__init__(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self): return f'http://127.0.0.1:{self.server_port}/pl.txt.xz'


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        s = self.server
        s.asked.append(self.headers.get('Range'))
        tag = s.tags.pop(0) if len(s.tags) > 1 else s.tags[0]
        if s.status and (status := s.status.pop(0)) != 200: return self.send_error(status)
        start = int(m[1]) if s.ranges and (m := re.match(r'bytes=(\d+)-', self.headers.get('Range') or '')) else 0
        if start and self.headers.get('If-Range', tag) != tag: start = 0
        self.send_response(206 if start else 200)
        if start: self.send_header('Content-Range', f'bytes {start}-{len(s.data) - 1}/{len(s.data)}')
        self.send_header('Content-Length', str(len(s.data) - start + s.lie))
        self.send_header('ETag', tag)
        self.end_headers()
        body = s.data[start:]
        if s.drop_after: body = body[:s.drop_after.pop(0)]
        try: self.wfile.write(body)
        except OSError: return
        self.wfile.flush()
        if len(body) < len(s.data) - start or s.lie:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(monkeypatch):
    "A server of CC-100 as it should be; tests spoil it."
    rng = random.Random(0)
    text = ''.join(SENTENCE.format(rng.randrange(10**9)) + ('\n\n' if rng.random() < .3 else '\n') for _ in range(20_000))
    s = Server(lzma.compress(text.encode(), preset=0))
    s.text = text
    monkeypatch.setenv('DISTILHERBERT_CC100', s.address)
    monkeypatch.setattr(clean.time, 'sleep', lambda seconds: None)
    yield s
    s.shutdown()
    s.server_close()


def paper(lines=0): return replace(get_profile('paper'), text_lines=lines)


def test_cc100_is_streamed_whole(server):
    folder = text_artefact(paper()).build()
    assert list(read_texts(folder, 'ccsub')) == [t for t in server.text.split('\n') if t]
    assert {f.name for f in folder.glob('*.txt')} == {'ccsub-00000.txt'}


def test_only_what_is_needed_for_the_first_lines_is_read(server):
    folder = text_artefact(paper()).build()
    server.data = server.data[:len(server.data)//2]  # What comes later need not even be there
    few = text_artefact(paper(50)).build()
    assert read_manifest(few)['counts']['lines'] == 50
    texts = list(read_texts(few, 'ccsub'))
    assert 20 < len(texts) <= 50 and texts == list(read_texts(folder, 'ccsub'))[:len(texts)]


def test_a_dropped_connection_is_taken_up_where_it_broke(server):
    whole = b''.join(http_chunks(server.address))
    server.drop_after, server.asked = [len(server.data)//3, 0, 1000], []
    assert b''.join(http_chunks(server.address)) == whole == server.data
    assert server.asked[0] is None and server.asked[1] == f'bytes={len(server.data)//3}-' and len(server.asked) == 4


def test_a_drop_leaves_the_same_text(server, tmp_path, monkeypatch):
    whole = content(text_artefact(paper()).build())
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'dropped'))
    server.drop_after = [100_000, 50_000]
    assert content(text_artefact(paper()).build()) == whole


def test_a_server_that_cannot_go_on_is_an_error(server):
    server.ranges, server.drop_after = False, [50_000]
    with pytest.raises(BadText, match='broke after 50,000 bytes, and the server cannot go on from there'): list(http_chunks(server.address))


def test_a_file_that_changes_meanwhile_is_an_error(server):
    server.tags, server.drop_after = ['"1"', '"2"'], [50_000]
    with pytest.raises(BadText, match='or the file has changed'): list(http_chunks(server.address))


def test_a_line_that_stays_dead_is_an_error(server):
    server.drop_after = [50_000] + [0]*100
    with pytest.raises(BadText, match='broke after 50,000 bytes and cannot be opened again'): list(http_chunks(server.address))


def test_a_length_that_never_comes_is_an_error(server):
    server.lie = 1000
    with pytest.raises(BadText, match='broke after|cannot go on|416'): list(http_chunks(server.address))


def test_a_server_that_is_busy_is_asked_again(server):
    server.status = [503, 200]
    assert b''.join(http_chunks(server.address)) == server.data


@pytest.mark.parametrize('status', [404, 403])
def test_a_file_that_is_not_there_says_what_to_do(server, status):
    server.status = [status]
    with pytest.raises(BadText, match=rf'answers {status}.*curl -LO http.*cc100/pl\.txt\.xz'): text_artefact(paper()).build()


def test_a_truncated_file_on_the_server_is_an_error(server):
    server.data = server.data[:-1000]
    with pytest.raises(BadText, match='truncated archive'): text_artefact(paper()).build()


@pytest.mark.parametrize('address', ['http://127.0.0.1:9/pl.txt.xz', 'http://no-such-host.invalid/pl.txt.xz'])
def test_without_a_network_it_fails_at_once_and_says_what_to_do(monkeypatch, address):
    monkeypatch.setenv('DISTILHERBERT_CC100', address)
    begin = time.perf_counter()
    with pytest.raises(BadText, match='cannot be opened.*fetch the file elsewhere'): text_artefact(paper()).build()
    assert time.perf_counter() - begin < 15


def test_a_local_copy_comes_before_the_address(tmp_path, monkeypatch):
    (tmp_path/'data'/'cc100').mkdir(parents=True)
    (tmp_path/'data'/'cc100'/'pl.txt.xz').write_bytes(lzma.compress(GOOD))
    monkeypatch.setenv('DISTILHERBERT_DATA', str(tmp_path/'data'))
    assert [s.name for s in text_sources(paper())] == ['pl.txt.xz']
    monkeypatch.setenv('DISTILHERBERT_CC100', str(tmp_path/'data'/'cc100'/'pl.txt.xz'))
    assert read_manifest(text_artefact(paper()).build())['counts']['lines'] == 3000
    monkeypatch.setenv('DISTILHERBERT_CC100', str(tmp_path/'none.xz'))
    with pytest.raises(SettingsError, match='is no file'): text_sources(paper())
    monkeypatch.setenv('DISTILHERBERT_CC100', 'ftp://a.example/pl.txt.xz')
    with pytest.raises(SettingsError, match='neither a file nor http'): text_sources(paper())


# Real text

@pytest.mark.skipif(not os.environ.get('DISTILHERBERT_DATA'), reason='DISTILHERBERT_DATA is not set: no real text here')
def test_real_lines_are_cleaned_like_the_slow_way():
    folder = Path(os.environ['DISTILHERBERT_DATA']).resolve()/'text'
    rng = random.Random(0)
    for file in sorted(folder.glob('*.txt.xz')):
        with lzma.open(file, 'rt', encoding='utf-8', newline='\n') as f: lines = [line.rstrip('\n') for line in f if rng.random() < 0.02]
        for line, verdict in zip(lines, clean.quick_look(lines)[1].tolist(), strict=True):
            cleaned = clean_text(line)
            assert verdict == clean.CLOSER or (cleaned == line if verdict == clean.KEEP else explain_text(line) == (None, 'short')), file.name
            assert cleaned == slow_clean(line) and (cleaned is None or clean_text(cleaned) == cleaned), file.name
