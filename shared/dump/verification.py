"""Verification that every byte of a dump is still as it was written."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from shared.dump.manifest import Manifest
from shared.dump.parquet.tables import shard_schema
from shared.dump.shards import SHARDS, open_shard, read_receipt, receipt_path, shard_path
from shared.dump.weights import load_embeddings
from shared.errors import DumpError
from shared.storage import Folder, sha256_of


def verify(folder: Folder, manifest: Manifest) -> list[str]:
    """Return one sentence for each damage, with the file's name; an empty list if there is none."""
    damages = _verify_tokenizer(folder, manifest) + _verify_embeddings(folder, manifest)
    damages += [problem for index in range(manifest.shards) for problem in _verify_shard(folder, manifest, index)]
    expected = {
        path for index in range(manifest.shards) for path in (shard_path(folder, index), receipt_path(folder, index))
    }
    found = (folder / SHARDS / name for name in (folder / SHARDS).names())
    return damages + [f"{path}: does not belong to this dump" for path in found if path not in expected]


def _verify_tokenizer(folder: Folder, manifest: Manifest) -> list[str]:
    path = folder / "tokenizer" / "tokenizer.json"
    if not path.exists():
        return [f"{path}: missing"]
    try:
        content = Tokenizer.from_buffer(path.read_bytes()).to_str()
    except Exception as error:  # tokenizers raises nothing more special
        return [f"{path}: cannot be read ({error})"]
    if hashlib.sha256(content.encode()).hexdigest() != manifest.tokenizer.fingerprint:
        return [f"{path}: not the tokenizer that the manifest describes"]
    template = folder / "tokenizer" / "chat_template.jinja"
    if manifest.tokenizer.chat_template is None:
        return []
    if not template.exists():
        return [f"{template}: missing"]
    if sha256_of(template) != manifest.tokenizer.chat_template:
        return [f"{template}: not the chat template that the manifest describes"]
    return []


def _verify_embeddings(folder: Folder, manifest: Manifest) -> list[str]:
    """Verify the word embeddings. (The constants of signals have been verified when the dump was opened.)"""
    try:
        if manifest.embeddings is not None:
            load_embeddings(manifest, folder)
    except DumpError as error:
        return [str(error)]
    return []


def _verify_shard(folder: Folder, manifest: Manifest, index: int) -> list[str]:
    path, receipt_file = shard_path(folder, index), receipt_path(folder, index)
    if not path.exists():
        return [f"{path}: missing"]
    if not receipt_file.exists():
        return [f"{path}: never finished (it has no receipt)"]
    receipt = read_receipt(folder, index)
    if receipt is None:
        return [f"{path}: its size of {path.size()} bytes is not that in its receipt (or the receipt is damaged)"]
    if sha256_of(path) != receipt.sha256:
        return [f"{path}: checksum differs, so at least one byte has changed"]
    try:
        return _verify_content(path, open_shard(folder, index), manifest, index)
    except DumpError as error:
        return [str(error)]
    except (pa.ArrowInvalid, OSError) as error:
        return [f"{path}: cannot be read ({error})"]


def _verify_content(path: Folder, shard: pq.ParquetFile, manifest: Manifest, index: int) -> list[str]:
    """Verify that an undamaged file belongs to this dump: its columns, and the row numbers of this shard."""
    if shard.schema_arrow.names != shard_schema(manifest).names:
        return [f"{path}: columns {shard.schema_arrow.names} are not those of the manifest"]
    rows = shard.read(columns=["row"])["row"].to_pylist()
    if sorted(rows) != list(manifest.rows_of_shard(index)):
        return [f"{path}: its rows are not the rows {manifest.rows_of_shard(index)} of the corpus, each exactly once"]
    return []
