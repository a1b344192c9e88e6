"""token-classification: predict a tag for each word, at its first token or at all of its tokens."""

from collections.abc import Sequence

import numpy as np

from shared.text.columns import TAGS, ColumnNames, gold_column
from shared.text.examples import WORDS, Columns, Example
from shared.text.labels import label_index
from shared.text.metrics import entity_f1
from shared.text.predictions import LostWords, Predictions
from shared.text.tasks.base import Task, encode
from shared.text.tokenized import TokenizedRow, Tokenizing


class TokenClassification(Task):
    """Rows are lists of words, with one tag per word."""

    name = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    architectures = ("ForTokenClassification",)
    layouts = {"first-subtoken": "listed", "all": "listed"}  # noqa: RUF012
    has_labels = True
    chain_positions = "first-subtoken"
    scores_rows = True

    def columns_of_texts(self, names: ColumnNames, labels_required: bool | None) -> Columns:
        tags, required = gold_column(names.tags_column, TAGS, labels_required)
        other = "ner_tags" if tags == TAGS else None
        return Columns(names.tokens_column, None, tags, required, WORDS, other_label=other)

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        encoded = encode(how, examples, is_split_into_words=True)
        rows = []
        for index, (ids, example) in enumerate(zip(encoded["input_ids"], examples, strict=True)):
            words = encoded.word_ids(index)
            positions = [
                at
                for at, word in enumerate(words)
                if word is not None and (how.positions == "all" or at == 0 or words[at - 1] != word)
            ]
            tags = example.label if isinstance(example.label, list) else [None] * len(example.text)
            word_of_P = np.asarray([words[at] for at in positions], np.int64)
            gold_W = np.asarray([label_index(tag, how.label_names) for tag in tags], np.int32)
            lost = LostWords.of(word_of_P, gold_W)
            found = np.asarray(ids, np.int32), None, np.asarray(positions, np.int32), gold_W[word_of_P], lost
            rows.append(TokenizedRow(*found))
        return rows

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return entity_f1(predictions)
