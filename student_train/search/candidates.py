"""Candidates of a search: ordinary recipes for few steps, trained side by side as child processes and each scored once.

OUTPUT/evaluations/NAME.json   the score of a candidate and what it cost; there is none before it is scored
OUTPUT/runs/NAME/              the student while it is trained; removed when it has been scored
OUTPUT/logs/NAME.log, .json    as for a sweep: the output of all attempts, and their cost

Whatever is killed, nothing is lost but the steps since a student's last checkpoint: scores are written atomically, and
a candidate that has one is not trained again. Any search can use this; what a candidate's overrides mean is not known
here.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from shared.errors import LecternError, UsageError
from shared.storage.files import write_text_atomically
from student_train.recipe.recipe import Recipe, overridden
from student_train.sweep.folder import cost_of, metrics_of
from student_train.sweep.machine import Machine
from student_train.sweep.names import override
from student_train.sweep.plan import RUNS
from student_train.sweep.results import main_metric
from student_train.sweep.work import Job, work_through

EVALUATIONS = "evaluations"
# The recipe that all candidates override.
BASE = "recipe.toml"


@dataclass(frozen=True)
class Candidate:
    """One student of a search.

    Attributes:
        name: unique among all candidates that a search may ever have; a name of a folder.
        overrides: what distinguishes it, for `distill run --set`.
        steps: how many optimizer steps it takes, for the account.
    """

    name: str
    overrides: tuple[str, ...]
    steps: int

    def recipe(self, base: Recipe, output: Path) -> Recipe:
        """Return its recipe. Raises RecipeError for an override that does not fit."""
        return overridden(base, self.all_overrides(output))

    def all_overrides(self, output: Path) -> list[str]:
        """Return its overrides, with that of its folder."""
        return [*self.overrides, override("output", str(output / RUNS / self.name))]


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Evaluation:
    """A candidate's score, and what it cost.

    Attributes:
        score: its fitness; `seconds` and `cpu_seconds` are those of training and scoring.
        eval_metric, eval_score: of its section [eval], if it has one.
    """

    name: str
    score: float
    steps: int
    seconds: float
    cpu_seconds: float
    eval_metric: str | None = None
    eval_score: float | None = None


# A finished student's folder and its recipe -> its fitness.
Score = Callable[[Path, Recipe], float]


class Evaluations:
    """The evaluations of a search, in its folder: those that are there, and those that are asked for.

    Attributes:
        asked: every evaluation that was asked for, by name.
    """

    def __init__(self, output: Path, base: Recipe, machine: Machine, score: Score) -> None:
        self._output, self._base, self._machine, self._score = output, base, machine, score
        self.asked: dict[str, Evaluation] = {}
        (output / EVALUATIONS).mkdir(exist_ok=True)

    def of(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Return the evaluations of candidates, after training and scoring those that have none yet.

        Raises:
            LecternError: if a candidate's training fails; the others are finished first.
        """
        by_name = {candidate.name: candidate for candidate in candidates}
        kept = {name: self._kept(name) for name in by_name}
        jobs = []
        for name, candidate in by_name.items():
            if kept[name] is None:
                jobs.append(self._job(candidate))
            elif not (self._output / RUNS / name).is_symlink():
                # A search that was killed between the score and this.
                shutil.rmtree(self._output / RUNS / name, ignore_errors=True)
        failed = work_through(jobs, self._output, self._machine, done=len(by_name) - len(jobs))
        if failed:
            reasons = "; ".join(f"{name} ({reason.rstrip('.')})" for name, reason in failed.items())
            raise LecternError(
                f"{len(failed)} candidates failed: {reasons}. Their logs are in {self._output / 'logs'}; the same "
                "command with --resume tries them again."
            )
        found = [self._kept(candidate.name) for candidate in candidates]
        self.asked |= {one.name: one for one in found if one is not None}
        return [one for one in found if one is not None]

    def _job(self, candidate: Candidate) -> Job:
        recipe = candidate.recipe(self._base, self._output)
        overrides = [part for each in candidate.all_overrides(self._output) for part in ("--set", each)]

        def result() -> str:
            return f"{self._scored(candidate, recipe).score:.5g}"

        return Job(candidate.name, ("run", str(self._output / BASE), *overrides, "--resume"), result)

    def _scored(self, candidate: Candidate, recipe: Recipe) -> Evaluation:
        """Score a finished student, keep the score, and remove the student."""
        start, cpu_start = time.perf_counter(), time.process_time()
        score = self._score(recipe.output, recipe)
        cost, metrics = cost_of(self._output, candidate.name), metrics_of(recipe.output)
        metric, value = main_metric(metrics) if metrics is not None else (None, None)
        try:
            made = Evaluation(
                candidate.name,
                score,
                candidate.steps,
                round(cost.seconds + time.perf_counter() - start, 3),
                round(cost.cpu_seconds + time.process_time() - cpu_start, 3),
                metric,
                value,
            )
        except ValidationError:
            raise LecternError(
                f"{candidate.name}: the student's score is {score}, so it cannot be compared; lower the learning rate."
            ) from None
        write_text_atomically(self._file(candidate.name), json.dumps(asdict(made), indent=2) + "\n")
        shutil.rmtree(recipe.output)
        return made

    def _kept(self, name: str) -> Evaluation | None:
        path = self._file(name)
        if not path.exists():
            return None
        try:
            found = TypeAdapter(Evaluation).validate_json(path.read_bytes())
            if found.name != name:
                raise ValueError(f"it is that of {found.name}")
        except (OSError, ValueError) as error:  # a ValidationError is a ValueError
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"{path}: not the evaluation of a candidate ({reason}); delete it, and the candidate is trained again."
            ) from None
        return found

    def _file(self, name: str) -> Path:
        return self._output / EVALUATIONS / f"{name}.json"
