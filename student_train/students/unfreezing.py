"""Choose the trainable parameters of a student: its head, and groups of parameters below it, unfrozen from the top.

The groups are the embeddings (with everything before the first layer), each layer, and the head (everything outside of
the base model, and its modules above the layers, such as a pooler or a last norm). A weight that the head shares with
the embeddings belongs to the embeddings.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.models.layers import layers_of

# "all", "head", or the number of trainable groups of parameters below the head.
Trainable = str | int


def groups_of(student: PreTrainedModel) -> list[list[nn.Parameter]]:
    """The groups of parameters from the bottom up: embeddings, layers, head."""
    base: nn.Module = student.base_model
    layers = layers_of(student)
    layer_of = {id(value): number for number, layer in enumerate(layers, 1) for value in layer.parameters()}
    groups: list[list[nn.Parameter]] = [[] for _ in range(len(layers) + 2)]
    lowest = {id(value) for value in student.get_input_embeddings().parameters()}
    in_base = {id(value) for value in base.parameters()}
    has_met_layers = False
    for value in student.parameters():
        layer = layer_of.get(id(value))
        has_met_layers = has_met_layers or layer is not None
        if layer is not None:
            groups[layer].append(value)
        elif id(value) in lowest or (id(value) in in_base and not has_met_layers):
            groups[0].append(value)
        else:
            groups[-1].append(value)
    return groups


@contextmanager
def unfrozen(student: PreTrainedModel, trainable: Trainable, freeze_embeddings: bool) -> Iterator[None]:
    """While open, only this part of the student is trainable, and its word embeddings only without `freeze_embeddings`.

    Parameters that a model itself keeps frozen, such as tables of sines, stay frozen.

    Raises:
        RecipeError: if there are fewer groups below the head, or nothing would be trainable.
    """
    groups = groups_of(student)
    below = len(groups) - 1
    count = below if trainable == "all" else 0 if trainable == "head" else int(trainable)
    if count > below:
        raise RecipeError(
            f"trainable = {trainable}: the student has {below} groups below its head (embeddings and layers); give a "
            "smaller number."
        )
    frozen = [value for group in groups[: below - count] for value in group]
    if freeze_embeddings:
        frozen += student.get_input_embeddings().parameters()
    before = [(value, value.requires_grad) for value in student.parameters()]
    try:
        for value in frozen:
            value.requires_grad_(False)
        if not any(value.requires_grad for value in student.parameters()):
            raise RecipeError(f"trainable = {trainable!r}: no parameter of this student is trainable; unfreeze more.")
        yield
    finally:
        for value, was_trainable in before:
            value.requires_grad_(was_trainable)


def gradual(student: PreTrainedModel, freeze_embeddings: bool) -> list[Trainable]:
    """The steps of gradual unfreezing: the head alone, then one more group at each step, until everything is trainable.

    This is the schedule of XtremeDistil (Mukherjee & Awadallah 2020, arXiv 2004.05686, after Howard & Ruder 2018, arXiv
    1801.06146). Steps that would unfreeze nothing new are left out.
    """
    below = len(groups_of(student)) - 1
    found: list[Trainable] = []
    before: set[int] = set()
    for trainable in ("head", *range(1, below + 1)):
        try:
            with unfrozen(student, trainable, freeze_embeddings):
                now = {id(value) for value in student.parameters() if value.requires_grad}
        except RecipeError:
            continue  # the head shares all of its weights with the embeddings
        if now != before:
            found.append(trainable)
        before = now
    return found
