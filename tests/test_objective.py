"Losses, masks and the student against references that were written independently of the library."
import lzma
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distilherbert import objective
from distilherbert.evidence import without_context
from distilherbert.objective import (
    Marks,
    Predictions,
    Totals,
    check_hidden_map,
    distillation_loss,
    even_map,
    hidden_loss,
    mask_rows,
    mix,
    place_hash,
    uniform,
    word_starts,
)
from distilherbert.scenario import PRESETS, SettingsError

V, H = 11, 6


def example(seed=0):
    "Two rows of five places with one padded place; three masked ones."
    g = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(10, V, generator=g), torch.randn(10, V, generator=g)
    hs, ht = torch.randn(10, H, generator=g), torch.randn(10, H, generator=g)
    labels = torch.randint(0, V, (10,), generator=g)
    return student, teacher, hs, ht, labels, [1, 3, 7], [i for i in range(10) if i != 9]


def softmax(z, T=1.0):
    e = [math.exp(x/T) for x in z]
    return [x/sum(e) for x in e]


def literal(preset, student, teacher, hs, ht, labels, M, A):
    "The formulas of DESIGN and PAPER, a loop over places and tokens, in double precision."
    s, t, hs, ht = (x.double().tolist() for x in (student, teacher, hs, ht))
    cosine = lambda a, b: sum(x*y for x, y in zip(a, b))/math.sqrt(sum(x*x for x in a)*sum(x*x for x in b))
    mlm = -sum(math.log(softmax(s[i])[labels[i]]) for i in M)/len(M)
    if preset == 'released':
        soft = -sum(p*math.log(q) for i in M for p, q in zip(softmax(t[i], 3), softmax(s[i], 3)))/len(M)
        cos = sum(1 - cosine(s[i], t[i]) for i in M)/len(M)
        return (mlm + soft + cos)/3
    P = A if preset == 'distilbert-all' else M
    soft = 9*sum(p*math.log(p/q) for i in P for p, q in zip(softmax(t[i], 3), softmax(s[i], 3)))/len(P)
    cos = sum(1 - cosine(hs[i], ht[i]) for i in A)/len(A)
    return 5*soft + 2*mlm + cos


@pytest.mark.parametrize('preset', PRESETS)
def test_presets_equal_their_formulas(preset):
    student, teacher, hs, ht, labels, M, A = example()
    places = torch.tensor(A if preset == 'distilbert-all' else M)
    pick = lambda z, h: Predictions(z[places], torch.eye(z.shape[1]), torch.zeros(z.shape[1]), h[A])
    labels_there = torch.where(torch.isin(places, torch.tensor(M)), labels[places], -100)
    got = distillation_loss(PRESETS[preset], pick(student, hs), pick(teacher, ht), labels_there, Totals(len(M), len(A)))
    assert got['loss'].item() == pytest.approx(literal(preset, student, teacher, hs, ht, labels, M, A), abs=1e-5)


@pytest.mark.parametrize('chunk', [1, 4, 10])
@pytest.mark.parametrize('preset', PRESETS)
def test_the_gradient_in_chunks_is_torchs_own(preset, chunk, monkeypatch):
    "Against autograd through all logits at once, for the inputs, the weights and the biases of the output layer."
    g = torch.Generator().manual_seed(chunk)
    student, teacher, hs, ht, labels, M, A = example()
    V, D, places = student.shape[1], 6, torch.tensor(A if preset == 'distilbert-all' else M)
    x, w, b = (torch.randn(*s, generator=g).requires_grad_() for s in ((len(places), D), (V, D), (V,)))
    there = torch.where(torch.isin(places, torch.tensor(M)), labels[places], -100)
    masked, o, n = there >= 0, PRESETS[preset], len(A) if preset == 'distilbert-all' else len(M)
    z, t = x @ w.T + b, teacher[places]
    log_p, q = (z/3).log_softmax(-1), (t/3).softmax(-1)
    soft = -(q*log_p).sum()/n if o.soft_as == 'cross-entropy' else 9*(q*(q.log() - log_p)).sum()/n
    wanted = o.mlm*torch.nn.functional.nll_loss(z[masked].log_softmax(-1), there[masked]) + o.soft*soft
    if o.cosine_of == 'logits':
        wanted = wanted + o.cosine*torch.nn.functional.cosine_embedding_loss(z[masked], t[masked], torch.ones(len(M)))
    else: wanted = wanted + o.cosine*torch.nn.functional.cosine_embedding_loss(hs[A], ht[A], torch.ones(len(A)))
    expected = torch.autograd.grad(wanted, (x, w, b))
    monkeypatch.setattr(objective, 'chunk_of', lambda vocab_size, device: chunk)
    guide = Predictions(t, torch.eye(V), torch.zeros(V), ht[A])
    got = distillation_loss(o, Predictions(x, w, b, hs[A]), guide, there, Totals(len(M), len(A)))
    assert got['loss'].item() == pytest.approx(wanted.item(), abs=1e-5)
    for a, e in zip(torch.autograd.grad(got['loss'], (x, w, b)), expected, strict=True): assert torch.allclose(a, e, atol=1e-6)


@pytest.mark.parametrize('preset', PRESETS)
def test_a_part_without_a_masked_place_adds_nothing(preset):
    "A micro-batch of one short row may have none."
    x, w, b = (torch.randn(*s).requires_grad_() for s in ((0, H), (V, H), (V,)))
    h = torch.randn(4, H)
    out = distillation_loss(PRESETS[preset], Predictions(x, w, b, h), Predictions(x.detach(), w.detach(), b.detach(), h), torch.zeros(0, dtype=torch.long), Totals(5, 9))
    assert {k: v.item() for k, v in out.items()} == pytest.approx({'loss': 0, 'mlm': 0, 'soft': 0, 'cos': 0}, abs=1e-6)
    assert all(not g.any() for g in torch.autograd.grad(out['loss'], (w, b)))


@pytest.mark.parametrize('kind', ['mse', 'directions'])
def test_hidden_states_are_matched_as_published(kind):
    "TinyBERT's mean squared error and patient distillation's distance of unit vectors, place by place in double precision, over two parts of a step."
    g = torch.Generator().manual_seed(3)
    student, teacher = ([torch.randn(7, H, generator=g) for _ in range(3)] for _ in range(2))
    unit = lambda v: [x/math.sqrt(sum(y*y for y in v)) for x in v]
    total = 0.0
    for s, t in zip(student, teacher):
        for a, b in zip(s.double().tolist(), t.double().tolist()):
            if kind == 'mse': total += sum((x - y)**2 for x, y in zip(a, b))/H
            else: total += sum((x - y)**2 for x, y in zip(unit(a), unit(b)))
    parts = [hidden_loss(kind, [s[part] for s in student], [t[part] for t in teacher], 7).item() for part in (slice(0, 3), slice(3, 7))]
    assert sum(parts) == pytest.approx(total/(3*7), abs=1e-6)
    if kind == 'mse': assert sum(parts) == pytest.approx(sum(torch.nn.functional.mse_loss(s, t).item() for s, t in zip(student, teacher))/3, abs=1e-6)


def test_layers_are_spread_as_in_tinybert():
    "The student's layer m (from 1) learns from the teacher's layer m·N/M."
    for student, teacher in ((1, 12), (2, 12), (3, 12), (4, 12), (6, 12), (12, 12), (2, 4)):
        assert even_map(student, teacher) == tuple(m*teacher//student - 1 for m in range(1, student + 1))
    assert check_hidden_map((0, 2, 4, 7, 9, 11), 6, 12) == (0, 2, 4, 7, 9, 11)
    with pytest.raises(SettingsError, match='from 0 to 11'): check_hidden_map((0, 12), 2, 12)


def brute_words(row, marks):
    "Groups of places that belong to one word, found token by token."
    words, open_word = [], None
    for i, t in enumerate(row):
        if marks.special[t]: open_word = None
        elif open_word is None or marks.starts[t]: words.append(open_word := [i])
        else: open_word.append(i)
        if open_word is not None and marks.ends[t]: open_word = None
    return words


@st.composite
def vocabularies(draw):
    n = draw(st.integers(8, 30))
    bits = lambda: np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    ends, starts = (bits(), np.zeros(n, bool)) if draw(st.booleans()) else (np.zeros(n, bool), bits())
    return Marks(np.arange(n) < 5, ends, starts, mask_id=4)


@settings(max_examples=60, deadline=None)
@given(vocabularies(), st.data(), st.integers(0, 2**40), st.floats(0.05, 0.9))
def test_masks_are_whole_words_and_never_special(marks, data, seed, share):
    row = data.draw(st.lists(st.integers(0, len(marks.ends) - 1), min_size=1, max_size=40))
    ids = np.array([row])
    seen, chosen = mask_rows(ids, np.array([3]), np.array([1]), seed, share, marks)
    words = brute_words(row, marks)
    firsts = {w[0] for w in words}
    assert {i for i in np.flatnonzero(word_starts(ids, marks)[0]) if not marks.special[row[i]]} == firsts
    assert all(chosen[0, w].all() or not chosen[0, w].any() for w in words)
    assert not chosen[0][marks.special[row]].any()
    assert (seen == ids)[~chosen].all() and not marks.special[seen[chosen & (seen != 4)]].any()


def plain_mask(ids, row, epoch, seed, share, marks):
    "Masking of all rows at once by its definition: every place hashed whole, every token asks the first one of its word."
    h = place_hash(seed, epoch, row, ids.shape[1])
    first = (marks.special | marks.starts)[ids]
    first[:, 0] = True
    first[:, 1:] |= (marks.special | marks.ends)[ids[:, :-1]]
    at = np.maximum.accumulate(np.where(first, np.arange(ids.shape[1]), 0), axis=1)
    chosen = (np.take_along_axis(uniform(h), at, axis=1) < np.float32(share)) & ~marks.special[ids]
    own, ordinary = mix(h), np.flatnonzero(~marks.special)
    other = ordinary[(own & np.uint64(0xFFFFFF)) % np.uint64(len(ordinary))]
    new = np.where(uniform(own) < 0.8, marks.mask_id, np.where(uniform(own) < 0.9, other, ids))
    return np.where(chosen, new, ids), chosen


@settings(max_examples=150, deadline=None)
@given(vocabularies(), st.data(), st.integers(1, 7), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**40),
       st.one_of(st.floats(0.05, 0.95), st.sampled_from([1e-9, 1 - 2**-24])))
def test_masks_in_blocks_are_those_of_the_definition(marks, data, rows, length, block, seed, share):
    g = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    ids, row, epoch = g.integers(0, len(marks.ends), (rows, length)), g.integers(0, 2**40, rows), g.integers(0, 9, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, 'MASK_ROWS', block)
        got = mask_rows(ids, row, epoch, seed, share, marks)
    for mine, wanted in zip(got, plain_mask(ids, row, epoch, seed, share, marks), strict=True):
        assert (mine == wanted).all() and mine.dtype == wanted.dtype


def test_shares_over_a_million_tokens():
    g = np.random.default_rng(0)
    marks = Marks(np.arange(1000) < 5, g.random(1000) < 0.6, np.zeros(1000, bool), mask_id=4)
    ids = g.integers(5, 1000, (2500, 512))
    seen, chosen = mask_rows(ids, np.arange(2500), np.zeros(2500, int), 7, 0.15, marks)
    assert chosen.mean() == pytest.approx(0.15, abs=0.003)
    masked = seen[chosen] == 4
    same = seen[chosen] == ids[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.005)
    assert same.mean() == pytest.approx(0.1 + 0.1/995, abs=0.005)


def test_a_rows_mask_does_not_depend_on_its_neighbours():
    marks = Marks(np.arange(50) < 5, np.arange(50) % 2 == 0, np.zeros(50, bool), mask_id=4)
    ids, row, epoch = np.random.default_rng(1).integers(5, 50, (64, 32)), np.arange(64), np.arange(64) % 3
    whole = mask_rows(ids, row, epoch, 5, 0.3, marks)[0]
    order = np.random.default_rng(2).permutation(64)
    assert (mask_rows(ids[order], row[order], epoch[order], 5, 0.3, marks)[0] == whole[order]).all()
    assert (mask_rows(ids, row, epoch + 1, 5, 0.3, marks)[0] != whole).any()
    assert (mask_rows(ids, row, epoch, 6, 0.3, marks)[0] != whole).any()


def test_hash_is_splitmix64():
    "The first number of SplitMix64 with state 0 is known: 0xE220A8397B1DCDAF."
    assert int(mix(np.array([0x9E3779B97F4A7C15], np.uint64))[0]) == 0xE220A8397B1DCDAF
    assert len(np.unique(place_hash(0, np.zeros(100), np.arange(100), 100))) == 10_000


def test_what_can_be_had_without_context():
    "The predictor that its formula is of, on masked rows of tokens that follow Zipf's law; the best without context lies a little lower."
    v, g = 500, np.random.default_rng(0)
    marks = Marks(np.arange(v) < 5, np.ones(v, bool), np.zeros(v, bool), mask_id=4)
    p = np.where(np.arange(v) < 5, 0, 1/np.maximum(1, np.arange(v) - 4))
    p /= p.sum()
    ids = g.choice(v, (2000, 128), p=p)
    seen, chosen = mask_rows(ids, np.arange(2000), np.zeros(2000, int), 0, 0.15, marks)
    ids, seen = ids[chosen], seen[chosen]
    said = np.where(seen == marks.mask_id, p[ids], (p[ids] + (seen == ids))/2)
    copied = p[seen]/(p[seen] + 1/(v - 5)) # What is seen is the right token with this probability
    best = np.where(seen == marks.mask_id, p[ids], (1 - copied)*p[ids] + copied*(seen == ids))
    entropy = -(p[5:]*np.log(p[5:])).sum()
    assert -np.log(said).mean() <= without_context(entropy) + 0.01
    assert without_context(entropy) - 0.2 < -np.log(best).mean() < -np.log(said).mean() < entropy - 0.3


@pytest.mark.skipif('DISTILHERBERT_DATA' not in os.environ, reason='needs HerBERT\'s tokenizer and real text: set DISTILHERBERT_DATA')
def test_masks_of_a_million_real_tokens():
    "HerBERT's tokens of real text: shares, whole words as the tokenizer's own strings show them, no special token, another mask in another epoch."
    from distilherbert.pack import ends_word, load_tokenizer
    data = Path(os.environ['DISTILHERBERT_DATA'])
    tokenizer, ids = load_tokenizer(data/'herbert-base-cased'), []
    with lzma.open(sorted((data/'text').glob('web*.txt.xz'))[0], 'rt', encoding='utf-8') as f:
        while len(ids) < 512*2000: ids += tokenizer(f.readline(), add_special_tokens=False)['input_ids'] + [tokenizer.sep_token_id]
    ids, V = np.array(ids[:512*2000]).reshape(2000, 512), len(tokenizer)
    special = np.zeros(V, bool)
    special[tokenizer.all_special_ids] = True
    marks = Marks(special, ends_word(tokenizer), np.zeros(V, bool), tokenizer.mask_token_id)
    row, epoch = np.arange(2000), np.zeros(2000, int)
    seen, chosen = mask_rows(ids, row, epoch, 42, 0.15, marks)
    plain = ~special[ids]
    assert plain.sum() > 950_000 and not chosen[~plain].any()
    assert chosen.sum()/plain.sum() == pytest.approx(0.15, abs=0.003)
    masked, same = seen[chosen] == marks.mask_id, seen[chosen] == ids[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.005) and same.mean() == pytest.approx(0.1, abs=0.005)
    assert (~masked & ~same).mean() == pytest.approx(0.1, abs=0.005) and not special[seen[chosen & (seen != marks.mask_id)]].any()
    inside = np.array([not t.endswith('</w>') for t in tokenizer.convert_ids_to_tokens(range(V))])  # Does the word go on after this token?
    goes_on = inside[ids[:, :-1]] & plain[:, :-1] & plain[:, 1:]
    assert goes_on.sum() > 100_000 and (chosen[:, :-1] == chosen[:, 1:])[goes_on].all()
    other = mask_rows(ids, row, epoch + 1, 42, 0.15, marks)[1]
    assert (chosen & other).sum()/plain.sum() == pytest.approx(0.15**2, abs=0.003)
    half = mask_rows(ids[::-2], row[::-2], epoch[::-2], 42, 0.15, marks)
    assert (half[0] == seen[::-2]).all() and (half[1] == chosen[::-2]).all()
