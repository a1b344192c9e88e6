"""Queries, keys and values of a student's attention layers, with their gradients.

Shapes: B rows, L tokens of the longest, T tokens without padding, H heads, D width (of a head, or of all together).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.models.attention import Captured, captured_in
from shared.models.layers import layer_count, numbered_layers
from shared.models.probe import FEWEST_TOKENS, probe_inputs
from student_train.forward.evaluating import evaluating


@dataclass(frozen=True)
class Attended:
    """Queries, keys and values of one layer at all tokens.

    Attributes:
        parts_TD: name in a dump ("queries", "keys", "values") -> vectors [T, D], the heads side by side.
        lengths: tokens of each row; rows lie one after the other.
        is_causal: whether tokens do not attend to later ones.
        heads: number of heads of the queries.
    """

    parts_TD: dict[str, Tensor]
    lengths: tuple[int, ...]
    is_causal: bool
    heads: int

    @classmethod
    def at_tokens(cls, captured: Captured, is_token_BL: Tensor) -> "Attended":
        """Return what was captured, without padding."""
        parts = {name: part.transpose(1, 2).flatten(2)[is_token_BL] for name, part in captured.parts_BHLD.items()}
        return cls(parts, tuple(is_token_BL.sum(dim=1).tolist()), captured.is_causal, captured.heads)

    @property
    def widths(self) -> dict[str, int]:
        """The width D of each part, by its name."""
        return {name: part_TD.shape[1] for name, part_TD in self.parts_TD.items()}


@contextmanager
def capture(model: nn.Module, layers: Iterable[int]) -> Iterator[dict[int, Captured]]:
    """While open, a forward pass of `model` (a PreTrainedModel, or a wrapper around one) fills the dict that this gives
    with the queries, keys and values of these layers.

    Layers are numbered like hidden states, from 1 on, or from -1 downwards; the dict has the numbers as given. It stays
    empty for a model whose layers are not numbered.

    Raises:
        RecipeError: for a layer that the student lacks; in the forward pass, if attention runs more than once in one of
            the layers, because the queries, keys and values are then ambiguous.
    """
    asked = list(layers)
    student = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    modules = {} if student is None or not asked else _modules(student, asked)
    if student is None or not modules:
        yield {}
        return
    with captured_in(student, modules, _runs_twice) as captured:
        yield captured


def captured_on_probe(student: PreTrainedModel, layer: int, loss: str = "the loss 'relations'") -> Captured:
    """Return what `capture` gives for a layer and a short made-up row, to find out widths before training.

    Args:
        loss: what needs it, for messages.

    Raises:
        RecipeError: for a layer that the student lacks, and for a student whose attention cannot be captured.
    """
    with evaluating(student), capture(student, [layer]) as captured:
        student(**probe_inputs(student, FEWEST_TOKENS))
    if layer not in captured:
        raise RecipeError(
            f"{loss}: a student of type {type(student).__name__} does not give access to its queries, keys and values; "
            "leave the loss out, or train a transformer such as BERT."
        )
    return captured[layer]


def _modules(student: PreTrainedModel, asked: Sequence[int]) -> dict[int, nn.Module]:
    """Return the layers by the numbers given; none if the student's layers are not numbered."""
    count, layers = layer_count(student), numbered_layers(student)
    for number in asked if count else ():
        if number == 0 or not -count <= number <= count:
            raise RecipeError(
                f"the loss 'relations' with student_layer = {number}: the student has layers 1 to {count} (or -1)."
            )
    return {number: layers[number - 1 if number > 0 else number] for number in asked} if layers else {}


def _runs_twice(number: int) -> RecipeError:
    return RecipeError(
        f"the loss 'relations': attention runs more than once in the student's layer {number}, so its queries, "
        "keys and values are ambiguous; choose another layer, or leave the loss out."
    )
