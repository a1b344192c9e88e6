"""Shards whose checksums fit and whose values make no sense: `verify` names them, and nothing is learnt from them."""

import math
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import Dump, DumpError
from shared.dump.integrity.verification import verify
from shared.dump.reader import GroupReader
from shared.storage import Folder
from tests.hand_edits import edit_shard

GOLDEN = Path(__file__).parents[2] / "golden"
Rows = list[Any]


def put(value: Any, row: int = 0, at: int = 0) -> Callable[[Rows], object]:
    """Put a value into the list of a row."""
    return lambda rows: rows[row].__setitem__(at, value)


def numbers(dtype: str, value: float, at: int = 0) -> Callable[[Rows], object]:
    """Put a number into the first binary of the first row."""

    def change(rows: Rows) -> None:
        array = np.frombuffer(rows[0][0], dtype).copy()
        array[at] = value
        rows[0][0] = array.tobytes()

    return change


def whole(value: Any, row: int = 0) -> Callable[[Rows], object]:
    return lambda rows: rows.__setitem__(row, value)


# The dump, the column, what is done to its rows, and words of the refusal.
CASES: dict[str, tuple[str, str, Callable[[Rows], object], str]] = {
    "a token id below 0": ("first-top-k", "input_ids", put(-1), "'input_ids' holds -1"),
    "a token id beyond the vocabulary": ("first-top-k", "input_ids", put(320), "'input_ids' holds 320"),
    "a row longer than max_length": ("first-tagging", "input_ids", whole([1] * 65), "length of a row' holds 65"),
    "a type of tokens": ("first-dense", "token_type_ids", put(200), "'token_type_ids' holds 200"),
    "types for fewer tokens": ("first-dense", "token_type_ids", lambda rows: rows[0].pop(), "do not fit their rows"),
    "label 99": ("first-dense", "label", whole(99), "the label 99"),
    "label -5": ("first-dense", "label", whole(-5), "the label -5"),
    "a label at a position": ("first-tagging", "labels", put(3), "the label 3"),
    "a masked token's label": ("first-masked", "labels", put(128), "the label 128"),
    "fewer labels than positions": ("first-tagging", "labels", lambda rows: rows[0].pop(), "do not fit their rows"),
    "a label of a span": ("fifth-questions", "labels", put(4), "the label 4"),
    "a position below 0": ("first-tagging", "positions", put(-1), "'positions' holds -1|do not increase"),
    "a position beyond its row": ("first-tagging", "positions", put(32, at=-1), "holds 32, which is beyond"),
    "a position of a span": ("fifth-questions", "positions", put(14, at=-1), "holds 14, which is beyond"),
    "a position without a next token": ("sixth-chats", "positions", put(63, at=-1), "holds 63, which is beyond"),
    "positions that fall": ("sixth-chats", "positions", put(24), "do not increase"),
    "a position twice": ("first-masked", "positions", put(26), "do not increase"),
    "NaN in logits": ("first-dense", "distribution.logits", numbers("float32", math.nan), "holds nan"),
    "infinite logits": ("first-dense", "distribution.logits", numbers("float32", math.inf), "holds inf"),
    "no class possible": (
        "first-dense",
        "distribution.logits",
        lambda rows: put(struct.pack("<3f", *[-math.inf] * 3))(rows),
        "rules out all classes",
    ),
    "fewer logits than positions": ("first-tagging", "distribution.logits", lambda rows: rows[0].pop(), "do not fit"),
    "NaN in a span's logits": ("fifth-questions", "distribution.logits", numbers("float32", math.nan), "holds nan"),
    "a kept id": ("first-top-k", "distribution.ids", numbers("uint16", 320), "holds 320"),
    "NaN in log-probabilities": ("first-top-k", "distribution.log_probs", numbers("float16", math.nan), "holds nan"),
    "a positive log-probability": ("first-top-k", "distribution.log_probs", numbers("float16", 2.0), "holds 2.0"),
    "NaN in a tail": ("first-top-k", "distribution.tail", put(math.nan), "holds nan"),
    "an entry below 0": ("second-threshold", "distribution.entries", put([-1]), "holds -1"),
    "an entry beyond the vocabulary": ("second-threshold", "distribution.entries", put([320 << 8]), "holds 81920"),
    "an entry's code": ("second-threshold", "distribution.entries", put([132]), "codes' holds 132"),
    "entries without end": ("second-threshold", "distribution.entries", put([0] * 100_000), "ids' holds 100000"),
    "more entries than the rule keeps": ("second-threshold", "distribution.entries", put([1] * 24), "ids' holds 24"),
    "no entries": ("second-threshold", "distribution.entries", put([]), "ids' holds 0"),
    "times of 0": ("second-draws", "distribution.entries", put([0]), "codes' holds 0"),
    "a floor": ("second-top-p", "distribution.floor", put(131), "floor' holds 131"),
    "a code above its floor": ("second-top-p", "distribution.floor", put(130), "codes above their floors"),
    "a code of a plane above its floor": ("sixth-top-k", "distribution.floor", put(130), "codes above their floors"),
    "a code in a plane": ("sixth-top-k", "distribution.entries_0", numbers("uint8", 140), "codes' holds 140"),
    "ids beyond the vocabulary in planes": ("sixth-top-k", "distribution.entries_2", numbers("uint8", 3), "ids' holds"),
    "ids that add up to too much": ("sixth-top-k", "distribution.entries_1", put(b"\xff" * 6), "ids' holds"),
    "NaN in log-sums": ("second-threshold", "distribution.log_sums", put(math.nan), "NaN or infinity"),
    "an infinite entropy": ("sixth-chats", "distribution.entropy", put(math.inf), "NaN or infinity"),
    "NaN in states": ("third-exact", "distribution.state", numbers("float16", math.nan), "NaN or infinity"),
    "infinite hidden states": ("first-dense", "hidden.2", numbers("float16", -math.inf), "NaN or infinity"),
    "a NaN scale": ("second-threshold", "hidden.2.scale", put(math.nan), "scale' holds nan"),
    "an infinite scale": ("second-mass", "hidden.0.scale", put(math.inf), "scale' holds inf"),
    "a scale that overflows": ("second-mass", "hidden.0.scale", put(1e38), "scale' holds"),
    "a negative scale": ("sixth-top-k", "hidden.2.scale", put(-1.0), "scale' holds -1.0"),
    "a partner below 0": ("seventh-mixtures", "mixtures.partner", put([-1, 1]), "partner' holds -1"),
    "a partner of elsewhere": ("seventh-mixtures", "mixtures.partner", put([7, 1]), "names row 7, which is not in"),
    "a partner too few": ("seventh-mixtures", "mixtures.partner", put([1]), "lists of other lengths than 2"),
    "a lambda above 1": ("seventh-mixtures", "mixtures.lambda", put([1.5, 0.5]), "lambda' holds 1.5"),
    "a negative lambda": ("seventh-mixtures", "mixtures.lambda", put([0.5, -0.5]), "lambda' holds -0.5"),
    "NaN in lambda": ("seventh-mixtures", "mixtures.lambda", put([math.nan, 0.5]), "NaN or infinity"),
    "infinite logits of a mixture": ("seventh-mixtures", "mixtures.logits", put([math.inf] * 4), "NaN or infinity"),
    "a logit too many": ("seventh-mixtures", "mixtures.logits", put([0.0] * 5), "lists of other lengths than 4"),
    "mixtures for no row": ("seventh-mixtures", "mixtures.lambda", lambda rows: rows[0].pop(), "do not fit"),
    "vectors of fewer tokens": ("second-threshold", "hidden.2.scale", lambda rows: rows[0].pop(), "do not fit"),
}


@pytest.mark.parametrize("case", CASES)
def test_values_that_make_no_sense_are_named_and_never_learnt_from(case: str, tmp_path: Path) -> None:
    name, column, change, words = CASES[case]
    folder = Path(shutil.copytree(GOLDEN / name, tmp_path / "dump"))
    assert not verify(Folder.of(folder))
    edit_shard(folder, 0, column, change)
    damages = verify(Folder.of(folder))
    assert len(damages) == 1
    assert re.search(f"00000.parquet: row group 0: .*{words}", damages[0])
    assert "\n" not in damages[0]
    dump = Dump(folder)
    signals = [column.name for signal in dump.manifest.signals for column in signal.columns]
    ways: list[Callable[[], object]] = [
        lambda: GroupReader(dump.path, dump.manifest, dump.receipts).read(0, signals),
        lambda: dump.scan().collect(),
    ]
    if column.startswith(("hidden", "queries")):
        ways.append(lambda: dump.vectors(column[:8]).collect())
    elif column.startswith("mixtures"):
        ways.append(lambda: dump.mixtures().collect())
    elif column not in ("token_type_ids",):
        ways.append(lambda: dump.positions().collect())
    for way in ways:
        with pytest.raises(DumpError, match=rf"00000\.parquet: .*({words}|do not fit)") as refusal:
            way()
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("*/")), ids=lambda folder: folder.name)
def test_what_every_format_version_wrote_makes_sense(folder: Path) -> None:
    if (folder / "manifest.json").exists():
        assert not verify(Folder.of(folder))


def test_content_is_checked_once_for_each_row_group(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = Dump(GOLDEN / "first-dense")
    reader = GroupReader(dump.path, dump.manifest, dump.receipts)
    checked: list[list[str]] = []
    monkeypatch.setattr("shared.dump.reader.check_contents", lambda manifest, flat: checked.append(sorted(flat)))
    for columns in ([], [], ["hidden.2"], ["hidden.2"], []):
        reader.read(0, columns)
    assert [("hidden.2" in columns) for columns in checked] == [False, True]
