"The embedded world: repeatable, grammatical, balanced, and labelled as promised."
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from distilherbert import world

ROOT = Path(__file__).resolve().parents[1]
DIGEST = '''
import hashlib
from distilherbert import world
h = hashlib.sha256()
for part in ('old', 'ccsub'):
    for seed in (0, 1): h.update(repr(list(world.labelled_lines(part, 50, seed))).encode())
for task in world.WORLD_TASKS:
    for split in ('train', 'dev', 'test'): h.update(repr(world.world_task(task, split, 3)).encode())
print(h.hexdigest())
'''


def digest(hash_seed):
    env = os.environ | {'PYTHONHASHSEED': hash_seed, 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, '-c', DIGEST], env=env, capture_output=True, text=True, check=True).stdout


def test_same_text_in_every_process():
    assert len({digest(s) for s in ('0', '1', '4242')}) == 1


def test_other_text_has_another_version():
    "Artefacts know the world by its version, so text that changes under the same one would be taken for the old."
    assert (world.WORLD_VERSION, digest('0').strip()[:16]) == (1, '6302b72efbb31cc3'), 'raise WORLD_VERSION, and write the new digest here'


def test_a_longer_run_begins_like_a_shorter_one():
    short, long = (list(world.world_documents('ccsub', n)) for n in (20, 60))
    assert long[:20] == short


def test_seeds_and_parts_differ():
    texts = {str(list(world.world_documents(p, 20, s))) for p in ('old', 'ccsub') for s in (0, 1)}
    assert len(texts) == 4


# Written down by hand: noun, adjective as predicate, then "ten" and the noun in accusative, genitive and locative.
AGREEMENT = '''
pokój       Ten był czysty       | ten pokój     | tego pokoju      | tym pokoju
łazienka    Ta była czysta       | tę łazienkę   | tej łazienki     | tej łazience
okno        To było czyste       | to okno       | tego okna        | tym oknie
schody      Te były czyste       | te schody     | tych schodów     | tych schodach
kucharz     Ten był czysty       | tego kucharza | tego kucharza    | tym kucharzu
kelnerzy    Ci byli czyści       | tych kelnerów | tych kelnerów    | tych kelnerach
'''


@pytest.mark.parametrize('line', AGREEMENT.strip().splitlines())
def test_agreement(line):
    first, accusative, genitive, locative = (c.split() for c in line.split('|'))
    thing, this, was, clean = first
    only = {thing, 'ten', 'był', 'czysty'}
    cases = {'Nom': [this, thing, was, clean], 'acc': accusative, 'gen': genitive, 'loc': locative}
    for case, expected in cases.items():
        text = '{this:S.%s} {S=thing.%s}' % (case, case.lower()) + (' {was:S} {same:S.nom}' if case == 'Nom' else '')
        pattern = world.compile_pattern(text, {'thing': 'thing.hotels', 'same': 'own.plus.hotels'},
                                        lambda cls, word: int(word.lemma in only))
        assert world.say(pattern, world.stream(0)).split() == expected


@pytest.mark.parametrize('masculine, feminine, neuter, virile, accusative', [
    ('zły', 'zła', 'złe', 'źli', 'złą'), ('kruchy', 'krucha', 'kruche', 'krusi', 'kruchą'),
    ('wysoki', 'wysoka', 'wysokie', 'wysocy', 'wysoką'), ('drogi', 'droga', 'drogie', 'drodzy', 'drogą'),
    ('duży', 'duża', 'duże', 'duzi', 'dużą'), ('uroczy', 'urocza', 'urocze', 'uroczy', 'uroczą'),
    ('sąsiedni', 'sąsiednia', 'sąsiednie', 'sąsiedni', 'sąsiednią'), ('słaby', 'słaba', 'słabe', 'słabi', 'słabą'),
    ('inspirujący', 'inspirująca', 'inspirujące', 'inspirujący', 'inspirującą'), ('stary', 'stara', 'stare', 'starzy', 'starą')])
def test_adjectives(masculine, feminine, neuter, virile, accusative):
    forms = world.adjective(masculine).forms
    assert [forms[f] for f in ('nom.m', 'nom.f', 'nom.n', 'nom.pl', 'nom.plv', 'acc.f')] == [
        masculine, feminine, neuter, neuter, virile, accusative]


def test_every_pattern_can_be_said_of_every_head():
    "No gender leads to a missing form, in any mix."
    draw = world.stream('all')
    for mix in ('old', 'ccsub', 'labelled'):
        patterns = [p for d in world.DOMAINS for s in world.SIGNS for p in world.review_patterns(mix, d, s)]
        patterns += [p for t in world.TYPES for p in world.news_patterns(mix, t)]
        for p in patterns:
            for piece in p.pieces:
                if isinstance(piece, str) or isinstance(piece[1], tuple): continue
                head, table = piece
                assert all(table[g] for g in (p.heads[head] if head >= 0 else ('',)))
            assert re.fullmatch(r'[A-ZŻŹĆŚŁÓ][\w ,]*\.', world.say(p, draw))


def test_past_tense_agrees_with_first_names():
    female = {n for n in world.FIRST['f'].split()}
    seen = Counter()
    draw = world.stream('people')
    for _ in range(400):
        for sentence in world.news_text('ccsub', 'persName', draw):
            words = sentence.strip('.').split()
            name = next((w for w in words if w in female | set(world.FIRST['m1'].split())), None)
            if name:
                verb = words[words.index(name) + 2]
                seen[name in female] += 1
                assert verb.endswith('ła' if name in female else 'ł')
    assert min(seen.values()) > 50


@pytest.mark.parametrize('task, labels', [
    ('nkjp-ner', {'geogName', 'noEntity', 'orgName', 'persName', 'placeName', 'time'}),
    ('polemo2.0-in', {f'__label__meta_{s}' for s in ('amb', 'minus_m', 'plus_m', 'zero')}),
    ('polemo2.0-out', {f'__label__meta_{s}' for s in ('amb', 'minus_m', 'plus_m', 'zero')})])
def test_tasks_are_balanced_and_shaped_like_klej(task, labels):
    train, dev, test = (world.world_task(task, s) for s in ('train', 'dev', 'test'))
    assert 200 <= len(train) <= 300 and len(dev) == 2000
    for rows in (train, dev):
        assert all(list(r) == ['sentence', 'target'] for r in rows)
        counts = Counter(r['target'] for r in rows)
        assert set(counts) == labels and max(counts.values()) - min(counts.values()) <= 1
        assert not any(c in r['sentence'] for r in rows for c in '\t\n"')
    assert all(list(r) == ['sentence'] for r in test)
    sentences = [{r['sentence'] for r in rows} for rows in (train, dev, test)]
    assert not sentences[0] & sentences[1]


def test_most_deciding_words_are_unlabelled():
    "Words of judgement and names that no training example contains, of those that occur in dev."
    groups = {'nkjp-ner': ('name.', 'first', 'vague', 'cue.', 'act.', 'time.'), 'polemo2.0-in': ('adjective.', 'own.', 'adverb.', 'verb.', 'feeling.'),
              'polemo2.0-out': ('adjective.', 'own.', 'adverb.', 'verb.', 'feeling.')}
    for task, classes in groups.items():
        lemmas = {}
        for cls, words in world.lexicon().items():
            if cls.startswith(classes): lemmas |= {f: w.lemma for w in words for f in w.forms.values()}
        used = [{lemmas[w] for r in world.world_task(task, split) for w in re.findall(r'\w+', r['sentence']) if w in lemmas}
                for split in ('train', 'dev')]
        assert len(used[1] - used[0]) > 0.5*len(used[1])


def test_rare_words_of_the_old_part_are_not_absent():
    texts = {p: Counter(w for _, _, c in world.labelled_lines(p, 4000) if c for w in re.findall(r'\w+', c)) for p in world.PARTS}
    rare = world.chosen_words('rare', world.RARE_SHARE)
    words = [w.lemma for t in world.ENTITIES for w in world.lexicon()[f'name.{t}']]
    assert all(texts[p][w] for p in texts for w in words)
    mean = lambda p, kept: sum(texts[p][w] for w in words if (w in rare) == kept)/sum((w in rare) == kept for w in words)
    assert mean('old', False) > 2.5*mean('old', True)
    assert 0.8 < mean('ccsub', False)/mean('ccsub', True) < 1.25


def test_lines_meet_the_limits_of_the_cleaning():
    counts, seen = Counter(), set()
    for line, kind, clean in world.labelled_lines('ccsub', 4000):
        counts[kind] += 1
        assert '\n' not in line and '\t' not in line
        if kind in ('text', 'duplicate'):
            assert clean == line and (kind != 'duplicate' or line in seen)
        elif kind in ('tags', 'script'): assert '<' in line
        if clean is None: assert world.symbol_share(line) > 0.1 or len(line) < 15
        else:
            assert world.symbol_share(clean) == 0 and len(clean) >= 15 and clean == ' '.join(clean.split())
            seen.add(clean)
    assert set(counts) == set(world.NOISE)
    for kind, share in world.NOISE.items():
        assert abs(counts[kind]/counts.total() - share/100) < 0.02


def test_the_cleaning_finds_what_is_expected():
    from distilherbert import clean as cleaning
    lines = list(world.labelled_lines('old', 2000, 5))
    wrong = [(line, kind) for line, kind, clean in lines if cleaning.clean_text(line) != clean]
    assert len(wrong) <= 0.005*len(lines), wrong[:5]


def test_floor_lies_below_the_unigram_entropy():
    texts = [c for _, _, c in world.labelled_lines('old', 3000) if c]
    unigram = world.entropy([w for t in texts for w in re.findall(r'\w+|[.,]', t)])
    assert 0 < world.world_entropy('old') < 0.5*unigram
    assert world.world_entropy('old', lambda word: 2) == pytest.approx(world.world_entropy('old')/2)


def test_the_teacher_closed_most_of_the_gap_to_the_floor():
    "Before any score of a task counts: T0 of the committed records has learnt over half of what there is to learn beyond the frequencies of words."
    fit = json.loads((ROOT/'results'/'demo'/'settings.json').read_text('utf-8'))['values']['T0_fit']
    assert fit['floor'] < fit['heldout_loss'] < fit['unigram_entropy']
    assert fit['unigram_entropy'] - fit['heldout_loss'] > 0.5*(fit['unigram_entropy'] - fit['floor'])


@pytest.mark.parametrize('call, message', [
    (lambda: next(world.world_documents('new', 1)), 'There is: old, ccsub'),
    (lambda: next(world.labelled_lines('Old', 1)), 'Did you mean old'),
    (lambda: world.world_entropy('x'), 'There is: old, ccsub'),
    (lambda: world.world_task('polemo', 'dev'), 'Did you mean polemo2.0-in'),
    (lambda: world.world_task('nkjp-ner', 'validation'), 'There is: train, dev, test')])
def test_unknown_names_are_named(call, message):
    with pytest.raises(ValueError, match=message): call()
