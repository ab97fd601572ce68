"Students, models from outside, and trimmed vocabularies: layers, folders in the hub's layout, exact tokenizers, and what is refused."
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import damage
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, NAMES, TEXT
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from distilherbert import student as S
from distilherbert.klej import load_classifier
from distilherbert.pack import load_tokenizer, train_tokenizer, write_tokenizer
from distilherbert.scenario import SettingsError
from distilherbert.tasks import TaskError
from distilherbert.wheel import unigram_tokenizer

SHAPE = dict(vocab_size=60, hidden_size=16, num_attention_heads=2, intermediate_size=32, max_position_embeddings=34)
IDS = torch.tensor([[0, 9, 8, 2]])


def test_random_weights_are_those_of_transformers():
    config = BertConfig(num_hidden_layers=2, initializer_range=0.05, **SHAPE)
    torch.manual_seed(5)
    reference, state = BertForMaskedLM(config), torch.get_rng_state()
    mine = S.random_model(config, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), reference.state_dict().values()))
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture
def hub_layout(tmp_path):
    "A folder as HerBERT's on the hub: a pickled state with pooler, own decoder matrix and a foreign head; no architecture named."
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(num_hidden_layers=2, **SHAPE)).eval()
    state = {n: p.clone() for n, p in model.state_dict().items() if 'seq_relationship' not in n}
    state |= {'cls.sso.sso_relationship.weight': torch.zeros(2, 16), 'cls.sso.sso_relationship.bias': torch.zeros(2)}
    torch.save(state, tmp_path/'pytorch_model.bin')
    config = {k: v for k, v in model.config.to_dict().items() if k not in ('architectures', 'transformers_version', 'dtype')}
    (tmp_path/'config.json').write_text(json.dumps(config))
    return tmp_path, model


def test_herberts_layout_is_read_with_its_pooler_and_without_the_hub(hub_layout, tmp_path, monkeypatch):
    (folder, source), read, offline = hub_layout, BertModel.from_pretrained, []
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr(BertModel, 'from_pretrained', lambda *args, **kw: offline.append(constants.HF_HUB_OFFLINE) or read(*args, **kw))
    loaded, head_is_new = S.load_masked_lm(folder)
    assert not head_is_new and torch.allclose(loaded(IDS).logits, source(IDS).prediction_logits, atol=1e-6) and offline == [True]
    student = S.truncate(loaded)
    S.save_model(student, tmp_path/'student')
    assert (tmp_path/'student'/'model.safetensors').stat().st_mode & 0o777 == 0o644
    for model in (student, S.load_masked_lm(tmp_path/'student')[0]):
        pooler = model.base_model.pooler
        assert torch.equal(pooler.dense.weight, source.bert.pooler.dense.weight) and not pooler.dense.weight.requires_grad


def test_a_new_head_is_that_of_its_seed_and_is_reported(tmp_path):
    S.save_model(BertModel(BertConfig(num_hidden_layers=2, initializer_range=0.07, **SHAPE), add_pooling_layer=False), tmp_path)
    state = torch.get_rng_state()
    models = [S.load_masked_lm(tmp_path, head_seed=seed) for seed in (1, 1, 2)]
    one, again, other = (m.cls.predictions.transform.dense.weight for m, head_is_new in models if head_is_new)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, again) and not torch.equal(one, other) and 0.06 < one.std() < 0.08
    assert models[0][0].get_output_embeddings().bias is models[0][0].cls.predictions.bias
    S.save_model(models[0][0], tmp_path/'whole')
    assert not S.load_masked_lm(tmp_path/'whole')[1], 'now it has a head'


# Trimming: for every kind of tokenizer, a text whose pieces are all kept has the same pieces

WORDS = sorted({w for line in TEXT for w in line.split()})


@pytest.fixture(scope='module', params=LAYOUTS)
def full(request, tmp_path_factory):
    "A tokenizer of each kind, and a folder with it and one for its trimmed copies."
    t, source, work = LAYOUTS[request.param](), tmp_path_factory.mktemp('full'), tmp_path_factory.mktemp('trimmed')
    names = dict(zip(('cls_token', 'pad_token', 'sep_token', 'unk_token', 'mask_token'), NAMES, strict=True))
    FastTokenizer(tokenizer_object=t, **names).save_pretrained(source)
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
    S.save_model(S.random_model(BertConfig(num_hidden_layers=2, **SHAPE, pad_token_id=1, bos_token_id=0, eos_token_id=2), 0), folder)
    write_tokenizer(folder, t, 32)
    return folder


def test_code_of_a_folder_is_neither_run_nor_asked_about_and_without_a_network_one_reads_what_to_do(whole, tmp_path, run):
    folder, types = Path(shutil.copytree(whole, tmp_path/'model')), {'AutoConfig': 'own.C', 'AutoTokenizer': ['own.C', 'own.C']}
    (folder/'own.py').write_text(f'open({str(tmp_path/"ran")!r}, "w")\nclass C: pass')
    damage(folder, 'config.json', {'model_type': 'own', 'auto_map': types})
    damage(folder, 'tokenizer_config.json', {'tokenizer_class': 'Own', 'auto_map': types})
    (tmp_path/'program.py').write_text(f"""from distilherbert import pack, student
for f in (student.load_config, student.load_masked_lm, pack.load_tokenizer, lambda d: pack.make_tokenizer(d, d),
          lambda d: student.trim_tokenizer(d, d, [], 9), lambda d: student.load_masked_lm("allegro/herbert-base-cased")):
    try: f({str(folder)!r})
    except ValueError as e: print(e)""")
    done = run('sh', '-c', 'yes | "$0" "$1"', sys.executable, tmp_path/'program.py',
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
    (FULL, pickle.dumps(Evil()), f'{FULL} is damaged'), ('pytorch_model.bin', LFS, 'pytorch_model.bin is a pointer of Git LFS'),
    ('pytorch_model.bin', pickle.dumps(Evil(), 2), 'pytorch_model.bin is damaged, or holds more than weights'),
    ('model.safetensors.index.json', b'{}', 'index.json is damaged'), ('config.json', LFS, 'config.json is a pointer'),
    *((f, b'\xef\xbb\xbf{}', f'{f} begins with a byte-order mark.*sed -i') for f in ('config.json', 'tokenizer.json')),
    ('config.json', b'[1]', 'config.json is damaged'), ('config.json', b'['*100_000, 'config.json is damaged'),
    ('tokenizer.json', LFS, 'tokenizer.json is a pointer'), ('tokenizer.json', b'{}', 'tokenizer.json is damaged'),
    ('tokenizer_config.json', b'{"tokenizer_class": 5}', 'tokenizer_config.json'),
    *(('config.json', {name: value}, rf'config.json.*\b{name}\b') for name, value in (
        ('hidden_size', '16'), ('hidden_act', 'gelu_pro'), ('num_attention_heads', 0), ('num_attention_heads', 3), ('is_decoder', True),
        ('num_hidden_layers', 0), ('num_hidden_layers', 100_000), ('_attn_implementation', 'someone/kernel'))),
    ('config.json', {'id2label': 'x'}, 'config.json: '), ('config.json', {'intermediate_size': 64}, 'its weights have other shapes'),
    ('config.json', {'num_hidden_layers': 1}, 'its weights have bert.encoder.layer.1'),
    ('config.json', {'num_hidden_layers': 3}, 'weights'),
    ('config.json', {'model_type': 'distilbert'}, 'is a distilbert model; supported families are bert')])
def test_a_folder_that_cannot_be_read_is_one_sentence_with_file_and_cause(whole, tmp_path, capsys, file, change, words):
    folder = Path(shutil.copytree(whole, tmp_path/'model'))
    if file.endswith(('.bin', '.index.json')): (folder/FULL).unlink()
    damage(folder, file, change)
    loaders = [lambda: load_classifier(folder, 2, 1), *[lambda: S.load_masked_lm(folder)]*(not file.startswith('tokenizer'))]
    for load in loaders:
        with pytest.raises((SettingsError, TaskError), match=words) as raised: load()
        assert str(folder) in str(raised.value) and '\n' not in str(raised.value)
    assert 'run' not in capsys.readouterr().out.split()


def test_another_kind_of_vocabulary_is_refused(tmp_path):
    words = Tokenizer(models.WordLevel({n: i for i, n in enumerate(NAMES)}, '<unk>'))
    FastTokenizer(tokenizer_object=words, unk_token='<unk>').save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match='A WordLevel vocabulary cannot be'): S.trim_tokenizer(tmp_path, tmp_path, np.ones(5, int), 5)
