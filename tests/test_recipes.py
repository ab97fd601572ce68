"One command each: a student from a teacher's name and a folder of text, a classifier from a file of examples."
import csv
import json

import pytest
from huggingface_hub import HfApi, RepoUrl
from transformers import AutoModelForMaskedLM, AutoTokenizer

from distilherbert import recipes
from distilherbert.classify import predict
from distilherbert.pipeline import model_artefact
from distilherbert.recipes import distil, finetune
from distilherbert.scenario import SettingsError, get_profile, get_scenario
from distilherbert.student import load_masked_lm
from distilherbert.tasks import TASKS, TaskError, TaskSettings, data_identity, get_task, load_group, make_task, read_rows
from distilherbert.world import world_documents, world_task


@pytest.fixture
def corpus(tmp_path):
    (tmp_path/'corpus').mkdir()
    text = '\n\n'.join('\n'.join(d) for d in world_documents('ccsub', 200, 0))
    (tmp_path/'corpus'/'a.txt').write_text(text, 'utf-8')
    return tmp_path/'corpus'


@pytest.fixture
def examples(tmp_path):
    "World examples of NKJP-NER as TSV, CSV, JSON lines and Parquet."
    import pyarrow
    from pyarrow import parquet
    rows = world_task('nkjp-ner', 'train', 0)[:60]
    columns = ('sentence', 'target')
    lines = [[r[c] for c in columns] for r in rows]
    (tmp_path/'x.tsv').write_text('\n'.join('\t'.join(line) for line in [columns, *lines]), 'utf-8-sig')
    with open(tmp_path/'x.csv', 'w', encoding='utf-8', newline='') as f: csv.writer(f).writerows([columns, *lines])
    (tmp_path/'x.jsonl').write_text('\n'.join(json.dumps(dict(zip(columns, line, strict=True))) for line in lines), 'utf-8')
    parquet.write_table(pyarrow.table({c: [r[c] for r in rows] for c in columns}), tmp_path/'x.parquet')
    return lines


def test_a_student_and_a_classifier_from_two_commands(tiny, corpus, examples, tmp_path, capsys):
    "The folder is that of the pipeline, saved settings make the same artefact, each kind of file is read, and the classifier answers."
    out, teacher = tmp_path/'small', str(tiny.models['T0'])
    distil(teacher, str(corpus), str(out), layers=1, tokens='5K', max_len=32, objective='hidden', save=str(tmp_path/'mine.toml'))
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.num_hidden_layers == 1 and len(tokenizer) == model.config.vocab_size and not list(tmp_path.glob('.*'))
    said = capsys.readouterr().out
    assert 'layers =' not in said and 'batch_rows = 16' in said, 'what was not given is explained'
    assert model_artefact(get_profile(tmp_path/'mine.toml'), get_scenario(tmp_path/'mine-student.toml')).state() == 'current'
    with pytest.raises(SettingsError, match='is there already'): distil(teacher, str(corpus), str(out))
    for ending in ('tsv', 'csv', 'jsonl', 'parquet'):
        assert [[*r.values()] for r in read_rows(tmp_path/f'x.{ending}', ['sentence', 'target'])] == examples
    score, *_ = finetune(str(out), str(tmp_path/'x.tsv'), str(tmp_path/'c'), text='sentence', label='target', epochs=1, seeds=2, max_len=16)
    assert '% accuracy on 6 examples' in score
    answer, = predict(str(tmp_path/'c'), ['Jadę do miasta .'], tiny.profile)
    assert answer.split('\t')[0] in {label for _, label in examples}


def test_a_teacher_without_a_head_teaches_hidden_states(tiny, corpus, tmp_path, capsys):
    load_masked_lm(tiny.models['T0'])[0].bert.save_pretrained(tmp_path/'encoder')
    AutoTokenizer.from_pretrained(tiny.models['T0']).save_pretrained(tmp_path/'encoder')
    distil(str(tmp_path/'encoder'), str(corpus), str(tmp_path/'s'), tokens='5K', max_len=32, dry_run=True)
    assert 'objective = hidden: the teacher has no head' in capsys.readouterr().out and not (tmp_path/'s').exists()
    *_, load, _ = distil(str(tmp_path/'encoder'), str(corpus), str(tmp_path/'s'), tokens='5K', max_len=32)
    assert 'AutoModel.from_pretrained' in load and 'feature-extraction' in (tmp_path/'s'/'README.md').read_text('utf-8')
    with pytest.raises(SettingsError, match='no head that could predict'):
        distil(str(tmp_path/'encoder'), str(corpus), str(tmp_path/'other'), objective='distilbert', dry_run=True)


def test_hours_are_a_budget(tiny, corpus, tmp_path, capsys, monkeypatch):
    "Twice the time, twice the tokens, at a pace that is the same."
    monkeypatch.setattr(recipes, 'training_pace', lambda *a: 5e8)
    found = []
    for hours in (0.1, 0.2):
        distil(str(tiny.models['T0']), str(corpus), str(tmp_path/'s'), hours=hours, max_len=32, dry_run=True)
        found.append(int(capsys.readouterr().out.split(' tokens in ')[0].split()[-1].replace(',', '')))
    assert found[1] == pytest.approx(2*found[0], rel=1e-3)


@pytest.mark.parametrize(('given', 'message'), [
    ({'layers': 3}, 'the teacher has 2'), ({'layers': 1, 'layer_map': '0'}, 'give one of them'), ({'layer_map': '7'}, 'layer 7'),
    ({'layer_map': '0;1'}, 'should be numbers'), ({'tokens': 'many'}, '200M'), ({'tokens': '1M', 'hours': 2.0}, 'give one of them'),
    ({'objective': 'hiden'}, 'hidden'), ({'vocab': 'cut'}, 'trim'), ({'text': 'nowhere'}, 'no file or folder'),
    ({'text': 'hf:a/b'}, 'give a budget with --tokens'),
    ({'push_to_hub': 'a b'}, '--push-to-hub a b: .*hf auth login'), ({'teacher': 'nobody'}, 'nobody')])
def test_wrong_settings_are_refused_before_any_work(given, message, tiny, corpus, tmp_path):
    "And nothing is written."
    with pytest.raises(SettingsError, match=message):
        distil(**({'teacher': str(tiny.models['T0']), 'text': str(corpus), 'output': str(tmp_path/'s')} | given))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['corpus']


@pytest.mark.parametrize(('name', 'content', 'message'), [
    ('a.tsv', 'text\tlabel\na\n', 'row 2: 2 fields'), ('a.csv', '', 'no examples'), ('a.csv', 'text,label\n"a,b\n', 'cannot be read'),
    ('a.jsonl', '{"text": "a"}\n', 'has no label; it has text'), ('a.jsonl', '[1]\n', 'wanted is an object'),
    ('a.parquet', 'PAR1', 'cannot be read'), ('a.xls', 'x', 'can be read'), ('b.tsv', None, 'no file')])
def test_bad_files_are_named(name, content, message, tmp_path):
    if content is not None: (tmp_path/name).write_text(content)
    with pytest.raises(TaskError, match=message) as e: read_rows(tmp_path/name, ['text', 'label'])
    assert name in str(e.value)


@pytest.fixture
def forget():
    "What a test adds to the list of tasks is forgotten at its end."
    before = set(TASKS)
    yield
    for name in set(TASKS) - before: del TASKS[name]


def test_a_task_holds_the_texts_of_its_files(tmp_path, forget):
    "Quotes, tabs and line ends included; other labels, or another use of the same file, are other data."
    texts = ['plain', '"quoted"', 'a\ttab', 'two\nlines', "it's \"both\"", '  blanks  ', 'comma, and; more', 'last']*4
    files = dict.fromkeys(('train', 'dev', 'test'), tmp_path/'t.jsonl')
    def write(labels): files['dev'].write_text('\n'.join(json.dumps({'t': t, 'y': y}) for t, y in zip(texts, labels, strict=True)), 'utf-8')
    def identity(**how): return data_identity(make_task('mine', files, ['t'], 'y', **how), '')
    write([0, 1]*16)
    before = identity()
    data = load_group((TASKS['mine'],), 'world', TaskSettings.of(get_profile('demo')))
    assert data.labels == ('0', '1') and [t for t, in data.dev['mine'].texts] == texts == [t for t, in data.test['mine'].texts]
    assert identity() == before and len({before, identity(metric='f1'), identity(metric='wmae'), identity(labels=['0', '1', '2'])}) == 4
    assert make_task('mine', {'train': tmp_path/'t.jsonl'}, ['t'], 'y', 'wmae').scale == (0.0, 1.0)
    write([1, 0]*16)
    assert identity() != before and get_task('mine').sizes == (32, 32, 32)


@pytest.mark.parametrize(('table', 'message'), [
    ('train = 1', '`train` of .tasks.a. should be a string, got 1'), ('text = "a"', 'with the field `train`'),
    ('train = "x.tsv"\ntexts = "a"', "Unknown field of .tasks.a.* 'texts'. Did you mean text"),
    ('train = "x.tsv"\ntext = ["a", "b", "c"]', 'or two for pairs'), ('train = "x.tsv"\nmetric = "f2"', 'Did you mean f1'),
    ('train = "x.tsv"', 'x.tsv, example 1 has no text, label; it has sentence, target'), ('train = "no.tsv"', 'There is no file .*no.tsv'),
    ('train = "x.tsv"\ntext = "sentence"\nlabel = "target"\nmetric = "wmae"', 'needs numbers in the column target')])
def test_a_wrong_table_of_a_task_is_named(table, message, examples, tmp_path, monkeypatch, forget):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a.toml').write_text(f'like = "demo"\n[tasks.a]\n{table}\n')
    with pytest.raises((SettingsError, TaskError), match=message): get_task(get_profile('a.toml').tasks[0])
    (tmp_path/'a.toml').write_text('like = "demo"\n[tasks.ar]\ntrain = "x.tsv"\n[tasks.nkjp-ner]\n')
    with pytest.raises(SettingsError, match='ar is a task of KLEJ'): get_task('a.toml:ar')


def test_a_result_goes_to_the_hub_under_the_users_name(tiny, corpus, tmp_path, monkeypatch):
    "Without the pipeline's own files. Only what huggingface_hub sends is replaced; for a name that is not the user's nothing is trained."
    sent, words = [], dict(teacher=str(tiny.models['T0']), text=str(corpus), objective='hidden', tokens='5K', max_len=32)
    monkeypatch.setattr(HfApi, 'whoami', lambda self: {'name': 'reader'})
    monkeypatch.setattr(HfApi, 'create_repo', lambda self, name, exist_ok: RepoUrl(f'https://huggingface.co/reader/{name}'))
    monkeypatch.setattr(HfApi, 'upload_folder', lambda self, **options: sent.append(options))
    with pytest.raises(SettingsError, match='There is: reader'): distil(**words, output=str(tmp_path/'s'), push_to_hub='x/y')
    assert not (tmp_path/'s').exists()
    assert distil(**words, output=str(tmp_path/'s'), push_to_hub='small')[0] == 'https://huggingface.co/reader/small'
    there = {f.name for f in sent[0]['folder_path'].iterdir()} - set(sent[0]['ignore_patterns'])
    assert sent[0]['repo_id'] == 'reader/small' and there == {f.name for f in (tmp_path/'s').iterdir()} and 'manifest.json' not in there
