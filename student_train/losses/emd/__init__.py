"""BERT-EMD: layers of a student learn from all layers of a teacher, as much from each as an optimal transport says."""

from student_train.losses.emd.loss import EMDLoss

__all__ = ["EMDLoss"]
