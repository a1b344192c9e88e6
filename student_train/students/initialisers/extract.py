"""Initialise a student with a part of every matrix of its teacher: Extract Then Distill.

Chen et al. 2021 (arXiv 2104.11928): a student of any smaller depth and width starts from the teacher's own weights, cut
to one set of residual dimensions, and to heads and neurons of each layer; its layers are spread evenly over the
teacher's. The sets are drawn (ETD-Rand, by = "random", from the recipe's training.seed) or are those of the highest
importance (ETD-Impt), which `dump --importance` measures.

Heads keep their size where hidden_size / heads is the teacher's, or where the architecture sets it apart (`head_dim`).
Then whole heads are dropped, and every weight is a slice of the teacher's. Otherwise dimensions within heads are
dropped too, and the queries are scaled so that the scores of attention vary as with all dimensions of the head.
"""

from typing import ClassVar, Literal

from transformers import PreTrainedModel

from student_train.students.initialisers.base import Initialiser
from student_train.students.initialisers.from_teacher import begin_extracted
from student_train.students.needs import Needs


class Extract(Initialiser):
    """The teacher's weights, without the dimensions, heads, neurons and layers that the student does not have."""

    part = "weights"
    needs_teacher: ClassVar[bool] = True

    kind: Literal["extract"] = "extract"
    by: Literal["random", "importance"]

    @property
    def needs_importance(self) -> bool:
        return self.by == "importance"

    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        begin_extracted(model, needs, self, self.by)
