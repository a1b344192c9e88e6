"""A classifier with random weights, for benchmarks in which the teacher must take almost no time."""

from pathlib import Path


def make_teacher(path: Path, words: int, layers: int, longest: int) -> None:
    """Make a teacher with two heads of 32, four labels, and a tokenizer of whole words, w0 to w{words - 1}."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *(f"w{i}" for i in range(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=longest,
        num_labels=4,
        pad_token_id=0,
    )
    BertForSequenceClassification(config).save_pretrained(path)
