"""The campaign's own machinery: what it counts, and that a fault is counted as one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.campaign import attempts, commands, declared, hostile, runner
from tests.campaign.attempts import FAULTS, Attempt, Journal, Outcome
from tests.campaign.commands import Ended
from tests.campaign.damage import Damage, any_damage, apply, files_of, mend

ROOT = Path(__file__).parents[2]


def campaign(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.campaign", *arguments, "--json", str(folder / "result.json")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_attempt_of_each_kind_is_repeated_by_its_number(tmp_path: Path) -> None:
    """A whole campaign in small: material, references, a process that attacks."""
    done = campaign("0.01", "--only", "flips", folder=tmp_path)
    counts = json.loads((tmp_path / "result.json").read_text())["counts"]["flips"]
    assert done.returncode == (1 if counts["silent"] + counts["ended badly"] else 0), done.stderr
    assert counts["tried"] > 0
    assert "flips" in done.stdout


@pytest.fixture
def dump(make_dump: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A dump, and an undamaged copy of it."""
    import shutil

    folder = make_dump(hidden="last", out=tmp_path / "dump")
    return folder, Path(shutil.copytree(folder, tmp_path / "whole"))


def test_a_check_that_finds_nothing_is_counted_as_silent(
    dump: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared.dump.integrity import checksums
    from tests.campaign.readings import compared, values_of

    folder, whole = dump
    wanted = values_of(folder)
    assert compared(folder, wanted)[0] is Outcome.HARMLESS
    manifest = (folder / "manifest.json").read_text()
    at = manifest.index('"negative"') + 1
    damage = Damage("flip", "manifest.json", at, bit=0)
    apply(damage, folder)
    assert compared(folder, wanted)[0] is Outcome.FOUND
    monkeypatch.setattr(checksums, "changes", lambda *given, **named: {})
    outcome, words = compared(folder, wanted)
    assert (outcome, "other values" in words) == (Outcome.SILENT, True)
    mend(damage, folder, whole)
    assert compared(folder, wanted)[0] is Outcome.HARMLESS


def test_an_exception_of_another_kind_is_counted_as_ended_badly(
    dump: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.campaign import readings

    folder, _ = dump
    wanted = readings.values_of(folder)
    monkeypatch.setattr(readings.Dump, "scan", lambda self: 1 // 0)
    assert readings.compared(folder, wanted)[0] is Outcome.BAD


def test_every_damage_changes_a_file_and_is_mended(dump: tuple[Path, Path]) -> None:
    folder, whole = dump
    names = files_of(whole)
    for number in range(200):
        damage = any_damage(runner.chance_of(0, "damage", number), folder, names, [])
        apply(damage, folder)
        mend(damage, folder, whole)
        assert str(damage) == str(any_damage(runner.chance_of(0, "damage", number), folder, names, []))
    assert files_of(folder) == names
    assert all((folder / name).read_bytes() == (whole / name).read_bytes() for name in names)


class Odd:
    """Attempts that end in all ways: well, by a signal, with an exception, never."""

    name, goal, batch, silent_cpu_seconds = "odd", 10, 5, 0.2

    def prepare(self, place: Path) -> None:
        """Nothing."""

    def attack(self, place: Path, work: Path, seed: int, numbers: Sequence[int], journal: Journal) -> None:
        """Attempt 1 kills its process, 2 raises, 3 hangs."""
        for number in numbers:
            journal.begin(number, f"attempt {number}")
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 2:
                raise ValueError("two")
            while number == 3:
                pass
            journal.end(Outcome.HARMLESS)


def test_the_death_and_the_hanging_of_a_process_have_a_number(tmp_path: Path) -> None:
    left, found = [0, 1, 2, 3, 4], []
    while left:
        batch = runner.start(Odd(), left, tmp_path, 0)
        while (seen := runner.look_at(batch))[1] is None:
            found += seen[0]
            time.sleep(0.01)
        found += seen[0]
        left = seen[1]
    assert [(attempt.number, attempt.outcome) for attempt in found] == [
        (0, Outcome.HARMLESS),
        (1, Outcome.BAD),
        (2, Outcome.BAD),
        (3, Outcome.BAD),
        (4, Outcome.HARMLESS),
    ]
    said = [attempt.words for attempt in found]
    assert "SIGKILL" in said[1]
    assert "ValueError: two" in said[2]
    assert "nothing happened" in said[3]


def test_the_table_counts_and_faults_say_how_to_repeat_them() -> None:
    ended = [
        Attempt("kills", 3, "dump", Outcome.HARMLESS, tried=5),
        Attempt("calls", 7, "dump --seed x", Outcome.BAD, "traceback"),
    ]
    lines = attempts.table(ended, ["kills", "calls"]).splitlines()
    assert lines[1].split() == ["kills", "5", "0", "5", "0", "0", "0"]
    assert lines[2].split() == ["calls", "1", "0", "0", "0", "0", "1"]
    (fault,) = attempts.faults(ended, seed=4)
    assert "--seed 4 --repeat calls 7" in fault
    assert json.loads(attempts.as_json(ended, 4, 30.0))["counts"]["kills"]["tried"] == 5


@pytest.mark.parametrize(
    ("errors", "fault", "is_paragraph"),
    [
        ("error: x.jsonl: missing.\n", None, True),
        ("step 3\nerror: x.jsonl: missing,\nand more.\n", None, True),
        ("error: one.\n\nerror: two.\n", None, False),
        ("Traceback (most recent call last):\nValueError: x\n", "traceback", False),
        ("error: \x1b[2J.\n", "control characters", True),
    ],
)
def test_what_a_command_says_is_judged(errors: str, fault: str | None, is_paragraph: bool) -> None:
    ended = Ended(1, "", errors, 1.0, False, 0)
    assert (fault or "") in (ended.fault or "")
    assert (ended.fault is None) == (fault is None)
    assert (ended.paragraph is not None) == is_paragraph


def test_every_option_and_key_is_attacked() -> None:
    options = {(option.command, option.flag) for option in declared.options()}
    assert {(("dump",), "--top-k"), (("distill", "eval"), "--json"), (("shards", "head"), "--rows")} <= {
        (command, flag if flag != "-n" else "--rows") for command, flag in options
    }
    assert {"training.seed", "loss.0.weight", "student.hidden_size", "stage.0.unfreeze", "data.train"} <= {
        *declared.recipe_keys()
    }
    assert {"seeds", "variant.0.skip"} <= {*declared.sweep_keys()}


def test_bad_values_are_the_same_for_a_key_and_name_no_place_outside() -> None:
    drawn: list[Any] = [hostile.drawn(hostile.arguments(), f"0/{number}") for number in range(60)]
    assert drawn == [hostile.drawn(hostile.arguments(), f"0/{number}") for number in range(60)]
    assert len(set(drawn)) > 30
    assert not [value for value in drawn if value.startswith("/") or ".." in value or "\0" in value]


def test_only_silent_and_badly_ended_attempts_are_faults() -> None:
    assert set(FAULTS) == {Outcome.SILENT, Outcome.BAD}


def test_a_command_that_waits_for_ever_is_hung_and_one_whose_child_works_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "SILENT_CPU_SECONDS", 0.5)
    monkeypatch.setattr(commands, "IDLE_SECONDS", 0.6)
    monkeypatch.setattr(commands, "IDLE_CPU_SECONDS", 0.05)
    busy = "import time; end = time.process_time() + 0.8\nwhile time.process_time() < end: pass"
    for module, main, is_hung in (
        ("waits", lambda: time.sleep(60), True),
        ("child", lambda: subprocess.run([sys.executable, "-c", busy], check=True), False),
    ):
        monkeypatch.setitem(commands.MODULES, module, module)
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(main=main))
        ended = commands.run([module], tmp_path, tmp_path / module)
        assert (ended.is_hung, ended.code) == (is_hung, -signal.SIGKILL if is_hung else 0)
