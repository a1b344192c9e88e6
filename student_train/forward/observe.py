"""One forward pass of a batch: the student's outputs and the targets that losses and metrics compare.

Shapes: B rows, L tokens of the longest, N recorded positions, T tokens without padding.
"""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from shared.dump.codecs import VectorCodec
from shared.dump.signals import Signal
from shared.models.mixing import run_mixed
from student_train.chains.batch import Chains, legal_transitions
from student_train.chains.transitions import transitions_of
from student_train.data.batch import Batch
from student_train.data.projected import ProjectedSignal
from student_train.data.sources import Source
from student_train.forward.attention import Attended, capture
from student_train.forward.head import StudentHead
from student_train.forward.outputs import BatchTargets, MixedTargets, Outputs
from student_train.forward.teacher_vectors import ProjectedVectors, TeacherVectors


def outputs_of(
    model: nn.Module,
    batch: Batch,
    source: Source,
    wants_hidden: bool,
    head: StudentHead | None = None,
    attention_layers: Collection[int] = (),
    wants_mixed: bool = False,
) -> Outputs:
    """Return a student's outputs for a batch: logits at the recorded positions, and at all tokens its hidden states
    (`wants_hidden`) and the queries, keys and values of `attention_layers`; with `wants_mixed`, from a second forward
    pass, logits for the batch's mixtures of rows.

    With the student's `head` (of a vocabulary) the logits come in slices.
    """
    inputs: dict[str, Any] = {**batch.inputs, "output_hidden_states": wants_hidden, "return_dict": True}
    logits = sliced = None
    with capture(model, attention_layers) as captured:
        if head is not None:
            output, sliced = head.run(model, inputs, batch.positions)
        else:
            output = model(**inputs)
            logits = source.task.logits_of(output)
    if logits is not None:
        logits = source.layout.distributions(logits, batch.index)
    is_token_BL = batch.is_token_BL
    hidden_TD = tuple(layer[is_token_BL] for layer in output.hidden_states) if wants_hidden else ()
    attended = {layer: Attended.at_tokens(found, is_token_BL) for layer, found in captured.items()}
    lengths = tuple(is_token_BL.sum(dim=1).tolist()) if wants_hidden else ()
    return Outputs(
        logits,
        hidden_TD,
        sliced,
        attended=attended,
        lengths=lengths,
        transitions=transitions_of(model),
        mixed_MC=_mixed_logits(model, batch, source) if wants_mixed else None,
    )


def _mixed_logits(model: nn.Module, batch: Batch, source: Source) -> Tensor | None:
    """Return the logits [M, C] for the batch's mixtures of rows; None if it has none."""
    return None if batch.mixed is None else source.task.logits_of(run_mixed(model, batch.mixed.inputs))


def targets_of(batch: Batch, source: Source) -> BatchTargets:
    """Return the targets of a batch: the teacher's distributions, decoded on the batch's device; its vectors, still
    encoded; and the gold labels."""
    columns, codec = batch.columns, source.distribution
    has_distribution = codec is not None and all(column.name in columns for column in codec.columns)
    distributions = codec.decode(columns) if codec is not None and has_distribution else None
    if distributions is not None:
        distributions = source.layout.targets(distributions, batch.index)
    vectors = {
        key: _vectors(source.signals[key], codec, batch)
        for key, codec in source.vectors.items()
        if codec.columns[0].name in columns
    }
    chains, is_ragged = chains_of(batch, source), source.layout.is_ragged
    mixed = _mixed_targets(batch, source)
    return BatchTargets(distributions, vectors, batch.labels, is_ragged, chains, batch.is_spare, mixed)


def chains_of(batch: Batch, source: Source) -> Chains | None:
    """Return the chains of tags of a batch's rows; None if the source's rows are not chains."""
    return Chains(batch.index.counts, legal_transitions(source.label_names or ())) if source.has_chains else None


def _mixed_targets(batch: Batch, source: Source) -> MixedTargets | None:
    if batch.mixed is None or source.mixtures is None:
        return None
    mixed, stored = batch.mixed, source.mixtures.decode(batch.columns)
    return MixedTargets(stored.logits_RDC[mixed.rows, mixed.draws], mixed.inputs.weights, mixed.labels)


def _vectors(signal: Signal | ProjectedSignal, codec: VectorCodec, batch: Batch) -> TeacherVectors:
    if not isinstance(signal, ProjectedSignal):
        return TeacherVectors(codec, batch.columns)
    is_token_BL = batch.is_token_BL
    projections = signal.projections.of(signal.layer, is_token_BL.device)
    places_T = (is_token_BL.cumsum(1) - 1)[is_token_BL]
    return ProjectedVectors(codec, batch.columns, signal.part, projections, places_T)
