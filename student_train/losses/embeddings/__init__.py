"""Losses on the embeddings of rows: each row's with the teacher's, and the similarities between the rows of a batch."""

from student_train.losses.embeddings.embedding import EmbeddingLoss
from student_train.losses.embeddings.similarity import SimilarityLoss

__all__ = ["EmbeddingLoss", "SimilarityLoss"]
