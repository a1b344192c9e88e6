"""A loaded model, and the parts of it from which signals are taken."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from shared.dump.facts import Pooling
from shared.text.tasks import Task
from teacher_dump.engines.transformers.attention import Attention
from teacher_dump.engines.transformers.head import VocabularyHead
from teacher_dump.engines.transformers.layers import Layers


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        task: the task for which it is run.
        head: the vocabulary head of a language model; None for other tasks.
        trunk: the model's layers.
        attention: the model's attention, which can be routed; None if it cannot.
        packs: whether rows may be packed in a batch, one after the other without padding.
        pad_token_id: the id that fills up the rows of a batch. It is the model's own pad token if it has one, because
            some classifiers search for it.
        token_types: whether its inputs include the token types of pairs.
        vocabulary: number of entries of its head (language models) or of its embeddings.
        width: the width of its hidden states.
        layers: the number of its layers, without the embeddings.
        pooling: how embeddings of rows are made, if they are recorded.
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
    pooling: Pooling | None = None

    @property
    def one_row_a_batch(self) -> bool:
        """Whether the model would take padding for text.

        Classifiers that pool the last token find it by the pad token, which this model lacks.
        """
        return own_pad_token(self.model) is None and "SequenceClassification" in type(self.model).__name__

    def takes(self, name: str) -> bool:
        """Whether the batch's tensor of this name is one of the model's inputs."""
        return self.token_types or name != "token_type_ids"


def own_pad_token(model: PreTrainedModel) -> int | None:
    """The pad token of the model's configuration, or None if it is not an id of the vocabulary (some have -1)."""
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad if pad is not None and 0 <= pad < model.get_input_embeddings().weight.shape[0] else None
