"""The contract of an engine, the part of `dump` that runs the teacher.

An entry of the table `ENGINES` describes a teacher before its weights are loaded (`TeacherDescription`), so that the
whole corpus can be checked first. The description loads the `Engine`, which knows everything that depends on how a
teacher is run: which signals it can give and their widths, how rows become a batch, the outputs of a batch, and how
much fits into the device's memory. No code outside of the engine's file or folder knows more about the teacher.

Shapes: B rows, L tokens of the longest, T tokens of all rows, N recorded positions, D width, V vocabulary or classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shared.dump.codecs import Exact
from shared.dump.facts import Pooling
from shared.dump.facts import Teacher as TeacherFacts
from shared.dump.signals import SITES, Signal, SignalKey
from shared.dump.weights.projections import Projections
from shared.errors import TeacherError, UsageError
from shared.models.mixing import MixedInputs
from shared.text.tokenized import TokenizedRow
from teacher_dump.engines.batch import Batch, pad
from teacher_dump.engines.devices import DeviceMemory


@dataclass(frozen=True)
class Wanted:
    """The outputs that a forward pass should give.

    Attributes:
        distribution: "logits", "states" (the inputs of the output projection over a vocabulary), or None for neither.
        keys: the signals of vectors.
    """

    distribution: Literal["logits", "states"] | None
    keys: tuple[SignalKey, ...] = ()

    @classmethod
    def of(cls, distribution: Literal["logits", "states"] | None, vectors: Iterable[Signal]) -> "Wanted":
        """The outputs from which these signals are encoded."""
        return cls(distribution, tuple(signal.key for signal in vectors))


@dataclass(frozen=True)
class TeacherOutputs:
    """The teacher's outputs for a batch.

    Attributes:
        distribution_at: a function of indices [N] into the flattened inputs (for a task with one distribution per row:
            indices of rows), which returns float32 logits_NV, or states_ND on the device of the output projection. None
            if neither is wanted.
        slice_positions: the largest number of indices to give `distribution_at` at once; None for any number.
        vectors: of each wanted signal [T, D] of any floating type, without padding; for a site that is recorded per
            position [N, D], per row [B, D].
    """

    distribution_at: Callable[[Tensor], Tensor] | None
    slice_positions: int | None
    vectors: Mapping[SignalKey, Tensor]


@dataclass(frozen=True)
class TeacherDescription(ABC):
    """The properties of a teacher that are known before its weights are loaded.

    Attributes:
        tokenizer: a fast tokenizer.
        label_names: in the order of the logits; None if the task's classes have no names.
        longest_row: the largest number of tokens of a row; None for any number.
        pooling: how embeddings of rows are made, if they are recorded.
        cut_at: the number of tokens to which the teacher itself cuts its texts; None if it does not.
    """

    tokenizer: PreTrainedTokenizerBase
    label_names: tuple[str, ...] | None
    longest_row: int | None
    pooling: Pooling | None = field(default=None, kw_only=True)
    cut_at: int | None = field(default=None, kw_only=True)

    @abstractmethod
    def load(self) -> "Engine":
        """Load the teacher and return it ready to run. Raises TeacherError or UsageError if it lacks something."""


class Engine(ABC):
    """A loaded teacher.

    `run` is called inside `torch.inference_mode` in one thread, while `batch` is called in another.

    Attributes:
        architecture: the kind of model, for messages.
        device: the device of the batches.
        dtype: the type of the computation, as the manifest names it ("fp32", "bf16", "fp16").
        vocabulary: the number of classes of a language model's distribution; for other models, rows of the embeddings.
        pad_token_id: the id that fills up the rows of a padded batch.
        pooling: how embeddings of rows are made, if they are recorded.
        one_row_a_batch: whether a batch may have only one row, because the model would take padding for text.
    """

    architecture: str
    device: torch.device
    dtype: str
    vocabulary: int
    pad_token_id: int
    pooling: Pooling | None = None
    one_row_a_batch: bool = False

    # ---------------------------------------------------------------- facts

    @abstractmethod
    def facts(self) -> TeacherFacts:
        """The manifest's entry about the teacher.

        The fingerprint must differ between any two teachers with different outputs, because a dump never mixes them.
        """

    @abstractmethod
    def offers(self) -> Mapping[str, Sequence[int | None]]:
        """The layers of each site whose vectors the teacher can give, in ascending order.

        (None,) for a site that does not belong to a layer. Distributions are not listed, because every teacher for a
        task with distributions gives them.
        """

    @abstractmethod
    def widths(self, keys: Sequence[SignalKey]) -> list[int]:
        """The width of the vectors of each signal; all are among `offers()`.

        Raises:
            TeacherError: if the teacher does not give them after all.
        """

    @property
    def memory(self) -> DeviceMemory:
        """The device's memory."""
        return DeviceMemory(self.device)

    # ---------------------------------------------------------------- running

    def batch(self, rows: Sequence[TokenizedRow], numbers: Sequence[int]) -> Batch:
        """Put rows (`numbers` in the corpus) into one batch on the host, padded unless the engine needs no padding."""
        return self.on_host(pad(rows, numbers, self.pad_token_id))

    def on_host(self, batch: Batch) -> Batch:
        """The batch in memory from which the device copies without waiting: pinned memory for a CUDA device."""
        return batch.pinned() if self.device.type == "cuda" else batch

    @abstractmethod
    def run(self, batch: Batch, wanted: Wanted) -> TeacherOutputs:
        """Run the teacher over a batch that is on its device."""

    # ---------------------------------------------------------------- what only some engines give

    def exact(self, name: str, states: str) -> Exact:
        """The codec `name` of all logits over the vocabulary, computed from states stored as `states` ("float16", ...).

        An engine that gives this codec also gives the states in `run`.

        Raises:
            TeacherError: if the logits cannot be computed from a state and a head.
        """
        raise TeacherError(
            f"--exact: {self.architecture} gives logits, but not the states and the output projection from which they "
            "are computed; choose another rule, such as --preset near-lossless."
        )

    def attention_projections(self, layers: Sequence[int], longest_row: int) -> dict[int, Projections]:
        """The projections with which the queries, keys and values of layers are computed from `attention_inputs`.

        Args:
            longest_row: the number of tokens of the longest row.

        Raises:
            TeacherError: if they cannot be computed so.
        """
        raise TeacherError(
            f"--attention-inputs: {self.architecture} does not give the projections of its attention; leave the option "
            "out."
        )

    def word_embeddings(self) -> Tensor:
        """The input word embeddings [V, D]. Raises TeacherError if the teacher does not give them."""
        raise TeacherError(
            f"--embeddings: {self.architecture} does not give its word embeddings; leave the option out."
        )

    def weights(self, layers: Sequence[int] | None) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """(the configuration, as JSON; the weights by name), of which a model of transformers can be made.

        Args:
            layers: numbers of the layers, from 1, to which the weights are limited, beside everything outside of the
                layers; None for all.

        Raises:
            TeacherError: if the teacher has no plain weights.
            UsageError: for a layer that it lacks.
        """
        raise TeacherError(
            f"--teacher-weights: {self.architecture} is no model of transformers, of whose weights another could be "
            "made; leave the option out."
        )

    def importance(
        self, batches: Iterable[Batch], loss: Callable[[Tensor | None, Tensor, Batch], Tensor]
    ) -> dict[str, Tensor]:
        """First-order importance of the teacher's parts on these batches, which are padded and on the host.

        Args:
            loss: (logits or None, last hidden states [B, L, D], batch) -> the sum of the losses of the batch's rows.

        Returns:
            float32 `heads` [layers, heads], `neurons` [layers, neurons] and `residual` [D], on the host.

        Raises:
            TeacherError: if heads and neurons are not found, or for NaN or infinity.
        """
        raise TeacherError(
            f"--importance: {self.architecture} is no model of transformers, whose heads and neurons could be found; "
            "leave the option out."
        )

    def check_mixing(self) -> None:
        """Check that `mixed_logits` works. Raises TeacherError if the teacher does not take embeddings."""
        raise TeacherError(
            f"--mixup: {self.architecture} takes token ids, and no embeddings in their place; leave the option out."
        )

    def mixed_logits(self, inputs: MixedInputs) -> Tensor:
        """The logits [M, C] of a classifier for mixtures of rows, which are on its device."""
        raise NotImplementedError

    def check(self, key: SignalKey) -> None:
        """Check that the teacher can give the vectors of a signal.

        Raises:
            UsageError: for a layer that is not among `offers()`.
            TeacherError: for a site that is not among them.
        """
        site, layers = SITES.named(key.site), self.offers().get(key.site, ())
        if key.layer in layers:
            return
        if not layers:
            shown = ", ".join(site for site, layers in self.offers().items() if layers)
            raise TeacherError(
                f"signal {key.name!r}: {self.architecture} does not give its {site.words}"
                f"{f', but {shown}' if shown else ''}; leave the signal out, or use another teacher."
            )
        if site.first_layer is None:
            raise UsageError(f"signal {key.name!r}: {key.site!r} does not belong to a layer; request it without one.")
        raise UsageError(
            f"signal {key.name!r}: this teacher has it in layers {layers[0]} to {layers[-1]}; name one of these."
        )
