"""The leaderboard's zip: format, order and spelling against the official sample, and what is refused."""
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import run_program
from sklearn.metrics import accuracy_score
from test_deploy import PROFILE, rows_of, toys, use_toys  # noqa: F401
from test_klej import DATA, TASKS, real

from distilherbert import deploy, klej, submit
from distilherbert.artefact import read_manifest
from distilherbert.klej import TaskError
from distilherbert.scenario import SettingsError

SAMPLE = Path(DATA or '.', 'klej', 'sample_submission')


@pytest.fixture
def world(toys):  # noqa: F811
    return toys


def contents(folder):
    (file,) = folder.glob('*.zip')
    with zipfile.ZipFile(file) as z:
        assert z.testzip() is None
        return {n: z.read(n).decode() for n in z.namelist()}


def test_a_submission_of_the_world(world):
    folder = submit.build_submission(world, 'S0', 'all')
    files = contents(folder)
    assert list(files) == ['test_pred_nkjp-ner.tsv', 'test_pred_polemo2.0-in.tsv', 'test_pred_polemo2.0-out.tsv']
    for name, text in files.items():
        assert (folder/name).read_text() == text
        task = name.removeprefix('test_pred_').removesuffix('.tsv')
        c = deploy.open_classifier(deploy.build_classifier(world, 'S0', task))
        answers = [c.about['labels'][i] for i in c.predict([(r['sentence'],) for r in rows_of(task, 'test')])]
        assert text.split('\n') == ['target', *answers, '']
        assert len(set(answers)) == 2, 'order shows only where answers differ'
    seed, epoch = deploy.honest_choice(world, 'S0', 'polemo2.0')
    counts = read_manifest(folder)['counts']
    assert (counts['polemo2.0-out']['seed'], counts['polemo2.0-out']['epoch'], counts['polemo2.0-out']['test']) == (seed, epoch + 1, None)


def test_equal_predictions_are_equal_bytes(world, tmp_path, monkeypatch):
    def once(): return next(submit.build_submission(world, 'S0', 'nkjp-ner').glob('*.zip')).read_bytes()
    first = once()
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'again'))
    klej.load_run.cache_clear()
    assert first == once()


def test_each_task_by_its_classifier_and_only_what_is_asked_for(world, monkeypatch):
    made = []
    monkeypatch.setattr(submit, 'make_submission', lambda classifiers, p, name, work: made.append(classifiers) or {})
    submit.build_submission(world, 'S0', 'polemo2.0-out, nkjp-ner')
    submit.build_submission(world, 'S0', ['nkjp-ner', 'polemo2.0-out'])
    assert len(made) == 1 and list(made[0]) == ['nkjp-ner', 'polemo2.0-out']
    assert made[0]['polemo2.0-out'].name.startswith('S0-polemo2.0-')


def test_words_for_tasks(world):
    assert submit.chosen_tasks(world) == list(world.tasks)
    assert submit.chosen_tasks(replace(world, task_source='local'), 'all') == list(TASKS)
    assert submit.chosen_tasks(world, 'psc,ar') == ['psc', 'ar']
    with pytest.raises(SettingsError, match='Did you mean cbd'): submit.chosen_tasks(world, 'cbdd')


# --- what is refused -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('task, text, words', [
    ('nkjp-ner', 'label\na\nb\n', "header 'label'; it must be 'target'"),
    ('nkjp-ner', 'target\na\n', '1 answers; the test split has 2 rows'),
    ('nkjp-ner', 'target\na\nb\n\n', '3 answers'),
    ('nkjp-ner', 'target\na\nB\n', r"answers \['B'\]"),
    ('ar', 'rating\n1.0\n5.5\n', "line 3: '5.5'"),
    ('ar', 'rating\nnan\n1.0\n', "line 2: 'nan'"),
    ('cdsc-r', 'relatedness_score\n0.0\nvery\n', "'very' is no number from 0 to 5"),
])
def test_bad_answers_are_refused(task, text, words):
    labels = [] if TASKS[task].scale else ['a', 'b']
    with pytest.raises(TaskError, match=words): submit.check_answers(text, TASKS[task], labels, 2)


def test_bad_zips_are_refused(tmp_path):
    expected = {'nkjp-ner': (['a', 'b'], 2)}
    submit.zip_files(tmp_path/'more.zip', {'test_pred_nkjp-ner.tsv': 'target\na\nb\n', 'notes.txt': ''})
    with pytest.raises(TaskError, match='notes.txt'): submit.check_submission(tmp_path/'more.zip', expected)
    submit.zip_files(tmp_path/'good.zip', {'test_pred_nkjp-ner.tsv': 'target\na\nb\n'})
    submit.check_submission(tmp_path/'good.zip', expected)
    sample = tmp_path/'sample_submission'
    sample.mkdir()
    with pytest.raises(TaskError, match='has no test_pred_nkjp-ner.tsv'): submit.check_submission(tmp_path/'good.zip', expected, sample)
    for text, words in (('target\nA\nb\n', r"official sample test_pred_nkjp-ner.tsv has the answers \['A'\]"), ('target\na\n', 'official sample .* 1 answers')):
        (sample/'test_pred_nkjp-ner.tsv').write_text(text)
        with pytest.raises(TaskError, match=words): submit.check_submission(tmp_path/'good.zip', expected, sample)


def official(tmp_path, monkeypatch, test='sentence\nw1 dobry\nw2 zły\nw3 "dobry\n'):
    "A local folder of NKJP-NER's kind with three texts to be classified."
    monkeypatch.setitem(klej.TASKS, 'nkjp-ner', replace(TASKS['nkjp-ner'], sizes=(80, 90, 3)))
    place = tmp_path/'data'/'klej_nkjp-ner'
    place.mkdir(parents=True)
    for split in ('train', 'dev'):
        lines = ['sentence\ttarget', *(f'{r["sentence"]}\t{r["target"]}' for r in rows_of('nkjp-ner', split))]
        (place/f'{split}.tsv').write_text('\n'.join(lines) + '\n')
    if test is not None: (place/'test_features.tsv').write_text(test)
    return str(tmp_path/'data'), place


@pytest.mark.parametrize('test, words', [(None, 'there is no file .*test_features.tsv'), ('text\nw1\n', 'wrong header'), ('sentence\nw1\n', '1 rows, but'),
                                         ('sentence\n', '0 rows, but'), ('sentence\nw1\tw2\n', 'row 2: 1 fields are expected')])
def test_bad_test_files_are_named_before_anything_is_trained(toys, tmp_path, monkeypatch, test, words):  # noqa: F811
    source, _ = official(tmp_path, monkeypatch, test)
    monkeypatch.setattr(submit, 'build_scores', lambda *a: pytest.fail('trained'))
    with pytest.raises(TaskError, match=words): submit.build_submission(replace(toys, task_source=source, tasks=('nkjp-ner',)), 'S0')


def test_cut_texts_are_counted(toys, tmp_path, monkeypatch):  # noqa: F811
    source, _ = official(tmp_path, monkeypatch, f'sentence\n{"w1 "*30}\nw2 zły\n{"w3 "*30}\n')
    folder = submit.build_submission(replace(toys, task_source=source, tasks=('nkjp-ner',)), 'S0')
    assert read_manifest(folder)['counts']['nkjp-ner']['cut'] == 2
    head, line, *_ = map(str.split, submit.submission_lines(folder))
    assert line[head.index('cut')] == '2' and line[head.index('rows')] == '3'


def test_labels_of_the_test_split_are_scored_where_they_are_given(toys, tmp_path, monkeypatch):  # noqa: F811
    source, place = official(tmp_path, monkeypatch)
    p = replace(toys, task_source=source, tasks=('nkjp-ner',))
    folder = submit.build_submission(p, 'S0')
    answers = contents(folder)['test_pred_nkjp-ner.tsv'].split()[1:]
    assert read_manifest(folder)['counts']['nkjp-ner']['test'] is None
    (place/'test_labels.tsv').write_text('target\nplus\nminus\nminus\n')
    again = submit.build_submission(p, 'S0')
    expected = 100*accuracy_score(['plus', 'minus', 'minus'], answers)
    assert again != folder and np.isclose(read_manifest(again)['counts']['nkjp-ner']['test'], expected, atol=1e-3)
    assert f'{expected:.1f}' in '\n'.join(submit.submission_lines(again))
    (place/'test_labels.tsv').write_text('target\nplus\n')
    with pytest.raises(TaskError, match='test_labels.tsv has 1 labels; the test split has 3 rows'): submit.build_submission(p, 'S0')


def test_no_honest_choice_without_a_held_out_slice(world, monkeypatch):
    monkeypatch.setattr(submit, 'build_scores', lambda *a: pytest.fail('trained'))
    with pytest.raises(TaskError, match='selection_share = 0'): submit.build_submission(replace(world, selection_share=0.0), 'S0', 'nkjp-ner')


def test_hub_layout(tmp_path, monkeypatch):
    from datasets import Dataset
    monkeypatch.setitem(klej.TASKS, 'psc', replace(TASKS['psc'], sizes=(0, 0, 2)))
    place = tmp_path/'klej-psc'/'data'
    place.mkdir(parents=True)
    Dataset.from_dict({'extract_text': ['w1', 'w2'], 'summary_text': ['w3', 'w4'], 'label': [-1, -1]}).to_parquet(place/'test-00000-of-00001.parquet')
    monkeypatch.setenv('HF_HOME', str(tmp_path/'cache'))
    assert submit.read_test(klej.TASKS['psc'], str(tmp_path)) == [('w1', 'w3'), ('w2', 'w4')]


# --- the official files --------------------------------------------------------------------------------------------------

@real
@pytest.mark.parametrize('name', TASKS)
def test_official_test_files(name):
    task = TASKS[name]
    texts = submit.read_test(task, 'local')
    assert len(texts) == task.sizes[2] and all(len(t) == len(task.texts) for t in texts)


@real
@pytest.mark.skipif(not SAMPLE.is_dir(), reason='there is no sample_submission/ beside the tasks')
def test_all_nine_tasks_in_the_format_of_the_sample(tmp_path, monkeypatch):
    use_toys(monkeypatch, tmp_path/'runs')
    p = replace(PROFILE, task_source='local', task_examples=200, task_epochs=1, task_seeds=(1,))
    folder = submit.build_submission(p, 'S0', 'all')
    files = contents(folder)
    assert set(files) == {f.name for f in SAMPLE.iterdir()} and len(files) == 9
    for name, text in files.items():
        ours, theirs = text.split('\n'), (SAMPLE/name).read_text().split('\n')
        assert ours[0] == theirs[0] and len(ours) == len(theirs) and ours[-1] == theirs[-1] == ''
        if name.removeprefix('test_pred_').removesuffix('.tsv') in ('ar', 'cdsc-r'): assert all('.' in a and float(a) >= 0 for a in ours[1:-1])
        else: assert set(ours[1:]) <= set(theirs[1:])
    assert 'All nine' in submit.submission_lines(folder)[-2]


# --- the command ---------------------------------------------------------------------------------------------------------

def test_submit_from_the_command_line(tmp_path):
    file = tmp_path/'tiny.toml'
    file.write_text('like = "demo"\nworld_size = 300\nvocab_size = 300\nlayers = 2\nhidden = 16\nheads = 2\nintermediate = 32\nmax_len = 32\n'
                    'task_max_len = 32\ntask_examples = 60\ntask_epochs = 2\ntask_seeds = [1]\nthreads = 1\n')
    def command(*args): return run_program('distilherbert', 'submit', *args, '--profile', file, env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    done = command('S0', '--tasks', 'all')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ['task', 'rows', 'cut', 'seed', 'epoch', 'dev', 'test'] and len(lines) == 6 and 'the leaderboard wants all nine' in lines[-2]
    with zipfile.ZipFile(lines[-1]) as z: assert len(z.namelist()) == 3
    for args, words in ((['S9'], 'Unknown scenario'), (['S0', '--tasks', 'nkjpner'], 'Did you mean nkjp-ner'), (['S0', '--tasks', 'ar'], 'Unknown task')):
        done = command(*args)
        assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr
    assert 'DISTILHERBERT_RUNS' not in os.environ
