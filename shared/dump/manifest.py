"""The manifest: what makes a dump self-describing, and what decides whether a command may go on with it."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from shared.dump.codecs import DistributionCodec, VectorCodec
from shared.dump.embeddings import WordEmbeddings
from shared.dump.layouts import LAYOUTS, Layout
from shared.dump.signals import Per, Signal
from shared.dump.versions import FORMAT_VERSION, READABLE_VERSIONS, upgraded
from shared.errors import DumpError
from shared.storage import Folder
from shared.validation import in_words

FILE_NAME = "manifest.json"

# Where things came from, for people; two dumps that differ in these alone hold the same.
_INFORMATIONAL = ("lectern_version", "teacher.name", "teacher.revision", "teacher.attention_heads", "measured.")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Teacher(_Frozen):
    """The teacher: its name for people, and a hash of its configuration and every weight for the comparison.

    `attention_heads` is said where queries, keys and values are recorded.
    """

    name: str
    revision: str | None
    architecture: str
    parameters: int
    fingerprint: str
    attention_heads: int | None = None


class TokenizerFacts(_Frozen):
    """`size` counts the tokenizer's entries; a head may be wider (padding), never narrower.

    Where rows are chats, `chat_template` is the SHA-256 of the template that rendered them, and `special_tokens` are
    those that it could name.
    """

    size: int
    fingerprint: str
    pad_token_id: int | None
    chat_template: str | None = None
    special_tokens: dict[str, str] | None = None


class CorpusFacts(_Frozen):
    """`fingerprint` covers the values read, not the files' names; `labelled_rows` counts rows with a gold label.

    Where rows are windows of questions' contexts, `questions` counts the rows of the files.
    """

    rows: int
    labelled_rows: int
    fingerprint: str
    questions: int | None = None

    def in_words(self) -> str:
        """How many rows there are, of what, and how many have a gold label."""
        of = "" if self.questions is None else f" (windows of {self.questions:,} questions' contexts)"
        return f"{self.rows:,} rows{of}, {self.labelled_rows:,} with a gold label"


class Options(_Frozen):
    """Every option that changes what is recorded and that the signals do not tell. `stride` is by how many tokens the
    windows of a question's context overlap."""

    positions: str | None
    max_length: int
    dtype: str
    shard_rows: int
    seed: int
    bytes_per_token: float | None = None
    hidden_codec: str = "float16"
    hidden_rank: int | None = None
    stride: int | None = None


_WORDS = {
    "bytes_per_position": "bytes",
    "ids_per_position": "ids",
    "kept_mass": "exact mass",
    "rounding_kl": "KL of rounding",
    "relative_error": "relative squared error",
    "channel_error": "median channel's error",
}

# By which the shards' pages are made smaller.
Compression = Literal["zstd", "lz4", "none"]


def _layout_named(value: Any) -> Layout:
    if isinstance(value, Layout):
        return value
    if not isinstance(value, str) or value not in LAYOUTS:
        raise ValueError(f"there is no layout {value!r}; there are: {', '.join(LAYOUTS)}")
    return LAYOUTS[value]


# In the manifest, its name in the table of layouts.
NamedLayout = Annotated[Layout, PlainValidator(_layout_named), PlainSerializer(lambda layout: layout.name)]


class Manifest(_Frozen):
    """Everything a student needs to know about a dump.

    Attributes:
        format_version: of the dump's files; what was read of an earlier one is nonetheless as today's.
        vocabulary: rows of the teacher's embedding or head; the tokenizer may have fewer entries.
        layout: where in a row the distributions (and gold labels) are.
        labelled: whether any row has gold labels; of a language model, the text itself is them.
        pairs: whether rows are pairs of texts, so that `token_type_ids` are stored.
        embeddings: the teacher's word embeddings, where they are kept.
        compression: what the columns that are worth it are compressed with.
        measured: what the signals cost and lose, by signal, on a sample of the corpus.
    """

    format_version: int
    lectern_version: str
    task: str
    teacher: Teacher
    tokenizer: TokenizerFacts
    vocabulary: int = Field(ge=1)
    layout: NamedLayout
    labelled: bool
    label_names: tuple[str, ...] | None
    pairs: bool
    corpus: CorpusFacts
    options: Options
    signals: tuple[Signal, ...]
    embeddings: WordEmbeddings | None = None
    compression: Compression = "zstd"
    measured: dict[str, dict[str, float]] = Field(default_factory=dict)

    @property
    def shards(self) -> int:
        """How many shards the whole dump has."""
        return -(-self.corpus.rows // self.options.shard_rows)

    @property
    def distribution(self) -> DistributionCodec | None:
        """The codec of the distribution, if one is recorded."""
        found = (signal.codec for signal in self.signals if isinstance(signal.codec, DistributionCodec))
        return next(found, None)

    @property
    def vectors(self) -> dict[str, VectorCodec]:
        """The codecs of the vector signals, by the signals' names."""
        return {signal.name: signal.codec for signal in self.signals if isinstance(signal.codec, VectorCodec)}

    @property
    def vector_signals(self) -> tuple[Signal, ...]:
        """The signals that are vectors."""
        return tuple(signal for signal in self.signals if not signal.is_distribution)

    @property
    def per_column(self) -> dict[str, Per]:
        """What each of the signals' columns has an entry for, by the column's name."""
        return {column.name: signal.per for signal in self.signals for column in signal.columns}

    def measured_in_words(self, signal: str) -> str:
        """What a signal costs and loses, to be put after its description; empty where nothing was measured."""
        facts = [f"{_WORDS.get(key, key)} {value:.3g}" for key, value in self.measured.get(signal, {}).items()]
        return f"; on a sample: {', '.join(facts)}" if facts else ""

    def rows_of_shard(self, index: int) -> range:
        """The corpus rows that shard `index` holds."""
        first = index * self.options.shard_rows
        return range(first, min(first + self.options.shard_rows, self.corpus.rows))

    def write(self, folder: Folder) -> None:
        """Write it into a dump's folder, whole or not at all."""
        (folder / FILE_NAME).write_text(self.model_dump_json(indent=2) + "\n")

    def differences(self, asked: "Manifest") -> list[str]:
        """One sentence for each thing in which a command that would write `asked` differs from this dump."""
        mine, theirs = self._facts(), asked._facts()
        return [
            f"{key}: the dump has {mine.get(key, 'none')}, this command asks for {theirs.get(key, 'none')}"
            for key in sorted(mine.keys() | theirs.keys())
            if not key.startswith(_INFORMATIONAL) and mine.get(key) != theirs.get(key)
        ]

    def _facts(self) -> dict[str, Any]:
        """Everything by its place, a signal's by its name and whether they are the codec's or not."""
        content = self.model_dump(mode="json")
        entries = {signal.name: entry for signal, entry in zip(self.signals, content["signals"], strict=True)}
        return _flat(content | {"signals": {name: entry | entry["codec"] for name, entry in entries.items()}})


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a dump's folder.

    Raises:
        DumpError: when there is none, when it is damaged, or when another format version wrote it.
    """
    path = folder / FILE_NAME
    try:
        content: Any = json.loads(path.read_text())
        version = content["format_version"]
    except FileNotFoundError:
        raise DumpError(f"{folder}: no dump here (there is no {FILE_NAME}); check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise DumpError(f"{path}: damaged manifest ({error}); restore it or dump again.") from None
    if version not in READABLE_VERSIONS:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        advice = "upgrade Lectern to read it" if newer else "dump again with this version"
        raise DumpError(
            f"{path}: format version {version}, but this Lectern reads versions 1 to {FORMAT_VERSION}; {advice}."
        )
    try:
        return Manifest.model_validate(upgraded(content))
    except ValidationError as error:
        raise DumpError(f"{path}: damaged manifest ({in_words(error, Manifest)}); restore it or dump again.") from None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}
