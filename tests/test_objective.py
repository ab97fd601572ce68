"Losses and masks against references that were written independently of the library."
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distilherbert import objective
from distilherbert.objective import LOSSES, Outputs, Totals, Vocabulary, distillation_loss, mask_sequences, mix
from distilherbert.scenario import PRESETS

V, H, K = 11, 6, 3
M, A = [1, 3, 7], [i for i in range(10) if i != 9]  # Two sequences of five positions, one of them padding; three are masked
EVERY = replace(PRESETS['distilbert'], name='every', weights={n: 0.5 + i for i, n in enumerate(LOSSES)})
OBJECTIVES = {**PRESETS, 'every': EVERY, 'every-all': replace(EVERY, soft_targets_on='all')}


TEXTS = [[0, 0, 0, 1, 1], [0, 0, 0, 0, -1]]  # The text of each token; the second sequence ends in padding


def literal(o, s, t, hs, ht, labels):
    "The formulas of PAPER and DESIGN in double precision; hidden states by layer, the last one last, `(positions, H)` each."
    T, P = o.temperature, A if o.soft_targets_on == 'all' else M
    p, q = (t[P]/T).softmax(-1), (s[P]/T).softmax(-1)
    def unit(v): return v/v.norm(dim=-1, keepdim=True)
    def cosine(a, b): return (unit(a)*unit(b)).sum(-1)
    same = (text := (torch.tensor(TEXTS) + torch.tensor([[0], [9]])).flatten()[A])[:, None] == text
    def related(h, factor): # Logarithms of one head's attention to the own text; queries, keys and values are 1, 2 and 3 times the states
        return (factor**2*(h[-1][A] @ h[-1][A].T)/H**0.5).masked_fill(~same, -1e9).log_softmax(-1)
    layers = torch.stack(hs)[:, A], torch.stack(ht)[:, A]
    pairs = [(related(ht, n), related(hs, n)) for n in (1, 2, 3)]
    values = {
        'mlm': -s[M].softmax(-1)[range(len(M)), labels[M]].log().mean(),
        'soft': T*T*(p*(p/q).log()).sum(-1).mean(), 'soft_ce': -(p*q.log()).sum(-1).mean(),
        'cosine_logits': (1 - cosine(s[M], t[M])).mean(), 'cosine': (1 - cosine(hs[-1][A], ht[-1][A])).mean(),
        'hidden': (layers[0] - layers[1]).square().mean(),
        'relations': sum((a.exp()*(a - b)).sum(-1).mean() for a, b in pairs)/3}
    assert list(values) == list(LOSSES)
    return sum(w*values[n] for n, w in o.weights.items())


def example(o, seed=0):
    "Inputs of the output layer, its weights and hidden states, of student and teacher, and the labels."
    g = torch.Generator().manual_seed(seed)
    both = [[torch.randn(*shape, generator=g).requires_grad_() for shape in ((10, H), (V, H), (V,), *[(10, H)]*K)] for _ in range(2)]
    labels, positions = torch.randint(0, V, (10,), generator=g), torch.tensor(A if o.soft_targets_on == 'all' else M)
    def related(h): return *((n*h).view(2, 5, H) for n in (1, 2, 3)), torch.tensor(TEXTS)
    def outputs(x, w, b, *h): return Outputs(x[positions], w, b, h[-1][A], tuple(l[A] for l in h), related(h[-1]))
    there = torch.where(torch.isin(positions, torch.tensor(M)), labels[positions], -100)
    return both, labels, (outputs(*both[0]), outputs(*(t.detach() for t in both[1]))), there


@pytest.mark.parametrize('chunk', [1, 4, 10])
@pytest.mark.parametrize('name', OBJECTIVES)
def test_objectives_and_their_gradients_in_chunks_are_those_of_the_formulas(name, chunk, monkeypatch):
    "For the inputs, the weights and the biases of the output layer, and for the hidden states."
    o = OBJECTIVES[name]
    (mine, theirs), labels, (student, teacher), there = example(o, chunk)
    (s, hs), (t, ht) = ((x.double() @ w.double().T + b.double(), [l.double() for l in h]) for x, w, b, *h in (mine, theirs))
    wanted = literal(o, s, t.detach(), hs, [h.detach() for h in ht], labels)
    monkeypatch.setattr(objective, 'chunk_size', lambda vocab_size, device: chunk)
    got = distillation_loss(student, teacher, there, Totals(len(M), len(A)), o, scale=64.0)
    assert got['loss'].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert got['loss'].item() == pytest.approx(sum(w*got[n].item() for n, w in o.weights.items()), rel=1e-5)
    expected = torch.autograd.grad(wanted, mine, allow_unused=True)
    for a, e in zip(torch.autograd.grad(got['loss'], mine, allow_unused=True), expected, strict=True):
        assert (a is None) == (e is None) and (a is None or torch.allclose(a, e, atol=1e-6))


@pytest.mark.parametrize('memory', [1, 2**24])
def test_relations_compare_models_of_different_width(memory, monkeypatch):
    "Head by head, token by token, and with a gradient for the student; one sequence at a time, or all."
    monkeypatch.setitem(objective.CHUNK_BYTES, 'cpu', memory)
    g, texts, total = torch.Generator().manual_seed(0), torch.tensor(TEXTS), 0
    mine = [torch.randn(2, 5, 32, generator=g).requires_grad_() for _ in range(3)]
    theirs = [torch.randn(2, 5, 64, generator=g) for _ in range(3)]
    for s, t in zip(mine, theirs, strict=True):
        for b, i, head in np.ndindex(2, 5, 2):  # Two heads of 16, the greatest common divisor being 32
            there = texts[b] == texts[b, i]
            heads = [x[b].double().chunk(2, -1)[head] for x in (t, s)]
            p, q = ((h[there] @ h[i]/h.shape[-1]**0.5).softmax(0) for h in heads)
            if texts[b, i] >= 0: total = total + (p*(p/q).log()).sum()/6
    got = objective.relation_loss((*mine, texts), (*theirs, texts))
    assert got.item() == pytest.approx(total.item(), rel=1e-5)
    for a, e in zip(torch.autograd.grad(got, mine), torch.autograd.grad(total, mine), strict=True): assert torch.allclose(a, e, atol=1e-6)


def test_a_part_without_a_masked_position_adds_nothing():
    "A micro-batch of one short sequence may have none."
    x, w, b = (torch.randn(*s).requires_grad_() for s in ((0, H), (V, H), (V,)))
    o, h = PRESETS['distilbert'], torch.randn(4, H)
    teacher = Outputs(x.detach(), w.detach(), b.detach(), h)
    out = distillation_loss(Outputs(x, w, b, h), teacher, torch.zeros(0, dtype=torch.long), Totals(5, 9), o)
    assert {k: v.item() for k, v in out.items()} == pytest.approx({'loss': 0, 'mlm': 0, 'soft': 0, 'cosine': 0}, abs=1e-6)
    assert all(not g.any() for g in torch.autograd.grad(out['loss'], (w, b)))


def brute_words(ids, vocabulary):
    "Groups of positions that belong to one word, found token by token."
    words, open_word = [], None
    for i, t in enumerate(ids):
        if vocabulary.special[t]: open_word = None
        elif open_word is None or vocabulary.starts[t]: words.append(open_word := [i])
        else: open_word.append(i)
        if open_word is not None and vocabulary.ends[t]: open_word = None
    return words


@st.composite
def vocabularies(draw):
    n = draw(st.integers(8, 30))
    bits = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    ends, starts = (bits, np.zeros(n, bool)) if draw(st.booleans()) else (np.zeros(n, bool), bits)
    return Vocabulary(np.arange(n) < 5, ends, starts, mask_id=4)


def plain_mask(ids, index, epoch, seed, share, vocabulary):
    "Masking by its definition: every position hashed, every token looks up the first one of its word, found token by token."
    h, own = (f := objective.position_hash(seed, epoch, index, ids.shape[1])), mix(f)
    chosen, ordinary = np.zeros(ids.shape, bool), np.flatnonzero(~vocabulary.special)
    for b, row in enumerate(ids):
        for word in brute_words(row.tolist(), vocabulary): chosen[b, word] = objective.uniform(h[b, word[0]]) < np.float32(share)
    other = ordinary[(own & np.uint64(0xFFFFFF)) % np.uint64(len(ordinary))]
    new = np.where(objective.uniform(own) < 0.8, vocabulary.mask_id, np.where(objective.uniform(own) < 0.9, other, ids))
    return np.where(chosen, new, ids), chosen


@settings(max_examples=150, deadline=None)
@given(vocabularies(), st.integers(0, 2**32), st.integers(1, 7), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**40),
       st.one_of(st.floats(0.05, 0.95), st.sampled_from([0.0, 1e-9, 1 - 2**-24])))
def test_masks_are_those_of_the_definition(vocabulary, content, sequences, length, block, seed, share):
    "Whole words, never a special token, and the same in blocks of any size."
    g = np.random.default_rng(content)
    ids = g.integers(0, len(vocabulary.ends), (sequences, length))
    index, epoch = g.integers(0, 2**40, sequences), g.integers(0, 9, sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, 'MASK_BLOCK', block)
        seen, chosen = mask_sequences(ids, index, epoch, seed, share, vocabulary)
    for mine, wanted in zip((seen, chosen), plain_mask(ids, index, epoch, seed, share, vocabulary), strict=True):
        assert (mine == wanted).all() and mine.dtype == wanted.dtype
    assert not chosen[vocabulary.special[ids]].any() and not vocabulary.special[seen[chosen & (seen != 4)]].any()
    firsts = [{w[0] for w in brute_words(row, vocabulary)} for row in ids.tolist()]
    starts = objective.word_starts(ids, vocabulary) & ~vocabulary.special[ids]
    assert [set(np.flatnonzero(row).tolist()) for row in starts] == firsts


def test_the_hash_is_splitmix64_and_layers_are_spread_as_in_tinybert():
    "The first number of SplitMix64 with state 0 is known. The student's layer m (from 1) learns from the teacher's layer m·N/M."
    for student, teacher in ((1, 12), (2, 12), (3, 12), (4, 12), (6, 12), (12, 12), (2, 4)):
        assert objective.check_hidden_map((), student, teacher) == tuple(m*teacher//student - 1 for m in range(1, student + 1))
    assert int(mix(np.array([0x9E3779B97F4A7C15], np.uint64))[0]) == 0xE220A8397B1DCDAF
    assert len(np.unique(objective.position_hash(0, np.zeros(100), np.arange(100), 100))) == 10_000


def test_the_context_free_baseline():
    "The predictor behind the formula, on masked tokens that follow Zipf's law."
    v, g = 500, np.random.default_rng(0)
    p = np.where(np.arange(v) < 5, 0, 1/np.maximum(1, np.arange(v) - 4))
    p /= p.sum()
    ids = g.choice(v, (2000, 128), p=p)
    vocabulary = Vocabulary(np.arange(v) < 5, np.ones(v, bool), np.zeros(v, bool), mask_id=4)
    seen, chosen = mask_sequences(ids, np.arange(2000), np.zeros(2000, int), 0, 0.15, vocabulary)
    guessed = np.where(seen == 4, p[ids], (p[ids] + (seen == ids))/2)[chosen]
    baseline = objective.context_free_loss(-(p[5:]*np.log(p[5:])).sum())
    assert -np.log(guessed).mean() == pytest.approx(baseline, abs=0.05)
