"""Give a student the parts of its teacher's weights that were selected for it."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.errors import RecipeError
from student_train.students.initialisers.from_teacher.matrices import LinearMap, Matrix, matrices_of, stack_name
from student_train.students.initialisers.from_teacher.selection import Selection
from student_train.students.sizes import Sizes


def teacher_name(name: str, stack: str, layers: tuple[int, ...]) -> str:
    """Return which of the teacher's parameters a student's starts from, by the names of both.

    >>> teacher_name("encoder.layer.1.output.dense.bias", "encoder.layer", (0, 3))
    'encoder.layer.3.output.dense.bias'
    """
    if not name.startswith(f"{stack}."):
        return name
    number, _, inside = name.removeprefix(f"{stack}.").partition(".")
    return f"{stack}.{layers[int(number)]}.{inside}"


def teacher_matrices(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], layers: tuple[int, ...]
) -> dict[str, LinearMap]:
    """Return the path of each matrix in the layers of a student -> the teacher's that it starts from, with the number
    of the student's layer.

    Args:
        layers: the teacher's layers, from 0, that the student's start from.

    Raises:
        RecipeError: if the dump lacks one of the weights.
    """
    stack = stack_name(model)
    found = {}
    for path, matrix in matrices_of(model).items():
        name = teacher_name(path, stack, layers)
        found[path] = LinearMap(matrix, taken(tensors, f"{name}.weight"), tensors.get(f"{name}.bias"))
    return found


def taken(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the teacher's parameter of this name. Raises RecipeError if the dump does not have it."""
    if name not in tensors:
        raise RecipeError(
            f"student.start: the dump has no {name} of the teacher, which the student would start from; dump again "
            "with --teacher-weights all, or choose the student's layers among those that it has."
        )
    return tensors[name]


@torch.no_grad()
def begin(model: PreTrainedModel, tensors: Mapping[str, Tensor], teacher: Sizes, selection: Selection) -> None:
    """Copy the selected parts of the teacher's weights into all parameters of a student of the same type.

    Args:
        tensors: the teacher's weights, by the names of its state dict.
        teacher: its sizes.

    Raises:
        RecipeError: if a weight is missing, has no place in the student, or does not have the shape that follows from
            the teacher's sizes.
    """
    stack, matrices, student = stack_name(model), matrices_of(model), Sizes.of(model.config)
    shared: set[int] = set()
    missing: dict[str, Tensor] = {}
    for name, own in model.state_dict().items():
        source = teacher_name(name, stack, selection.layers)
        if source not in tensors:
            missing[name] = own
            continue
        path, _, last = name.rpartition(".")
        matrix = matrices.get(path)
        whole = tensors[source].to(own.dtype)
        if matrix is None:
            value = _residual_part(whole, own.shape, teacher.width, student.width, selection.residual)
        else:
            value = _matrix_part(whole, matrix, selection, last)
        if value is None or value.shape != own.shape:
            raise RecipeError(
                f"student.start: the teacher's {source} has the shape {list(tensors[source].shape)}, from which "
                f"{list(own.shape)} cannot be taken; choose another student.start, or the teacher's own shape."
            )
        own.copy_(value)
        shared.add(own.data_ptr())
    used = {teacher_name(name, stack, selection.layers) for name in model.state_dict()}
    for name in tensors:
        if name not in used and not name.startswith(f"{stack}."):
            raise RecipeError(
                f"student.start: the teacher's {name} has no place in a student of this shape; choose another "
                "student.hidden_size."
            )
    for name, own in missing.items():
        if own.data_ptr() not in shared:  # a tied weight is stored once
            taken(tensors, teacher_name(name, stack, selection.layers))


def _matrix_part(value: Tensor, matrix: Matrix, selection: Selection, last: str) -> Tensor | None:
    kept = selection.kept[matrix.layer]
    for dimension, axis in enumerate(matrix.axes[: value.ndim]):
        if kept[axis].max() >= value.shape[dimension]:
            return None
        value = value.index_select(dimension, kept[axis])
    if matrix.kind == "query":
        scale = selection.query_scales[matrix.layer].to(value)
        value = value * (scale[:, None] if last == "weight" else scale)
    return value


def _residual_part(value: Tensor, shape: torch.Size, width: int, new_width: int, residual: Tensor) -> Tensor | None:
    """Return a parameter without the dropped residual dimensions: its axes that are as wide as the teacher, where the
    student's are as wide as the student."""
    if value.ndim != len(shape):
        return None
    for dimension, (size, new_size) in enumerate(zip(value.shape, shape, strict=True)):
        if size != new_size:
            if (size, new_size) != (width, new_width):
                return None
            value = value.index_select(dimension, residual)
    return value
