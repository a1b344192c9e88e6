"""Damaged checkpoints, and disks that are full: a sentence, and nothing is learnt from what was not written so."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from shared.errors import LecternError, RecipeError, TrainingError
from student_train import distill
from student_train.recipe.kept import recipe_json
from student_train.recipe.recipe import Recipe
from student_train.training import journal
from student_train.training.checkpoints import last_usable, problem_of, sign, written
from student_train.training.trainer import DistillationTrainer
from tests.student_train.runs import HIDDEN, KL, TRANSFORMER, are_equal, recipe, weights


def made(output: Path, dump: Path, **sections: Any) -> Recipe:
    training = {"max_steps": 8, "save_steps": 2}
    return recipe(output, {**TRANSFORMER, "dropout": 0.2}, KL, HIDDEN, dump=dump, training=training, **sections)


@pytest.fixture(scope="module")
def undisturbed(dumps: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("undisturbed") / "student"
    return weights(distill.run(made(output, dumps["sequence-classification"]), resume=False).output)


@pytest.fixture(scope="module")
def stopped(dumps: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that was interrupted in step 7."""
    output, calls = tmp_path_factory.mktemp("stopped") / "student", [0]
    original = DistillationTrainer.compute_loss

    def interrupting(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 7:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainer, "compute_loss", interrupting)
        with pytest.raises(KeyboardInterrupt):
            distill.run(made(output, dumps["sequence-classification"]), resume=False)
    return output


@pytest.fixture
def output(stopped: Path, tmp_path: Path, dumps: dict[str, Path]) -> Path:
    copy = Path(shutil.copytree(stopped, tmp_path / "student"))
    (copy / "recipe.json").write_text(recipe_json(made(copy, dumps["sequence-classification"])))
    return copy


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints" / "training").iterdir())


FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "checksums.json")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "flipped": flip,
    "removed": lambda file: file.unlink(),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    file: str, damage: str, output: Path, undisturbed: Any, dumps: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert checkpoints(output) == ["checkpoint-4", "checkpoint-6"]
    DAMAGES[damage](output / "checkpoints" / "training" / "checkpoint-6" / file)
    is_told = (file, damage) != ("checksums.json", "removed")  # without checksums it was never finished
    capsys.readouterr()
    distill.run(made(output, dumps["sequence-classification"]), resume=True)
    assert ("checkpoint-6: damaged" in capsys.readouterr().err) == is_told
    assert are_equal(undisturbed, weights(output))


def test_without_any_checkpoint_that_can_be_read_the_stage_begins_anew(
    output: Path, undisturbed: Any, dumps: dict[str, Path]
) -> None:
    for checkpoint in (output / "checkpoints" / "training").iterdir():
        (checkpoint / "model.safetensors").write_bytes(b"")
    distill.run(made(output, dumps["sequence-classification"]), resume=True)
    assert are_equal(undisturbed, weights(output))


class Foreign:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/lectern-foreign-pickle-ran"),))


def test_a_foreign_pickle_is_not_run(output: Path, undisturbed: Any, dumps: dict[str, Path]) -> None:
    checkpoint = output / "checkpoints" / "training" / "checkpoint-6"
    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Foreign()))
    assert problem_of(checkpoint) is not None
    distill.run(made(output, dumps["sequence-classification"]), resume=True)
    assert are_equal(undisturbed, weights(output))
    assert not Path("/tmp/lectern-foreign-pickle-ran").exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "rng_state.pth"])
def test_a_foreign_pickle_with_checksums_that_fit_is_not_run(file: str, output: Path, dumps: dict[str, Path]) -> None:
    checkpoint = output / "checkpoints" / "training" / "checkpoint-6"
    (checkpoint / file).write_bytes(pickle.dumps(Foreign()))
    sign(checkpoint)
    with pytest.raises(TrainingError, match="checkpoint-6: it holds other things than a run writes"):
        distill.run(made(output, dumps["sequence-classification"]), resume=True)
    assert not Path("/tmp/lectern-foreign-pickle-ran").exists()


def test_a_checkpoint_that_was_not_signed_counts_as_unfinished(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = output / "checkpoints" / "training"
    (folder / "checkpoint-6" / "checksums.json").unlink()
    assert last_usable(folder) == folder / "checkpoint-4"
    (folder / "checkpoint-4" / "checksums.json").unlink()
    assert last_usable(folder) is None
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["stages.json", "source.json"])
@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[1]", "null", '{"fingerprint": 1}', "\xff"])
def test_what_a_run_knows_of_itself_is_damaged(name: str, content: str, output: Path, dumps: dict[str, Path]) -> None:
    (output / "checkpoints" / name).write_text(content, encoding="latin-1")
    with pytest.raises(RecipeError) as raised:
        distill.run(made(output, dumps["sequence-classification"]), resume=True)
    assert "\n" not in str(raised.value)
    assert checkpoints(output) == ["checkpoint-4", "checkpoint-6"]


def test_the_recipe_of_a_run_is_damaged(output: Path, dumps: dict[str, Path]) -> None:
    for content in ("", "{", "[" * 100_000, json.dumps({"output": 1, "student": 2, "training": 3})):
        (output / "recipe.json").write_text(content)
        with pytest.raises(LecternError, match=r"holds other files|cannot be read as one"):
            distill.run(made(output, dumps["sequence-classification"]), resume=True)
        assert checkpoints(output) == ["checkpoint-4", "checkpoint-6"]


FULL = [
    OSError(28, "No space left on device"),
    SafetensorError("I/O error: No space left on device"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 128 vs 22"),
]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("shapes differ")])
def test_what_has_nothing_to_do_with_files_is_not_taken_for_a_full_disk(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error), match=str(error)), written(tmp_path / "checkpoint-2", "make room."):
        raise error


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_full_disk_at_a_checkpoint_is_a_sentence_and_the_run_goes_on_later(
    error: Exception,
    where: str,
    undisturbed: Any,
    dumps: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = getattr(DistillationTrainer, where), [0]

    def full(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        original(*arguments, **options)
        if calls[0] == 3:  # checkpoint 6
            raise error

    run = made(tmp_path / "student", dumps["sequence-classification"])
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, where, full)
        with pytest.raises(TrainingError, match=r"checkpoint-6: cannot be written .*--resume") as raised:
            distill.run(run, resume=False)
    assert "\n" not in str(raised.value)
    assert checkpoints(run.output) == ["checkpoint-2", "checkpoint-4"]
    distill.run(run, resume=True)
    assert are_equal(undisturbed, weights(run.output))


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("module", [journal, distill])
def test_a_full_disk_at_the_end_is_a_sentence_and_the_run_goes_on_later(
    error: Exception,
    module: Any,
    undisturbed: Any,
    dumps: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    run = made(tmp_path / "student", dumps["sequence-classification"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_model" if module is journal else "_save", full)
        with pytest.raises(TrainingError, match=r"cannot be written .*--resume"):
            distill.run(run, resume=False)
    assert not distill.is_finished(run.output)
    distill.run(run, resume=True)
    assert are_equal(undisturbed, weights(run.output))
