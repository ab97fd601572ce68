"The loop as a program: killed, stopped, damaged, resumed; and its steps against DistilBERT's definition."
import random
import resource
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import begin_training, check_saved, end_training, link_inputs, log_of, write_tiny
from few import SETTINGS as FEW
from few import SIZE, VOCABULARY, Few
from torch.nn import functional as F
from transformers import get_cosine_schedule_with_warmup

from distilherbert import distill as D
from distilherbert import pipeline, runs
from distilherbert.artefact import Interrupted, digest, read_manifest
from distilherbert.objective import distillation_loss, soft_target_loss
from distilherbert.scenario import PRESETS, PROFILES, SCENARIOS, SettingsError, get_profile
from distilherbert.student import bert_config, load_masked_lm, random_model, save_model, truncate

SMALL = replace(PROFILES['demo'], layers=2, hidden=16, heads=2, intermediate=32, max_len=12)
SETTINGS = replace(FEW, tokens=1000, batch_rows=7, micro_rows=16, max_len=12, evaluations=D.TrainSettings.evaluations)
SEQUENCES = Few(np.array([0, *np.random.default_rng(i).integers(5, SIZE, 3 + i % 8), 2]) for i in range(7))


def few_run(folder, teacher=True, dropout=0.0, outputs=None, **changes):
    "A student of one layer and its teacher on seven sequences, not yet begun; the same each time."
    folder.mkdir(exist_ok=True)
    model = random_model(bert_config(replace(SMALL, dropout=dropout), SIZE, 2), seed=1)
    if not teacher: changes['objective'] = None
    return D.open_run(truncate(model), model if teacher else None, SEQUENCES, replace(SETTINGS, **changes), folder, outputs=outputs)


def trained(folder, **changes):
    "The same, trained to its end, which never moves the teacher."
    run = few_run(folder, **changes)
    first, teacher = weights(run).clone(), run.teacher_model and {k: v.clone() for k, v in run.teacher_model.state_dict().items()}
    with run: D.train(run)
    assert teacher is None or all(torch.equal(teacher[k], v) for k, v in run.teacher_model.state_dict().items())
    assert teacher is None or all(p.grad is None for p in run.teacher_model.parameters()) and not torch.equal(first, weights(run))
    return run


def weights(run): return torch.cat([p.detach().flatten() for p in run.student.parameters()])


@pytest.fixture(scope='module')
def undisturbed(tiny, tmp_path_factory):
    "A profile with dropout, on the text and the teacher of the shared one, and S4 trained without being disturbed."
    file = write_tiny(tmp_path_factory.mktemp('undisturbed'), tokens=60_000, checkpoint_minutes=0.002)
    return file, pipeline.build_model(get_profile(file), SCENARIOS['S4'])


def test_stopped_and_killed_it_ends_with_the_same_weights(undisturbed, tiny, tmp_path):
    "SIGTERM early: it saves, says so, and leaves. SIGKILL later. The folder of its teacher stays as it was."
    profile, calm = undisturbed
    folder, teacher, lines = link_inputs(tiny, tmp_path/'runs', tiny.models['T0']), tiny.models['T0'], len(D.read_metrics(calm))
    before = {f.name: (digest(f), f.stat().st_mtime_ns) for f in teacher.iterdir()}
    process = begin_training(folder, 10, profile, 'S4')
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and 'Traceback' not in err
    assert f'Stopped after step {check_saved(folder, "S4")} of ' in err
    process = begin_training(folder, int(0.6*lines), profile, 'S4')
    time.sleep(random.Random(1).random()/20)
    process.kill()
    process.communicate()
    said, made = end_training(folder, profile, 'S4')
    assert 'Resumes after step' in said and log_of(made) == log_of(calm)
    assert (made/'model.safetensors').read_bytes() == (calm/'model.safetensors').read_bytes()
    assert {f.name: (digest(f), f.stat().st_mtime_ns) for f in teacher.iterdir()} == before
    assert read_manifest(calm)['inputs']['model/T0'] == read_manifest(teacher)['key']


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    folder, limits = tmp_path/'checkpoints', resource.getrlimit(resource.RLIMIT_FSIZE)
    runs.save_checkpoint(folder, 1, {'weight': torch.ones(2)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError): runs.save_checkpoint(folder, 2, {'weight': torch.ones(1 << 20)})
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert runs.load_checkpoint(folder)['step'] == 1 and len([*folder.iterdir()]) == 1


@pytest.mark.parametrize('number, name, calls, step, changes', [
    (signal.SIGTERM, 'distillation_loss', 5*7 + 3, 5, {'dropout': 0.1}), (signal.SIGINT, '_heldout_sums', 1, 0, {}),
    (signal.SIGTERM, '_heldout_sums', 5, 6, {}), (signal.SIGTERM, '_heldout_sums', 13, 18, {})], ids=['step', 'first', 'between', 'last'])
def test_a_signal_ends_a_run_within_a_micro_batch(tmp_path, monkeypatch, number, name, calls, step, changes):
    """Seven micro-batches make a step, two an evaluation. Asked to stop in one, the run leaves before the next, and ends later like an
    undisturbed one, with each evaluation made once."""
    right, made, changes = getattr(D, name), [], {'micro_rows': 1, 'evaluations': 6} | changes
    def counted(*args, **kw):
        made.append(args)
        if len(made) == calls: signal.raise_signal(number)
        return right(*args, **kw)
    with monkeypatch.context() as m, pytest.raises(Interrupted) as left:
        m.setattr(D, name, counted)
        trained(tmp_path/'rough', **changes)
    assert left.value.code == 128 + number and len(made) == calls
    kept = runs.load_checkpoint(tmp_path/'rough'/'checkpoints')
    assert kept['step'] == step == max(line['step'] for line in D.read_metrics(tmp_path/'rough') or [{'step': 0}])
    calm, rough = (weights(trained(tmp_path/folder, **changes)) for folder in ('calm', 'rough'))
    assert torch.equal(calm, rough) and log_of(tmp_path/'calm') == log_of(tmp_path/'rough')
    assert [line['step'] for line in log_of(tmp_path/'rough') if 'heldout_mlm' in line] == [0, 3, 6, 9, 12, 15, 18]


@pytest.mark.parametrize('fetch_every, step', [(1, 0), (1, 5), (4, 5)], ids=['at once', 'later', 'fetched together'])
def test_a_gradient_that_is_not_finite_spoils_no_checkpoint(tmp_path, fetch_every, step):
    "The loss of that step is finite. On a processor the weights do not move; in any case no checkpoint has them, and a run resumes before."
    words = f'The gradient of step {step + 1} of 18 is not finite: loss [0-9.]+, mlm'
    with pytest.raises(runs.NonFiniteLoss, match=words), few_run(tmp_path/'a') as run:
        weight, run.checkpoint_minutes, run.fetch_every = next(run.student.parameters()), 1e-9 if fetch_every == 1 else 1.0, fetch_every
        hook = weight.register_hook(lambda g: torch.full_like(g, float('inf')) if run.step == step else g)
        D.train(run)
    hook.remove()
    kept = runs.load_checkpoint(tmp_path/'a'/'checkpoints')
    if step and fetch_every == 1: assert kept['step'] == step and all(torch.isfinite(t).all() for t in kept['student'].values())
    else: assert kept is None
    assert torch.equal(weights(trained(tmp_path/'a')), weights(trained(tmp_path/'b'))) and log_of(tmp_path/'a') == log_of(tmp_path/'b')


def test_losses_fetched_together_give_the_same_log(tmp_path):
    "As on a GPU, where reading a number makes the processor wait: some steps at a time, before evaluations and checkpoints."
    for signals in (1, 0):
        with nullcontext() if not signals else pytest.raises(Interrupted), few_run(tmp_path/'b', micro_rows=3) as run:
            run.fetch_every = 5
            run.student.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGTERM) if signals and run.step == 7 else None)  # noqa: B023
            D.train(run)
    assert torch.equal(weights(run), weights(trained(tmp_path/'a', micro_rows=3))) and log_of(tmp_path/'a') == log_of(tmp_path/'b')
    for line in log_of(tmp_path/'b'):
        if 'loss' in line: assert line['loss'] == pytest.approx(2*line['mlm'] + 5*line['soft'] + line['cosine'], rel=1e-5)


def one_step(o, micro_rows, predict):
    "Loss and gradient of one step over all sequences, and both models."
    models = [random_model(bert_config(SMALL, SIZE, n), seed=s) for n, s in ((1, 0), (2, 1))]
    batch = D.make_batch(SEQUENCES, np.arange(7), np.zeros(7, int), VOCABULARY, replace(SETTINGS, micro_rows=micro_rows), 3, 2, predict)
    student, teacher = (D.MaskedPredictor(m, ('logits', 'hidden')) for m in models)
    total = 0.0
    for micro in batch.parts:
        with torch.no_grad(): targets = teacher.eval()(micro)
        losses = distillation_loss(student(micro), targets, micro.labels, batch.totals, o)
        losses['loss'].backward()
        total += losses['loss'].item()
    assert all(p.grad is None for p in models[1].parameters())
    return total, torch.cat([p.grad.flatten() for p in models[0].parameters() if p.grad is not None]), batch.parts[0], *models


@pytest.mark.parametrize('name', ['distilbert', 'distilbert-all'])
def test_a_step_equals_distilberts_definition(name):
    "Logits for every position of both models, selected afterwards; means by torch itself."
    o, predicted = PRESETS[name], 'tokens' if name == 'distilbert-all' else 'masked'
    loss, gradient, micro, student, teacher = one_step(o, 7, predicted)
    labels = torch.full((micro.ids.numel(),), -100).index_put_((micro.positions,), micro.labels).view(micro.ids.shape)
    student.zero_grad()
    s, t = (m(micro.ids, attention_mask=micro.attention, output_hidden_states=True) for m in (student, teacher))
    chosen = micro.attention if name == 'distilbert-all' else labels != -100
    soft = F.kl_div(F.log_softmax(s.logits[chosen]/3, -1), F.softmax(t.logits[chosen]/3, -1), reduction='batchmean')*9
    mlm = F.cross_entropy(s.logits.view(-1, SIZE), labels.view(-1), ignore_index=-100)
    hs, ht = (m.hidden_states[-1][micro.attention] for m in (s, t))
    expected = 5*soft + 2*mlm + F.cosine_embedding_loss(hs, ht, torch.ones(len(hs)))
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(gradient, torch.cat([p.grad.flatten() for p in student.parameters()]), atol=1e-6)
    pieces = one_step(o, 2, predicted)  # However it is cut
    assert pieces[0] == pytest.approx(loss, abs=1e-5) and torch.allclose(pieces[1], gradient, atol=1e-6)


def test_a_step_of_the_optimiser_is_torchs_own(tmp_path):
    "Schedule, decay groups and clipping against transformers' schedule, its choice of what decays, and torch's clipping and AdamW."
    from transformers.trainer_pt_utils import get_parameter_names
    changes = dict(teacher=False, clip=0.05, weight_decay=0.3, evaluations=0)
    mine = truncate(random_model(bert_config(SMALL, SIZE, 2), seed=1))
    decays = [n for n in get_parameter_names(mine, [torch.nn.LayerNorm]) if not n.endswith('bias')]
    groups = [{'params': [p for n, p in mine.named_parameters() if (n in decays) == decay], 'weight_decay': 0.3*decay} for decay in (1, 0)]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, int(0.1*18), 18)
    run = trained(tmp_path, **changes)
    for step, line in enumerate(D.read_metrics(tmp_path)):
        batch = D.make_batch(SEQUENCES, *D.step_indices(step, 42, 7, 7), VOCABULARY, SETTINGS, 42, 2).parts[0]
        labels = torch.full((batch.ids.numel(),), -100).index_put_((batch.positions,), batch.labels).view(batch.ids.shape)
        loss = mine(batch.ids, attention_mask=batch.attention, labels=labels).loss
        loss.backward()
        norm, rate = torch.nn.utils.clip_grad_norm_(mine.parameters(), 0.05), optimizer.param_groups[0]['lr']
        optimizer.step(), schedule.step(), optimizer.zero_grad()
        assert (line['loss'], line['grad_norm'], line['lr']) == pytest.approx((loss.item(), norm.item(), rate), rel=1e-3) and norm > 0.05
    for a, b in zip(run.student.model.parameters(), mine.parameters(), strict=True): assert torch.allclose(a, b, atol=1e-4)


def test_soft_targets_of_an_untrained_head_are_refused_before_the_first_step(tiny, tmp_path):
    "Hidden states need no head: see test_recipes."
    save_model(load_masked_lm(tiny.models['T0'])[0].base_model, tmp_path)
    settings = pipeline.train_settings(tiny.profile, SCENARIOS['S4']) | {'teacher_margin': 0.1}
    words = 'The teacher is not fit to teach.*`teacher_margin` asks for 0.1 less.*teacher_tokens.*objective = "hidden"'
    (tmp_path/'made').mkdir()
    with pytest.raises(D.UnfitTeacher, match=words):
        first = D.initial_model('truncated', tmp_path, tiny.tokenizer)
        D.make_model(tmp_path/'made', tiny.tokenizer, *first, tiny.sequences['ccsub'], tmp_path, settings)
    assert D.read_metrics(tmp_path/'made') == []


def test_the_teachers_heldout_outputs_are_computed_once(tmp_path, monkeypatch):
    run, asked, right = few_run(tmp_path, micro_rows=1), [], runs.Run.teacher
    monkeypatch.setattr(runs.Run, 'teacher', lambda self, micro: asked.append(micro) or right(self, micro))
    with run: first, again = D.evaluate(run), D.evaluate(run)
    assert first == again and len(asked) == len(run.heldout) == 2 and run.student.training
    with torch.no_grad():
        z, t = (torch.cat([m.eval()(micro).logits() for micro in run.heldout]) for m in (run.student, run.teacher_model))
    labels = torch.cat([m.labels for m in run.heldout])
    wanted = {'mlm': F.cross_entropy(z, labels), 'kl': soft_target_loss(z, t, 1.0)/len(labels),
              'agreement': (z.argmax(-1) == t.argmax(-1)).float().mean(), 'teacher_mlm': F.cross_entropy(t, labels)}
    assert first == pytest.approx({k: v.item() for k, v in wanted.items()}, abs=1e-5)


@pytest.mark.parametrize('name, changes', [('distilbert', {}), ('distilbert-all', {'attention': 'text'}), ('hidden', {'micro_rows': 3}),
                                           ('relations', {'precision': 'bf16'})])
def test_a_second_student_reads_its_teachers_outputs_and_becomes_the_same(tmp_path, monkeypatch, name, changes):
    changes = changes | {'objective': asdict(PRESETS[name]), 'tokens': 300}
    plain, first = trained(tmp_path/'plain', **changes), trained(tmp_path/'first', outputs=tmp_path/'outputs', **changes)
    files = sorted((tmp_path/'outputs').rglob('*.pt'))
    damaged = bytearray(files[0].read_bytes())
    damaged[len(damaged)//2] ^= 1
    files[0].write_bytes(damaged)
    files[1].write_bytes(b'')
    asked, right = [], D.MaskedPredictor.forward
    monkeypatch.setattr(D.MaskedPredictor, 'forward', lambda self, micro: asked.append(self) or right(self, micro))
    second = trained(tmp_path/'second', outputs=tmp_path/'outputs', **changes)
    assert asked.count(second.teacher_model.teacher) == 2 and sorted((tmp_path/'outputs').rglob('*.pt')) == files
    assert torch.equal(weights(plain), weights(first)) and torch.equal(weights(plain), weights(second))
    assert log_of(tmp_path/'plain') == log_of(tmp_path/'first') == log_of(tmp_path/'second')


def test_outputs_that_the_disk_has_no_room_for_are_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(D.shutil, 'disk_usage', lambda folder: SimpleNamespace(free=1000))
    wanted = pytest.raises(SettingsError, match='take about 0.0 GB, but only 0.0 GB are free.*keep_outputs = false')
    with wanted, few_run(tmp_path, outputs=tmp_path/'o') as run: D.train(run)
    assert not [*(tmp_path/'o').rglob('*.pt')]


def test_weights_that_do_not_belong_to_the_tokenizer_are_refused(tiny, tmp_path):
    save_model(random_model(bert_config(SMALL, read_manifest(tiny.tokenizer)['counts']['vocab_size'] + 500, 2), 0), tmp_path)
    with pytest.raises(SettingsError, match='do not belong together.*"teacher"'): D.initial_model('copy', tmp_path, tiny.tokenizer)
