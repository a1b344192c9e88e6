"""What the losses on embeddings of rows share: the student's embeddings, and which signal they are compared with.

Shapes: R rows, D width.
"""

from typing import Self

from pydantic import PrivateAttr
from torch import Tensor
from transformers import PreTrainedModel

from shared.dump.facts import Pooling
from shared.dump.signals import EMBEDDING, SignalKey
from shared.models.pooling import pooled, pooling_of
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.outputs import Outputs
from student_train.losses.base import Loss

KEY = SignalKey(EMBEDDING)


class RowsLoss(Loss):
    """A loss on the embeddings of a batch's rows, which are made as the saved student makes them."""

    # The embedding is the output of the student's last layer, so that scores of embeddings mean something.
    trains_head = True

    _pooling: Pooling = PrivateAttr(default=Pooling())

    @property
    def signal(self) -> SignalKey:
        return KEY

    @property
    def student_layers(self) -> tuple[int, ...]:
        return (-1,)

    def for_student(self, source: Source, student: PreTrainedModel) -> Self:
        made = self.model_copy()
        made._pooling = pooling_of(student) or Pooling()
        return made

    def count(self, batch: Batch) -> int:
        return len(batch.rows)

    def student_embeddings(self, outputs: Outputs) -> Tensor:
        """Return the student's embeddings [R, D], with gradients."""
        return pooled(outputs.hidden_TD[-1], outputs.lengths, self._pooling)
