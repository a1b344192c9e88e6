"""What the command line asks for, as one typed value."""

from dataclasses import dataclass
from pathlib import Path

from shared.text.tokenized import DEFAULT_STRIDE

MOST_TOP_P_IDS = 256


@dataclass(frozen=True)
class Request:
    """One `dump` command. See `dump --help` for what each option means.

    Of `preset`, `threshold`, `bytes_per_token`, `top_k`, `top_p`, `draws`, `dense` and `exact` at most one is given
    (`top_p` may have a `top_k` as its limit). None means the task's default: dense over labels, the default preset
    over a vocabulary.
    """

    teacher: str
    task: str
    data: tuple[str, ...]
    out: Path
    text_column: str = "text"
    pair_column: str | None = None
    messages_column: str | None = None
    label_column: str | None = None
    tokens_column: str = "tokens"
    tags_column: str | None = None
    question_column: str = "question"
    context_column: str = "context"
    answers_column: str | None = None
    starts_column: str = "answer_starts"
    impossible_column: str = "is_impossible"
    preset: str | None = None
    threshold: float | None = None
    tail: str | None = None
    bytes_per_token: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    draws: int | None = None
    dense: bool = False
    exact: bool = False
    exact_codec: str = "float16"
    levels: int | None = None
    temperatures: str | None = None
    entropy: bool = False
    positions: str | None = None
    hidden: str = "none"
    hidden_codec: str = "float16"
    hidden_rank: int | None = None
    relations: str = "none"
    embeddings: bool = False
    max_length: int = 512
    stride: int = DEFAULT_STRIDE
    batch_tokens: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str = "none"
    shard_rows: int = 4096
    compression: str = "zstd"
    limit: int | None = None
    seed: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
