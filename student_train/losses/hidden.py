"""The loss on hidden states.

It compares one layer of the student with one layer of the teacher, or the `last` k layers of the student with the last
k layers that the dump has, in the same order; the losses of several layers are summed.

Shapes: T tokens without padding, D width.
"""

from collections.abc import Collection
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.signals import HIDDEN, SignalKey
from shared.errors import RecipeError
from shared.models.probe import FEWEST_TOKENS, probe_inputs
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.evaluating import evaluating
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.forward.teacher_vectors import Compare, RowVectors, Vectors, compared_in_slices, one_of_each_row
from student_train.losses import formulas
from student_train.losses.base import Loss, stored_layers

_COMPARE: dict[str, Compare] = {
    "mse": formulas.hidden_mse,
    "cosine": formulas.hidden_cosine,
    "kl": formulas.hidden_kl,
}


class HiddenLoss(Loss):
    """Hidden states of a student's layer compared with those of a teacher's layer: at "all" tokens, at the "first"
    token of a row, or the "mean" over a row's tokens.

    With `last = k`, the top k hidden states of both models, where the output of the embeddings counts as the lowest:
    Mukherjee et al. 2021, "XtremeDistilTransformers" (arXiv 2106.04563), with `last` = the student's layers + 1. Their
    code uses the first token for classification and all tokens for tagging.

    If the widths differ, a linear map projects the student's states to the teacher's width. It is trained with the
    student and dropped afterwards; each layer has its own, as in their code.
    """

    kind: Literal["hidden"] = "hidden"
    teacher_layer: int | None = Field(default=None, ge=0)
    student_layer: int | None = None
    last: int | None = Field(default=None, ge=1)
    metric: Literal["mse", "cosine", "kl"] = "mse"
    at: Literal["all", "first", "mean"] = "all"

    @model_validator(mode="after")
    def _one_layer_or_the_last(self) -> Self:
        given = [layer is not None for layer in (self.teacher_layer, self.student_layer)]
        if any(given) if self.last is not None else not all(given):
            raise ValueError("give either both teacher_layer and student_layer, or last (the number of layers)")
        return self

    @property
    def label(self) -> str:
        return SignalKey(HIDDEN, self.teacher_layer).name if self.last is None else f"{HIDDEN}.last{self.last}"

    @property
    def signal(self) -> SignalKey | None:
        return None if self.last is not None else SignalKey(HIDDEN, self.teacher_layer)

    @property
    def student_layers(self) -> tuple[int, ...]:
        if self.last is not None:
            return tuple(range(-self.last, 0))
        assert self.student_layer is not None
        return (self.student_layer,)

    def signals(self, available: Collection[SignalKey]) -> tuple[SignalKey, ...]:
        if self.signal is not None:
            return (self.signal,)
        assert self.last is not None
        return tuple(SignalKey(HIDDEN, layer) for layer in stored_layers(available, (HIDDEN,))[-self.last :])

    def check(self, source: Source) -> None:
        super().check(source)
        stored = self.signals(source.signals)
        if self.last is not None and len(stored) < self.last:
            raise RecipeError(
                f"the loss 'hidden' with last = {self.last} needs the teacher's hidden states of {self.last} layers, "
                f"but {source.name} has those of {len(stored)} ({', '.join(map(str, stored)) or 'none'}); dump again "
                "with more of them (--hidden all, or their numbers), or give a smaller number."
            )

    def make_projection(self, source: Source, student: PreTrainedModel, where: str) -> nn.ModuleDict | None:
        """Return a linear map for each layer whose widths differ, by the number of the teacher's layer."""
        widths = _hidden_widths(student)
        made = nn.ModuleDict()
        for key, layer in zip(self.signals(source.signals), self.student_layers, strict=True):
            if not -len(widths) <= layer < len(widths):
                asked = f"student_layer = {layer}" if self.last is None else f"last = {self.last}"
                raise RecipeError(f"{where}.{asked}: the student has layers 0 to {len(widths) - 1}.")
            if widths[layer] != source.widths[key]:
                made[str(key.layer)] = nn.Linear(widths[layer], source.widths[key])
        return made or None

    def count(self, batch: Batch) -> int:
        is_token_BL = batch.is_token_BL
        return int((is_token_BL if self.at == "all" else is_token_BL.any(1)).sum())

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        own = projection if isinstance(projection, nn.ModuleDict) else nn.ModuleDict()
        lengths = [length for length in outputs.lengths if length]
        total = torch.zeros(())
        for key, number in zip(self.signals(targets.vectors), self.student_layers, strict=True):
            student_ND, teacher = outputs.hidden_TD[number], targets.vectors[key]
            compared: Vectors = teacher
            if self.at != "all":
                student_ND = one_of_each_row(student_ND, lengths, self.at)
                compared = RowVectors(teacher, lengths, self.at)
            layer = str(key.layer)
            linear = own[layer] if layer in own else None  # noqa: SIM401
            value = compared_in_slices(student_ND, linear, compared, _COMPARE[self.metric])
            total = total.to(value.device) + value
        return total


def _hidden_widths(student: PreTrainedModel) -> list[int]:
    """Return the widths of the student's hidden states, found with a made-up row."""
    with evaluating(student):
        output = student(**probe_inputs(student, FEWEST_TOKENS), output_hidden_states=True)
    return [states.shape[-1] for states in output.hidden_states]
