"""A student that is looked at and not trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(student: nn.Module) -> Iterator[None]:
    """A block without gradients and dropout, after which the student is in the mode that it was in."""
    was_training = student.training
    try:
        student.eval()
        with torch.no_grad():
            yield
    finally:
        student.train(was_training)
