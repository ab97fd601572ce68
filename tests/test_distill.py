"The loop as a program: killed, stopped, damaged, repeated; and the step against DistilBERT's definition."
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TOP, run_program
from torch.nn import functional as F

from distilherbert import distill as D
from distilherbert.artefact import read_manifest
from distilherbert.objective import PRESETS, Marks
from distilherbert.scenario import SCENARIOS, get_profile
from distilherbert.student import bert_config, random_model

PROFILE = """like = "demo"
world_size = 400
vocab_size = 300
layers = 2
hidden = 32
heads = 2
intermediate = 64
max_len = 32
dropout = 0.1
teacher_tokens = 60_000
tokens = 60_000
batch_rows = 16
micro_rows = 7
teacher_margin = -10.0
threads = 1
checkpoint_minutes = 0.002
"""


def program(profile, scenario='S4'): return [sys.executable, '-m', 'distilherbert.distill', '--scenario', scenario, '--profile', str(profile)]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "A profile, and a folder of artefacts in which S4 was trained without being disturbed."
    top = tmp_path_factory.mktemp('undisturbed')
    (top/'small.toml').write_text(PROFILE)
    done = run_program(*program(top/'small.toml'), env={'DISTILHERBERT_RUNS': top/'runs'})
    assert done.returncode == 0, done.stderr
    return top, Path(done.stdout.strip().splitlines()[-1])


def content(folder):
    "Weights and log of a model folder, without the clock's fields."
    log = [{k: v for k, v in l.items() if k not in D.CLOCK} for l in D.read_metrics(folder)]
    return (folder/'model.safetensors').read_bytes(), log


def copy_inputs(top, runs):
    "A folder of artefacts in which everything but S4 is there."
    for stage in ('text', 'tokenizer', 'rows', 'model'):
        (runs/stage).mkdir(parents=True, exist_ok=True)
        for f in (top/'runs'/stage).iterdir():
            if f.is_dir() and not f.name.startswith(('S4', '.')): (runs/stage/f.name).symlink_to(f)


def begin(top, runs, environment):
    return subprocess.Popen(program(top/'small.toml'), cwd=TOP, env=environment | {'DISTILHERBERT_RUNS': str(runs)},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def environment():
    import os
    return {k: v for k, v in os.environ.items() if not k.startswith('DISTILHERBERT_')} | {'PYTHONUNBUFFERED': '1'}


def wait_for_steps(runs, process, steps):
    "Wait until so many steps are in the log; True when the process still runs."
    while process.poll() is None:
        logs = list((runs/'model').glob('.S4-*.partial/metrics.jsonl'))
        if logs and logs[0].read_bytes().count(b'\n') > steps: return True
        time.sleep(0.01)
    return False


def test_killed_three_times_it_ends_with_the_same_weights(undisturbed, tmp_path, environment):
    top, calm = undisturbed
    copy_inputs(top, tmp_path/'runs')
    chance, steps = random.Random(1), len(D.read_metrics(calm))
    for part in (0.2, 0.5, 0.8):
        process = begin(top, tmp_path/'runs', environment)
        assert wait_for_steps(tmp_path/'runs', process, int(part*steps)), 'it ended before it could be killed'
        time.sleep(chance.random()/20)
        process.kill()
        process.communicate()
    assert list((tmp_path/'runs'/'model').glob('.S4-*.partial/checkpoints/*.pt')), 'nothing was saved to go on from'
    process = begin(top, tmp_path/'runs', environment)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert 'Goes on after step' in out
    weights, log = content(Path(out.strip().splitlines()[-1]))
    assert weights == content(calm)[0]
    assert log == content(calm)[1]


def test_sigterm_saves_and_leaves(undisturbed, tmp_path, environment):
    top, _ = undisturbed
    copy_inputs(top, tmp_path/'runs')
    process = begin(top, tmp_path/'runs', environment)
    assert wait_for_steps(tmp_path/'runs', process, 10)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    log, = (tmp_path/'runs'/'model').glob('.S4-*.partial/metrics.jsonl')
    last = json.loads(log.read_text().splitlines()[-1])['step']
    saved = sorted(log.parent.glob('checkpoints/*.pt'))[-1]
    assert int(saved.name.split('-')[0]) == last


def test_the_same_settings_give_the_same_bytes_with_other_workers(undisturbed, tmp_path):
    top, calm = undisturbed
    code = (f'from distilherbert.pack import build_rows\nfrom distilherbert.clean import build_text\nif __name__ == "__main__":\n'
            f' p = {str(top/"small.toml")!r}\n build_text(p, workers=4)\n for part in ("old", "ccsub"): build_rows(p, part, workers=4)')
    (tmp_path/'data.py').write_text(code)
    made = run_program(sys.executable, tmp_path/'data.py', env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert made.returncode == 0, made.stderr
    done = run_program(*program(top/'small.toml'), env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert done.returncode == 0, done.stderr
    assert content(Path(done.stdout.strip().splitlines()[-1])) == content(calm)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    D.save_checkpoint(tmp_path/'c', 1, {'x': torch.zeros(3)})
    newest = D.save_checkpoint(tmp_path/'c', 2, {'x': torch.ones(3)})
    newest.write_bytes(newest.read_bytes().replace(b'\x80?', b'\x81?'))
    assert D.load_checkpoint(tmp_path/'c')['step'] == 1
    assert f'{newest.name} is damaged' in capsys.readouterr().err
    for f in (tmp_path/'c').glob('*.pt'): f.write_bytes(b'')
    assert D.load_checkpoint(tmp_path/'c') is None


def test_an_unfit_teacher_is_refused(undisturbed, tmp_path):
    top, _ = undisturbed
    strict = tmp_path/'strict.toml'
    strict.write_text(PROFILE.replace('teacher_margin = -10.0', 'teacher_margin = 5.0'))
    copy_inputs(top, tmp_path/'runs')
    done = run_program(*program(strict), env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert done.returncode and 'T0 is not fit to teach' in done.stderr and 'teacher_tokens' in done.stderr


def test_a_teacher_stays_as_it_is(undisturbed):
    top, calm = undisturbed
    teacher = next((top/'runs'/'model').glob('T0-*'))
    manifest = read_manifest(teacher)
    from distilherbert.artefact import verify
    assert verify(teacher) == [] and manifest['files']['model.safetensors']
    assert read_manifest(calm)['inputs']['model/T0'] == manifest['key']


SMALL = replace(get_profile('demo'), layers=2, hidden=16, heads=2, intermediate=32, dropout=0.0, max_len=12, min_piece=2, batch_rows=7,
                threads=1)
MARKS = Marks(np.arange(40) < 5, np.ones(40, bool), np.zeros(40, bool), mask_id=4)
ROWS = [np.array([0, *np.random.default_rng(i).integers(5, 40, 3 + i % 8), 2]) for i in range(7)]


def step_gradient(objective, micro_rows):
    student, teacher = (random_model(bert_config(SMALL, 40, n), seed=s) for n, s in ((1, 0), (2, 1)))
    pieces, totals = D.micro_batches(ROWS, np.arange(7), np.zeros(7, int), micro_rows, MARKS, 1, 12, 0.4, seed=3)
    accelerator, loss = Accelerator(cpu=True), 0.0
    for p in pieces:
        part = D.micro_loss(D.AtPlaces(student), D.AtPlaces(teacher.eval()), PRESETS[objective], p, totals, accelerator)['loss']
        part.backward()
        loss += part.item()
    return loss, torch.cat([p.grad.flatten() for p in student.parameters()]), student, teacher


def definition(student, teacher, everywhere):
    "DistilBERT's loss with logits for every position of both models, selected afterwards; means by torch itself."
    pieces, _ = D.micro_batches(ROWS, np.arange(7), np.zeros(7, int), 7, MARKS, 1, 12, 0.4, seed=3)
    ids, attention = pieces[0].ids, pieces[0].attention
    labels = torch.full(ids.shape, -100)
    labels.view(-1)[pieces[0].masked] = pieces[0].labels
    s, t = (m(ids, attention_mask=attention, output_hidden_states=True) for m in (student, teacher))
    chosen = attention.bool() if everywhere else labels != -100
    soft = F.kl_div(F.log_softmax(s.logits[chosen]/3, -1), F.softmax(t.logits[chosen]/3, -1), reduction='batchmean')*9
    mlm = F.cross_entropy(s.logits.view(-1, 40), labels.view(-1), ignore_index=-100)
    hs, ht = (m.hidden_states[-1][attention.bool()] for m in (s, t))
    cos = F.cosine_embedding_loss(hs, ht, torch.ones(len(hs)))
    return 5*soft + 2*mlm + cos


@pytest.mark.parametrize('objective', ['distilbert', 'distilbert-all'])
def test_a_step_equals_distilberts_definition(objective):
    loss, gradient, student, teacher = step_gradient(objective, 7)
    student.zero_grad()
    expected = definition(student, teacher, objective == 'distilbert-all')
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(gradient, torch.cat([p.grad.flatten() for p in student.parameters()]), atol=1e-6)


@pytest.mark.parametrize('objective', ['distilbert', 'distilbert-all', 'released'])
@pytest.mark.parametrize('micro_rows', [1, 2, 5])
def test_a_step_does_not_depend_on_how_it_is_cut(objective, micro_rows):
    whole, pieces = step_gradient(objective, 7), step_gradient(objective, micro_rows)
    assert pieces[0] == pytest.approx(whole[0], abs=1e-5)
    assert torch.allclose(pieces[1], whole[1], atol=1e-6)
    assert all(p.grad is None for p in pieces[3].parameters())


def test_padding_never_influences_a_result():
    student = random_model(bert_config(SMALL, 40, 1), seed=0)
    results = []
    for width in (12, 10):
        pieces, totals = D.micro_batches(ROWS[:1], np.arange(1), np.zeros(1, int), 1, MARKS, 1, width, 0.4, seed=3)
        results.append(D.micro_loss(D.AtPlaces(student), None, None, pieces[0], totals, Accelerator(cpu=True))['loss'].item())
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def test_a_loss_that_is_no_number_names_its_step(tmp_path):
    rows = type('Few', (list,), {'tokens': property(lambda self: sum(map(len, self)))})(ROWS)
    data = SimpleNamespace(train=rows, heldout=rows[:2], vocab_size=40, pad_id=1, mask_id=4, special_ids=range(5),
                           ends_word=MARKS.ends, starts_word=MARKS.starts)
    student = random_model(bert_config(SMALL, 40, 1), seed=0)
    run = D.Run(student, None, data, D.train_settings(replace(SMALL, tokens=500), SCENARIOS['S1']), tmp_path)
    with torch.no_grad(): student.bert.embeddings.LayerNorm.weight.fill_(float('nan'))
    with pytest.raises(D.NonFiniteLoss, match='step 1 of'): D.train(run, 'broken')
