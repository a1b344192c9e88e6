"""Fit signals to a sample of the corpus: the threshold of a byte budget, and the constants of vector codecs.

The size and the loss of every signal are measured on the same sample. A dump that has been begun keeps its fitted
values, because the last digits would differ on other hardware.

Shapes: N recorded positions, V vocabulary, M positions of the sample, D width.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.dump.codecs import Codec, DistributionCodec, VectorCodec
from shared.dump.codecs.base import Sample
from shared.dump.layouts import Layout
from shared.dump.manifest import Manifest
from shared.dump.shards import weigh
from shared.dump.signals import ATTENTION_INPUTS, Signal
from shared.dump.weights.projections import from_file
from shared.dump.weights.tensor_file import ATTENTION, TENSOR_FILES, TensorFile
from shared.errors import UsageError
from shared.progress import Progress
from shared.text.tokenized import TokenizedRow
from teacher_dump.batching.mixing import mixed
from teacher_dump.batching.rows import ShardRows, annotate_rows, batches_of
from teacher_dump.engines.base import Engine, TeacherOutputs, Wanted
from teacher_dump.engines.batch import Batch
from teacher_dump.extract import broken, distributions
from teacher_dump.tensor_files.relations_error import relations_kl

SAMPLE_TOKENS = 4096


def calibrate(
    engine: Engine,
    draft: Manifest,
    rows: Sequence[TokenizedRow],
    numbers: Sequence[int],
    batch_tokens: Callable[[], int],
) -> Manifest:
    """The manifest with its signals fitted to a sample of rows and measured on it; `numbers` are the rows' numbers.

    Raises:
        TeacherError: for NaN or infinity in the sample, naming the row.
        UsageError: for a byte budget that no threshold meets.
    """
    chosen = _rows_within(rows, SAMPLE_TOKENS)
    if not chosen or not any(signal.codec.needs_sample for signal in draft.signals):
        return draft
    sample = _Sample(
        engine,
        draft.layout,
        ShardRows.in_order([rows[index] for index in chosen], [numbers[index] for index in chosen]),
        batch_tokens,
    )
    vectors = sample.vectors(draft.vector_signals)
    taken = sample.taken(draft)
    fitted = (signal.with_codec(_fit(sample, draft, signal, vectors, taken)) for signal in draft.signals)
    manifest = draft.model_copy(update={"signals": tuple(fitted)})
    sizes = sample.bytes_by_signal(manifest)
    measured = {
        signal.name: {"bytes_per_position": sizes[signal.name]}
        | _losses(signal, vectors, taken)
        | _relations_loss(manifest, signal, vectors, sample.lengths)
        for signal in manifest.signals
    }
    rounded = {name: {key: float(f"{value:.4g}") for key, value in facts.items()} for name, facts in measured.items()}
    return manifest.model_copy(update={"measured": rounded})


def as_begun(begun: Manifest, draft: Manifest) -> Manifest:
    """The draft with the codecs fitted and the files measured when the dump was begun, where the same was requested,
    its format version and its identity.

    A dump of an earlier format version is continued in that version.
    """
    had = {signal.name: signal.codec for signal in begun.signals}
    same_budget = begun.options.bytes_per_token == draft.options.bytes_per_token is not None
    signals = tuple(
        signal.with_codec(signal.codec.as_begun(had.get(signal.name, signal.codec), same_budget))
        for signal in draft.signals
    )
    files = {name: _file_as_begun(name, file, begun) for name, file in draft.tensor_files.items()}
    kept = {"measured": begun.measured, "format_version": begun.format_version, "identity": begun.identity}
    return draft.model_copy(update={"signals": signals, "tensor_files": files, **kept})


def _file_as_begun(name: str, file: TensorFile, begun: Manifest) -> TensorFile:
    had = begun.tensor_files.get(name)
    return had if TENSOR_FILES[name].is_measured and had is not None and had.facts == file.facts else file


class _Sample:
    """Sampled rows, in the order of a shard, and the teacher that is run over them."""

    def __init__(self, engine: Engine, layout: Layout, rows: ShardRows, batch_tokens: Callable[[], int]) -> None:
        self.engine, self.layout, self.rows, self.batch_tokens = engine, layout, rows, batch_tokens
        # The number of tokens of each row, in the order of the vectors.
        self.lengths: list[int] = []

    def outputs(self, wanted: Wanted) -> Iterator[tuple[Batch, TeacherOutputs]]:
        """The teacher's outputs for the sample, batch by batch."""
        for batch in batches_of(self.engine, self.layout, self.rows, self.batch_tokens):
            yield batch, self.engine.run(batch.to(self.engine.device), wanted)

    @torch.inference_mode()
    def vectors(self, signals: Sequence[Signal]) -> dict[str, Tensor]:
        """The vectors [M, D] of each signal, on the host. Raises TeacherError for NaN or infinity, naming the row."""
        parts: dict[str, list[Tensor]] = {signal.name: [] for signal in signals}
        for batch, outputs in self.outputs(Wanted.of(None, signals)) if signals else ():
            self.lengths += batch.lengths
            for signal in signals:
                vectors_ND = outputs.vectors[signal.key]
                is_broken_N = ~vectors_ND.isfinite().all(-1)
                if is_broken_N.any():
                    raise broken(batch.owners(signal.per)[int(is_broken_N.nonzero()[0, 0])], signal.name)
                parts[signal.name].append(vectors_ND.float().cpu())
        return {name: torch.cat(each) for name, each in parts.items()}

    def taken(self, manifest: Manifest) -> Sample:
        """The sample's logits or states, whichever the codec of the distribution takes.

        States are only as wide as the model, and are kept. Logits are computed again for each pass over them.

        Raises:
            TeacherError: for NaN or infinity in states, naming the row.
        """
        codec = manifest.distribution
        if codec is None:
            return []
        return list(self._states(manifest)) if codec.takes == "states" else _Logits(self, manifest)

    @torch.inference_mode()
    def _states(self, manifest: Manifest) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (states_ND, keys_N) in slices, on the device of the output projection."""
        for batch, outputs in self.outputs(Wanted("states")):
            for start, states_ND, keys_N in distributions(manifest, batch, outputs):
                broken_N = ~states_ND.isfinite().all(-1)
                if broken_N.any():
                    position = start + int(broken_N.nonzero()[0, 0])
                    raise broken(batch.owners("position")[position], "last hidden states")
                yield states_ND, keys_N

    def bytes_by_signal(self, manifest: Manifest) -> dict[str, float]:
        """The bytes of each signal in a shard of this sample, per token, position or row."""
        with Progress("calibrate", "tokens", self.rows.tokens) as progress:
            rows = mixed(manifest, self.rows)
            batches = batches_of(self.engine, self.layout, rows, self.batch_tokens)
            groups = annotate_rows(self.engine, manifest, rows, batches, progress)
            facts, sizes, _ = weigh(manifest, groups)
        return {
            signal.name: sum(sizes[column.name] for column in signal.columns) / max(1, facts[f"{signal.per}s"])
            for signal in manifest.signals
        }


def _rows_within(rows: Sequence[TokenizedRow], tokens: int) -> list[int]:
    """Indices of at least one row, with about this many tokens in all.

    They come from the whole sample, because the beginning of a corpus may be unlike the rest.
    """
    chosen: list[int] = []
    for index in random.Random(0).sample(range(len(rows)), len(rows)):
        if tokens <= 0 and chosen:
            break
        chosen.append(index)
        tokens -= len(rows[index].input_ids)
    return chosen


@dataclass(frozen=True)
class _Logits:
    """The sample's logits in slices; each pass over them runs the teacher again."""

    sample: _Sample
    manifest: Manifest

    @torch.inference_mode()
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch, outputs in self.sample.outputs(Wanted("logits")):
            for _, logits_NV, keys_N in distributions(self.manifest, batch, outputs):
                yield logits_NV, keys_N


def _fit(sample: _Sample, draft: Manifest, signal: Signal, vectors: Mapping[str, Tensor], taken: Sample) -> Codec:
    codec, budget = signal.codec, draft.options.bytes_per_token
    if isinstance(codec, VectorCodec):
        return codec.fitted(vectors[signal.name]) if len(vectors[signal.name]) else codec
    if not isinstance(codec, DistributionCodec):
        return codec
    fitted = codec.fitted(taken)
    if budget is None:
        return fitted

    def bytes_of(candidate: DistributionCodec) -> float:
        alone = draft.model_copy(update={"signals": (signal.with_codec(candidate),)})
        return sample.bytes_by_signal(alone)[signal.name]

    try:
        return fitted.within(budget, bytes_of)
    except ValueError as error:
        raise UsageError(
            f"--bytes-per-token {budget:g}: on a sample of this corpus {error}; choose another budget."
        ) from None


def _losses(signal: Signal, vectors: Mapping[str, Tensor], taken: Sample) -> dict[str, float]:
    codec = signal.codec
    if isinstance(codec, VectorCodec):
        return codec.measured(vectors[signal.name]) if len(vectors[signal.name]) else {}
    return codec.measured(taken) if isinstance(codec, DistributionCodec) else {}


@torch.inference_mode()
def _relations_loss(
    manifest: Manifest, signal: Signal, vectors: Mapping[str, Tensor], lengths: Sequence[int]
) -> dict[str, float]:
    """What the codec does to the attention relations that are computed from a signal; empty for other signals."""
    codec = signal.codec
    if signal.site != ATTENTION_INPUTS or signal.layer is None or not isinstance(codec, VectorCodec):
        return {}
    file, exact_MD = manifest.tensor_files[ATTENTION], vectors[signal.name]
    projections = from_file(file.unwritten(), file.facts)[signal.layer]
    return {"relations_kl": relations_kl(projections, exact_MD, codec.decode(codec.encode(exact_MD)), lengths)}
