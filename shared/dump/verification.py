"""Whether every byte of a dump is still as it was written."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shared.dump.manifest import Manifest
from shared.dump.shards import open_shard, read_receipt, receipt_path, shard_path, shard_schema
from shared.dump.storage import sha256_of
from shared.errors import DumpError


def verify(folder: Path, manifest: Manifest) -> list[str]:
    """One sentence for each damage, each naming its file; an empty list when there is none."""
    damages = [problem for index in range(manifest.shards) for problem in _verify_shard(folder, manifest, index)]
    expected = {
        path for index in range(manifest.shards) for path in (shard_path(folder, index), receipt_path(folder, index))
    }
    strangers = sorted(path for path in (folder / "shards").glob("*") if path not in expected)
    return damages + [f"{path}: does not belong to this dump" for path in strangers]


def _verify_shard(folder: Path, manifest: Manifest, index: int) -> list[str]:
    path, receipt_file = shard_path(folder, index), receipt_path(folder, index)
    if not path.exists():
        return [f"{path}: missing"]
    if not receipt_file.exists():
        return [f"{path}: never finished (it has no receipt)"]
    receipt = read_receipt(folder, index)
    if receipt is None:
        return [f"{path}: {path.stat().st_size} bytes long, which is not what its receipt says (or that is damaged)"]
    problems = []
    if sha256_of(path) != receipt.sha256:
        problems.append(f"{path}: checksum differs, so at least one byte has changed")
    try:
        problems += _verify_content(path, open_shard(folder, index), manifest, index)
    except DumpError as error:
        problems.append(str(error))
    except (pa.ArrowInvalid, OSError) as error:
        problems.append(f"{path}: cannot be read ({error})")
    return problems


def _verify_content(path: Path, shard: pq.ParquetFile, manifest: Manifest, index: int) -> list[str]:
    """Reading every page checks its CRC."""
    if shard.schema_arrow.names != shard_schema(manifest).names:
        return [f"{path}: columns {shard.schema_arrow.names} are not those of the manifest"]
    rows: list[int] = []
    for batch in shard.iter_batches():
        rows += batch.column("row").to_pylist()
    if sorted(rows) != list(manifest.rows_of_shard(index)):
        return [f"{path}: its rows are not rows {manifest.rows_of_shard(index)} of the corpus, each once"]
    return []
