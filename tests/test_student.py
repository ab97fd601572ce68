"""Students and models from outside, for every family of `student.FAMILIES`, against transformers' own modules: layers, masked-only logits,
documents, vocabularies, classifiers; and folders in the hub's layout, and what is refused."""
import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import damage, run_program
from few import ALL, FORMS, SEQUENCES, SETTINGS, TEXTS, Few, batch_of, config_of, model_of, packed, padded
from hub import Hub
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, NAMES, TEXT
from tokenizers import Tokenizer, models, processors
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, ElectraForPreTraining
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING

from distilherbert import classify, klej
from distilherbert import distill as D
from distilherbert import student as S
from distilherbert.pack import load_tokenizer, train_tokenizer, write_tokenizer
from distilherbert.scenario import SettingsError
from distilherbert.tasks import TaskError, get_task
from distilherbert.wheel import ROBERTA, unigram_tokenizer, usable_positions
from distilherbert.world import world_documents, world_task

CHOSEN = (0, 1, 3, 5)
TOKENS = dict(zip(('cls_token', 'pad_token', 'sep_token', 'unk_token', 'mask_token'), NAMES, strict=True))


def is_tied(model): return model.get_output_embeddings().weight is model.get_input_embeddings().weight


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


@pytest.mark.parametrize('implementation', ['sdpa', 'attend'])
@pytest.mark.parametrize('form', FORMS)
def test_outputs_of_a_step_are_those_of_transformers(form, implementation):
    """Logits at masked positions, hidden states, and what the last layer itself projects; of sequences with padding, longer than
    ModernBERT's window."""
    model, micro, modern, seen = model_of(form), batch_of(), form == 'modernbert', []
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
    model, micro = model_of(form), batch_of(attention=attention, mask_share=0.0)
    found, at = D.MaskedPredictor(model, ('hidden',))(micro).hidden, 0
    texts = packed(TEXTS[0]), *([*t, 2] for t in TEXTS[1:])
    for part in SEQUENCES if attention == 'row' else [*texts, SEQUENCES[1], packed(TEXTS[1]), texts[2], SEQUENCES[3]]:
        states, at = found[at:at + len(part)], at + len(part)
        assert torch.allclose(states, model.base_model(torch.tensor(np.array(part))[None])[0][0], atol=1e-5)
    second = model.base_model(torch.tensor(texts[1])[None])[0][0]
    assert at == len(found) and torch.allclose(found[8:17], second, atol=0.1) == (attention == 'text')
    alone = batch_of(Few(SEQUENCES[:1]), max_len=len(SEQUENCES[0]))
    assert alone.mask() is None and micro.mask() is not None, 'no mask where nothing is padded'


@pytest.mark.parametrize('attention', ['row', 'text'])
@pytest.mark.parametrize('form', FORMS)
def test_a_student_is_trained(form, attention, tmp_path):
    "In bf16, where attention is our own, and with dropout; the padding of a local window, which sees no token, spoils nothing."
    teacher, student = model_of(form), S.truncate(model_of(form))
    for m in student.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.1
    with D.open_run(student, teacher, SEQUENCES, replace(SETTINGS, precision='bf16', attention=attention), tmp_path) as run: D.train(run)
    losses = [line['loss'] for line in D.read_metrics(tmp_path) if 'loss' in line]
    assert len(losses) == run.steps and np.isfinite(losses).all() and all(torch.isfinite(p).all() for p in student.parameters())
    assert all(map(torch.equal, teacher.parameters(), model_of(form).parameters()))


@pytest.mark.parametrize('form', FORMS)
def test_dropout_is_that_of_the_profile(form, tmp_path):
    "None gives the same outputs twice, some does not, and a saved folder remembers it."
    S.save_model(model_of(form), tmp_path/'teacher'), (tmp_path/'t').mkdir()
    (tmp_path/'t'/'manifest.json').write_text('{"counts": {"vocab_size": 60}}')
    for share in (0.0, 0.5):
        S.save_model(D.initial_model('truncated', tmp_path/'teacher', tmp_path/'t', CHOSEN, dropout=share)[0], tmp_path/str(share))
        m, ids = AutoModelForMaskedLM.from_pretrained(tmp_path/str(share)).train(), padded(20)[0]
        assert torch.equal(m(ids).logits, m(ids).logits) == (share == 0)


@pytest.mark.parametrize('form', ALL)
def test_whatever_file_holds_the_weights(form, tmp_path):
    "Half precision, a pickled state, several shards; and an encoder alone, whose head is then new and tied."
    model, (ids, _) = model_of(form), padded(20)
    for p in model.parameters(): p.data = p.bfloat16().float()
    with torch.no_grad(): expected = model(ids).logits
    model.save_pretrained(tmp_path/'shards', max_shard_size='8KB')
    assert len([*(tmp_path/'shards').glob('*.safetensors')]) > 2
    model.bfloat16().save_pretrained(tmp_path/'half')
    shutil.copytree(tmp_path/'half', tmp_path/'bin', ignore=shutil.ignore_patterns('*.safetensors'))
    torch.save(state := model.float().state_dict(), tmp_path/'bin'/'pytorch_model.bin')
    for name in ('shards', 'half', 'bin'):
        loaded, new = S.load_masked_lm(tmp_path/name)
        assert not new and loaded.dtype == torch.float32 and torch.allclose(loaded(ids).logits, expected, atol=1e-5)
    encoder = MODEL_MAPPING[type(model.config)](model.config).eval()
    encoder.save_pretrained(tmp_path/'encoder')
    loaded, new = S.load_masked_lm(tmp_path/'encoder')
    assert new and is_tied(loaded) and torch.allclose(loaded.base_model(ids)[0], encoder(ids)[0], atol=1e-6)
    lost = next(n for n in state if S.LAYER.search(n) and n.endswith('weight'))
    torch.save({n: t for n, t in state.items() if n != lost}, tmp_path/'bin'/'pytorch_model.bin')
    with pytest.raises(SettingsError, match=f'has no weights for {lost}'): S.load_masked_lm(tmp_path/'bin')


@pytest.mark.parametrize('form, fault', [
    ('modernbert', {'decoder_bias': False}), ('modernbert', {'local_attention': 0}), ('modernbert', {'hidden_size': 18}),
    ('modernbert', {'num_hidden_layers': 5}), ('roberta', {'pad_token_id': None}), ('electra', {'embedding_size': 0})])
def test_a_configuration_that_cannot_be_is_named(form, fault, tmp_path):
    (tmp_path/'config.json').write_text(json.dumps(config_of(form).to_dict() | fault))
    with pytest.raises(SettingsError, match=f'config.json.*{"num_attention_heads" if "hidden_size" in fault else next(iter(fault))}'):
        S.load_config(tmp_path)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('tied', [True, False])
def test_a_trimmed_model_computes_the_same(form, tied, tmp_path):
    "Also where the id of the padding token changes, from which RoBERTa counts its positions."
    wide = model_of(form, tie_word_embeddings=tied, pad_token_id=3, eos_token_id=5)
    kept, room = np.array([0, 3, 5, 8, 40, 59]), usable_positions(wide.config)
    old, new = torch.tensor([[0, 8, 40, 59, 5, 3]]), torch.tensor([[0, 3, 4, 5, 2, 1]])
    with torch.no_grad(): hidden, logits = wide.base_model(old)[0], wide(old).logits[..., kept]
    with pytest.raises(SettingsError, match='Token 60 is outside the vocabulary of 60'): S.trim_model(wide, np.array([0, 60]))
    S.save_model(S.trim_model(wide, kept), tmp_path)
    for model in (wide, S.load_masked_lm(tmp_path)[0], AutoModelForMaskedLM.from_pretrained(tmp_path)):
        assert torch.equal(model.base_model(new)[0], hidden) and torch.allclose(model(new).logits, logits, atol=1e-5)
        assert (model.config.vocab_size, model.config.pad_token_id, model.config.eos_token_id) == (6, 1, 2)
        assert usable_positions(model.config) == room and model.get_input_embeddings().padding_idx == 1
        assert is_tied(model) == tied
    wide(new, labels=new).loss.backward()
    assert all(p.grad is not None for p in (*wide.get_output_embeddings().parameters(), wide.get_input_embeddings().weight))


def family_tokenizer(folder, form, layout):
    "As the families' folders have it: RoBERTa's separates the texts of a pair twice."
    t = LAYOUTS[layout]()
    pair = '<s> $A </s> </s> $B </s>' if form in ROBERTA else '<s> $A </s> $B:1 </s>:1'
    t.post_processor = processors.TemplateProcessing('<s> $A </s>', pair, [('<s>', 0), ('</s>', 2)])
    inputs = ['input_ids', *['token_type_ids']*(form in ('bert', 'electra')), 'attention_mask']
    FastTokenizer(tokenizer_object=t, **TOKENS, model_input_names=inputs).save_pretrained(folder)
    return t.get_vocab_size()


@pytest.mark.parametrize('form, pooling', [*((f, 'cls') for f in ALL), ('modernbert', 'mean')])
@pytest.mark.parametrize('task', ['nkjp-ner', 'cdsc-e'])
def test_a_classifiers_logits_are_those_of_transformers(form, pooling, task, tmp_path):
    "Its folder with transformers alone, padded batches of one text or two. In ONNX: test_classify, and from end to end below."
    size, t = family_tokenizer(tmp_path, form, 'Unigram'), get_task(task)
    own = {'classifier_pooling': pooling} if form == 'modernbert' else {}
    config = config_of(form, vocab_size=size + 3, num_labels=3, type_vocab_size=1 if form in (*ROBERTA, 'modernbert') else 2, **own)
    torch.manual_seed(0)
    S.save_model(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config), tmp_path)
    about = {'tasks': [task], 'texts': len(t.texts), 'labels': ['a', 'b', 'c'], 'scale': [], 'max_len': 32}
    (tmp_path/'classifier.json').write_text(json.dumps(about))
    texts = [('Ala ma kota', 'mleko')[:len(t.texts)], ('kot, kotek i kocur', 'Zażółć gęślą jaźń')[:len(t.texts)], ('', 'a')[:len(t.texts)]]
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad(): expected = model(**tokenizer(*map(list, zip(*texts)), padding=True, return_tensors='pt')).logits.numpy()
    logits, cut = classify.open_classifier(tmp_path).run(texts)
    assert np.allclose(logits, expected, atol=1e-4) and not cut and expected.std(0).min() > 0.01


def test_herberts_layout_is_read_with_its_pooler_and_without_the_hub(tmp_path, monkeypatch):
    "A folder as on the hub: a pickled state with pooler, own decoder matrix and a foreign head; no architecture named."
    source, ids = transformers.BertForPreTraining(config_of('bert', num_hidden_layers=2)).eval(), padded(20)[0]
    state = {n: p for n, p in source.state_dict().items() if 'seq_relationship' not in n}
    torch.save(state | {'cls.sso.sso_relationship.weight': torch.zeros(2, 16)}, tmp_path/'pytorch_model.bin')
    (tmp_path/'config.json').write_text(json.dumps(source.config.to_dict() | {'architectures': None}))
    read, offline = transformers.BertModel.from_pretrained, []
    def noted(*args, **kw):
        offline.append(constants.HF_HUB_OFFLINE)
        return read(*args, **kw)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(transformers.BertModel, 'from_pretrained', noted)
    loaded, head_is_new = S.load_masked_lm(tmp_path)
    assert not head_is_new and torch.allclose(loaded(ids).logits, source(ids).prediction_logits, atol=1e-6) and offline == [True]
    S.save_model(S.truncate(loaded), tmp_path/'student')
    pooler = S.load_masked_lm(tmp_path/'student')[0].base_model.pooler
    assert torch.equal(pooler.dense.weight, source.bert.pooler.dense.weight) and not pooler.dense.weight.requires_grad


# Trimming: for every kind of tokenizer, a text whose pieces are all kept has the same pieces

WORDS = sorted({w for line in TEXT for w in line.split()})


@pytest.fixture(scope='module', params=LAYOUTS)
def full(request, tmp_path_factory):
    "A tokenizer of each kind, and a folder with it and one for its trimmed copies."
    t, source, work = LAYOUTS[request.param](), tmp_path_factory.mktemp('full'), tmp_path_factory.mktemp('trimmed')
    FastTokenizer(tokenizer_object=t, **TOKENS).save_pretrained(source)
    return t, source, work


SENTENCES = st.lists(st.sampled_from([*WORDS, 'kotka', 'mrau', 'ę', '☃', 'x☃y', 'abrak']), max_size=6).map(' '.join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counted=st.lists(SENTENCES, min_size=1, max_size=6), other=st.lists(SENTENCES, max_size=8), share=st.floats(0, 1))
def test_a_text_whose_pieces_are_kept_has_the_same_pieces(full, counted, other, share):
    (t, source, work), counted = full, ['Ala', *counted]
    counts, ids = S.count_pieces(counted, t), [i for s in counted for i in t.encode(s, add_special_tokens=False).ids]
    assert counts.tolist() == np.bincount(ids, minlength=len(counts)).tolist()
    every = S.trim_tokenizer(source, work, counts, len(counts))['vocab_size']
    with pytest.raises(SettingsError, match='Write `vocab_size = .*` or more') as raised: S.trim_tokenizer(source, work, counts, 5)
    least = int(str(raised.value).partition('`vocab_size = ')[2].partition('`')[0])
    size = least + round(share*(every - least))
    made = S.trim_tokenizer(source, work, counts, size)
    trimmed, kept = load_tokenizer(work), np.load(work/'kept.npy')
    assert len(trimmed) == made['vocab_size'] == len(kept) <= size and (np.diff(kept) > 0).all()
    assert made['covered'] == counts[kept].sum()/counts.sum() and (size < every or made['covered'] == 1)
    vocabulary = t.get_vocab()
    assert all(vocabulary[p] == kept[i] for p, i in trimmed.get_vocab().items()) and set(NAMES) <= set(trimmed.get_vocab())
    for text in counted + other:
        ids = t.encode(text).ids
        if set(ids) <= set(kept.tolist()) and not (3 in ids and isinstance(t.model, models.WordPiece)):
            assert kept[trimmed(text)['input_ids']].tolist() == ids
            assert kept[trimmed(text, 'Ala')['input_ids']].tolist()[:len(ids)] == ids
        if text in counted and 3 not in ids: assert 3 not in kept[trimmed(text)['input_ids']], 'spelled out'


def test_the_worst_piece_is_kept_because_unknown_characters_are_measured_by_it():
    "Ł has no piece of its own. Without `zz` it would cost less as `<unk>`, and the best cut would be another one."
    scores = {**dict.fromkeys(NAMES[:4], 0), '▁': -1, 'a': -19, 'b': -19, 'ab': -1, 'Ła': -20, 'zz': -60, '<mask>': 0}
    pieces = list(scores.items())
    t, without = unigram_tokenizer(pieces), unigram_tokenizer([p for p in pieces if p[0] != 'zz'])
    assert t.encode('Łab').tokens[1:-1] == ['▁', 'Ła', 'b'] and 3 in without.encode('Łab').ids
    counts, model = S.count_pieces(['Łab'], t), json.loads(t.to_str())['model']
    kept = S._pieces_to_keep(model, list(scores), counts, {0, 1, 2, 3, 10}, 10, False)
    assert [pieces[i][0] for i in kept] == [*NAMES[:4], '▁', 'a', 'b', 'Ła', 'zz', '<mask>']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A model with a tokenizer."
    folder, t = tmp_path_factory.mktemp('whole'), train_tokenizer(TEXT[:2]*5, 60)
    S.save_model(S.random_model(config_of('bert', num_hidden_layers=2), 0), folder)
    write_tokenizer(folder, t, 32)
    return folder


def test_code_of_a_folder_is_neither_run_nor_asked_about_and_without_a_network_one_reads_what_to_do(whole, tmp_path):
    folder, types = Path(shutil.copytree(whole, tmp_path/'model')), {'AutoConfig': 'own.C', 'AutoTokenizer': ['own.C', 'own.C']}
    (folder/'own.py').write_text(f'open({str(tmp_path/"ran")!r}, "w")\nclass C: pass')
    damage(folder, 'config.json', {'model_type': 'own', 'auto_map': types})
    damage(folder, 'tokenizer_config.json', {'tokenizer_class': 'Own', 'auto_map': types})
    (tmp_path/'program.py').write_text(f"""from distilherbert import pack, student
for f in (student.load_config, student.load_masked_lm, pack.load_tokenizer, lambda d: pack.make_tokenizer(d, d),
          lambda d: student.trim_tokenizer(d, d, [], 9), lambda d: student.load_masked_lm("allegro/herbert-base-cased")):
    try: f({str(folder)!r})
    except ValueError as e: print(e)""")
    done = run_program('sh', '-c', 'yes | "$0" "$1"', sys.executable, tmp_path/'program.py',
               env={'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HOME': '/nonexistent'})
    *own, missing = done.stdout.splitlines()
    assert len(own) == 5 and all(line.endswith('code from a model folder is never run.') for line in own), done.stderr
    assert not (tmp_path/'ran').exists() and '[y/N]' not in done.stdout
    assert 'hf download allegro/herbert-base-cased --local-dir FOLDER' in missing and 'Retrying' not in done.stderr


class Evil:
    def __reduce__(self): return print, ('run',)


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
FULL = 'model.safetensors'


@pytest.mark.parametrize('file, change, words', [
    (FULL, LFS, f'{FULL} is a pointer of Git LFS'), (FULL, b'', f'{FULL} is empty'), (FULL, 0.5, f'{FULL} is damaged'),
    ('pytorch_model.bin', pickle.dumps(Evil(), 2), 'pytorch_model.bin is damaged, or holds more than weights'),
    ('model.safetensors.index.json', b'{}', 'index.json is damaged'),
    ('tokenizer.json', b'\xef\xbb\xbf{}', 'tokenizer.json begins with a byte-order mark.*sed -i'),
    ('config.json', b'['*100_000, 'config.json is damaged'), ('tokenizer.json', b'{}', 'tokenizer.json is damaged'),
    ('tokenizer_config.json', b'{"tokenizer_class": 5}', 'tokenizer_config.json'),
    *(('config.json', {name: value}, rf'config.json.*\b{name}\b') for name, value in (
        ('hidden_size', '16'), ('hidden_act', 'gelu_pro'), ('num_attention_heads', 3), ('is_decoder', True),
        ('num_hidden_layers', 100_000), ('_attn_implementation', 'someone/kernel'))),
    ('config.json', {'intermediate_size': 64}, 'its weights have other shapes'),
    ('config.json', {'num_hidden_layers': 1}, 'its weights have bert.encoder.layer.1'),
    ('config.json', {'model_type': 'distilbert'}, 'is a distilbert model; supported families are bert')])
def test_a_folder_that_cannot_be_read_is_one_sentence_with_file_and_cause(whole, tmp_path, capsys, file, change, words):
    folder = Path(shutil.copytree(whole, tmp_path/'model'))
    if file.endswith(('.bin', '.index.json')): (folder/FULL).unlink()
    damage(folder, file, change)
    loaders = [lambda: klej.load_classifier(folder, 2, 1), *[lambda: S.load_masked_lm(folder)]*(not file.startswith('tokenizer'))]
    for load in loaders:
        with pytest.raises((SettingsError, TaskError), match=words) as raised: load()
        assert str(folder) in str(raised.value) and '\n' not in str(raised.value)
    assert 'run' not in capsys.readouterr().out.split()


def test_another_kind_of_vocabulary_is_refused(tmp_path):
    words = Tokenizer(models.WordLevel({n: i for i, n in enumerate(NAMES)}, '<unk>'))
    FastTokenizer(tokenizer_object=words, unk_token='<unk>').save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match='A WordLevel vocabulary cannot be'): S.trim_tokenizer(tmp_path, tmp_path, np.ones(5, int), 5)


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
    size = family_tokenizer(teacher, form, layout)
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
