"""What only a sample of the corpus can tell: the threshold that meets a byte budget, the constants of vector codecs,
and what every signal costs and loses.

A dump that is begun already keeps what it was begun with: the sample would give other last digits on other hardware.

Shapes: N recorded positions, V vocabulary, M positions of the sample, D width.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from shared.dump.codecs import Codec, Dense, Exact, Sparse, SparseTargets, Threshold, VectorCodec
from shared.dump.codecs.vectors.fitting import fit_vector_codec, reconstruction
from shared.dump.manifest import Manifest
from shared.dump.shards import weigh
from shared.dump.signals import HIDDEN, Signal
from shared.errors import UsageError
from shared.progress import Progress
from shared.text.tasks import TokenizedRow
from teacher_dump.batches import Batch
from teacher_dump.engines.transformers.forward import Said, Wanted, run
from teacher_dump.engines.transformers.teacher import Teacher
from teacher_dump.extract import broken, distributions
from teacher_dump.rows import ShardRows, annotate_rows, batches_of

SAMPLE_TOKENS = 4096
BUDGET_TOLERANCE = 0.02
BUDGET_STEPS = 8
THRESHOLDS = (1e-5, 0.5)
# Positions over which the rounding of states is measured: each costs two products with the whole head.
ROUNDING_POSITIONS = 1024
ROUNDING_VALUES = 2**22


def calibrate(
    teacher: Teacher,
    draft: Manifest,
    rows: Sequence[TokenizedRow],
    numbers: Sequence[int],
    batch_tokens: Callable[[], int],
) -> Manifest:
    """The manifest with its signals fitted to a sample of rows (`numbers` in the corpus), and measured on it.

    Raises:
        TeacherError: for NaN or infinity in the sample, naming the row.
        UsageError: for a byte budget that no threshold meets.
    """
    chosen = _rows_within(rows, SAMPLE_TOKENS)
    if not chosen or all(isinstance(signal.codec, Dense) for signal in draft.signals):
        return draft
    sample = _Sample(
        teacher,
        ShardRows.in_order([rows[index] for index in chosen], [numbers[index] for index in chosen]),
        batch_tokens,
    )
    vectors = sample.vectors(draft.vector_signals)
    if isinstance(draft.distribution, Exact):
        vectors[draft.distribution.name] = sample.states(draft)
    fitted = tuple(signal.with_codec(_fit(sample, draft, signal, vectors)) for signal in draft.signals)
    manifest = draft.model_copy(update={"signals": fitted})
    sizes = sample.bytes_by_signal(manifest)
    measured = {name: {"bytes_per_position": size} for name, size in sizes.items()}
    for codec in (signal.codec for signal in manifest.signals):
        if isinstance(codec, Sparse):
            measured[codec.name] |= _loss_of_distribution(sample, manifest, codec)
        elif isinstance(codec, Exact):
            measured[codec.name] |= _loss_of_states(codec, vectors[codec.name])
        elif isinstance(codec, VectorCodec):
            measured[codec.name] |= reconstruction(codec, vectors[codec.name])._asdict()
    rounded = {name: {key: float(f"{value:.4g}") for key, value in facts.items()} for name, facts in measured.items()}
    return manifest.model_copy(update={"measured": rounded})


def as_begun(begun: Manifest, draft: Manifest) -> Manifest:
    """The draft with what was fitted when the dump was begun, wherever the same was asked for, and its version: one of
    an earlier version goes on in it."""
    had = {signal.name: signal.codec for signal in begun.signals}
    same_budget = begun.options.bytes_per_token == draft.options.bytes_per_token is not None
    same_vectors = (begun.options.hidden_codec, begun.options.hidden_rank) == (
        draft.options.hidden_codec,
        draft.options.hidden_rank,
    )

    def fitted(codec: Codec) -> Codec:
        old = had.get(codec.name)
        if isinstance(codec, VectorCodec) and isinstance(old, VectorCodec):
            return old if same_vectors and old.width == codec.width else codec
        if isinstance(codec, Exact) and isinstance(old, Exact) and old.states == codec.states:
            return codec.model_copy(update={"outlier_channels": old.outlier_channels})
        if isinstance(codec, Sparse) and isinstance(old, Sparse):
            rules = old.selection, codec.selection
            if rules[0] == rules[1]:
                return codec.model_copy(update={"in_planes": old.in_planes})
            if same_budget and all(isinstance(rule, Threshold) for rule in rules):
                moved = codec.selection.model_copy(update={"threshold": getattr(old.selection, "threshold", None)})
                return codec.model_copy(update={"selection": moved})
        return codec

    signals = tuple(signal.with_codec(fitted(signal.codec)) for signal in draft.signals)
    kept = {"measured": begun.measured, "format_version": begun.format_version}
    return draft.model_copy(update={"signals": signals, **kept})


class _Sample:
    """Rows in the order of a shard, and the teacher to run over them."""

    def __init__(self, teacher: Teacher, rows: ShardRows, batch_tokens: Callable[[], int]) -> None:
        self.teacher, self.rows, self.batch_tokens = teacher, rows, batch_tokens

    def said(self, wanted: Wanted) -> Iterator[tuple[Batch, Said]]:
        """What the teacher says about the sample, batch by batch."""
        for batch in batches_of(self.teacher, self.rows, self.batch_tokens):
            on_device = batch.to(self.teacher.device)
            yield batch, run(self.teacher, on_device, wanted)

    @torch.inference_mode()
    def vectors(self, signals: Sequence[Signal]) -> dict[str, Tensor]:
        """The vectors [M, D] of each signal, on the host. Raises TeacherError for NaN or infinity, naming the row."""
        parts: dict[str, list[Tensor]] = {signal.name: [] for signal in signals}
        for batch, said in self.said(Wanted.of(None, signals)) if signals else ():
            for signal in signals:
                vectors_ND = said.vectors[signal.name]
                is_broken_N = ~vectors_ND.isfinite().all(-1)
                if is_broken_N.any():
                    raise broken(batch.owners(signal.per)[int(is_broken_N.nonzero()[0, 0])], signal.name)
                parts[signal.name].append(vectors_ND.float().cpu())
        return {name: torch.cat(each) for name, each in parts.items()}

    @torch.inference_mode()
    def states(self, manifest: Manifest) -> Tensor:
        """What goes into the output projection at recorded positions, [M, D], where the projection is. Raises
        TeacherError for NaN or infinity, naming the row."""
        assert self.teacher.head is not None
        parts: list[Tensor] = []
        for batch, said in self.said(Wanted("states")):
            for start, states_ND, _ in distributions(self.teacher, manifest, batch, said):
                broken_N = ~states_ND.isfinite().all(-1)
                if broken_N.any():
                    position = start + int(broken_N.nonzero()[0, 0])
                    raise broken(batch.owners("position")[position], "last hidden states")
                parts.append(states_ND.to(self.teacher.head.projection.weight.device))
        return torch.cat(parts)

    @torch.inference_mode()
    def logits(self, manifest: Manifest) -> Iterator[tuple[Tensor, Tensor]]:
        """(float32 logits_NV, keys_N), slice by slice."""
        for batch, said in self.said(Wanted("logits")):
            for _, logits_NV, keys_N in distributions(self.teacher, manifest, batch, said):
                yield logits_NV, keys_N

    def bytes_by_signal(self, manifest: Manifest) -> dict[str, float]:
        """Bytes of each signal in a shard of this sample, for each of its positions."""
        with Progress("calibrate", "tokens", self.rows.tokens) as progress:
            batches = batches_of(self.teacher, self.rows, self.batch_tokens)
            groups = annotate_rows(self.teacher, manifest, self.rows, batches, progress)
            facts, sizes, _ = weigh(manifest, groups)
        return {
            signal.name: sum(sizes[column.name] for column in signal.columns) / max(1, facts[f"{signal.per}s"])
            for signal in manifest.signals
        }


def _rows_within(rows: Sequence[TokenizedRow], tokens: int) -> list[int]:
    """Indices of rows that have so many tokens together, one at least: from all over the corpus, whose beginning may be
    like nothing else in it."""
    chosen: list[int] = []
    for index in random.Random(0).sample(range(len(rows)), len(rows)):
        if tokens <= 0 and chosen:
            break
        chosen.append(index)
        tokens -= len(rows[index].input_ids)
    return chosen


def _fit(sample: _Sample, draft: Manifest, signal: Signal, vectors: Mapping[str, Tensor]) -> Codec:
    options, codec = draft.options, signal.codec
    if isinstance(codec, Sparse) and options.bytes_per_token is not None:
        return _meet_budget(sample, draft, signal, codec, options.bytes_per_token)
    if isinstance(codec, Exact) and codec.states != "float16" and len(vectors[signal.name]):
        state_codec = fit_vector_codec(codec.states, signal.name, vectors[signal.name])
        return codec.model_copy(update={"outlier_channels": getattr(state_codec, "outlier_channels", ())})
    if isinstance(codec, VectorCodec):
        # Queries, keys and values make relations, which a basis of their own would not preserve.
        rank = options.hidden_rank if signal.site == HIDDEN else None
        return fit_vector_codec(options.hidden_codec, signal.name, vectors[signal.name], rank)
    return codec


def _meet_budget(sample: _Sample, draft: Manifest, signal: Signal, codec: Sparse, budget: float) -> Sparse:
    """The threshold with which the signal takes `budget` bytes a position, by bisection in its logarithm."""
    assert isinstance(codec.selection, Threshold)
    least, most = THRESHOLDS
    found, nearest = codec, float("inf")
    threshold = codec.selection.threshold
    for _ in range(BUDGET_STEPS):
        rule = codec.selection.model_copy(update={"threshold": float(f"{threshold:.3g}")})
        candidate = codec.model_copy(update={"selection": rule})
        only = signal.with_codec(candidate)
        size = sample.bytes_by_signal(draft.model_copy(update={"signals": (only,)}))[signal.name]
        if abs(size - budget) < nearest:
            found, nearest = candidate, abs(size - budget)
        if nearest <= BUDGET_TOLERANCE * budget:
            return found
        least, most = (threshold, most) if size > budget else (least, threshold)
        threshold = (least * most) ** 0.5
    if nearest > 0.25 * budget:
        raise UsageError(
            f"--bytes-per-token {budget:g}: on a sample of this corpus thresholds from {THRESHOLDS[0]:g} to "
            f"{THRESHOLDS[1]:g} come no nearer than {nearest:.1f} bytes to it; choose another budget."
        )
    return found


def _loss_of_distribution(sample: _Sample, manifest: Manifest, codec: Sparse) -> dict[str, float]:
    """Ids a position, the mass of those that are exact, and the KL divergence that rounding costs over these and the
    rest as one class; means over the sample's positions."""
    count, ids, mass, divergence = 0, 0, 0.0, 0.0
    for logits_NV, keys_N in sample.logits(manifest):
        targets = codec.decode(codec.encode(logits_NV, keys_N))
        exact_NV = logits_NV.double().log_softmax(-1)
        count += len(exact_NV)
        ids += int((targets.log_probs_NK > -torch.inf).sum())
        if codec.has_exact_ids:
            kept, lost = _against(exact_NV, targets.exact())
            mass, divergence = mass + kept, divergence + lost
    facts = {"ids_per_position": ids / max(count, 1)}
    if codec.has_exact_ids and count:
        facts |= {"kept_mass": mass / count, "rounding_kl": divergence / count}
    return facts


@torch.inference_mode()
def _loss_of_states(codec: Exact, states_MD: Tensor) -> dict[str, float]:
    """The KL divergence that rounding the states costs, the mean over positions from all over the sample."""
    states_MD = states_MD[:: max(1, len(states_MD) // ROUNDING_POSITIONS)]
    divergence = 0.0
    for states_ND in states_MD.split(max(1, ROUNDING_VALUES // codec.vocabulary)):
        rounded_ND = codec.state_codec.decode(codec.state_codec.encode(states_ND))
        log_p_NV, log_q_NV = (codec.logits(each).double().log_softmax(-1) for each in (states_ND, rounded_ND))
        divergence += float((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum())
    return {"rounding_kl": divergence / len(states_MD)} if len(states_MD) else {}


def _against(exact_NV: Tensor, found: SparseTargets) -> tuple[float, float]:
    """(exact mass of the found ids, KL(exact || found) over them and the rest), summed over positions, in float64."""
    is_there_NK = found.log_probs_NK > -torch.inf
    exact_NK = exact_NV.gather(1, found.ids_NK).masked_fill(~is_there_NK, -torch.inf)
    # Where nothing is outside, what is left of 1 is rounding.
    rest_N = (1 - exact_NK.exp().sum(1)).clamp(min=0).masked_fill(found.tail_N == -torch.inf, 0.0)
    p_NC = torch.cat([exact_NK.exp(), rest_N[:, None]], dim=1)
    q_NC = torch.cat([found.log_probs_NK.double(), found.tail_N.double()[:, None]], dim=1).log_softmax(1)
    terms_NC = torch.where(p_NC > 0, p_NC * (p_NC.clamp(min=1e-300).log() - q_NC), 0.0)
    return float(exact_NK.exp().sum()), float(terms_NC.sum())
