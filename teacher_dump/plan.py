"""The plan of a dump, made once corpus and teacher are known: the signals to record, and the manifest."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, cast, get_args

from transformers import PreTrainedTokenizerBase

from shared.dump.facts import CorpusFacts, OffsetsFact, Options, TokenizerFacts
from shared.dump.facts import Teacher as TeacherFacts
from shared.dump.layouts import Layout
from shared.dump.manifest import Compression, Manifest
from shared.dump.signals import ATTENTION_INPUTS, HIDDEN, RELATIONS, Signal, SignalKey
from shared.dump.versions import FORMAT_VERSION
from shared.errors import UsageError
from shared.text.corpus import Corpus, Survey
from shared.text.tasks import Task
from shared.text.tokenized import TokenizedRow, Tokenizing
from teacher_dump.engines.base import Engine, TeacherDescription
from teacher_dump.mixup import mixtures
from teacher_dump.request import Request
from teacher_dump.signals import distribution, requested, vectors
from teacher_dump.tensor_files import tensor_files


@dataclass(frozen=True)
class Plan:
    """A `dump` command that has been checked completely and can start."""

    request: Request
    task: Task
    engine: Engine
    how: Tokenizing
    corpus: Corpus
    survey: Survey
    manifest: Manifest

    @cached_property
    def sampled_rows(self) -> tuple[list[int], list[TokenizedRow]]:
        """(row numbers, rows) of the survey's sample, without empty texts.

        Some tasks refuse an empty text. That happens when the row is annotated, where the row number is known.
        """
        sample = zip(self.survey.sample_numbers, self.survey.sample, strict=True)
        filled = [(number, example) for number, example in sample if example.text or example.pair]
        rows = self.task.tokenize(self.how, [example for _, example in filled], 0) if filled else []
        return [number for number, _ in filled], list(rows)

    @property
    def loss_layout(self) -> Layout:
        """The layout of `loss_rows`."""
        return self.task.layout(self.task.loss_positions or self.how.positions)

    def loss_rows(self, count: int) -> Iterator[tuple[int, TokenizedRow]]:
        """The first rows of the corpus with their numbers, tokenized for a training loss."""
        how = replace(self.how, positions=self.task.loss_positions or self.how.positions)
        for _, first_row, parse in self.corpus.blocks(self.request.shard_rows):
            if first_row >= count:
                return
            examples = parse()[: count - first_row]
            yield from enumerate(self.task.tokenize(how, examples, first_row), first_row)

    @property
    def sampled_tokens(self) -> int:
        """The number of tokens of the survey's sample, for estimates."""
        return sum(len(row.input_ids) for row in self.sampled_rows[1])


def corpus_of(request: Request, task: Task, how: Tokenizing) -> Corpus:
    """The corpus with the columns that the task reads."""
    return task.corpus(how, request.data, task.columns(request), request.limit)


def tokenizing(request: Request, task: Task, teacher: TeacherDescription, positions: str | None) -> Tokenizing:
    """The settings for tokenizing rows.

    Raises:
        UsageError: if --max-length is larger than the teacher allows, or leaves no token for the text.
    """
    if teacher.longest_row is not None and request.max_length > teacher.longest_row:
        raise UsageError(f"--max-length {request.max_length}: this teacher takes at most {teacher.longest_row} tokens.")
    _check_room(request, task, teacher.tokenizer)
    names = teacher.label_names or ()
    chats = request.messages_column is not None
    return Tokenizing(teacher.tokenizer, request.max_length, names, positions, request.seed, chats, request.stride)


def _check_room(request: Request, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a row has room for a token of the text; a causal model needs one to predict another one from."""
    is_chat = request.messages_column is not None  # whose templates write all special tokens
    is_pair = request.pair_column is not None
    special = 0 if is_chat else tokenizer.num_special_tokens_to_add(pair=is_pair)
    least = max(special, 1 if task.is_causal else 0) + 1
    if request.max_length < least:
        why = f"the tokenizer adds {special} of its own to a row" if special else "the first token predicts the second"
        raise UsageError(f"--max-length {request.max_length}: {why}; use {least} or more.")


def describe(
    request: Request, task: Task, teacher: TeacherDescription, engine: Engine, how: Tokenizing, survey: Survey
) -> Manifest:
    """The manifest of the dump that the command requests, before its signals are fitted to a sample."""
    layout = task.layout(how.positions)
    signals = _signals(request, task, layout, teacher, engine)
    return Manifest(
        format_version=FORMAT_VERSION,
        lectern_version=version("lectern"),
        task=task.name,
        teacher=_teacher_facts(engine, signals),
        tokenizer=_tokenizer_facts(how, task.offsets_fact(how) if survey.labelled_rows else None),
        vocabulary=engine.vocabulary,
        layout=layout,
        labelled=task.is_labelled(survey.labelled_rows),
        label_names=teacher.label_names,
        pairs=task.columns(request).pair is not None,
        corpus=CorpusFacts(
            rows=survey.rows,
            labelled_rows=survey.labelled_rows,
            fingerprint=survey.fingerprint,
            questions=survey.examples if task.splits_examples else None,
        ),
        options=Options(
            positions=how.positions,
            max_length=request.max_length,
            dtype=engine.dtype,
            shard_rows=request.shard_rows,
            seed=request.seed,
            bytes_per_token=request.bytes_per_token,
            hidden_codec=request.hidden_codec,
            hidden_rank=request.hidden_rank,
            stride=request.stride if task.splits_examples else None,
        ),
        signals=signals,
        tensor_files=tensor_files(request, engine),
        pooling=teacher.pooling,
        compression=_compression(request),
    )


def _compression(request: Request) -> Compression:
    if request.compression not in get_args(Compression):
        raise UsageError(f"--compression {request.compression!r}: use {', '.join(get_args(Compression))}.")
    return cast(Compression, request.compression)


def _tokenizer_facts(how: Tokenizing, offsets: OffsetsFact | None) -> TokenizerFacts:
    """The facts about the tokenizer, with the chat template if rows are chats, because it also decides their ids."""
    tokenizer = how.tokenizer
    facts = TokenizerFacts(
        size=len(tokenizer),
        fingerprint=tokenizer_fingerprint(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        offsets=offsets,
    )
    if not how.chats:
        return facts
    template = hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return facts.model_copy(update={"chat_template": template, "special_tokens": names})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that decides how text becomes ids."""
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def _signals(
    request: Request, task: Task, layout: Layout, teacher: TeacherDescription, engine: Engine
) -> tuple[Signal, ...]:
    """Every requested signal, with initial values for the parameters that are fitted to a sample later."""
    classes = engine.vocabulary if task.predicts_vocabulary else len(teacher.label_names or ())
    exact = engine.exact if task.predicts_vocabulary else None
    needed = classes if layout.has_distributions else None
    distributions = distribution(request, needed, exact, layout.needs_all_logits)
    asked = requested(request, layout.has_distributions, engine)
    widths = engine.widths([SignalKey(signal.site, signal.layer) for signal in asked])
    for signal, width in zip(asked, widths, strict=True):
        if signal.site == HIDDEN and request.hidden_rank is not None and request.hidden_rank > width:
            raise UsageError(f"--hidden-rank {request.hidden_rank}: hidden states are {width} wide; use 1 to {width}.")
    mixed = mixtures(request, layout, engine, teacher)
    return (*distributions, *(vectors(signal, width) for signal, width in zip(asked, widths, strict=True)), *mixed)


def _teacher_facts(engine: Engine, signals: Iterable[Signal]) -> TeacherFacts:
    """The facts about the teacher. The number of attention heads is among them only if queries are recorded,
    or the inputs that they are computed from."""
    facts = engine.facts()
    if any(signal.site in (*RELATIONS, ATTENTION_INPUTS) for signal in signals):
        return facts
    return facts.model_copy(update={"attention_heads": None})
