"""What the command line asks for, as one typed value."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_TOP_K = 64


@dataclass(frozen=True)
class Request:
    """One `dump` command. See `dump --help` for what each option means.

    `top_k` None and `dense` False mean the task's default: dense over labels, top-64 over a vocabulary.
    """

    teacher: str
    task: str
    data: tuple[str, ...]
    out: Path
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str | None = None
    tokens_column: str = "tokens"
    tags_column: str | None = None
    top_k: int | None = None
    dense: bool = False
    positions: str | None = None
    hidden: str = "none"
    max_length: int = 512
    batch_tokens: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    shard_rows: int = 4096
    limit: int | None = None
    seed: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
