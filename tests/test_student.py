"Students and models from outside: layers, folders in the hub's layout, and what is refused."
import json
import socket
import sys
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
)

from distilherbert.distill import first_weights, model_artefact
from distilherbert.klej import load_classifier
from distilherbert.scenario import SCENARIOS, SettingsError, get_profile, hub_client
from distilherbert.student import count_parameters, load_masked_lm, random_model, size_bytes, truncate

SHAPE = dict(vocab_size=60, hidden_size=16, num_attention_heads=2, intermediate_size=32, max_position_embeddings=34)


@pytest.mark.parametrize('layer_map', [(), (0,), (0, 2, 4, 7, 9, 11), (11, 0, 0), tuple(range(12))])
def test_a_student_has_its_teachers_layers(layer_map):
    teacher = random_model(BertConfig(num_hidden_layers=12, **SHAPE), seed=1)
    before = {n: p.clone() for n, p in teacher.state_dict().items()}
    student, chosen = truncate(teacher, layer_map), layer_map or range(0, 12, 2)
    theirs = teacher.state_dict()
    for n, p in student.state_dict().items():
        if '.layer.' in n:
            head, i, tail = n.partition('.layer.')[0], *n.partition('.layer.')[2].split('.', 1)
            n = f'{head}.layer.{list(chosen)[int(i)]}.{tail}'
        assert torch.equal(p, theirs[n])
    with torch.no_grad():
        for p in student.parameters(): p += 1
    assert all(torch.equal(p, before[n]) for n, p in teacher.state_dict().items())
    assert student.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight


def test_random_weights_are_those_of_transformers():
    config = BertConfig(num_hidden_layers=2, initializer_range=0.05, **SHAPE)
    torch.manual_seed(5)
    reference = BertForMaskedLM(config)
    state = torch.get_rng_state()
    mine = random_model(config, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), reference.state_dict().values()))
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture
def hub_layout(tmp_path):
    "A folder as HerBERT's on the hub: a pickled state with pooler, own decoder matrix and a foreign head; no architecture named."
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(num_hidden_layers=2, **SHAPE))
    state = {n: p.clone() for n, p in model.state_dict().items() if 'seq_relationship' not in n}
    state |= {'cls.sso.sso_relationship.weight': torch.zeros(2, 16), 'cls.sso.sso_relationship.bias': torch.zeros(2)}
    torch.save(state, tmp_path/'pytorch_model.bin')
    config = {k: v for k, v in model.config.to_dict().items() if k not in ('architectures', 'transformers_version', 'dtype')}
    (tmp_path/'config.json').write_text(json.dumps(config))
    return tmp_path, model


def test_herberts_layout_is_read_with_its_pooler(hub_layout, tmp_path):
    folder, source = hub_layout
    loaded = load_masked_lm(folder)
    ids = torch.tensor([[0, 9, 8, 2]])
    source.eval()
    assert torch.allclose(loaded(ids).logits, source(ids).prediction_logits, atol=1e-6)
    student = truncate(loaded)
    assert torch.equal(student.bert.pooler.dense.weight, source.bert.pooler.dense.weight)
    student.save_pretrained(tmp_path/'student')
    assert (tmp_path/'student'/'model.safetensors').is_file()
    assert torch.equal(load_masked_lm(tmp_path/'student').bert.pooler.dense.weight, source.bert.pooler.dense.weight)


def test_what_is_no_bert_is_refused(tmp_path):
    DistilBertForMaskedLM(DistilBertConfig(vocab_size=30, dim=16, n_heads=2, n_layers=1, hidden_dim=16)).save_pretrained(tmp_path/'other')
    with pytest.raises(SettingsError, match='is a distilbert model'): load_masked_lm(tmp_path/'other')
    (tmp_path/'empty').mkdir()
    with pytest.raises(SettingsError, match='is no model folder'): load_masked_lm(tmp_path/'empty')


def test_without_a_network_the_error_says_what_to_do(run):
    done = run(sys.executable, '-c', 'from distilherbert.student import load_masked_lm; load_masked_lm("allegro/herbert-base-cased")',
               env={'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HOME': '/nonexistent'})
    assert done.returncode and 'hf download allegro/herbert-base-cased --local-dir FOLDER' in done.stderr and 'Retrying' not in done.stderr


def test_the_hub_is_asked_only_where_it_answers(monkeypatch):
    from huggingface_hub import constants
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    with socket.create_server(('127.0.0.1', 0)) as server:
        monkeypatch.setattr(constants, 'ENDPOINT', f'http://127.0.0.1:{server.getsockname()[1]}')
        with hub_client(): assert not constants.HF_HUB_OFFLINE
        with hub_client(local=True): assert constants.HF_HUB_OFFLINE
    with pytest.raises(KeyError), hub_client():
        assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE


def test_sizes_of_the_report(tmp_path):
    "Real models of HerBERT's shape: the teacher 124M parameters and 475 MiB with its pooler, the student 81M and 325 MB as a file."
    from safetensors.torch import save_file
    herbert = BertConfig(vocab_size=50_000, max_position_embeddings=514)
    teacher = BertForMaskedLM(herbert)
    student = truncate(teacher)
    assert round(count_parameters(BertModel(herbert))/1e6) == 124 and round(size_bytes(BertModel(herbert))/2**20) == 475
    assert round(count_parameters(student.bert)/1e6) == 81 and student.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight
    save_file({n: t.contiguous() for n, t in student.bert.state_dict().items()}, tmp_path/'student.safetensors')
    assert (tmp_path/'student.safetensors').stat().st_size/1e6 == pytest.approx(325.34, abs=0.05)


def test_a_random_student_of_a_found_teacher_needs_no_weights(hub_layout, tmp_path):
    "Its shape comes from `config.json` alone; the same model as from the teacher's own configuration."
    folder, _ = hub_layout
    profile, config = replace(get_profile('demo'), teacher=str(folder), tokenizer=str(folder), init_std=0.07, seed=3), load_masked_lm(folder).config
    (folder/'pytorch_model.bin').unlink()
    made = first_weights(profile, SCENARIOS['S0'], 60, {})
    config.num_hidden_layers, config.initializer_range = 1, 0.07
    reference = random_model(config, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), reference.state_dict().values(), strict=True))
    for name, model in (('made', made), ('reference', reference)):
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = profile.dropout
        model.save_pretrained(tmp_path/name)
    assert (tmp_path/'made'/'config.json').read_text() == (tmp_path/'reference'/'config.json').read_text()


@pytest.mark.parametrize('size, room, fits', [(60, 60, True), (60, 187, True), (60, 188, False), (61, 60, False)])
def test_a_teacher_and_the_tokenizer_of_another_model(tmp_path, size, room, fits):
    "Some models round their vocabulary up, so less than 128 entries may be over, as in fine-tuning."
    BertConfig(num_hidden_layers=2, **SHAPE | {'vocab_size': room}).save_pretrained(tmp_path)
    profile = replace(get_profile('demo'), teacher=str(tmp_path), tokenizer=str(tmp_path))
    if fits: assert first_weights(profile, SCENARIOS['S0'], size, {}).config.vocab_size == room
    else:
        with pytest.raises(SettingsError, match=f'has {size} entries, the model {room}: .* `tokenizer = "{tmp_path}"`'): first_weights(profile, SCENARIOS['S0'], size, {})


def test_rows_longer_than_the_teacher_can_read_are_told_before_anything_is_cleaned(tmp_path):
    BertConfig(num_hidden_layers=2, **SHAPE).save_pretrained(tmp_path)
    profile = replace(get_profile('demo'), teacher=str(tmp_path), tokenizer='some/bert', max_len=34)
    for scenario in ('S1', 'S4'): assert model_artefact(profile, scenario).key
    profile = replace(profile, max_len=35)
    for scenario in ('S1', 'S4'):
        with pytest.raises(SettingsError, match='has 34 positions, .* max_len = 35 tokens. Lower `max_len` to 34'): model_artefact(profile, scenario)
    assert model_artefact(profile, 'S2').key, 'it is never trained on rows'


def test_a_teacher_in_the_home_folder(tmp_path, monkeypatch):
    random_model(BertConfig(num_hidden_layers=2, **SHAPE), seed=1).save_pretrained(tmp_path/'bert')
    for name in ('HOME', 'USERPROFILE'): monkeypatch.setenv(name, str(tmp_path))
    here, there = (replace(get_profile('demo'), teacher=t, tokenizer='some/bert', max_len=34) for t in ('~/bert', str(tmp_path/'bert')))
    for scenario in ('S0', 'T0', 'S4'): assert model_artefact(here, scenario).key == model_artefact(there, scenario).key
    for scenario in ('S0', 'T0'): assert first_weights(here, SCENARIOS[scenario], 60, {}).config.vocab_size == 60


@pytest.mark.parametrize('marks, kept', [(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'], [0, 2, 3]), (['[CLS]', '[PAD]', '[SEP]', '[UNK]', '[MASK]'], None)])
def test_a_model_from_scratch_knows_where_its_tokenizer_has_pad_and_the_ends(tmp_path, monkeypatch, marks, kept):
    "Fine-tuning refuses a model whose configuration says otherwise. In the key they are where they are not HerBERT's."
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))
    words = Tokenizer(models.WordPiece({t: i for i, t in enumerate([*marks, 'a', 'kot', '##a'])}, unk_token='[UNK]'))
    names = {f'{t[1:-1].lower()}_token': t for t in marks}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(tmp_path/'words')
    artefact = model_artefact(replace(get_profile('demo'), tokenizer=str(tmp_path/'words')), 'S0')
    assert artefact.settings.get('marks') == kept
    _, tokenizer = load_classifier(artefact.build(), 2, seed=0)
    assert len(tokenizer) == 8


def test_a_pooler_is_read_without_asking_a_hub_that_does_not_answer(hub_layout, monkeypatch):
    from huggingface_hub import constants
    folder, _ = hub_layout
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    right, offline = BertModel.from_pretrained, []

    def reads(*args, **kw):
        offline.append(constants.HF_HUB_OFFLINE)
        return right(*args, **kw)
    monkeypatch.setattr(BertModel, 'from_pretrained', reads)
    assert load_masked_lm(folder).bert.pooler is not None and offline == [True]

    def fails(*args, **kw): raise OSError('gone')
    monkeypatch.setattr(BertModel, 'from_pretrained', fails)
    with pytest.raises(SettingsError, match='is no model folder: gone'): load_masked_lm(folder)
