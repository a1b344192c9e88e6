"""A student in evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(student: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode and without gradients; afterwards the student is in its earlier mode."""
    was_training = student.training
    try:
        student.eval()
        with torch.no_grad():
            yield
    finally:
        student.train(was_training)
