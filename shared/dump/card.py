"""The dataset card: a README.md made from the manifest, so that a dump's folder can be pushed to a hub unchanged."""

from pathlib import Path

from shared.dump.integrity.receipts import finished_receipt, read_receipts
from shared.dump.manifest import read_manifest
from shared.dump.parquet.tables import shard_schema
from shared.printable import on_one_line, printable
from shared.storage import Folder


def write_card(folder: Folder) -> None:
    """Write the card of the dump in `folder`."""
    manifest = read_manifest(folder)
    finished = read_receipts(folder, manifest.shards, manifest.identity, finished_receipt).values()
    columns = "\n".join(
        f"| `{field.name}` | {field.type} | {(field.metadata or {}).get(b'description', b'').decode()} |"
        for field in shard_schema(manifest)
    )
    names = ", ".join(map(on_one_line, manifest.label_names or ()))
    labels = f"Labels, in order: {names}.\n\n" if names else ""
    rows = manifest.corpus.in_words() if manifest.label_names else f"{manifest.corpus.rows:,}"
    options, teacher = manifest.options, manifest.teacher
    codecs = [codec for codec in (manifest.distribution, manifest.mixtures) if codec is not None]
    explained = "".join(f"\n{codec.explain()}\n" for codec in codecs if codec.explain())
    files = [f"the teacher's {file.describe(name)}" for name, file in manifest.tensor_files.items()]
    kept = f"| weights | {on_one_line('; '.join(files))} |\n" if files else ""
    text = f"""---
tags: [knowledge-distillation, lectern]
configs:
- config_name: default
  data_files: shards/*.parquet
---
# Teacher outputs of {Path(manifest.teacher.name).name}

Recorded by Lectern (format version {manifest.format_version}) for offline knowledge distillation.

| | |
|---|---|
| task | {manifest.task} |
| teacher | {teacher.architecture}, {teacher.parameters:,} parameters, run in {options.dtype} |
| rows | {rows} |
| shards | {len(finished)} of {manifest.shards} finished |
| tokens | {sum(receipt.tokens for receipt in finished):,} |
| signals | {"; ".join(signal.describe() + manifest.measured_in_words(signal.name) for signal in manifest.signals)} |
{kept}
{labels}## Columns of `shards/*.parquet`

| column | type | holds |
|---|---|---|
{columns}

A fixed-size binary is an array of numbers of the type in the last column, little-endian. In polars:
`pl.col(name).explode().bin.reinterpret(dtype=pl.Array(pl.Float16, width))`. `shared.Dump(folder).positions()` and
`.vectors(name)` decode everything. pandas reads these columns with its pyarrow types:
`pd.read_parquet(file, dtype_backend="pyarrow")`. fastparquet does not know their encoding, BYTE_STREAM_SPLIT.
{explained}"""
    (folder / "README.md").write_text(printable(text))
