"""The table of losses that a [[loss]] section of a recipe can name."""

from typing import Annotated

from shared.registry import Registry, tagged
from student_train.losses.base import Loss
from student_train.losses.embeddings import EmbeddingLoss, SimilarityLoss
from student_train.losses.emd import EMDLoss
from student_train.losses.hidden import HiddenLoss
from student_train.losses.logits import GoldLoss, KLLoss, LogitsMSELoss, TeacherLabelLoss
from student_train.losses.mixup import MixupLoss
from student_train.losses.relations import RelationLoss
from student_train.losses.structure import CRFGoldLoss, KBestLoss, StructureLoss

LOSSES: Registry[type[Loss]] = Registry(
    "loss",
    {
        "kl": KLLoss,
        "logits-mse": LogitsMSELoss,
        "teacher-label": TeacherLabelLoss,
        "gold": GoldLoss,
        "hidden": HiddenLoss,
        "relations": RelationLoss,
        "mixup": MixupLoss,
        "embedding": EmbeddingLoss,
        "similarity": SimilarityLoss,
        "structure": StructureLoss,
        "k-best": KBestLoss,
        "crf-gold": CRFGoldLoss,
        "emd": EMDLoss,
    },
)

LossSpec = Annotated[Loss, tagged(LOSSES, "kind")]
