"""question-answering: a row is a pair of texts, the question and one window of the context.

Only the context is cut. A long context becomes several windows, each of them a row. They overlap by `stride` tokens, or
by half of the tokens that the question leaves if that is less, so that most answers lie completely in one window. The
recorded positions are the token that stands for "no answer in this window" (CLS if the tokenizer has it) and every
token of the context. One softmax over these positions of a row is the distribution of the answer's start, another one
that of its end. (Devlin et al. 2019, "BERT", arXiv 1810.04805, sections 4.2 and 4.3, with the windows of their code.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
        return Columns.of_questions(*named, label_required=required)

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
        rows, windows, before = [], list[Any](), None
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


def _windows(how: Tokenizing, question: str, context: str) -> list[Any]:
    """The windows as encodings of the `tokenizers` library, including special tokens."""
    backend: Any = how.tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    question_encoding = backend.encode(question, add_special_tokens=False)
    context_encoding = backend.encode(context, add_special_tokens=False)
    room = how.max_length - len(question_encoding) - backend.num_special_tokens_to_add(True)
    if room < 1:
        raise CorpusError(
            f"the question {question[:60]!r} has {len(question_encoding)} tokens, which leaves none of a row's "
            f"{how.max_length} for its context; raise max_length, or drop this row."
        )
    context_encoding.truncate(room, stride=min(how.stride, room // 2))
    # Windows are processed one by one, because the overflowing windows of one call lose their tokens' sequence ids.
    windows = (context_encoding, *context_encoding.overflowing)
    return [backend.post_process(question_encoding, window) for window in windows]


def _row(how: Tokenizing, example: Example, windows: Sequence[Any]) -> TokenizedRow:
    window = windows[example.window]
    ids = np.asarray(window.ids, np.int32)
    is_context_L = np.asarray([sequence == 1 for sequence in window.sequence_ids], bool)
    nothing = _no_answer(how, ids)
    is_recorded_L = is_context_L.copy()
    is_recorded_L[nothing] = True
    positions = np.flatnonzero(is_recorded_L).astype(np.int32)
    offsets_L2 = np.asarray(window.offsets, np.int32).reshape(-1, 2)
    offsets_P2 = np.where(is_context_L[positions, None], offsets_L2[positions], -1).astype(np.int32)
    labels = np.full(len(positions), MISSING, np.int32)
    if isinstance(example.label, Answers):
        reach = _reach(example, windows)
        start, end = _answer(example.label, offsets_P2, reach) or [int(np.flatnonzero(positions == nothing)[0])] * 2
        labels[:] = 0
        labels[start] += STARTS
        labels[end] += ENDS
    types = np.asarray(window.type_ids, np.int32)
    return TokenizedRow(ids, types, positions, labels, question=example.number, columns={OFFSETS: offsets_P2})


def _no_answer(how: Tokenizing, ids: Int32) -> int:
    """The position that stands for "no answer in this window": that of CLS, or 0 if there is none."""
    found = np.flatnonzero(ids == how.tokenizer.cls_token_id) if how.tokenizer.cls_token_id is not None else ids[:0]
    return int(found[0]) if len(found) else 0


def _reach(example: Example, windows: Sequence[Any]) -> tuple[int, int]:
    """(first, end) of the characters of the context that a window covers.

    The first and the last window also cover the edges of the context, which may be blanks without a token.
    """
    within = [offset for offset, at in _context(windows[example.window]) if at == 1]
    first = within[0][0] if within and example.window else 0
    last = within[-1][1] if within and example.window < len(windows) - 1 else len(str(example.pair))
    return first, last


def _context(window: Any) -> list[tuple[tuple[int, int], int | None]]:
    return list(zip(window.offsets, window.sequence_ids, strict=True))


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
