"""Folders: what lies in one is the same wherever it is, whole or absent, and called what the user called it."""

import io
import pickle
import random
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import BaseModel, ValidationError

from shared.errors import UsageError
from shared.storage import Folder, sha256_of
from shared.storage.on_disk import on_disk, save_into

# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("out/dump", "out/dump"),
        ("out/dump/", "out/dump"),
        ("./out//dump", "out/dump"),
        ("/out/dump", "/out/dump"),
        ("file:///out/dump", "file:///out/dump"),
        ("memory://dump", "memory://dump"),
        ("memory://out/dump/", "memory://out/dump/"),
    ],
)
def test_a_folder_is_called_what_the_user_called_it(given: str, written: str) -> None:
    folder = Folder.of(given)
    assert str(folder) == written
    assert folder.name == "dump"
    below = folder / "shards" / "00000.json"
    assert str(below) == f"{written.rstrip('/')}/shards/00000.json"
    assert below == folder / "shards/00000.json" == Folder.of(str(below))
    assert len({below, Folder.of(str(below)), folder}) == 2
    assert below != str(below)
    assert Folder.of(folder) is folder


def test_a_path_is_the_folder_of_its_text() -> None:
    assert Folder.of(Path("out/dump")) == Folder.of("out/dump")


def test_the_root_of_a_file_system_has_what_lies_in_it() -> None:
    assert str(Folder.of("memory://") / "dump") == "memory://dump"
    assert str(Folder.of("/") / "dump") == "/dump"
    assert str(Folder.of(".") / "dump") == "dump"


def test_only_this_machine_has_local_paths(tmp_path: Path) -> None:
    assert (Folder.of(tmp_path) / "a").local == tmp_path / "a"
    assert (Folder.of(f"file://{tmp_path}") / "a").local == tmp_path / "a"
    assert Folder.of("out/dump").local == Path("out/dump"), "relative, as it was given"
    assert (Folder.of("memory://dump") / "a").local is None


# --- what cannot be opened -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [Path("s3://bucket/dump"), "s3:/bucket/dump", Path("memory://dump")])
def test_a_url_that_was_made_a_path_is_refused(given: Any) -> None:
    """`Path("s3://bucket")` is the folder `bucket` in a folder `s3:`, which nobody means."""
    with pytest.raises(UsageError, match=r"^(s3:/bucket|memory:)/dump: a URL has two slashes after its protocol"):
        Folder.of(given)


def test_an_unknown_protocol_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"^nowhere://dump: this is no URL .*Protocol not known: nowhere") as refusal:
        Folder.of("nowhere://dump")
    assert "\n" not in str(refusal.value)


def test_a_protocol_whose_package_is_missing_is_one_sentence() -> None:
    fsspec.register_implementation(
        "missing", "no_such_package.FileSystem", clobber=True, errtxt="Install no_such_package to access it"
    )
    with pytest.raises(UsageError, match=r"^missing://dump: .*not installed \(Install no_such_package to access it\)"):
        Folder.of("missing://dump")


class Section(BaseModel):
    dump: Folder | None = None


def test_as_an_entry_of_a_model_it_is_the_text_that_was_given() -> None:
    for given in ("out/dump", "memory://dump", "file:///dump"):
        section = Section.model_validate({"dump": given})
        assert section.dump == Folder.of(given)
        assert section.model_dump(mode="json") == {"dump": given}
        assert Section.model_validate_json(section.model_dump_json()) == section
    assert Section(dump=Folder.of("out/dump")) == Section.model_validate({"dump": Path("out/dump")})
    with pytest.raises(ValidationError, match=r"Value error, this is no URL"):
        Section.model_validate({"dump": "nowhere://dump"})
    with pytest.raises(ValidationError, match="give a path or a URL, as text"):
        Section.model_validate({"dump": 5})


# --- what lies in a folder -------------------------------------------------------------------------------------------


def test_what_was_written_is_there(place: Folder) -> None:
    assert not place.exists()
    assert place.names() == []
    place.make()
    (place / "shards").make()
    (place / "shards").make()
    assert place.names() == ["shards"]
    assert place.exists()
    assert not place.is_file()
    file = place / "shards" / "b"
    assert not file.exists()
    file.write_text("naïve")
    (place / "shards" / "a").write_bytes(b"\x00\xff")
    assert file.exists()
    assert file.is_file()
    assert file.size() == 6
    assert (place / "shards").names() == ["a", "b"]
    assert file.names() == []
    assert file.read_text() == "naïve"
    assert (place / "shards" / "a").read_bytes() == b"\x00\xff"
    assert sha256_of(place / "shards" / "a") == "06eb7d6a69ee19e5fbdf749018d3d2abfa04bcbd1365db312eb86dc7169389b8"
    file.write_text("again")
    assert file.read_text() == "again"


@pytest.mark.parametrize("read", ["read_bytes", "read_text", "open", "size"])
def test_what_is_not_there_is_a_file_not_found(read: str, place: Folder) -> None:
    place.make()
    with pytest.raises(FileNotFoundError):
        getattr(place / "file", read)()


def test_what_is_removed_is_gone_and_may_be_gone_already(place: Folder) -> None:
    place.make()
    (place / "file").write_text("")
    (place / "below").make()
    (place / "below" / "file").write_text("")
    for _ in range(2):
        (place / "file").remove()
        assert place.names() == ["below"]
    for _ in range(2):
        (place / "below").remove_tree()
        assert place.names() == []


def test_a_failed_write_leaves_what_was_there_and_nothing_else(place: Folder) -> None:
    place.make()

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        (place / "file").write(fail)
    assert place.names() == []
    (place / "file").write_text("before")
    with pytest.raises(OSError, match="No space"):
        (place / "file").write(fail)
    assert place.names() == ["file"]
    assert (place / "file").read_text() == "before"


def test_a_file_has_its_name_only_once_it_is_whole(place: Folder) -> None:
    place.make()

    def write(file: Any) -> None:
        file.write(b"half")
        assert not (place / "file").exists()
        file.write(b", whole")

    (place / "file").write(write)
    assert (place / "file").read_bytes() == b"half, whole"
    assert place.names() == ["file"]


class RemembersListings(MemoryFileSystem):
    """As file systems of object stores do: what was listed once is told again, whoever has written since."""

    protocol = "remembers"
    listed: dict[str, Any] = {}  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("remembers://"))

    def info(self, path: str, **options: Any) -> Any:
        if path not in self.listed:
            try:
                self.listed[path] = super().info(path)
            except FileNotFoundError as error:
                self.listed[path] = error
        if isinstance(self.listed[path], Exception):
            raise self.listed[path]
        return self.listed[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listed.clear()


def test_what_others_have_written_meanwhile_is_seen(in_memory: Folder) -> None:
    fsspec.register_implementation("remembers", RemembersListings, clobber=True)
    mine = Folder.of(str(in_memory).replace("memory://", "remembers://")) / "file"
    assert not mine.exists()
    (in_memory / "file").write_text("text")
    assert mine.exists()
    assert mine.size() == 4
    (in_memory / "file").write_text("a longer text")
    assert mine.size() == 13
    assert mine.is_file()


# --- reading anywhere in a file --------------------------------------------------------------------------------------


def test_a_file_is_read_from_any_position(place: Folder) -> None:
    content = random.Random(0).randbytes(10_000)
    place.make()
    (place / "file").write_bytes(content)
    with (place / "file").open() as file:
        assert (file.readable(), file.seekable(), file.tell()) == (True, True, 0)
        assert (file.read(3), file.tell()) == (content[:3], 3)
        assert (file.seek(-5, io.SEEK_END), file.read(100), file.read(1)) == (9995, content[-5:], b"")
        assert (file.seek(20), file.seek(7, io.SEEK_CUR)) == (20, 27)
        buffer = bytearray(10)
        assert (file.readinto(buffer), bytes(buffer)) == (10, content[27:37])
        assert file.readall() == content[37:]
        file.seek(0)
        assert file.read() == content
        file.seek(20_000)
        assert file.read() == b""
    assert file.closed


def test_who_has_a_file_open_does_not_move_another(place: Folder) -> None:
    """Files of fsspec's memory file system share one position."""
    content = random.Random(0).randbytes(100_000)
    place.make()
    (place / "file").write_bytes(content)
    wrong: list[int] = []

    def read(seed: int) -> None:
        choose = random.Random(seed)
        with (place / "file").open() as file:
            for at in (choose.randrange(99_000) for _ in range(300)):
                file.seek(at)
                if file.read(100) != content[at : at + 100]:
                    wrong.append(at)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_folder_is_the_same_in_another_process(place: Folder) -> None:
    place.make()
    (place / "file").write_text("text")
    other = pickle.loads(pickle.dumps(place))
    assert other == place
    assert (other / "file").read_text() == "text"


# --- libraries that need paths ---------------------------------------------------------------------------------------


def test_a_library_reads_paths_of_the_disk(place: Folder) -> None:
    (place / "below").make()
    (place / "a").write_text("one")
    (place / "below" / "b").write_text("two")
    with on_disk(place) as path:
        assert (path / "a").read_text() == "one"
        assert (path / "below" / "b").read_text() == "two"
        assert (path == place.local) == (place.local is not None)
    assert path.exists() == (place.local is not None), "a copy is removed"


def test_a_library_saves_into_a_path(place: Folder) -> None:
    def save(path: Path) -> None:
        (path / "below").mkdir(parents=True)
        (path / "a").write_text("one")
        (path / "below" / "b").write_text("two")

    save_into(place / "saved", save)
    assert (place / "saved").names() == ["a", "below"]
    assert (place / "saved" / "below" / "b").read_text() == "two"
