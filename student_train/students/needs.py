"""What a student must fit, and what it may begin from."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """What the rows to learn from ask of a student, and what a teacher's dump has for it to begin from.

    Attributes:
        auto_class: the head, by the name of its Auto class in transformers ("AutoModelForSequenceClassification").
        vocab_size: token ids that a fresh student knows.
        tokenizer_size: token ids that the tokenizer gives, all of which any student must know.
        label_names: the classes in order; None for a task without.
        pad_token_id: the tokenizer's, where it has one.
        max_length: tokens of the longest row, which any student must be able to read.
        kept_ids_K: the ids, ascending, that get an embedding of their own; None for all of them.
        unknown_id: the tokenizer's unknown token, as which the other ids are read.
        word_embeddings_VD: the teacher's, for initialisers that ask for them.
    """

    auto_class: str
    vocab_size: int
    tokenizer_size: int
    label_names: tuple[str, ...] | None
    pad_token_id: int | None
    max_length: int
    kept_ids_K: Tensor | None = None
    unknown_id: int | None = None
    word_embeddings_VD: Tensor | None = None
