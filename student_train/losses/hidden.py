"""Losses on what happens between embeddings and head: hidden states, and what attention works with.

Each compares one layer of the student's with one of the teacher's, or the `last` k layers with the last k that the dump
has, lowest with lowest: the sum over them.

Shapes: T tokens without padding, D width.
"""

from collections.abc import Collection
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.errors import RecipeError
from student_train.data.sources import Source
from student_train.forward.attention import PARTS, Captured, captured_on_probe
from student_train.forward.teacher_vectors import Compare, RowVectors, Vectors, compared_in_slices, one_of_each_row
from student_train.losses import formulas
from student_train.losses.base import Heard, Loss, Said
from student_train.losses.relation_formulas import Metric, Pair, parts_of, refuse_misfit, relations_loss

HIDDEN = "hidden"
_COMPARE: dict[str, Compare] = {
    "mse": formulas.hidden_mse,
    "cosine": formulas.hidden_cosine,
    "kl": formulas.hidden_kl,
}


class HiddenLoss(Loss):
    """Hidden states of a student's layer against those of a teacher's: at every token ("all"), at a row's "first" one,
    or the "mean" over a row's tokens.

    With `last = k`, the k topmost of both sides, the embeddings' output being the lowest: Mukherjee et al. 2021,
    "XtremeDistilTransformers" (arXiv 2106.04563), with `last` one more than the student's layers; their code has the
    first token for classification and all of them for tagging.

    Where widths differ, a linear map, learnt along and dropped afterwards, takes the student's to the teacher's; each
    layer has its own, as in their code.
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
        return f"{HIDDEN}.{self.teacher_layer}" if self.last is None else f"{HIDDEN}.last{self.last}"

    @property
    def signal(self) -> str | None:
        return None if self.last is not None else f"{HIDDEN}.{self.teacher_layer}"

    @property
    def student_layers(self) -> tuple[int, ...]:
        if self.last is not None:
            return tuple(range(-self.last, 0))
        assert self.student_layer is not None
        return (self.student_layer,)

    def signals(self, available: Collection[str]) -> tuple[str, ...]:
        if self.signal is not None:
            return (self.signal,)
        assert self.last is not None
        return tuple(f"{HIDDEN}.{layer}" for layer in _stored(available, (HIDDEN,))[-self.last :])

    def check(self, source: Source) -> None:
        super().check(source)
        stored = self.signals(source.signals)
        if self.last is not None and len(stored) < self.last:
            raise RecipeError(
                f"the loss 'hidden' with last = {self.last} needs the teacher's hidden states of {self.last} layers, "
                f"and {source.name} has those of {len(stored)} ({', '.join(stored) or 'none'}); dump again with more "
                "of them (--hidden all, or their numbers), or ask for fewer."
            )

    def count(self, batch: dict[str, Any]) -> int:
        is_token_BL = batch["attention_mask"].bool()
        return int((is_token_BL if self.at == "all" else is_token_BL.any(1)).sum())

    def value(self, said: Said, heard: Heard, projection: nn.Module | None) -> Tensor:
        own = projection if isinstance(projection, nn.ModuleDict) else nn.ModuleDict()
        lengths = [length for length in said.lengths if length]
        total = torch.zeros(())
        for signal, number in zip(self.signals(heard.vectors), self.student_layers, strict=True):
            student_ND, teacher = said.hidden_TD[number], heard.vectors[signal]
            compared: Vectors = teacher
            if self.at != "all":
                student_ND = one_of_each_row(student_ND, lengths, self.at)
                compared = RowVectors(teacher, lengths, self.at)
            layer = signal.partition(".")[2]
            linear = own[layer] if layer in own else None  # noqa: SIM401
            value = compared_in_slices(student_ND, linear, compared, _COMPARE[self.metric])
            total = total.to(value.device) + value
        return total


class RelationLoss(Loss):
    """Attention relations of a student's layer against those of a teacher's (MiniLMv2): summed over the pairs.

    "queries", "keys" and "values" are each related to themselves; "attention" relates queries to keys (MiniLM), which
    is the models' own attention where relation heads are the heads of both. `own_heads` says that they shall be, and
    refuses models whose numbers of heads differ.

    `last = k` with pairs = ["attention"], own_heads = true and metric = "mse" is the attention loss of Mukherjee et al.
    2021, "XtremeDistilTransformers" (arXiv 2106.04563).
    """

    kind: Literal["relations"] = "relations"
    teacher_layer: int | None = Field(default=None, ge=1, description="by default the topmost that the dump has")
    student_layer: int | None = Field(default=None, description="by default the topmost")
    last: int | None = Field(default=None, ge=1)
    relation_heads: int | None = Field(default=None, ge=1, description="by default 12, or fewer where 12 do not divide")
    own_heads: bool = False
    pairs: tuple[Pair, ...] = Field(default=("queries", "keys", "values"), min_length=1)
    metric: Metric = "kl"

    @model_validator(mode="after")
    def _keys_that_agree(self) -> Self:
        if self.last is not None and (self.teacher_layer is not None or self.student_layer is not None):
            raise ValueError("give either teacher_layer and student_layer, or last (the number of layers)")
        if self.own_heads and self.relation_heads is not None:
            raise ValueError(f"own_heads leaves nothing to choose; leave relation_heads = {self.relation_heads} out")
        return self

    @property
    def signal(self) -> None:
        return None

    @property
    def attention_layers(self) -> tuple[int, ...]:
        if self.last is not None:
            return tuple(range(-self.last, 0))
        return (-1 if self.student_layer is None else self.student_layer,)

    def signals(self, available: Collection[str]) -> tuple[str, ...]:
        layers = self._teacher_layers(available)
        return tuple(f"{part}.{layer}" for layer in layers for part in parts_of(self.pairs))

    def check(self, source: Source) -> None:
        layers = self._teacher_layers(source.signals)
        if self.last is not None and layers and len(layers) < self.last:
            raise RecipeError(
                f"the loss 'relations' with last = {self.last} needs those of {self.last} of the teacher's layers, and "
                f"{source.name} has those of {len(layers)} ({', '.join(map(str, layers))}); dump again with more of "
                "them (--relations all, or their numbers), or ask for fewer."
            )
        wanted = self.signals(source.signals) or tuple(f"{part}.N" for part in parts_of(self.pairs))
        missing = [name for name in wanted if name not in source.signals]
        if missing:
            have = ", ".join(source.signals) or "only gold labels (no dump is named)"
            raise RecipeError(
                f"the loss 'relations' needs {', '.join(missing)}, which {source.name} lacks; it has {have}. Dump "
                "again with --relations, name the teacher_layer that is there, or leave the loss out."
            )

    def check_student(self, source: Source, student: nn.Module) -> None:
        for number, layer in zip(self._teacher_layers(source.signals), self.attention_layers, strict=True):
            captured = captured_on_probe(student, layer)
            heads = self._checked_own_heads(source, captured) if self.own_heads else self.relation_heads
            teacher_widths = {part: source.widths[f"{part}.{number}"] for part in parts_of(self.pairs)}
            refuse_misfit(self.pairs, heads, teacher_widths, captured.widths)

    def count(self, batch: dict[str, Any]) -> int:
        return int(batch["attention_mask"].sum())

    def value(self, said: Said, heard: Heard, projection: nn.Module | None) -> Tensor:
        total = torch.zeros(())
        for number, layer in zip(self._teacher_layers(heard.vectors), self.attention_layers, strict=True):
            student = said.attended[layer]
            teacher = {part: heard.vectors[f"{part}.{number}"] for part in parts_of(self.pairs)}
            heads = student.heads if self.own_heads else self.relation_heads
            value = relations_loss(student, teacher, self.pairs, heads, self.metric)
            total = total.to(value.device) + value
        return total

    def _teacher_layers(self, available: Collection[str]) -> tuple[int, ...]:
        if self.teacher_layer is not None:
            return (self.teacher_layer,)
        return tuple(_stored(available, PARTS)[-(self.last or 1) :])

    def _checked_own_heads(self, source: Source, student: Captured) -> int:
        if source.attention_heads is None:
            raise RecipeError(
                f"the loss 'relations' with own_heads: {source.name} does not say how many heads its teacher has; dump "
                "again, or give relation_heads."
            )
        if source.attention_heads != student.heads:
            raise RecipeError(
                f"the loss 'relations' with own_heads: the student has {student.heads} heads and the teacher "
                f"{source.attention_heads}; give the student as many, or name relation_heads instead."
            )
        return student.heads


def make_projections(specs: tuple[Loss, ...], source: Source, student: nn.Module) -> nn.ModuleDict:
    """A linear map for each layer of a hidden loss whose widths differ, by the loss's number and the teacher's layer.

    Raises:
        RecipeError: for a layer that the student does not have.
    """
    projections = nn.ModuleDict()
    wanted = {index: spec for index, spec in enumerate(specs) if isinstance(spec, HiddenLoss)}
    if not wanted:
        return projections
    widths = _hidden_widths(student)
    for index, spec in wanted.items():
        made = nn.ModuleDict()
        for signal, layer in zip(spec.signals(source.signals), spec.student_layers, strict=True):
            if not -len(widths) <= layer < len(widths):
                asked = f"student_layer = {layer}" if spec.last is None else f"last = {spec.last}"
                raise RecipeError(f"loss.{index}.{asked}: the student has layers 0 to {len(widths) - 1}.")
            if widths[layer] != source.widths[signal]:
                made[signal.partition(".")[2]] = nn.Linear(widths[layer], source.widths[signal])
        if made:
            projections[str(index)] = made
    return projections


def _hidden_widths(student: nn.Module) -> list[int]:
    """Widths of the student's hidden states, seen on a made-up row."""
    probe = torch.zeros((1, 2), dtype=torch.long, device=next(student.parameters()).device)
    was_training = student.training
    with torch.no_grad():
        student.eval()
        output = student(input_ids=probe, attention_mask=torch.ones_like(probe), output_hidden_states=True)
        student.train(was_training)
    return [states.shape[-1] for states in output.hidden_states]


def _stored(available: Collection[str], parts: Collection[str]) -> list[int]:
    """The teacher's layers of which there are such signals, lowest first."""
    named = (name.partition(".") for name in available)
    return sorted({int(layer) for part, _, layer in named if part in parts})
