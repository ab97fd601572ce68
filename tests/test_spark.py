"Spark makes what one machine makes: local[2], a few files, the same set of texts and sequences that hold them."
import gzip
import os
import re
import shutil
import sys
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pytest
from conftest import SENTENCE, noisy_corpus

from distilherbert import spark
from distilherbert.artefact import read_manifest
from distilherbert.clean import clean_block, read_texts
from distilherbert.pack import Sequences, load_tokenizer, train_tokenizer, write_tokenizer
from distilherbert.pipeline import sequences_artefact, text_artefact
from distilherbert.scenario import SettingsError, get_profile
from distilherbert.sources import BadText, Block
from distilherbert.spark import _clean_batches, open_session, spark_artefacts


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    "A profile on two files, with a small tokenizer of its own, and the files; artefacts are made once for all tests."
    top = tmp_path_factory.mktemp('spark')
    folder, tokenizer = top/'text', top/'tokenizer'
    for d in (folder, tokenizer): d.mkdir()
    for i, end in enumerate(('\n\n', '\nOstatnia linia nie ma końca.')): (folder/f'{i}.txt').write_text(noisy_corpus(150, i) + end, 'utf-8')
    write_tokenizer(tokenizer, train_tokenizer([SENTENCE.format(i) for i in range(100)], 150), 64)
    fields = {'text': str(folder), 'old_share': 0.4, 'tokenizer': str(tokenizer), 'max_len': 64, 'heldout_share': 0.1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('DISTILHERBERT_RUNS', str(top/'runs'))
        yield replace(get_profile('demo'), name='spark', **fields), sorted(folder.glob('*.txt'))


def batch_of(*documents):
    return pa.record_batch({'value': [d.encode() for d in documents], 'file': ['a.txt']*len(documents)})


def test_batches_are_cleaned_as_blocks():
    documents = noisy_corpus(50, 3).split('\n\n')
    out = pa.Table.from_batches(_clean_batches([batch_of(*documents[i:i + 7]) for i in range(0, len(documents), 7)], 0.4)).to_pylist()
    whole, texts, counts = clean_block(Block('\n\n'.join(documents)), 0.4), [row for row in out if row['text'] is not None], {}
    assert [row['text'] for row in texts] == whole.texts and bytes(row['part'] for row in texts) == whole.parts
    assert b''.join(row['key'] for row in texts) == whole.keys
    for row in out:
        for part, c in spark.json.loads(row['counts'] or '{}').items(): counts.setdefault(part, Counter()).update(c)
    assert counts == whole.counts


def test_settings_are_checked_before_java_starts(corpus, monkeypatch):
    p, files = corpus
    for fields, words in (({'drop_klej': True}, 'drop_klej = True'), ({'on_bad_file': 'skip'}, "on_bad_file = 'skip'"),
                          ({'text_without': ('*.txt',)}, 'left out by `text_without` of profile spark')):
        with pytest.raises(SettingsError, match=re.escape(words)): spark_artefacts(replace(p, **fields), files, None)
    key = lambda files, n=0, shards=2, **fields: spark_artefacts(replace(p, **fields), files, None, partitions=shards)[n].key
    assert key(files, text_without=('1*',)) == key(files[:1]) != key(files) and key(files, 1) != key(files, 1, 3)
    monkeypatch.setitem(sys.modules, 'pyspark.sql', None)
    with pytest.raises(SettingsError, match=r"pip install 'distilherbert\[spark\]'"): open_session()


@pytest.fixture(scope='module')
def session():
    pytest.importorskip('pyspark', reason="PySpark is not installed: pip install 'distilherbert[spark]'")
    if not (os.environ.get('JAVA_HOME') or shutil.which('java')): pytest.skip('there is no Java here: apt-get install default-jre-headless')
    session = open_session('local[2]', {'spark.sql.shuffle.partitions': '2', 'spark.ui.enabled': 'false', 'spark.driver.memory': '1g'})
    yield session
    session.stop()


@pytest.mark.slow
def test_texts_and_sequences_are_those_of_one_machine(corpus, session):
    p, files = corpus
    text, sequences = spark_artefacts(p, files, session, partitions=2)
    opened, counts, alone = Sequences.open(sequences.build()), read_manifest(sequences.path)['counts'], text_artefact(p).build()
    kept = [(r.part, r.text.decode()) for r in session.read.parquet(str(text.path/'texts')).select('part', 'text').collect()]
    expected = [t for part in ('old', 'ccsub') for t in read_texts(alone, part)]
    assert len(kept) == len(expected) and {t for _, t in kept} == set(expected)
    (ours, rest), (theirs, other) = (({**c}.pop('parts'), {k: v for k, v in c.items() if k != 'parts'})
                                     for c in (read_manifest(folder)['counts'] for folder in (text.path, alone)))
    assert rest == other
    for part, c in ours.items():
        for what in ('documents', 'lines_read', 'rejected', 'changed'): assert c[what] == theirs[part][what], (part, what)
        assert c['lines_read'] == sum(c['rejected'].values()) + c['duplicates'] + c['kept']
    for what in ('kept', 'duplicates', 'chars_kept'): assert sum(c[what] for c in ours.values()) == sum(c[what] for c in theirs.values())
    tokenizer, texts = load_tokenizer(p.tokenizer), [t for part, t in kept if part == 1]
    tokens = Counter(i for t in texts for i in tokenizer(t, add_special_tokens=False)['input_ids'])
    assert counts['texts'] == len(texts) and counts['text_tokens'] == tokens.total()
    assert len(opened.train) + len(opened.heldout) == counts['sequences']
    assert set(counts) == set(read_manifest(sequences_artefact(p).build())['counts'])
    packed = Counter(i for s in (opened.train, opened.heldout) for k in range(len(s)) for i in s[k].tolist() if i not in opened.special_ids)
    assert (tokens - packed).total() == counts['dropped_tokens'] + sum(n for i, n in tokens.items() if i in opened.special_ids)


@pytest.mark.slow
def test_bad_files_are_errors_with_their_names(corpus, session, tmp_path):
    p, files = corpus
    (tmp_path/'2.txt').write_bytes((SENTENCE.format(1) + '\n\n').encode()*200 + 'gęś i żółw'.encode('iso-8859-2'))
    (tmp_path/'3.txt').write_bytes('Ala ma kota, a kot ma psa.\n'.encode('utf-16-le')*20)
    (tmp_path/'4.txt.gz').write_bytes(gzip.compress(noisy_corpus(100, 9).encode())[:-20])
    for names, message in ((('2.txt', '3.txt'), r'2\.txt is not UTF-8: byte at offset.*\n.*3\.txt is not text: .* are NUL'),
                           (('4.txt.gz',), r'^Spark cannot read 4\.txt\.gz to its end')):
        text, _ = spark_artefacts(p, [*files, *(tmp_path/name for name in names)], session)
        with pytest.raises(BadText, match=message): text.build()
        assert text.state() == 'absent'
