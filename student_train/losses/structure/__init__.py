"""Losses on the tags of whole rows, as distributions over paths."""

from student_train.losses.structure.losses import CRFGoldLoss, KBestLoss, StructureLoss

__all__ = ["CRFGoldLoss", "KBestLoss", "StructureLoss"]
