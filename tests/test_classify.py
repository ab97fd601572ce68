"Fine-tuned classifiers: they repeat the run that was scored, predict alike in every format, and fill the leaderboard's zip."
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import TOP, damage, needs_data, run_program
from huggingface_hub import ModelCard
from sklearn.metrics import accuracy_score
from transformers import AutoConfig, BertForSequenceClassification, pipeline

from distilherbert import classify, reproduce, status, tasks
from distilherbert import pipeline as stages
from distilherbert.artefact import read_manifest
from distilherbert.pack import load_tokenizer
from distilherbert.scenario import get_scenario
from distilherbert.scores import read_scores
from distilherbert.student import save_model
from distilherbert.tasks import TASKS, TaskError, get_task, read_split

S4 = get_scenario('S4')
WORDS = 'Ala ma kota w Łodzi .'.split()


def write_classifier(folder, model, tokenizer, task, labels=('a', 'b'), max_len=20, spread=0.5):
    "A classifier with random weights, so large that its predictions differ; it has the shape of a model, and a tokenizer."
    t = get_task(task)
    labels = [] if t.scale else list(labels)
    torch.manual_seed(1)
    tokens = load_tokenizer(tokenizer)
    config = AutoConfig.from_pretrained(model, num_labels=max(1, len(labels)), initializer_range=spread, vocab_size=len(tokens))
    folder.mkdir(parents=True)
    save_model(BertForSequenceClassification(config), folder)
    tokens.save_pretrained(folder)
    about = {'tasks': [task], 'texts': len(t.texts), 'labels': labels, 'scale': list(t.scale), 'max_len': max_len, 'seed': 1, 'epoch': 1}
    (folder/'classifier.json').write_text(json.dumps(about | {'dev': {task: 50.0}}))
    return folder


def texts_of(folder, n=12):
    rng, count = np.random.default_rng(0), json.loads((folder/'classifier.json').read_text())['texts']
    return [tuple(' '.join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(count)) for _ in range(n)]


@pytest.fixture(scope='module', params=['nkjp-ner', 'cdsc-e', 'ar', 'cdsc-r'])
def classifier(request, tiny, tmp_path_factory):
    "One text or two, classes or ratings."
    return write_classifier(tmp_path_factory.mktemp('classifier')/'folder', tiny.models['S4'], tiny.tokenizer, request.param)


@pytest.fixture(scope='module')
def exported(classifier, tmp_path_factory):
    "The same in ONNX, moved to where it was not made."
    tmp = tmp_path_factory.mktemp('exported')
    return Path(shutil.move(classify.export_onnx(classifier, tmp/'onnx'), tmp/'elsewhere'))


@pytest.fixture(scope='module')
def ner(tiny, tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp('ner')/'S4.old', tiny.models['S4'], tiny.tokenizer, 'nkjp-ner')


@pytest.fixture(scope='module')
def ner_onnx(ner, tmp_path_factory): return classify.export_onnx(ner, tmp_path_factory.mktemp('ner')/'onnx')


def test_the_run_is_chosen_on_the_held_out_slice(monkeypatch):
    "By the score; of equal ones the lower loss counts, then the earlier seed. Dev would take another run."
    def run(right, loss):
        return {'train_loss': np.zeros(2), 'validation_loss': np.array(loss), 'gold/validation': np.ones(10, int),
                'pred/validation': (np.arange(10) < np.array(right)[:, None]).astype(int),
                'gold/nkjp-ner': np.zeros(2, int), 'pred/nkjp-ner': np.array([[1, 1], [0, 0]])}
    runs = {'1': run((5, 7), (1.0, 0.9)), '2': run((8, 6), (0.8, 0.5)), '3': run((2, 8), (0.5, 0.7))}
    monkeypatch.setattr(classify, 'load_run', lambda folder: runs[folder.name])
    folders = {s: Path(str(s)) for s in (1, 2, 3)}
    assert classify._choose_run(folders, TASKS['nkjp-ner']) == (3, 1)
    runs['3'] = run((2, 8), (0.5, 0.8))
    assert classify._choose_run(folders, TASKS['nkjp-ner']) == (2, 0)


def test_a_classifier_repeats_the_run_that_was_scored(tiny):
    folder = stages.build_classifier(tiny.profile, S4, 'polemo2.0-out')
    runs = {seed: tiny.scores['S4', 'polemo2.0', seed] for seed in tiny.profile.task_seeds}
    seed, epoch = classify._choose_run(runs, TASKS['polemo2.0-in'])
    counts, about = read_manifest(folder)['counts'], json.loads((folder/'classifier.json').read_text())
    assert counts['same'] == {'validation': 1.0, 'polemo2.0-in': 1.0, 'polemo2.0-out': 1.0}
    assert (about['seed'], about['epoch'], about['tasks']) == (seed, epoch + 1, ['polemo2.0-in', 'polemo2.0-out'])
    scored = read_scores({'polemo2.0': runs})['heldout']['polemo2.0-out']
    place, texts = tiny.profile.task_seeds.index(seed), [(r['sentence'],) for r in read_split(TASKS['polemo2.0-out'], 'dev', 'world')]
    assert (classify.open_classifier(folder).predict(texts) == scored.pred[place]).all()
    assert np.isclose(counts['results']['polemo2.0-out']['mean'], scored.scores()[place], atol=1e-3)
    assert stages.build_classifier(tiny.profile, S4, 'polemo2.0-in') == folder, 'one classifier for the tasks of a group'


def test_a_folder_needs_nothing_of_ours_and_its_card_is_for_the_hub(tiny):
    folder = stages.build_classifier(tiny.profile, S4, 'nkjp-ner')
    texts = [' '.join(r['sentence'].split()[:3]) for r in read_split(TASKS['nkjp-ner'], 'dev', 'world')][:40]
    found = [r['label'] for r in pipeline('text-classification', model=str(folder), tokenizer=str(folder))(texts)]
    assert found == [line.split('\t')[0] for line in classify.predict(str(folder), texts, tiny.profile)]
    card, counts = ModelCard.load(folder/'README.md'), read_manifest(folder)['counts']
    assert (card.data.language, card.data.pipeline_tag) == ('pl', 'text-classification')
    assert any(abs(r.metric_value - counts['results']['nkjp-ner']['mean']) < 0.01 for r in card.data.eval_results)
    for command in re.findall(r'^(?: {4})?distilherbert (.*)$', card.text, re.M):
        reproduce.parse(command.replace('"', '').split())


ABOUT = 'classifier.json'


@pytest.mark.parametrize('exported, file, change, words', [
    (False, ABOUT, b'{', 'cannot be read'), (False, ABOUT, lambda a: [], r'should hold an object with tasks.* it holds \[\]'),
    (False, ABOUT, {'labels': []}, r'labels = \[\] cannot'), (False, ABOUT, {'max_len': True}, 'max_len = True'),
    (False, ABOUT, {'labels': ['a', 'b', 'c']}, 'no weights that can be read'),
    (False, 'model.safetensors', lambda w: {n: t for n, t in w.items() if n.startswith('bert.')}, 'lack .*classifier.weight. Make one'),
    *((onnx, ABOUT, {'max_len': 99}, 'max_len = 99, but the model has 34 positions') for onnx in (False, True)),
    (True, ABOUT, lambda a: {k: v for k, v in a.items() if k != 'special_ids'}, 'lacks special_ids'),
    *((True, file, b'{}', 'no exported model that can be read') for file in ('model.onnx', 'tokenizer.json'))])
def test_folders_that_hold_no_whole_classifier_are_named(ner, ner_onnx, tiny, tmp_path, exported, file, change, words):
    copy = damage(shutil.copytree(ner_onnx if exported else ner, tmp_path/'copy'), file, change)
    with pytest.raises(TaskError, match=words) as e: classify.open_classifier(copy)
    assert str(copy) in str(e.value)


def test_onnx_equals_torch(classifier, exported):
    "Also for a text that is cut, and an empty one. That PyTorch's logits are those of transformers is for test_student."
    longest = tuple(' '.join(['kota']*50) for _ in texts_of(classifier)[0])
    texts = [*texts_of(classifier), longest, tuple('' for _ in longest)]
    ours, onnx = classify.open_classifier(classifier), classify.open_classifier(exported, threads=1)
    (a, cut), (b, cut_too) = ours.run(texts), onnx.run(texts)
    assert np.allclose(a, b, atol=1e-4) and cut == cut_too >= 1
    assert np.allclose(ours.predict(texts), onnx.predict(texts), atol=1e-3) and a.std(0).min() > 0.01, 'texts differ'


BLOCKED = """import sys, runpy
for name in ('torch', 'transformers', 'distilherbert', 'huggingface_hub'): sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')"""


def run_alone(folder, *texts, stdin='', **env):
    command = [sys.executable, '-c', BLOCKED, folder/'run.py', *texts]
    return subprocess.run(command, input=stdin.encode(), capture_output=True, cwd=folder.parent, env=os.environ | {'PYTHONPATH': ''} | env)


def test_cut_texts_are_reported(ner, ner_onnx, tiny, caplog):
    texts, words = ['kota', 'kota '*30], '1 of 2 texts are longer than the 20 tokens that are read, and were cut.'
    for folder in (ner, ner_onnx):
        with caplog.at_level('WARNING', logger='distilherbert'): assert len(classify.predict(str(folder), texts, tiny.profile)) == 2
    assert [r.message for r in caplog.records] == [words]*2
    alone = run_alone(ner_onnx, stdin='\n'.join(texts), PYTHONIOENCODING='cp1252', PYTHONUTF8='0')
    assert alone.stderr.decode().strip().endswith(words) and len(alone.stdout.splitlines()) == 2 and not run_alone(ner_onnx, 'kota').stderr


def test_int8_is_close_and_safe_without_vnni(tiny, tmp_path, monkeypatch, caplog):
    "Products of two pairs must not overflow 16 bits; a warning says where not enough labels are the same."
    folder = write_classifier(tmp_path/'folder', tiny.models['S4'], tiny.tokenizer, 'nkjp-ner', spread=0.3)
    plain, texts = classify.export_onnx(folder, tmp_path/'plain'), texts_of(folder, 100)
    for enough in (0.99, 1.01):
        monkeypatch.setattr(classify, 'LABEL_AGREEMENT', enough)
        with caplog.at_level('WARNING', logger='distilherbert'): small = classify.export_onnx(folder, tmp_path/str(enough), True, texts)
        assert ('are those of the PyTorch format' in caplog.text) == (enough > 1)
    assert (small/'model.onnx').stat().st_size < (plain/'model.onnx').stat().st_size
    stored = map(onnx.numpy_helper.to_array, onnx.load(small/'model.onnx').graph.initializer)
    weights = [w for w in stored if w.dtype == np.int8]
    assert len(weights) > 10 and max(np.abs(w.astype(int)).max() for w in weights) == 64 and 2*255*64 < 2**15
    a, b = (classify.open_classifier(f).run(texts)[0] for f in (folder, small))
    same = (a.argmax(1) == b.argmax(1)).mean()
    assert np.abs(a - b).max()/np.abs(a).max() < 0.05 and same >= 0.99, 'with weights of 4 bits they are not'
    said = f'with weights of 8 bits; {same:.1%} of the labels of 100 texts are those of the PyTorch format'
    assert said in (small/'README.md').read_text() and said in caplog.text


def test_an_export_that_differs_is_an_error_and_leaves_nothing(ner, tmp_path, monkeypatch):
    "Not even what an export that was killed has left."
    def other(model, file):
        assert not (file.parent/'old').exists()
        write(model, file)
        with torch.no_grad(): model.classifier.bias += 20
    write = classify._write_onnx
    (tmp_path/'.onnx.partial').mkdir()
    (tmp_path/'.onnx.partial'/'old').touch()
    monkeypatch.setattr(classify, '_write_onnx', other)
    with pytest.raises(RuntimeError, match='differs from the model'): classify.export_onnx(ner, tmp_path/'onnx')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('fault, words', [
    ('surrogate', 'Text 2 is not valid UTF-8 at character 5'), ('closed', 'There is no text'), ('weights', 'outputs of the model are NaN')])
def test_no_answer_is_one_sentence_and_an_exit_code(ner, ner_onnx, tmp_path, fault, words):
    "An argument in Latin-2 and a closed standard input, in an exported folder, whose functions are those of the command; damaged weights."
    if fault == 'weights':
        damage(shutil.copytree(ner, tmp_path/'c'), 'model.safetensors', lambda w: w | {'classifier.weight': w['classifier.weight']*np.nan})
        done = subprocess.run([sys.executable, '-m', 'distilherbert.reproduce', 'predict', tmp_path/'c', 'kota'], capture_output=True)
    elif fault == 'closed':
        done = subprocess.run(['sh', '-c', 'exec "$0" "$1" <&-', sys.executable, ner_onnx/'run.py'], capture_output=True)
    else: done = run_alone(ner_onnx, 'kota', os.fsdecode('Ala ł'.encode('latin2')))
    assert done.returncode == 1 and words in done.stderr.decode() and not done.stdout and b'Traceback' not in done.stderr


@pytest.fixture
def local_ner(tmp_path, monkeypatch):
    "A local folder of NKJP-NER's kind with three texts to classify."
    monkeypatch.setitem(tasks.TASKS, 'nkjp-ner', replace(TASKS['nkjp-ner'], sizes=(80, 90, 3), labels=('a', 'b')))
    place = tmp_path/'data'/'klej_nkjp-ner'
    place.mkdir(parents=True)
    (place/'test_features.tsv').write_text('sentence\nAla ma kota\nkota "dobry\n' + 'kota '*40 + '\n')
    return place


def test_requests_that_cannot_be_met_are_refused_before_anything_is_built(tiny, local_ner, tmp_path, monkeypatch):
    monkeypatch.setattr(stages.Artefact, 'build', lambda *a: pytest.fail('built'))
    (local_ner/'test_features.tsv').unlink()
    p, new = replace(tiny.profile, task_epochs=3), str(tmp_path/'new')
    local, unheld = replace(p, task_source=str(local_ner.parent), tasks=('nkjp-ner',)), replace(p, selection_share=0.0)
    for ask, *args, words in (
            (classify.predict, 'S4', ['x'], p, 'cbdd', 'Did you mean cbd'), (classify.predict, 'S4', [], p, 'There is no text'),
            (classify.predict, 'S4', ['x'], p, 'cdsc-e', 'tab between'), (classify.predict, 'S4', ['x'], unheld, 'selection_share = 0.1'),
            (classify.predict, 'absent/S4', ['x'], p, '', 'There is no folder'), (classify.export, 'S4', p, new, 'dyk', 'Unknown task'),
            (classify.export, str(TOP), p, new, 'dyk', 'has a task already'), (classify.export, str(TOP), p, new, '', 'no classifier.json'),
            (classify.export, 'S4', p, str(tmp_path), 'is there already'), (classify.submit, S4, p, 'nkjpner', 'Did you mean nkjp-ner'),
            *((classify.submit, S4, local, t, 'test_features.tsv') for t in ('', 'all'))):
        with pytest.raises(ValueError, match=words): ask(*args)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ValueError, match='onnx is not installed'): classify.export('S4', p, new)


def test_predict_and_export_from_the_command_line(ner, tiny, tmp_path, capsys):
    lines = ['Ala ma kota', 'Jadę do Łodzi .']
    command = [sys.executable, '-m', 'distilherbert.reproduce', 'predict', ner]
    done = subprocess.run(command, input='\n'.join(lines), capture_output=True, text=True)
    assert done.stdout.splitlines() == classify.predict(str(ner), lines, tiny.profile), done.stderr
    assert reproduce.main(['export', str(ner), '--format', 'onnx', '--output', str(tmp_path/'out')]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path/'out') and (tmp_path/'out'/'model.onnx').is_file()
    suggested = status.status(replace(tiny.profile, task_epochs=3), [S4], 'my profile.toml')
    assert "--profile 'my profile.toml'" in suggested, 'can be pasted'


def contents(file):
    with zipfile.ZipFile(file) as z: return {n: z.read(n).decode() for n in z.namelist()}


def test_a_submission_of_the_world(tiny):
    head, *lines, note, file = classify.submit(S4, tiny.profile, 'all')
    assert head.split() == ['task', 'texts', 'cut', 'seed', 'epoch', 'dev', 'test'] and len(lines) == 3 and 'wants all nine' in note
    files = contents(file)
    assert list(files) == ['test_pred_nkjp-ner.tsv', 'test_pred_polemo2.0-in.tsv', 'test_pred_polemo2.0-out.tsv']
    for name, text in files.items():
        task = TASKS[name.removeprefix('test_pred_').removesuffix('.tsv')]
        c = classify.open_classifier(stages.build_classifier(tiny.profile, S4, task.name))
        predicted = c.predict([(r['sentence'],) for r in read_split(task, 'test', 'world')])
        assert text == '\n'.join([task.label, *(c.about['labels'][i] for i in predicted), '']) == (Path(file).parent/name).read_text()


def test_cut_texts_are_counted_and_labels_scored_where_they_are_given(ner, local_ner, tmp_path):
    def submitted(name):
        (tmp_path/name).mkdir()
        return classify.make_submission(tmp_path/name, {'nkjp-ner': ner}, str(local_ner.parent), 0, 'x.zip')['nkjp-ner']
    counts = submitted('first')
    assert (counts['examples'], counts['cut'], counts['test']) == (3, 1, None)
    (local_ner/'test_labels.tsv').write_text('target\na\nb\nb\n')
    found = contents(tmp_path/'first'/'x.zip')['test_pred_nkjp-ner.tsv'].split()[1:]
    assert np.isclose(submitted('second')['test'], 100*accuracy_score(['a', 'b', 'b'], found), atol=1e-3)
    assert len({(tmp_path/name/'x.zip').read_bytes() for name in ('first', 'second')}) == 1, 'equal predictions are equal bytes'


@needs_data
def test_all_nine_tasks_in_the_format_of_the_sample(tiny, tmp_path):
    sample = Path(os.environ['DISTILHERBERT_DATA'], 'klej', 'sample_submission')
    if not sample.is_dir(): pytest.skip('there is no sample_submission/ next to the tasks')
    herbert = sample.parents[1]/'herbert-base-cased'
    folders = {t: write_classifier(tmp_path/t, tiny.models['S4'], herbert, t, TASKS[t].labels) for t in TASKS}
    (tmp_path/'zip').mkdir()
    classify.make_submission(tmp_path/'zip', folders, 'local', 0, 'klej.zip')
    files = contents(tmp_path/'zip'/'klej.zip')
    assert set(files) == {f.name for f in sample.iterdir()} and len(files) == 9
    for name, text in files.items():
        ours, theirs = text.split('\n'), (sample/name).read_text().split('\n')
        task = TASKS[name.removeprefix('test_pred_').removesuffix('.tsv')]
        assert ours[0] == theirs[0] and len(ours) == len(theirs) and ours[-1] == theirs[-1] == ''
        for answers in (ours[1:-1], theirs[1:-1]):
            assert all(task.scale[0] <= float(a) <= task.scale[1] for a in answers) if task.scale else set(answers) <= set(task.labels)


@pytest.mark.slow
def test_the_bench_measures_what_a_classifier_costs(tiny):
    done = run_program(sys.executable, TOP/'bench'/'deployment.py', 'S4', '--profile', tiny.file, '--rounds', '1', '--task', 'nkjp-ner')
    assert done.returncode == 0, done.stderr
    record = json.loads((tiny.runs/'results'/'tiny'/'deployment.json').read_text())
    formats = record['values']['rows']['S4']['formats']
    assert record['n'] == 500 and {'torch', 'onnx', 'int8'} <= set(formats)
    assert formats['int8']['bytes'] < formats['onnx']['bytes'] and formats['onnx']['same'] == 1.0 and formats['onnx']['latency']['32'] > 0
