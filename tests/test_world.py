"The embedded world: repeatable, grammatical, balanced, and labelled as promised."
import re
import sys
from collections import Counter

import pytest

from distilherbert import world
from distilherbert.clean import clean_text

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


@pytest.mark.parametrize('hash_seed', ['0', '4242'])
def test_the_same_text_in_every_process_until_the_version_changes(run, hash_seed):
    "Artefacts know the world by its version, so text that changes under the same one would be taken for the old."
    digest = run(sys.executable, '-c', DIGEST, env={'PYTHONHASHSEED': hash_seed}).stdout
    assert (world.WORLD_VERSION, digest[:16]) == (1, '6302b72efbb31cc3'), 'raise WORLD_VERSION, and write the new digest here'


def test_a_longer_run_begins_like_a_shorter_one_and_seeds_and_parts_differ():
    assert list(world.world_documents('ccsub', 60))[:20] == list(world.world_documents('ccsub', 20))
    assert len({str(list(world.world_documents(p, 20, s))) for p in ('old', 'ccsub') for s in (0, 1)}) == 4


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
    first, *others = (c.split() for c in line.split('|'))
    thing, this, was, clean = first
    for case, expected in zip(('Nom', 'acc', 'gen', 'loc'), ([this, thing, was, clean], *others), strict=True):
        text = '{this:S.%s} {S=thing.%s}' % (case, case.lower()) + (' {was:S} {same:S.nom}' if case == 'Nom' else '')
        state = {'thing': 'thing.hotels', 'same': 'own.plus.hotels'}
        pattern = world.compile_pattern(text, state, lambda cls, word: int(word.lemma in {thing, 'ten', 'był', 'czysty'}))
        assert world.say(pattern, world.stream(0)).split() == expected


ADJECTIVES = """zły zła złe źli złą; kruchy krucha kruche krusi kruchą; wysoki wysoka wysokie wysocy wysoką;
    drogi droga drogie drodzy drogą;
    duży duża duże duzi dużą; uroczy urocza urocze uroczy uroczą; sąsiedni sąsiednia sąsiednie sąsiedni sąsiednią;
    słaby słaba słabe słabi słabą; inspirujący inspirująca inspirujące inspirujący inspirującą; stary stara stare starzy starą"""


@pytest.mark.parametrize('forms', ADJECTIVES.split(';'))
def test_adjectives(forms):
    masculine, feminine, neuter, virile, accusative = forms.split()
    made = world.adjective(masculine).forms
    assert [made[f'nom.{g}'] for g in world.GENDERS] == [masculine, masculine, feminine, neuter, neuter, virile]
    assert made['acc.f'] == accusative


def test_every_pattern_can_be_said_of_every_head():
    "No gender leads to a missing form, in any mix."
    draw = world.stream('all')
    for mix in ('old', 'ccsub', 'labelled'):
        patterns = [p for d in world.DOMAINS for s in world.SIGNS for p in world.review_patterns(mix, d, s)]
        for p in [*patterns, *(p for t in world.TYPES for p in world.news_patterns(mix, t))]:
            places = [piece for piece in p.pieces if not isinstance(piece, str) and not isinstance(piece[1], tuple)]
            assert all(table[g] for head, table in places for g in (p.heads[head] if head >= 0 else ('',)))
            assert re.fullmatch(r'[A-ZŻŹĆŚŁÓ][\w ,]*\.', world.say(p, draw))


def test_past_tense_agrees_with_first_names():
    draw, seen, people = world.stream('people'), Counter(), {n: g for g, names in world.FIRST.items() for n in names.split()}
    for sentence in (s for _ in range(400) for s in world.news_text('ccsub', 'persName', draw)):
        words = sentence.strip('.').split()
        if name := next((w for w in words if w in people), None):
            seen[people[name]] += 1
            assert words[words.index(name) + 2].endswith('ła' if people[name] == 'f' else 'ł')
    assert min(seen.values()) > 50 and len(seen) == 2


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
    rare, words = world.chosen_words('rare', world.RARE_SHARE), [w.lemma for t in world.ENTITIES for w in world.lexicon()[f'name.{t}']]
    assert all(texts[p][w] for p in texts for w in words)
    mean = lambda p, kept: sum(texts[p][w] for w in words if (w in rare) == kept)/sum((w in rare) == kept for w in words)
    assert mean('old', False) > 2.5*mean('old', True) and 0.8 < mean('ccsub', False)/mean('ccsub', True) < 1.25


def test_lines_are_noisy_as_labelled():
    counts, seen, wrong = Counter(), set(), 0
    for line, kind, clean in world.labelled_lines('ccsub', 3000):
        counts[kind] += 1
        wrong += clean_text(line) != clean
        assert '\n' not in line and '\t' not in line and ('<' in line or kind not in ('tags', 'script'))
        if kind in ('text', 'duplicate'): assert clean == line and (kind == 'text' or line in seen)
        if clean: assert len(clean) >= 15 and re.fullmatch(r'[^\W_]([ ,.]*[^\W_])*\.', clean) and '  ' not in clean
        seen.add(clean)
    assert set(counts) == set(world.NOISE) and wrong <= 0.005*counts.total()
    for kind, share in world.NOISE.items(): assert abs(counts[kind]/counts.total() - share/100) < 0.02


def test_the_lowest_loss_is_below_the_unigram_entropy():
    unigram = world.entropy([w for _, _, t in world.labelled_lines('old', 2000) if t for w in re.findall(r'\w+|[.,]', t)])
    assert 0 < world.world_entropy('old') < 0.5*unigram
    assert world.world_entropy('old', lambda word: 2) == pytest.approx(world.world_entropy('old')/2)


@pytest.mark.parametrize('call, message', [
    (lambda: next(world.labelled_lines('Old', 1)), 'Did you mean old'), (lambda: world.world_entropy('x'), 'There is: old, ccsub'),
    (lambda: world.world_task('polemo', 'dev'), 'Did you mean polemo2.0-in'),
    (lambda: world.world_task('nkjp-ner', 'validation'), 'There is: train, dev, test')])
def test_unknown_names_are_named(call, message):
    with pytest.raises(ValueError, match=message): call()
