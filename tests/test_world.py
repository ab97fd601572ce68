"The embedded world: repeatable, grammatical, balanced, and labelled as promised."
import hashlib
import re
from collections import Counter

import pytest

from distilherbert import world
from distilherbert.clean import clean_text


def test_the_text_stays_the_same_until_the_version_changes():
    "Artefacts know the world by its version, so text that changes under the same one would be taken for the old."
    digest = hashlib.sha256()
    for part in ('old', 'ccsub'):
        for seed in (0, 1): digest.update(repr(list(world.labelled_lines(part, 50, seed))).encode())
    for task in world.WORLD_TASKS:
        for split in ('train', 'dev', 'test'): digest.update(repr(world.world_task(task, split, 3)).encode())
    assert (world.WORLD_VERSION, digest.hexdigest()[:16]) == (2, 'fb511dce708775b2'), 'raise WORLD_VERSION, and write the new digest here'
    assert list(world.world_documents('ccsub', 60))[:20] == list(world.world_documents('ccsub', 20))
    assert len({str(list(world.world_documents(p, 20, s))) for p in ('old', 'ccsub') for s in (0, 1)}) == 4


# Written down by hand: noun, adjective as predicate, then "ten" and the noun in accusative, genitive and locative.
@pytest.mark.parametrize('line', [
    'pokój       Ten był czysty       | ten pokój     | tego pokoju      | tym pokoju',
    'łazienka    Ta była czysta       | tę łazienkę   | tej łazienki     | tej łazience',
    'okno        To było czyste       | to okno       | tego okna        | tym oknie',
    'schody      Te były czyste       | te schody     | tych schodów     | tych schodach',
    'kucharz     Ten był czysty       | tego kucharza | tego kucharza    | tym kucharzu',
    'kelnerzy    Ci byli czyści       | tych kelnerów | tych kelnerów    | tych kelnerach'])
def test_agreement(line):
    first, *others = (c.split() for c in line.split('|'))
    thing, this, was, clean = first
    for case, expected in zip(('Nom', 'acc', 'gen', 'loc'), ([this, thing, was, clean], *others), strict=True):
        text = '{this:S.%s} {S=thing.%s}' % (case, case.lower()) + (' {was:S} {same:S.nom}' if case == 'Nom' else '')
        state = {'thing': 'thing.hotels', 'same': 'own.plus.hotels'}
        pattern = world._compile_pattern(text, state, lambda cls, word: int(word.lemma in {thing, 'ten', 'był', 'czysty'}))
        assert world._say(pattern, world.stream(0)).split() == expected


def test_every_pattern_can_be_said_of_every_head():
    "No gender leads to a missing form, in any mix."
    draw = world.stream('all')
    for mix in ('old', 'ccsub', 'labelled'):
        patterns = [p for d in world.DOMAINS for s in world.SIGNS for p in world._review_patterns(mix, d, s)]
        for p in [*patterns, *(p for t in world.TYPES for p in world._news_patterns(mix, t))]:
            agreeing = [(p.heads[head] if head >= 0 else ('',), table) for head, table in p.pieces if isinstance(table, dict)]
            assert all(table[g] for genders, table in agreeing for g in genders)
            assert re.fullmatch(r'[A-ZŻŹĆŚŁÓ][\w ,]*\.', world._say(p, draw))


@pytest.mark.parametrize('task', world.WORLD_TASKS)
def test_tasks_are_balanced_and_most_deciding_words_are_unlabelled(task):
    "Words of judgement and names that no training example contains, of those that occur in dev."
    train, dev, test = (world.world_task(task, s) for s in ('train', 'dev', 'test'))
    assert (len(train), len(dev), len(test)) == tuple(world.TASK_SIZES.values()) and all(list(r) == ['sentence'] for r in test)
    for rows in (train, dev):
        counts = Counter(r['target'] for r in rows)
        assert set(counts) == set(world.TYPES if task == 'nkjp-ner' else world.POLARITIES.values())
        assert max(counts.values()) - min(counts.values()) <= 1
        assert all(list(r) == ['sentence', 'target'] and not set('\t\n"') & set(r['sentence']) for r in rows)
    assert not {r['sentence'] for r in train} & {r['sentence'] for r in dev}
    classes = 'name. first vague cue. act. time.' if task == 'nkjp-ner' else 'adjective. own. adverb. verb. feeling.'
    some = [w for cls, words in world.lexicon().items() if cls.startswith(tuple(classes.split())) for w in words]
    lemmas = {f: w.lemma for w in some for f in w.forms.values()}
    used = [{lemmas[w] for r in rows for w in re.findall(r'\w+', r['sentence']) if w in lemmas} for rows in (train, dev)]
    assert len(used[1] - used[0]) > 0.5*len(used[1])


def test_rare_words_of_the_old_part_are_not_absent():
    texts = {p: Counter(w for _, _, c in world.labelled_lines(p, 4000) if c for w in re.findall(r'\w+', c)) for p in world.PARTS}
    rare, words = world._chosen_words('rare', world.RARE_SHARE), [w.lemma for t in world.ENTITIES for w in world.lexicon()[f'name.{t}']]
    assert all(texts[p][w] for p in texts for w in words)
    mean = lambda p, kept: sum(texts[p][w] for w in words if (w in rare) == kept)/sum((w in rare) == kept for w in words)
    assert mean('old', False) > 2.5*mean('old', True) and 0.8 < mean('ccsub', False)/mean('ccsub', True) < 1.25


def test_lines_are_noisy_as_labelled_and_cleaning_restores_what_was_said():
    counts, wrong = Counter(), 0
    for line, kind, clean in world.labelled_lines('ccsub', 3000):
        counts[kind] += 1
        wrong += clean_text(line) != clean
        assert '\n' not in line and '\t' not in line and ('<' in line or kind not in ('tags', 'script'))
        if clean: assert len(clean) >= 15 and re.fullmatch(r'[^\W_]([ ,.]*[^\W_])*\.', clean) and '  ' not in clean
    assert set(counts) == set(world.NOISE) and wrong <= 0.005*counts.total()
    for kind, share in world.NOISE.items(): assert abs(counts[kind]/counts.total() - share/100) < 0.02
