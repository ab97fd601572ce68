"""Fine-tuned classifiers: that they repeat the run that was scored, answer alike in every form, and what they cost."""
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_program
from huggingface_hub import ModelCard
from test_klej import DATA, TASKS, examples, group, make_folder, real
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from distilherbert import deploy, evidence, figures, klej
from distilherbert.artefact import Artefact, read_manifest
from distilherbert.klej import TaskError
from distilherbert.scenario import SettingsError, get_profile, get_scenario

WORLD = klej.world_task
PROFILE = replace(get_profile('demo'), name='toy', task_epochs=4, task_lr=1e-2, threads=1, task_max_len=20, task_seeds=(1, 2, 3), task_batch=16,
                  task_examples=0, tasks=('nkjp-ner', 'polemo2.0-in', 'polemo2.0-out'))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows_of(task, split):
    "The world's columns, for texts of random words."
    e = examples({'train': 80, 'dev': 90, 'test': 70}[split], len(task.removesuffix('-in').removesuffix('-out') + split))
    return [{'sentence': t, **({'target': ('minus', 'plus')[g]} if split != 'test' else {})} for (t,), g in zip(e.texts, e.gold, strict=True)]


def use_toys(monkeypatch, runs):
    "Rows whose models are toys, in a runs folder of their own."
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(runs))
    def model_artefact(profile, scenario):
        name = klej.get_scenario(scenario).name
        return Artefact('model', name, 1, {'name': name}, (), lambda work: make_folder(work, hidden_dropout_prob=0.1) and {})
    monkeypatch.setattr(klej, 'model_artefact', model_artefact)
    monkeypatch.setattr(klej, 'world_task', lambda task, split, seed=0: rows_of(task, split))
    klej.load_run.cache_clear()


@pytest.fixture
def toys(tmp_path, monkeypatch):
    use_toys(monkeypatch, tmp_path/'runs')
    return PROFILE


def kept(tmp_path_factory, names, pair=False):
    "A classifier folder without the stages around it."
    tmp = tmp_path_factory.mktemp('kept')
    source, data = make_folder(tmp/'model'), group(names, pair=pair)
    p = replace(PROFILE, tasks=names)
    model, tokenizer, answers, counts = deploy.train_classifier(source, data, p, 1, 3)
    about = {'tasks': list(names), 'texts': 1 + pair, 'labels': list(data.labels), 'scale': list(data.tasks[0].scale), 'max_len': counts['max_len'],
             'profile': 'toy', 'scenario': 'S0', 'seed': 1, 'epoch': 3, 'dev': {names[0]: 50.0}}
    (tmp/'classifier').mkdir()
    deploy.save_classifier(model, tokenizer, about, tmp/'classifier')
    found = deploy.classifier_results(data, answers, 1, 2)
    (tmp/'classifier'/'README.md').write_text(deploy.card(about, p, get_scenario('S0'), found, model), 'utf-8')
    return tmp/'classifier', data.dev[names[0]], answers[names[0]]


@pytest.fixture(scope='module', params=[(('nkjp-ner',), False), (('cdsc-e',), True), (('ar',), False), (('cdsc-r',), True)],
                ids=lambda p: p[0][0])
def classifier(request, tmp_path_factory):
    return kept(tmp_path_factory, *request.param)


@pytest.fixture(scope='module')
def ner(tmp_path_factory): return kept(tmp_path_factory, ('nkjp-ner',))[0]


# --- which run -----------------------------------------------------------------------------------------------------------

def test_the_choice_is_the_held_out_slices(toys, monkeypatch):
    def run(held, loss):
        pred = np.zeros((2, 10), int)
        for e, right in enumerate(held): pred[e, :right] = 1
        dev = np.array([[1, 1], [0, 0]]) # dev would take another one
        return {'train_loss': np.zeros(2), 'held_loss': np.array(loss), 'gold/held': np.ones(10, int), 'pred/held': pred,
                'gold/nkjp-ner': np.zeros(2, int), 'pred/nkjp-ner': dev}
    runs = {1: run((5, 7), (1.0, 0.9)), 2: run((8, 6), (0.8, 0.5)), 3: run((2, 8), (0.5, 0.7))}
    monkeypatch.setattr(deploy, 'load_run', lambda path: runs[int(path.name.split('-')[3])])
    assert deploy.honest_choice(toys, 'S0', 'nkjp-ner') == (3, 1) # the same score as seed 2, a lower loss
    runs[3] = run((2, 8), (0.5, 0.8))
    assert deploy.honest_choice(toys, 'S0', 'nkjp-ner') == (2, 0) # and now the earlier seed
    assert deploy.honest_choice(replace(toys, more_seeds=('S4',)), 'S0', 'nkjp-ner') == (1, 1), 'a row that has only the first seed'
    with pytest.raises(TaskError, match='selection_share = 0.1'): deploy.honest_choice(replace(toys, selection_share=0.0), 'S0', 'nkjp-ner')


def test_a_classifier_repeats_the_run_that_was_scored(toys):
    folder = deploy.build_classifier(toys, 'S0', 'polemo2.0-out')
    seed, epoch = deploy.honest_choice(toys, 'S0', 'polemo2.0')
    manifest, about = read_manifest(folder), json.loads((folder/'classifier.json').read_text())
    assert set(manifest['counts']['same'].values()) == {1.0} and set(manifest['counts']['same']) == {'held', 'polemo2.0-in', 'polemo2.0-out'}
    assert (about['seed'], about['epoch'], about['tasks'], about['labels']) == (seed, epoch + 1, ['polemo2.0-in', 'polemo2.0-out'], ['minus', 'plus'])
    scores = klej.read_scores(toys, 'S0', ['polemo2.0-out'])['honest']['polemo2.0-out']
    place = toys.task_seeds.index(seed)
    texts = [(r['sentence'],) for r in rows_of('polemo2.0-out', 'dev')]
    assert (deploy.open_classifier(folder).predict(texts) == scores.pred[place]).all()
    assert np.isclose(about['dev']['polemo2.0-out'], scores.scores()[place], atol=1e-3)
    assert deploy.build_classifier(toys, 'S0', 'polemo2.0-in') == folder, 'one classifier for the tasks of a group'


def test_a_run_that_does_not_repeat_is_said(toys, monkeypatch, caplog):
    klej.build_scores(toys, 'S0', ['nkjp-ner'])
    monkeypatch.setattr(deploy, 'train_epoch', lambda tuning, epoch: 0.0) # learns nothing
    with caplog.at_level('WARNING', logger='distilherbert'): folder = deploy.build_classifier(toys, 'S0', 'nkjp-ner')
    assert 'repeats only in part' in caplog.text and min(read_manifest(folder)['counts']['same'].values()) < 1


def test_words_that_the_task_lacks_keep_their_embeddings(tmp_path):
    source = make_folder(tmp_path)
    data = group(('nkjp-ner',))
    few = replace(data, train=data.train.pick(np.arange(4)), held=data.held.pick(np.arange(2)), dev={'nkjp-ner': data.dev['nkjp-ner'].pick(np.arange(2))})
    model, tokenizer, _, _ = deploy.train_classifier(source, few, PROFILE, 1, 2)
    before, _ = klej.load_classifier(source, 2, 1)
    seen = {w for e in (few.train, few.held, few.dev['nkjp-ner']) for (t,) in e.texts for w in t.split()}
    moved = (model.state_dict()[deploy.TABLE] != before.state_dict()[deploy.TABLE]).any(1)
    ids = {w: tokenizer.convert_tokens_to_ids(w) for w in tokenizer.get_vocab()}
    assert not any(moved[i] for w, i in ids.items() if w.startswith('w') and w not in seen)
    assert any(moved[i] for w, i in ids.items() if w in seen) and len(seen) < 40


# --- folders -------------------------------------------------------------------------------------------------------------

def test_a_folder_answers_as_the_training_did(classifier):
    folder, dev, answers = classifier
    found = deploy.open_classifier(folder).predict(dev.texts)
    assert np.allclose(found, answers, atol=1e-4) and found.dtype == answers.dtype


def test_a_folder_needs_nothing_of_ours(tmp_path_factory):
    folder, dev, answers = kept(tmp_path_factory, ('nkjp-ner',))
    classify = pipeline('text-classification', model=str(folder), tokenizer=str(folder))
    labels = json.loads((folder/'classifier.json').read_text())['labels']
    assert [labels.index(r['label']) for r in classify([t for (t,) in dev.texts])] == list(answers)


def test_the_card_shows_commands_that_exist(classifier):
    from distilherbert.reproduce import parser
    text = (classifier[0]/'README.md').read_text()
    commands = re.findall(r'^    distilherbert (.*)$', text, re.M)
    assert len(commands) == 2
    for c in commands: parser().parse_args(c.replace('"', '').replace('first text<TAB>second text', 'x').split())


def test_the_card_of_a_classifier_is_what_the_hub_reads(classifier):
    folder, dev, answers = classifier
    about, card = json.loads((folder/'classifier.json').read_text()), ModelCard.load(folder/'README.md')
    task = klej.get_task(about['tasks'][0])
    (found,) = card.data.eval_results
    right = klej.score(task.metric, dev.gold, answers)
    assert (card.data.language, card.data.pipeline_tag, card.data.metrics) == ('pl', 'text-classification', [task.metric])
    assert (found.dataset_type, found.dataset_split, found.metric_type) == (task.name, 'dev', task.metric) and abs(found.metric_value - right) < 0.01
    assert f'| {len(dev):,} |' in card.text and f' {right:.1f} ' in card.text and '(synthetic)' in found.dataset_name


def test_costs_of_shapes_need_no_training(toys, tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(tmp_path/'results'))
    record = json.loads(deploy.deployment(toys, ['S4'], untrained=True, rounds=1).read_text('utf-8'))
    rows = record['values']['rows']
    assert record['n'] is None and set(rows) == {'S4'} and record['command'] == 'distilherbert deployment S4 --profile toy.toml --untrained'
    for r in rows.values():
        assert set(r['forms']) - {'torch on GPU'} == {'torch', 'onnx', 'int8'} and not any('score' in f for f in r['forms'].values())
        assert r['forms']['int8']['bytes'] < r['forms']['torch']['bytes']
    with pytest.raises(SettingsError, match='--task or --untrained'): deploy.deployment(toys, task='nkjp-ner', untrained=True)


@real
def test_the_tokenizer_of_herbert_survives(tmp_path):
    model = make_folder(tmp_path/'model', words=[f'w{i}' for i in range(49_995)])
    for f in model.glob('*token*'): f.unlink()
    for f in Path(DATA, 'herbert-base-cased').iterdir():
        if 'config' not in f.name or 'token' in f.name: shutil.copy(f, model)
    data = group(('nkjp-ner',), n=40)
    trained, tokenizer, answers, counts = deploy.train_classifier(model, data, PROFILE, 1, 1)
    (tmp_path/'kept').mkdir()
    about = {'tasks': ['nkjp-ner'], 'texts': 1, 'labels': ['0', '1'], 'scale': [], 'max_len': 20, 'profile': 'p', 'scenario': 'S0', 'seed': 1,
             'epoch': 1, 'dev': {'nkjp-ner': 1.0}}
    deploy.save_classifier(trained, tokenizer, about, tmp_path/'kept')
    texts = [('Zażółć gęślą jaźń w Łodzi, "proszę".',), ('Ala ma kota.',)]
    a, b = AutoTokenizer.from_pretrained(Path(DATA, 'herbert-base-cased')), AutoTokenizer.from_pretrained(tmp_path/'kept')
    assert a([t for (t,) in texts])['input_ids'] == b([t for (t,) in texts])['input_ids']
    deploy.export_onnx(tmp_path/'kept', tmp_path/'onnx')
    first, second = (deploy.open_classifier(tmp_path/n) for n in ('kept', 'onnx'))
    assert np.allclose(first.logits(texts), second.logits(texts), atol=1e-5)


def damaged(folder, tmp_path, change, file='classifier.json'):
    "A copy with one file changed: JSON when `change` is a function, else its bytes."
    copy = Path(shutil.copytree(folder, tmp_path/'copy'))
    (copy/file).write_bytes(change if isinstance(change, bytes) else json.dumps(change(json.loads((copy/file).read_text()))).encode())
    return copy


def test_a_folder_without_a_head_is_no_classifier(tmp_path):
    "Its answers would be random."
    folder = make_folder(tmp_path/'mlm')
    about = {'tasks': ['nkjp-ner'], 'texts': 1, 'labels': ['a', 'b'], 'scale': [], 'max_len': 20}
    (folder/'classifier.json').write_text(json.dumps(about))
    for ask in (lambda: deploy.predict(str(folder), ['w1']), lambda: deploy.export_onnx(folder, tmp_path/'out'), lambda: deploy.open_classifier(folder)):
        with pytest.raises(TaskError, match='weights lack bert.pooler.dense.bias, .*classifier.weight. Make a classifier'): ask()
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('change, words', [
    (lambda a: {}, 'it lacks tasks, texts, labels'), (lambda a: [], r'should hold an object with tasks.* it holds \[\]'), (b'{', 'cannot be read'),
    (lambda a: a | {'labels': 'ab'}, "labels = 'ab' cannot be"), (lambda a: a | {'texts': 3}, 'texts = 3 cannot be'), (lambda a: a | {'scale': [1]}, r'scale = \[1\]'),
    (lambda a: a | {'labels': []}, r'labels = \[\] cannot be'), (lambda a: a | {'max_len': True}, 'max_len = True'), (lambda a: a | {'max_len': 33}, 'max_len = 33, but the model has 32 positions'),
    (lambda a: a | {'labels': ['a', 'b', 'c']}, 'no weights that can be read')])
def test_what_is_no_description_of_a_classifier_is_named(ner, tmp_path, change, words):
    copy = damaged(ner, tmp_path, change)
    for ask in (lambda: deploy.predict(str(copy), ['w1']), lambda: deploy.export_onnx(copy, tmp_path/'out')):
        with pytest.raises(TaskError, match=words) as e: ask()
        assert str(copy) in str(e.value)


@pytest.mark.parametrize('file, change, words', [
    ('model.onnx', b'no network', 'no exported model that can be read'), ('tokenizer.json', b'{}', 'no exported model that can be read'),
    ('classifier.json', lambda a: {k: v for k, v in a.items() if k != 'marks'}, 'lacks marks'),
    ('classifier.json', lambda a: a | {'max_len': 33}, 'max_len = 33, but the model has 32 positions')])
def test_damaged_exports_are_named(ner, tmp_path, file, change, words):
    copy = damaged(deploy.export_onnx(ner, tmp_path/'onnx'), tmp_path, change, file)
    with pytest.raises(TaskError, match=words): deploy.predict(str(copy), ['w1'])


# --- exports -------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def exported(classifier, tmp_path_factory):
    "A classifier in ONNX, moved to where it was not made."
    tmp = tmp_path_factory.mktemp('exported')
    return Path(shutil.move(deploy.export_onnx(classifier[0], tmp/'onnx'), tmp/'elsewhere'))


def test_onnx_equals_torch(classifier, exported):
    (folder, dev, answers), out = classifier, exported
    texts = [*dev.texts, tuple(' '.join(['w1']*50) for _ in dev.texts[0]), tuple('' for _ in dev.texts[0]), tuple('nieznane słowa' for _ in dev.texts[0])]
    torch_, onnx = deploy.open_classifier(folder), deploy.open_classifier(out, threads=1)
    assert np.allclose(torch_.logits(texts), onnx.logits(texts), atol=1e-5)
    assert np.allclose(onnx.predict(dev.texts), answers, atol=1e-4)
    # transformers' own forward pass, one text at a time
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for t in dev.texts[:5]:
        with torch.inference_mode(): own = model(**tokenizer(*t, return_tensors='pt', return_token_type_ids=True)).logits
        assert np.allclose(own.numpy(), onnx.logits([t]), atol=1e-5)


def test_int8_is_smaller_and_close(tmp_path_factory, tmp_path):
    folder, dev, _ = kept(tmp_path_factory, ('nkjp-ner',))
    model, _ = klej.load_classifier(make_folder(tmp_path/'wide', hidden_size=128, intermediate_size=512), 2, 0)
    sizes = []
    for int8 in (False, True):
        deploy.write_onnx(model.eval(), tmp_path/f'{int8}.onnx', int8)
        sizes.append((tmp_path/f'{int8}.onnx').stat().st_size)
    assert sizes[1] < 0.45*sizes[0]
    out = deploy.export_onnx(folder, tmp_path/'int8', int8=True)
    exact, rounded = deploy.open_classifier(folder).logits(dev.texts), deploy.open_classifier(out).logits(dev.texts)
    assert 0 < np.abs(exact - rounded).max() < 0.2*np.abs(exact).max()
    assert json.loads((out/'classifier.json').read_text())['int8'] is True


BLOCKED = """import sys, runpy
for name in ('torch', 'transformers', 'distilherbert', 'huggingface_hub'): sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')"""


def run_alone(folder, *texts, stdin=''):
    return subprocess.run([sys.executable, '-I', '-c', BLOCKED, folder/'run.py', *texts], input=stdin, capture_output=True, text=True, cwd=folder.parent)


def test_an_exported_folder_runs_without_torch(classifier, exported):
    folder, dev, _ = classifier
    lines = ['\t'.join(t) for t in dev.texts[:7]]
    done = run_alone(exported, *lines)
    assert done.returncode == 0, done.stderr
    expected = deploy.predict(str(folder), lines)
    for a, b in zip(done.stdout.splitlines(), expected, strict=True):
        (x, p, *rest), (y, q, *others) = a.split('\t'), b.split('\t')
        assert rest == others and (x == y or abs(float(x) - float(y)) < 1e-3) and (p == q == '' or abs(float(p) - float(q)) < 2e-3)
    assert run_alone(exported, stdin='\n'.join(lines) + '\n').stdout == done.stdout
    assert set((exported/'requirements.txt').read_text().split()) == {'numpy', 'onnxruntime', 'tokenizers'}


def test_the_runner_reads_and_writes_utf8_in_any_locale(tmp_path):
    "As on Windows, where a pipe has another encoding."
    stand_ins = 'def load_runner(folder): return 0, 0, {}\ndef answer_lines(lines, logits, about): return lines, ""\n'
    (tmp_path/'run.py').write_text(deploy.RUNNER.format(functions=stand_ins), 'utf-8')
    done = subprocess.run([sys.executable, tmp_path/'run.py'], input='Łódź\n'.encode(), capture_output=True, env=os.environ | {'PYTHONIOENCODING': 'cp1252', 'PYTHONUTF8': '0'})
    assert done.returncode == 0 and done.stdout.decode('utf-8').split() == ['Łódź'], done.stderr.decode()


def test_cut_texts_are_said(ner, tmp_path, caplog):
    out, texts = deploy.export_onnx(ner, tmp_path/'onnx'), ['w1', 'w2 '*30]
    said = '1 of 2 texts are longer than the 20 tokens that are read, and were cut.'
    for folder in (ner, out):
        caplog.clear()
        with caplog.at_level('WARNING', logger='distilherbert'): assert len(deploy.predict(str(folder), texts)) == 2
        assert said in caplog.text
        caplog.clear()
        deploy.predict(str(folder), texts[:1])
        assert not caplog.text
    done = run_alone(out, *texts)
    assert done.stderr.strip().endswith(said) and len(done.stdout.splitlines()) == 2 and not run_alone(out, 'w1').stderr


def test_the_runner_refuses_what_is_no_text(tmp_path_factory, tmp_path):
    folder, _, _ = kept(tmp_path_factory, ('cdsc-e',), pair=True)
    out = deploy.export_onnx(folder, tmp_path/'onnx')
    for args, words in ((['only one'], 'tab between them'), ([], 'There is no text')):
        done = run_alone(out, *args)
        assert done.returncode == 1 and words in done.stderr and 'Traceback' not in done.stderr


def test_an_export_that_differs_is_an_error(tmp_path_factory, tmp_path, monkeypatch):
    folder, _, _ = kept(tmp_path_factory, ('nkjp-ner',))
    write = deploy.write_onnx
    def other(model, file, int8):
        with torch.no_grad(): model.classifier.bias += 20
        write(model, file, int8)
        with torch.no_grad(): model.classifier.bias -= 20
    monkeypatch.setattr(deploy, 'write_onnx', other)
    for int8 in (False, True):
        with pytest.raises(RuntimeError, match='differs from the model'): deploy.export_onnx(folder, tmp_path/'onnx', int8)
    assert list(tmp_path.iterdir()) == [], 'nothing is left'


# --- words for what goes wrong -------------------------------------------------------------------------------------------

def test_what_is_no_classifier_is_named(tmp_path, classifier, monkeypatch):
    with pytest.raises(TaskError, match='no classifier.json'): deploy.open_classifier(make_folder(tmp_path/'model'))
    with pytest.raises(TaskError, match='no classifier.json'): deploy.open_classifier(tmp_path/'absent')
    with pytest.raises(SettingsError, match='There is no folder'): deploy.predict(str(tmp_path/'absent'), ['x'])
    with pytest.raises(SettingsError, match='Did you mean S4'): deploy.predict('s4', ['x'])
    with pytest.raises(ValueError, match='There is no text'): deploy.predict(str(classifier[0]), [])
    (tmp_path/'onnx').mkdir()
    with pytest.raises(SettingsError, match='--output'): deploy.export_onnx(classifier[0], tmp_path/'onnx')
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(SettingsError, match=r'onnxscript is not installed.*distilherbert\[onnx\]'): deploy.export_onnx(classifier[0], tmp_path/'new')


@pytest.fixture
def untouched(toys, monkeypatch):
    "A row of which nothing is there, and whose model nobody may begin to train."
    monkeypatch.setattr(klej, 'model_artefact', lambda profile, scenario: Artefact('model', 'S4', 1, {}, (), lambda work: pytest.fail('trained')))
    return toys


@pytest.mark.parametrize('ask, words', [
    (lambda p, out: deploy.predict('S4', ['x'], p, 'cbdd'), 'Did you mean cbd'), (lambda p, out: deploy.predict('S4', ['x\ty'], p, 'dyk'), 'Unknown task'),
    (lambda p, out: deploy.predict('S4', [], p), 'There is no text'), (lambda p, out: deploy.predict('S4', ['x'], p, 'cdsc-e'), 'tab between them'),
    (lambda p, out: deploy.predict('S4', ['x'], replace(p, selection_share=0.0)), 'selection_share = 0.1'), (lambda p, out: deploy.predict('S44', [], p), 'Unknown scenario'),
    (lambda p, out: deploy.export('S4', out, p), 'is there already'), (lambda p, out: deploy.export('S4', out/'new', p, 'dyk'), 'Unknown task'),
    (lambda p, out: deploy.export('S44', out/'new', p), 'Unknown scenario'), (lambda p, out: deploy.export(str(out), '', p, 'dyk'), 'knows its task'),
    (lambda p, out: klej.build_scores(replace(p, tasks=('dyk',)), 'S4'), 'Unknown task'),
    (lambda p, out: deploy.deployment(p, ['S4'], 'dyk'), 'Unknown task')])
def test_what_cannot_be_is_said_before_anything_is_trained(untouched, tmp_path, monkeypatch, ask, words):
    monkeypatch.setattr(klej, 'world_task', WORLD)
    with pytest.raises(ValueError, match=words): ask(untouched, tmp_path)


@pytest.mark.parametrize('module', deploy.EXTRA)
def test_missing_modules_are_said_before_anything_is_trained(untouched, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    for ask in (lambda: deploy.export('S4', tmp_path/'new', untouched), lambda: deploy.deployment(untouched, ['S4'])):
        with pytest.raises(SettingsError, match=f'{module} is not installed'): ask()


def test_exports_have_names_of_their_own(ner, toys, tmp_path, monkeypatch):
    "After a folder whose name has a dot, a row, and a row in a file."
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(deploy, 'export_onnx', lambda folder, out, int8: asked.append((str(out), int8)))
    monkeypatch.setattr(deploy, 'build_classifier', lambda *a: tmp_path)
    (tmp_path/'S4.old').mkdir()
    Path('mine.toml').write_text('init = "random"\n')
    for model in ('S4.old', f'{tmp_path}/S4.old/', 'S4', 'mine.toml'):
        for int8 in (False, True): deploy.export(model, profile=toys, int8=int8)
    names = ['S4.old-onnx', 'S4.old-onnx', 'S4-onnx', 'mine-onnx']
    assert asked == [(n + '-int8'*int8, int8) for n in names for int8 in (False, True)]


# --- costs ---------------------------------------------------------------------------------------------------------------

def test_times_are_taken_in_turns(monkeypatch):
    order = []
    def model(name, seconds):
        def forward(ids):
            assert ids.max() < 50
            order.append((name, ids.shape))
            clock[0] += seconds*ids.size
        return forward
    clock = [0.0]
    monkeypatch.setattr(deploy.time, 'perf_counter', lambda: clock[0])
    found = deploy.measure_times({('A', 'torch'): (model('A', 1e-3), 512, 50), ('B', 'torch'): (model('B', 2e-3), 130, 50)}, rounds=3)
    assert np.isclose(found['A', 'torch']['latency']['32'], 0.032) and np.isclose(found['A', 'torch']['throughput']['512'], 1/0.512)
    assert np.isclose(found['B', 'torch']['latency']['128'], 0.256) and found['B', 'torch']['latency']['512'] is None
    names = [n for n, shape in order if shape == (32, 128)]
    assert names == ['A', 'B']*4, 'one round to warm up, and three that count'


def deployment_evidence(untrained, task='cbd', **more):
    "A record of two rows, one of them on a GPU as well."
    def form(**kw): return {'latency': {'32': 0.001, '512': 0.01}, 'throughput': {'32': 900.0, '512': None}, **({} if untrained else {'score': 61.0}), **kw}
    forms = {'torch': form(bytes=4e6, peak_bytes=5e8), 'torch on GPU': {**form(peak_bytes=1e8), **({'score': None} if untrained else {})}, 'int8': form(bytes=1e6, peak_bytes=2e8)}
    forms['torch on GPU'].pop('score', None)
    rows = {s: {'parameters': n, 'forms': forms} for s, n in (('T0', 124_000_000), ('S4', 82_000_000))}
    values = {'task': '' if untrained else task, 'untrained': untrained, 'threads': 1, 'batch': 32, 'rounds': 7, 'rows': rows, **more}
    return evidence.Evidence('base', {'deployment': {'values': values}}, {})


def test_tables_of_untrained_models_have_no_scores():
    bare, scored = deployment_evidence(True), deployment_evidence(False, metric='f1')
    table = evidence.table_deployment(bare)
    head, *_ = table.splitlines()
    assert '[%]' not in head and 'with random weights' in table and len({row.count('|') for row in table.splitlines() if row.startswith('|')}) == 1
    assert evidence.table_deployment(scored).splitlines()[0].endswith('| F1 of the positive class [%] |') and '61.0' in evidence.table_deployment(scored)
    for e, words, never in ((bare, '82.0 million parameters', '%'), (scored, '61.0 %', 'million')):
        picture = figures.draw_deployment(e)
        assert words in picture.alt and never not in picture.alt and 'torch on GPU' in picture.alt
        assert ('F1 of the positive class' in picture.caption) == (e is scored) and 'on a GPU' in picture.caption


def test_the_program_that_measures_memory_on_a_card():
    for exported, device, said in ((False, 'cuda', 'torch.cuda.max_memory_allocated()'), (False, 'cpu', 'peak_bytes()'), (True, 'cpu', 'peak_bytes()')):
        program = deploy.memory_program(exported, {'labels': ['a', 'b']}, 32, 1, device)
        compile(program, 'probe', 'exec')
        assert program.splitlines()[-1] == f'print({said})' and (".to('cuda')" in program) == (device == 'cuda')


def test_the_record_of_a_row(toys, tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(tmp_path/'results'))
    file = deploy.deployment(toys, ['S0'], 'nkjp-ner', rounds=1)
    record = json.loads(file.read_text())
    assert file == tmp_path/'results'/'toy'/'deployment.json' and record['n'] == 90
    row = record['values']['rows']['S0']
    assert record['values']['metric'] == 'accuracy' and record['key'] == row['key'] and evidence.other_classifiers(toys, record['values']) == ''
    assert set(row['forms']) - {'torch on GPU'} == {'torch', 'onnx', 'int8'}
    whole = AutoModelForSequenceClassification.from_pretrained(deploy.build_classifier(toys, 'S0', 'nkjp-ner'))
    assert row['parameters'] == sum(p.numel() for p in whole.parameters())
    for form, f in row['forms'].items():
        if form == 'torch on GPU': continue
        assert f['latency']['32'] > 0 and f['throughput']['32'] > 0 and f['latency']['128'] is None
        assert f['low'] <= f['difference'] <= f['high'] and 0 <= f['score'] <= 100 and f['peak_bytes'] > 2e7
    assert row['forms']['onnx']['same'] == 1.0 and row['forms']['onnx']['difference'] == 0.0
    assert row['forms']['onnx']['peak_bytes'] < row['forms']['torch']['peak_bytes']
    lines = deploy.deployment_lines(record['values'])
    assert len(lines) == 1 + len(row['forms']) and f'{row["forms"]["torch"]["score"]:.1f}' in lines[1]


# --- the command ---------------------------------------------------------------------------------------------------------

def command(*args, stdin=None, **env):
    base = {k: v for k, v in os.environ.items() if not k.startswith('DISTILHERBERT_')}
    return subprocess.run([sys.executable, '-m', 'distilherbert.reproduce', *map(str, args)], input=stdin, capture_output=True, text=True, env=base | env)


def test_predict_and_export_from_the_command_line(tmp_path_factory, tmp_path):
    folder, dev, _ = kept(tmp_path_factory, ('nkjp-ner',))
    lines = [t for (t,) in dev.texts[:3]]
    a, b = command('predict', folder, *lines), command('predict', folder, stdin='\n'.join(lines))
    assert a.returncode == 0, a.stderr
    assert a.stdout == b.stdout and a.stdout.splitlines() == deploy.predict(str(folder), lines)
    done = command('export', folder, '--format', 'onnx', '--int8', '--output', tmp_path/'out')
    assert done.returncode == 0 and str(tmp_path/'out') in done.stdout, done.stderr
    assert command('predict', tmp_path/'out', *lines).stdout.splitlines() == deploy.predict(str(tmp_path/'out'), lines)
    again = command('export', folder, '--output', tmp_path/'out')
    assert again.returncode == 2 and 'is there already' in again.stderr and 'Traceback' not in again.stderr


def test_a_row_is_classified_from_nothing(tmp_path):
    file = tmp_path/'tiny.toml'
    file.write_text('like = "demo"\nworld_size = 300\nvocab_size = 300\nlayers = 2\nhidden = 16\nheads = 2\nintermediate = 32\nmax_len = 32\n'
                    'task_max_len = 32\ntask_examples = 60\ntask_epochs = 2\ntask_seeds = [1]\nthreads = 1\n')
    done = run_program(sys.executable, '-m', 'distilherbert.reproduce', 'predict', 'S0', 'Ala ma kota .', '--profile', file, '--task', 'polemo2.0-in',
                       env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r'__label__\w+\t0\.\d{3}\tAla ma kota \.\n', done.stdout), 'progress goes to standard error'
    assert list((tmp_path/'runs'/'classifier').glob('S0-polemo2.0-1-*/classifier.json'))
    assert TASKS['polemo2.0-in'].group == 'polemo2.0'
