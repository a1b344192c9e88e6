"""What an engine is, the part of `dump` that runs the teacher.

An entry of the table `ENGINES` describes a teacher before its weights are loaded (`TeacherDescription`), so that a
whole corpus can be checked first; what the description loads is the `Engine`. `dump` asks it for everything that
depends on how a teacher is run: which signals there are and how wide they are, how rows become a batch, what a batch
gives, and what the device's memory holds. Nothing else of the teacher is known outside of the engine's file or folder.

Shapes: B rows, L tokens of the longest, T tokens of all rows, N recorded positions, D width, V vocabulary or classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shared.dump.codecs import Exact
from shared.dump.manifest import Teacher as TeacherFacts
from shared.dump.signals import SITES, Signal, SignalKey
from shared.errors import TeacherError, UsageError
from shared.text.tokenized import TokenizedRow
from teacher_dump.engines.batch import Batch, pad
from teacher_dump.engines.devices import DeviceMemory


@dataclass(frozen=True)
class Wanted:
    """What is asked of a forward pass: what distributions are made from (logits, or the states that a vocabulary's
    head makes them of), and the vectors of some signals."""

    distribution: Literal["logits", "states"] | None
    keys: tuple[SignalKey, ...] = ()

    @classmethod
    def of(cls, distribution: Literal["logits", "states"] | None, vectors: Iterable[Signal]) -> "Wanted":
        """What these signals are made from."""
        return cls(distribution, tuple(signal.key for signal in vectors))


@dataclass(frozen=True)
class TeacherOutputs:
    """What the teacher gives for a batch.

    Attributes:
        distribution_at: indices [N] into the flattened inputs (of a task with one distribution a row, indices of rows)
            -> float32 logits_NV, or states_ND where the vocabulary's head is. None where neither is wanted.
        slice_positions: how many to ask for at a time; None for all.
        vectors: of each wanted signal [T, D] of any floating type, tokens without padding; of a site that is recorded
            per position [N, D], per row [B, D].
    """

    distribution_at: Callable[[Tensor], Tensor] | None
    slice_positions: int | None
    vectors: Mapping[SignalKey, Tensor]


@dataclass(frozen=True)
class TeacherDescription(ABC):
    """What is known of a teacher before its weights are loaded.

    Attributes:
        tokenizer: a fast one.
        label_names: in the order of its logits; None where the task's classes have no names.
        longest_row: the most tokens that it takes at once; None for any number.
    """

    tokenizer: PreTrainedTokenizerBase
    label_names: tuple[str, ...] | None
    longest_row: int | None

    @abstractmethod
    def load(self) -> "Engine":
        """The teacher, ready to run. Raises TeacherError or UsageError with what it lacks."""


class Engine(ABC):
    """A loaded teacher, and all that `dump` asks of it.

    `run` is called inside of `torch.inference_mode`, in one thread, and `batch` meanwhile in another.

    Attributes:
        architecture: what kind of model it is, for people.
        device: where batches are run.
        dtype: in which type it computes, as the manifest names it ("fp32", "bf16", "fp16").
        vocabulary: of a language model, classes of a distribution; of another, rows of its embeddings.
        pad_token_id: what fills up the rows of a padded batch.
        one_row_a_batch: whether padding would be taken for text.
    """

    architecture: str
    device: torch.device
    dtype: str
    vocabulary: int
    pad_token_id: int
    one_row_a_batch: bool = False

    # ---------------------------------------------------------------- facts

    @abstractmethod
    def facts(self) -> TeacherFacts:
        """What the manifest says of the teacher. Its fingerprint must differ between any two teachers that give
        different outputs: a dump never mixes them."""

    @abstractmethod
    def offers(self) -> Mapping[str, Sequence[int | None]]:
        """The layers of each site whose vectors it can give, in rising order; (None,) for a site that is no layer's.
        Distributions are not among them: every teacher of a task that has distributions gives those."""

    @abstractmethod
    def widths(self, keys: Sequence[SignalKey]) -> list[int]:
        """How wide the vectors of each signal are, all of them among `offers()`.

        Raises:
            TeacherError: where the teacher turns out not to give them.
        """

    @property
    def memory(self) -> DeviceMemory:
        """The device's memory."""
        return DeviceMemory(self.device)

    # ---------------------------------------------------------------- running

    def batch(self, rows: Sequence[TokenizedRow], numbers: Sequence[int]) -> Batch:
        """Rows (`numbers` in the corpus) as one batch on the host: padded, unless the engine does without."""
        return self.on_host(pad(rows, numbers, self.pad_token_id))

    def on_host(self, batch: Batch) -> Batch:
        """A batch where the device copies it from at once: in pinned memory, if it is a CUDA device."""
        return batch.pinned() if self.device.type == "cuda" else batch

    @abstractmethod
    def run(self, batch: Batch, wanted: Wanted) -> TeacherOutputs:
        """Run the teacher over a batch that is on its device."""

    # ---------------------------------------------------------------- what only some give

    def exact(self, name: str, states: str) -> Exact:
        """The codec `name` of all logits of its vocabulary, made from states that are kept as `states` ("float16",
        "int8", ...). Where there is one, `run` gives the states.

        Raises:
            TeacherError: where logits cannot be had from a state and a head.
        """
        raise TeacherError(
            f"--exact: {self.architecture} gives logits, and not the states and the output projection that "
            "they are made of; choose another rule, such as --preset near-lossless."
        )

    def word_embeddings(self) -> Tensor:
        """Its input word embeddings [V, D]. Raises TeacherError where it does not show them."""
        raise TeacherError(
            f"--embeddings: {self.architecture} does not show its word embeddings; leave the option out."
        )

    def check(self, key: SignalKey) -> None:
        """Whether the vectors of a signal may be asked for.

        Raises:
            UsageError: for a layer that is not among `offers()`.
            TeacherError: for a site that is not.
        """
        site, layers = SITES.named(key.site), self.offers().get(key.site, ())
        if key.layer in layers:
            return
        if not layers:
            shown = ", ".join(site for site, layers in self.offers().items() if layers)
            raise TeacherError(
                f"signal {key.name!r}: {self.architecture} does not show its {site.words}"
                f"{f', but {shown}' if shown else ''}; leave the signal out, or use another teacher."
            )
        if site.first_layer is None:
            raise UsageError(f"signal {key.name!r}: {key.site!r} is of no layer; ask for it without one.")
        raise UsageError(
            f"signal {key.name!r}: this teacher has it in layers {layers[0]} to {layers[-1]}; name one of these."
        )
