"""What the command line asks for, as one typed value, made of groups of options that belong together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import typer
from annotated_doc import Doc
from annotated_types import Ge

from shared.options import AsText, NoOption
from shared.storage import Folder
from shared.text.columns import ColumnNames
from shared.text.lengths import Lengths, Positions

MOST_TOP_P_IDS = 256


class TeacherObject(Protocol):
    """A teacher that is no folder or hub id but an object, from Python, such as a `CallableTeacher`; it names the entry
    of the table `ENGINES` that runs it."""

    @property
    def engine(self) -> str:
        """The entry's name."""


@dataclass(frozen=True)
class Source:
    """What every command names."""

    teacher: Annotated[str | TeacherObject, AsText, Doc("A model's folder, or a hub id.")]
    task: Annotated[
        str,
        Doc("causal-lm, masked-lm, sequence-classification, token-classification, question-answering or encoder."),
    ]
    data: Annotated[
        tuple[str, ...],
        typer.Option(metavar="FILE..."),
        Doc(
            "A file, glob or URL of text: .txt, .jsonl, .json, .csv, .tsv, .parquet, also .gz or .zst. Any number of "
            "them."
        ),
    ]
    out: Annotated[
        str,
        typer.Option(metavar="DIR"),
        Doc(
            "Where the dump is kept: a folder, or a URL that fsspec knows (s3://bucket/dump). The same command again "
            "finishes what is missing."
        ),
    ]

    @property
    def folder(self) -> Folder:
        """The place that `out` names. Raises UsageError for a URL that cannot be opened here."""
        return Folder.of(self.out)


@dataclass(frozen=True)
class Distributions:
    """How much is kept of the teacher's distributions.

    Of `preset`, `threshold`, `bytes_per_token`, `top_k`, `top_p`, `draws`, `dense` and `exact` at most one is given
    (`top_p` may have a `top_k` as its limit). None means the task's default: dense over labels, the default preset
    over a vocabulary.
    """

    preset: Annotated[
        str | None,
        Doc("How much to keep of a vocabulary's distributions: tiny, compact, default, rich or near-lossless."),
    ] = None
    threshold: Annotated[
        float | None, Doc("Keep every class more probable than this, and see --tail for the rest.")
    ] = None
    tail: Annotated[
        str | None,
        Doc(
            "What stands for classes below the threshold: sample (some of them, drawn so that nothing is biased; the "
            "default) or mass (their sum)."
        ),
    ] = None
    bytes_per_token: Annotated[
        float | None, Doc("Find the threshold that takes so many bytes a recorded position.")
    ] = None
    top_k: Annotated[int | None, Doc("Keep the k most probable classes, and the mass of the rest.")] = None
    top_p: Annotated[
        float | None,
        Doc(
            f"Keep the most probable classes that together reach p, at most --top-k (default {MOST_TOP_P_IDS}) of them."
        ),
    ] = None
    draws: Annotated[int | None, Doc("Keep so many random draws with replacement (at most 255).")] = None
    dense: Annotated[bool, Doc("Keep all logits (4 bytes a class and position). Default for labels.")] = False
    exact: Annotated[
        bool, Doc("Keep all of a vocabulary's logits, as the last hidden state and the teacher's head, once.")
    ] = False
    exact_codec: Annotated[str, Doc("How --exact keeps last hidden states: float16, int8 or int4.")] = "float16"
    levels: Annotated[
        int | None,
        Doc(
            "Steps in which a probability p is kept, even in p ** 0.4; above 250 a code takes two bytes. Default: the "
            "preset's; 64 with --bytes-per-token; 130 elsewhere."
        ),
    ] = None
    temperatures: Annotated[
        str | None,
        Doc(
            "Also keep the log-sum-exp at these temperatures, as in 2,4 (2 bytes each): KL there, the rest as one "
            "class, is exact."
        ),
    ] = None
    entropy: Annotated[bool, Doc("Also keep the entropy of the whole distribution (2 bytes).")] = False


@dataclass(frozen=True)
class SignalRequest:
    """One signal that is to be recorded.

    Attributes:
        site, layer: an entry of `shared.dump.signals.SITES`, and which layer's.
        codec, parameters: an entry of `shared.dump.codecs.CODECS`, and those of its fields that are not the default.

    Example:
        >>> SignalRequest("hidden", 6, "low-rank", {"rank": 128, "coefficients": "int8"}).codec
        'low-rank'
    """

    site: str
    layer: int | None = None
    codec: str = "float16"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Vectors:
    """Which of the teacher's vectors are kept, and how: shorthands for `signals`."""

    hidden: Annotated[
        str,
        Doc(
            "Hidden states to keep: none, last, all, or layers such as 6,12. They count as in transformers: 0 is the "
            "embeddings' output."
        ),
    ] = "none"
    hidden_codec: Annotated[str, Doc("How hidden states (and --relations) are kept: float16, int8 or int4.")] = (
        "float16"
    )
    hidden_rank: Annotated[
        int | None,
        Doc("Keep only so many coefficients of a hidden state, in the basis that loses least of a sample."),
    ] = None
    relations: Annotated[
        str, Doc("Layers whose queries, keys and values are kept, for attention relations: none, last, all, or 5,6.")
    ] = "none"
    signals: Annotated[tuple[SignalRequest, ...], NoOption] = ()
    embeddings: Annotated[
        bool,
        Doc(
            "Also keep the teacher's input word embeddings, once, for students that begin from them (2 bytes a number)."
        ),
    ] = False


def _tokens_or_auto(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1")
    return int(text)


@dataclass(frozen=True)
class Running:
    """How the teacher is loaded and run."""

    batch_tokens: Annotated[
        int | None,
        typer.Option(parser=_tokens_or_auto, metavar="N|auto", show_default="auto"),
        Doc("Tokens a batch. auto: 2048 on a CPU, on CUDA what its memory holds. Halved where memory runs out."),
    ] = None
    engine: Annotated[str | None, NoOption] = None
    dtype: Annotated[str, Doc("auto, fp32, bf16 or fp16. auto: bf16 on CUDA, fp32 on a CPU.")] = "auto"
    device: Annotated[str, Doc("auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    device_map: Annotated[
        str, Doc("auto spreads the teacher over all devices, the CPU last; done by itself where one GPU is too small.")
    ] = "none"
    revision: Annotated[str | None, Doc("Revision of a hub id.")] = None
    trust_remote_code: Annotated[bool, Doc("Run code that comes with the teacher. Off unless asked for.")] = False


@dataclass(frozen=True)
class Storage:
    """How the corpus becomes shards."""

    shard_rows: Annotated[int, Ge(1), Doc("Rows a shard: the unit of work that a kill can cost.")] = 4096
    compression: Annotated[
        str,
        Doc(
            "Of shards: zstd, lz4 or none. The larger they are, the less of a processor reading takes. Vectors are "
            "never compressed."
        ),
    ] = "zstd"
    seed: Annotated[int, Ge(0), Doc("Seed of everything drawn at random (masked positions, ids).")] = 0


# A dataclass has the fields of its last base first: this is the order of the options, read from the right.
@dataclass(frozen=True)
class Request(Storage, Running, Lengths, Vectors, Positions, Distributions, ColumnNames, Source):
    """One `dump` command. See `dump --help` for what each option means.

    Unlike elsewhere, gold labels are optional here: without a name their columns need not be there.
    """

    label_column: Annotated[
        str | None,
        Doc(
            "Column of gold labels, which may be missing in any row. By default 'label' where there is one; 'none' "
            "ignores it."
        ),
    ] = None
    tags_column: Annotated[
        str | None,
        Doc("Column of tag lists, one tag a word. By default 'tags' where there is one; 'none' ignores it."),
    ] = None
    answers_column: Annotated[
        str | None,
        Doc(
            "Column of lists of gold answers, empty where there is none. By default 'answer_texts' where there is one; "
            "'none' ignores it."
        ),
    ] = None
