"""What the axes of a transformer's parameters are: one table for all architectures.

A layer has six kinds of matrices, which architectures name differently. Their axes are the residual stream, the rows of
queries, keys and values, the attended values (what the heads give to the output projection), and the neurons of the
feed-forward layer. All other parameters (norms, biases, embeddings, heads of tasks) have at most the residual stream
among their axes, which is known by its size.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.models.layers import layers_of

RESIDUAL = "residual"

# Kind of matrix -> (the names of its modules at the end of a path, the axes [out, in] of its weight). The first that
# fits is meant: BERT has an attention.output.dense and an output.dense.
_KINDS: dict[str, tuple[str, tuple[str, str]]] = {
    "query": (r"query|q_proj|q_lin|query_proj|attn\.q", ("queries", RESIDUAL)),
    "key": (r"key|k_proj|k_lin|key_proj|attn\.k", ("keys", RESIDUAL)),
    "value": (r"value|v_proj|v_lin|value_proj|attn\.v", ("values", RESIDUAL)),
    "output": (r"attention\.output\.dense|o_proj|out_proj|out_lin|attn\.o", (RESIDUAL, "attended")),
    "inner": (r"intermediate\.dense|gate_proj|up_proj|lin1|fc1", ("neurons", RESIDUAL)),
    "outer": (r"output\.dense|down_proj|lin2|fc2", (RESIDUAL, "neurons")),
}
_PATTERNS = {kind: re.compile(rf"(.*\.)?({names})") for kind, (names, _) in _KINDS.items()}
# A gated feed-forward layer has two inner matrices.
_MOST = {"inner": 2}


@dataclass(frozen=True)
class Matrix:
    """One of the matrices of a layer.

    Attributes:
        layer: the number of its layer, from 0.
        inside: the path of its module inside the layer.
        kind: what it is ("query").
    """

    layer: int
    inside: str
    kind: str

    @property
    def axes(self) -> tuple[str, str]:
        """The axes [out, in] of its weight; a bias has the first."""
        return _KINDS[self.kind][1]


@dataclass(frozen=True)
class LinearMap:
    """One of the teacher's matrices, weight_PQ [out, in] and bias_P."""

    matrix: Matrix
    weight_PQ: Tensor
    bias_P: Tensor | None


def stack_name(model: PreTrainedModel) -> str:
    """Return the path of a model's list of layers. Raises RecipeError if it has no plain list of them."""
    stack = layers_of(model)
    if not len(stack) or len(stack) != getattr(model.config, "num_hidden_layers", None):
        raise _refusal(model, "it has no plain stack of layers")
    return next(name for name, module in model.named_modules() if module is stack)


def matrices_of(model: PreTrainedModel) -> dict[str, Matrix]:
    """Return the path of a module -> the matrix that it is, for all matrices of all layers.

    Raises:
        RecipeError: if a layer does not have each kind of matrix as a linear map of its own.
    """
    name = stack_name(model)
    found: dict[str, Matrix] = {}
    for number, layer in enumerate(layers_of(model)):
        own = {f"{name}.{number}.{path}": Matrix(number, path, kind) for path, kind in _linear_maps(layer, model)}
        kinds = [matrix.kind for matrix in own.values()]
        for kind in _KINDS:
            if not 1 <= kinds.count(kind) <= _MOST.get(kind, 1):
                raise _refusal(model, f"its layer {number + 1} has {kinds.count(kind)} matrices of the kind {kind!r}")
        found |= own
    return found


def _linear_maps(layer: nn.Module, model: PreTrainedModel) -> Iterable[tuple[str, str]]:
    for path, module in layer.named_modules():
        own = list(module.parameters(recurse=False))
        if all(value.ndim < 2 for value in own):
            continue
        kind = next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(path)), None)
        if kind is None or not isinstance(module, nn.Linear):
            raise _refusal(model, f"its layers have {path} ({type(module).__name__}), whose axes are not known")
        yield path, kind


def _refusal(model: PreTrainedModel, reason: str) -> RecipeError:
    return RecipeError(
        f"student.start: a student cannot start from the weights of a model of type {model.config.model_type!r} "
        f"({reason}); leave the key out."
    )
