"Random models of every family of `student.FAMILIES`, a few packed sequences for them, in which every token is a word, and settings."
from dataclasses import asdict, replace

import numpy as np
import torch
from transformers import AutoConfig

from distilherbert import student as S
from distilherbert.distill import TrainSettings, make_batch
from distilherbert.objective import Vocabulary
from distilherbert.scenario import PRESETS
from distilherbert.wheel import ROBERTA

ALL, FORMS = [*S.FAMILIES], ['bert', 'roberta', 'electra', 'modernbert']  # XLM-R and CamemBERT are RoBERTa's classes with other names
SIZE = 60  # Entries of the vocabulary
VOCABULARY = Vocabulary(np.arange(SIZE) < 5, np.ones(SIZE, bool), np.zeros(SIZE, bool), mask_id=4)
SETTINGS = TrainSettings(tokens=300, learning_rate=2e-3, batch_rows=4, micro_rows=4, max_len=24, mask_share=0.4, warmup_share=0.1,
                         weight_decay=0.01, adam_beta2=0.98, clip=1.0, precision='fp32', threads=1, seed=42, evaluations=2,
                         objective=asdict(PRESETS['distilbert']), teacher_margin=-99.0)
SHAPE = dict(vocab_size=60, hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32, max_position_embeddings=34,
             initializer_range=0.3, pad_token_id=1, bos_token_id=0, eos_token_id=2)
MODERN = dict(cls_token_id=0, sep_token_id=2, local_attention=4, global_attn_every_n_layers=3, global_rope_theta=900.0,
              local_rope_theta=30.0)


def config_of(form, **changes):
    own = {'modernbert': MODERN, 'electra': {'embedding_size': 8}, **dict.fromkeys(ROBERTA, {'type_vocab_size': 1})}
    return AutoConfig.for_model(form, **SHAPE | own.get(form, {}) | changes)


def model_of(form, **changes):
    "A random model in which every parameter matters: biases and norms are random too."
    model = S.random_model(config_of(form, **changes), 1).eval()
    torch.manual_seed(2)
    for p in model.parameters(): p.data += 0.1*torch.randn_like(p)
    return model


def padded(*lengths):
    "Ids `(B, T)` and where they are tokens."
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.where(real, torch.randint(5, 60, real.shape, generator=torch.Generator().manual_seed(3)), 1), real


class Few(list):
    "Sequences as the training loop reads them; the first two are held out too."
    pad_id, vocab_size, mask_id, sep_id, special_ids = 1, SIZE, VOCABULARY.mask_id, 2, range(5)
    ends_word, starts_word = VOCABULARY.ends, VOCABULARY.starts
    tokens = property(lambda self: sum(map(len, self)))
    train, heldout = property(lambda self: self), property(lambda self: Few(self[:2]))
    def token_counts(self, vocab_size): return np.bincount(np.concatenate(self), minlength=vocab_size)


def packed(*texts): return np.concatenate([[0], *([*t, 2] for t in texts)])


TEXTS = [np.random.default_rng(i).integers(5, SIZE, n) for i, n in enumerate((6, 8, 5))]
SEQUENCES = Few([packed(*TEXTS), packed(TEXTS[0]), packed(TEXTS[1], TEXTS[2]), packed(TEXTS[2])])


def batch_of(sequences=SEQUENCES, **changes):
    "All sequences as the one micro-batch of a step."
    n = len(sequences)
    micro, = make_batch(sequences, np.arange(n), np.zeros(n, int), VOCABULARY, replace(SETTINGS, **changes), 3, 2).parts
    return micro
