"""`weights/` of a dump: the constants that codecs need and that are too large for the manifest, as safetensors."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from shared.dump.codecs import Signal
from shared.dump.manifest import Manifest
from shared.dump.storage import write_bytes_atomically
from shared.errors import DumpError

WEIGHTS = "weights"


def save_weights(manifest: Manifest, folder: Path) -> None:
    """Write the constants of every signal that has some into a dump's folder."""
    for codec in manifest.signals:
        if codec.constants_file is not None:
            (folder / WEIGHTS).mkdir(exist_ok=True)
            # `save_file` would make a file that only its owner may read.
            content = save({name: values.contiguous() for name, values in codec.constants().items()})
            write_bytes_atomically(folder / WEIGHTS / codec.constants_file, content)


def load_weights(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with the constants of its signals in place.

    Raises:
        DumpError: when a file is missing, damaged, or not the one that the manifest knows.
    """
    return manifest.model_copy(update={"signals": tuple(_load(signal, folder) for signal in manifest.signals)})


def _load(signal: Signal, folder: Path) -> Signal:
    if signal.constants_file is None:
        return signal
    path = folder / WEIGHTS / signal.constants_file
    try:
        return signal.with_constants(load_file(path))
    except FileNotFoundError:
        raise DumpError(f"{path}: missing, and {signal.name} needs it; restore it or dump again.") from None
    except (SafetensorError, OSError) as error:
        raise DumpError(f"{path}: damaged ({error}); restore it or dump again.") from None
    except DumpError as error:
        raise DumpError(f"{path}: {error}") from None
