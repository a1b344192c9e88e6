"""question-answering: a row is a pair of texts, the question and one window of the context.

Only the context is cut. A long context becomes several windows, each of them a row. They overlap by `stride` tokens, or
by half of the tokens that the question leaves if that is less, so that most answers lie completely in one window. The
recorded positions are the token that stands for "no answer in this window" (CLS if the tokenizer has it) and every
token of the context. One softmax over these positions of a row is the distribution of the answer's start, another one
that of its end. (Devlin et al. 2019, "BERT", arXiv 1810.04805, sections 4.2 and 4.3, with the windows of their code.)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.dump.facts import OffsetsFact
from shared.dump.layouts import BatchIndex
from shared.dump.layouts.spans import ENDPOINTS, ENDS, STARTS, SpanIndex
from shared.dump.rowgroup import MISSING
from shared.errors import CorpusError
from shared.text.answers import BestSpan, answer_scores, best_span
from shared.text.columns import ANSWERS, ColumnNames, gold_column
from shared.text.examples import Answers, Columns, Example
from shared.text.predictions import Predictions
from shared.text.tasks.base import Task
from shared.text.tokenized import Int32, TokenizedRow, Tokenizing

# Name of the column with the characters (start, end) of each position, int32 [P, 2].
OFFSETS = "offsets"
# A megabyte takes seconds and half a gigabyte.
MOST_CHARACTERS = 1_000_000


class QuestionAnswering(Task):
    """Rows are questions with contexts; gold labels are lists of answers with the characters at which they begin."""

    name = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    architectures = ("ForQuestionAnswering",)
    layouts = {None: "spans"}  # noqa: RUF012
    has_labels = True
    label_names = ENDPOINTS
    scores_rows = True
    needs_examples = True
    scoring_columns = (OFFSETS,)
    splits_examples = True

    def columns_of_texts(self, names: ColumnNames, labels_required: bool | None) -> Columns:
        answers, required = gold_column(names.answers_column, ANSWERS, labels_required)
        impossible = None if answers is None else names.impossible_column
        named = names.question_column, names.context_column, answers, names.starts_column, impossible
        other = "answers" if answers == ANSWERS else None
        return Columns.of_questions(*named, label_required=required, other_label=other)

    def count_rows(self, how: Tokenizing, example: Example) -> int:
        return len(_windows(how, str(example.text), str(example.pair)))

    def check_row(self, how: Tokenizing, example: Example) -> None:
        """Check the gold answers. Raises CorpusError for an empty one, or one that does not begin at its character."""
        if not isinstance(example.label, Answers):
            return
        context = str(example.pair)
        for text, start in zip(*example.label, strict=True):
            found = context[max(start, 0) : max(start, 0) + len(text)]
            if not text.strip():
                raise CorpusError(
                    "an answer is empty; for a question without an answer leave the list of answers empty, or drop "
                    "the row."
                )
            if start < 0 or found != text:
                raise CorpusError(
                    f"the answer {text[:60]!r} is not at character {start} of its context (there is {found[:60]!r}); "
                    "correct or drop this row."
                )

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        """One row for each example; `Example.window` is the number of its window."""
        rows, windows, before = [], list[_Window](), None
        for example in examples:
            texts = example.text, example.pair
            if texts != before:
                windows, before = _windows(how, str(example.text), str(example.pair)), texts
            if example.window >= len(windows):
                raise CorpusError(
                    f"question {example.number} had more windows when this run began: its file has changed since; "
                    "restore it and run the same command again."
                )
            rows.append(_row(how, example, windows))
        return rows

    def offsets_fact(self, how: Tokenizing) -> OffsetsFact | None:
        post_processor = json.loads(how.tokenizer.backend_tokenizer.to_str())["post_processor"]
        return "trimmed once" if _trims(post_processor) else None

    def logits_of(self, output: Any) -> Tensor:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def notes(
        self, rows: Sequence[int], logits: Tensor, index: BatchIndex, columns: Mapping[str, Tensor]
    ) -> dict[int, BestSpan]:
        """The best answer of each row."""
        assert isinstance(index, SpanIndex)
        places_BM = index.places.cpu().numpy()
        offsets_by_row = np.split(columns[OFFSETS].cpu().numpy(), np.cumsum(places_BM.sum(1))[:-1])
        logits_B2M = logits.float().cpu().numpy().reshape(len(places_BM), len(ENDPOINTS), -1)
        parts = zip(rows, logits_B2M, places_BM, offsets_by_row, strict=True)
        return {
            row: best_span(start_M[is_there_M], end_M[is_there_M], offsets_P2)
            for row, (start_M, end_M), is_there_M, offsets_P2 in parts
        }

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return answer_scores(predictions)


@dataclass(frozen=True, slots=True)
class _Window:
    """The tokens of one row: the question, some tokens of the context, and the special tokens. L tokens.

    Attributes:
        ids, types: int32 [L], token ids and the text (0 or 1) of each.
        is_context: bool [L].
        offsets: int32 [L, 2], the characters (start, end) of each token in its text.
    """

    ids: Int32
    types: Int32
    is_context: NDArray[np.bool_]
    offsets: Int32

    def part(self, chosen: slice) -> "_Window":
        """Return the row without the tokens of the context that are outside `chosen`, which counts them from 0."""
        kept_L = ~self.is_context
        kept_L[np.flatnonzero(self.is_context)[chosen]] = True
        return _Window(self.ids[kept_L], self.types[kept_L], self.is_context[kept_L], self.offsets[kept_L])


def _windows(how: Tokenizing, question: str, context: str) -> list[_Window]:
    """Return the windows, cut from what an ordinary call of the tokenizer gives for question and whole context.

    Tokenizers can cut by themselves, but lose then to which text a token belongs. Putting question and context together
    only after cutting runs post-processors a second time on tokens that they have seen, and those of byte-level
    tokenizers trim each token's offsets by its leading blank every time.
    """
    for name, text in ("question", question), ("context", context):
        if len(text) > MOST_CHARACTERS:
            raise CorpusError(
                f"the {name} has {len(text):,} characters, and all of them are tokenized at once; cut it to at most "
                f"{MOST_CHARACTERS:,}, or drop this row."
            )
    backend: Any = how.tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encoding = backend.encode(question, context)
    sequences = encoding.sequence_ids
    whole = _Window(
        np.asarray(encoding.ids, np.int32),
        np.asarray(encoding.type_ids, np.int32),
        np.asarray([sequence == 1 for sequence in sequences], bool),
        np.asarray(encoding.offsets, np.int32).reshape(-1, 2),
    )
    tokens = int(whole.is_context.sum())
    room = how.max_length - (len(whole.ids) - tokens)
    if room < 1:
        raise CorpusError(
            f"the question {question[:60]!r} has {sequences.count(0)} tokens, which leaves none of a row's "
            f"{how.max_length} for its context; raise max_length, or drop this row."
        )
    step = room - min(how.stride, room // 2)
    return [whole.part(slice(start, start + room)) for start in range(0, max(tokens - room, 0) + step, step)]


def _row(how: Tokenizing, example: Example, windows: Sequence[_Window]) -> TokenizedRow:
    window = windows[example.window]
    nothing = _no_answer(how, window.ids)
    is_recorded_L = window.is_context.copy()
    is_recorded_L[nothing] = True
    positions = np.flatnonzero(is_recorded_L).astype(np.int32)
    is_context_P1 = window.is_context[positions, None]
    offsets_P2 = np.where(is_context_P1, window.offsets[positions], -1).astype(np.int32)
    labels = np.full(len(positions), MISSING, np.int32)
    if isinstance(example.label, Answers):
        reach = _reach(example, windows)
        start, end = _answer(example.label, offsets_P2, reach) or [int(np.flatnonzero(positions == nothing)[0])] * 2
        labels[:] = 0
        labels[start] += STARTS
        labels[end] += ENDS
    return TokenizedRow(
        window.ids, window.types, positions, labels, question=example.number, columns={OFFSETS: offsets_P2}
    )


def _no_answer(how: Tokenizing, ids: Int32) -> int:
    """The position that stands for "no answer in this window": that of CLS, or 0 if there is none."""
    found = np.flatnonzero(ids == how.tokenizer.cls_token_id) if how.tokenizer.cls_token_id is not None else ids[:0]
    return int(found[0]) if len(found) else 0


def _reach(example: Example, windows: Sequence[_Window]) -> tuple[int, int]:
    """(first, end) of the characters of the context that a window covers.

    The first and the last window also cover the edges of the context, which may be blanks without a token.
    """
    window = windows[example.window]
    within_C2 = window.offsets[window.is_context]
    first = int(within_C2[0, 0]) if len(within_C2) and example.window else 0
    last = int(within_C2[-1, 1]) if len(within_C2) and example.window < len(windows) - 1 else len(str(example.pair))
    return first, last


def _answer(answers: Answers, offsets_P2: Int32, reach: tuple[int, int]) -> list[int] | None:
    """(first, last) of the recorded positions of the first answer; None if the window does not contain all of it."""
    if not answers.texts:
        return None
    text, begin = answers.texts[0], answers.starts[0]
    begin, end = begin + len(text) - len(text.lstrip()), begin + len(text.rstrip())
    touched = np.flatnonzero((offsets_P2[:, 1] > begin) & (offsets_P2[:, 0] < end) & (offsets_P2[:, 0] >= 0))
    if begin < reach[0] or end > reach[1] or not len(touched):
        return None
    return [int(touched[0]), int(touched[-1])]


def _trims(settings: Any) -> bool:
    """Whether a post-processor, or one of several, trims blanks from the offsets of tokens."""
    if isinstance(settings, Mapping):
        return settings.get("trim_offsets") is True or any(map(_trims, settings.values()))
    return isinstance(settings, list) and any(map(_trims, settings))
