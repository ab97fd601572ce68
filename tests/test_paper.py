"The profile `paper` from end to end: CC-100 over HTTP, teacher, tokenizer and KLEJ from a hub, all of it small and on this machine."
import json
import lzma
from types import SimpleNamespace

import pytest
import torch
from conftest import run_program
from datasets import Dataset
from hub import Hub, Server
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from distilherbert.artefact import read_manifest
from distilherbert.pack import make_tokenizer
from distilherbert.tasks import TASKS
from distilherbert.world import world_documents, world_task

pytestmark = pytest.mark.slow
NAME, LINES = 'allegro/herbert-base-cased', 1500
SMALL = dict(like='paper', text_lines=LINES, max_len=64, tokens=4096, batch_rows=16, micro_rows=16, precision='fp32', dropout=0.0,
             teacher_margin=-10.0, threads=1, task_examples=60, task_epochs=1, task_max_len=64, selection_share=0.2, task_seeds=[42])


def put_teacher(folder, texts):
    "HerBERT's files, twelve thin layers: a pickled state, vocabulary and merges apart."
    (folder/'whole').mkdir()
    make_tokenizer(folder/'whole', 'train', texts, 600, 64)
    whole = json.loads((folder/'whole'/'tokenizer.json').read_text('utf-8'))['model']
    (repo := folder/'models'/NAME).mkdir(parents=True)
    (repo/'vocab.json').write_text(json.dumps(whole['vocab']), 'utf-8')
    (repo/'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{" ".join(m)}\n' for m in whole['merges']), 'utf-8')
    (repo/'tokenizer_config.json').write_text('{"tokenizer_class": "HerbertTokenizer"}')
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(whole['vocab']), hidden_size=16, num_hidden_layers=12, num_attention_heads=2,
                                       intermediate_size=32, max_position_embeddings=66, pad_token_id=1)).eval()
    torch.save(model.state_dict(), repo/'pytorch_model.bin')
    (repo/'config.json').write_text(json.dumps(model.config.to_dict() | {'architectures': None}))
    return model


def put_tasks(folder, tasks):
    "As many examples as the official splits have; the texts are those of the world, over and over."
    for task in tasks:
        (data := folder/'datasets'/'allegro'/task.hub/'data').mkdir(parents=True)
        for split, name, n in zip(('train', 'dev', 'test'), ('train', 'validation', 'test'), task.sizes, strict=True):
            rows = world_task(task.name, split)
            Dataset.from_list([{'target': None} | rows[i % len(rows)] for i in range(n)]).to_parquet(data/f'{name}-00000-of-00001.parquet')


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    "What `distilherbert run S4` makes of such a profile; and what it says when both servers are gone."
    top = tmp_path_factory.mktemp('paper')
    documents = list(world_documents('ccsub', 1500))
    teacher = put_teacher(top, (line for lines in documents for line in lines))
    put_tasks(top, [t for t in TASKS.values() if t.name in ('nkjp-ner', 'polemo2.0-in', 'polemo2.0-out')])
    (file := top/'small.toml').write_text('\n'.join(f'{k} = {json.dumps(v)}' for k, v in SMALL.items()))
    text = ''.join('\n'.join(lines) + '\n\n' for lines in documents)
    cc100 = Server(lzma.compress(text.encode()))
    with Hub(top) as hub, cc100:
        env = {'DISTILHERBERT_RUNS': top/'runs', 'DISTILHERBERT_CC100': cc100.address, 'HF_ENDPOINT': hub.address, 'HF_HOME': top/'cache'}
        first = run_program('distilherbert', 'run', 'S4', '--profile', file, env=env)
    assert first.returncode == 0, first.stdout + first.stderr
    before = {f: f.stat().st_mtime_ns for f in (top/'runs').rglob('*.safetensors')}
    again = run_program('distilherbert', 'run', 'S4', '--profile', file, env=env)
    return SimpleNamespace(runs=top/'runs', teacher=teacher, text=text, again=again, before=before)


def folder_of(found, kind, name):
    folder, = (found.runs/kind).glob(f'{name}-*')
    return folder


def test_the_teacher_is_that_of_the_hub_and_the_student_half_of_it(found):
    ids = torch.tensor([[0, 9, 8, 7, 2]])
    t0, s4 = (AutoModelForMaskedLM.from_pretrained(folder_of(found, 'model', n)).eval() for n in ('T0', 'S4'))
    assert torch.allclose(t0(ids).logits, found.teacher(ids).logits, atol=1e-6) and not torch.equal(s4(ids).logits, t0(ids).logits)
    query = [[layer.attention.self.query.weight for layer in m.bert.encoder.layer] for m in (t0, s4)]
    nearest = [min(range(12), key=lambda i: (w - query[0][i]).norm().item()) for w in query[1]]
    assert nearest == [0, 2, 4, 6, 8, 10], 'five steps later each layer is still next to the one it was cut from'
    tokenizer = AutoTokenizer.from_pretrained(folder_of(found, 'model', 'S4'))
    assert tokenizer('czysty.')['input_ids'][0] == 0 and tokenizer.tokenize('czysty.')[-1] == '.</w>'


def test_text_and_tasks_are_whole_and_the_second_time_needs_neither_server(found):
    assert read_manifest(folder_of(found, 'text', 'cc100'))['counts']['lines'] == LINES < found.text.count('\n')
    dev = [read_manifest(folder_of(found, 'scores', f'S4-{group}-42'))['counts']['dev'] for group in ('nkjp-ner', 'polemo2.0')]
    assert dev == [{'nkjp-ner': 1941}, {'polemo2.0-in': 723, 'polemo2.0-out': 494}]
    assert found.again.returncode == 0, found.again.stderr
    assert found.before and found.before == {f: f.stat().st_mtime_ns for f in found.runs.rglob('*.safetensors')}
