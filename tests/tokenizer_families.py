"""A tiny tokenizer of each family, trained on the spot; each encodes a pair as `<s> A </s> B </s>`."""

from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]
TEXTS = [
    "the quick brown fox jumps over a lazy dog",
    "naïve café über señor cafe\u0301 nai\u0308ve \u00c5ngstro\u0308m",
    "東京 は 日本 の 首都",
    "😀 👨‍👩‍👧 🇫🇷",
    "a b c 1 2 3 . , ! ?",
]


def _byte_level(prefix: bool, trims: bool, is_roberta: bool) -> Tokenizer:
    """As RoBERTa's, or as those of newer models, which trim in a step before the template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=trims)
    _train(backend, trainers.BpeTrainer, vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    if is_roberta:
        ends = ("</s>", 1), ("<s>", 0)
        backend.post_processor = processors.RobertaProcessing(*ends, trim_offsets=trims, add_prefix_space=prefix)
    else:
        byte_level = processors.ByteLevel(trim_offsets=trims, add_prefix_space=prefix)
        backend.post_processor = processors.Sequence([byte_level, backend.post_processor])
    return backend


def _word_piece(is_lower: bool) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=is_lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _train(backend, trainers.WordPieceTrainer, vocab_size=300)


def _unigram(prepend_scheme: Any, composes: bool) -> Tokenizer:
    """As T5's, XLM-R's and ALBERT's: composed characters, single blanks, words marked by a line below."""
    backend = Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    backend.pre_tokenizer = metaspace
    if composes:
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    return _train(backend, trainers.UnigramTrainer, vocab_size=200, unk_token="<unk>")


def _llama(is_legacy: bool) -> Tokenizer:
    """As Llama's: BPE over whole texts with bytes for what it does not know; legacy ones normalise in place."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if is_legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bytes_of_unknown = [f"<0x{byte:02X}>" for byte in range(256)]
    return _train(backend, trainers.BpeTrainer, vocab_size=300, special_tokens=SPECIAL + bytes_of_unknown)


def _train(backend: Tokenizer, trainer: Any, **options: Any) -> Tokenizer:
    options = {"special_tokens": SPECIAL, "show_progress": False} | options
    backend.train_from_iterator(3 * TEXTS, trainer(**options))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in SPECIAL[:2]],
    )
    return backend


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": lambda: _word_piece(False),
    "WordPiece, lower case": lambda: _word_piece(True),
    "Unigram": lambda: _unigram("always", True),
    "Unigram, first word only": lambda: _unigram("first", False),
    "Llama": lambda: _llama(False),
    "Llama, legacy": lambda: _llama(True),
} | {
    f"byte-level{', prefix' * prefix}{', trims' * trims}{', RoBERTa' * is_roberta}": (
        lambda prefix=prefix, trims=trims, is_roberta=is_roberta: _byte_level(prefix, trims, is_roberta)
    )
    for prefix in (False, True)
    for trims in (False, True)
    for is_roberta in (False, True)
}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a family, with its special tokens."""
    start, end, pad, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=FAMILIES[family](),
        cls_token=start,
        bos_token=start,
        sep_token=end,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
    )
