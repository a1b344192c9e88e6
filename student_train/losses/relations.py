"""The loss on attention relations: similarities between tokens in queries, keys and values, or attention itself.

It compares one layer of the student with one layer of the teacher, the layers that a `map` names, or the `last` k
layers of the student with the last k layers that the dump has, in the same order; the losses of several layers are
summed.
"""

from collections.abc import Collection
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.signals import RELATIONS, SignalKey
from shared.errors import RecipeError
from shared.models.attention import Captured
from shared.models.layers import layer_count
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.attention import captured_on_probe
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses.base import Loss, stored_layers
from student_train.losses.layer_maps import LayerMap, LayerPair, fitted_map, pairs_of, refuse_missing
from student_train.losses.relation_formulas import Metric, Pair, parts_of, refuse_misfit, relations_loss


class RelationLoss(Loss):
    """Attention relations of a student's layer compared with those of a teacher's layer (MiniLMv2), summed over pairs.

    "queries", "keys" and "values" are each related to themselves; "attention" relates queries to keys (MiniLM), which
    is the models' own attention if the relation heads are the heads of both models. `own_heads` requires that, and is
    an error for models with different numbers of heads.

    `last = k` with pairs = ["attention"], own_heads = true and metric = "mse" is the attention loss of Mukherjee et al.
    2021, "XtremeDistilTransformers" (arXiv 2106.04563).

    With `map`, each layer of the student imitates the teacher's layer that the map names (see `layer_maps`).
    """

    kind: Literal["relations"] = "relations"
    teacher_layer: int | None = Field(default=None, ge=1, description="by default the top layer that the dump has")
    student_layer: int | None = Field(default=None, description="by default the top layer")
    last: int | None = Field(default=None, ge=1)
    map: LayerMap | None = None
    relation_heads: int | None = Field(default=None, ge=1, description="by default 12, or fewer where 12 do not divide")
    own_heads: bool = False
    pairs: tuple[Pair, ...] = Field(default=("queries", "keys", "values"), min_length=1)
    metric: Metric = "kl"

    @model_validator(mode="after")
    def _keys_that_agree(self) -> Self:
        one_layer = self.teacher_layer is not None or self.student_layer is not None
        if sum((one_layer, self.last is not None, self.map is not None)) > 1:
            raise ValueError(
                "give either teacher_layer and student_layer, or last (the number of layers), or map (a layer of the "
                "teacher for each of the student's)"
            )
        if self.own_heads and self.relation_heads is not None:
            raise ValueError(
                f"own_heads already sets the number of relation heads; leave relation_heads = {self.relation_heads} out"
            )
        return self

    @property
    def signal(self) -> None:
        return None

    @property
    def attention_layers(self) -> tuple[int, ...]:
        if self.last is not None:
            return tuple(range(-self.last, 0))
        if self.map is not None:
            return tuple(pair.student for pair in self._layers(()))
        return (-1 if self.student_layer is None else self.student_layer,)

    def signals(self, available: Collection[SignalKey]) -> tuple[SignalKey, ...]:
        layers = dict.fromkeys(pair.teacher for pair in self._layers(available))
        return tuple(SignalKey(part, layer) for layer in layers for part in parts_of(self.pairs))

    def check(self, source: Source) -> None:
        layers = [pair.teacher for pair in self._layers(source.signals)]
        if self.map is not None:
            stored = stored_layers(source.signals, RELATIONS)
            refuse_missing(layers, stored, f"the loss 'relations' with a map: {source.name}", "--relations all")
        if self.last is not None and layers and len(layers) < self.last:
            raise RecipeError(
                f"the loss 'relations' with last = {self.last} needs the relations of {self.last} of the teacher's "
                f"layers, but {source.name} has those of {len(layers)} ({', '.join(map(str, layers))}); dump again "
                "with more of them (--relations all, or their numbers), or give a smaller number."
            )
        wanted = self.signals(source.signals)
        missing = [key.name for key in wanted if key not in source.signals]
        if not wanted and self.map is None:
            missing = [f"{part}.N" for part in parts_of(self.pairs)]
        if missing:
            have = ", ".join(map(str, source.signals)) or "only gold labels (no dump is named)"
            raise RecipeError(
                f"the loss 'relations' needs {', '.join(missing)}, which {source.name} lacks; it has {have}. Dump "
                "again with --relations, set teacher_layer to a layer that is there, or leave the loss out."
            )

    def for_student(self, source: Source, student: PreTrainedModel) -> "RelationLoss":
        if self.map is None:
            return self
        captured_on_probe(student, -1)  # which refuses a student whose layers are not numbered
        stored = stored_layers(source.signals, RELATIONS)
        layer_map = fitted_map(self.map, layer_count(student), stored, "the loss 'relations'")
        made = self.model_copy(update={"map": layer_map})
        made.check(source)
        return made

    def check_student(self, source: Source, student: PreTrainedModel) -> None:
        for pair in self._layers(source.signals):
            captured = captured_on_probe(student, pair.student)
            heads = self._checked_own_heads(source, captured) if self.own_heads else self.relation_heads
            teacher_widths = {part: source.widths[SignalKey(part, pair.teacher)] for part in parts_of(self.pairs)}
            refuse_misfit(self.pairs, heads, teacher_widths, captured.widths)

    def count(self, batch: Batch) -> int:
        return batch.tokens

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        total = torch.zeros(())
        for pair in self._layers(targets.vectors):
            student = outputs.attended[pair.student]
            teacher = {part: targets.vectors[SignalKey(part, pair.teacher)] for part in parts_of(self.pairs)}
            heads = student.heads if self.own_heads else self.relation_heads
            value = relations_loss(student, teacher, self.pairs, heads, self.metric)
            total = total.to(value.device) + value
        return total

    def _layers(self, available: Collection[SignalKey]) -> tuple[LayerPair, ...]:
        """Return the pairs of layers to compare, out of the signals that are available; none for a map's name, which
        `for_student` replaces."""
        if self.map is not None:
            return () if isinstance(self.map, str) else pairs_of(self.map)
        stored = stored_layers(available, RELATIONS)
        if self.last is not None:
            stored = stored[-self.last :]
            return tuple(LayerPair(*pair) for pair in zip(range(-len(stored), 0), stored, strict=True))
        student = -1 if self.student_layer is None else self.student_layer
        teacher = stored[-1:] if self.teacher_layer is None else [self.teacher_layer]
        return tuple(LayerPair(student, layer) for layer in teacher)

    def _checked_own_heads(self, source: Source, student: Captured) -> int:
        if source.attention_heads is None:
            raise RecipeError(
                f"the loss 'relations' with own_heads: {source.name} does not say how many heads its teacher has; dump "
                "again, or give relation_heads."
            )
        if source.attention_heads != student.heads:
            raise RecipeError(
                f"the loss 'relations' with own_heads: the student has {student.heads} heads and the teacher "
                f"{source.attention_heads}; give the student the same number, or give relation_heads instead."
            )
        return student.heads
