"""Something else in the place of a dump's file, or nothing: the Python face of a dump raises DumpError alone."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import Dump, DumpError

GOLDEN = Path(__file__).parents[2] / "golden" / "sixth-top-k"
PARTS = (
    "", "manifest.json", "checksums.json", "shards", "shards/00000.parquet", "shards/00000.json", "tokenizer",
    "tokenizer/tokenizer.json", "weights",
)  # fmt: skip
IN_PLACE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a folder": Path.mkdir,
    "a file": lambda path: path.write_text("x"),
    "a link in a circle": lambda path: path.symlink_to(path.name),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
}
WAYS: dict[str, Callable[[Path], object]] = {
    "positions": lambda folder: Dump(folder).positions().collect(),
    "scan": lambda folder: Dump(folder).scan().collect(),
    "vectors": lambda folder: Dump(folder).vectors("hidden.2").collect(),
    "completeness": lambda folder: Dump(folder).require_complete(),
    "texts": lambda folder: Dump(folder).token_texts,
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("instead", IN_PLACE)
def test_a_dump_raises_dump_errors_alone(part: str, instead: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "dump"))
    path = folder / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    IN_PLACE[instead](path)
    refusals = []
    for way in WAYS.values():
        try:
            way(folder)
        except DumpError as error:
            refusals.append(str(error))
    assert not any("\n" in refusal for refusal in refusals)
    try:
        damages = Dump(folder).verify()
    except DumpError as error:
        damages = [str(error)]
    assert refusals or part == "shards/00000.json"
    assert damages
