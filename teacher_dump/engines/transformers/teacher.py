"""A loaded model and the parts of it that are looked at; run without gradients, dropout or surprises."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from shared.text.tasks import Task
from teacher_dump.engines.transformers.attention import Attention
from teacher_dump.engines.transformers.head import VocabularyHead
from teacher_dump.engines.transformers.layers import Layers


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        task: what it is run for.
        head: the vocabulary head of a language model; None for other tasks.
        trunk: its layers.
        attention: its attention routed through ours; None where that cannot be.
        packs: whether rows may lie one after the other in a batch, without padding.
        pad_token_id: what fills up the rows of a batch: its own where it has one, because some classifiers look for it.
        token_types: whether its inputs say which text of a pair a token belongs to.
        vocabulary: entries of its head (language models) or of its embeddings.
        width: of its hidden states; layers: how many of them follow the embeddings.
    """

    task: Task
    model: PreTrainedModel
    device: torch.device
    dtype: str
    head: VocabularyHead | None
    trunk: Layers
    attention: Attention | None
    packs: bool
    pad_token_id: int
    token_types: bool
    vocabulary: int
    width: int
    layers: int

    @property
    def one_row_a_batch(self) -> bool:
        """Whether padding would be taken for text: classifiers that pool the last token find it by the pad token."""
        return own_pad_token(self.model) is None and "SequenceClassification" in type(self.model).__name__

    def takes(self, name: str) -> bool:
        """Whether a batch's tensor of this name is one of its inputs."""
        return self.token_types or name != "token_type_ids"


def own_pad_token(model: PreTrainedModel) -> int | None:
    """The pad token that the model itself knows of, if it can be read by it at all (some have -1)."""
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad if pad is not None and 0 <= pad < model.get_input_embeddings().weight.shape[0] else None
