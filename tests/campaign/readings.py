"""Every way in which a dump is read, as values that can be compared with those of the undamaged dump."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from shared import Dump
from shared.cli import run as run_app
from shared.dump.cli import app as shards
from shared.dump.reader import GroupReader
from shared.dump.rowgroup import to_flat
from shared.errors import DumpError
from shared.storage import Folder
from student_train.data.sources import DumpSource
from tests.campaign.attempts import Outcome
from tests.campaign.commands import TRACEBACK

Way = tuple[str, Callable[[], Any]]
VERIFY = "verify"
# Ways that need all shards; the others read what is finished of a dump that is being made.
OF_WHOLE_DUMPS = (VERIFY, "reader", "source", "shards verify")


def ways(folder: Path) -> Iterator[Way]:
    """Yield a name and a function for each way of reading; the functions open the dump anew."""
    yield "manifest", lambda: Dump(folder).manifest.model_dump_json()
    yield VERIFY, lambda: Dump(folder).verify()
    yield "reader", lambda: trained(Dump(folder))
    yield "source", lambda: learnt(folder)
    yield "texts", lambda: Dump(folder).token_texts
    yield "scan", lambda: Dump(folder).scan().collect()
    yield "positions", lambda: Dump(folder).positions().collect()
    yield "some", lambda: Dump(folder).scan().filter(pl.col("row") == 3).select("row", "input_ids").collect()
    yield "vectors", lambda: [Dump(folder).vectors(name).collect() for name in Dump(folder).manifest.vectors]
    yield "embeddings", lambda: Dump(folder).word_embeddings().numpy().tobytes()
    yield "weights", lambda: kept_once(Dump(folder))
    for words in ("info", "head", "stats", "verify"):
        yield f"shards {words}", lambda words=words: printed([words, str(folder)])  # type: ignore[misc]


def kept_once(dump: Dump) -> list[Any]:
    """Return the tensors that are kept once, and the teacher's configuration."""
    found: list[Any] = [dump.teacher_weights()[0]] if "teacher" in dump.manifest.tensor_files else []
    for name in dump.manifest.tensor_files:
        found += [(name, key, each.tolist()) for key, each in sorted(dump.tensors(name).items())]
    return found


def trained(dump: Dump) -> list[Any]:
    """Return all columns of all row groups, as a trainer reads them, and their sizes and gold labels."""
    dump.require_complete()
    reader = GroupReader(dump.path, dump.manifest, dump.receipts)
    columns = [column.name for signal in dump.manifest.signals for column in signal.columns]
    found: list[Any] = [reader.sizes(columns).tokens.tolist()]
    for group in range(len(reader.group_rows)):
        rows = reader.read(group, columns)
        plain = [value for name, value in vars(rows).items() if name != "columns" and value is not None]
        found += [(part.dtype.str, part.tobytes()) for part in [*plain, *to_flat(rows.columns).values()]]
        found += [part.tolist() for part in reader.gold(group)]
    return found


def learnt(folder: Path) -> list[Any]:
    """Return what a training run knows of a dump before its first row."""
    source = DumpSource(Folder.of(folder))
    tokens = source.tokenizer("the quick fox, naïve café").input_ids
    return [source.vocabulary, source.label_names, source.max_length, tokens, source.tokenizer.all_special_ids]


class Failed(Exception):
    """A command that ended with an error in one paragraph."""


def printed(words: list[str]) -> str:
    """Return what a `shards` command prints. Raises Failed for an error of one paragraph."""
    out, before = io.StringIO(), sys.argv
    sys.argv = ["shards", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            run_app(shards)
    except SystemExit as ended:
        if ended.code:
            raise Failed(out.getvalue()) from None
    finally:
        sys.argv = before
    return out.getvalue()


def values_of(folder: Path) -> dict[str, Any]:
    """Return what each way gives for an undamaged dump; DumpError where a dump has no such thing."""
    values: dict[str, Any] = {}
    for name, way in ways(folder):
        try:
            values[name] = way()
        except DumpError as error:
            values[name] = error
    return values


def compared(folder: Path, wanted: dict[str, Any], is_whole: bool = True) -> tuple[Outcome, str]:
    """Read a damaged dump in every way, and return the worst outcome with its words.

    Args:
        is_whole: False for a dump that lacks shards, so that there is no less to read than it says.
    """
    found: dict[Outcome, str] = {}
    for name, way in ways(folder):
        if not is_whole and name not in OF_WHOLE_DUMPS:
            continue
        outcome, words = _one(folder, name, way, wanted[name])
        found.setdefault(outcome, f"{name}: {words}")
    for outcome in (Outcome.BAD, Outcome.SILENT, Outcome.FOUND):
        if outcome in found:
            return outcome, found[outcome]
    return Outcome.HARMLESS, ""


def _one(folder: Path, name: str, way: Callable[[], Any], wanted: Any) -> tuple[Outcome, str]:
    try:
        value = way()
    except (DumpError, Failed) as error:
        text = " ".join(str(error).split())
        if (
            TRACEBACK in text
            or not text
            or (isinstance(error, Failed) and name != "shards verify" and "error:" not in text)
        ):
            return Outcome.BAD, f"not an error of one paragraph: {text[-300:]}"
        if isinstance(wanted, DumpError):
            return (Outcome.HARMLESS, "") if text == " ".join(str(wanted).split()) else (Outcome.FOUND, text[:200])
        if folder.name not in text:
            return Outcome.BAD, f"an error that names no file: {text[:300]}"
        return Outcome.FOUND, text[:200]
    except BaseException as error:
        return Outcome.BAD, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if name == VERIFY:
        return (Outcome.FOUND, value[0][:200]) if value else (Outcome.HARMLESS, "")
    if isinstance(wanted, DumpError) or not _equal(value, wanted):
        return Outcome.SILENT, f"other values: {_difference(value, wanted)}"
    return Outcome.HARMLESS, ""


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, pl.DataFrame):
        return isinstance(value, pl.DataFrame) and value.equals(wanted)
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], pl.DataFrame):
        return len(value) == len(wanted) and all(map(_equal, value, wanted))
    return bool(value == wanted)


def _difference(value: Any, wanted: Any) -> str:
    if isinstance(value, str) and isinstance(wanted, str):
        lines = zip(value.splitlines(), wanted.splitlines(), strict=False)
        return next((f"{one!r} in place of {other!r}" for one, other in lines if one != other), "fewer or more lines")
    return f"{value!s:.100} in place of {wanted!s:.100}" if not isinstance(value, (list, bytes)) else "(arrays)"
