"""A language model's head, applied to slices of the recorded positions only.

A full `[tokens, vocabulary]` tensor is what runs out of memory first: 16k tokens of a 152k vocabulary are 10 GB. So the
last projection is stopped from running inside the model (it gets zero tokens there), what would have gone into it is
kept, and it is applied afterwards to a slice of the recorded positions at a time. Whether that gives what the model
itself gives is checked once, on a probe; where it does not (an unknown step after the projection), the model's own full
logits are used.

Shapes: B rows, L tokens, D width, V vocabulary, N positions.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.codecs import Exact, LogitStep
from shared.errors import TeacherError

# Logits of a slice. A CPU reads the projection's weights once a slice, and everything after it finds the logits in its
# caches: slices of 128 to 256 positions took 383 microseconds a token of a 384 x 30,522 projection, 549 took 400.
SLICE_VALUES = {"cuda": 2**27, "cpu": 2**22}
FEWEST_POSITIONS = 128
PROBE_TOKENS = 8


class VocabularyHead:
    """The output projection of `model`, held back during the forward pass and applied on demand."""

    def __init__(self, model: PreTrainedModel) -> None:
        projection = model.get_output_embeddings()
        if projection is None:
            raise TeacherError(f"{type(model).__name__} has no head over its vocabulary; choose another task.")
        self.model = model
        self.projection: Any = projection
        self.vocabulary: int = projection.weight.shape[0]
        self._after_projection = LogitStep.of(model.config.get_text_config())
        self._held_back: Tensor | None = None
        self._holding_back = False
        projection.register_forward_pre_hook(self._hold_back)
        self.sliced = self._same_as_model()

    def run(
        self, arguments: dict[str, Any], takes: Literal["logits", "states"] = "logits"
    ) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """Run the model; returns its output and a function: flat indices [N] into B * L -> float32 logits_NV, or with
        `takes="states"` (of a sliced head only) the states_ND that go into the projection."""
        if not self.sliced:
            output = self.model(**arguments)
            logits_NV = output.logits.flatten(0, 1)
            return output, lambda index_N: logits_NV[index_N.to(logits_NV.device)].float()
        self._holding_back = True
        try:
            output = self.model(**arguments)
        finally:
            self._holding_back = False
        assert self._held_back is not None
        hidden_ND, self._held_back = self._held_back.flatten(0, -2), None
        if takes == "states":
            return output, lambda index_N: hidden_ND[index_N.to(hidden_ND.device)]
        return output, lambda index_N: self._logits(hidden_ND[index_N.to(hidden_ND.device)])

    def exact(self, name: str, states: str) -> Exact:
        """The codec `name` of this head's distributions, its states kept as `states` ("float16", "int8", "int4").

        Raises:
            TeacherError: where logits are more than a linear map of a state and a step that is known, or a weight is no
                number.
        """
        model, projection = type(self.model).__name__, self.projection
        if not (self.sliced and isinstance(projection, nn.Linear) and projection.weight.is_floating_point()):
            raise TeacherError(
                f"--exact: the logits of {model} are not just its output projection ({type(projection).__name__}) of a "
                "last hidden state, so they can't be had from it; choose another rule, such as --preset near-lossless."
            )
        weight_VD, bias_V = projection.weight, projection.bias
        if not (weight_VD.isfinite().all() and (bias_V is None or bias_V.isfinite().all())):
            raise TeacherError(f"--exact: NaN or infinity in the output projection of {model}; mend its weights.")
        return Exact.of_head(name, weight_VD, bias_V, self._after_projection, states)

    @property
    def slice_positions(self) -> int:
        """How many positions to ask for at a time."""
        values = SLICE_VALUES.get(self.projection.weight.device.type, SLICE_VALUES["cpu"])
        return max(FEWEST_POSITIONS, values // self.vocabulary)

    def _logits(self, hidden_ND: Tensor) -> Tensor:
        return self._after_projection(self.projection(hidden_ND)).float()

    def _hold_back(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._holding_back:
            return None
        self._held_back = arguments[0]
        return (arguments[0][..., :0, :], *arguments[1:])

    def _same_as_model(self) -> bool:
        """Whether slices give the model's own logits, on a probe.

        Two questions, because half precision blurs matrix products by more than a soft cap changes them: are the
        model's logits, number by number, what `_after_projection` makes of its own projection's output? And does the
        projection, run afterwards on what was held back, give that output but for rounding?
        """
        ids_BL = torch.arange(PROBE_TOKENS, device=self.model.device).remainder(self.vocabulary)[None]
        arguments = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
        projected: list[Tensor] = []
        hook = self.projection.register_forward_hook(lambda module, inputs, output: projected.append(output))
        with torch.inference_mode():
            try:
                expected = self.model(**arguments).logits[0].float()
            finally:
                hook.remove()
            self.sliced = True
            try:
                _, logits_of = self.run(arguments)
                found = logits_of(torch.arange(PROBE_TOKENS, device=self.model.device))
            except (RuntimeError, AssertionError, IndexError):
                return False
        if len(projected) != 1 or found.shape != expected.shape:
            return False
        rounding = torch.finfo(projected[0].dtype).eps
        reached = self._after_projection(projected[0][0]).float()
        blur = max(1e-4, 16 * rounding * float(expected.nan_to_num().abs().max()))
        # NaN weights are reported later, with the row; here they must not look like an unknown head.
        return torch.allclose(reached, expected, rtol=1e-6, atol=1e-6, equal_nan=True) and torch.allclose(
            found, expected, rtol=0.0, atol=blur, equal_nan=True
        )
