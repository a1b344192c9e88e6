"""Write and read the files of a dump's folder `weights/`.

They are the constants of codecs, which are loaded with the manifest, and the tensor files (the teacher's word
embeddings, its weights, ...), which are read on demand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from shared.dump.codecs.base import Codec
from shared.dump.integrity.checksums import WEIGHTS
from shared.dump.manifest import Manifest
from shared.dump.weights.safetensors_file import write_tensors
from shared.dump.weights.tensor_file import TENSOR_FILES
from shared.errors import DumpError
from shared.storage import Folder


def save_weights(manifest: Manifest, folder: Folder) -> None:
    """Write the constants of all signals, and all tensor files, into a dump's folder."""
    codecs = [signal.codec for signal in manifest.signals]
    tensors = {codec.constants_file: codec.constants() for codec in codecs if codec.constants_file is not None}
    files = {f"{name}.safetensors": entry.unwritten() for name, entry in manifest.tensor_files.items()}
    for name, content in (tensors | files).items():
        (folder / WEIGHTS).make()
        (folder / WEIGHTS / name).write(partial(write_tensors, tensors=content))


def load_weights(manifest: Manifest, folder: Folder) -> Manifest:
    """Return the manifest with the constants of its signals.

    Raises:
        DumpError: if a file is missing, damaged, or not the one that the manifest describes.
    """
    signals = tuple(signal.with_codec(_loaded(signal.codec, folder)) for signal in manifest.signals)
    return manifest.model_copy(update={"signals": signals})


def load_tensors(manifest: Manifest, folder: Folder, name: str) -> dict[str, Tensor]:
    """Read a tensor file, by its name in the table `TENSOR_FILES`.

    Raises:
        DumpError: if the dump has none, or if the file is missing, damaged, or not the one that the manifest describes.
    """
    kind = TENSOR_FILES[name]
    if name not in manifest.tensor_files:
        raise DumpError(
            f"{folder}: the teacher's {kind.words} are not in this dump; dump again with {kind.option} to keep them."
        )
    with _tensors_in(folder / WEIGHTS / f"{name}.safetensors", kind.words) as tensors:
        # A file on this machine is memory-mapped. Without a copy, the tensors would change with the file, after their
        # hash has been compared.
        copied = {key: values.clone() for key, values in tensors.items()}
        manifest.tensor_files[name].check(copied)
    return copied


def check_tensors(manifest: Manifest, folder: Folder, name: str) -> None:
    """Check a tensor file without holding its tensors. Raises DumpError as `load_tensors` does."""
    with _tensors_in(folder / WEIGHTS / f"{name}.safetensors", TENSOR_FILES[name].words) as tensors:
        manifest.tensor_files[name].check(tensors)


def _loaded(codec: Codec, folder: Folder) -> Codec:
    if codec.constants_file is None:
        return codec
    with _tensors_in(folder / WEIGHTS / codec.constants_file, codec.name) as tensors:
        return codec.with_constants({key: values.clone() for key, values in tensors.items()})


@contextmanager
def _tensors_in(path: Folder, needed_by: str) -> Iterator[dict[str, Tensor]]:
    """Read a file of tensors for the block; what is wrong with it, there or in the block, is a DumpError that names
    it."""
    try:
        yield load(path.read_bytes()) if path.local is None else load_file(path.local)
    except FileNotFoundError:
        raise DumpError(f"{path}: missing, and {needed_by} needs it; restore it or dump again.") from None
    except (SafetensorError, OSError) as error:
        raise DumpError(f"{path}: damaged ({error}); restore it or dump again.") from None
    except DumpError as error:
        raise DumpError(f"{path}: {error}") from None
