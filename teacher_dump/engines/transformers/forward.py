"""One batch through the teacher, of which only what is recorded is kept.

Shapes: B rows, L tokens of the longest, T tokens of all rows, N recorded positions, D width, V vocabulary or classes.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from shared.dump.signals import HIDDEN, RELATIONS, Signal, name_of
from shared.errors import TeacherError
from teacher_dump.batches import Batch
from teacher_dump.engines.transformers.teacher import Teacher


@dataclass(frozen=True)
class Wanted:
    """What is asked of a forward pass: what distributions are made from (logits, or the states that the head makes
    them of), hidden states of some layers, queries, keys and values of others."""

    distribution: Literal["logits", "states"] | None
    hidden: tuple[int, ...] = ()
    relations: tuple[int, ...] = ()

    @classmethod
    def of(cls, distribution: Literal["logits", "states"] | None, vectors: Iterable[Signal]) -> "Wanted":
        """What these signals are made from."""
        layers: dict[str, set[int]] = {}
        for signal in vectors:
            assert signal.layer is not None
            layers.setdefault(signal.site, set()).add(signal.layer)
        relations = set().union(*(layers.get(site, ()) for site in RELATIONS))
        return cls(distribution, tuple(sorted(layers.get(HIDDEN, ()))), tuple(sorted(relations)))


@dataclass(frozen=True)
class Said:
    """What the teacher says about a batch.

    Attributes:
        distribution_at: indices [N] into the flattened inputs (of a task with one distribution a row, indices of rows)
            -> float32 logits_NV or states_ND there. None where neither is wanted.
        slice_positions: how many to ask for at a time; None for all.
        vectors: by the signal's name, [T, D] of any floating type: tokens without padding; of a signal that is recorded
            per position [N, D], per row [B, D].
    """

    distribution_at: Callable[[Tensor], Tensor] | None
    slice_positions: int | None
    vectors: dict[str, Tensor]


def run(teacher: Teacher, batch: Batch, wanted: Wanted) -> Said:
    """Run the teacher over a batch that is on its device."""
    with ExitStack() as stack:
        if batch.packed:
            assert teacher.attention is not None
            stack.enter_context(teacher.attention.packed(batch.lengths))
        parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        if wanted.relations:
            assert teacher.attention is not None
            modules = {layer: teacher.trunk.modules[layer - 1] for layer in wanted.relations}
            parts = stack.enter_context(teacher.attention.capture(modules))
        arguments: dict[str, Any] = {name: tensor for name, tensor in batch.inputs.items() if teacher.takes(name)}
        arguments["return_dict"] = True
        last = max(wanted.hidden + wanted.relations, default=0)
        if wanted.distribution is None and last < teacher.layers and teacher.trunk.stops:
            hidden, distribution_at = teacher.trunk.run(arguments, {*wanted.hidden, last}), None
        else:
            if wanted.hidden:
                arguments["output_hidden_states"] = list(wanted.hidden)
            hidden, distribution_at = _run_whole(teacher, arguments, wanted.distribution)
    token_T = torch.from_numpy(batch.token_index())
    vectors = {name_of(HIDDEN, layer): _tokens(hidden[layer], token_T) for layer in wanted.hidden}
    for layer, of_layer in parts.items():
        for site, heads_BHLD in zip(RELATIONS, of_layer, strict=True):
            vectors[name_of(site, layer)] = _tokens(heads_BHLD.transpose(1, 2).flatten(2), token_T)
    # States are no wider than the model, so that all of them are had at once.
    head = teacher.head if wanted.distribution == "logits" else None
    return Said(distribution_at, head.slice_positions if head else None, vectors)


@torch.inference_mode()
def relation_widths(teacher: Teacher, layer: int) -> tuple[int, int, int]:
    """How wide a layer's queries, keys and values are, all heads together.

    Raises:
        TeacherError: where the teacher does not show them.
    """
    if teacher.attention is not None and teacher.trunk.modules:
        ids_BL = torch.zeros(1, 2, dtype=torch.long, device=teacher.device)
        with teacher.attention.capture({layer: teacher.trunk.modules[layer - 1]}) as parts:
            teacher.model.base_model(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL))
        if layer in parts:
            queries, keys, values = (heads_BHLD.shape[1] * heads_BHLD.shape[3] for heads_BHLD in parts[layer])
            return queries, keys, values
    raise TeacherError(
        f"--relations {layer}: {type(teacher.model).__name__} does not show its queries, keys and values; leave "
        "--relations out, or use a teacher of another architecture."
    )


def _run_whole(
    teacher: Teacher, arguments: dict[str, Any], wanted: Literal["logits", "states"] | None
) -> tuple[Any, Callable[[Tensor], Tensor] | None]:
    """(hidden states by layer, what gives the distributions at some positions)."""
    if wanted is None:
        return getattr(teacher.model.base_model(**arguments), "hidden_states", None), None
    if teacher.head is not None:
        output, distribution_at = teacher.head.run(arguments, wanted)
        return getattr(output, "hidden_states", None), distribution_at
    output = teacher.model(**arguments)
    logits = getattr(output, "logits", None)
    # Models that answer questions say where to start and where to end.
    logits_NV = (torch.stack([output.start_logits, output.end_logits], -1) if logits is None else logits).flatten(0, -2)
    return getattr(output, "hidden_states", None), lambda index_N: logits_NV[index_N.to(logits_NV.device)].float()


def _tokens(states_BLD: Tensor, token_T: Tensor) -> Tensor:
    """[B, L, D] -> [T, D]."""
    return states_BLD.flatten(0, 1)[token_T.to(states_BLD.device)]
