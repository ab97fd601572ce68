"KLEJ in a corpus: planted examples are found and left out, nothing else is; the data card says what the manifests say."
import csv
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilherbert import corpus
from distilherbert.artefact import Artefact, read_manifest, read_records
from distilherbert.clean import read_texts, text_artefact
from distilherbert.corpus import (
    FILES,
    QUOTED,
    SHORTEST,
    SPAN,
    TEXTS,
    Example,
    Index,
    PackedRows,
    contamination,
    contamination_artefact,
    contamination_table,
    leave_out,
    normal_words,
    packed_text,
    read_examples,
    search,
)
from distilherbert.pack import Rows, build_rows, rows_artefact
from distilherbert.scenario import SettingsError, get_profile

DATA = os.environ.get('DISTILHERBERT_DATA')


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(tmp_path/'results'))


# The search against a slow one

def slow_look(examples, texts):
    "Every field against every text, word for word."
    exact, inside, overlap = set(), set(), set()
    for e, example in enumerate(examples):
        for field in map(normal_words, example.texts):
            for t, words in enumerate(map(normal_words, texts)):
                if field and field == words: exact.add((t, e))
                if SHORTEST <= len(field) < SPAN and any(words[i:i + len(field)] == field for i in range(len(words))): inside.add((t, e))
                runs = {tuple(words[i:i + SPAN]) for i in range(len(words) - SPAN + 1)}
                if any(tuple(field[i:i + SPAN]) in runs for i in range(len(field) - SPAN + 1)): overlap.add((t, e))
    return exact, inside, overlap


SOME_WORDS = st.lists(st.sampled_from(['a', 'b', 'Kot', 'kot,', '—']), max_size=30).map(' '.join)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(SOME_WORDS, SOME_WORDS), max_size=6), st.lists(SOME_WORDS, max_size=8))
def test_the_search_finds_what_a_slow_one_finds(fields, texts):
    examples = [Example('dyk', 'train', i, f) for i, f in enumerate(fields)]
    found = Index(examples).look(texts)
    for pairs, expected in zip(found, slow_look(examples, texts), strict=True): assert set(map(tuple, pairs.tolist())) == expected
    assert all(len(pairs) == len(set(map(tuple, pairs.tolist()))) for pairs in found[1:])


def test_short_examples_are_found_inside_texts_from_six_words_on():
    words = [f'słowo{i}' for i in range(40)]
    examples = [Example('cbd', 'dev', n, (' '.join(words[:n]),)) for n in range(1, 14)]
    texts = [' '.join(words[:n]) for n in range(1, 15)] + ['Mówią: ' + ', '.join(words[:9]) + '!', ' '.join(words[1:40]), ' '.join([*words[:5], 'inne', *words[5:]])]
    exact, inside, overlap = (set(map(tuple, pairs.tolist())) for pairs in Index(examples).look(texts))
    assert exact == {(i, i) for i in range(13)} and overlap == {(12, 12), (13, 12)}
    assert inside == {(t, e) for t in range(14) for e in range(5, 12) if t >= e} | {(14, e) for e in range(5, 9)}
    assert Index(examples).searchable == set(range(5, 13))


# Planted examples, all the way to the rows

def sentence(rng, n): return ' '.join(rng.choice(['kot', 'pies', 'dom', 'las', 'rzeka', 'stary', 'nowy', 'biegnie', 'stoi', 'widzi', 'Ala']) + str(rng.randrange(99)) for _ in range(n))


@pytest.fixture
def klej(tmp_path):
    "All nine tasks in the official layout, a few rows each."
    rng, folder = random.Random(0), tmp_path/'klej'
    for task, columns in TEXTS.items():
        (folder/f'klej_{task}').mkdir(parents=True)
        for split, name in FILES.items():
            if split == 'dev' and task in ('cbd', 'dyk', 'psc'): continue
            with open(folder/f'klej_{task}'/name, 'w', encoding='utf-8', newline='') as f:
                quoting = {'quoting': csv.QUOTE_ALL} if task in QUOTED else {'quoting': csv.QUOTE_NONE, 'quotechar': None}
                rows = csv.writer(f, delimiter='\t', lineterminator='\n', **quoting)
                rows.writerow([*columns, 'target'])
                for i in range(4): rows.writerow([*(('"' if i == 0 else '') + sentence(rng, 20 if i < 3 else 8) + ' .' for _ in columns), 'x'])
    return folder


@pytest.fixture
def planted(tmp_path, klej):
    "A corpus in which some examples stand, exactly or inside other words, and a profile on it."
    examples = {(e.task, e.split, e.row): e for e in read_examples(klej)}
    quote = lambda task, split, row, field=0: examples[task, split, row].texts[field]
    plants = {
        ('nkjp-ner', 'test', 3): quote('nkjp-ner', 'test', 3).upper(), ('psc', 'train', 1): f'Pisano o tym wczoraj, że {quote("psc", "train", 1, 1)[:-2]}, i tyle.',
        ('ar', 'dev', 0): f'„{quote("ar", "dev", 0).strip(chr(34))}”', ('dyk', 'test', 2): 'Ktoś pytał: ' + ' '.join(quote('dyk', 'test', 2).split()[4:4 + SPAN])}
    plants['cbd', 'train', 3] = 'Tu jest: ' + quote('cbd', 'train', 3)
    nearly = ['Ktoś pytał: ' + ' '.join(quote('cbd', 'test', 1).split()[:SPAN - 1]), quote('cdsc-e', 'dev', 3)[:-9], 'Tu jest: ' + ' '.join(quote('cbd', 'test', 3).split()[1:])]
    rng, folder = random.Random(1), tmp_path/'text'
    folder.mkdir()
    lines = [sentence(rng, rng.randrange(5, 40)) for _ in range(400)]
    for i, text in enumerate([*plants.values(), *nearly]): lines.insert(37*(i + 1), text)
    (folder/'a.txt').write_text('\n\n'.join(lines), 'utf-8')
    demo = get_profile('demo')
    p = replace(demo, name='planted', text=str(folder), old_share=0.4, task_source=str(klej), vocab_size=400, max_len=64, heldout_share=0.1)
    return p, plants, nearly


def test_planted_examples_are_found_and_no_others(planted):
    p, plants, _ = planted
    values = contamination(p)
    found = {}
    for part in ('old', 'ccsub'):
        with open(contamination_artefact(p, part).path/'examples.tsv', encoding='utf-8') as f:
            for row in csv.DictReader(f, delimiter='\t'): found[row['task'], row['split'], int(row['row'])] = row['exact'] + row['inside'] + row['overlap']
    assert found == {('nkjp-ner', 'test', 3): '110', ('psc', 'train', 1): '001', ('ar', 'dev', 0): '101', ('dyk', 'test', 2): '001', ('cbd', 'train', 3): '010'}
    assert set(found) == set(plants)
    total = {kind: sum(c[kind] for splits in values['together']['tasks'].values() for c in splits.values()) for kind in ('n', 'searchable', 'exact', 'inside', 'overlap', 'found')}
    assert total == {'n': 4*(3*9 - 3), 'searchable': 4*(3*9 - 3), 'exact': 2, 'inside': 2, 'overlap': 3, 'found': 5}
    assert all(c['tasks'].keys() == TEXTS.keys() and sum(s['n'] for t in c['tasks'].values() for s in t.values()) == 4*(3*9 - 3) for c in values.values())
    assert sum(values[part]['texts_found'] for part in ('old', 'ccsub')) == values['together']['texts_found'] == 5 and values['together']['texts'] == 408
    assert read_records('planted')['contamination']['values'] == values
    assert 'psc' in contamination_table(values) and '1' in contamination_table(values)


def test_an_example_in_both_parts_is_one_example(tmp_path):
    folders, parts = [tmp_path/part for part in ('old', 'ccsub')], []
    examples = [Example('cbd', 'test', i, (f'jeden dwa trzy cztery pięć sześć {i}',)) for i in range(3)]
    for folder, lines in zip(folders, ('mówi: jeden dwa trzy cztery pięć sześć 0\n', 'jeden dwa trzy cztery pięć sześć 0\na jeden dwa trzy cztery pięć sześć 2\n'), strict=True):
        folder.mkdir()
        (folder/'text.txt').write_text(lines)
        parts.append(search(folder, [folder/'text.txt'], examples))
    assert corpus.count_together(parts, folders) == {'texts': 3, 'texts_found': 3, 'texts_exact': 1, 'texts_inside': 3, 'texts_overlap': 0, 'tasks': {
        'cbd': {'test': {'n': 3, 'searchable': 3, 'exact': 1, 'inside': 2, 'overlap': 0, 'found': 2}}}}


def test_drop_klej_leaves_these_texts_out_of_the_rows(planted):
    p, plants, nearly = planted
    clean_p, before, after = replace(p, drop_klej=True), [], []
    for part in ('old', 'ccsub'):
        before += read_texts(text_artefact(p).build(), part)
        after += read_texts(packed_text(clean_p, part).build(), part)
    assert set(before) - set(after) == set(plants.values()) and [t for t in before if t in set(after)] == after and set(nearly) <= set(after)
    a, b = rows_artefact(p, 'ccsub'), rows_artefact(clean_p, 'ccsub')
    assert a.key != b.key and packed_text(p, 'ccsub').key == text_artefact(p).key, 'without it nothing changes'
    counts = [read_manifest(x.build())['counts'] for x in (a, b)]
    out = read_manifest(packed_text(clean_p, 'ccsub').path)['counts']['left_out']
    assert out >= 1 and counts[0]['texts'] - counts[1]['texts'] == out and len(Rows.open(b.path).train) > 0
    card, other = ((x.path/'README.md').read_text('utf-8') for x in (b, a))
    assert f'(`drop_klej`) | {-out:,} |' in card and f'| packed | {counts[1]["texts"]:,} |' in card and '| nkjp-ner | test | 4 |' in card
    assert 'before texts were left out' in card and 'drop_klej' not in other and '| packed |' not in other


def test_the_key_follows_the_tasks(planted):
    p, _, _ = planted
    key = contamination_artefact(p).key
    file = Path(p.task_source)/'klej_ar'/'dev.tsv'
    file.write_text(file.read_text('utf-8') + '"Nowa opinia o starym telefonie"\t"5"\n', 'utf-8')
    assert contamination_artefact(p).key != key
    with pytest.raises(SettingsError, match='There is no part'): contamination_artefact(p, 'new')


def test_tasks_that_are_not_there_are_an_error(tmp_path, klej):
    (klej/'klej_psc'/'train.tsv').unlink()
    with pytest.raises(SettingsError, match='There is no psc in'): list(read_examples(klej))
    (klej/'klej_ar'/'train.tsv').write_text('wrong\theader\n')
    with pytest.raises(SettingsError, match='has no column text'): list(read_examples(klej, ['ar']))
    with pytest.raises(SettingsError, match='Did you mean psc'): list(read_examples(klej, ['pcs']))


def test_a_corpus_of_which_nothing_is_left_out_is_copied(tmp_path):
    for folder in ('work', 'found'): (tmp_path/folder).mkdir()
    (tmp_path/'ccsub-00000.txt').write_text('Ala ma kota, a kot ma psa.\n')
    assert search(tmp_path/'found', [tmp_path/'ccsub-00000.txt'], [])['texts_found'] == 0
    assert leave_out(tmp_path/'work', [tmp_path/'ccsub-00000.txt'], tmp_path/'found') == {'texts': 1, 'left_out': 0}
    assert (tmp_path/'work'/'ccsub-00000.txt').read_bytes() == (tmp_path/'ccsub-00000.txt').read_bytes()


def test_columns_and_quotes_are_those_of_the_tasks():
    from distilherbert.klej import TASKS
    assert TEXTS == {name: t.texts for name, t in TASKS.items()} and {n for n, t in TASKS.items() if t.quoted} == set(QUOTED)


@pytest.mark.skipif(not DATA, reason='DISTILHERBERT_DATA is not set: no KLEJ here')
def test_the_official_files_have_their_sizes():
    from distilherbert.klej import TASKS
    n = {}
    for e in read_examples(Path(DATA).resolve()/'klej'): n[e.task, e.split] = n.get((e.task, e.split), 0) + 1
    assert n == {(name, split): size for name, t in TASKS.items() for split, size in zip(FILES, t.sizes, strict=True) if size}


# The card

def test_the_card_says_what_the_manifests_say(planted):
    p, _, _ = planted
    folder = build_rows(p, 'ccsub')
    card, rows, text = (folder/'README.md').read_text('utf-8'), read_manifest(folder), read_manifest(text_artefact(p).path)
    assert 'Not searched' in card and 'README.md' not in rows['files'] and rows_artefact(p).state() == 'current'
    for n in (text['counts']['parts']['ccsub']['lines_read'], rows['counts']['rows'], rows['counts']['dropped_tokens']): assert f'| {n:,} |' in card
    for name, f in rows['files'].items(): assert f'| {name} | {f["bytes"]:,} | `{f["sha256"]}` |' in card
    assert 'a.txt' in card and rows['key'] in card
    contamination(p)
    build_rows(p, 'ccsub')
    assert '| nkjp-ner | test | 4 |' in (folder/'README.md').read_text('utf-8')
    lengths = [line for line in card.split('\n') if line.startswith('| from ')]
    assert len(lengths) == len(rows['counts']['lengths']) == 2*16 + 1


def test_whatever_asks_for_rows_leaves_a_card(planted):
    from distilherbert.distill import model_artefact
    p, _, _ = planted
    rows, text = rows_artefact(p, 'ccsub'), text_artefact(p)
    assert [type(i) for i in model_artefact(p, 'S1').inputs].count(PackedRows) == 1
    Artefact('after', 'rows', 1, {}, (rows,), lambda work: {}).build()
    card = rows.path/'README.md'
    said = card.read_text('utf-8')
    assert rows.key in said and 'Not searched' in said and 'README.md' not in read_manifest(rows.path)['files'] and rows.state() == 'current'
    card.unlink()
    assert rows.build() == rows.path and card.read_text('utf-8') == said and not list(rows.path.parent.glob('.*.card'))
    card.unlink()
    shutil.rmtree(text.path)
    assert rows.build() == rows.path and not card.exists() and not text.path.exists(), 'rows serve without the text that they were made from'


def test_a_card_does_without_tasks_that_are_not_there(planted, tmp_path):
    p = replace(planted[0], task_source=str(tmp_path/'nowhere'))
    assert 'Not searched' in (rows_artefact(p).build()/'README.md').read_text('utf-8')
    with pytest.raises(SettingsError, match='There is no KLEJ in .*nowhere'): contamination(p)


def test_batches_of_texts_are_numbered_through(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, 'BATCH', 10)
    for name in ('a', 'b'): (tmp_path/name).write_text(''.join(f'{name} {i} słowo\n' for i in range(9)), 'utf-8')
    for name, first, some in corpus.text_batches([tmp_path/'a', tmp_path/'b']):
        assert some == [f'{name} {i} słowo' for i in range(first, first + len(some))] and len(some) < 9
