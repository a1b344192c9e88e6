"""The properties that a student must have, and the data from which it may be initialised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shared.dump.facts import Pooling


@dataclass(frozen=True)
class Teacher:
    """The teacher's weights, and what they belong to.

    Attributes:
        config: its configuration, as transformers writes it.
        tensors: its weights, by the names of its state dict.
        importance: of its "heads" [layers, heads], "neurons" [layers, neurons] and "residual" dimensions [width]; None
            if no initialiser needs it.
    """

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    importance: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Needs:
    """The requirements of the training rows, and the teacher's data for initialisers.

    Attributes:
        auto_class: the head, by the name of its Auto class in transformers ("AutoModelForSequenceClassification").
        vocab_size: the number of token ids of a fresh student.
        tokenizer_size: the number of token ids of the tokenizer; every student must have all of them.
        label_names: the names of the classes in order; None for a task without labels.
        pad_token_id: that of the tokenizer, if it has one.
        max_length: the number of tokens of the longest row, which every student must be able to read.
        kept_ids_K: the ids, ascending, that get their own embeddings; None for all ids.
        unknown_id: the tokenizer's unknown token, which replaces the other ids.
        pooling: how the student makes embeddings of rows; None if it makes none.
        word_embeddings_VD, teacher: the teacher's, for initialisers that need them.
    """

    auto_class: str
    vocab_size: int
    tokenizer_size: int
    label_names: tuple[str, ...] | None
    pad_token_id: int | None
    max_length: int
    kept_ids_K: Tensor | None = None
    unknown_id: int | None = None
    pooling: Pooling | None = None
    word_embeddings_VD: Tensor | None = None
    teacher: Teacher | None = None
