"""The two ways in which a student starts from its teacher's weights: whole layers, or selected parts of them."""

from typing import Literal

from transformers import PreTrainedModel

from shared.errors import RecipeError
from student_train.students.initialisers.base import Initialiser
from student_train.students.initialisers.from_teacher.configuration import teacher_configuration
from student_train.students.initialisers.from_teacher.matrices import LinearMap
from student_train.students.initialisers.from_teacher.selection import (
    Scores,
    Selection,
    everything,
    random_scores,
    select,
)
from student_train.students.initialisers.from_teacher.slicing import begin, teacher_matrices
from student_train.students.needs import Needs, Teacher
from student_train.students.sizes import Sizes

By = Literal["random", "importance"]


def begin_whole(model: PreTrainedModel, needs: Needs, initialiser: Initialiser) -> None:
    """Start a student from whole layers of its teacher.

    Raises:
        RecipeError: if its layers have other sizes than the teacher's, or the dump lacks weights of them.
    """
    assert needs.teacher is not None
    teacher, student = _sizes(model, needs.teacher)
    for key, own, theirs in (
        ("hidden_size", student.width, teacher.width),
        ("heads", student.heads, teacher.heads),
        ("intermediate_size", student.neurons, teacher.neurons),
    ):
        if own != theirs:
            raise RecipeError(
                f"student.{key} = {own}: student.start.kind = {initialiser.kind!r} takes whole layers, and the "
                f"teacher's have {theirs}; choose {theirs}, or the kind 'extract'."
            )
    layers = initialiser.teacher_layers(teacher.layers, student.layers)
    begin(model, needs.teacher.tensors, teacher, everything(teacher, layers))


def begin_extracted(model: PreTrainedModel, needs: Needs, initialiser: Initialiser, by: By) -> Selection:
    """Start a student from the parts of its teacher with the highest scores, and return what was selected.

    Raises:
        RecipeError: if the dump lacks weights, or its importance is of a model with other sizes.
    """
    assert needs.teacher is not None
    teacher, student = _sizes(model, needs.teacher)
    layers = tuple(initialiser.teacher_layers(teacher.layers, student.layers))
    scores = random_scores(teacher) if by == "random" else _importance(needs.teacher, teacher)
    maps: list[dict[str, LinearMap]] = [{} for _ in layers]
    for each in teacher_matrices(model, needs.teacher.tensors, layers).values():
        maps[each.matrix.layer][each.matrix.kind] = each
    selection = select(teacher, student, layers, scores, maps)
    begin(model, needs.teacher.tensors, teacher, selection)
    return selection


def _sizes(model: PreTrainedModel, teacher: Teacher) -> tuple[Sizes, Sizes]:
    return Sizes.of(teacher_configuration(teacher.config)), Sizes.of(model.config)


def _importance(teacher: Teacher, sizes: Sizes) -> Scores:
    assert teacher.importance is not None
    shapes = {
        "heads": (sizes.layers, sizes.heads),
        "neurons": (sizes.layers, sizes.neurons),
        "residual": (sizes.width,),
    }
    for name, shape in shapes.items():
        found = teacher.importance.get(name)
        if found is None or tuple(found.shape) != shape:
            what = "missing" if found is None else f"of the shape {list(found.shape)}"
            raise RecipeError(
                f"student.start.by = 'importance': the importance of the teacher's {name} in the dump is {what}, "
                f"but its configuration says {list(shape)}; dump again with --importance, or choose by = 'random'."
            )
    heads_LH, neurons_LF, residual_D = (teacher.importance[name].float() for name in shapes)
    return Scores(heads_LH, neurons_LF, residual_D, sizes_matter=True)
