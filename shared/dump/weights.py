"""The folder `weights/` of a dump: tensors that are too large for the manifest, as safetensors.

They are the constants of codecs, which are loaded with the manifest, and the teacher's word embeddings, which are read
on demand, because few students start from them.
"""

from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from shared.dump.codecs.base import Codec
from shared.dump.embeddings import NAME as EMBEDDINGS
from shared.dump.embeddings import WordEmbeddings
from shared.dump.integrity.checksums import WEIGHTS
from shared.dump.manifest import Manifest
from shared.errors import DumpError
from shared.storage import Folder

Owner = TypeVar("Owner", Codec, WordEmbeddings)


def save_weights(manifest: Manifest, folder: Folder) -> None:
    """Write the constants of all signals, and the word embeddings if there are any, into a dump's folder."""
    owners: list[Codec | WordEmbeddings] = [signal.codec for signal in manifest.signals]
    for owner in owners + ([manifest.embeddings] if manifest.embeddings else []):
        if owner.constants_file is not None:
            (folder / WEIGHTS).make()
            # `save_file` would create a file that only its owner can read.
            content = save({name: values.contiguous() for name, values in owner.constants().items()})
            (folder / WEIGHTS / owner.constants_file).write_bytes(content)


def load_weights(manifest: Manifest, folder: Folder) -> Manifest:
    """Return the manifest with the constants of its signals.

    Raises:
        DumpError: if a file is missing, damaged, or not the one that the manifest describes.
    """
    signals = tuple(signal.with_codec(_load(signal.codec, folder)) for signal in manifest.signals)
    return manifest.model_copy(update={"signals": signals})


def load_embeddings(manifest: Manifest, folder: Folder) -> Tensor:
    """Read the teacher's word embeddings [V, D], float16.

    Raises:
        DumpError: if the dump has none, or if the file is missing, damaged, or not the one that the manifest describes.
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
        # A file on this machine is memory-mapped, so that its tensors are copied once. Without a copy they would change
        # with the file, after their hash has been compared.
        tensors = load(path.read_bytes()) if path.local is None else load_file(path.local)
        return owner.with_constants({name: values.clone() for name, values in tensors.items()})
    except FileNotFoundError:
        raise DumpError(f"{path}: missing, and {owner.name} needs it; restore it or dump again.") from None
    except (SafetensorError, OSError) as error:
        raise DumpError(f"{path}: damaged ({error}); restore it or dump again.") from None
    except DumpError as error:
        raise DumpError(f"{path}: {error}") from None
