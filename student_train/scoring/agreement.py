"""Agreement of a model with the teacher of a dump: equal most probable classes, and the divergence of distributions.

Shapes: N recorded positions, V vocabulary or classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.dump.codecs import Targets
from shared.dump.signals import DISTRIBUTION, SignalKey
from student_train.data.batches import in_order
from student_train.data.sources import Source
from student_train.forward.head import plain_head
from student_train.forward.observe import outputs_of, targets_of
from student_train.forward.outputs import Outputs
from student_train.losses.logits import KLLoss
from student_train.scoring.predictions import EVAL_ROWS


@dataclass(frozen=True)
class Agreement:
    """Sums over recorded positions, and their means.

    Attributes:
        agreed: number of positions where model and teacher have the same most probable class.
        positions: number of all positions.
        nats: sum of KL(teacher || model).
    """

    agreed: int = 0
    positions: int = 0
    nats: float = 0.0

    @property
    def share(self) -> float:
        """The share of positions where both have the same most probable class."""
        return self.agreed / max(self.positions, 1)

    @property
    def divergence(self) -> float:
        """The mean KL(teacher || model) in nats."""
        return self.nats / max(self.positions, 1)

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(self.agreed + other.agreed, self.positions + other.positions, self.nats + other.nats)


def is_agreed(logits_NV: Tensor, teacher: Targets) -> Tensor:
    """Whether the most probable class of the logits is that of the teacher's distributions [N, V], as bool [N]."""
    return logits_NV.argmax(-1) == teacher.argmax()


@torch.inference_mode()
def agreement_of(model: PreTrainedModel, source: Source, with_divergence: bool = True) -> Agreement:
    """Return the agreement of a model, in evaluation mode, over all rows of a source with distributions."""
    assert source.distribution is not None
    # For targets of sampled ids alone, the value of the loss is not a divergence.
    measure = KLLoss(tail="class" if source.distribution.has_exact_ids else None)
    head = plain_head(model) if source.task.predicts_vocabulary else None
    columns = source.columns_of({SignalKey(DISTRIBUTION)})
    found = Agreement()
    for host_batch in in_order(source, columns, EVAL_ROWS, by_length=True):
        batch = host_batch.to(model.device)
        targets = targets_of(batch, source)
        for part, logits_NV in outputs_of(model, batch, source, False, head).parts():
            compared, count = targets.part(part), len(logits_NV)
            assert compared.distributions is not None
            agreed = int(is_agreed(logits_NV, compared.distributions.resized(logits_NV.shape[-1])).sum())
            value = measure.value(Outputs(logits_NV, ()), compared, None) if with_divergence else 0.0
            found += Agreement(agreed, count, float(value) * count)
    return found
