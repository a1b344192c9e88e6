"""The parts of a manifest that are facts about where a dump comes from: its teacher, tokenizer, corpus and options.

A dump of unknown origin can claim anything, so every number has bounds.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Numbers above these are no facts about a dump: rows (and what is counted in as many bits), heads of attention, and
# entries of a vocabulary that the tokenizer lacks (padding of a head).
MOST_ROWS, MOST_HEADS, MOST_PADDING = 2**40, 10_000, 2**20
# Of the mixtures of a row: their largest number, and bounds of A in Beta(A, A), beyond which every lambda is 0 or 1, or
# one half.
MOST_DRAWS, ALPHAS = 255, (0.01, 100.0)


class Frozen(BaseModel):
    """A part of the manifest, which refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Teacher(Frozen):
    """The teacher.

    Attributes:
        name: name or path, for information only.
        revision: revision on the hub, if any.
        architecture: name of the model's class.
        parameters: number of parameters.
        fingerprint: hash of the configuration and all weights, by which teachers are compared.
        attention_heads: number of heads, if queries, keys and values are recorded, or the inputs of attention.
    """

    name: str
    revision: str | None
    architecture: str
    parameters: int = Field(ge=0)
    fingerprint: str
    attention_heads: int | None = Field(default=None, ge=1, le=MOST_HEADS)


# How answers were placed in tokens whose offsets a post-processor trims.
OffsetsFact = Literal["trimmed once"]


class TokenizerFacts(Frozen):
    """The tokenizer.

    Attributes:
        size: number of entries; the teacher's head may be wider (padding), but not narrower.
        fingerprint: SHA-256 of the tokenizer's JSON.
        pad_token_id: id of the padding token, if any.
        chat_template: if rows are chats, SHA-256 of the template that rendered them.
        special_tokens: if rows are chats, the special tokens that the template could use, by name.
        offsets: if rows are questions with gold answers and the tokenizer trims the blanks before words (byte-level
            ones do), "trimmed once". Where it is missing, an earlier version trimmed twice, and the gold labels miss
            the first letter of answers.
    """

    size: int = Field(ge=1)
    fingerprint: str
    pad_token_id: int | None = Field(ge=0)
    chat_template: str | None = None
    special_tokens: dict[str, str] | None = None
    offsets: OffsetsFact | None = None


# How the vectors of a row's tokens become one vector: their mean or largest values, or that of the first or last token.
PoolingMode = Literal["mean", "cls", "last", "max"]


class Pooling(Frozen):
    """How a model makes the embedding of a row from its last hidden states.

    Attributes:
        mode: which vectors of tokens, special ones included, become the row's.
        normalized: whether the embedding is divided by its Euclidean length afterwards.
    """

    mode: PoolingMode = "mean"
    normalized: bool = False

    def in_words(self) -> str:
        """Return the pooling as text: "mean of the tokens, normalized"."""
        words = {"mean": "mean of the tokens", "cls": "first token", "last": "last token", "max": "maximum over tokens"}
        return words[self.mode] + (", normalized" if self.normalized else "")


class CorpusFacts(Frozen):
    """The corpus.

    Attributes:
        rows: number of rows.
        labelled_rows: number of rows with a gold label.
        fingerprint: hash of the values read from the files, but not of the files' names.
        questions: number of rows in the files, if the corpus's rows are windows of questions' contexts.
    """

    rows: int = Field(ge=0, le=MOST_ROWS)
    labelled_rows: int = Field(ge=0, le=MOST_ROWS)
    fingerprint: str
    questions: int | None = Field(default=None, ge=0, le=MOST_ROWS)

    @model_validator(mode="after")
    def _part_of_the_rows(self) -> Self:
        for name in ("labelled_rows", "questions"):
            if (count := getattr(self, name)) is not None and count > self.rows:
                raise ValueError(f"{name} = {count}, but there are only {self.rows} rows")
        return self

    def in_words(self) -> str:
        """Return the number of rows, and how many have a gold label, as text."""
        of = "" if self.questions is None else f" (windows of {self.questions:,} questions' contexts)"
        return f"{self.rows:,} rows{of}, {self.labelled_rows:,} with a gold label"


class Options(Frozen):
    """All options that change what is recorded and do not follow from the signals.

    Attributes:
        stride: number of tokens by which the windows of a question's context overlap.
    """

    positions: str | None
    max_length: int = Field(ge=1, le=MOST_ROWS)
    dtype: str
    shard_rows: int = Field(ge=1, le=MOST_ROWS)
    seed: int
    bytes_per_token: float | None = Field(default=None, gt=0)
    hidden_codec: str = "float16"
    hidden_rank: int | None = Field(default=None, ge=1)
    stride: int | None = Field(default=None, ge=0)
