"""The teacher's forward pass over one batch, which keeps only the outputs that are recorded.

Shapes: B rows, L tokens of the longest, T tokens of all rows, N recorded positions, D width, V vocabulary or classes.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor

from shared.models.attention import Captured
from teacher_dump.engines.base import TeacherOutputs, Wanted
from teacher_dump.engines.batch import Batch
from teacher_dump.engines.transformers.signals import SOURCES, ForwardPass, layers_of
from teacher_dump.engines.transformers.teacher import Teacher


def run(teacher: Teacher, batch: Batch, wanted: Wanted) -> TeacherOutputs:
    """Run the teacher over a batch that is on its device."""
    hidden_layers, attention_layers = layers_of(teacher, wanted.keys)
    with ExitStack() as stack:
        if batch.packed:
            assert teacher.attention is not None
            stack.enter_context(teacher.attention.packed(batch.lengths))
        parts: dict[int, Captured] = {}
        if attention_layers:
            assert teacher.attention is not None
            modules = {layer: teacher.trunk.modules[layer - 1] for layer in attention_layers}
            parts = stack.enter_context(teacher.attention.capture(modules))
        arguments: dict[str, Any] = {name: tensor for name, tensor in batch.inputs.items() if teacher.takes(name)}
        arguments["return_dict"] = True
        last = max(hidden_layers + attention_layers, default=0)
        if wanted.distribution is None and last < teacher.layers and teacher.trunk.stops:
            hidden, distribution_at = teacher.trunk.run(arguments, {*hidden_layers, last}), None
        else:
            if hidden_layers:
                arguments["output_hidden_states"] = list(hidden_layers)
            hidden, distribution_at = _run_whole(teacher, arguments, wanted.distribution)
    shown = {layer: hidden[layer] for layer in hidden_layers}
    passed = ForwardPass(shown, parts, torch.from_numpy(batch.token_index()), batch.lengths)
    vectors = {key: SOURCES.named(key.site).take(passed, teacher, key.layer) for key in wanted.keys}
    # States are only as wide as the model, so all of them can be taken at once.
    head = teacher.head if wanted.distribution == "logits" else None
    return TeacherOutputs(distribution_at, head.slice_positions if head else None, vectors)


def _run_whole(
    teacher: Teacher, arguments: dict[str, Any], wanted: Literal["logits", "states"] | None
) -> tuple[Any, Callable[[Tensor], Tensor] | None]:
    """(hidden states by layer, the function `distribution_at`), from a forward pass through all layers."""
    if wanted is None:
        return getattr(teacher.model.base_model(**arguments), "hidden_states", None), None
    if teacher.head is not None:
        output, found_at = teacher.head.run(arguments, wanted)
        hidden = getattr(output, "hidden_states", None)
        if wanted == "logits":
            return hidden, found_at
        # If the teacher is spread over devices, the last layer and the head may be on different ones.
        device = teacher.head.projection.weight.device
        return hidden, lambda index_N: found_at(index_N).to(device)
    output = teacher.model(**arguments)
    logits = teacher.task.logits_of(output)
    assert logits is not None
    logits_NV = logits.flatten(0, -2)
    return getattr(output, "hidden_states", None), lambda index_N: logits_NV[index_N.to(logits_NV.device)].float()
