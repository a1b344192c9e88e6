"""The dump's folder before the first shard: is it ours to fill, and is it the same dump?"""

import os
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from shared.dump.card import write_card
from shared.dump.manifest import FILE_NAME, Manifest, read_manifest
from shared.dump.storage import TEMPORARY
from shared.dump.weights import WEIGHTS, save_weights
from shared.errors import DumpError, UsageError
from teacher_dump.claims import CLAIMS

TOKENIZER = "tokenizer"
SHARDS = "shards"
# What a run that was killed before it wrote the manifest may have left.
_OURS = {TOKENIZER, SHARDS, WEIGHTS, FILE_NAME + TEMPORARY, CLAIMS}


def check_folder(out: Path) -> None:
    """Raises UsageError for a folder that cannot be written or that holds anything but a dump. Writes nothing."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: this is a file; name a folder.")
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out}: {nearest} is read-only; choose another folder or mend its permissions.")
    if out.is_dir() and not (out / FILE_NAME).exists():
        strangers = sorted(path.name for path in out.iterdir() if path.name not in _OURS)
        # Shards without the manifest that they were written under could be anyone's.
        strangers += sorted(f"{SHARDS}/{path.name}" for path in (out / SHARDS).glob("*"))
        # Unless another process has begun the dump while we looked.
        if strangers and not (out / FILE_NAME).exists():
            raise UsageError(
                f"--out {out}: holds other files already ({', '.join(strangers[:3])}); choose an empty folder."
            )


def make_folder(out: Path) -> None:
    """Make the folder. Raises DumpError where that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from error


def refuse_another(out: Path, manifest: Manifest) -> None:
    """Raises UsageError when the folder holds another dump than this, with the list of differences."""
    if not (out / FILE_NAME).exists():
        return
    differences = read_manifest(out).differences(manifest)
    if differences:
        raise UsageError(
            f"--out {out} is another dump, and a dump never mixes. Differences: {'; '.join(differences)}. "
            "Choose another folder, or the options that it was begun with."
        )


def remove_leftovers(out: Path) -> None:
    """Remove what a killed run was writing for all shards together. For one process at a time. (What it was writing of
    a shard is overwritten by who makes that shard.)"""
    for leftover in out.glob(f"*{TEMPORARY}"):
        leftover.unlink()


def begin_folder(out: Path, manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write all that the shards need; the manifest last but for the card, so that a folder that has one has it all.

    Raises:
        DumpError: when the folder cannot be written.
    """
    try:
        (out / SHARDS).mkdir(exist_ok=True)
        # Fast tokenizers remember how they were last called and would save that: the sample was cut to length.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(out / TOKENIZER)
        save_weights(manifest, out)
        manifest.write(out)
        write_card(out)
    except Exception as error:  # the tokenizers library reports a full disk as a bare Exception
        (out / FILE_NAME).unlink(missing_ok=True)
        for made in (TOKENIZER, WEIGHTS):
            shutil.rmtree(out / made, ignore_errors=True)
        (out / CLAIMS).unlink(missing_ok=True)
        for folder in (out / SHARDS, out):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: Exception) -> DumpError:
    return DumpError(
        f"--out {out}: cannot be written ({error}); make room or mend the folder's permissions, then run the same "
        "command again."
    )
