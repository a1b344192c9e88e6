"""The options of `dump` as one typed value, made of groups of options that belong together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import typer
from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt

from shared.dump.facts import ALPHAS, MOST_DRAWS
from shared.errors import UsageError
from shared.options import MOST, AsText, NoOption
from shared.storage import Folder
from shared.text.columns import ColumnNames
from shared.text.lengths import Lengths, Positions
from teacher_dump.kept import Kept

MOST_TOP_P_IDS = 256
# That of MixKD's experiments.
DEFAULT_ALPHA = 0.4
# Below it, there are more numbers of classes than vocabularies have.
LEAST_THRESHOLD = 1e-9


class TeacherObject(Protocol):
    """A teacher that Python code gives as an object, such as a `CallableTeacher`, instead of a folder or hub id."""

    @property
    def engine(self) -> str:
        """The name of the entry of the table `ENGINES` that runs this teacher."""


@dataclass(frozen=True)
class Source:
    """The options that every command needs."""

    teacher: Annotated[str | TeacherObject, AsText, Doc("A model's folder, or a hub id.")]
    task: Annotated[
        str,
        Doc("causal-lm, masked-lm, sequence-classification, token-classification, question-answering or encoder."),
    ]
    data: Annotated[
        tuple[str, ...],
        typer.Option(metavar="FILE..."),
        Doc(
            "A file, glob or URL of text: .txt, .jsonl, .json, .csv, .tsv, .parquet, .conll, also .gz or .zst. Any "
            "number of them."
        ),
    ]
    out: Annotated[
        str,
        typer.Option(metavar="DIR"),
        Doc(
            "Where the dump is kept: a folder, or a URL that fsspec knows (s3://bucket/dump). To resume a dump, run "
            "the same command again."
        ),
    ]

    @property
    def folder(self) -> Folder:
        """The location that `out` names. Raises UsageError for an empty name, or a URL that cannot be opened here."""
        if not str(self.out).strip():  # as a path, an empty text is the working directory
            raise UsageError(f"--out {str(self.out)!r}: name a folder for the dump.")
        return Folder.of(self.out)


@dataclass(frozen=True)
class Distributions:
    """How much of the teacher's distributions is kept.

    At most one of `preset`, `threshold`, `bytes_per_token`, `top_k`, `top_p`, `draws`, `dense` and `exact` is given,
    except that `top_k` may limit `top_p`. Without any, distributions over labels are dense, and those over a
    vocabulary use the default preset.
    """

    preset: Annotated[
        str | None,
        Doc("How much to keep of a vocabulary's distributions: tiny, compact, default, rich or near-lossless."),
    ] = None
    threshold: Annotated[
        float | None,
        Ge(LEAST_THRESHOLD),
        Lt(1),
        Doc("Keep every class with a larger probability than this; --tail is for the other classes."),
    ] = None
    tail: Annotated[
        str | None,
        Doc(
            "What to keep of classes below the threshold: sample (some of them, drawn at random without bias; the "
            "default) or mass (the sum of their probabilities)."
        ),
    ] = None
    bytes_per_token: Annotated[
        float | None, Ge(2), Le(MOST), Doc("Find the threshold that takes this many bytes per recorded position.")
    ] = None
    top_k: Annotated[
        int | None, Ge(1), Le(MOST), Doc("Keep the k most probable classes, and the probability mass of the others.")
    ] = None
    top_p: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Doc(
            f"Keep the most probable classes that together reach p, at most --top-k (default {MOST_TOP_P_IDS}) of them."
        ),
    ] = None
    draws: Annotated[int | None, Ge(1), Le(255), Doc("Keep this many random draws with replacement (at most 255).")] = (
        None
    )
    dense: Annotated[bool, Doc("Keep all logits (4 bytes per class and position). The default for labels.")] = False
    exact: Annotated[
        bool, Doc("Keep a vocabulary's logits exactly: the last hidden states, and the teacher's head once.")
    ] = False
    exact_codec: Annotated[str, Doc("How --exact keeps last hidden states: float16, int8 or int4.")] = "float16"
    levels: Annotated[
        int | None,
        Ge(8),
        Le(65_000),
        Doc(
            "Number of quantization levels of a probability p, evenly spaced in p ** 0.4; above 250 a code takes two "
            "bytes. Default: the preset's; 64 with --bytes-per-token; otherwise 130."
        ),
    ] = None
    temperatures: Annotated[
        str | None,
        Doc(
            "Also keep the log-sum-exp at these temperatures, such as 2,4 (2 bytes each): with it, KL at these "
            "temperatures is exact, with the other classes as one."
        ),
    ] = None
    entropy: Annotated[bool, Doc("Also keep the entropy of the whole distribution (2 bytes).")] = False


@dataclass(frozen=True)
class SignalRequest:
    """One signal to record.

    Attributes:
        site, layer: the name of an entry of `shared.dump.signals.SITES`, and the layer's number.
        codec, parameters: the name of an entry of `shared.dump.codecs.CODECS`, and values for its fields in place of
            their defaults.

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
    """Which of the teacher's vectors are kept, and how. The other options are shorthands for `signals`."""

    hidden: Annotated[
        str,
        Doc(
            "Hidden states to keep: none, last, all, or layers such as 6,12. Layers are numbered as in transformers: "
            "0 is the output of the embeddings."
        ),
    ] = "none"
    pooling: Annotated[
        str | None,
        Doc(
            "Embeddings of rows (encoder): auto (the default: as the modules.json beside the model says, which also "
            "gives the largest number of tokens; without one mean), mean, cls, last or max of the last hidden states, "
            "or none."
        ),
    ] = None
    normalize: Annotated[
        str,
        Doc("Whether embeddings of rows are divided by their length: yes, no, or auto (as modules.json says, or no)."),
    ] = "auto"
    pooled_codec: Annotated[str, Doc("How embeddings of rows are kept: float16, int8 or int4.")] = "float16"
    hidden_codec: Annotated[str, Doc("How hidden states (and --relations) are kept: float16, int8 or int4.")] = (
        "float16"
    )
    hidden_rank: Annotated[
        int | None,
        Ge(1),
        Le(MOST),
        Doc("Keep only this many coefficients of each hidden state, in the PCA basis of a sample."),
    ] = None
    relations: Annotated[
        str, Doc("Layers whose queries, keys and values are kept, for attention relations: none, last, all, or 5,6.")
    ] = "none"
    attention_inputs: Annotated[
        str, Doc("Layers whose inputs are kept, and once their projections: as --relations, from a third of the bytes.")
    ] = "none"
    attention_inputs_codec: Annotated[str, Doc("How --attention-inputs are kept: float16, int8 or int4.")] = "int8"
    signals: Annotated[tuple[SignalRequest, ...], NoOption] = ()


@dataclass(frozen=True)
class Mixing:
    """Rows that the teacher reads a second time, mixed with others (MixKD, Liang et al. 2021, arXiv 2011.00593)."""

    mixup: Annotated[
        int | None,
        Ge(1),
        Le(MOST_DRAWS),
        Doc(
            "Also keep the teacher's logits for each row mixed with this many others: lambda times its word embeddings "
            "plus 1 - lambda times those of a random row of the same row group. Each mixture costs a forward pass. For "
            "sequence-classification and the loss 'mixup'."
        ),
    ] = None
    mixup_alpha: Annotated[
        float | None,
        Ge(ALPHAS[0]),
        Le(ALPHAS[1]),
        Doc(f"Lambda is drawn from Beta(A, A); --mixup alone uses {DEFAULT_ALPHA}."),
    ] = None


def _tokens_or_auto(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or len(text) > 20 or not 1 <= int(text) <= MOST:
        raise typer.BadParameter(f"{text!r:.80} is neither auto nor a number from 1 to {MOST:,}")
    return int(text)


@dataclass(frozen=True)
class Running:
    """How the teacher is loaded and run."""

    batch_tokens: Annotated[
        int | None,
        Ge(1),
        Le(MOST),
        typer.Option(parser=_tokens_or_auto, metavar="N|auto", show_default="auto"),
        Doc(
            "Tokens per batch. auto: 2048 on a CPU, and as many as its memory holds on CUDA. Halved when memory runs "
            "out."
        ),
    ] = None
    engine: Annotated[str | None, NoOption] = None
    dtype: Annotated[str, Doc("auto, fp32, bf16 or fp16. auto: bf16 on CUDA, fp32 on a CPU.")] = "auto"
    device: Annotated[str, Doc("auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    device_map: Annotated[
        str,
        Doc("none or auto. auto spreads the teacher over all GPUs, then the CPU; automatic if one GPU is too small."),
    ] = "none"
    revision: Annotated[str | None, Doc("Revision of a hub id.")] = None
    trust_remote_code: Annotated[bool, Doc("Run Python code that comes with the teacher.")] = False


@dataclass(frozen=True)
class Storage:
    """How the dump is cut into shards and stored."""

    shard_rows: Annotated[
        int, Ge(1), Le(MOST), Doc("Rows per shard, the unit of work: a killed run loses at most one unfinished shard.")
    ] = 4096
    compression: Annotated[
        str,
        Doc(
            "Compression of shards: zstd, lz4 or none, from the smallest files to the fastest reading. Vectors are "
            "never compressed."
        ),
    ] = "zstd"
    seed: Annotated[int, Ge(0), Le(2**63 - 1), Doc("Seed of all random draws (masked positions, ids).")] = 0


# A dataclass starts with the fields of its last base, so the options are in the order of the bases from right to left.
@dataclass(frozen=True)
class Request(Storage, Running, Lengths, Kept, Mixing, Vectors, Positions, Distributions, ColumnNames, Source):
    """One `dump` command; `dump --help` explains each option.

    Gold labels are optional here, unlike in the other commands: a column that has not been named may be missing.
    """

    label_column: Annotated[
        str | None,
        Doc(
            "Column of gold labels, which may be missing in any row. By default 'label' if the file has it; 'none' "
            "ignores it."
        ),
    ] = None
    tags_column: Annotated[
        str | None,
        Doc(
            "Column of tag lists, one tag per word (`ner_tags` where there is no `tags`). By default 'tags' if the "
            "file has it; 'none' ignores it."
        ),
    ] = None
    answers_column: Annotated[
        str | None,
        Doc(
            "Column of lists of gold answers, empty if there is none (`answers` where there is no `answer_texts`). By "
            "default 'answer_texts' if the file has it; 'none' ignores it."
        ),
    ] = None
