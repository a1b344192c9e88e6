"""The loss on hidden states.

It compares one layer of the student with one layer of the teacher, the layers that a `map` names, or the `last` k
layers of the student with the last k layers that the dump has, in the same order; the losses of several layers are
summed.

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
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.forward.teacher_vectors import Compare, RowVectors, Vectors, compared_in_slices, one_of_each_row
from student_train.forward.widths import hidden_widths
from student_train.losses import formulas
from student_train.losses.base import Loss, stored_layers
from student_train.losses.layer_maps import LayerMap, LayerPair, fitted_map, pairs_of, refuse_missing

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

    With `map`, each layer of the student imitates the teacher's layer that the map names (see `layer_maps`). The output
    of the embeddings has no place in it; `embeddings = true` compares that with the teacher's, hidden state 0, as well
    (Jiao et al. 2020, "TinyBERT", arXiv 1909.10351, equation 9).

    If the widths differ, a linear map projects the student's states to the teacher's width. It is trained with the
    student and dropped afterwards. Each layer has its own, as in the code of XtremeDistilTransformers, or all share one
    (`shared_projection`), as in TinyBERT's.
    """

    kind: Literal["hidden"] = "hidden"
    teacher_layer: int | None = Field(default=None, ge=0)
    student_layer: int | None = None
    last: int | None = Field(default=None, ge=1)
    map: LayerMap | None = None
    embeddings: bool = False
    shared_projection: bool = False
    metric: Literal["mse", "cosine", "kl"] = "mse"
    at: Literal["all", "first", "mean"] = "all"

    @model_validator(mode="after")
    def _one_choice_of_layers(self) -> Self:
        one_layer = [layer is not None for layer in (self.teacher_layer, self.student_layer)]
        if sum((any(one_layer), self.last is not None, self.map is not None)) != 1 or any(one_layer) != all(one_layer):
            raise ValueError(
                "give either both teacher_layer and student_layer, or last (the number of layers), or map (a layer of "
                "the teacher for each of the student's)"
            )
        if self.embeddings and self.map is None:
            raise ValueError("embeddings = true stands beside a map; for the embeddings alone give both layers as 0")
        return self

    @property
    def label(self) -> str:
        if self.map is not None:
            return f"{HIDDEN}.map"
        return SignalKey(HIDDEN, self.teacher_layer).name if self.last is None else f"{HIDDEN}.last{self.last}"

    @property
    def signal(self) -> SignalKey | None:
        return None if self.teacher_layer is None else SignalKey(HIDDEN, self.teacher_layer)

    @property
    def student_layers(self) -> tuple[int, ...]:
        if self.last is not None:
            return tuple(range(-self.last, 0))
        return tuple(pair.student for pair in self._pairs(()))

    def signals(self, available: Collection[SignalKey]) -> tuple[SignalKey, ...]:
        layers = dict.fromkeys(pair.teacher for pair in self._pairs(available))
        return tuple(SignalKey(HIDDEN, layer) for layer in layers)

    def _pairs(self, available: Collection[SignalKey]) -> tuple[LayerPair, ...]:
        """Return the pairs of layers to compare, out of the signals that are available; none for a map's name, which
        `for_student` replaces."""
        if self.last is not None:
            stored = stored_layers(available, (HIDDEN,))[-self.last :]
            return tuple(LayerPair(*pair) for pair in zip(range(-len(stored), 0), stored, strict=True))
        if self.map is not None:
            mapped = () if isinstance(self.map, str) else pairs_of(self.map)
            return (LayerPair(0, 0), *mapped) if self.embeddings else mapped
        assert self.student_layer is not None
        assert self.teacher_layer is not None
        return (LayerPair(self.student_layer, self.teacher_layer),)

    def check(self, source: Source) -> None:
        super().check(source)
        stored = stored_layers(source.signals, (HIDDEN,))
        if self.last is not None and len(stored) < self.last:
            names = ", ".join(SignalKey(HIDDEN, layer).name for layer in stored) or "none"
            raise RecipeError(
                f"the loss 'hidden' with last = {self.last} needs the teacher's hidden states of {self.last} layers, "
                f"but {source.name} has those of {len(stored)} ({names}); dump again with more of them (--hidden all, "
                "or their numbers), or give a smaller number."
            )
        if self.map is not None:
            wanted = [pair.teacher for pair in self._pairs(())]
            refuse_missing(wanted, stored, f"the loss 'hidden' with a map: {source.name}", "--hidden all")

    def for_student(self, source: Source, student: PreTrainedModel) -> "HiddenLoss":
        if self.map is None:
            return self
        depth, stored = len(hidden_widths(student)) - 1, stored_layers(source.signals, (HIDDEN,))
        made = self.model_copy(update={"map": fitted_map(self.map, depth, stored, "the loss 'hidden'")})
        made.check(source)
        return made

    def make_projection(self, source: Source, student: PreTrainedModel, where: str) -> nn.ModuleDict | None:
        """Return a linear map for each pair of layers whose widths differ, or one for all pairs."""
        widths = hidden_widths(student)
        made = nn.ModuleDict()
        sizes = set[tuple[int, int]]()
        for pair in self._pairs(source.signals):
            if not -len(widths) <= pair.student < len(widths):
                asked = f"student_layer = {pair.student}" if self.last is None else f"last = {self.last}"
                raise RecipeError(f"{where}.{asked}: the student has layers 0 to {len(widths) - 1}.")
            size, name = (widths[pair.student], source.widths[SignalKey(HIDDEN, pair.teacher)]), self._name_of(pair)
            sizes.add(size)
            if size[0] != size[1] and name not in made:
                made[name] = nn.Linear(*size)
        if self.shared_projection and len(sizes) > 1:
            raise RecipeError(
                f"{where}.shared_projection: the layers have several widths ("
                f"{', '.join(f'{own} to {teacher}' for own, teacher in sorted(sizes))}), so that one linear map does "
                "not fit them all; leave it out."
            )
        return made or None

    def _name_of(self, pair: LayerPair) -> str:
        """Return the name of a pair's linear map. In a map of layers, several may imitate the same one."""
        if self.shared_projection:
            return "shared"
        return str(pair.teacher if self.map is None else pair.student)

    def count(self, batch: Batch) -> int:
        is_token_BL = batch.is_token_BL
        return int((is_token_BL if self.at == "all" else is_token_BL.any(1)).sum())

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        own = projection if isinstance(projection, nn.ModuleDict) else nn.ModuleDict()
        lengths = [length for length in outputs.lengths if length]
        total = torch.zeros(())
        for pair in self._pairs(targets.vectors):
            student_ND, teacher = outputs.hidden_TD[pair.student], targets.vectors[SignalKey(HIDDEN, pair.teacher)]
            compared: Vectors = teacher
            if self.at != "all":
                student_ND = one_of_each_row(student_ND, lengths, self.at)
                compared = RowVectors(teacher, lengths, self.at)
            name = self._name_of(pair)
            linear = own[name] if name in own else None  # noqa: SIM401
            value = compared_in_slices(student_ND, linear, compared, _COMPARE[self.metric])
            total = total.to(value.device) + value
        return total
