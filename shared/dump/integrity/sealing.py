"""`shards seal`: new checksums for a dump whose manifest, tokenizer or weights were changed on purpose."""

from shared.dump.integrity.checksums import FILE_NAME, changes, read_checksums, write_checksums
from shared.dump.integrity.receipts import finished_receipt, read_receipts, shard_path
from shared.dump.integrity.verification import verify_contents
from shared.dump.manifest import FILE_NAME as MANIFEST
from shared.dump.manifest import read_manifest
from shared.dump.parquet.tables import is_described
from shared.dump.shards import open_shard
from shared.errors import DumpError
from shared.storage import Folder


def seal(folder: Folder) -> list[str]:
    """Write the checksums of a dump's files as they are now, and return lines that say what they sign.

    Raises:
        DumpError: if the manifest cannot be read, if the tokenizer or the weights are not those that it describes, or
            if a shard belongs to another dump or has other signals.
    """
    manifest = read_manifest(folder, is_signed=False)
    problems = verify_contents(folder, manifest)
    for index, receipt in read_receipts(folder, manifest.shards, manifest.identity, finished_receipt).items():
        path = shard_path(folder, index)
        if not problems and not is_described(manifest, open_shard(path, receipt).schema_arrow):
            problems = [f"{path}: its task, layout or signals are others than those of the manifest"]
    if problems:
        raise DumpError(f"{'; '.join(problems)}. Nothing was signed: mend this first, in the file or in the manifest.")
    before = _signed(folder)
    changed = None if before is None else changes(folder, before)
    signed = write_checksums(folder, (folder / MANIFEST).read_text())
    if changed is None:
        lines = [f"  {name}" for name in signed]
    elif changed:
        lines = [f"  {name}: {what}" for name, what in changed.items()]
    else:
        return [f"{folder}: nothing has changed; {len(signed)} files are signed as before."]
    return [f"{folder / FILE_NAME} now signs these files as they are:", *lines]


def _signed(folder: Folder) -> dict[str, str] | None:
    """Return the checksums that are about to be replaced; None if there are none, or only damaged ones."""
    try:
        return read_checksums(folder)
    except DumpError:
        return None
