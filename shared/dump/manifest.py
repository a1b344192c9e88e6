"""The manifest, which describes a dump completely, and decides whether a command may continue it."""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from shared.dump.codecs import DistributionCodec, Mixtures, VectorCodec
from shared.dump.facts import MOST_PADDING, MOST_ROWS, CorpusFacts, Frozen, Options, Pooling, Teacher, TokenizerFacts
from shared.dump.integrity.checksums import MANIFEST as FILE_NAME
from shared.dump.integrity.checksums import check, write_checksums
from shared.dump.layouts import LAYOUTS, Layout
from shared.dump.signals import ATTENTION_INPUTS, EMBEDDING, Per, Signal
from shared.dump.versions import FIRST_IDENTIFIED, FORMAT_VERSION, READABLE_VERSIONS, upgraded
from shared.dump.weights.tensor_file import ATTENTION, TEACHER, TensorFile, TensorFileName
from shared.errors import DumpError
from shared.parsing import NotParsed, parse_json
from shared.storage import Folder
from shared.validation import in_words

# Facts about origins, for information only; dumps that differ in nothing else have the same content.
_INFORMATIONAL = (
    "lectern_version",
    "teacher.name",
    "teacher.revision",
    "teacher.attention_heads",
    "measured.",
    # The teacher's fingerprint has it already, without what depends on the version of transformers.
    f"tensor_files.{TEACHER}.facts.config.",
)
# Hexadecimal digits of an identity.
_IDENTITY_DIGITS = 32


_WORDS = {
    "bytes_per_position": "bytes",
    "ids_per_position": "ids",
    "kept_mass": "exact mass",
    "rounding_kl": "KL of rounding",
    "relative_error": "relative squared error",
    "channel_error": "median channel's error",
    "relations_kl": "KL of relations",
}

# Compression of the shards' pages.
Compression = Literal["zstd", "lz4", "none"]


def _layout_named(value: Any) -> Layout:
    if isinstance(value, Layout):
        return value
    if not isinstance(value, str) or value not in LAYOUTS:
        raise ValueError(f"there is no layout {value!r}; there are: {', '.join(LAYOUTS)}")
    return LAYOUTS[value]


# A layout; the manifest's file has its name in the table of layouts.
NamedLayout = Annotated[Layout, PlainValidator(_layout_named), PlainSerializer(lambda layout: layout.name)]


class Manifest(Frozen):
    """Everything that a student needs to know about a dump.

    Attributes:
        format_version: version of the dump's files. The other fields of an earlier version are upgraded when read.
        vocabulary: rows of the teacher's embedding or head; the tokenizer may have fewer entries.
        layout: where in a row the distributions (and gold labels) are.
        labelled: whether any row has gold labels; those of a language model are the text itself.
        pairs: whether rows are pairs of texts; then `token_type_ids` are stored.
        tensor_files: what the dump keeps once in `weights/` (the teacher's word embeddings, ...), by the file's name.
        pooling: how the embeddings of rows were made, if they are recorded.
        compression: compression of the columns for which it saves enough bytes.
        measured: size and loss of the signals, measured on a sample of the corpus, by signal.
        identity: hash of everything that changes content, made when the dump was begun; its shards and receipts have it
            too. A deliberate edit of the manifest keeps it. Dumps of format versions 1 to 5 have none.
    """

    format_version: int
    lectern_version: str
    task: str
    teacher: Teacher
    tokenizer: TokenizerFacts
    vocabulary: int = Field(ge=1, le=MOST_ROWS)
    layout: NamedLayout
    labelled: bool
    label_names: tuple[str, ...] | None
    pairs: bool
    corpus: CorpusFacts
    options: Options
    signals: tuple[Signal, ...]
    tensor_files: dict[TensorFileName, TensorFile] = Field(default_factory=dict)
    pooling: Pooling | None = None
    compression: Compression = "zstd"
    measured: dict[str, dict[str, float]] = Field(default_factory=dict)
    identity: str | None = Field(default=None, pattern=f"^[0-9a-f]{{{_IDENTITY_DIGITS}}}$")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        names, vocabulary = self.label_names, self.vocabulary
        if vocabulary > self.tokenizer.size + MOST_PADDING:
            raise ValueError(
                f"vocabulary = {vocabulary:,}, but the tokenizer has {self.tokenizer.size:,} entries, and a head is "
                f"padded by {MOST_PADDING:,} at most"
            )
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"a label name occurs twice in {names}")
        if len({signal.name for signal in self.signals}) < len(self.signals):
            raise ValueError("a signal occurs twice")
        if (self.pooling is None) == any(signal.site == EMBEDDING for signal in self.signals):
            raise ValueError("the pooling and the signal of embeddings belong together, but only one of them is there")
        for outcomes in {signal.codec.outcomes for signal in self.signals} - {None}:
            if outcomes != (vocabulary if names is None else len(names)):
                what = f"a vocabulary of {vocabulary:,}" if names is None else f"{len(names):,} label names"
                raise ValueError(f"the distributions are over {outcomes:,} classes, but there are {what}")
        if any(isinstance(signal.codec, Mixtures) and signal.per != "row" for signal in self.signals):
            raise ValueError("mixtures of rows are recorded for each row")
        if any(signal.site == ATTENTION_INPUTS for signal in self.signals) and ATTENTION not in self.tensor_files:
            raise ValueError("it has inputs of attention, but not the projections of attention")
        return self

    @property
    def shards(self) -> int:
        """The number of shards of the complete dump."""
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
        return tuple(signal for signal in self.signals if isinstance(signal.codec, VectorCodec))

    @property
    def mixtures(self) -> Mixtures | None:
        """The codec of mixtures of rows, if they are recorded."""
        return next((signal.codec for signal in self.signals if isinstance(signal.codec, Mixtures)), None)

    @property
    def per_column(self) -> dict[str, Per]:
        """What an entry of each signal column belongs to (token, position or row), by the column's name."""
        return {column.name: signal.per for signal in self.signals for column in signal.columns}

    def measured_in_words(self, signal: str) -> str:
        """Return the measured size and loss of a signal as text after its description; empty if nothing was
        measured."""
        facts = [f"{_WORDS.get(key, key)} {value:.3g}" for key, value in self.measured.get(signal, {}).items()]
        return f"; on a sample: {', '.join(facts)}" if facts else ""

    def rows_of_shard(self, index: int) -> range:
        """Return the corpus rows of shard `index`."""
        first = index * self.options.shard_rows
        return range(first, min(first + self.options.shard_rows, self.corpus.rows))

    def identified(self) -> "Manifest":
        """Return the manifest with the identity of the dump that it begins."""
        facts = json.dumps(self._facts_of_content(), sort_keys=True).encode()
        return self.model_copy(update={"identity": hashlib.sha256(facts).hexdigest()[:_IDENTITY_DIGITS]})

    def write(self, folder: Folder) -> None:
        """Write the manifest into a dump's folder, after the checksums of itself and of all files that are there."""
        text = self.model_dump_json(indent=2) + "\n"
        write_checksums(folder, text)
        (folder / FILE_NAME).write_text(text)

    def differences(self, asked: "Manifest") -> list[str]:
        """Return one sentence for each difference between this dump and the manifest that a command would write."""
        mine, theirs = self._facts_of_content(), asked._facts_of_content()
        return [
            f"{key}: the dump has {mine.get(key, 'none')}, this command asks for {theirs.get(key, 'none')}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]

    def _facts_of_content(self) -> dict[str, Any]:
        """Return the values that change content, by their path."""
        return {key: value for key, value in self._facts().items() if not key.startswith((*_INFORMATIONAL, "identity"))}

    def _facts(self) -> dict[str, Any]:
        """Return all values by their path; in a signal's path, its name replaces its index, and the codec's values are
        beside its own."""
        content = self.model_dump(mode="json")
        entries = {signal.name: entry for signal, entry in zip(self.signals, content["signals"], strict=True)}
        return _flat(content | {"signals": {name: entry | entry["codec"] for name, entry in entries.items()}})


def read_manifest(folder: Folder, is_signed: bool = True) -> Manifest:
    """Read the manifest of a dump's folder; compare it with its checksum if `is_signed`.

    Raises:
        DumpError: if there is none, if it is damaged or not as it was written, or if its format version cannot be read.
    """
    path = folder / FILE_NAME
    try:
        content: Any = parse_json(path.read_bytes())
        version = content["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise DumpError(f"{folder}: no dump here (there is no {FILE_NAME}); check the path.") from None
    except OSError as error:
        raise DumpError(f"{path}: cannot be read ({error.strerror or error}); restore it or dump again.") from None
    except (NotParsed, TypeError, KeyError) as error:
        raise DumpError(f"{path}: damaged manifest ({error}); restore it or dump again.") from None
    if version not in READABLE_VERSIONS:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        advice = "upgrade Lectern to read it" if newer else "dump again with this version"
        raise DumpError(
            f"{path}: format version {version}, but this Lectern reads versions 1 to {FORMAT_VERSION}; {advice}."
        )
    if is_signed:
        check(folder, version, (FILE_NAME,))
    try:
        manifest = Manifest.model_validate(upgraded(content))
    except ValidationError as error:
        raise DumpError(f"{path}: damaged manifest ({in_words(error, Manifest)}); restore it or dump again.") from None
    if (manifest.identity is None) != (version < FIRST_IDENTIFIED):
        raise DumpError(
            f"{path}: damaged manifest (dumps have the key 'identity' from format version {FIRST_IDENTIFIED} on, and "
            f"this one says that its version is {version}); restore it or dump again."
        )
    return manifest


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}
