"""`weights/` of a dump: what is too large for the manifest, as safetensors.

These are the constants that codecs need, which come with the manifest, and the teacher's word embeddings, which are
read when they are asked for: few students begin from them.
"""

from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from shared.dump.codecs.base import Codec
from shared.dump.embeddings import NAME as EMBEDDINGS
from shared.dump.embeddings import WordEmbeddings
from shared.dump.manifest import Manifest
from shared.errors import DumpError
from shared.storage import Folder

WEIGHTS = "weights"

Owner = TypeVar("Owner", Codec, WordEmbeddings)


def save_weights(manifest: Manifest, folder: Folder) -> None:
    """Write the constants of every signal that has some, and the word embeddings, into a dump's folder."""
    owners: list[Codec | WordEmbeddings] = [signal.codec for signal in manifest.signals]
    for owner in owners + ([manifest.embeddings] if manifest.embeddings else []):
        if owner.constants_file is not None:
            (folder / WEIGHTS).make()
            # `save_file` would make a file that only its owner may read.
            content = save({name: values.contiguous() for name, values in owner.constants().items()})
            (folder / WEIGHTS / owner.constants_file).write_bytes(content)


def load_weights(manifest: Manifest, folder: Folder) -> Manifest:
    """The manifest with the constants of its signals in place.

    Raises:
        DumpError: when a file is missing, damaged, or not the one that the manifest knows.
    """
    signals = tuple(signal.with_codec(_load(signal.codec, folder)) for signal in manifest.signals)
    return manifest.model_copy(update={"signals": signals})


def load_embeddings(manifest: Manifest, folder: Folder) -> Tensor:
    """The teacher's word embeddings [V, D], float16.

    Raises:
        DumpError: when the dump keeps none, or the file is missing, damaged, or not the one that the manifest knows.
    """
    if manifest.embeddings is None:
        raise DumpError(
            f"{folder}: the teacher's word embeddings are not in this dump; dump again with --embeddings to keep them."
        )
    return _load(manifest.embeddings, folder).constants()[EMBEDDINGS]


def _load(owner: Owner, folder: Folder) -> Owner:
    if owner.constants_file is None:
        return owner
    path = folder / WEIGHTS / owner.constants_file
    try:
        # A file of this machine is mapped, so that its tensors are in memory once.
        tensors = load(path.read_bytes()) if path.local is None else load_file(path.local)
        return owner.with_constants(tensors)
    except FileNotFoundError:
        raise DumpError(f"{path}: missing, and {owner.name} needs it; restore it or dump again.") from None
    except (SafetensorError, OSError) as error:
        raise DumpError(f"{path}: damaged ({error}); restore it or dump again.") from None
    except DumpError as error:
        raise DumpError(f"{path}: {error}") from None
