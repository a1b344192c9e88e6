"""A student is in its earlier mode after evaluation, even after an error."""

import pytest
import torch
from torch import nn

from student_train.forward.evaluating import evaluating


@pytest.mark.parametrize("is_training", [True, False])
def test_inside_there_is_neither_dropout_nor_gradient_and_afterwards_all_is_as_it_was(is_training: bool) -> None:
    student = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9)).train(is_training)
    with evaluating(student):
        output = student(torch.ones(1, 4))
        assert torch.equal(output, student[0](torch.ones(1, 4)))
    assert not output.requires_grad
    assert student.training == student[1].training == is_training
    assert torch.is_grad_enabled()


def test_a_student_that_fails_keeps_its_mode() -> None:
    student = nn.Linear(4, 4).train()
    with pytest.raises(RuntimeError), evaluating(student):
        student(torch.ones(1, 5))
    assert student.training
    assert torch.is_grad_enabled()
