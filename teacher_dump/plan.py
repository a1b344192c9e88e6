"""What a command amounts to once corpus and teacher are known: the signals to record and the manifest."""

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from shared.dump.codecs import DISTRIBUTION, HIDDEN, Dense, Float16Vectors, Signal, TopK
from shared.dump.manifest import (
    FORMAT_VERSION,
    CorpusFacts,
    Manifest,
    Options,
    Recorded,
    TokenizerFacts,
)
from shared.dump.manifest import Teacher as TeacherFacts
from shared.errors import UsageError
from shared.text.corpus import Columns, Corpus, Survey
from shared.text.tasks import Task, Tokenizing
from teacher_dump.request import DEFAULT_TOP_K, Request
from teacher_dump.teacher import Blueprint, Teacher, fingerprint, tokenizer_fingerprint


@dataclass(frozen=True)
class Plan:
    """A command that has been checked in full and may start."""

    request: Request
    task: Task
    teacher: Teacher
    how: Tokenizing
    corpus: Corpus
    survey: Survey
    manifest: Manifest

    @cached_property
    def sampled_tokens(self) -> int:
        """Tokens of the survey's sample, for estimates. Empty texts, which some tasks refuse, are refused where their
        row number is known."""
        sample = [example for example in self.survey.sample if example.text or example.pair]
        return sum(len(row.input_ids) for row in self.task.tokenize(self.how, sample, 0)) if sample else 0


def corpus_of(request: Request, task: Task) -> Corpus:
    """The corpus with the columns that the task reads. Label columns are optional unless they are named."""
    if task.words:
        named, text, pair = request.tags_column, request.tokens_column, None
    else:
        named, text, pair = request.label_column, request.text_column, request.pair_column
    label = (named or ("tags" if task.words else "label")) if task.classes == "labels" else None
    if label == "none":
        named = label = None
    columns = Columns(text, pair, label, label_required=bool(named and label), words=task.words)
    return Corpus(request.data, columns, request.limit)


def tokenizing(request: Request, blueprint: Blueprint, positions: str | None) -> Tokenizing:
    """How rows become tokens. Raises UsageError for a length beyond what the teacher's positions reach."""
    limit = getattr(blueprint.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and request.max_length > limit:
        raise UsageError(f"--max-length {request.max_length}: this teacher takes at most {limit} tokens.")
    names = blueprint.label_names or ()
    return Tokenizing(blueprint.tokenizer, request.max_length, names, positions, request.seed)


def describe(
    request: Request, task: Task, blueprint: Blueprint, teacher: Teacher, how: Tokenizing, survey: Survey
) -> Manifest:
    """The manifest of the dump that the command asks for."""
    gold: Recorded = task.recorded if task.classes == "vocabulary" or survey.labelled_rows else "none"
    return Manifest(
        format_version=FORMAT_VERSION,
        lectern_version=version("lectern"),
        task=task.name,
        teacher=TeacherFacts(
            name=request.teacher,
            revision=getattr(teacher.model.config, "_commit_hash", None),
            architecture=type(teacher.model).__name__,
            parameters=teacher.model.num_parameters(),
            fingerprint=fingerprint(teacher.model),
        ),
        tokenizer=TokenizerFacts(
            size=len(blueprint.tokenizer),
            fingerprint=tokenizer_fingerprint(blueprint.tokenizer),
            pad_token_id=blueprint.tokenizer.pad_token_id,
        ),
        vocabulary=teacher.vocabulary,
        recorded=task.recorded,
        gold=gold,
        label_names=blueprint.label_names,
        pairs=request.pair_column is not None,
        corpus=CorpusFacts(rows=survey.rows, labelled_rows=survey.labelled_rows, fingerprint=survey.fingerprint),
        options=Options(
            positions=how.positions,
            max_length=request.max_length,
            dtype=teacher.dtype,
            shard_rows=request.shard_rows,
            seed=request.seed,
        ),
        signals=(*_distribution(request, task, blueprint, teacher), *_hidden(request, task, teacher)),
    )


def _distribution(request: Request, task: Task, blueprint: Blueprint, teacher: Teacher) -> tuple[Signal, ...]:
    if task.classes is None:
        if request.top_k is not None or request.dense:
            raise UsageError(f"the task {task.name} has no distribution; leave out --top-k and --dense.")
        return ()
    classes = teacher.vocabulary if task.classes == "vocabulary" else len(blueprint.label_names or ())
    if request.dense or (request.top_k is None and task.classes == "labels"):
        return (Dense(name=DISTRIBUTION, classes=classes),)
    if request.top_k is None:
        return (TopK(name=DISTRIBUTION, k=min(DEFAULT_TOP_K, classes), vocabulary=classes),)
    if not 1 <= request.top_k <= classes:
        raise UsageError(
            f"--top-k {request.top_k}: the teacher's distribution has {classes:,} classes; use 1 to {classes:,}."
        )
    return (TopK(name=DISTRIBUTION, k=request.top_k, vocabulary=classes),)


def _hidden(request: Request, task: Task, teacher: Teacher) -> tuple[Signal, ...]:
    """--hidden none | last | all | 6,12: layers counted as transformers' hidden_states are, 0 for the embeddings."""
    if request.hidden == "none":
        if task.classes is None:
            raise UsageError(f"the task {task.name} records hidden states only; say which, for instance --hidden last.")
        return ()
    if request.hidden == "last":
        layers = [teacher.layers]
    elif request.hidden == "all":
        layers = list(range(teacher.layers + 1))
    else:
        try:
            layers = sorted({int(part) for part in request.hidden.split(",")})
        except ValueError:
            raise UsageError(
                f"--hidden {request.hidden!r}: use none, last, all or layer numbers such as 6,12."
            ) from None
    for layer in layers:
        if not 0 <= layer <= teacher.layers:
            raise UsageError(f"--hidden {layer}: this teacher has layers 0 (the embeddings) to {teacher.layers}.")
    return tuple(Float16Vectors(name=f"{HIDDEN}.{layer}", layer=layer, width=teacher.width) for layer in layers)
