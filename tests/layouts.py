"Tokenizers of every layout, trained on a few sentences."
import json

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from distilherbert.pack import train_tokenizer
from distilherbert.wheel import unigram_tokenizer

TEXT = ['Ala ma kota, a kot ma Alę.', 'Kot, kotek i kocur: wszystkie trzy mruczą.', 'Zażółć gęślą jaźń, proszę!', 'Koty-kocięta, mleko…',
        'abracadabra']
NAMES = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')


def trained(model, trainer, pre, size, **options):
    t = Tokenizer(model)
    t.pre_tokenizer = pre
    t.train_from_iterator(TEXT*5, trainer(vocab_size=size, special_tokens=list(NAMES), show_progress=False, **options))
    t.post_processor = processors.TemplateProcessing('<s> $A </s>', '<s> $A </s> $B </s>', [('<s>', 0), ('</s>', 2)])
    return t


def xlmr():
    t = trained(models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace(), 110, unk_token='<unk>')
    pieces = [tuple(p) for p in json.loads(t.to_str())['model']['vocab']]
    return unigram_tokenizer([*pieces[:4], *pieces[5:], ('<mask>', 0.0)])


LAYOUTS = {
    'Unigram': xlmr,
    'WordPiece': lambda: trained(models.WordPiece(unk_token='<unk>'), trainers.WordPieceTrainer, pre_tokenizers.BertPreTokenizer(), 120),
    'BPE </w>': lambda: train_tokenizer(TEXT*5, 120),
    'BPE ▁': lambda: trained(models.BPE(unk_token='<unk>', fuse_unk=True), trainers.BpeTrainer, pre_tokenizers.Metaspace(), 120),
    'BPE bytes': lambda: trained(models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(), 340,
                                 initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
}
