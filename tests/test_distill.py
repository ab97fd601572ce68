"The loop as a program: killed, stopped, damaged, repeated; and the step against DistilBERT's definition."
import hashlib
import importlib.util
import json
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TOP, run_program, wait_for_steps
from torch.nn import functional as F

from distilherbert import distill as D
from distilherbert.artefact import read_manifest
from distilherbert.objective import Marks, even_map
from distilherbert.scenario import PRESETS, SCENARIOS, Objective, SettingsError, get_profile
from distilherbert.student import bert_config, random_model, truncate

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
micro_rows = 16
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


def files(folder): return {f.name: (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in folder.iterdir()}


def test_killed_three_times_it_ends_with_the_same_weights(undisturbed, tmp_path, environment):
    "And its teacher's folder is as it was: no byte, no file."
    top, calm = undisturbed
    copy_inputs(top, tmp_path/'runs')
    teacher, = (tmp_path/'runs'/'model').glob('T0-*')
    before = files(teacher)
    chance, steps = random.Random(1), len(D.read_metrics(calm))
    for part in (0.2, 0.5, 0.8):
        process = begin(top, tmp_path/'runs', environment)
        assert wait_for_steps(tmp_path/'runs', process, int(part*steps), 'S4'), 'it ended before it could be killed'
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
    assert files(teacher) == before and 'model.safetensors' in before
    assert read_manifest(calm)['inputs']['model/T0'] == read_manifest(teacher)['key']


def test_sigterm_saves_and_leaves(undisturbed, tmp_path, environment):
    top, _ = undisturbed
    copy_inputs(top, tmp_path/'runs')
    process = begin(top, tmp_path/'runs', environment)
    assert wait_for_steps(tmp_path/'runs', process, 10, 'S4')
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    log, = (tmp_path/'runs'/'model').glob('.S4-*.partial/metrics.jsonl')
    last = json.loads(log.read_text().splitlines()[-1])['step']
    assert f'Stopped after step {last} of ' in err and 'Traceback' not in err
    saved = sorted(log.parent.glob('checkpoints/*.pt'))[-1]
    assert int(saved.name.split('-')[0]) == last


def test_the_same_settings_give_the_same_bytes_with_other_workers(undisturbed, tmp_path):
    top, calm = undisturbed
    done = run_program(*program(top/'small.toml'), env={'DISTILHERBERT_RUNS': tmp_path/'runs', 'DISTILHERBERT_WORKERS': 4})
    assert done.returncode == 0, done.stderr
    assert content(Path(done.stdout.strip().splitlines()[-1])) == content(calm)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    D.save_checkpoint(tmp_path/'c', 1, {'x': torch.zeros(3)})
    newest = D.save_checkpoint(tmp_path/'c', 2, {'x': torch.ones(3)})
    newest.write_bytes(newest.read_bytes().replace(b'\x80?', b'\x81?'))
    assert D.load_checkpoint(tmp_path/'c')['step'] == 1
    assert f'{newest.name} is damaged' in capsys.readouterr().err
    D.save_checkpoint(tmp_path/'c', 3, {'x': torch.zeros(3)})
    names = sorted((f.name.split('-')[0], f.suffix) for f in (tmp_path/'c').iterdir())
    assert names == [('000000001', '.pt'), ('000000002', '.damaged'), ('000000003', '.pt')], 'a damaged one counts no more among the two that are kept'
    assert D.load_checkpoint(tmp_path/'c')['step'] == 3 and not capsys.readouterr().err
    for f in (tmp_path/'c').glob('*.pt'): f.write_bytes(b'')
    assert D.load_checkpoint(tmp_path/'c') is None


def test_a_full_disk_keeps_the_last_good_checkpoint(undisturbed, tmp_path, environment):
    "On a small disk of its own: the run stops with words, and goes on where there is room."
    top, calm = undisturbed
    copy_inputs(top, tmp_path/'runs')
    (tmp_path/'disk').mkdir()
    inside = f'mount -t tmpfs -o size=700k tmpfs {tmp_path}/disk && cp -r {tmp_path}/runs/. {tmp_path}/disk && DISTILHERBERT_RUNS={tmp_path}/disk "$@"; ' \
             f'code=$?; cp -r {tmp_path}/disk {tmp_path}/after; exit $code'
    if subprocess.run(['unshare', '-Urm', 'mount', '-t', 'tmpfs', 'tmpfs', tmp_path/'disk'], capture_output=True).returncode:
        pytest.skip('a small file system needs `unshare -Urm`, which this system does not allow')
    done = subprocess.run(['unshare', '-Urm', 'sh', '-c', inside, 'sh', *program(top/'small.toml')], cwd=TOP, env=environment, capture_output=True, text=True)
    assert done.returncode and 'The disk is full' in done.stderr and 'run the same command again' in done.stderr, done.stderr
    partial, = (tmp_path/'after'/'model').glob('.S4-*.partial')
    kept = D.load_checkpoint(partial/'checkpoints')
    assert kept['step'] > 0 and not (partial/'checkpoints'/'part').exists()
    finished = run_program(*program(top/'small.toml'), env={'DISTILHERBERT_RUNS': tmp_path/'after'})
    assert finished.returncode == 0 and f'Goes on after step {kept["step"]} of' in finished.stdout
    assert content(Path(finished.stdout.strip().splitlines()[-1])) == content(calm)


def test_a_run_from_elsewhere_is_picked_up_or_refused(undisturbed, tmp_path, environment):
    top, calm = undisturbed
    copy_inputs(top, tmp_path/'runs')
    process = begin(top, tmp_path/'runs', environment)
    assert wait_for_steps(tmp_path/'runs', process, 40, 'S4')
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    partial, = (tmp_path/'runs'/'model').glob('.S4-*.partial')
    partial.rename(tmp_path/'elsewhere')
    other = tmp_path/'other.toml'
    other.write_text(PROFILE + 'weight_decay = 0.5\nattention = "text"\n')
    refused = run_program(*program(other), '--resume', tmp_path/'elsewhere', env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert refused.returncode and "settings.training.weight_decay: 0.01 there, 0.5 asked for" in refused.stderr
    assert "settings.training.attention: 'absent' there, 'text' asked for" in refused.stderr and 'seed' not in refused.stderr
    done = run_program(*program(top/'small.toml'), '--resume', tmp_path/'elsewhere', env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert done.returncode == 0 and 'Goes on after step' in done.stdout, done.stderr
    assert content(Path(done.stdout.strip().splitlines()[-1])) == content(calm)


MINE = """like = "S4"
layer_map = [1]
[objective]
like = "distilbert"
hidden = 3.0
hidden_map = [1]
hidden_as = "directions"
"""


def test_a_scenario_of_ones_own_is_a_toml_file(undisturbed, tmp_path):
    "Another layer map, another objective, no code; and papermill takes it by its path."
    top, calm = undisturbed
    copy_inputs(top, tmp_path/'runs')
    (tmp_path/'mine.toml').write_text(MINE)
    done = run_program('papermill', 'nbs/05_distill.ipynb', tmp_path/'out.ipynb', '-p', 'scenario', tmp_path/'mine.toml', '-p', 'profile', top/'small.toml',
                       '--no-progress-bar', env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert done.returncode == 0, done.stderr[-3000:]
    folder, = (tmp_path/'runs'/'model').glob('mine-*')
    log = D.read_metrics(folder)
    assert folder.name != calm.name and log[-1]['hid'] < log[1]['hid']
    for l in log[1:]: assert l['loss'] == pytest.approx(2*l['mlm'] + 5*l['soft'] + l['cos'] + 3*l['hid'], rel=1e-5)


def test_an_unfit_teacher_is_refused(undisturbed, tmp_path):
    top, _ = undisturbed
    strict = tmp_path/'strict.toml'
    strict.write_text(PROFILE.replace('teacher_margin = -10.0', 'teacher_margin = 5.0'))
    copy_inputs(top, tmp_path/'runs')
    done = run_program(*program(strict), env={'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert done.returncode and 'T0 is not fit to teach' in done.stderr and 'teacher_tokens' in done.stderr


@pytest.mark.skipif(importlib.util.find_spec('tensorboard') is None, reason='TensorBoard is not installed (pip install -e ".[tensorboard]")')
def test_tensorboard_is_told_what_the_log_is(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    monkeypatch.setenv('DISTILHERBERT_TENSORBOARD', str(tmp_path/'board'))
    folder = tmp_path/'.S4-0123.partial'
    folder.mkdir()
    D.train(few_run(folder), 'board')
    log, board = D.read_metrics(folder)[1:], EventAccumulator(str(tmp_path/'board'/'S4-0123')).Reload()
    for field in ('loss', 'soft', 'heldout_kl', 'tokens_per_s'):
        assert [(e.step, e.value) for e in board.Scalars(field)] == [(l['step'], pytest.approx(l[field], rel=1e-6)) for l in log if field in l], field


def test_tensorboard_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_TENSORBOARD', str(tmp_path/'board'))
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(SettingsError, match='pip install tensorboard'): D.train(few_run(tmp_path), 'board')


def test_training_never_moves_the_teacher(tmp_path):
    data = few_data()
    teacher = random_model(bert_config(SMALL, 40, 2), seed=1)
    state = lambda: hashlib.sha256(b''.join(t.numpy().tobytes() for t in teacher.state_dict().values())).hexdigest()
    before, student = state(), truncate(teacher)
    first = student.bert.embeddings.word_embeddings.weight.detach().clone()
    D.train(D.Run(student, teacher, data, D.train_settings(replace(SMALL, tokens=1000), SCENARIOS['S4']), tmp_path), 'S4')
    assert state() == before and all(p.grad is None for p in teacher.parameters())
    assert not torch.equal(first, student.bert.embeddings.word_embeddings.weight)


SMALL = replace(get_profile('demo'), layers=2, hidden=16, heads=2, intermediate=32, dropout=0.0, max_len=12, min_piece=2, batch_rows=7,
                threads=1)
MARKS = Marks(np.arange(40) < 5, np.ones(40, bool), np.zeros(40, bool), mask_id=4)
ROWS = [np.array([0, *np.random.default_rng(i).integers(5, 40, 3 + i % 8), 2]) for i in range(7)]


class Few(list):
    tokens = property(lambda self: sum(map(len, self)))


def few_data(rows=ROWS):
    "What `Run` reads of packed rows."
    return SimpleNamespace(train=Few(rows), heldout=Few(rows[:2]), vocab_size=40, pad_id=1, mask_id=4, sep_id=2, special_ids=range(5), ends_word=MARKS.ends,
                           starts_word=MARKS.starts)


def few_run(folder, **changes):
    "S4 on seven rows, not yet begun; the same each time."
    teacher = random_model(bert_config(SMALL, 40, 2), seed=1)
    return D.Run(truncate(teacher), teacher, few_data(), D.train_settings(replace(SMALL, tokens=1000, mask_share=0.4, **changes), SCENARIOS['S4']), folder)


def weights(run): return torch.cat([p.detach().flatten() for p in run.student.parameters()])


def fails_at(monkeypatch, calls, error):
    "The micro-batches with these numbers, counted from 1, end in an error."
    right, made = D.micro_loss, []

    def perhaps(*args):
        made.append(args)
        if calls(len(made)): raise error
        return right(*args)
    monkeypatch.setattr(D, 'micro_loss', perhaps)
    return made


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


@pytest.mark.parametrize('objective', [Objective('h', mlm=1.0, hidden=2.0, hidden_map=(1,)), Objective('e', hidden=1.0, hidden_as='directions')])
def test_hidden_states_of_a_step_are_those_of_transformers(objective):
    "Against transformers' own list of hidden states, where the embeddings come first; whole and cut."
    student, teacher = (random_model(bert_config(SMALL, 40, n), seed=s) for n, s in ((1, 0), (2, 1)))
    student.train(), teacher.eval()
    which, losses, gradients = objective.hidden_map or even_map(1, 2), [], []
    for micro_rows in (7, 3):
        pieces, totals = D.micro_batches(ROWS, np.arange(7), np.zeros(7, int), micro_rows, MARKS, 1, 12, 0.4, seed=3)
        parts = [D.micro_loss(D.AtPlaces(student, (0,)), D.AtPlaces(teacher, which), objective, p, totals, Accelerator(cpu=True)) for p in pieces]
        losses.append(sum(p['hid'].item() for p in parts))
        student.zero_grad()
        sum(p['loss'] for p in parts).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    b, = D.micro_batches(ROWS, np.arange(7), np.zeros(7, int), 7, MARKS, 1, 12, 0.4, seed=3)[0]
    s, t = (m(b.ids, attention_mask=b.attention, output_hidden_states=True).hidden_states[1:] for m in (student, teacher))
    s, t = s[0][b.attention.bool()], t[which[0]][b.attention.bool()]
    wanted = F.mse_loss(s, t) if objective.hidden_as == 'mse' else (2 - 2*F.cosine_similarity(s, t, dim=-1)).mean()
    assert losses == pytest.approx([wanted.item()]*2, abs=1e-5)
    assert torch.allclose(*gradients, atol=1e-6)


def packed(*texts):
    return np.concatenate([[0], *([*t, 2] for t in texts)])


def logits_in_texts(rows, model):
    data = D.micro_batches(rows, np.arange(len(rows)), np.zeros(len(rows), int), len(rows), MARKS, 1, 16, 1e-9, seed=0, sep_id=2)[0][0]
    ids, attention, *_, positions = data.inputs(data.masked)
    return model(ids, attention_mask=attention, position_ids=positions).logits


def test_texts_of_a_row_are_strangers():
    "Changing one text moves its own logits and no other's; a text alone in a row has the same ones."
    model = random_model(bert_config(replace(SMALL, max_len=16, init_std=0.3), 40, 2), seed=0).eval()
    first, second, third, other = [5, 6, 7], [8, 9, 10, 11], [12, 13], [20, 21, 22, 23]
    with torch.no_grad():
        before, after = logits_in_texts([packed(first, second, third)], model)[0], logits_in_texts([packed(first, other, third)], model)[0]
        assert torch.equal(before[:5], after[:5]) and torch.equal(before[10:], after[10:])
        assert (before[5:9] != after[5:9]).any(-1).all()
        alone = model(torch.tensor([[*second, 2]])).logits[0]
        assert torch.allclose(before[5:10], alone, atol=1e-5)
        seen = model(torch.from_numpy(packed(first, second, third))[None]).logits[0]
        assert (seen[5:10] - before[5:10]).abs().max() > 0.01  # In a row that sees itself whole it is different


def test_a_run_with_texts_apart_trains_and_has_its_own_key(tmp_path):
    base, apart = (D.train_settings(replace(SMALL, tokens=300, attention=a), SCENARIOS['S1']) for a in ('row', 'text'))
    assert 'attention' not in D.settings_key(base) and D.settings_key(apart) == D.settings_key(base) | {'attention': 'text'}
    data = few_data([packed([5, 6, 7], [8, 9, 10, 11, 12]) for _ in range(7)])
    run = D.Run(random_model(bert_config(SMALL, 40, 1), seed=0), None, data, apart, tmp_path)
    D.train(run, 'apart')
    assert D.read_metrics(tmp_path)[-1]['mlm'] < D.read_metrics(tmp_path)[1]['mlm']


def test_a_step_of_the_optimiser_is_torchs_own(tmp_path):
    "Schedule, decay groups and clipping of the loop against transformers' schedule, its choice of what decays, and torch's clipping and AdamW."
    from transformers import get_cosine_schedule_with_warmup
    from transformers.trainer_pt_utils import get_parameter_names
    data = few_data()
    rows = data.train
    settings = D.train_settings(replace(SMALL, tokens=1000, clip=0.05, weight_decay=0.3, mask_share=0.4), SCENARIOS['S1'])
    run = D.Run(random_model(bert_config(SMALL, 40, 1), seed=0), None, data, settings, tmp_path)
    mine = random_model(bert_config(SMALL, 40, 1), seed=0)
    decays = [n for n in get_parameter_names(mine, [torch.nn.LayerNorm]) if not n.endswith('bias')]
    named = dict(mine.named_parameters())
    optimizer = torch.optim.AdamW([{'params': [p for n, p in named.items() if n in decays], 'weight_decay': 0.3},
                                   {'params': [p for n, p in named.items() if n not in decays], 'weight_decay': 0.0}], lr=settings.learning_rate, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, int(0.1*run.steps), run.steps)
    for step in range(6):
        index, epoch = run.stream.at(step)
        b, = D.micro_batches(rows, index, epoch, 7, run.marks, 1, 12, 0.4, settings.seed)[0]
        labels = torch.full(b.ids.shape, -100).flatten().index_put_((b.masked,), b.labels)
        loss = mine(b.ids, attention_mask=b.attention, labels=labels.reshape(b.ids.shape)).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(mine.parameters(), 0.05)
        rate = optimizer.param_groups[0]['lr']
        optimizer.step(), schedule.step(), optimizer.zero_grad()
        line = D.train_step(run)
        assert (line['loss'], line['grad_norm'], line['lr']) == pytest.approx((loss.item(), norm.item(), rate), rel=1e-4) and norm > 0.05
    for a, b in zip(run.student.model.parameters(), mine.parameters(), strict=True): assert torch.allclose(a, b, atol=1e-5)


def test_padding_never_influences_a_result():
    student = random_model(bert_config(SMALL, 40, 1), seed=0)
    results = []
    for width in (12, 10):
        pieces, totals = D.micro_batches(ROWS[:1], np.arange(1), np.zeros(1, int), 1, MARKS, 1, width, 0.4, seed=3)
        results.append(D.micro_loss(D.AtPlaces(student), None, None, pieces[0], totals, Accelerator(cpu=True))['loss'].item())
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def test_a_loss_that_is_no_number_names_its_step(tmp_path):
    data = few_data()
    student = random_model(bert_config(SMALL, 40, 1), seed=0)
    run = D.Run(student, None, data, D.train_settings(replace(SMALL, tokens=500), SCENARIOS['S1']), tmp_path)
    with torch.no_grad(): student.bert.embeddings.LayerNorm.weight.fill_(float('nan'))
    with pytest.raises(D.NonFiniteLoss, match='step 1 of'): D.train(run, 'broken')


@pytest.mark.parametrize('step', [0, 5])
def test_a_gradient_that_is_no_number_spoils_no_checkpoint(tmp_path, step):
    "The loss of that step is a number still. The weights do not move, and the run goes on from before it."
    run = few_run(tmp_path, micro_rows=7)
    weight = next(run.student.parameters())
    hook = weight.register_hook(lambda g: torch.full_like(g, float('inf')) if run.step == step else g)
    with pytest.raises(D.NonFiniteLoss, match=f'The gradient of step {step + 1} of {run.steps} is not finite: loss [0-9.]+, mlm'):
        D.train(run, 'broken', checkpoint_minutes=1e-9)
    hook.remove()
    assert torch.isfinite(weights(run)).all()
    kept = D.load_checkpoint(tmp_path/'checkpoints')
    if step == 0: assert kept is None
    else: assert kept['step'] == step and all(torch.isfinite(t).all() for t in kept['student'].values())
    again, calm = few_run(tmp_path, micro_rows=7), few_run(tmp_path/'calm', micro_rows=7)
    calm.folder.mkdir()
    for r in (again, calm): D.train(r, 'again')
    assert torch.equal(weights(again), weights(calm))


GPU_FULL = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more lines')


def test_where_memory_runs_out_a_step_goes_on_in_smaller_pieces(tmp_path, monkeypatch, capsys):
    "What failed pieces had added to the gradient is forgotten: the step is that of a run that had small pieces from the start, bit for bit."
    small, large = (few_run(tmp_path, micro_rows=n) for n in (1, 4))
    wanted = [D.train_step(small) for _ in range(2)]
    made = fails_at(monkeypatch, {2, 5}.__contains__, GPU_FULL)  # The second of two pieces, then the third of four
    assert [D.train_step(large) for _ in range(2)] == wanted
    assert len(made) == 2 + 3 + 7 + 7 and large.micro_rows == 1
    assert torch.equal(weights(large), weights(small))
    said = capsys.readouterr().out
    assert 'ran out in step 1: it goes on with 2 rows at once instead of 4' in said and 'with 1 rows at once instead of 2' in said


def test_memory_runs_out_while_the_held_out_rows_are_looked_at(tmp_path, monkeypatch):
    run, right, failed = few_run(tmp_path, micro_rows=2), D.mlm_loss, []
    wanted = D.look(run)

    def once(*args):
        if failed: return right(*args)
        failed.append(args)
        raise GPU_FULL
    monkeypatch.setattr(D, 'mlm_loss', once)
    assert D.look(run) == pytest.approx(wanted, rel=1e-5, abs=1e-6) and run.micro_rows == 1
    assert run.student.training, 'it trains on with dropout'


CUBLAS_FULL = RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`')


def test_halved_micro_batches_stay_halved_in_a_run_that_is_picked_up(tmp_path, monkeypatch):
    "cuBLAS says in words of its own that memory ran out. A look at the held-out rows is cut as finely as a step."
    run = few_run(tmp_path, micro_rows=4)
    D.resume(run)
    with monkeypatch.context() as m:
        fails_at(m, {2}.__contains__, CUBLAS_FULL)
        D.train_step(run)
    D.save(run)
    again = few_run(tmp_path, micro_rows=4)
    D.resume(again)
    assert again.micro_rows == run.micro_rows == 2 and [len(b.ids) for b in again.heldout] == [len(b.ids) for b in run.heldout] == [2]


def test_no_room_for_the_optimisers_state_is_named(tmp_path, monkeypatch):
    "A step of the optimiser may have moved some weights: it is not repeated."
    run = few_run(tmp_path, micro_rows=4)

    def full(*args, **kw): raise GPU_FULL
    monkeypatch.setattr(run.optimizer.optimizer, 'step', full)
    with pytest.raises(D.OutOfMemory, match='step 1 of .* when the optimiser moved the weights .*Fewer rows at once do not help') as raised: D.train_step(run)
    assert run.micro_rows == 4 and '`zero = 2`' in str(raised.value)


@pytest.mark.parametrize('micro_rows, alone, error, words', [
    (4, True, GPU_FULL, ['`micro_rows` at 1 (CUDA out of memory', 'Less than one row is not possible', '`max_len`']),
    (4, False, GPU_FULL, ['`micro_rows` at 4', 'Write `micro_rows = 2` into a TOML file that begins with `like = "demo"`', '--profile FILE']),
    (4, True, MemoryError(), ['`micro_rows` at 4 (MemoryError)', 'Write `micro_rows = 2`']),
    (4, True, None, ['`micro_rows` at 4', 'DefaultCPUAllocator', 'Write `micro_rows = 2`']),
], ids=['one row', 'several processes', 'python', 'processor'])
def test_memory_that_cannot_be_saved_is_named_with_its_step(tmp_path, monkeypatch, micro_rows, alone, error, words):
    run = few_run(tmp_path, micro_rows=micro_rows)
    D.train_step(run)
    run.alone = alone
    if error is None:
        with pytest.raises(RuntimeError) as real: torch.empty(10**15)  # What a processor really says
        error = real.value
    fails_at(monkeypatch, lambda n: True, error)
    with pytest.raises(D.OutOfMemory, match=f'step 2 of {run.steps}') as raised: D.train_step(run)
    for w in words: assert w in str(raised.value)


def test_other_errors_of_a_step_are_left_alone(tmp_path, monkeypatch):
    run = few_run(tmp_path, micro_rows=4)
    fails_at(monkeypatch, lambda n: True, RuntimeError('shapes do not fit'))
    with pytest.raises(RuntimeError, match='shapes do not fit') as raised: D.train_step(run)
    assert not isinstance(raised.value, D.OutOfMemory) and run.micro_rows == 4


@pytest.mark.parametrize('error, function, words', [
    (GPU_FULL, 'micro_loss', ['Memory ran out in step 1 of', 'Less than one row is not possible', '`max_len`']),
    (MemoryError(), 'micro_loss', ['Memory ran out in step 1 of', 'Write `micro_rows = 8` into small.toml, and type the same command again']),
    (MemoryError(), 'load_masked_lm', ['Memory ran out (MemoryError)', 'lower `micro_rows`', 'small.toml, and type the same command again']),
], ids=['in a step', 'on a processor', 'elsewhere'])
@pytest.mark.parametrize('command', ['distilherbert run', 'python -m distilherbert.distill'])
def test_both_commands_say_what_to_type_when_memory_runs_out(undisturbed, tmp_path, monkeypatch, capsys, command, error, function, words):
    from distilherbert import reproduce
    top, _ = undisturbed
    copy_inputs(top, tmp_path/'runs')
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))

    def full(*args, **kw): raise error
    monkeypatch.setattr(D, function, full)
    profile = ['--profile', str(top/'small.toml')]
    assert (reproduce.main(['run', 'S4', *profile]) if command == 'distilherbert run' else D.main(profile)) == 1
    said = capsys.readouterr().err
    for w in words: assert w in said, said


def test_sigterm_in_the_middle_of_a_long_step_ends_within_a_micro_batch(tmp_path, monkeypatch):
    "Seven micro-batches make a step. Asked to stop in the third of step 6, it leaves before the fourth, and goes on to the same bytes."
    (tmp_path/'calm').mkdir(), (tmp_path/'rough').mkdir()
    calm = few_run(tmp_path/'calm', micro_rows=1, dropout=0.1)
    D.train(calm, 'calm')
    rough = few_run(tmp_path/'rough', micro_rows=1, dropout=0.1)
    with monkeypatch.context() as m:
        right, made = D.micro_loss, []

        def asked(*args):
            made.append(args)
            if len(made) == 5*7 + 3: signal.raise_signal(signal.SIGTERM)
            return right(*args)
        m.setattr(D, 'micro_loss', asked)
        with pytest.raises(D.Interrupted) as left: D.train(rough, 'rough')
    assert left.value.code == 128 + signal.SIGTERM and len(made) == 5*7 + 3
    assert D.load_checkpoint(tmp_path/'rough'/'checkpoints')['step'] == rough.step == 5
    picked_up = few_run(tmp_path/'rough', micro_rows=1, dropout=0.1)
    D.train(picked_up, 'picked up')
    assert torch.equal(weights(picked_up), weights(calm)) and not torch.equal(weights(rough), weights(calm))
    logs = [[{k: v for k, v in l.items() if k not in D.CLOCK} for l in D.read_metrics(tmp_path/d)] for d in ('calm', 'rough')]
    assert logs[0] == logs[1]


@pytest.mark.parametrize('look, step', [(1, 0), (3, 6), (7, 18)], ids=['first', 'between', 'last'])
def test_sigterm_breaks_a_look_off(tmp_path, monkeypatch, look, step):
    "Two held-out batches make a look. Asked to stop in the first, it leaves before the second; what was left of the look is made up for, and the log is the same."
    (tmp_path/'calm').mkdir(), (tmp_path/'rough').mkdir()
    calm, rough, right, made = few_run(tmp_path/'calm', micro_rows=1), few_run(tmp_path/'rough', micro_rows=1), D.heldout_sums, []
    monkeypatch.setattr(D, 'EVALUATIONS', 6)
    assert calm.steps == 18 and len(calm.heldout) == 2
    D.train(calm, 'calm')

    def asked(*args):
        made.append(args)
        if len(made) == 2*look - 1: signal.raise_signal(signal.SIGTERM)
        return right(*args)
    with monkeypatch.context() as m:
        m.setattr(D, 'heldout_sums', asked)
        with pytest.raises(D.Interrupted) as left: D.train(rough, 'rough')
    assert left.value.code == 128 + signal.SIGTERM and len(made) == 2*look - 1 and rough.student.training and rough.step == step
    assert [l['step'] for l in D.read_metrics(tmp_path/'rough')] == list(range(step))
    kept = D.load_checkpoint(tmp_path/'rough'/'checkpoints')
    assert (kept is None) if step == 0 else (kept['step'] == step and kept['waiting']['step'] == step)
    picked_up = few_run(tmp_path/'rough', micro_rows=1)
    D.train(picked_up, 'picked up')
    assert torch.equal(weights(picked_up), weights(calm))
    logs = [D.read_metrics(tmp_path/d) for d in ('calm', 'rough')]
    assert [list(l) for l in logs[0]] == [list(l) for l in logs[1]], 'the same fields in the same order'
    calm_log, rough_log = ([{k: v for k, v in l.items() if k not in D.CLOCK} for l in log] for log in logs)
    assert calm_log == rough_log


@pytest.mark.parametrize('objective', ['distilbert', 'distilbert-all'])
def test_operations_of_a_step_are_those_that_torch_counts(objective):
    "Full rows, attention as products of matrices. PyTorch counts what it runs; the backward pass counts the first layer's input gradient as well, ours does too."
    from torch.utils.flop_counter import FlopCounterMode
    shape = replace(SMALL, hidden=64, intermediate=128, heads=2, max_len=32)
    student, teacher = (random_model(bert_config(shape, 200, n), seed=0) for n in (2, 4))
    for m in (student, teacher): m.set_attn_implementation('eager')
    marks = Marks(np.arange(200) < 5, np.ones(200, bool), np.zeros(200, bool), mask_id=4)
    rows = [np.array([0, *np.random.default_rng(i).integers(5, 200, 30), 2]) for i in range(16)]
    (piece,), totals = D.micro_batches(rows, np.arange(16), np.zeros(16, int), 16, marks, 1, 32, 0.25, seed=0)
    with FlopCounterMode(display=False) as counter:
        D.micro_loss(D.AtPlaces(student), D.AtPlaces(teacher.eval()), PRESETS[objective], piece, totals, Accelerator(cpu=True))['loss'].backward()
    predicted = 1.0 if objective == 'distilbert-all' else totals.masked/totals.tokens
    assert counter.get_total_flops()/totals.tokens == pytest.approx(D.token_flops(student.config, teacher.config, 32, predicted), rel=0.01)


def test_operations_of_a_run_are_those_of_the_plan(tmp_path):
    "One arithmetic: the plan's price of a row and the share of peak of its run; soft targets everywhere need logits everywhere."
    from distilherbert.plan import Shape, train_flops
    shape = Shape(replace(SMALL, layers=2, mask_share=0.4), 40)
    run = few_run(tmp_path)
    assert D.token_flops(run.student.model.config, run.teacher.model.config, 12, 0.4) == pytest.approx(train_flops(shape, SCENARIOS['S4']))


def test_a_look_does_not_depend_on_how_many_logits_are_held(tmp_path, monkeypatch):
    run = few_run(tmp_path, micro_rows=2)
    whole, asked = D.look(run), []
    monkeypatch.setattr(D, 'chunk_of', lambda *args: asked.append(args) or 1)
    assert D.look(run) == pytest.approx(whole, abs=1e-6) and asked == [(40, 'cuda')]


def test_the_loss_scale_is_read_once_a_step(tmp_path, monkeypatch):
    "Reading it makes a GPU wait."
    run, asked, plain = few_run(tmp_path, micro_rows=2), [], few_run(tmp_path, micro_rows=2)
    monkeypatch.setattr(D, 'loss_scale', lambda accelerator: asked.append(accelerator) or 1024.0)
    line = D.train_step(run)
    assert len(asked) == 1
    monkeypatch.undo()
    assert {k: v for k, v in D.train_step(plain).items()} == pytest.approx(line, rel=1e-5), 'and is taken out again'


@pytest.mark.parametrize('scenario', ['S4', 'T0'])
def test_a_compiled_run_is_the_same_to_rounding(tmp_path, monkeypatch, scenario):
    "Traced and differentiated by torch.compile, without generating code, which takes minutes on a processor. Names of weights, checkpoints and keys of other runs stay."
    for f in ('compile_encoder', 'compiled_losses'): monkeypatch.setattr(D, f, partial(getattr(D, f), backend='aot_eager'))
    logs, runs = [], []
    for compile in (False, True):
        folder = tmp_path/str(compile)
        folder.mkdir()
        teacher = random_model(bert_config(SMALL, 40, 2), seed=1)
        settings = D.train_settings(replace(SMALL, tokens=150, teacher_tokens=150, mask_share=0.4, micro_rows=4, compile=compile), SCENARIOS[scenario])
        run = D.Run(truncate(teacher), teacher if scenario == 'S4' else None, few_data(), settings, folder)
        D.train(run, 'compiled', checkpoint_minutes=1e-9)
        runs.append(run), logs.append(D.read_metrics(folder))
        assert ('compile' in D.settings_key(settings)) == compile
    assert len(logs[0]) == len(logs[1]) > 2
    for a, b in zip(*logs, strict=True):
        assert {k: a[k] for k in a if k not in D.CLOCK} == pytest.approx({k: b[k] for k in b if k not in D.CLOCK}, rel=1e-4, abs=1e-5)
    assert torch.allclose(*map(weights, runs), atol=1e-4) and torch._dynamo.utils.counters['stats']['unique_graphs'] > 2
    kept = [D.load_checkpoint(tmp_path/c/'checkpoints')['student'] for c in ('False', 'True')]
    assert list(kept[0]) == list(kept[1]) == list(run.student.model.state_dict())


@pytest.mark.parametrize('micro_rows,asked', [(7, True), (7, False), (3, False)])
def test_steps_prepared_in_the_background_are_the_same_bit_for_bit(tmp_path, monkeypatch, micro_rows, asked):
    "As on a GPU, or with the teacher asked in the background; memory runs out once, and what was prepared for larger micro-batches is thrown away."
    logs, runs, threads, right = [], [], set(), D.step_pieces

    def pieces(*args):
        threads.add((ahead, threading.current_thread() is threading.main_thread()))
        return right(*args)
    for ahead in (False, True):
        folder = tmp_path/str(ahead)
        folder.mkdir()
        run = few_run(folder, micro_rows=micro_rows, dropout=0.1)
        run.ahead, run.asks_beside = D.Ahead(pieces, ahead), ahead and asked
        with monkeypatch.context() as m:
            fails_at(m, {5}.__contains__, GPU_FULL)
            D.train(run, 'ahead')
        runs.append(run)
        logs.append([{k: v for k, v in l.items() if k not in D.CLOCK} for l in D.read_metrics(folder)])
    assert runs[1].micro_rows == micro_rows//2 and logs[0] == logs[1] and torch.equal(*map(weights, runs))
    assert threads == {(False, True), (True, True), (True, False)}


def test_a_look_asks_the_teacher_only_what_it_has_not_asked_before(tmp_path, monkeypatch):
    run = few_run(tmp_path)
    first = D.look(run)
    assert set(run.answers) == set(range(len(run.heldout))) and all(a.hidden.numel() == 0 for a in run.answers.values())
    monkeypatch.setattr(D, 'ask', lambda *args: pytest.fail('asked again'))
    assert D.look(run) == first
    D.cut_finer(run, 1)
    monkeypatch.undo()
    assert D.look(run) == pytest.approx(first, abs=1e-5) and len(run.answers) == len(run.heldout)


def test_the_teacher_is_asked_in_the_background_where_cores_are_idle(tmp_path, monkeypatch):
    def asks(cores, **changes):
        monkeypatch.setattr(D.os, 'cpu_count', lambda: cores)
        return few_run(tmp_path, **changes).asks_beside
    assert asks(2) and not asks(1) and not asks(3, threads=2) and asks(4, threads=2)
    assert not asks(2, micro_rows=3), 'the answers for all micro-batches of a step would be in memory at once'


@pytest.mark.parametrize('attention', ['row', 'text'])
def test_the_plan_probes_every_kind_of_attention(attention):
    from distilherbert.plan import Shape, probe
    assert probe(Shape(replace(SMALL, micro_rows=2, attention=attention), 40), SCENARIOS['S4'], seconds=0.1) > 0


def test_share_of_peak_in_the_live_line(tmp_path, monkeypatch):
    run = few_run(tmp_path)
    work = D.token_flops(run.student.model.config, run.teacher.model.config, 12, 0.4)
    monkeypatch.setattr(D, 'matrix_pace', lambda: 1000*work)
    run.asks_beside = True
    assert D.peak_tokens(run) == pytest.approx(2000), 'two cores work'
    run.asks_beside = False
    assert D.peak_tokens(run) == pytest.approx(1000)
    line = {'loss': 3.1, 'mlm': 2.9, 'soft': 0.04, 'tokens_per_s': 250}
    assert D.live_note(line, D.peak_tokens(run)) == 'loss 3.100 (mlm 2.900, soft 0.040), 250 tokens/s, 25 % of peak'
    assert D.live_note(line, 0) == 'loss 3.100 (mlm 2.900, soft 0.040), 250 tokens/s', 'nothing is said about an unknown GPU'
    cards = {'NVIDIA H200': 989e12, 'NVIDIA H100 PCIe': 756e12, 'NVIDIA A100-SXM4-80GB': 312e12, 'Tesla T4': 65e12, 'NVIDIA L40S': 0, 'NVIDIA A10': 0}
    assert {c: D.peak_flops(c, 'bf16') for c in cards} == cards and D.peak_flops('NVIDIA H200', 'fp32') == 67e12


@pytest.mark.parametrize('objective', ['distilbert', 'distilbert-all', 'released'])
def test_a_teacher_in_bf16_says_the_same(objective):
    "As on a GPU, where its weights are held in bf16: under autocast only rounding is different."
    losses, accelerator = [], D.make_accelerator('bf16', threads=1, clip=1.0)
    for kind in (torch.float32, torch.bfloat16):
        student, teacher = (random_model(bert_config(SMALL, 40, n), seed=s) for n, s in ((1, 0), (2, 1)))
        pieces, totals = D.micro_batches(ROWS, np.arange(7), np.zeros(7, int), 4, MARKS, 1, 12, 0.4, seed=3)
        teacher = D.AtPlaces(teacher.eval()).to('cpu', kind)
        losses.append(sum(D.micro_loss(D.AtPlaces(student), teacher, PRESETS[objective], p, totals, accelerator)['loss'].item() for p in pieces))
    D.make_accelerator('fp32', threads=1, clip=1.0)  # accelerate's state is one for a process
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_the_benches_work_at_a_small_size():
    "bench/step.py refuses a baseline that computes another loss; bench/kill_train.py a run that ends differently."
    env = {'CUDA_VISIBLE_DEVICES': ''}
    done = run_program(sys.executable, 'bench/step.py', '--shapes', 'tiny', '--rounds', '1', '--threads', '1', '--no-record', env=env)
    assert done.returncode == 0 and 'times the step as published: masked' in done.stdout, done.stderr
    done = run_program(sys.executable, 'bench/kill_train.py', '--kills', '3', '--processes', '1', '--scenarios', 'S4', '--no-record', env=env)
    assert done.returncode == 0 and 'S4, 1 process(es): 3 kills' in done.stdout and '1 at any moment' in done.stdout, done.stdout + done.stderr
