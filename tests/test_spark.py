"Spark gives what one machine gives: local[2], a few files, the same set of texts and rows that hold them."
import gzip
import os
import random
import re
import runpy
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distilherbert import spark
from distilherbert.artefact import read_manifest
from distilherbert.clean import BadText, Block, clean_block, deduplicate, read_texts, text_artefact
from distilherbert.pack import Rows, load_tokenizer, rows_artefact, tokenizer_artefact, train_tokenizer, write_tokenizer
from distilherbert.scenario import SettingsError, get_profile
from distilherbert.spark import add_counts, clean_batches, open_session, spark_artefacts

SENTENCE = 'Numer {} ma swoje zdanie, a w nim kilka zwykłych słów.'


def noisy(documents, seed):
    "Documents with markup, short lines, duplicates within and across files, odd gaps."
    rng, text = random.Random(seed), []
    for _ in range(documents):
        for _ in range(rng.randrange(1, 5)):
            s = SENTENCE.format(rng.randrange(500))
            text.append(rng.choice([s, s, f'<p>{s}</p>', f'{s} http://a.example/b', 'Menu', '*** ### ***', f'  {s}\t']))
        text.append(rng.choice(['', '', '\n', ' ']))
    return '\n'.join(text) + '\n'


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    "Two files and a profile on them, with a small tokenizer of its own; artefacts are made once for all tests."
    top = tmp_path_factory.mktemp('spark')
    folder, tokenizer = top/'text', top/'tokenizer'
    for d in (folder, tokenizer): d.mkdir()
    for i in range(2): (folder/f'{i}.txt').write_text(noisy(150, i) + ('Ostatnia linia nie ma końca.' if i else '\n\n'), 'utf-8')
    write_tokenizer(tokenizer, train_tokenizer([SENTENCE.format(i) for i in range(100)], 150), 64)
    p = replace(get_profile('demo'), name='spark', text=str(folder), old_share=0.4, tokenizer=str(tokenizer), max_len=64, heldout_share=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('DISTILHERBERT_RUNS', str(top/'runs'))
        yield p, sorted(folder.glob('*.txt'))


# Without Spark: what runs on a worker

def batch_of(*documents, files=('a.txt',)):
    return pa.record_batch({'value': [d if isinstance(d, bytes) else d.encode() for d in documents], 'file': (list(files)*len(documents))[:len(documents)]})


def test_batches_are_cleaned_as_blocks():
    documents = [d for d in noisy(50, 3).split('\n\n')]
    batches = [batch_of(*documents[i:i + 7]) for i in range(0, len(documents), 7)]
    out = pa.Table.from_batches(list(clean_batches(batches, 0.4))).to_pylist()
    whole = clean_block(Block('\n\n'.join(documents)), 0.4)
    texts = [row for row in out if row['text'] is not None]
    assert [row['text'] for row in texts] == whole.texts and bytes(row['part'] for row in texts) == whole.parts
    assert b''.join(row['key'] for row in texts) == whole.keys
    assert add_counts(row['counts'] for row in out if row['counts']) == whole.counts


def test_what_is_not_utf8_is_named_with_its_file():
    good, bad = SENTENCE.format(1), [SENTENCE.format(2).encode('iso-8859-2'), 'Ala ma kota.'.encode('utf-16-le')]
    out = next(clean_batches([batch_of(good, bad[0], bad[1], '\ufeff' + SENTENCE.format(3), files=('a.txt', 'b.txt', 'c.txt', 'd.txt'))], 0.0)).to_pylist()
    assert [r['text'].decode() for r in out if r['text']] == [good, SENTENCE.format(3)]
    said = out[-1]['bad'].split('\n')
    assert len(said) == 2 and 'b.txt is not UTF-8: byte at offset' in said[0] and 'c.txt is not text: 12 of 24 bytes are NUL' in said[1]
    assert [r['bad'] for r in next(clean_batches([batch_of(good, 'Znak \ufffd stoi tu od początku.')], 0.0)).to_pylist()] == [None]*3, 'U+FFFD itself is UTF-8'


@pytest.mark.parametrize('fields, words', [({'text_lines': 9}, 'text_lines = 9'), ({'drop_klej': True}, 'drop_klej = True'), ({'on_bad_file': 'skip'}, "on_bad_file = 'skip'"),
                                           ({'text_without': ('*.txt',)}, 'left out by `text_without` of profile spark')])
def test_what_spark_cannot_do_is_an_error(corpus, fields, words):
    p, files = corpus
    with pytest.raises(SettingsError, match=re.escape(words)): spark_artefacts(replace(p, **fields), files, None)


def test_files_are_left_out_by_name(corpus):
    p, files = corpus
    assert spark_artefacts(replace(p, text_without=('1*',)), files, None)[0].key == spark_artefacts(p, files[:1], None)[0].key != spark_artefacts(p, files, None)[0].key


def test_settings_are_checked_before_java_starts(corpus, monkeypatch, tmp_path, capsys):
    p, files = corpus
    with pytest.raises(SettingsError, match='Unpack .xz first'): spark_artefacts(p, [tmp_path/'a.txt.xz'], None)
    with pytest.raises(SettingsError, match='There is no part'): spark_artefacts(p, files, None, 'new')
    assert spark_artefacts(p, files, None, partitions=2)[1].key != spark_artefacts(p, files, None, partitions=3)[1].key
    assert spark.main([str(tmp_path/'none.txt'), '--profile', 'demo']) == 2 and 'none.txt' in capsys.readouterr().err


@pytest.mark.parametrize('text', [b'', b'a', b'a\n', b'a\n\n'])
def test_the_last_byte(tmp_path, text):
    (tmp_path/'a.txt').write_bytes(text)
    (tmp_path/'a.txt.gz').write_bytes(gzip.compress(text))
    assert spark.last_byte(tmp_path/'a.txt') == spark.last_byte(tmp_path/'a.txt.gz') == text[-1:]


def test_without_pyspark_or_java_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyspark.sql', None)
    with pytest.raises(SettingsError, match=r"pip install 'distilherbert\[spark\]'"): open_session()


# With Spark

@pytest.fixture(scope='module')
def session():
    pytest.importorskip('pyspark', reason="PySpark is not installed: pip install 'distilherbert[spark]'")
    if not (os.environ.get('JAVA_HOME') or shutil.which('java')): pytest.skip('there is no Java here: apt-get install default-jre-headless')
    session = open_session('local[2]', {'spark.sql.shuffle.partitions': '2', 'spark.ui.enabled': 'false', 'spark.driver.memory': '1g'})
    yield session
    session.stop()


def words_of(rows): return Counter(i for s in (rows.train, rows.heldout) for k in range(len(s)) for i in s[k].tolist() if i not in rows.special_ids)


def test_the_kept_texts_are_those_of_one_machine(corpus, session):
    p, files = corpus
    text, rows = spark_artefacts(p, files, session, partitions=2)
    rows.build()
    kept = [(r.part, r.text.decode()) for r in session.read.parquet(str(text.path/'texts')).select('part', 'text').collect()]
    alone = text_artefact(p).build()
    expected = [t for part in ('old', 'ccsub') for t in read_texts(alone, part)]
    assert len(kept) == len(expected) and {t for _, t in kept} == set(expected) == set(deduplicate(t for _, t in kept))
    ours, theirs = read_manifest(text.path)['counts']['parts'], read_manifest(alone)['counts']['parts']
    for part in ('old', 'ccsub'):
        for what in ('documents', 'lines_read', 'rejected', 'changed'): assert ours[part][what] == theirs[part][what], (part, what)
        assert ours[part]['lines_read'] == sum(ours[part]['rejected'].values()) + ours[part]['duplicates'] + ours[part]['kept']
    assert {k: v for k, v in read_manifest(text.path)['counts'].items() if k != 'parts'} == {k: v for k, v in read_manifest(alone)['counts'].items() if k != 'parts'}
    for what in ('kept', 'duplicates', 'chars_kept'): assert sum(c[what] for c in ours.values()) == sum(c[what] for c in theirs.values())


def test_the_rows_hold_the_texts_of_their_part_and_open_as_all_rows(corpus, session):
    p, files = corpus
    text, rows = spark_artefacts(p, files, session, partitions=2)
    opened, tokenizer = Rows.open(rows.build()), load_tokenizer(tokenizer_artefact(p).path)
    counts = read_manifest(rows.path)['counts']
    texts = [r.text.decode() for r in session.read.parquet(str(text.path/'texts')).where('part = 1').collect()]
    tokens = Counter(i for t in texts for i in tokenizer(t, add_special_tokens=False)['input_ids'])
    assert counts['texts'] == len(texts) and counts['text_tokens'] == tokens.total() and len(opened.train) + len(opened.heldout) == counts['rows']
    lost = tokens - words_of(opened)
    assert lost.total() == counts['dropped_tokens'] + sum(n for i, n in tokens.items() if i in opened.special_ids)
    assert {f.name for f in rows.path.glob('*.npy')} >= {'ends_word.npy', 'starts_word.npy'} and not list(rows.path.glob('.*'))
    assert set(counts) == set(read_manifest(rows_artefact(p).build())['counts'])
    assert np.diff(sorted(int(re.search(r'\d+', f.name)[0]) for f in rows.path.glob('ids-*.npy'))).all()


def test_files_that_are_not_utf8_are_an_error_with_their_names(corpus, session, tmp_path):
    p, files = corpus
    bad = {'2.txt': ((SENTENCE.format(1) + '\n\n').encode()*200 + 'gęś i żółw'.encode('iso-8859-2'), r'2\.txt is not UTF-8: byte at offset'),
           '3.txt': ('Ala ma kota, a kot ma psa.\n'.encode('utf-16-le')*20, r'3\.txt is not text: .* are NUL')}
    for name, (data, words) in bad.items():
        (tmp_path/'alone').mkdir(exist_ok=True)
        for f in (tmp_path/name, tmp_path/'alone'/name): f.write_bytes(data)
        with pytest.raises(BadText, match=words): text_artefact(replace(p, text=str(tmp_path/'alone'))).build()
        (tmp_path/'alone'/name).unlink()
    text, _ = spark_artefacts(p, [*files, *(tmp_path/name for name in bad)], session)
    with pytest.raises(BadText) as e: text.build()
    assert all(re.search(words, str(e.value)) for _, words in bad.values()) and text.state() == 'absent'


def test_a_truncated_archive_is_an_error_with_its_name(corpus, session, tmp_path):
    p, files = corpus
    (tmp_path/'2.txt.gz').write_bytes(gzip.compress(noisy(100, 9).encode())[:-20])
    text, _ = spark_artefacts(p, [*files, tmp_path/'2.txt.gz'], session)
    with pytest.raises(BadText, match=r'^Spark cannot read 2\.txt\.gz to its end'): text.build()
    assert text.state() == 'absent'


def test_the_command_makes_rows(corpus, session, tmp_path, capsys):
    "In this process, where Spark runs already: a second Java would take half a minute."
    p, files = corpus
    (tmp_path/'p.toml').write_text(f'like = "demo"\ntokenizer = "{p.tokenizer}"\nmax_len = 64\nold_share = 0.4\nheldout_share = 0.1\n')
    assert spark.main([*map(str, files), '--profile', str(tmp_path/'p.toml'), '--partitions', '2', '--conf', 'spark.ui.enabled=false']) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    card = (folder/'README.md').read_text('utf-8')
    assert '0.txt, 1.txt' in card and 'texts that Spark made are not looked through' in card and read_manifest(folder)['key'] in card
    assert Rows.open(folder).max_len == 64 and folder == spark_artefacts(p, files, None, partitions=2)[1].path


@pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning')
def test_the_module_is_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['distilherbert.spark', 'none.txt', '--profile', 'demo'])
    with pytest.raises(SystemExit, match='2'): runpy.run_module('distilherbert.spark', run_name='__main__')
    assert capsys.readouterr().err.startswith('distilherbert.spark: Spark reads .txt and .txt.gz files that are there; not none.txt')
