"Examples of KLEJ in a corpus: planted ones are found and left out, and nothing else is."
import csv
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from conftest import write_task
from hypothesis import given, settings
from hypothesis import strategies as st

from distilherbert import contamination as module
from distilherbert.artefact import read_manifest
from distilherbert.clean import read_texts
from distilherbert.contamination import FILES, KINDS, SHORTEST, SPAN, Example, Index, normal_words, read_examples, search
from distilherbert.pipeline import contamination_artefact, sequences_artefact, text_artefact
from distilherbert.results import read_records
from distilherbert.scenario import get_profile
from distilherbert.tasks import TASKS


def slow_find(examples, texts):
    "Every field against every text, word for word."
    found = {kind: set() for kind in KINDS}
    spans = lambda words: {tuple(words[i:i + SPAN]) for i in range(len(words) - SPAN + 1)}
    fields = [(e, field) for e, example in enumerate(examples) for field in map(normal_words, example.texts)]
    for (e, field), (t, words) in product(fields, enumerate(map(normal_words, texts))):
        inside = SHORTEST <= len(field) < SPAN and any(words[i:i + len(field)] == field for i in range(len(words)))
        for kind, holds in (('exact', field and field == words), ('inside', inside), ('overlap', spans(field) & spans(words))):
            if holds: found[kind].add((t, e))
    return found


FEW_WORDS = st.lists(st.sampled_from(['a', 'b', 'Kot', 'kot,', 'k\xadot', 'z\u0307', '—']), max_size=8).map(' '.join)
PASSAGE = st.tuples(st.integers(0, 9), st.integers(8, 20)).map(lambda ends: ' '.join(f'słowo{i}' for i in range(*ends)))
SOME_WORDS = FEW_WORDS | st.tuples(FEW_WORDS, PASSAGE, FEW_WORDS).map(' '.join)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(SOME_WORDS, SOME_WORDS), max_size=6), st.lists(SOME_WORDS, max_size=8))
def test_the_search_finds_what_a_slow_one_finds(fields, texts):
    examples = [Example('dyk', 'train', i, f) for i, f in enumerate(fields)]
    found = Index(examples).find(texts)
    sets = {kind: set(map(tuple, pairs.tolist())) for kind, pairs in found.items()}
    assert sets == slow_find(examples, texts) and all(len(found[kind]) == len(sets[kind]) for kind in ('inside', 'overlap'))


def sentence(rng, n):
    return ' '.join(rng.choice('kot pies dom las rzeka stary nowy biegnie widzi Ala'.split()) + str(rng.randrange(99)) for _ in range(n))


@pytest.fixture
def klej(tmp_path, monkeypatch):
    "All nine tasks in the official layout, a few rows each; artefacts in a folder of their own."
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))
    rng = random.Random(0)
    for task in TASKS.values():
        files = [Path(name).stem for name, size in zip(FILES.values(), task.sizes, strict=True) if size]
        rows = {file: [{c: '"'*(i == 0) + sentence(rng, 20 if i < 3 else 8) + ' .' for c in task.texts} | {'target': 'x'} for i in range(4)]
                for file in files}
        write_task(tmp_path/'klej', task.name, rows)
    return tmp_path/'klej'


@pytest.fixture
def planted(tmp_path, klej):
    "A profile on a corpus in which some examples stand, exactly or inside other words; these, and texts that only look like examples."
    examples = {(e.task, e.split, e.row): e.texts for e in read_examples(klej)[0]}
    plants = {
        ('nkjp-ner', 'test', 3): examples['nkjp-ner', 'test', 3][0].upper(),
        ('cbd', 'train', 3): 'Tu jest: ' + examples['cbd', 'train', 3][0],
        ('psc', 'train', 1): f'Pisano o tym wczoraj, że {examples["psc", "train", 1][1][:-2]}, i tyle.',
        ('ar', 'dev', 0): f'„{examples["ar", "dev", 0][0].strip(chr(34))}”',
        ('dyk', 'test', 2): 'Ktoś pytał: ' + ' '.join(examples['dyk', 'test', 2][0].split()[4:4 + SPAN])}
    nearly = ['Ktoś pytał: ' + ' '.join(examples['cbd', 'test', 1][0].split()[:SPAN - 1]), examples['cdsc-e', 'dev', 3][0][:-9],
              'Tu jest: ' + ' '.join(examples['cbd', 'test', 3][0].split()[1:])]
    rng = random.Random(1)
    lines = [sentence(rng, rng.randrange(5, 40)) for _ in range(400)]
    for i, text in enumerate([*plants.values(), *nearly]): lines.insert(37*(i + 1), text)
    (tmp_path/'a.txt').write_text('\n\n'.join(lines), 'utf-8')
    return replace(get_profile('demo'), name='planted', text=str(tmp_path/'a.txt'), old_share=0.4, task_source=str(klej), vocab_size=400,
                   max_len=64, heldout_share=0.1), plants, nearly


def test_planted_examples_are_found_and_no_others(planted, monkeypatch):
    p, plants, _ = planted
    monkeypatch.setattr(module, 'BATCH', 1000)
    report, found = module.contamination_report(p), {}
    values = read_records('planted')['contamination']['values']
    for part in ('old', 'ccsub'):
        files = text_artefact(p).path.glob(f'{part}-*')
        texts = {(f.name, str(i)): t for f in files for i, t in enumerate(f.read_text('utf-8').split('\n'))}
        with open(contamination_artefact(p, part).path/'examples.tsv', encoding='utf-8') as f:
            for row in csv.DictReader(f, delimiter='\t'):
                found[row['task'], row['split'], int(row['row'])] = row['exact'] + row['inside'] + row['overlap']
                assert texts[row['file'], row['line']] == plants[row['task'], row['split'], int(row['row'])]
    assert found == {('nkjp-ner', 'test', 3): '110', ('psc', 'train', 1): '001', ('ar', 'dev', 0): '101', ('dyk', 'test', 2): '001',
                     ('cbd', 'train', 3): '010'} and set(found) == set(plants)
    counts = [c for splits in values['together']['tasks'].values() for c in splits.values()]
    total = {what: sum(c[what] for c in counts) for what in ('n', 'searchable', *KINDS, 'found')}
    assert total == {'n': 96, 'searchable': 96, 'exact': 2, 'inside': 2, 'overlap': 3, 'found': 5}
    assert values['together']['texts_found'] == 5 and values['together']['texts'] == 408 and 'psc' in report


def test_drop_klej_leaves_these_texts_out_of_the_sequences(planted):
    p, plants, nearly = planted
    for part in ('old', 'ccsub'):
        kept, dropped = sequences_artefact(p, part), sequences_artefact(replace(p, drop_klej=True), part)
        assert kept.key != dropped.key and kept.inputs[0].key == text_artefact(p).key, 'without it nothing changes'
        counts = [read_manifest(a.build())['counts'] for a in (kept, dropped)]
        before, after = (list(read_texts(a.inputs[0].path, part)) for a in (kept, dropped))
        assert after == [t for t in before if t not in plants.values()] and {t for t in before if t in nearly} <= set(after)
        left_out = read_manifest(dropped.inputs[0].path)['counts']['left_out']
        assert counts[0]['texts'] - counts[1]['texts'] == len(before) - len(after) == left_out >= 1
        assert f'left out, with an example of a task: {-left_out}' in (dropped.path/'README.md').read_text('utf-8')


def test_an_example_in_both_parts_is_one_example(tmp_path):
    folders, run = [tmp_path/part for part in ('old', 'ccsub')], 'jeden dwa trzy cztery pięć sześć'
    examples = [Example('cbd', 'test', i, (f'{run} {i}',)) for i in range(3)]
    for folder, lines in zip(folders, (f'mówi: {run} 0\n', f'{run} 0\na {run} 2\n'), strict=True):
        folder.mkdir()
        (folder/'text.txt').write_text(lines)
    found = module._count_together([search(folder, [folder/'text.txt'], examples) for folder in folders], folders)
    assert found['tasks'] == {'cbd': {'test': {'n': 3, 'searchable': 3, 'exact': 1, 'inside': 2, 'overlap': 0, 'found': 2}}}


def test_wrong_files_are_errors_and_other_contents_other_keys(klej):
    (klej/'klej_psc'/'train.tsv').unlink()
    examples, missing = read_examples(klej)
    assert missing == ['klej_psc/train.tsv'] and len(examples) == 92
    key = contamination_artefact(p := replace(get_profile('demo'), task_source=str(klej))).key
    (klej/'klej_ar'/'train.tsv').write_text('wrong\theader\n')
    with pytest.raises(ValueError, match='klej_ar/train.tsv has the wrong header: AR needs text'): read_examples(klej)
    assert contamination_artefact(p).key != key
