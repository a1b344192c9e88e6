"""Receipts: what a shard holds. A receipt is written after its shard and commits it.

From format version 6 on, a receipt has a seal, which says where the shard belongs: to which dump, at which number, with
which footer. So a file that has come from another place is refused, and never read as if it were this dump's.
"""

import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from shared.dump.integrity.footers import footer_of, origin_in, origin_of, tail
from shared.errors import DumpError
from shared.storage import Folder, sha256_of

SHARDS = "shards"
# The name of a shard or a receipt; numbers have at least five digits, and no zeros before more of them.
_SHARD_FILE = re.compile(r"(\d{5}|[1-9]\d{5,14})\.(?:json|parquet)", re.ASCII)
# The number of receipts that are fetched in parallel.
READ_AT_ONCE = 32
_REMEDY = "delete it and run the same dump command again."


class DamagedShard(DumpError):
    """A shard or a receipt that is cut short or has changed. `dump` makes the shard again."""


class Seal(BaseModel):
    """Where a shard belongs.

    Attributes:
        dump: the dump's identity, as in its manifest.
        shard: the shard's number.
        footer_bytes, footer_sha256: size and SHA-256 of the file's footer, with what follows it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dump: str
    shard: NonNegativeInt
    footer_bytes: NonNegativeInt
    footer_sha256: str


class Receipt(BaseModel):
    """What was written into a shard.

    Attributes:
        row_groups: the number of rows of each row group.
        seal: where the shard belongs; dumps of format versions 1 to 5 have none.
        checksum: SHA-256 of all other values, if there is a seal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: NonNegativeInt
    tokens: NonNegativeInt
    positions: NonNegativeInt
    bytes: NonNegativeInt
    sha256: str
    row_groups: tuple[NonNegativeInt, ...]
    seal: Seal | None = None
    checksum: str | None = None

    @classmethod
    def of(cls, path: Folder, facts: dict[str, Any], identity: str | None, index: int) -> "Receipt":
        """Return the receipt of a shard that has been written, from its file and its facts (rows, tokens, positions,
        row_groups)."""
        bare = cls(**facts, bytes=path.size(), sha256=sha256_of(path))
        if identity is None:
            return bare
        footer = footer_of(path)
        seal = Seal(dump=identity, shard=index, footer_bytes=len(footer), footer_sha256=_sha256(footer))
        sealed = bare.model_copy(update={"seal": seal})
        return sealed.model_copy(update={"checksum": sealed.digest()})

    def digest(self) -> str:
        """Return the SHA-256 of all values except `checksum`."""
        content = self.model_dump(mode="json", exclude={"checksum"})
        return _sha256(json.dumps(content, sort_keys=True).encode())


def shard_path(folder: Folder, index: int) -> Folder:
    """Return the location of shard `index` of a dump."""
    return folder / SHARDS / f"{index:05d}.parquet"


def receipt_path(folder: Folder, index: int) -> Folder:
    """Return the location of the receipt of shard `index`."""
    return folder / SHARDS / f"{index:05d}.json"


def shard_numbers(folder: Folder) -> list[int]:
    """Return the numbers of a dump's shards and receipts that exist, ascending.

    They are found by their names, because a manifest can claim any number of shards.

    Raises:
        DumpError: if their folder cannot be listed.
    """
    try:
        names = (folder / SHARDS).names()
    except OSError as error:
        raise _unreadable(folder / SHARDS, error) from None
    found = (_SHARD_FILE.fullmatch(name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def write_receipt(folder: Folder, index: int, receipt: Receipt) -> None:
    """Commit a shard by writing its receipt."""
    receipt_path(folder, index).write_text(receipt.model_dump_json(exclude_none=True) + "\n")


def read_receipt(folder: Folder, index: int, identity: str | None) -> Receipt | None:
    """Return the receipt of a committed shard of the dump with this identity; None if it was never finished.

    Raises:
        DamagedShard: if the receipt is damaged, or the shard has another size.
        DumpError: if the receipt belongs to another dump, or to another shard.
    """
    path, file = receipt_path(folder, index), shard_path(folder, index)
    try:
        receipt = Receipt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValidationError:
        raise DamagedShard(f"{path}: damaged receipt (it is no longer what was written); {_REMEDY}") from None
    if receipt.checksum != (receipt.digest() if receipt.seal else None):
        raise DamagedShard(f"{path}: damaged receipt (its checksum differs from its content); {_REMEDY}")
    _check_belongs(path, receipt.seal, identity, index)
    try:
        size = file.size()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(file, error) from None
    if size != receipt.bytes:
        raise DamagedShard(
            f"{file}: damaged shard ({size:,} bytes, but its receipt says {receipt.bytes:,}: it is cut short, or "
            f"another file is in its place); {_REMEDY}"
        )
    return receipt


def finished_receipt(folder: Folder, index: int, identity: str | None) -> Receipt | None:
    """Return the receipt of a shard that need not be made again; None if it is unfinished or damaged.

    Raises:
        DumpError: if the receipt belongs to another dump, or to another shard.
    """
    try:
        return read_receipt(folder, index, identity)
    except DamagedShard:
        return None


def refuse_another_shard(path: Folder, index: int, identity: str | None) -> None:
    """Check that the file which shard `index` would replace is this shard, damaged or unfinished, if there is one.

    Raises:
        DumpError: if it is a whole shard of another dump, or another shard of this one.
    """
    try:
        footer = footer_of(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(path, error) from None
    if footer and origin_in(footer) != (identity and origin_of(identity, index)):
        raise DumpError(
            f"{path}: this shard belongs to another dump or has another number, and is not replaced; move it away, "
            "then run the same dump command again."
        )


def own_receipt(folder: Folder, index: int, identity: str | None) -> Receipt | None:
    """Return what `finished_receipt` does, after a look at the shard itself, finished or not.

    Raises:
        DumpError: if the receipt or the shard belongs to another dump or has another number.
    """
    receipt, path = finished_receipt(folder, index, identity), shard_path(folder, index)
    if receipt is None:
        refuse_another_shard(path, index, identity)
    else:
        checked_footer(path, receipt)
    return receipt


def read_receipts(
    folder: Folder,
    shards: int,
    identity: str | None,
    read: Callable[[Folder, int, str | None], Receipt | None] = read_receipt,
) -> dict[int, Receipt]:
    """Return the receipts of all committed shards of a dump with `shards` shards, by index. Raises as `read` does."""
    indices = [index for index in shard_numbers(folder) if index < shards]
    if folder.local is not None:
        found = [read(folder, index, identity) for index in indices]
    else:  # each takes a round trip or two
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            found = list(pool.map(lambda index: read(folder, index, identity), indices))
    return {index: receipt for index, receipt in zip(indices, found, strict=True) if receipt is not None}


def checked_footer(path: Folder, receipt: Receipt) -> bytes | None:
    """Return the footer of a shard, after a comparison with its receipt; None if the receipt has no seal.

    Raises:
        DamagedShard: if the footer differs, so that it must not be parsed.
    """
    if receipt.seal is None:
        return None
    try:
        footer = tail(path, receipt.seal.footer_bytes)
    except OSError as error:
        raise _unreadable(path, error) from None
    if _sha256(footer) != receipt.seal.footer_sha256:
        raise DamagedShard(
            f"{path}: damaged shard (its footer is not the one in its receipt: it has changed, or another file is in "
            f"its place); {_REMEDY}"
        )
    if origin_in(footer) != origin_of(receipt.seal.dump, receipt.seal.shard):
        raise DumpError(f"{path}: this file is not the shard that its receipt describes; {_REMEDY}")
    return footer


def _unreadable(path: Folder, error: OSError) -> DumpError:
    return DumpError(f"{path}: cannot be read ({error.strerror or error}); {_REMEDY}")


def _check_belongs(path: Folder, seal: Seal | None, identity: str | None, index: int) -> None:
    if seal is None and identity is None:
        return
    if seal is None or seal.dump != identity:
        raise DumpError(
            f"{path}: this receipt belongs to another dump than the manifest beside it, and so does its shard; put the "
            "dump's own files there, or move both away and run the same dump command again."
        )
    if seal.shard != index:
        raise DumpError(
            f"{path}: this is the receipt of shard {seal.shard:05d}, not {index:05d}: files of the dump have changed "
            "places; move them back, or delete both and run the same dump command again."
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
