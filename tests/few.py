"A few packed sequences over a small vocabulary in which every token is a word, and how a student is trained on them."
from dataclasses import asdict, replace

import numpy as np

from distilherbert.distill import TrainSettings, make_batch
from distilherbert.objective import Vocabulary
from distilherbert.scenario import PRESETS

SIZE = 60  # Entries of the vocabulary
VOCABULARY = Vocabulary(np.arange(SIZE) < 5, np.ones(SIZE, bool), np.zeros(SIZE, bool), mask_id=4)
SETTINGS = TrainSettings(tokens=1000, learning_rate=2e-3, batch_rows=7, micro_rows=16, max_len=12, mask_share=0.4, warmup_share=0.1,
                         weight_decay=0.01, adam_beta2=0.98, clip=1.0, precision='fp32', threads=1, seed=42,
                         objective=asdict(PRESETS['distilbert']), teacher_margin=-99.0)


class Few(list):
    "Sequences as the training loop reads them; the first two are held out too."
    pad_id, vocab_size, mask_id, sep_id, special_ids = 1, SIZE, VOCABULARY.mask_id, 2, range(5)
    ends_word, starts_word = VOCABULARY.ends, VOCABULARY.starts
    tokens = property(lambda self: sum(map(len, self)))
    train, heldout = property(lambda self: self), property(lambda self: Few(self[:2]))
    def token_counts(self, vocab_size): return np.bincount(np.concatenate(self), minlength=vocab_size)


def packed(*texts): return np.concatenate([[0], *([*t, 2] for t in texts)])


def batch_of(sequences, predict='masked', **changes):
    "All sequences as one batch."
    n = len(sequences)
    return make_batch(sequences, np.arange(n), np.zeros(n, int), VOCABULARY, replace(SETTINGS, **changes), 3, 2, predict)
