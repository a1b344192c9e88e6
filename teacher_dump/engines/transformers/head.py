"""The head of a language model, applied to slices of the recorded positions only.

The codecs of distributions take logits, or the states from which the head computes them. If slices differ from the
model's own logits, those of the whole batch are used instead.

Shapes: B rows, L tokens, D width, V vocabulary, N positions.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.codecs import Exact, LogitStep
from shared.errors import TeacherError
from shared.models.head import gives_own_logits, run_without_head
from teacher_dump.engines.devices import slice_positions


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
        self.sliced = gives_own_logits(model, projection, self._after_projection, self._logits_of)

    def run(
        self, arguments: dict[str, Any], takes: Literal["logits", "states"] = "logits"
    ) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """Run the model. Returns its output, and a function of flat indices [N] into B * L.

        The function returns float32 logits_NV; with `takes="states"`, which needs a sliced head, it returns the
        states_ND that are the input of the projection.
        """
        if not self.sliced:
            output = self.model(**arguments)
            logits_NV = output.logits.flatten(0, 1)
            return output, lambda index_N: logits_NV[index_N.to(logits_NV.device)].float()
        output, held_back = run_without_head(self.model, self.projection, arguments)
        states_ND = held_back.states_ND
        if takes == "states":
            return output, lambda index_N: states_ND[index_N.to(states_ND.device)]
        return output, lambda index_N: self._logits(states_ND, index_N)

    def exact(self, name: str, states: str) -> Exact:
        """The codec `name` of this head's distributions, with states stored as `states` ("float16", "int8", "int4").

        Raises:
            TeacherError: if logits are more than a linear map of a state and a known step after it, or if a weight is
                NaN or infinite.
        """
        model, projection = type(self.model).__name__, self.projection
        if not (self.sliced and isinstance(projection, nn.Linear) and projection.weight.is_floating_point()):
            raise TeacherError(
                f"--exact: the logits of {model} are not just its output projection ({type(projection).__name__}) of a "
                "last hidden state, and cannot be computed from it; choose another rule, such as --preset "
                "near-lossless."
            )
        weight_VD, bias_V = projection.weight, projection.bias
        if not (weight_VD.isfinite().all() and (bias_V is None or bias_V.isfinite().all())):
            raise TeacherError(f"--exact: NaN or infinity in the output projection of {model}; repair its weights.")
        return Exact.of_head(name, weight_VD, bias_V, self._after_projection, states)

    @property
    def slice_positions(self) -> int:
        """The number of positions in a slice."""
        return slice_positions(self.vocabulary, self.projection.weight.device)

    def _logits(self, states_ND: Tensor, index_N: Tensor) -> Tensor:
        return self._after_projection(self.projection(states_ND[index_N.to(states_ND.device)])).float()

    def _logits_of(self, arguments: dict[str, Any], index_N: Tensor) -> Tensor:
        _, held_back = run_without_head(self.model, self.projection, arguments)
        return self._logits(held_back.states_ND, index_N)
