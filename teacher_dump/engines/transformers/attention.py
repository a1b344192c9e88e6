"""Replace a teacher's attention function, to pack rows without padding and to capture queries, keys and values.

The model is changed only inside the contexts of `Attention`.

Shapes: B rows, L tokens of the longest, T tokens of all packed rows, H heads, D their width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.errors import TeacherError
from shared.models.attention import (
    AlreadyRoutedError,
    Capture,
    Captured,
    configs_of,
    own_attention,
    own_mask_function,
    routed,
)
from teacher_dump.engines.transformers.packing import (
    Run,
    RunMasks,
    attend_packed,
    masks_of_runs,
    runs_of,
    varlen_serves,
)
from teacher_dump.engines.transformers.packing_probe import first_position_of, same_when_packed, same_within

# Attention functions of transformers that can be called for packed rows.
OWN = ("sdpa", "eager")


class Attention:
    """A model whose attention is routed to `attend`, and its masks to `make_mask` (shared/models/attention.py).

    Everything that shares the model's configuration object is routed; `from_pretrained` gives every model its own.

    Attributes:
        packs: whether packed rows give the same outputs as each row alone (packing_probe.py).
        first_position: the position id of a row's first token, for `packed_inputs`; None if the model takes no position
            ids.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.packs = False
        self.first_position: int | None = None
        self.calls = 0
        self._runs: tuple[Run, ...] | None = None
        self._capture: Capture | None = None

    @classmethod
    def take_over(cls, model: PreTrainedModel) -> "Attention | None":
        """Route a model's attention, if that changes no bit of its outputs; otherwise return None.

        None is also returned for models whose attention does not use the interface of transformers (DeBERTa, MPNet,
        BLOOM, models with remote code). The model must be in evaluation mode, and is left exactly as it was.
        """
        if not _can_be_routed(model):
            return None
        attention = cls(model)
        with torch.inference_mode():
            # A model may fail in any way on inputs that it was not made for; then it is not routed.
            try:
                if not same_within(model, attention._routed) or not attention.calls:
                    return None
            except Exception:
                return None
            try:
                attention.first_position = first_position_of(model)
                attention.packs = same_when_packed(model, attention.first_position, attention._packing)
            except Exception:
                attention.packs = False
        return attention

    @contextmanager
    def packed(self, lengths: Sequence[int]) -> Iterator[None]:
        """While open, a forward pass takes `packed_inputs` [1, T] with rows of these lengths, kept apart by attention.

        Raises:
            TeacherError: for a model that does not pack.
        """
        if not self.packs:
            raise TeacherError(f"{type(self.model).__name__}: its rows cannot be packed; pad them.")
        with self._packing(lengths):
            yield

    @contextmanager
    def capture(self, layers: Mapping[int, nn.Module]) -> Iterator[dict[int, Captured]]:
        """While open, a forward pass fills in the queries, keys and values of these modules (transformer layers).

        Packed rows are captured as one row of T tokens.

        Raises:
            TeacherError: in the forward pass, if attention inside one of the modules runs twice (ALBERT's layers are
                all one module), because it is not known which of them is meant.
        """
        before, self._capture = self._capture, Capture(layers, self._refusal)
        try:
            with self._routed(), self._capture.renewed(self.model) as captured:
                yield captured
        finally:
            self._capture = before

    @contextmanager
    def _packing(self, lengths: Sequence[int]) -> Iterator[None]:
        before, self._runs = self._runs, runs_of(lengths)
        try:
            with self._routed():
                yield
        finally:
            self._runs = before

    @contextmanager
    def _routed(self) -> Iterator[None]:
        """While open, the model calls `attend` and `make_mask`."""
        try:
            with routed(configs_of(self.model), self.attend, self.make_mask):
                yield
        except AlreadyRoutedError:
            raise TeacherError(
                f"{type(self.model).__name__}: its attention is routed by another Attention already."
            ) from None

    def attend(
        self, own: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The function that the model calls in place of its own attention function while a context is open."""
        self.calls += 1
        if self._capture is not None:
            self._capture.note(module, query, key, value)
        function = own_attention(own, module)
        if self._runs is None:
            output: tuple[Tensor, Tensor | None] = function(module, query, key, value, mask, **options)
            return output
        varlen = own == "sdpa" and varlen_serves(query, value)
        return attend_packed(function, varlen, self._runs, module, query, key, value, mask, **options)

    def make_mask(self, own: str, arguments: dict[str, Any]) -> Tensor | RunMasks | None:
        """The function that the model calls in place of its own function for masks."""
        function = own_mask_function(own)
        return function(**arguments) if self._runs is None else masks_of_runs(function, self._runs, arguments)

    def _refusal(self, layer: int) -> TeacherError:
        return TeacherError(
            f"{type(self.model).__name__}: attention runs more than once in layer {layer}, so its queries, keys and "
            "values cannot be told apart. Choose a layer of its own, or none."
        )


def _can_be_routed(model: PreTrainedModel) -> bool:
    """Whether a model can be routed, as far as this is known without running it.

    A model with remote code may use masks in any way, and a compiled model keeps the function it was compiled with.
    """
    return (
        type(model).__module__.startswith("transformers.models.")
        and getattr(model, "_compiled_call_impl", None) is None
        and all(config._attn_implementation in OWN for config in configs_of(model))
    )
