"""What a run leaves behind from stage to stage, so that a killed one goes on where it was.

    OUTPUT/recipe.json                        the recipe; an unfinished run goes on with the same one
    OUTPUT/checkpoints/STAGE/checkpoint-N/    the Trainer's own, of the stage at work: the last, and the best so far
    OUTPUT/checkpoints/STAGE.safetensors      the student at the end of the stage that ended last
    OUTPUT/checkpoints/stages.json            results of the stages that have ended

A stage has ended once it is in stages.json; what came before it is deleted afterwards.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from shared.errors import RecipeError
from shared.storage.files import write_atomically, write_text_atomically
from student_train.recipe.recipe import Recipe

CHECKPOINTS = "checkpoints"
TRACKED = "runs"
RECIPE = "recipe.json"
STAGES = "stages.json"


@dataclass(frozen=True)
class StageResult:
    """A stage that has ended.

    Attributes:
        seconds, cpu_seconds: of training and scoring, without what a killed run lost; CPU seconds of all ranks.
        metric, best_score, best_step: how it was scored, the best score and after which step it was; None without
            held-out rows.
    """

    name: str
    steps: int
    seconds: float
    cpu_seconds: float
    metric: str | None = None
    best_score: float | None = None
    best_step: int | None = None


class Journal:
    """What is known of an unfinished run in a folder."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._output = recipe, recipe.output
        self._folder = recipe.output / CHECKPOINTS

    def open(self, resume: bool) -> None:
        """Clear away what a kill has left half done.

        Raises:
            RecipeError: where an unfinished run is in the way, or is another recipe's.
        """
        for folder in self._folder.glob(f"*/{PREFIX_CHECKPOINT_DIR}-*"):
            # The Trainer writes its state last: without it, the run was killed while it wrote the checkpoint.
            if not (folder / TRAINER_STATE_NAME).exists():
                shutil.rmtree(folder)
        for result in self.results():
            shutil.rmtree(self.folder_of(result.name), ignore_errors=True)
        if not self._is_begun():
            return
        if not resume:
            raise RecipeError(
                f"{self._output}: an unfinished run is there; add --resume to go on with it, or delete the folder."
            )
        if not _is_of((self._output / RECIPE).read_text(encoding="utf-8"), self._recipe):
            raise RecipeError(f"{self._output}: the unfinished run there has another recipe; choose another output.")

    def results(self) -> list[StageResult]:
        """The stages that have ended."""
        path = self._folder / STAGES
        return [StageResult(**entry) for entry in json.loads(path.read_text())] if path.exists() else []

    def folder_of(self, stage: str) -> Path:
        """Where a stage's checkpoints are."""
        return self._folder / stage

    def checkpoint(self, stage: str) -> str | None:
        """The last checkpoint of a stage."""
        folder = self.folder_of(stage)
        found: str | None = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        return found

    def load(self, student: PreTrainedModel, stage: str) -> None:
        """Give the student the weights that it had at the end of a stage."""
        load_model(student, self._weights(stage))

    def end(self, results: Sequence[StageResult], student: PreTrainedModel) -> None:
        """The last of these stages has ended with this student."""
        self._folder.mkdir(exist_ok=True)
        write_atomically(self._weights(results[-1].name), lambda path: save_model(student, str(path)))
        write_text_atomically(self._folder / STAGES, stages_json(results))
        shutil.rmtree(self.folder_of(results[-1].name), ignore_errors=True)
        for before in results[:-1]:
            self._weights(before.name).unlink(missing_ok=True)

    def leave_no_trace(self) -> None:
        """Remove what a run that failed before its first checkpoint has written."""
        if self._is_begun():
            return
        for folder in (self._folder, self._output / TRACKED):
            shutil.rmtree(folder, ignore_errors=True)
        (self._output / RECIPE).unlink(missing_ok=True)
        if not any(self._output.iterdir()):
            self._output.rmdir()

    def _is_begun(self) -> bool:
        return bool(self.results()) or any(self._folder.glob(f"*/{PREFIX_CHECKPOINT_DIR}-*"))

    def _weights(self, stage: str) -> Path:
        return self._folder / f"{stage}.safetensors"


def stages_json(results: Sequence[StageResult]) -> str:
    """Results as the file that tells them."""
    return json.dumps([asdict(result) for result in results], indent=2) + "\n"


def recipe_json(recipe: Recipe) -> str:
    """A recipe as the file that tells it."""
    return recipe.model_dump_json(indent=2, by_alias=True) + "\n"


def _is_of(text: str, recipe: Recipe) -> bool:
    """Whether a file tells of this recipe; the order of its keys may be that of an older Lectern."""
    try:
        return bool(json.loads(text) == json.loads(recipe_json(recipe)))
    except json.JSONDecodeError:
        return False
