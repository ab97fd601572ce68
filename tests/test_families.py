"Every family of `student.FAMILIES` against transformers' own modules: students, masked-only logits, documents, vocabularies, classifiers."
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import damage, run_program
from few import SETTINGS, Few, batch_of, packed
from hub import Hub
from layouts import LAYOUTS, NAMES
from tokenizers import processors
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, ElectraForPreTraining
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING

from distilherbert import classify, klej, status
from distilherbert import distill as D
from distilherbert import student as S
from distilherbert.scenario import SettingsError
from distilherbert.tasks import get_task
from distilherbert.wheel import ROBERTA, usable_positions
from distilherbert.world import world_documents, world_task

ALL, FORMS = [*S.FAMILIES], ['bert', 'roberta', 'electra', 'modernbert']  # XLM-R and CamemBERT are RoBERTa's classes with other names
SHAPE = dict(vocab_size=60, hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32, max_position_embeddings=34,
             initializer_range=0.3, pad_token_id=1, bos_token_id=0, eos_token_id=2)
MODERN = dict(cls_token_id=0, sep_token_id=2, local_attention=4, global_attn_every_n_layers=3, global_rope_theta=900.0,
              local_rope_theta=30.0)
CHOSEN = (0, 1, 3, 5)
TEXTS = [np.random.default_rng(i).integers(5, 60, n) for i, n in enumerate((6, 8, 5))]
SEQUENCES = Few([packed(*TEXTS), packed(TEXTS[0]), packed(TEXTS[1], TEXTS[2]), packed(TEXTS[2])])
OURS = dict(tokens=300, batch_rows=4, micro_rows=4, max_len=24, evaluations=2)


def config_of(form, **changes):
    own = {'modernbert': MODERN, 'electra': {'embedding_size': 8}, **dict.fromkeys(ROBERTA, {'type_vocab_size': 1})}
    return AutoConfig.for_model(form, **SHAPE | own.get(form, {}) | changes)


def model_of(form, **changes):
    "A random model in which every parameter matters: biases and norms are random too."
    model = S.random_model(config_of(form, **changes), 1).eval()
    torch.manual_seed(2)
    for p in model.parameters(): p.data += 0.1*torch.randn_like(p)
    return model


def is_tied(model): return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def padded(*lengths):
    "Ids `(B, T)` and where they are tokens."
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.where(real, torch.randint(5, 60, real.shape, generator=torch.Generator().manual_seed(3)), 1), real


def by_hand(model, layers, ids, real):
    "The given layers of a model, one after the other; masks and positions from their definitions."
    encoder, form = model.base_model, model.config.model_type
    keep, place = real[:, None, None].expand(-1, 1, ids.shape[1], -1), torch.arange(ids.shape[1])
    if form != 'modernbert':
        hidden = encoder.embeddings(ids, position_ids=place[None] + 2*(form in ROBERTA))
        if form == 'electra': hidden = encoder.embeddings_project(hidden)
        for i in layers: hidden = encoder.encoder.layer[i](hidden, keep)
        return hidden
    hidden, near = encoder.embeddings(ids), (place[:, None] - place).abs() <= 2
    for i in layers:
        kind = 'sliding_attention' if i % 3 else 'full_attention'
        mask = keep & near | torch.eye(len(place), dtype=torch.bool) if i % 3 else keep
        hidden = encoder.layers[i](hidden, attention_mask=mask, position_embeddings=encoder.rotary_emb(hidden, place[None], kind))
    return encoder.final_norm(hidden)


@pytest.mark.parametrize('form, layer_map', [*((form, CHOSEN) for form in ALL), ('bert', ()), ('bert', (5, 0, 0))])
def test_a_student_computes_what_its_teachers_layers_do(form, layer_map, tmp_path):
    "Also when it is loaded with transformers alone; a copied layer of ModernBERT stays local or global. It shares no memory."
    teacher, (ids, real) = model_of(form), padded(20, 11)
    def predicted(model): return model(ids, attention_mask=real).logits[real]
    student, before = S.truncate(teacher, layer_map).eval(), predicted(teacher)
    S.save_model(student, tmp_path)
    expected, (back, new) = by_hand(teacher, layer_map or (0, 2, 4), ids, real)[real], S.load_masked_lm(tmp_path)
    for model in (student, AutoModelForMaskedLM.from_pretrained(tmp_path), back):
        assert torch.allclose(model.base_model(ids, attention_mask=real)[0][real], expected, atol=1e-5)
        assert torch.equal(predicted(model), predicted(student)) and is_tied(model)
    assert not new and not torch.allclose(by_hand(teacher, (0, 1, 2, 3), ids, real)[real], expected, atol=0.1)
    for p in student.parameters(): p.data += 1
    assert torch.equal(predicted(teacher), before)


@pytest.mark.parametrize('config, file', [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize('form', FORMS)
def test_a_student_with_all_layers_predicts_what_its_teacher_does(form, config, file, tmp_path):
    "Tied, untied, and a configuration that contradicts the weights beside it; the student as it is, and saved."
    model, (ids, real) = model_of(form, tie_word_embeddings=config and file), padded(20, 11)
    if file: model.get_output_embeddings().weight.data.copy_(model.get_input_embeddings().weight)
    S.save_model(model, tmp_path/'teacher')
    damage(tmp_path/'teacher', 'config.json', {'tie_word_embeddings': config})
    for teacher in (AutoModelForMaskedLM.from_pretrained(tmp_path/'teacher').eval(), S.load_masked_lm(tmp_path/'teacher')[0]):
        student = S.truncate(teacher, range(6)).eval()
        S.save_model(student, tmp_path/'student')
        for model in (student, S.load_masked_lm(tmp_path/'student')[0]):
            assert torch.equal(model(ids, attention_mask=real).logits, teacher(ids, attention_mask=real).logits)
            assert is_tied(model) == is_tied(teacher) == model.config.tie_word_embeddings == (config and file)


@pytest.mark.parametrize('layer_map', [(1, 2), (0, 3, 0)])
def test_modernberts_first_layer_fits_only_the_first_place(layer_map):
    with pytest.raises(SettingsError, match='begin with 0, and name it only there'): S.truncate(model_of('modernbert'), layer_map)


@pytest.mark.parametrize('implementation', ['sdpa', 'attend'])
@pytest.mark.parametrize('form', FORMS)
def test_outputs_of_a_step_are_those_of_transformers(form, implementation):
    """Logits at masked positions, hidden states, and what the last layer itself projects; of sequences with padding, longer than
    ModernBERT's window."""
    model, (micro,), modern, seen = model_of(form), batch_of(SEQUENCES, **OURS).parts, form == 'modernbert', []
    attention = S.layers_of(model)[5].get_submodule('attn' if modern else 'attention.self')
    for m in (attention.Wqkv,) if modern else (attention.query, attention.key, attention.value):
        m.register_forward_hook(lambda m, x, y: seen.extend(y.chunk(3, -1) if modern else [y]))
    whole = model(micro.ids, attention_mask=micro.attention, output_hidden_states=True)
    model.set_attn_implementation(implementation)
    out = D.MaskedPredictor(model, ('logits', 'hidden', 'layers', 'relations'), (0, 2, 5))(micro)
    assert torch.allclose(out.logits(), whole.logits.flatten(0, 1)[micro.positions], atol=1e-4) and len(micro.labels) > 5
    assert torch.allclose(out.hidden, whole.hidden_states[-1][micro.attention], atol=1e-5)
    for mine, i in zip(out.layers, (1, 3, 6), strict=True):
        assert torch.allclose(mine, whole.hidden_states[i][micro.attention], atol=1e-5)
    for mine, theirs in zip(out.relations[:3], seen[:3], strict=True):
        assert torch.allclose(mine[micro.attention], theirs[micro.attention], atol=1e-4)


@pytest.mark.parametrize('attention', ['row', 'text'])
@pytest.mark.parametrize('form', FORMS)
def test_padding_and_other_documents_never_influence_a_result(form, attention):
    "A sequence, or where documents are separate each text, is as if it stood alone; with attention across documents, a text is not."
    model, (micro,) = model_of(form), batch_of(SEQUENCES, attention=attention, mask_share=0.0, **OURS).parts
    found, at = D.MaskedPredictor(model, ('hidden',))(micro).hidden, 0
    texts = packed(TEXTS[0]), *([*t, 2] for t in TEXTS[1:])
    for part in SEQUENCES if attention == 'row' else [*texts, SEQUENCES[1], packed(TEXTS[1]), texts[2], SEQUENCES[3]]:
        states, at = found[at:at + len(part)], at + len(part)
        assert torch.allclose(states, model.base_model(torch.tensor(np.array(part))[None])[0][0], atol=1e-5)
    second = model.base_model(torch.tensor(texts[1])[None])[0][0]
    assert at == len(found) and torch.allclose(found[8:17], second, atol=0.1) == (attention == 'text')
    alone, = batch_of(Few(SEQUENCES[:1]), **OURS | {'max_len': len(SEQUENCES[0])}).parts
    assert alone.mask() is None and micro.mask() is not None, 'no mask where nothing is padded'


@pytest.mark.parametrize('attention', ['row', 'text'])
@pytest.mark.parametrize('form', FORMS)
def test_a_student_is_trained(form, attention, tmp_path):
    "In bf16, where attention is our own, and with dropout; the padding of a local window, which sees no token, spoils nothing."
    teacher, student = model_of(form), S.truncate(model_of(form))
    before = [p.clone() for p in teacher.parameters()]
    for m in student.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.1
    settings = replace(SETTINGS, precision='bf16', attention=attention, **OURS)
    with D.open_run(student, teacher, SEQUENCES, settings, tmp_path) as run: D.train(run)
    losses = [line['loss'] for line in D.read_metrics(tmp_path) if 'loss' in line]
    assert len(losses) == run.steps and np.isfinite(losses).all() and all(map(torch.equal, teacher.parameters(), before))
    assert all(p.grad is None and torch.isfinite(p).all() for p in student.parameters())


def test_rotary_frequencies_are_never_rounded(monkeypatch, tmp_path):
    "As on a GPU, where the teacher's weights are held in half precision."
    teacher = model_of('modernbert')
    frequencies = {n: b.clone() for n, b in teacher.named_buffers()}
    monkeypatch.setattr(D, 'make_accelerator', lambda *args, **kw: SimpleNamespace(
        device=torch.device('cuda'), mixed_precision='bf16', process_index=0, num_processes=1, is_main_process=True,
        distributed_type=None, prepare=lambda *x: x))
    monkeypatch.setattr(D.MaskedPredictor, 'to', lambda self, device: self)
    run = D.open_run(S.truncate(teacher), teacher, SEQUENCES, replace(SETTINGS, precision='bf16', **OURS), tmp_path)
    assert {p.dtype for p in run.teacher_model.parameters()} == {torch.bfloat16} and len(frequencies) == 4
    assert all(torch.equal(b, frequencies[n]) for n, b in teacher.named_buffers())


@pytest.mark.parametrize('form', FORMS)
def test_dropout_is_that_of_the_profile(form, tmp_path):
    "In the model and in its configuration: none gives the same outputs twice, some does not, and a saved folder remembers it."
    S.save_model(model_of(form), tmp_path/'teacher'), (tmp_path/'t').mkdir()
    (tmp_path/'t'/'manifest.json').write_text('{"counts": {"vocab_size": 60}}')
    ids, _ = padded(20)
    for share in (0.0, 0.5):
        model, _ = D.initial_model('truncated', tmp_path/'teacher', tmp_path/'t', CHOSEN, dropout=share)
        S.save_model(model, tmp_path/str(share))
        for m in (model, AutoModelForMaskedLM.from_pretrained(tmp_path/str(share))):
            m.train()
            assert torch.equal(m(ids).logits, m(ids).logits) == (share == 0)
            assert {getattr(x, n) for x in m.modules() for n in ('p', 'attention_dropout') if hasattr(x, n)} <= {share}
    random, _ = D.initial_model('random', tmp_path/'teacher', tmp_path/'t', CHOSEN, shape={'init_std': 0.02})
    assert len(S.layers_of(random)) == 4 and getattr(random.config, 'layer_types', 0) == getattr(model.config, 'layer_types', 0)


@pytest.mark.parametrize('form', FORMS)
def test_positions_and_cost(form):
    "The longest sequence fits, one more token does not; torch counts the same operations."
    model = model_of(form, attn_implementation='eager')
    config, room = model.config, usable_positions(model.config.to_dict())
    assert room == (32 if form in ROBERTA else 34)
    for length in (8, room):
        ids = torch.full((1, length), 7)
        with torch.no_grad(), FlopCounterMode(display=False) as counted: model(ids)
        assert counted.get_total_flops() == length*(S.encoder_flops(config, length) + S.head_flops(config))
    if form in ROBERTA:
        with pytest.raises((IndexError, RuntimeError)): model(torch.full((1, room + 1), 7))
    assert status.parameters_of(config) == S.count_parameters(model)
    if form == 'electra': return  # The projection of its embeddings is not part of a layer
    classifier = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config).eval()
    classifier.set_attn_implementation('sdpa')
    with torch.no_grad(), FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        klej.logits_of(classifier, ids, 0*ids, None)
    assert counted.get_total_flops() == pytest.approx(status.classifier_flops(config, room), rel=0.01)


@pytest.mark.parametrize('form', ALL)
def test_whatever_file_holds_the_weights(form, tmp_path):
    "Half precision, a pickled state, several shards; and an encoder alone, whose head is then new and tied."
    model, (ids, _) = model_of(form), padded(20)
    for p in model.parameters(): p.data = p.bfloat16().float()
    with torch.no_grad(): expected = model(ids).logits
    model.save_pretrained(tmp_path/'shards', max_shard_size='8KB')
    assert len([*(tmp_path/'shards').glob('*.safetensors')]) > 2
    model.bfloat16().save_pretrained(tmp_path/'half')
    model.float().save_pretrained(tmp_path/'bin')
    (tmp_path/'bin'/'model.safetensors').unlink()
    torch.save(state := model.state_dict(), tmp_path/'bin'/'pytorch_model.bin')
    for name in ('shards', 'half', 'bin'):
        loaded, new = S.load_masked_lm(tmp_path/name)
        assert not new and loaded.dtype == torch.float32 and torch.allclose(loaded(ids).logits, expected, atol=1e-5)
    encoder = MODEL_MAPPING[type(model.config)](model.config).eval()
    encoder.save_pretrained(tmp_path/'encoder')
    loaded, new = S.load_masked_lm(tmp_path/'encoder')
    assert new and is_tied(loaded) and torch.allclose(loaded.base_model(ids)[0], encoder(ids)[0], atol=1e-6)
    assert not loaded.get_output_embeddings().bias.any()
    assert (getattr(loaded.base_model, 'pooler', None) is not None) == S.FAMILIES[form].pooler
    own = S.FAMILIES[form].bias
    for lost in (own, next(n for n in state if S.LAYER.search(n) and n.endswith('weight'))):
        left = {n: t for n, t in state.items() if n != lost and (lost != own or not n.endswith('decoder.bias'))}  # Its other name
        torch.save(left, tmp_path/'bin'/'pytorch_model.bin')
        with pytest.raises(SettingsError, match=f'has no weights for {lost}'): S.load_masked_lm(tmp_path/'bin')


def test_electras_discriminator_is_an_encoder_without_a_head(tmp_path):
    model, (ids, _) = ElectraForPreTraining(config_of('electra')).eval(), padded(20)
    model.save_pretrained(tmp_path)
    loaded, new = S.load_masked_lm(tmp_path)
    assert new and torch.equal(loaded.base_model(ids)[0], model.electra(ids)[0])


@pytest.mark.parametrize('form, fault', [
    ('modernbert', {'decoder_bias': False}), ('modernbert', {'local_attention': 0}), ('modernbert', {'hidden_activation': 'gelu_pro'}),
    ('modernbert', {'hidden_size': 18}), ('modernbert', {'num_hidden_layers': 5}), ('modernbert', {'classifier_pooling': 'max'}),
    ('roberta', {'pad_token_id': None}), ('roberta', {'max_position_embeddings': 2}), ('electra', {'embedding_size': 0})])
def test_a_configuration_that_cannot_be_is_named(form, fault, tmp_path):
    (tmp_path/'config.json').write_text(json.dumps(config_of(form).to_dict() | fault))
    with pytest.raises(SettingsError, match=f'config.json.*{"num_attention_heads" if "hidden_size" in fault else next(iter(fault))}'):
        S.load_config(tmp_path)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('tied', [True, False])
def test_a_trimmed_model_computes_the_same(form, tied, tmp_path):
    "Also where the id of the padding token changes, from which RoBERTa counts its positions."
    wide = model_of(form, tie_word_embeddings=tied, pad_token_id=3, eos_token_id=5)
    kept, room = np.array([0, 3, 5, 8, 40, 59]), usable_positions(wide.config.to_dict())
    old, new = torch.tensor([[0, 8, 40, 59, 5, 3]]), torch.tensor([[0, 3, 4, 5, 2, 1]])
    with torch.no_grad(): hidden, logits = wide.base_model(old)[0], wide(old).logits[..., kept]
    with pytest.raises(SettingsError, match='Token 60 is outside the vocabulary of 60'): S.trim_model(wide, np.array([0, 60]))
    S.save_model(S.trim_model(wide, kept), tmp_path)
    for model in (wide, S.load_masked_lm(tmp_path)[0], AutoModelForMaskedLM.from_pretrained(tmp_path)):
        assert torch.equal(model.base_model(new)[0], hidden) and torch.allclose(model(new).logits, logits, atol=1e-5)
        assert (model.config.vocab_size, model.config.pad_token_id, model.config.eos_token_id) == (6, 1, 2)
        assert usable_positions(model.config.to_dict()) == room and model.get_input_embeddings().padding_idx == 1
        assert is_tied(model) == tied
    wide(new, labels=new).loss.backward()
    assert all(p.grad is not None for p in (*wide.get_output_embeddings().parameters(), wide.get_input_embeddings().weight))


def write_tokenizer(folder, form, layout):
    "As the families' folders have it: RoBERTa's separates the texts of a pair twice."
    t, names = LAYOUTS[layout](), dict(zip(('cls_token', 'pad_token', 'sep_token', 'unk_token', 'mask_token'), NAMES, strict=True))
    pair = '<s> $A </s> </s> $B </s>' if form in ROBERTA else '<s> $A </s> $B:1 </s>:1'
    t.post_processor = processors.TemplateProcessing('<s> $A </s>', pair, [('<s>', 0), ('</s>', 2)])
    inputs = ['input_ids', *['token_type_ids']*(form in ('bert', 'electra')), 'attention_mask']
    FastTokenizer(tokenizer_object=t, **names, model_input_names=inputs).save_pretrained(folder)
    return t.get_vocab_size()


@pytest.mark.parametrize('form, pooling', [*((f, 'cls') for f in ALL), ('modernbert', 'mean')])
@pytest.mark.parametrize('task', ['nkjp-ner', 'cdsc-e'])
def test_a_classifiers_logits_are_those_of_transformers(form, pooling, task, tmp_path):
    "Its folder with transformers alone, padded batches of one text or two; and the same in ONNX."
    size, t = write_tokenizer(tmp_path/'c', form, 'Unigram'), get_task(task)
    own = {'classifier_pooling': pooling} if form == 'modernbert' else {}
    config = config_of(form, vocab_size=size + 3, num_labels=3, type_vocab_size=1 if form in (*ROBERTA, 'modernbert') else 2, **own)
    torch.manual_seed(0)
    S.save_model(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config), tmp_path/'c')
    about = {'tasks': [task], 'texts': len(t.texts), 'labels': ['a', 'b', 'c'], 'scale': [], 'max_len': 32}
    (tmp_path/'c'/'classifier.json').write_text(json.dumps(about))
    texts = [('Ala ma kota', 'mleko')[:len(t.texts)], ('kot, kotek i kocur', 'Zażółć gęślą jaźń')[:len(t.texts)], ('', 'a')[:len(t.texts)]]
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path/'c'), AutoModelForSequenceClassification.from_pretrained(tmp_path/'c').eval()
    with torch.no_grad(): expected = model(**tokenizer(*map(list, zip(*texts)), padding=True, return_tensors='pt')).logits.numpy()
    logits, cut = classify.open_classifier(tmp_path/'c').run(texts)
    assert np.allclose(logits, expected, atol=1e-4) and not cut and expected.std(0).min() > 0.01
    if task == 'nkjp-ner' or (form, pooling) not in (('roberta', 'cls'), ('modernbert', 'mean')): return  # Others: end to end, below
    found, _ = classify.open_classifier(classify.export_onnx(tmp_path/'c', tmp_path/'onnx'), 1).run(texts)
    assert np.allclose(found, expected, atol=1e-3)


PROGRAM = '''
import sys
from distilherbert.classify import export, predict
from distilherbert.recipes import distil, finetune
from distilherbert.scenario import get_profile
distil('owner/teacher', 'corpus', 'small', layers=2, objective=sys.argv[1], tokens='5K', max_len=32, vocab=sys.argv[2])
finetune('small', 'train.tsv', 'classifier', text='sentence', label='target', epochs=1, seeds=1, max_len=16)
demo, texts = get_profile('demo'), ['Jadę do miasta .', 'Ala ma kota']
lines = predict('classifier', texts, demo)
folder = export('classifier', demo, 'onnx', int8=True)
print(*lines, *predict(str(folder), texts, demo), sep='\\n')
'''


@pytest.mark.slow
@pytest.mark.parametrize('form, layout, vocab', [
    ('bert', 'WordPiece', 'trim'), ('roberta', 'BPE bytes', 'keep'), ('xlm-roberta', 'Unigram', 'keep'), ('camembert', 'BPE </w>', 'keep'),
    ('electra', 'WordPiece', 'keep'), ('modernbert', 'BPE ▁', 'keep')])
def test_a_teacher_on_the_hub_becomes_a_classifier(form, layout, vocab, tmp_path):
    "From its name to 8 bits."
    teacher = tmp_path/'models'/'owner'/'teacher'
    size = write_tokenizer(teacher, form, layout)
    config = config_of(form, vocab_size=size + 5)
    S.save_model(ElectraForPreTraining(config) if form == 'electra' else S.random_model(config, 1), teacher)
    (tmp_path/'corpus').mkdir()
    (tmp_path/'corpus'/'a.txt').write_text('\n\n'.join('\n'.join(d) for d in world_documents('ccsub', 200, 0)), 'utf-8')
    rows = [[r[c] for c in ('sentence', 'target')] for r in world_task('nkjp-ner', 'train', 0)[:60]]
    (tmp_path/'train.tsv').write_text('\n'.join('\t'.join(r) for r in [('sentence', 'target'), *rows]), 'utf-8')
    with Hub(tmp_path) as hub:
        env = {'HF_ENDPOINT': hub.address, 'HF_HOME': tmp_path/'cache', 'DISTILHERBERT_RUNS': tmp_path/'runs'}
        done = run_program(sys.executable, '-c', PROGRAM, 'hidden' if form != 'electra' else '', vocab, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    answers = [line.split('\t') for line in done.stdout.splitlines()[-4:]]
    assert {a[0] for a in answers} <= {label for _, label in rows} and [a[2] for a in answers[:2]] == [a[2] for a in answers[2:]]
    small = AutoConfig.from_pretrained(tmp_path/'small')
    assert (small.model_type, small.num_hidden_layers) == (form, 2) and AutoConfig.from_pretrained(tmp_path/'classifier').model_type == form
