"""The dump's folder before the first shard: check that it may be filled with this dump, and write the manifest."""

from transformers import PreTrainedTokenizerBase

from shared.dump.card import write_card
from shared.dump.integrity.checksums import FILE_NAME as CHECKSUMS
from shared.dump.integrity.checksums import TOKENIZER, WEIGHTS
from shared.dump.integrity.receipts import SHARDS
from shared.dump.manifest import FILE_NAME, Manifest, read_manifest
from shared.dump.weights.files import save_weights
from shared.errors import DumpError, UsageError
from shared.storage import Folder
from shared.storage.files import TEMPORARY
from shared.storage.files import check_folder as check_local_folder
from shared.storage.on_disk import save_into
from teacher_dump.claims import CLAIMS

# Files that a run may leave when it is killed before it has written the manifest.
_OURS = {TOKENIZER, SHARDS, WEIGHTS, CHECKSUMS, CHECKSUMS + TEMPORARY, FILE_NAME + TEMPORARY, CLAIMS}


def check_folder(out: Folder) -> None:
    """Check that a dump can be written to a folder. Writes nothing.

    Raises:
        UsageError: for a name that no folder can have, or a folder that is read-only or has other content than a dump.
    """
    if out.local is not None:  # whether a remote location can be written is only known by writing
        check_local_folder(out.local, "--out", str(out))
    elif out.is_file():
        raise UsageError(f"--out {out}: this is a file; name a folder.")
    if not (out / FILE_NAME).exists():
        names = out.names()
        # On this machine the file of claims comes first: without it, a folder of such a name is somebody else's.
        ours = _OURS if out.local is None or CLAIMS in names else {SHARDS}
        # Shards without their manifest may belong to any dump.
        foreign = [f"{SHARDS}/{name}" for name in (out / SHARDS).names()]
        foreign += [name for name in names if name not in ours]
        # Checked again, because another process may have begun the dump in the meantime.
        if foreign and not (out / FILE_NAME).exists():
            raise UsageError(
                f"--out {out}: holds other files already ({', '.join(foreign[:3])}); choose an empty folder."
            )


def make_folder(out: Folder) -> None:
    """Make the folder. Raises DumpError if that fails."""
    try:
        out.make()
    except OSError as error:
        raise _unwritable(out, error) from error


def refuse_another(out: Folder, manifest: Manifest) -> None:
    """Check that the folder holds no other dump than this one. Raises UsageError with the list of differences."""
    if not (out / FILE_NAME).exists():
        return
    differences = read_manifest(out).differences(manifest)
    if differences:
        raise UsageError(
            f"--out {out} is another dump, and a dump never mixes. Differences: {'; '.join(differences)}. "
            "Choose another folder, or the options with which this dump was begun."
        )


def remove_leftovers(out: Folder) -> None:
    """Remove the unfinished files of a killed run that belong to the whole dump. One process may call it at a time.

    An unfinished file of a shard is overwritten by the process that makes the shard.
    """
    for name in out.names():
        if name.endswith(TEMPORARY):
            (out / name).remove()


def begin_folder(out: Folder, manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write all files that the shards need, and the card.

    First come the tokenizer and the weights, in place of what a killed run may have left of others, then the checksums
    of all, then the manifest: a folder with a manifest has everything.

    Raises:
        DumpError: if the folder cannot be written.
    """
    try:
        (out / SHARDS).make()
        _remove_begun(out)
        # Fast tokenizers save the settings of their last call, and the sample was tokenized with truncation.
        tokenizer.backend_tokenizer.no_truncation()
        save_into(out / TOKENIZER, tokenizer.save_pretrained)
        save_weights(manifest, out)
        manifest.write(out)
        write_card(out)
    except Exception as error:  # the tokenizers library reports a full disk as a bare Exception
        (out / FILE_NAME).remove()
        _remove_begun(out)
        _remove_empty(out / SHARDS)
        (out / CLAIMS).remove()
        _remove_empty(out)
        raise _unwritable(out, error) from error


def _remove_begun(out: Folder) -> None:
    """Remove what comes before the manifest."""
    (out / CHECKSUMS).remove()
    for made in (TOKENIZER, WEIGHTS):
        (out / made).remove_tree()


def _remove_empty(folder: Folder) -> None:
    # In remote locations a folder is often only a prefix of its files' names.
    if folder.local is not None and folder.local.is_dir() and not folder.names():
        folder.local.rmdir()


def _unwritable(out: Folder, error: Exception) -> DumpError:
    return DumpError(
        f"--out {out}: cannot be written ({error}); make room or change the folder's permissions, then run the same "
        "command again."
    )
