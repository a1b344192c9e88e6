"""A file of tensors that a dump keeps once, in `weights/`, beside what it keeps for each row.

It is read on demand, because few students need it. The manifest has its facts and a hash of its tensors. Its name is an
entry of the table `TENSOR_FILES`, so that no manifest can refer to a file elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PrivateAttr
from torch import Tensor

from shared.dump.codecs.constants import fingerprint
from shared.dump.facts import Frozen
from shared.dump.weights.safetensors_file import shapes_of
from shared.errors import DumpError
from shared.progress import human_bytes
from shared.registry import Registry

EMBEDDINGS, TEACHER, IMPORTANCE, ATTENTION = "embeddings", "teacher", "importance", "attention"

# Numbers above these are no facts about a file.
MOST_TENSORS, MOST_BYTES = 2**24, 2**50


@dataclass(frozen=True)
class TensorFileKind:
    """What a file holds.

    Attributes:
        words: what it is, for messages: "the dump has no <words>".
        option: the option of `dump` that keeps it.
        is_measured: whether its values are measured on rows of the corpus, so that their last digits would differ on
            other hardware. A dump that has been begun keeps them.
    """

    words: str
    option: str
    is_measured: bool = False


# To keep another file, add a line here, and one to the table of teacher_dump/tensor_files/ that says what is in it.
TENSOR_FILES: Registry[TensorFileKind] = Registry(
    "tensor file",
    {
        EMBEDDINGS: TensorFileKind("word embeddings", "--embeddings"),
        TEACHER: TensorFileKind("weights", "--teacher-weights"),
        ATTENTION: TensorFileKind("projections of attention", "--attention-inputs"),
        IMPORTANCE: TensorFileKind("importance of heads, neurons and residual dimensions", "--importance", True),
    },
)


def _in_table(name: str) -> str:
    if name not in TENSOR_FILES:
        raise ValueError(f"there is no tensor file {name!r}; there are: {', '.join(TENSOR_FILES)}")
    return name


# The name of an entry of the table; the file is called NAME.safetensors.
TensorFileName = Annotated[str, AfterValidator(_in_table)]


@dataclass(frozen=True)
class _Unwritten:
    """Tensors, or None; the hash in the manifest's entry already tells different ones apart."""

    tensors: Mapping[str, Tensor] | None = field(default=None, compare=False)


class TensorFile(Frozen):
    """The manifest's entry about such a file.

    Attributes:
        tensors, bytes: number of tensors, and bytes of their values.
        sha256: hash of the tensors' names, types, shapes and values.
        facts: whatever else its readers need to know, as JSON. They change content, except `config`.
    """

    tensors: int = Field(ge=0, le=MOST_TENSORS)
    bytes: int = Field(ge=0, le=MOST_BYTES)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    facts: dict[str, Any] = Field(default_factory=dict)

    _unwritten: _Unwritten = PrivateAttr(default_factory=_Unwritten)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], **facts: Any) -> Self:
        """Return the entry about tensors that will be written. A mapping may make them when they are looked up."""
        size = sum(shape.bytes for shape in shapes_of(tensors).values())
        made = cls(tensors=len(tensors), bytes=size, sha256=fingerprint(tensors), facts=facts)
        made._unwritten = _Unwritten(tensors)
        return made

    def unwritten(self) -> Mapping[str, Tensor]:
        """Return the tensors that it was made of. Raises DumpError if it was read from a manifest."""
        if self._unwritten.tensors is None:
            raise DumpError("the tensors of this file have not been read.")
        return self._unwritten.tensors

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that these are the tensors of the file. Raises DumpError if their hash differs."""
        if fingerprint(tensors) != self.sha256:
            raise DumpError(
                "these are not the tensors that the manifest describes (their SHA-256 differs); restore the file or "
                "dump again."
            )

    def describe(self, name: str) -> str:
        """Describe the file of this name in a few words, for messages and reports."""
        plural = "tensor" if self.tensors == 1 else "tensors"
        facts = [f"{key} {value}" for key, value in self.facts.items() if isinstance(value, str | int | float)]
        size = f"{self.tensors:,} {plural}, {human_bytes(self.bytes)}"
        return f"{TENSOR_FILES[name].words} ({', '.join([size, *facts])})"
