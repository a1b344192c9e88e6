"""The loss of BERT-EMD, and its state: linear maps and masses.

Shapes: M layers of the student, N of the teacher.
"""

from collections.abc import Collection
from typing import Literal, Self

import torch
import torch.distributed as dist
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.signals import HIDDEN, SignalKey
from shared.errors import RecipeError
from shared.numbers import Count, Factor
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.attention import captured_on_probe
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.forward.widths import hidden_widths
from student_train.losses.base import Loss, stored_layers
from student_train.losses.emd.masses import LayerMasses, set_to_mean
from student_train.losses.emd.terms import AttentionTerms, HiddenTerms, LayerProjections, Sample, Terms
from student_train.losses.emd.transport import optimal_flow

Part = Literal["hidden", "attention"]
_ATTENDED = ("queries", "keys")


class EMDState(nn.Module):
    """What is kept with a student while it trains: its linear maps, and the masses for each part."""

    def __init__(self, projection: LayerProjections | None, masses: dict[str, LayerMasses]) -> None:
        super().__init__()
        self.projection = projection
        self.masses = nn.ModuleDict(masses)

    def of(self, part: str) -> LayerMasses:
        """Return the masses for a part."""
        found = self.masses[part]
        assert isinstance(found, LayerMasses)
        return found


class EMDLoss(Loss):
    """The earth mover's distance between the layers of student and teacher (Li et al. 2020, "BERT-EMD", arXiv
    2010.06133): the sum of F_ij D_ij, once for hidden states and once for attention scores.

    D_ij is the mean squared difference between layer i of the student, from 1 on, and layer j of the dump (all that it
    has; the output of the embeddings is left out). Widths may differ: the student's states pass through a linear map,
    one for each layer or a shared one (`shared_projection`). F is the flow that is cheapest for the masses of the
    layers; it has no gradient. After each batch cost attention moves the masses of both models' layers (`masses.py`),
    unless `cost_attention = false`, and those for hidden states and attention become their mean, unless
    `separate_masses = true`.

    `weight` is the paper's beta times theta, and `attention_weight` the weight of the part on attention beside that on
    hidden states. The paper's loss on embeddings is a loss "hidden" with teacher_layer = 0 and student_layer = 0.

    The costs for F and the masses are those of a batch, over all ranks; with gradient_accumulation each accumulated
    batch has a flow of its own. With `cost_tokens`, some evenly spread rows of about so many tokens (on each rank) are
    enough for them; the loss itself always has all tokens. (The original code compares padding as well.)
    """

    kind: Literal["emd"] = "emd"
    parts: tuple[Part, ...] = Field(default=("hidden", "attention"), min_length=1)
    attention_weight: Factor = 1.0
    cost_attention: bool = True
    separate_masses: bool = False
    cost_tokens: Count | None = None
    shared_projection: bool = False

    _student_layers: int = PrivateAttr(default=0)

    @model_validator(mode="after")
    def _keys_that_agree(self) -> Self:
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts = {list(self.parts)}: name each part once")
        return self

    @property
    def signal(self) -> None:
        return None

    @property
    def student_layers(self) -> tuple[int, ...]:
        return tuple(range(1, self._student_layers + 1)) if "hidden" in self.parts else ()

    @property
    def attention_layers(self) -> tuple[int, ...]:
        return tuple(range(1, self._student_layers + 1)) if "attention" in self.parts else ()

    def signals(self, available: Collection[SignalKey]) -> tuple[SignalKey, ...]:
        sites = {"hidden": (HIDDEN,), "attention": _ATTENDED}
        return tuple(
            SignalKey(site, layer)
            for part in self.parts
            for layer in self._layers(part, available)
            for site in sites[part]
        )

    def _layers(self, part: Part, available: Collection[SignalKey]) -> list[int]:
        """Return the teacher's layers to compare with."""
        if part == "hidden":
            return [layer for layer in stored_layers(available, (HIDDEN,)) if layer > 0]
        both = (set(stored_layers(available, (site,))) for site in _ATTENDED)
        return sorted(set.intersection(*both))

    def check(self, source: Source) -> None:
        layers = {part: self._layers(part, source.signals) for part in self.parts}
        options = {"hidden": "--hidden all", "attention": "--relations all or --attention-inputs all"}
        for part, found in layers.items():
            if not found:
                raise RecipeError(
                    f"the loss 'emd' needs layers of the teacher for the part {part!r}, but {source.name} has none; "
                    f"dump again with {options[part]}, or leave the part out."
                )
            widths = {source.widths[key] for key in self.signals(source.signals) if key.site == HIDDEN}
            if len(widths) > 1:
                raise RecipeError(
                    f"the loss 'emd': the hidden states in {source.name} have several widths ({_listed(widths)}), so "
                    'one linear map does not reach them; give parts = ["attention"], or leave the loss out.'
                )
        if not self.separate_masses and len({tuple(found) for found in layers.values()}) > 1:
            raise RecipeError(
                f"the loss 'emd': {source.name} has hidden states of the layers {_listed(layers['hidden'])}, but "
                f"attention of {_listed(layers['attention'])}, which cannot have the same masses; dump again with "
                "--hidden all --relations all (or --hidden last --attention-inputs all), or give separate_masses = "
                "true."
            )

    def for_student(self, source: Source, student: PreTrainedModel) -> "EMDLoss":
        made = self.model_copy()
        made._student_layers = len(hidden_widths(student)) - 1
        return made

    def check_student(self, source: Source, student: PreTrainedModel) -> None:
        if "attention" not in self.parts:
            return
        heads = source.attention_heads
        for layer in self.attention_layers:
            captured = captured_on_probe(student, layer, "the loss 'emd'")
            if heads is None or captured.heads != heads:
                raise RecipeError(
                    f"the loss 'emd' compares attention head by head, but the student has {captured.heads} heads and "
                    f'the teacher {heads or "an unknown number"}; give the student as many, or parts = ["hidden"].'
                )
            if captured.widths["queries"] != captured.widths["keys"]:
                raise RecipeError(_GROUPED.format("student"))
        for layer in self._layers("attention", source.signals):
            queries, keys = (source.widths[SignalKey(site, layer)] for site in _ATTENDED)
            if queries != keys:
                raise RecipeError(_GROUPED.format("teacher"))

    def make_projection(self, source: Source, student: PreTrainedModel, where: str) -> EMDState:
        """Return the linear maps and the masses."""
        layers = {part: self._layers(part, source.signals) for part in self.parts}
        projection = None
        if "hidden" in self.parts:
            widths = hidden_widths(student)[1:]
            if self.shared_projection and len(set(widths)) > 1:
                raise RecipeError(
                    f"{where}.shared_projection: the student's layers have several widths ({_listed(set(widths))}), so "
                    "that one linear map does not fit them all; leave it out."
                )
            teacher_width = source.widths[SignalKey(HIDDEN, layers["hidden"][0])]
            projection = LayerProjections(widths, teacher_width, self.shared_projection)
        masses = {str(part): LayerMasses(self._student_layers, len(found)) for part, found in layers.items()}
        return EMDState(projection, masses)

    def count(self, batch: Batch) -> int:
        return batch.tokens

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        assert isinstance(projection, EMDState)
        terms = {part: self._terms(part, outputs, targets, projection) for part in self.parts}
        costs = self._costs(terms, outputs, targets, is_shared=projection.training)
        total, moved = torch.zeros(()), []
        for part in self.parts:
            masses = projection.of(part)
            flow_MN = optimal_flow(masses.student_M, masses.teacher_N, costs[part])
            value = terms[part].loss(flow_MN)
            total = total.to(value.device) + (self.attention_weight if part == "attention" else 1.0) * value
            moved.append(masses.moved(flow_MN, costs[part]))
        if projection.training and self.cost_attention:
            every = [projection.of(part) for part in self.parts]
            if self.separate_masses:
                for masses, both in zip(every, moved, strict=True):
                    masses.set(*both)
            else:
                set_to_mean(every, moved)
        return total

    def _terms(self, part: Part, outputs: Outputs, targets: BatchTargets, state: EMDState) -> Terms:
        layers = self._layers(part, targets.vectors)
        if part == "hidden":
            assert state.projection is not None
            teacher = [targets.vectors[SignalKey(HIDDEN, layer)] for layer in layers]
            return HiddenTerms([outputs.hidden_TD[own] for own in self.student_layers], teacher, state.projection)
        both = [
            (targets.vectors[SignalKey("queries", layer)], targets.vectors[SignalKey("keys", layer)])
            for layer in layers
        ]
        return AttentionTerms([outputs.attended[own] for own in self.attention_layers], both)

    def _costs(
        self, terms: dict[Part, Terms], outputs: Outputs, targets: BatchTargets, is_shared: bool
    ) -> dict[Part, Tensor]:
        """Return the costs [M, N] of each part, over the batches of all ranks if they are shared."""
        lengths = outputs.lengths or next(iter(outputs.attended.values())).lengths
        sample = Sample.of(lengths, self.cost_tokens, targets.labels_N.device)
        costs = {part: each.costs(sample) for part, each in terms.items()}
        if not is_shared or not dist.is_initialized():
            return costs
        tokens = 0 if targets.is_spare else len(sample.tokens_S)
        for part, found_MN in costs.items():
            sums = torch.cat([(found_MN * tokens).flatten(), found_MN.new_tensor([tokens])])
            dist.all_reduce(sums)
            costs[part] = (sums[:-1] / sums[-1].clamp(min=1)).view_as(found_MN)
        return costs


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))


_GROUPED = (
    "the loss 'emd': the {}'s queries are wider than its keys (grouped-query attention), so its attention cannot be "
    'compared head by head; give parts = ["hidden"].'
)
