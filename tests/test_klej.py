"""KLEJ: files, labels, slices, encoding and fine-tuning, each against something independent of it."""
import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TOP, damage, needs_data, write_task
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification

from distilherbert import klej, pipeline, scores, tasks
from distilherbert.pack import SPECIAL, write_tokenizer
from distilherbert.scenario import SettingsError, get_profile, get_scenario
from distilherbert.student import quiet
from distilherbert.tasks import TASKS, Examples, GroupData, TaskError, TaskSettings, load_group

DATA = Path(os.environ.get('DISTILHERBERT_DATA', ''))
WORDS = [f'w{i}' for i in range(40)] + ['dobry', 'zły']
SETTINGS = TaskSettings(examples=0, epochs=3, batch=16, lr=1e-2, max_len=20, precision='fp32', selection_share=0.1, warmup_share=0.1,
                        weight_decay=0.01, clip=1.0, threads=1, data_seed=0)
POLEMO = (TASKS['polemo2.0-in'], TASKS['polemo2.0-out'])
CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_folder(folder, words=WORDS, **shape):
    "A random BERT for masked language modelling with a whole-word tokenizer."
    rules = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *words])}, unk_token='<unk>'))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    write_tokenizer(folder, rules, 32)
    torch.manual_seed(0)
    config = BertConfig(**{'vocab_size': len(SPECIAL) + len(words), 'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2,
                           'intermediate_size': 32, 'max_position_embeddings': 32, 'pad_token_id': 1, 'initializer_range': 0.2,
                           'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0} | shape)
    with quiet(): BertForMaskedLM(config).save_pretrained(folder)
    return Path(folder)


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return make_folder(tmp_path_factory.mktemp('model'))


def examples(n, seed, task=POLEMO[0], pair=False):
    "Texts of random words in which one word decides."
    rng = np.random.default_rng(seed)
    gold, texts = rng.integers(2, size=n), []
    for g in gold:
        words = [f'w{i}' for i in rng.integers(40, size=rng.integers(3, 12))]
        words[rng.integers(len(words))] = ('zły', 'dobry')[g]
        texts.append((' '.join(words), 'w1 w2') if pair else (' '.join(words),))
    low, high = task.scale or (0, 1)
    return Examples(tuple(texts), low + gold*(high - low) if task.scale else gold)


def group(members=POLEMO, n=160, pair=False):
    dev = {t.name: examples(200, 10 + i, t, pair) for i, t in enumerate(members)}
    labels = () if members[0].scale else ('0', '1')
    return GroupData(members, labels, examples(n, 0, members[0], pair), examples(40, 1, members[0], pair), dev)


GOOD, BAD = '__label__meta_plus_m', '__label__meta_minus_m'
ROWS = [{'sentence': f'" w{i} zły' if i % 2 else f'w{i} dobry', 'target': (GOOD, BAD)[i % 2]} for i in range(20)]


def resize(monkeypatch, name, *sizes, **changes):
    "Other official sizes (train, dev, test) for a task."
    monkeypatch.setitem(TASKS, name, replace(TASKS[name], sizes=(*sizes, 0)[:3], **changes))
    return TASKS[name]


def test_quotes_are_text_where_there_is_no_quoting_and_doubled_in_ar(tmp_path, monkeypatch):
    rows = [{'sentence': '" w1 zły', 'target': BAD}, {'text': 'słowo "w cudzysłowie"', 'rating': '5.0'}]
    for name, row in zip(('polemo2.0-in', 'ar'), rows, strict=True):
        task = resize(monkeypatch, name, 1, 1)
        assert tasks.read_split(task, 'train', str(write_task(tmp_path, name, {'train': [row]}))) == [row]


@pytest.mark.parametrize('content, words', [
    (b'\t'.join(b'column %d' % i for i in range(100_000)), 'wrong header.*needs sentence.*there is column 0, '), (b'', 'wrong header'),
    (b'sentence\ttarget\nw1\t0\t0\n', 'row 2: 2 fields .* 3 found'), (b'sentence\ttarget\n\xff\t0\n', 'cannot be read'),
    (b'\xef\xbb\xbfsentence\ttarget\r\n', '0 rows, but the official split has 20')])
def test_bad_files_are_named(tmp_path, monkeypatch, content, words):
    task = resize(monkeypatch, 'polemo2.0-in', 20, 20)
    (write_task(tmp_path, task.name, {'train': ROWS})/'klej_polemo2.0-in'/'dev.tsv').write_bytes(content)
    with pytest.raises(TaskError, match=words) as e: load_group([task], str(tmp_path), SETTINGS)
    assert 'PolEmo2.0-IN' in str(e.value) and len(str(e.value)) < 500


OWN = replace(TASKS['cbd'], labels=(), metric='accuracy')


@pytest.mark.parametrize('task, labels, words', [
    (POLEMO[0], (GOOD, GOOD + ' '), 'dev, row 3: the label .* is none of __label__meta_amb, '), (OWN, ['a']*3, 'needs two classes'),
    *((TASKS['ar'], ('5.0', x), f'dev, row 3: the label {x!r} is.*{why}') for x, why in (('pięć', 'not a number'), ('nan', 'outside'))),
    (replace(OWN, metric='f1'), [str(i) for i in range(100_000)]*2, 'the classes 0 and 1')], ids=str)
def test_a_damaged_label_is_named(task, labels, words):
    rows = [{task.texts[0]: 'x', task.label: v} for v in labels]
    with pytest.raises(TaskError, match=words) as e:
        tasks._to_examples(rows, task, task.labels if task.scale else task.labels or tasks._label_names(rows, task), 'dev')
    assert len(str(e.value)) < 500


@given(some.binary(max_size=200) | some.text(max_size=100).map(lambda t: f'sentence\ttarget\n{t}'.encode()))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_rows_or_a_named_error(tmp_path_factory, content):
    (file := tmp_path_factory.getbasetemp()/'any.tsv').write_bytes(content)
    for name in ('nkjp-ner', 'dyk'):
        try: assert all(set(r) >= set(TASKS[name].texts) for r in tasks.read_tsv(file, TASKS[name], TASKS[name].texts))
        except TaskError as e: assert str(file) in str(e)


def test_what_is_missing_or_unknown_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    for task, source, words in (('nkjp-ner', str(tmp_path), 'Download .*klej_nkjp-ner.zip'), ('nkjp-ner', 'local', 'DISTILHERBERT_DATA'),
                                ('cbd', 'world', 'Unknown task')):
        with pytest.raises((TaskError, SettingsError), match=words): load_group([TASKS[task]], source, SETTINGS)


def test_a_data_set_that_cannot_be_loaded_says_what_to_do(tmp_path, monkeypatch):
    "A repository that holds a program is not run; and without a network. That the hub's layout is read is for test_paper."
    monkeypatch.setenv('HF_HOME', str(tmp_path/'cache'))
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    (tmp_path/'klej-nkjp-ner').mkdir()
    (tmp_path/'klej-nkjp-ner'/'klej-nkjp-ner.py').write_text('import datasets\n')
    for source in (str(tmp_path), 'hub'):
        with pytest.raises(TaskError, match='task_source = "local"'): load_group([TASKS['nkjp-ner']], source, SETTINGS)


@needs_data
@pytest.mark.parametrize('name', TASKS)
def test_the_official_files(name):
    """Read as pandas reads them; where nothing is quoted a line is a row, and with quoting rows would be lost, which is an error. Labels
    keep their shares in the slices, and nothing leaks into a dev slice."""
    task = TASKS[name]
    for split, n in zip(('train', 'dev', 'test'), task.sizes, strict=True):
        if not n: continue
        file = DATA/'klej'/f'klej_{name}'/f'{"test_features" if split == "test" else split}.tsv'
        other = pd.read_csv(file, sep='\t', quoting=0 if task.quoted else 3, dtype=str, keep_default_na=False, skip_blank_lines=False)
        texts = [tuple(r[c] for c in task.texts) for r in tasks.read_split(task, split, 'local')]
        assert len(texts) == n and texts == list(other[list(task.texts)].itertuples(index=False, name=None))
        if not task.quoted: assert file.read_bytes().count(b'\n') == n + 1
    if name in ('nkjp-ner', 'polemo2.0-in'):
        with pytest.raises(TaskError, match='rows, but the official split has|cannot be read as'):
            tasks.read_split(replace(task, quoted=True), 'train', 'local')
    data = load_group([task], 'local', SETTINGS)
    assert set(np.unique(data.train.gold)) >= set(range(len(data.labels)))
    if not task.sizes[1]:
        dev, rows = data.dev[name], len(data.train) + len(data.validation) + len(data.dev[name]) + data.dropped
        assert rows == task.sizes[0] and abs(len(dev) - 0.1*rows) < 0.02*rows
        for c in {'cbd': [0], 'dyk': [0], 'psc': [0, 1]}[name]:
            assert not {t[c] for e in (data.train, data.validation) for t in e.texts} & {t[c] for t in dev.texts}


@given(some.lists(some.integers(1, 300), min_size=1, max_size=4), some.floats(0.01, 0.95), some.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_slices_are_stratified_and_keep_every_label(sizes, share, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    mask = tasks.stratified(labels, round(share*len(labels)), seed, 'test')
    counts = np.bincount(labels[mask], minlength=len(sizes))
    assert counts.min() >= 1 and (np.abs(counts - np.array(sizes)*round(share*len(labels))/len(labels)) <= 1).all()
    assert (mask == tasks.stratified(labels, round(share*len(labels)), seed, 'test')).all()


DYK = [{'q_id': f'q{i}', 'question': f'pytanie {i}', 'answer': f'odpowiedź {i} {j}', 'target': str(int(j == 0))}
       for i in range(60) for j in range(5)]  # Questions with five answers each, of which one is right
OWN_PAIRS = [(i, extract, i, summary) for i in range(40) for extract in range(2) for summary in range(2)]
PSC = [{'extract_text': f'wyciąg {a} {e}', 'summary_text': f'streszczenie {b} {s}', 'label': str(int(a == b))}
       for a, e, b, s in [*OWN_PAIRS, *((i, i % 2, (i + 1 + i//2 % 2) % 40, i//3 % 2) for i in range(40))]]  # Own ones are positive


@pytest.mark.parametrize('name, rows', [('dyk', DYK), ('psc', PSC)], ids=['dyk', 'psc'])
def test_dev_slices_of_toys_leak_nothing(tmp_path, monkeypatch, name, rows):
    "Whole questions and whole articles, in dev and in the validation slice."
    task = resize(monkeypatch, name, len(rows), 0)
    data = load_group([task], str(write_task(tmp_path, name, {'train': rows})), SETTINGS)
    dev = data.dev[name]
    assert len(data.train) + len(data.validation) + len(dev) + data.dropped == len(rows) and (data.dropped > 0) == (name == 'psc')
    def subjects(part, columns): return {int(t[c].split()[1]) for t in part.texts for c in columns}
    every, first = (0, 1) if name == 'psc' else (0,), (1,) if name == 'psc' else (0,)
    assert not (subjects(data.train, every) | subjects(data.validation, every)) & subjects(dev, every) and 0.05 < len(dev)/len(rows) < 0.2
    assert len(data.validation) and not subjects(data.train, first) & subjects(data.validation, first)
    for part in (data.train, data.validation, dev): assert set(part.gold) == {0, 1}


def test_tokens_are_the_tokenizers_own_and_cutting_keeps_both_texts(folder, tiny):
    own, pairs = AutoTokenizer.from_pretrained(tiny.tokenizer), (('Zażółć gęślą jaźń.', 'Krótko'), ('Ala ma kota', 'i psa "Burka".'))
    e, theirs = klej.encode(Examples(pairs, np.zeros(2)), own, 100, BertConfig()), own(*map(list, zip(*pairs)), return_token_type_ids=True)
    assert [list(i) for i in e.ids] == theirs['input_ids'] and [list(t) for t in e.types] == theirs['token_type_ids'] and e.cut == 0
    long, short = ' '.join(['w1']*30), 'w2 w3'
    pairs = (long, short), (short, long), (short, short), (long, long), ('', '')
    e = klej.encode(Examples(pairs, np.zeros(5)), AutoTokenizer.from_pretrained(folder), 16, BertConfig())
    assert [len(i) for i in e.ids] == [16, 16, 7, 16, 3] and e.cut == 3
    assert [Counter(t.tolist())[1] for t in e.types] == [3, 12, 3, 7, 1]
    assert all(i[0] == 0 and i[-1] == 2 and (i == 2).sum() == 2 for i in e.ids)


def test_logits_and_gradients_equal_transformers(folder):
    model, tokenizer = klej.load_classifier(folder, 3, 0)
    device = klej.DeviceExamples(klej.encode(examples(12, 0, pair=True), tokenizer, 20, model.config), 1, CPU)
    ((_, inputs),), gold = device.batches([np.arange(12)]), torch.arange(12) % 3
    ours = klej.logits_of(model, *inputs)
    klej._example_loss(ours, gold, POLEMO[0]).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    theirs = model(input_ids=inputs[0], token_type_ids=inputs[1], attention_mask=(inputs[0] != 1).long(), labels=gold)
    theirs.loss.backward()
    assert torch.allclose(ours, theirs.logits, atol=1e-6)
    for n, p in model.named_parameters(): assert torch.allclose(gradients[n], p.grad, atol=1e-6), n


def test_seed_decides_what_the_folder_lacks(folder):
    a, b, c = (klej.load_classifier(folder, 3, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert {n for n in a if not torch.equal(a[n], c[n])} == {'bert.pooler.dense.weight', 'classifier.weight'}


CONFIG, WEIGHTS = 'config.json', 'model.safetensors'


@pytest.mark.parametrize('file, change, words', [
    (CONFIG, {'vocab_size': 10}, '47 entries, the model 10'), (CONFIG, {'pad_token_id': 0}, '1 for pad_token_id, and the model 0 for pad'),
    *((WEIGHTS, lambda w, lost=lost: {n: t for n, t in w.items() if lost not in n}, words) for lost, words in (
        ('layer.1.', 'num_hidden_layers = 2, but its weights have 1 layers'),
        ('layer.1.output', '4 of its weights are missing, among them bert.encoder.layer.1.'))),
    (WEIGHTS, lambda w: {n.replace('bert.', 'roberta.'): t for n, t in w.items()}, 'no complete bert')])
def test_folders_that_cannot_be_scored_are_named(tmp_path, file, change, words):
    "transformers would go on with random weights, or end in a traceback. See test_student for files that cannot be read."
    other = damage(make_folder(tmp_path/'model'), file, change)
    with pytest.raises((TaskError, SettingsError), match=words) as e: klej.load_classifier(other, 2, 0)
    assert str(other) in str(e.value)


@pytest.mark.parametrize('members, pair', [(POLEMO, False), ((TASKS['ar'],), False), ((TASKS['cdsc-r'],), True)])
def test_fine_tuning_learns_classes_and_ratings_and_is_exact(tmp_path, members, pair):
    "Dropout is part of the seed; the state of the caller is not touched."
    folder, data = make_folder(tmp_path, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1), group(members, pair=pair)
    before, longer, task = torch.get_rng_state(), replace(SETTINGS, epochs=8), members[-1]
    a, counts = klej.fine_tune(folder, data, longer, 1)
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == 1
    torch.manual_seed(321)
    b, _ = klej.fine_tune(folder, data, longer, 1)
    assert all(a[n].tobytes() == b[n].tobytes() for n in a)
    assert a['train_loss'].tobytes() != klej.fine_tune(folder, data, longer, 2)[0]['train_loss'].tobytes()
    pred, prob = a[f'pred/{task.name}'], a.get(f'prob/{task.name}')
    assert pred.shape == (8, 200) and scores.score(task.metric, a[f'gold/{task.name}'], pred[-1]) > (60 if task.scale else 80)
    assert counts['cut'] == dict.fromkeys(('train', 'validation', *data.dev), 0) and counts['max_len'] == 20
    if not task.scale: assert pred.dtype == np.uint8 and np.abs(prob.astype(float).sum(-1) - 1).max() < 2e-3 and prob.shape == (8, 200, 2)
    else: assert pred.dtype == np.float32 and prob is None and task.scale[0] <= pred.min() and pred.max() <= task.scale[1]


def test_unused_embeddings_are_left_out_and_put_back(folder):
    "The small table predicts as the whole model does; what no text uses is as it was."
    few = group(n=10)
    with klej.exact(1, 1) as device:
        tuning = klej.FineTuning(folder, replace(few, validation=few.train, dev={'polemo2.0-in': few.train}), SETTINGS, 1, device)
        tuning.train_epoch()
        small, whole = tuning.predict('polemo2.0-in'), tuning.whole_model()
    encoded = klej.encode(few.train, tuning.tokenizer, 20, whole.config)
    assert np.allclose(small, klej.DeviceExamples(encoded, 1, device).logits(whole), atol=1e-6)
    table, before = (m.bert.embeddings.word_embeddings.weight for m in (whole, BertForMaskedLM.from_pretrained(folder)))
    moved = (table != before).any(1).nonzero()[:, 0].tolist()
    assert set(moved) <= set(np.concatenate(encoded.ids)) and 0 < len(moved) < len(table) == len(SPECIAL) + len(WORDS)


def test_what_is_not_finite_stops_the_run(tmp_path):
    model = BertForMaskedLM.from_pretrained(broken := make_folder(tmp_path))
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = float('nan')
    with quiet(): model.save_pretrained(broken)
    with pytest.raises(TaskError, match='loss is nan in epoch 1, seed 7'): klej.fine_tune(broken, group(n=48), SETTINGS, 7)


S0 = get_scenario('S0')


def test_the_reports_protocol_to_the_letter(tmp_path):
    "The profile that the chapter shows, read as it stands."
    text = ''.join(line for c in json.loads((TOP/'nbs/06_klej.ipynb').read_text('utf-8'))['cells'] for line in c['source'])
    (tmp_path/'letter.toml').write_text(re.search(r'(?s)```toml\n(.*?)```', text)[1])
    p = get_profile(str(tmp_path/'letter.toml'))
    assert (p.selection_share, p.task_seeds, p.task_epochs, p.task_batch, p.task_examples) == (0.0, (42,), 20, 32, 0)


def make_teacher(folder, names, scale=None, seed=3, **shape):
    "A random classifier of transformers; with a scale also what our own classifiers say of theirs."
    make_folder(folder, WORDS[::-1], **shape)  # The same words have other ids
    torch.manual_seed(seed)
    kind = {'id2label': dict(enumerate(names)), 'label2id': {n: i for i, n in enumerate(names)}} if names else {'num_labels': 1}
    with quiet(): BertForSequenceClassification.from_pretrained(folder, **kind).save_pretrained(folder)
    if scale: (folder/'classifier.json').write_text(json.dumps({'scale': scale}))
    return folder


def plain_outputs(folder, data):
    "The logits of transformers' own forward, text by text."
    model, t = BertForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = [[t.cls_token_id, *t.encode(text, add_special_tokens=False), t.sep_token_id] for text, in data.train.texts]
    with torch.no_grad(): return torch.cat([model(torch.tensor([i])).logits for i in ids])


def test_outputs_of_a_teacher_are_those_of_transformers_in_the_order_of_the_labels(tmp_path):
    "Ratings from 1 to 5 are scaled to 0 to 1; a classifier of ours says that its own are shares of a scale."
    texts, rated = group(), group((TASKS['ar'],))
    two, other = make_teacher(tmp_path/'t', ['1', '0']), make_teacher(tmp_path/'other', ())
    own = make_teacher(tmp_path/'own', (), [0.0, 10.0])
    for folder, data, wanted in ((two, texts, plain_outputs(two, texts).flip(1)), (own, rated, (10*plain_outputs(own, rated) - 1)/4),
                                 (other, rated, (plain_outputs(other, rated) - 1)/4)):
        taught = klej.teacher_outputs(data, replace(SETTINGS, max_len=32, teacher=str(folder)), CPU)
        assert not taught.requires_grad and torch.allclose(taught, wanted, atol=1e-5)


@pytest.mark.parametrize(('names', 'members', 'message'), [
    (['0', '2'], POLEMO, 'predicts 0, 2; the labels of the examples are 0, 1'), ((), POLEMO, 'predicts numbers; the labels'),
    (['0', '1'], (TASKS['ar'],), 'predicts 0, 1; the labels of the examples are numbers')])
def test_a_teacher_of_other_labels_is_refused(tmp_path, folder, names, members, message):
    taught = replace(SETTINGS, teacher=str(make_teacher(tmp_path/'t', names)))
    with pytest.raises(TaskError, match=message): klej.fine_tune(folder, group(members), taught, 1)
    with pytest.raises(SettingsError, match='no folder .*distilherbert finetune'):
        TaskSettings.of(replace(get_profile('demo'), task_teacher=str(tmp_path/'nowhere')))


@settings(max_examples=50, deadline=None)
@given(some.integers(0, 2**32 - 1), some.floats(0, 1), some.floats(0.5, 5), some.integers(1, 4))
def test_the_loss_of_a_taught_student_by_hand(seed, weight, temperature, width):
    rng = np.random.default_rng(seed)
    student, taught, loss = rng.normal(size=(5, width)), 3*rng.normal(size=(5, width)), 0.7
    def shares(x): return (e := np.exp(x/temperature))/e.sum(1, keepdims=True)
    soft = ((student - taught)**2).mean() if width == 1 else -temperature**2*(shares(taught)*np.log(shares(student))).sum(1).mean()
    how = replace(SETTINGS, teacher='t', teacher_weight=weight, temperature=temperature)
    logits = torch.tensor(student, requires_grad=True)
    found = klej.taught_loss(logits, torch.tensor(taught, dtype=torch.float32), torch.tensor(loss), how)
    assert found.item() == pytest.approx((1 - weight)*loss + weight*soft, rel=1e-4)
    found.backward()
    expected = 2*(student - taught)/5 if width == 1 else temperature*(shares(student) - shares(taught))/5
    assert np.allclose(logits.grad.numpy(), weight*expected, atol=1e-4)


@pytest.mark.parametrize('members', [POLEMO, (TASKS['ar'],)])
def test_a_weight_of_zero_changes_nothing_and_a_weight_of_one_ignores_the_labels(tmp_path, folder, members):
    "The teacher stays as it is."
    data = group(members)
    shuffled = replace(data, train=Examples(data.train.texts, np.random.default_rng(5).permutation(data.train.gold)))
    teacher = make_teacher(tmp_path/'t', () if members[0].scale else ['0', '1'])
    before, taught = (teacher/'model.safetensors').read_bytes(), replace(SETTINGS, teacher=str(teacher))
    def run(data, **how): return klej.fine_tune(folder, data, replace(taught, **how), 1)[0]
    plain, zero = run(data, teacher=''), run(data, teacher_weight=0.0)
    assert all(np.array_equal(plain[n], zero[n]) for n in plain)
    only, same = (run(d, teacher_weight=1.0) for d in (data, shuffled))
    assert np.array_equal(only['train_loss'], same['train_loss']) and np.array_equal(only['pred/validation'], same['pred/validation'])
    assert not np.array_equal(only['train_loss'], plain['train_loss']) and only['train_loss'][-1] < only['train_loss'][0]
    assert (teacher/'model.safetensors').read_bytes() == before


def test_the_key_of_a_fine_tuning_has_the_teachers_content(tmp_path):
    "And is what it was where there is none."
    def key(**changes): return pipeline.all_scores(replace(get_profile('demo'), **changes), S0)['nkjp-ner'][10].key
    a, b = (make_teacher(tmp_path/str(n), ['0', '1'], seed=n) for n in (1, 2))
    assert key() == key(task_teacher_weight=0.1, task_temperature=9.0), 'without a teacher'
    with_a = key(task_teacher=str(a))
    assert len({key(), with_a, key(task_teacher=str(b)), key(task_teacher=str(a), task_temperature=1.0)}) == 4
    assert key(task_teacher=str(a.rename(tmp_path/'moved'))) == with_a


@pytest.mark.parametrize('members', [POLEMO, (TASKS['ar'],)])
def test_unlabelled_examples_teach_what_the_teacher_predicts(tmp_path, folder, members):
    "Their labels are nothing; where labels have no weight at all, labelled examples are worth no more."
    data, half, teacher = group(members), np.arange(160) < 80, make_teacher(tmp_path/'t', () if members[0].scale else ['0', '1'])
    some = data.train.pick(~half)
    def run(weight, unlabelled=None):
        d = data if unlabelled is None else replace(data, train=data.train.pick(half), unlabelled=unlabelled)
        return klej.fine_tune(folder, d, replace(SETTINGS, teacher=str(teacher), teacher_weight=weight), 1)[0]['pred/validation']
    assert np.array_equal(run(1.0, some), run(1.0))
    mixed, none = run(0.5, some), run(0.5, some.pick(half[:80] & False))
    assert np.array_equal(mixed, run(0.5, Examples(some.texts, some.gold[::-1]))) and not np.array_equal(mixed, none)


def test_unlabelled_examples_are_left_over_from_a_subset_of_train():
    def texts(teacher='any', **how):
        data = load_group([TASKS['nkjp-ner']], 'world', replace(SETTINGS, teacher=teacher, **how))
        return [set(e.texts) for e in (data.train, data.validation, data.unlabelled)]
    for n, found in ((60, 60), (1000, 150)):
        train, validation, more = texts(examples=100, unlabelled=n)
        assert len(more) == found and len(train) + len(validation) == 100 and not more & (train | validation)
    assert not texts(unlabelled=60)[2], 'all of train is labelled'
    assert not texts('', examples=100, unlabelled=60)[2], 'nothing is learnt from them without a teacher'
    with pytest.raises(SettingsError, match='`task_unlabelled` needs `task_teacher`'): replace(get_profile('demo'), task_unlabelled=5)
    assert replace(get_profile('demo'), task_unlabelled=5, scenarios=('S4', 'S7')).task_unlabelled == 5
