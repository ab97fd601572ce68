"The profile `paper` from end to end: CC-100 over HTTP, teacher, tokenizer and KLEJ from a hub, all of it small and on this machine."
import json
import lzma

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


def test_the_profile_paper_from_text_to_scores(tmp_path):
    "And what `distilherbert run S4` does when both servers are gone."
    documents = list(world_documents('ccsub', 1500))
    teacher = put_teacher(tmp_path, (line for lines in documents for line in lines))
    put_tasks(tmp_path, [t for t in TASKS.values() if t.name in ('nkjp-ner', 'polemo2.0-in', 'polemo2.0-out')])
    (file := tmp_path/'small.toml').write_text('\n'.join(f'{k} = {json.dumps(v)}' for k, v in SMALL.items()))
    text, runs = ''.join('\n'.join(lines) + '\n\n' for lines in documents), tmp_path/'runs'
    with Hub(tmp_path) as hub, Server(lzma.compress(text.encode())) as cc100:
        env = {'DISTILHERBERT_RUNS': runs, 'DISTILHERBERT_CC100': cc100.address, 'HF_ENDPOINT': hub.address, 'HF_HOME': tmp_path/'cache'}
        first = run_program('distilherbert', 'run', 'S4', '--profile', file, env=env)
    assert first.returncode == 0, first.stdout + first.stderr
    before = {f: f.stat().st_mtime_ns for f in runs.rglob('*.safetensors')}
    again = run_program('distilherbert', 'run', 'S4', '--profile', file, env=env)
    assert again.returncode == 0, again.stderr
    assert before and before == {f: f.stat().st_mtime_ns for f in runs.rglob('*.safetensors')}

    def made(name): return next(runs.glob(f'{name}-*'))
    assert read_manifest(made('text/cc100'))['counts']['lines'] == LINES < text.count('\n')
    dev = [read_manifest(made(f'scores/S4-{group}-42'))['counts']['dev'] for group in ('nkjp-ner', 'polemo2.0')]
    assert dev == [{'nkjp-ner': 1941}, {'polemo2.0-in': 723, 'polemo2.0-out': 494}], 'the whole dev splits'
    ids = torch.tensor([[0, 9, 8, 7, 2]])
    t0, s4 = (AutoModelForMaskedLM.from_pretrained(made(f'model/{n}')).eval() for n in ('T0', 'S4'))
    assert torch.allclose(t0(ids).logits, teacher(ids).logits, atol=1e-6) and not torch.equal(s4(ids).logits, t0(ids).logits)
    query = [[layer.attention.self.query.weight for layer in m.bert.encoder.layer] for m in (t0, s4)]
    nearest = [min(range(12), key=lambda i: (w - query[0][i]).norm().item()) for w in query[1]]
    assert nearest == [0, 2, 4, 6, 8, 10], 'five steps later each layer is still next to the one it was cut from'
    assert AutoTokenizer.from_pretrained(made('model/S4')).tokenize('czysty.')[-1] == '.</w>'
