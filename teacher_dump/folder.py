"""The dump's folder before the first shard: is it ours to fill, and is it the same dump?"""

import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from shared.dump.card import write_card
from shared.dump.manifest import FILE_NAME, Manifest, read_manifest
from shared.dump.shards import SHARDS
from shared.dump.weights import WEIGHTS, save_weights
from shared.errors import DumpError, UsageError
from shared.storage import Folder
from shared.storage.files import TEMPORARY
from shared.storage.on_disk import save_into
from teacher_dump.claims import CLAIMS

TOKENIZER = "tokenizer"
# What a run that was killed before it wrote the manifest may have left.
_OURS = {TOKENIZER, SHARDS, WEIGHTS, FILE_NAME + TEMPORARY, CLAIMS}


def check_folder(out: Folder) -> None:
    """Raises UsageError for a folder that cannot be written or that holds anything but a dump. Writes nothing."""
    if out.is_file():
        raise UsageError(f"--out {out}: this is a file; name a folder.")
    if out.local is not None:  # elsewhere only trying would tell
        _check_writable(out, out.local)
    if not (out / FILE_NAME).exists():
        strangers = [name for name in out.names() if name not in _OURS]
        # Shards without the manifest that they were written under could be anyone's.
        strangers += [f"{SHARDS}/{name}" for name in (out / SHARDS).names()]
        # Unless another process has begun the dump while we looked.
        if strangers and not (out / FILE_NAME).exists():
            raise UsageError(
                f"--out {out}: holds other files already ({', '.join(strangers[:3])}); choose an empty folder."
            )


def _check_writable(out: Folder, local: Path) -> None:
    nearest = next(path for path in (local, *local.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out}: {nearest} is read-only; choose another folder or mend its permissions.")


def make_folder(out: Folder) -> None:
    """Make the folder. Raises DumpError where that fails."""
    try:
        out.make()
    except OSError as error:
        raise _unwritable(out, error) from error


def refuse_another(out: Folder, manifest: Manifest) -> None:
    """Raises UsageError when the folder holds another dump than this, with the list of differences."""
    if not (out / FILE_NAME).exists():
        return
    differences = read_manifest(out).differences(manifest)
    if differences:
        raise UsageError(
            f"--out {out} is another dump, and a dump never mixes. Differences: {'; '.join(differences)}. "
            "Choose another folder, or the options that it was begun with."
        )


def remove_leftovers(out: Folder) -> None:
    """Remove what a killed run was writing for all shards together. For one process at a time. (What it was writing of
    a shard is overwritten by who makes that shard.)"""
    for name in out.names():
        if name.endswith(TEMPORARY):
            (out / name).remove()


def begin_folder(out: Folder, manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write all that the shards need; the manifest last but for the card, so that a folder that has one has it all.

    Raises:
        DumpError: when the folder cannot be written.
    """
    try:
        (out / SHARDS).make()
        # Fast tokenizers remember how they were last called and would save that: the sample was cut to length.
        tokenizer.backend_tokenizer.no_truncation()
        save_into(out / TOKENIZER, tokenizer.save_pretrained)
        save_weights(manifest, out)
        manifest.write(out)
        write_card(out)
    except Exception as error:  # the tokenizers library reports a full disk as a bare Exception
        (out / FILE_NAME).remove()
        for made in (TOKENIZER, WEIGHTS):
            (out / made).remove_tree()
        (out / CLAIMS).remove()
        for folder in (out / SHARDS, out):
            # Elsewhere a folder is often no more than the beginning of its files' names.
            if folder.local is not None and folder.local.is_dir() and not folder.names():
                folder.local.rmdir()
        raise _unwritable(out, error) from error


def _unwritable(out: Folder, error: Exception) -> DumpError:
    return DumpError(
        f"--out {out}: cannot be written ({error}); make room or mend the folder's permissions, then run the same "
        "command again."
    )
