"""The codec for whole distributions over a large vocabulary: it stores the input of the output projection.

All logits are a linear map of a vector with some hundreds or thousands of channels. So this vector, and the map, which
is stored once, give all logits: the softmax bottleneck (Finlayson et al. 2024, "Logits of API-Protected LLMs Leak
Proprietary Information", arXiv 2403.09539, section 2). The vector is the output of the model's final norm (in models
like BERT, of the prediction head's transform).

Cost of rounding the vector, as mean KL divergence from the distributions of the unrounded vector (MiniLM's hidden
states of width 384, and a head tied to its embeddings, 30,522 ids, scaled to an entropy of 2.5 nats): float16 1e-7 at
768 bytes per position, int8 1.5e-4 at 391, int4 0.015 at 208. A sharper head costs more; the manifest states how much.
Float32 states would give 1e-12 and take twice the bytes, although the cost of float16 is already negligible.

Shapes: N positions, M positions of a sample, V vocabulary, D width, K ids that are shown.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator
from torch import Tensor
from torch.nn import functional

from shared.dump.codecs.base import Codec, DistributionCodec, Sample, VectorCodec
from shared.dump.codecs.columns import Column, Width
from shared.dump.codecs.constants import Constants, fingerprint
from shared.dump.codecs.targets import DenseTargets
from shared.dump.codecs.vectors.kinds import VectorKind, kept_by
from shared.dump.codecs.vectors.outliers import OutlierChannels
from shared.errors import DumpError, UsageError

# In tables a distribution is its most probable ids; all 30,000 to 250,000 ids of a vocabulary take megabytes per row.
SHOWN_IDS = 64
# Positions over which the rounding of states is measured: each costs two products with the whole head.
ROUNDING_POSITIONS = 1024
ROUNDING_VALUES = 2**22
# For polars: few enough that their logits stay in the processor's caches, enough to make up for converting the head.
SLICE_POSITIONS = 64


# Entries of transformers' configurations: Gemma 2 and 3, Cohere, Granite.
_CONFIG_ENTRIES = {"softcap": "final_logit_softcapping", "scale": "logit_scale", "divisor": "logits_scaling"}


class LogitStep(BaseModel):
    """The step that a few architectures apply to their logits after the output projection."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: Literal["none", "softcap", "scale", "divisor"] = "none"
    value: float = 1.0

    @field_validator("value")
    @classmethod
    def _changes_something(cls, value: float) -> float:
        if value == 0:
            raise ValueError("logits cannot be multiplied or divided by 0")
        return value

    @classmethod
    def of(cls, config: Any) -> Self:
        """Return the step of a model with this configuration."""
        for step, entry in _CONFIG_ENTRIES.items():
            if value := getattr(config, entry, None):
                return cls.model_validate({"step": step, "value": value})
        return cls()

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply the step: output of the projection [..., V] -> logits [..., V]."""
        if self.step == "softcap":
            return torch.tanh(logits / self.value) * self.value
        if self.step == "scale":
            return logits * self.value
        return logits / self.value if self.step == "divisor" else logits

    def formula(self, projected: str) -> str:
        """Return the step as a formula; `projected` is the text for the output of the projection."""
        return {
            "none": projected,
            "softcap": f"tanh(({projected}) / {self.value:g}) * {self.value:g}",
            "scale": f"({projected}) * {self.value:g}",
            "divisor": f"({projected}) / {self.value:g}",
        }[self.step]


class Exact(DistributionCodec):
    """All logits, stored as the input states of the output projection and the projection itself.

    The constants in `constants_file`, identified by `constants_sha256`, are weight [V, D] and, if the head has one,
    bias [V], in the teacher's dtype. Logits are computed in float32, whatever type the teacher computed in; a teacher
    in half precision rounds its own logits further.

    Attributes:
        states: the vector codec that encodes the states.
        outlier_channels: channels that this vector codec stores separately.
        after: the step after the projection.
    """

    takes: ClassVar[Literal["logits", "states"]] = "states"
    compresses: ClassVar[bool] = False
    keeps_all_logits: ClassVar[bool] = True

    codec: Literal["exact"] = "exact"
    vocabulary: int = Field(ge=1)
    width: Width
    states: VectorKind = "float16"
    outlier_channels: OutlierChannels = ()
    after: LogitStep = LogitStep()
    constants_sha256: str

    _constants: Constants = PrivateAttr(default_factory=Constants)

    @classmethod
    def of_head(
        cls, name: str, weight_VD: Tensor, bias_V: Tensor | None, after: LogitStep, states: str = "float16"
    ) -> "Exact":
        """Return the codec for the distributions of an output projection, with its constants."""
        constants = {"weight": weight_VD.detach()} | ({} if bias_V is None else {"bias": bias_V.detach()})
        vocabulary, width = weight_VD.shape
        facts = {"name": name, "vocabulary": vocabulary, "width": width, "states": states, "after": after}
        return cls.model_validate({**facts, "constants_sha256": fingerprint(constants)}).with_constants(constants)

    @classmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        raise UsageError("exact distributions need a teacher's head; request them with `exact`.")

    @property
    def outcomes(self) -> int:
        return self.vocabulary

    @property
    def state_codec(self) -> VectorCodec:
        """The vector codec that encodes the states."""
        return kept_by(self.states, f"{self.name}.state", self.width, self.outlier_channels)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.state_codec.columns

    def describe(self) -> str:
        states = f"last hidden states in {self.states}, {self.width} wide"
        return f"all {self.vocabulary:,} logits, from {states}"

    def explain(self) -> str:
        state, apart = self.state_codec.explain(), ""
        if self.outlier_channels:
            apart = f" Channels {list(self.outlier_channels)} are not in it but in `{self.name}.state.outliers`."
        return (
            f"The state that is the input of the teacher's output projection is {state}.{apart} The projection is in "
            f"`weights/{self.constants_file}`. All logits of a position are "
            f"`{self.after.formula('state @ weight.T + bias')}`, in float32; without the bias if the file has none."
        )

    def as_begun(self, begun: Codec, same_budget: bool) -> Codec:
        if not isinstance(begun, Exact) or begun.states != self.states:
            return self
        return self.model_copy(update={"outlier_channels": begun.outlier_channels})

    def fitted(self, sample: Sample) -> Self:
        if not self.state_codec.keeps_outliers or not len(states_MD := _states(sample)):
            return self
        return self.model_copy(update={"outlier_channels": self.state_codec.fitted(states_MD).outliers})

    @torch.inference_mode()
    def measured(self, sample: Sample) -> dict[str, float]:
        """Measure the mean KL divergence caused by rounding the states, at positions spread over the sample."""
        states_MD = _states(sample)
        states_MD = states_MD[:: max(1, len(states_MD) // ROUNDING_POSITIONS)]
        divergence = 0.0
        for states_ND in states_MD.split(max(1, ROUNDING_VALUES // self.vocabulary)):
            rounded_ND = self.state_codec.decode(self.state_codec.encode(states_ND))
            log_p_NV, log_q_NV = (self.logits(each).double().log_softmax(-1) for each in (states_ND, rounded_ND))
            divergence += float((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum())
        return {"rounding_kl": divergence / len(states_MD)} if len(states_MD) else {}

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self.state_codec.check(columns)

    def encode(self, states_ND: Tensor, keys_N: Tensor, /) -> dict[str, Tensor]:
        return self.state_codec.encode(states_ND)

    def decode(self, columns: dict[str, Tensor]) -> DenseTargets:
        """Return targets that compute logits on demand, because those of a whole batch may take gigabytes."""
        return DenseTargets(self.state_codec.decode(columns), self.logits)

    def logits(self, states_ND: Tensor) -> Tensor:
        """Return float32 logits_NV of states, on their device. Raises DumpError without the constants."""
        head = self._constants.on(states_ND.device, self._missing)
        bias_V = head["bias"].float() if "bias" in head else None
        # In float32 also if autocast is on in a training step.
        with torch.autocast(states_ND.device.type, enabled=False):
            return self.after(functional.linear(states_ND.float(), head["weight"].float(), bias_V))

    def ranked_expr(self) -> pl.Expr:
        """struct per position: ids, log_probs, tail and entropy, from one pass over the vocabulary."""
        types: dict[str, pl.DataType] = {
            "ids": pl.List(pl.Int64),
            "log_probs": pl.List(pl.Float64),
            "tail": pl.Float64(),
            "entropy": pl.Float64(),
        }

        def rank(states: pl.Series) -> pl.Series:
            states_ND = torch.tensor(states.list.explode().to_numpy()).reshape(-1, self.width)
            parts = [self._shown(part_ND) for part_ND in states_ND.split(SLICE_POSITIONS)]
            ids_NK, log_probs_NK, *values = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
            lists = [pl.Series(matrix).arr.to_list() for matrix in (ids_NK, log_probs_NK)]
            return pl.DataFrame(dict(zip(types, [*lists, *values], strict=True))).to_struct()

        vectors = self.state_codec.vector_expr()
        return vectors.map_batches(rank, return_dtype=pl.Struct(types), is_elementwise=True)

    def ids_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return self._of_ranked(ranked, "ids")

    def log_probs_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return self._of_ranked(ranked, "log_probs")

    def exact_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return pl.lit(min(SHOWN_IDS, self.vocabulary), dtype=pl.UInt32)

    def tail_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return self._of_ranked(ranked, "tail")

    def entropy_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """f64 per position: the entropy in nats over the whole vocabulary."""
        return self._of_ranked(ranked, "entropy")

    @property
    def constants_file(self) -> str:
        return f"{self.name}.safetensors"

    def constants(self) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in self._constants.known(self._missing).items()}

    def with_constants(self, tensors: dict[str, Tensor]) -> Self:
        if fingerprint(tensors) != self.constants_sha256:
            raise DumpError(
                f"weights/{self.constants_file}: not the output projection of the teacher of {self.name!r} (its "
                "SHA-256 differs); restore the file or dump again."
            )
        copy = self.model_copy()
        copy._constants = Constants(tensors)
        return copy

    def _shown(self, states_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (ids_NK, log_probs_NK, tail_N, entropy_N), computed in float64 from the logits."""
        logits_NV = self.logits(states_ND)
        top_NK, ids_NK = logits_NV.topk(min(SHOWN_IDS, self.vocabulary))
        # Logits are finite, because the projection's weights are, so nothing here is 0 times infinity.
        shifted_NV = logits_NV.double() - top_NK[:, :1]
        mass_NV = shifted_NV.exp()
        total_N1 = mass_NV.sum(-1, keepdim=True)
        log_total_N = total_N1.log().squeeze(-1)
        entropy_N = log_total_N - (mass_NV * shifted_NV).sum(-1) / total_N1[:, 0]
        tail_N = mass_NV.scatter(-1, ids_NK, 0.0).sum(-1).log() - log_total_N
        return ids_NK, shifted_NV.gather(-1, ids_NK) - log_total_N[:, None], tail_N, entropy_N

    def _of_ranked(self, ranked: pl.Expr | None, name: str) -> pl.Expr:
        return (self.ranked_expr() if ranked is None else ranked).struct.field(name)

    @property
    def _missing(self) -> str:
        return (
            f"the distributions {self.name!r} can't be decoded without the teacher's output projection, which the dump "
            f"keeps in weights/{self.constants_file}."
        )


def _states(sample: Sample) -> Tensor:
    """Return all states of a sample, [M, D]."""
    return torch.cat([states_ND for states_ND, _ in sample])
