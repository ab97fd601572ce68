"One command each: a student from a teacher's name and a folder of text, a classifier from a file of examples."
import csv
import json

import pytest
from conftest import run_program
from transformers import AutoModelForMaskedLM, AutoTokenizer

from distilherbert import recipes
from distilherbert.classify import predict
from distilherbert.pipeline import model_artefact
from distilherbert.recipes import distil, finetune, make_task, parse_number, read_rows
from distilherbert.scenario import SettingsError, get_profile, get_scenario
from distilherbert.student import load_masked_lm
from distilherbert.tasks import TASKS, TaskError, TaskSettings, load_group
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
    "The folder is that of the pipeline, saved settings make the same artefact, and the classifier answers."
    out = tmp_path/'small'
    lines = distil(str(tiny.models['T0']), str(corpus), str(out), layers=1, tokens='5K', max_len=32, objective='hidden',
                   save=str(tmp_path/'mine.toml'))
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.num_hidden_layers == 1 and len(tokenizer) == model.config.vocab_size and not list(tmp_path.glob('.*'))
    said = capsys.readouterr().out
    assert str(out) in lines[0] and 'cosine' in lines[1] and 'layers =' not in said and 'batch_rows = 16' in said
    saved = model_artefact(get_profile(tmp_path/'mine.toml'), get_scenario(tmp_path/'mine-student.toml'))
    assert saved.state() == 'current'
    with pytest.raises(SettingsError, match='is there already'): distil(str(tiny.models['T0']), str(corpus), str(out))
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
    ({'text': 'hf:a/b'}, 'give a budget with --tokens'), ({'teacher': 'nobody'}, 'nobody')])
def test_wrong_settings_are_refused_before_any_work(given, message, tiny, corpus, tmp_path):
    "And nothing is written."
    with pytest.raises(SettingsError, match=message):
        distil(**({'teacher': str(tiny.models['T0']), 'text': str(corpus), 'output': str(tmp_path/'s')} | given))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['corpus']


@pytest.mark.parametrize(('text', 'number'), [('200M', 200_000_000), ('1.5b', 1_500_000_000), ('300_000', 300_000), ('2k', 2000)])
def test_numbers(text, number): assert parse_number(text) == number


@pytest.mark.parametrize('ending', ['tsv', 'csv', 'jsonl', 'parquet'])
def test_each_kind_of_file_gives_the_same_examples(ending, examples, tmp_path):
    assert read_rows(tmp_path/f'x.{ending}', ['sentence', 'target']) == examples


def test_a_long_text_is_read(tmp_path):
    "Longer than the limit that Python's reader has by itself."
    (tmp_path/'a.csv').write_text(f'text,label\n{"a"*200_000},b\n')
    assert [len(text) for text, _ in read_rows(tmp_path/'a.csv', ['text', 'label'])] == [200_000]


@pytest.mark.parametrize(('name', 'content', 'message'), [
    ('a.tsv', 'text\tlabel\na\n', 'row 2: 2 fields'), ('a.csv', '', 'no examples'), ('a.csv', 'text,label\n"a,b\n', 'cannot be read'),
    ('a.jsonl', '{"text": "a"}\n', 'has no label; it has text'), ('a.jsonl', '[1]\n', 'wanted is an object'),
    ('a.jsonl', 'NaN\n', 'example 1 is nan'), ('a.jsonl', '{\n', 'cannot be read'), ('a.parquet', 'PAR1', 'cannot be read'),
    ('a.xls', 'x', 'can be read'), ('b.tsv', None, 'no file')])
def test_bad_files_are_named(name, content, message, tmp_path):
    if content is not None: (tmp_path/name).write_text(content)
    with pytest.raises(TaskError, match=message) as e: read_rows(tmp_path/name, ['text', 'label'])
    assert name in str(e.value)


def test_a_copied_task_holds_the_same_texts(tmp_path, monkeypatch):
    "Quotes, tabs and line ends included."
    texts = ['plain', '"quoted"', 'a\ttab', 'two\nlines', "it's \"both\"", '  blanks  ', 'comma, and; more', 'last']*4
    (tmp_path/'t.jsonl').write_text('\n'.join(json.dumps({'t': t, 'y': str(i % 2)}) for i, t in enumerate(texts)), 'utf-8')
    task, folder = make_task('mine', {'train': tmp_path/'t.jsonl', 'dev': tmp_path/'t.jsonl'}, ['t'], 'y', 'accuracy')
    monkeypatch.setitem(TASKS, 'mine', task)
    data = load_group((task,), str(folder), TaskSettings.of(get_profile('demo')))
    assert [t for t, in data.dev['mine'].texts] == texts and data.labels == ('0', '1')


@pytest.mark.slow
def test_the_commands(tiny, corpus, examples, tmp_path):
    "As typed, with export and prediction at the end."
    def typed(*words):
        done = run_program('distilherbert', *words, cwd=tmp_path, env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
        assert done.returncode == 0, done.stderr
        return done.stdout
    typed('distil', tiny.models['T0'], '--text', 'corpus', '--layer-map', '1', '--objective', 'hidden', '--tokens', '5K', '--max-len', '32',
          '-o', 'small')
    typed('finetune', 'small', '--train', 'x.csv', '--text', 'sentence', '--label', 'target', '--epochs', '1', '--max-len', '16', '-o', 'c')
    typed('export', 'c', '--int8', '-o', 'onnx8')
    assert typed('predict', 'onnx8', 'Jadę do miasta .').count('\t') == 2
