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

TOKENIZER = "tokenizer"
SHARDS = "shards"
# What a run that was killed before it wrote the manifest may have left.
_OURS = {TOKENIZER, SHARDS, WEIGHTS, FILE_NAME + TEMPORARY}


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
        if strangers:
            raise UsageError(
                f"--out {out}: holds other files already ({', '.join(strangers[:3])}); choose an empty folder."
            )


def enter_folder(out: Path, manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the folder, its tokenizer and its manifest, or find them there.

    Raises:
        UsageError: when the folder is another dump, with the list of differences.
        DumpError: when it cannot be written.
    """
    if (out / FILE_NAME).exists():
        differences = read_manifest(out).differences(manifest)
        if differences:
            raise UsageError(
                f"--out {out} is another dump, and a dump never mixes. Differences: {'; '.join(differences)}. "
                "Choose another folder, or the options that it was begun with."
            )
    else:
        _begin(out, manifest, tokenizer)


def remove_leftovers(out: Path) -> None:
    """Remove what a killed run was writing. Only for a folder that no other run is at work in."""
    for leftover in (*out.glob(f"*{TEMPORARY}"), *(out / SHARDS).glob(f"*{TEMPORARY}")):
        leftover.unlink()


def _begin(out: Path, manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> None:
    """The manifest comes last but for the card: a folder that has one has all that the shards need."""
    try:
        (out / SHARDS).mkdir(parents=True, exist_ok=True)
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
        for folder in (out / SHARDS, out):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise DumpError(
            f"--out {out}: cannot be written ({error}); make room or mend the folder's permissions, then run the same "
            "command again."
        ) from error
