"""Verification that every byte of a dump is still as it was written."""

import hashlib
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from shared.dump.integrity.checksums import PARTS, TOKENIZER, problems
from shared.dump.integrity.receipts import SHARDS, read_receipt, receipt_path, shard_numbers, shard_path
from shared.dump.manifest import Manifest, read_manifest
from shared.dump.parquet.contents import check_table
from shared.dump.parquet.tables import is_described, shard_schema
from shared.dump.shards import open_shard
from shared.dump.weights.files import check_tensors, load_weights
from shared.errors import DumpError
from shared.storage import Folder, sha256_of

# Missing shards that are named one by one.
MOST_NAMED = 100


def verify(folder: Folder) -> list[str]:
    """Return one sentence for each damage, with the file's name; an empty list if there is none.

    Raises:
        DumpError: if there is no manifest that can be read.
    """
    manifest = read_manifest(folder, is_signed=False)
    damages = problems(folder, manifest.format_version, PARTS) or verify_contents(folder, manifest)
    indices = [index for index in shard_numbers(folder) if index < manifest.shards]
    damages += [problem for index in indices for problem in _verify_shard(folder, manifest, index)]
    damages += _missing(folder, manifest.shards, set(indices))
    expected = {path for index in indices for path in (shard_path(folder, index), receipt_path(folder, index))}
    found = (folder / SHARDS / name for name in (folder / SHARDS).names())
    return damages + [f"{path}: does not belong to this dump" for path in found if path not in expected]


def _missing(folder: Folder, shards: int, found: set[int]) -> list[str]:
    """Return one sentence for each of the first shards of which there is nothing, and one for all others."""
    missing = (index for index in range(shards) if index not in found)
    damages = [f"{shard_path(folder, index)}: missing" for index in islice(missing, MOST_NAMED)]
    more = shards - len(found) - len(damages)
    return [*damages, f"{folder / SHARDS}: {more:,} more shards are missing"] if more else damages


def verify_contents(folder: Folder, manifest: Manifest) -> list[str]:
    """Return one sentence for each file of the tokenizer and the weights that is not the one in the manifest."""
    return _verify_tokenizer(folder, manifest) + _verify_weights(folder, manifest)


def _verify_tokenizer(folder: Folder, manifest: Manifest) -> list[str]:
    path = folder / TOKENIZER / "tokenizer.json"
    if not path.exists():
        return [f"{path}: missing"]
    try:
        content = Tokenizer.from_buffer(path.read_bytes()).to_str()
    except Exception as error:  # tokenizers raises nothing more special
        return [f"{path}: cannot be read ({error})"]
    if hashlib.sha256(content.encode()).hexdigest() != manifest.tokenizer.fingerprint:
        return [f"{path}: not the tokenizer that the manifest describes"]
    template = folder / TOKENIZER / "chat_template.jinja"
    if manifest.tokenizer.chat_template is None:
        return []
    if not template.exists():
        return [f"{template}: missing"]
    if sha256_of(template) != manifest.tokenizer.chat_template:
        return [f"{template}: not the chat template that the manifest describes"]
    return []


def _verify_weights(folder: Folder, manifest: Manifest) -> list[str]:
    try:
        load_weights(manifest, folder)
        for name in manifest.tensor_files:
            check_tensors(manifest, folder, name)
    except DumpError as error:
        return [str(error)]
    return []


def _verify_shard(folder: Folder, manifest: Manifest, index: int) -> list[str]:
    path, receipt_file = shard_path(folder, index), receipt_path(folder, index)
    if not path.exists():
        return [f"{path}: missing"]
    if not receipt_file.exists():
        return [f"{path}: never finished (it has no receipt)"]
    try:
        receipt = read_receipt(folder, index, manifest.identity)
        if receipt is None or sha256_of(path) != receipt.sha256:
            return [f"{path}: checksum differs, so at least one byte has changed"]
        return _verify_content(path, open_shard(path, receipt), manifest, index)
    except DumpError as error:
        return [str(error)]
    except (pa.ArrowException, OSError) as error:
        return [f"{path}: cannot be read ({error})"]


def _verify_content(path: Folder, shard: pq.ParquetFile, manifest: Manifest, index: int) -> list[str]:
    """Verify that an undamaged file belongs to this dump: its columns, and the row numbers of this shard."""
    if shard.schema_arrow.names != shard_schema(manifest).names:
        return [f"{path}: columns {shard.schema_arrow.names} are not those of the manifest"]
    if not is_described(manifest, shard.schema_arrow):
        return [f"{path}: it says of itself that its task, layout or signals are others than those of the manifest"]
    rows = shard.read(columns=["row"])["row"].to_pylist()
    if sorted(rows) != list(manifest.rows_of_shard(index)):
        return [f"{path}: its rows are not the rows {manifest.rows_of_shard(index)} of the corpus, each exactly once"]
    for group in range(shard.num_row_groups):
        try:
            check_table(manifest, shard.read_row_group(group))
        except ValueError as error:
            return [f"{path}: row group {group}: {error}"]
    return []
