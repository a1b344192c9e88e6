"""The files that a training run writes from stage to stage, so that a killed run can be resumed.

    OUTPUT/recipe.json                        the recipe; an unfinished run can be resumed with the same one only
    OUTPUT/checkpoints/STAGE/checkpoint-N/    the Trainer's checkpoints of the current stage: the last, and the best
    OUTPUT/checkpoints/STAGE.safetensors      the student's weights at the end of the stage that finished last
    OUTPUT/checkpoints/stages.json            the results of the finished stages
    OUTPUT/checkpoints/source.json            the rows that the run learns from; see same_rows.py
    OUTPUT/student.tmp/                       the student while it is saved and scored

A stage is finished once stages.json lists it; its checkpoints and the weights of earlier stages are deleted after that.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from shared.errors import RecipeError
from shared.parsing import parse_json
from shared.storage.files import write_atomically, write_text_atomically
from student_train.recipe.kept import RECIPE, check_same_recipe, recipe_json
from student_train.recipe.recipe import Recipe
from student_train.training.checkpoints import RESUME_ADVICE, last_usable, written
from student_train.training.same_rows import Rows, check_same_rows, keep_rows

CHECKPOINTS = "checkpoints"
TRACKED = "runs"
STAGING = "student.tmp"
STAGES = "stages.json"


@dataclass(frozen=True)
class StageResult:
    """The result of a finished stage.

    Attributes:
        seconds, cpu_seconds: time for training and scoring, without the work that a killed run lost; CPU seconds are
            summed over all ranks.
        metric, best_score, best_step: the validation metric, its best value and the step after which it was reached;
            None without held-out rows.
    """

    name: str
    steps: int
    seconds: float
    cpu_seconds: float
    metric: str | None = None
    best_score: float | None = None
    best_step: int | None = None


class Journal:
    """The state of an unfinished run in its output folder."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._output = recipe, recipe.output
        self._folder = recipe.output / CHECKPOINTS

    def open(self, resume: bool, stages: Sequence[str], rows: Rows) -> None:
        """Check that the run may start or be resumed; only then remove what a killed run has left incomplete.

        Args:
            stages: the names of the recipe's stages, in order.
            rows: what the run learns from.

        Raises:
            RecipeError: if the folder holds an unfinished run and `resume` is not set, the run of another recipe or
                with other rows, finished stages that this recipe does not have, or a symbolic link. Nothing is removed
                then.
        """
        results = self.results()
        if self._is_begun():
            if not resume:
                raise RecipeError(
                    f"{self._output}: an unfinished run is there; add --resume to go on with it, or delete the folder."
                )
            check_same_recipe(self._recipe, "the unfinished run there", "choose another output")
            check_same_rows(self._folder, rows)
        self._check_names([result.name for result in results], stages)
        self._check_links()
        for result in results:
            shutil.rmtree(self.folder_of(result.name), ignore_errors=True)
        # First the recipe: by it, a run that is killed at this point is known to be ours.
        write_text_atomically(self._output / RECIPE, recipe_json(self._recipe))
        keep_rows(self._folder, rows)

    def results(self) -> list[StageResult]:
        """Return the results of the finished stages, in order. Raises RecipeError if they cannot be read."""
        path = self._folder / STAGES
        if not path.exists():
            return []
        try:
            return [StageResult(**entry) for entry in parse_json(path.read_bytes())]
        except (OSError, ValueError, TypeError) as error:
            raise RecipeError(
                f"{path}: not a list of finished stages ({error}); delete {self._output} to begin the run anew."
            ) from None

    def folder_of(self, stage: str) -> Path:
        """Return the folder of a stage's checkpoints."""
        return self._folder / stage

    def checkpoint(self, stage: str) -> str | None:
        """Return the last checkpoint of a stage that can be used, or None if there is none; later ones are removed."""
        found = last_usable(self.folder_of(stage))
        return None if found is None else str(found)

    def load(self, student: PreTrainedModel, stage: str) -> None:
        """Load the weights at the end of a stage into the student."""
        path = self._weights(stage)
        try:
            load_model(student, path)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise RecipeError(
                f"{path}: the weights at the end of the stage {stage!r} cannot be read ({reason}); delete "
                f"{self._output} to begin the run anew."
            ) from error

    def end(self, results: Sequence[StageResult], student: PreTrainedModel) -> None:
        """Record that the last of these stages has finished with this student's weights."""
        self._folder.mkdir(exist_ok=True)
        weights = self._weights(results[-1].name)
        with written(weights, RESUME_ADVICE):
            write_atomically(weights, lambda path: save_model(student, str(path)))
            write_text_atomically(self._folder / STAGES, stages_json(results))
        shutil.rmtree(self.folder_of(results[-1].name), ignore_errors=True)
        for before in results[:-1]:
            self._weights(before.name).unlink(missing_ok=True)

    def leave_no_trace(self) -> None:
        """Remove all files of a run that failed before its first checkpoint."""
        if self._is_begun():
            return
        for folder in (self._folder, self._output / TRACKED):
            shutil.rmtree(folder, ignore_errors=True)
        (self._output / RECIPE).unlink(missing_ok=True)
        if not any(self._output.iterdir()):
            self._output.rmdir()

    def _is_begun(self) -> bool:
        return bool(self.results()) or any(self._folder.glob(f"*/{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}"))

    def _check_names(self, finished: list[str], stages: Sequence[str]) -> None:
        """Raise RecipeError unless the finished stages are the recipe's first ones. Their names become paths."""
        if finished != list(stages[: len(finished)]):
            raise RecipeError(
                f"{self._folder / STAGES}: the finished stages {', '.join(map(repr, finished))} are not the first ones "
                f"of the recipe ({', '.join(stages)}); delete {self._output} to begin the run anew."
            )

    def _check_links(self) -> None:
        """Raise RecipeError for a symbolic link where a run writes and deletes: what it points to may be anyone's."""
        places = [self._folder, self._output / STAGING, *self._folder.glob("*"), *self._folder.glob("*/*")]
        for path in places:
            if path.is_symlink():
                raise RecipeError(
                    f"{path}: a symbolic link, and a run writes and deletes through none; remove the link, or put the "
                    "folder in its place."
                )

    def _weights(self, stage: str) -> Path:
        return self._folder / f"{stage}.safetensors"


def stages_json(results: Sequence[StageResult]) -> str:
    """Return the content of stages.json."""
    return json.dumps([asdict(result) for result in results], indent=2) + "\n"
