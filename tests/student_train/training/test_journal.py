"""An unfinished run can be resumed with its own recipe, whatever the order of the keys in recipe.json."""

import json
from pathlib import Path

import pytest

from shared.errors import RecipeError
from student_train.recipe.kept import recipe_json
from student_train.recipe.recipe import Recipe
from student_train.training.checkpoints import sign
from student_train.training.journal import Journal
from student_train.training.same_rows import Rows

ROWS = Rows("reviews.csv", "a1")


@pytest.fixture
def begun(tmp_path: Path) -> Recipe:
    """The recipe of a run with a finished stage."""
    recipe = Recipe.model_validate(
        {
            "output": tmp_path,
            "data": {"task": "sequence-classification", "train": ["train.csv"]},
            "student": {"kind": "pretrained", "path": "model"},
            "loss": [{"kind": "gold"}],
            "training": {"max_steps": 3},
        }
    )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "stages.json").write_text(
        json.dumps([{"name": "training", "steps": 3, "seconds": 1.0, "cpu_seconds": 1.0}])
    )
    (tmp_path / "recipe.json").write_text(recipe_json(recipe))
    return recipe


def test_a_run_of_the_same_recipe_goes_on_in_whatever_order_its_keys_were_written(begun: Recipe) -> None:
    file = begun.output / "recipe.json"
    content = json.loads(file.read_text())
    content["data"] = dict(reversed(content["data"].items()))
    file.write_text(json.dumps(content))
    Journal(begun).open(resume=True, stages=["training"], rows=ROWS)


@pytest.mark.parametrize("written", ["", "the other run's", "{}"])
def test_a_run_of_another_recipe_is_refused(written: str, begun: Recipe) -> None:
    (begun.output / "recipe.json").write_text(written)
    with pytest.raises(RecipeError, match="has another recipe"):
        Journal(begun).open(resume=True, stages=["training"], rows=ROWS)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder outside of the run's output, with a file and what looks like an incomplete checkpoint."""
    folder = tmp_path.parent / f"{tmp_path.name}-theirs"
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / "thesis.txt").write_text("the only copy")
    (folder / "checkpoint-3" / "thesis.txt").write_text("the only copy")
    return folder


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["../../{theirs}", "{parent}/{theirs}", "another-stage", "..", ""])
def test_a_finished_stage_that_the_recipe_does_not_have_removes_nothing(
    name: str, resume: bool, begun: Recipe, theirs: Path
) -> None:
    name = name.format(theirs=theirs.name, parent=theirs.parent)
    entry = {"name": name, "steps": 3, "seconds": 1.0, "cpu_seconds": 1.0}
    (begun.output / "checkpoints" / "stages.json").write_text(json.dumps([entry]))
    (begun.output / "checkpoints" / "another-stage").mkdir()
    before = _files(theirs), _files(begun.output)
    with pytest.raises(RecipeError, match="are not the first ones" if resume else "add --resume"):
        Journal(begun).open(resume, stages=["training"], rows=ROWS)
    assert before == (_files(theirs), _files(begun.output))
    assert (begun.output / "checkpoints" / "another-stage").exists()


@pytest.mark.parametrize("content", ["[", "7", "[7]", '[{"name": "training"}]', "{}[]"])
def test_stages_that_cannot_be_read_are_refused(content: str, begun: Recipe) -> None:
    (begun.output / "checkpoints" / "stages.json").write_text(content)
    with pytest.raises(RecipeError, match="not a list of finished stages"):
        Journal(begun).open(resume=True, stages=["training"], rows=ROWS)


@pytest.mark.parametrize("link", ["checkpoints", "checkpoints/training", "checkpoints/training/checkpoint-3"])
def test_nothing_is_removed_through_a_link(link: str, begun: Recipe, theirs: Path) -> None:
    (begun.output / "checkpoints" / "stages.json").unlink()
    if link == "checkpoints":
        (begun.output / "checkpoints").rmdir()
        (theirs / "training").mkdir()
        (theirs / "checkpoint-3").rename(theirs / "training" / "checkpoint-3")
    path = begun.output / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(theirs, target_is_directory=True)
    before = _files(theirs)
    with pytest.raises(RecipeError, match="a symbolic link"):
        Journal(begun).open(resume=True, stages=["training"], rows=ROWS)
    assert before == _files(theirs)
    assert path.is_symlink()


def test_a_run_begins_with_no_link_where_the_student_is_saved(begun: Recipe, theirs: Path) -> None:
    (begun.output / "student.tmp").symlink_to(theirs, target_is_directory=True)
    with pytest.raises(RecipeError, match=r"student\.tmp: a symbolic link"):
        Journal(begun).open(resume=True, stages=["training"], rows=ROWS)


def test_an_incomplete_checkpoint_is_removed_once_everything_is_checked(begun: Recipe) -> None:
    (begun.output / "checkpoints" / "stages.json").unlink()
    complete, incomplete = (begun.output / "checkpoints" / "training" / f"checkpoint-{step}" for step in (3, 6))
    for folder in (complete, incomplete):
        folder.mkdir(parents=True)
    (complete / "trainer_state.json").write_text("{}")
    sign(complete)
    with pytest.raises(RecipeError, match="add --resume"):
        Journal(begun).open(resume=False, stages=["training"], rows=ROWS)
    assert incomplete.exists()
    journal = Journal(begun)
    journal.open(resume=True, stages=["training"], rows=ROWS)
    assert journal.checkpoint("training") == str(complete)
    assert (complete.exists(), incomplete.exists()) == (True, False)


@pytest.mark.parametrize("fingerprint", ["b2", None])
def test_an_unfinished_run_goes_on_with_the_same_rows_alone(fingerprint: str | None, begun: Recipe) -> None:
    Journal(begun).open(resume=True, stages=["training"], rows=ROWS)  # begun by an older version, which kept nothing
    kept = begun.output / "checkpoints" / "source.json"
    if fingerprint is None:
        kept.write_text("[]")
    with pytest.raises(RecipeError, match="was a1 and is b2" if fingerprint else r"source\.json: not the fingerprint"):
        Journal(begun).open(resume=True, stages=["training"], rows=Rows("reviews.csv", "b2"))


def test_a_run_that_has_learned_nothing_yet_begins_with_other_rows(begun: Recipe) -> None:
    Journal(begun).open(resume=True, stages=["training"], rows=ROWS)
    (begun.output / "checkpoints" / "stages.json").unlink()
    for _ in range(2):
        Journal(begun).open(resume=True, stages=["training"], rows=Rows("reviews.csv", "b2"))
    assert json.loads((begun.output / "checkpoints" / "source.json").read_text())["fingerprint"] == "b2"
