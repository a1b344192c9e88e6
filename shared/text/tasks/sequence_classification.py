"""sequence-classification: predict one label for each text or pair of texts."""

from collections.abc import Sequence

import numpy as np

from shared.errors import CorpusError
from shared.text.examples import Answers, Example
from shared.text.labels import label_index
from shared.text.metrics import accuracy_and_f1
from shared.text.predictions import Predictions
from shared.text.tasks.base import Task, encode, token_types
from shared.text.tokenized import TokenizedRow, Tokenizing


class SequenceClassification(Task):
    """Rows are texts or pairs, with a label."""

    name = "sequence-classification"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    layouts = {None: "row"}  # noqa: RUF012
    has_labels = True
    scores_rows = True

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        encoded = encode(how, examples)
        position = np.zeros(1, np.int32)
        rows = []
        for index, (ids, example) in enumerate(zip(encoded["input_ids"], examples, strict=True)):
            if not ids:
                raise CorpusError(
                    f"row {first_row + index} has no tokens, so it cannot be classified; drop empty texts."
                )
            assert not isinstance(example.label, list | Answers | float)
            label = np.asarray([label_index(example.label, how.label_names)], np.int32)
            rows.append(TokenizedRow(np.asarray(ids, np.int32), token_types(encoded, index), position, label))
        return rows

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return accuracy_and_f1(predictions)
