"""Find the projections of a teacher's attention by running it.

transformers has no common names for projections and their norms, or for how a fused projection holds queries, keys and
values. So a few tokens are run, and what the modules of a layer take and give is compared with the queries, keys and
values that its attention function receives. Every token has position 0 there, which rotary embedding leaves as it is.
What was found is then tested on a row as long as any of the dump: queries, keys and values computed from the layer's
input must be those that the teacher uses. A teacher that does something else in between (clipping, positions of other
kinds) fails, and is refused.

Shapes: N tokens, D width of the layer's input, W width of a part, K outputs of a projection, R rotated channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shared.dump.signals import RELATIONS
from shared.dump.weights.projections import AttentionLayer, Norm, NormKind, Part, Projections, RotationStyle
from shared.errors import TeacherError
from teacher_dump.engines.transformers.projections.layer_calls import (
    ROUGH_ERROR,
    Call,
    NotFoundError,
    Seen,
    as_rows,
    block_of,
    columns_of,
    error_of,
    is_multiple,
    look,
    ratio_of,
    same,
    tolerance_of,
)
from teacher_dump.engines.transformers.teacher import Teacher

# A prime number of tokens is the number of heads of few models, whose shapes would be ambiguous.
PROBE_ROWS, PROBE_TOKENS = 8, 13


@torch.inference_mode()
def projections_of(teacher: Teacher, layers: Sequence[int], tokens: int) -> dict[int, Projections]:
    """Find the projections of some layers, which must have the signals `attention_inputs`.

    Args:
        tokens: the number of tokens of the longest row.

    Raises:
        TeacherError: for a layer whose queries, keys and values are not those that these projections give.
    """
    return {layer: _found(teacher, layer, tokens) for layer in layers}


def _found(teacher: Teacher, layer: int, tokens: int) -> Projections:
    try:
        drawn = _drawn(teacher, layer, look(teacher, layer, PROBE_ROWS, PROBE_TOKENS, closely=True))
        return _turned(teacher, drawn, look(teacher, layer, 1, max(2, tokens)))
    except NotFoundError as error:
        raise TeacherError(
            f"--attention-inputs {layer}: the queries, keys and values of {type(teacher.model).__name__} cannot be "
            f"computed from the inputs of layer {layer} ({error}); use --relations, which keeps them themselves."
        ) from None


def _drawn(teacher: Teacher, layer: int, seen: Seen) -> Projections:
    """Return the projections, without rotation, that give the queries, keys and values that were seen."""
    parts = {part: _part_of(teacher, layer, seen, part) for part in RELATIONS}
    entry = parts["queries"].entry_norm
    if any(found.entry_norm is not entry for found in parts.values()):
        raise NotFoundError("queries, keys and values come from different norms of the layer's input")
    norm, tensors = (None, {}) if entry is None else _norm_of(entry)
    tensors = {f"norm.{key}": tensor for key, tensor in tensors.items()}
    for part, found in parts.items():
        tensors |= {f"{part}.{key}": tensor for key, tensor in found.tensors.items()}
    facts = {part: found.facts for part, found in parts.items()}
    made = AttentionLayer(heads=seen.heads, head_width=seen.head_width, norm=norm, **facts)
    return Projections(made, tensors)


# ---------------------------------------------------------------- one part


@dataclass(frozen=True)
class _FoundPart:
    """A part's facts (without rotation) and tensors, and the norm of the layer's input, as it was seen to run."""

    facts: Part
    tensors: dict[str, Tensor]
    entry_norm: Call | None


def _part_of(teacher: Teacher, layer: int, seen: Seen, part: str) -> _FoundPart:
    wanted_NW = seen.parts_NW[part].float()
    if (found := _projected(seen, wanted_NW)) is not None:
        return _described(teacher, layer, seen, *found, wanted_NW, None)
    for call in seen.calls:  # queries and keys may be normed after their projection
        normed_NW, before_NW = (as_rows(states, seen.tokens) for states in (call.output, call.given))
        is_norm = _linear_weight(call.module) is None and normed_NW.shape == wanted_NW.shape == before_NW.shape
        if is_norm and is_multiple(normed_NW, wanted_NW) and (found := _projected(seen, before_NW)) is not None:
            return _described(teacher, layer, seen, *found, wanted_NW, call)
    raise NotFoundError(f"no linear projection gives its {part}")


def _projected(seen: Seen, wanted_NW: Tensor) -> tuple[Call, Tensor] | None:
    """Return the linear projection that gives some values, and which of its outputs [W] they are."""
    linear = [
        (call, output_NK)
        for call in seen.calls
        if _linear_weight(call.module) is not None
        and len(output_NK := as_rows(call.output, seen.tokens)) == len(wanted_NW)
        and output_NK.shape[1] >= wanted_NW.shape[1]
    ]
    for call, output_NK in linear:
        if (index_W := block_of(wanted_NW, output_NK, seen.head_width)) is not None:
            return call, index_W
    for call, output_NK in linear:
        if (index_W := columns_of(wanted_NW, output_NK)) is not None:
            return call, index_W
    return None


def _described(
    teacher: Teacher, layer: int, seen: Seen, call: Call, index_W: Tensor, wanted_NW: Tensor, normed: Call | None
) -> _FoundPart:
    """Return the part that consists of these outputs of a projection, perhaps normed."""
    weight_KD, bias_K = _linear_weight(call.module), getattr(call.module, "bias", None)
    assert weight_KD is not None
    norm, tensors = None, {"weight": weight_KD[index_W].detach().cpu().contiguous()}
    if bias_K is not None:
        tensors["bias"] = bias_K[index_W].detach().cpu().contiguous()
    before_NW = as_rows(call.output, seen.tokens)[:, index_W]
    if normed is not None:
        norm, norm_tensors = _norm_of(normed)
        tensors |= {f"norm.{key}": tensor for key, tensor in norm_tensors.items()}
        before_NW = as_rows(normed.output, seen.tokens)
    scale = _known_scale(teacher, layer, ratio_of(wanted_NW, before_NW))
    return _FoundPart(Part(width=len(index_W), norm=norm, scale=scale), tensors, _entry_norm(seen, call.given))


def _linear_weight(module: nn.Module) -> Tensor | None:
    """Return the weight [K, D] of a linear map, or None for other modules.

    Raises:
        NotFoundError: for a weight that is elsewhere than in memory (offloaded).
    """
    if not isinstance(module, nn.Linear | Conv1D):
        return None
    if module.weight.device.type == "meta":
        raise NotFoundError("its weights are not in memory")
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def _entry_norm(seen: Seen, given: Tensor) -> Call | None:
    """Return the norm whose output a projection takes; None if it takes the layer's input itself."""
    if same(given, seen.inputs_BLD):
        return None
    for call in seen.calls:
        if same(call.output, given) and same(call.given, seen.inputs_BLD):
            return call
    raise NotFoundError("what enters its projections is neither the layer's input nor a norm of it")


def _norm_of(call: Call) -> tuple[Norm, dict[str, Tensor]]:
    """Return the norm that a module was seen to compute, in float32; some store the weight less 1."""
    module, given, output = call.module, call.given, call.output
    stored = getattr(module, "weight", None)
    size = given.shape[-1] if stored is None else stored.shape[-1]
    if stored is not None and stored.ndim != 1:
        raise NotFoundError(f"a norm of type {type(module).__name__} has a weight for each head")
    weight = torch.ones(size) if stored is None else stored.detach().float().cpu()
    bias = getattr(module, "bias", None)
    tensors = {} if bias is None else {"bias": bias.detach().float().cpu()}
    epsilon = next((getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)), 1e-6)
    epsilon = torch.finfo(given.dtype).eps if epsilon is None else epsilon
    given_ND, output_ND = (each.reshape(-1, size).float().cpu() for each in (given, output))
    for kind, weight_G in product(get_args(NormKind), (weight, weight + 1)):
        norm = Norm(kind=kind, epsilon=epsilon)
        found_ND = norm.apply(given_ND, weight_G, tensors.get("bias"))
        if error_of(found_ND, output_ND) <= tolerance_of(output.dtype):
            return norm, tensors | {"weight": weight_G}
    raise NotFoundError(f"a norm of type {type(module).__name__} is neither layer norm nor RMS norm")


def _known_scale(teacher: Teacher, layer: int, ratio: float) -> float:
    """Return the factor that the model applies, as its modules have it; the ratio is measured, so its digits are not
    reliable."""
    holders = [*teacher.trunk.modules[layer - 1].modules(), *_rotaries(teacher)]
    factors = {1.0, *(value for module in holders for value in vars(module).values() if type(value) is float)}
    nearest = min(factors, key=lambda factor: abs(factor - ratio))
    if abs(nearest - ratio) > ROUGH_ERROR * abs(ratio):
        raise NotFoundError(f"they are multiplied by {ratio:.3g}, and none of its modules has such a factor")
    return nearest


# ---------------------------------------------------------------- rotation, and the test


def _rotaries(teacher: Teacher) -> list[nn.Module]:
    return [
        module
        for module in teacher.model.base_model.modules()
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
    ]


def _frequencies(teacher: Teacher) -> list[Tensor]:
    """The inverse frequencies [R / 2] that the model has, each once."""
    found: list[Tensor] = []
    for module in _rotaries(teacher):
        for name, buffer in module.named_buffers(recurse=False):
            values = buffer.detach().float().cpu()
            if name.endswith("inv_freq") and values.ndim == 1 and not any(same(values, each) for each in found):
                found.append(values)
    return found


def _turned(teacher: Teacher, drawn: Projections, seen: Seen) -> Projections:
    """Return the projections with the rotation with which they give the queries, keys and values that were seen."""
    inputs_ND = seen.inputs_BLD.flatten(0, 1).float().cpu()
    places_N = torch.arange(seen.tokens).repeat(len(seen.inputs_BLD))
    dtype = next(teacher.model.parameters()).dtype

    def error(candidate: Projections, *parts: str) -> float:
        made = candidate.in_type(torch.float32, inputs_ND.device)
        return max(error_of(made.part(part, inputs_ND, places_N), seen.parts_NW[part].float().cpu()) for part in parts)

    candidates = [drawn]
    for frequencies, style in product(_frequencies(teacher), get_args(RotationStyle)):
        if 2 * len(frequencies) <= drawn.facts.head_width:
            candidates.append(drawn.with_rotation(frequencies, style))
    errors = [error(candidate, "queries", "keys") for candidate in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    for words, found in (("queries and keys", errors[best]), ("values", error(drawn, "values"))):
        if found > tolerance_of(dtype):
            raise NotFoundError(f"computed so, its {words} are wrong by {found:.2g} of their norm")
    return candidates[best]
