"""The codec of whole distributions over a large vocabulary: what goes into the output projection, and the projection.

All logits are a linear map of a vector some hundred or thousand numbers wide, so that this vector and the map, kept
once, give all of them back: the softmax bottleneck (Finlayson et al. 2024, "Logits of API-Protected LLMs Leak
Proprietary Information", arXiv 2403.09539, section 2). The vector is the one after the model's final norm (of BERT's
kind: after the prediction head's transform).

What the vector's rounding costs, as mean KL to the distributions of the unrounded one (MiniLM's hidden states, 384
wide, and a head tied to its embeddings, 30,522 ids, scaled to an entropy of 2.5 nats): float16 1e-7 at 768 bytes a
position, int8 1.5e-4 at 391, int4 0.015 at 208; a sharper head costs more, and the manifest says how much. Float32
states would bring 1e-12, for twice the bytes of what is negligible already.

Shapes: N positions, V vocabulary, D width, K ids that are shown.
"""

from typing import Any, ClassVar, Literal, Self

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from torch import Tensor
from torch.nn import functional

from shared.dump.codecs.base import Codec, DistributionCodec, Sample, VectorCodec
from shared.dump.codecs.columns import Column
from shared.dump.codecs.constants import Constants, fingerprint
from shared.dump.codecs.targets import DenseTargets
from shared.dump.codecs.vectors.kinds import VectorKind, kept_by
from shared.dump.codecs.vectors.outliers import OutlierChannels
from shared.errors import DumpError, UsageError

# To people a distribution is its most probable ids; all of a vocabulary's 30,000 to 250,000 would be megabytes a row.
SHOWN_IDS = 64
# Positions over which the rounding of states is measured: each costs two products with the whole head.
ROUNDING_POSITIONS = 1024
ROUNDING_VALUES = 2**22
# Where polars asks: few enough that their logits stay near the processor, enough to be worth the head's conversion.
SLICE_POSITIONS = 64


# Entries of transformers' configurations: Gemma 2 and 3, Cohere, Granite.
_CONFIG_ENTRIES = {"softcap": "final_logit_softcapping", "scale": "logit_scale", "divisor": "logits_scaling"}


class LogitStep(BaseModel):
    """What a few architectures do to their logits after the projection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["none", "softcap", "scale", "divisor"] = "none"
    value: float = 1.0

    @classmethod
    def of(cls, config: Any) -> Self:
        """What a model with this configuration does."""
        for step, entry in _CONFIG_ENTRIES.items():
            if value := getattr(config, entry, None):
                return cls.model_validate({"step": step, "value": value})
        return cls()

    def __call__(self, logits: Tensor) -> Tensor:
        """Projected [..., V] -> logits [..., V]."""
        if self.step == "softcap":
            return torch.tanh(logits / self.value) * self.value
        if self.step == "scale":
            return logits * self.value
        return logits / self.value if self.step == "divisor" else logits

    def formula(self, projected: str) -> str:
        """The same as text, of logits that are called `projected`."""
        return {
            "none": projected,
            "softcap": f"tanh(({projected}) / {self.value:g}) * {self.value:g}",
            "scale": f"({projected}) * {self.value:g}",
            "divisor": f"({projected}) / {self.value:g}",
        }[self.step]


class Exact(DistributionCodec):
    """All logits, as the state that goes into the output projection and the projection itself.

    Constants in `constants_file`, known by `constants_sha256`: weight [V, D] and, where the head has one, bias [V], in
    the teacher's own type. Logits are made in float32, whatever type the teacher computed in: a teacher in half
    precision rounds its own logits further.

    Attributes:
        states: the codec of vectors that keeps the states, with its outlier channels.
        after: what follows the projection.
    """

    takes: ClassVar[Literal["logits", "states"]] = "states"
    compresses: ClassVar[bool] = False
    keeps_all_logits: ClassVar[bool] = True

    codec: Literal["exact"] = "exact"
    vocabulary: int = Field(ge=1)
    width: int = Field(ge=1)
    states: VectorKind = "float16"
    outlier_channels: OutlierChannels = ()
    after: LogitStep = LogitStep()
    constants_sha256: str

    _constants: Constants = PrivateAttr(default_factory=Constants)

    @classmethod
    def of_head(
        cls, name: str, weight_VD: Tensor, bias_V: Tensor | None, after: LogitStep, states: str = "float16"
    ) -> "Exact":
        """The codec of a head's distributions, with its constants."""
        constants = {"weight": weight_VD.detach()} | ({} if bias_V is None else {"bias": bias_V.detach()})
        vocabulary, width = weight_VD.shape
        facts = {"name": name, "vocabulary": vocabulary, "width": width, "states": states, "after": after}
        return cls.model_validate({**facts, "constants_sha256": fingerprint(constants)}).with_constants(constants)

    @classmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        raise UsageError("exact distributions come from a teacher's head; ask for them by `exact`.")

    @property
    def state_codec(self) -> VectorCodec:
        """The codec of the states."""
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
            f"The state that goes into the teacher's output projection is {state}.{apart} The projection is in "
            f"`weights/{self.constants_file}`. All logits of a position are "
            f"`{self.after.formula('state @ weight.T + bias')}`, in float32; where the file has no bias, there is none."
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
        """The KL divergence that rounding the states costs, the mean over positions from all over the sample."""
        states_MD = _states(sample)
        states_MD = states_MD[:: max(1, len(states_MD) // ROUNDING_POSITIONS)]
        divergence = 0.0
        for states_ND in states_MD.split(max(1, ROUNDING_VALUES // self.vocabulary)):
            rounded_ND = self.state_codec.decode(self.state_codec.encode(states_ND))
            log_p_NV, log_q_NV = (self.logits(each).double().log_softmax(-1) for each in (states_ND, rounded_ND))
            divergence += float((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum())
        return {"rounding_kl": divergence / len(states_MD)} if len(states_MD) else {}

    def encode(self, states_ND: Tensor, keys_N: Tensor, /) -> dict[str, Tensor]:
        return self.state_codec.encode(states_ND)

    def decode(self, columns: dict[str, Tensor]) -> DenseTargets:
        """Targets whose logits are made only where they are looked at: of a batch they would be gigabytes."""
        return DenseTargets(self.state_codec.decode(columns), self.logits)

    def logits(self, states_ND: Tensor) -> Tensor:
        """float32 logits_NV of states, on their device. Raises DumpError without the constants."""
        head = self._constants.on(states_ND.device, self._missing)
        bias_V = head["bias"].float() if "bias" in head else None
        # Also where a training step has autocast on.
        with torch.autocast(states_ND.device.type, enabled=False):
            return self.after(functional.linear(states_ND.float(), head["weight"].float(), bias_V))

    def ranked_expr(self) -> pl.Expr:
        """struct a position: the four columns that follow, from one pass over the vocabulary."""
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
        """Over the whole vocabulary."""
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
        """(ids_NK, log_probs_NK, tail_N, entropy_N), in float64 from the logits on."""
        logits_NV = self.logits(states_ND)
        top_NK, ids_NK = logits_NV.topk(min(SHOWN_IDS, self.vocabulary))
        # Logits are finite, as the projection's weights are, so that nothing here is 0 times infinity.
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
    """[M, D]."""
    return torch.cat([states_ND for states_ND, _ in sample])
