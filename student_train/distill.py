"""The main path of `distill run`: recipe -> source -> student -> stage runs -> saved student -> scores."""

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import transformers
from transformers import PreTrainedModel, set_seed
from transformers.integrations import get_available_reporting_integrations

from shared.errors import LecternError, RecipeError
from shared.models.loading import load_tokenizer
from shared.models.pooling import pooling_of
from shared.models.sentence_folder import write_sentence_folder
from shared.storage.files import only_one, write_text_atomically
from shared.text.tasks import task_named
from shared.text.tokenized import Tokenizing
from student_train.chains.transitions import save_transitions, without_transitions
from student_train.data.needs import needs_of
from student_train.data.pairs import ScoredPairs
from student_train.data.sources import DumpSource, Source, TextSource
from student_train.data.tokenizers import check_same_tokenizer
from student_train.forward.widths import hidden_widths
from student_train.recipe.kept import check_output
from student_train.recipe.recipe import Recipe
from student_train.scoring.card import write_card
from student_train.scoring.decoding import check_decode
from student_train.scoring.evaluate import evaluate, open_held_out
from student_train.scoring.report import Report
from student_train.students import build_student, fold
from student_train.training import ranks
from student_train.training.checkpoints import RESUME_ADVICE, written
from student_train.training.journal import (
    CHECKPOINTS,
    STAGES,
    STAGING,
    Journal,
    StageResult,
    stages_json,
)
from student_train.training.plan import StageRun, training_plan
from student_train.training.same_rows import Rows
from student_train.training.stage_run import train

transformers.utils.logging.disable_progress_bar()

METRICS = "metrics.json"


@dataclass(frozen=True)
class Result:
    """A finished student: its folder, training steps and scores (None without a section [eval], and on ranks > 0)."""

    output: Path
    steps: int
    report: Report | None


def run(recipe: Recipe, resume: bool) -> Result:
    """Train one student, save it and score it. If a launcher started several processes, they train it together.

    Raises:
        RecipeError, DumpError, CorpusError: before the first step, if recipe, dump and files do not fit together.
        UsageError: if the output folder holds other files, or is the dump.
    """
    ranks.join(recipe.training.device)
    with ranks.agreed():
        source, student, runs = prepare(recipe)
    journal = Journal(recipe)
    with ExitStack() as held:
        ranks.first_does(lambda: _make_and_lock(recipe.output, held))
        # Outside of what follows, because a folder that is refused stays as it is.
        names, rows = [run.stage.name for run in runs], Rows(source.name, source.fingerprint)
        ranks.first_does(lambda: journal.open(resume, names, rows))
        try:
            results = _train(recipe, student, runs, journal)
            report = _save_and_score(recipe, source, student, results) if ranks.is_first() else None
        except LecternError:
            if ranks.is_first():
                journal.leave_no_trace()
            raise
    return Result(recipe.output, _steps(results), report)


def check(recipe: Recipe) -> int:
    """Return the number of parameters of a recipe's student, as it is saved.

    Raises what `run` would raise before its first step.
    """
    student = prepare(recipe)[1]
    fold(student)
    return int(student.num_parameters())


def prepare(recipe: Recipe) -> tuple[Source, PreTrainedModel, list[StageRun]]:
    """Return the source, the untrained student and its stage runs, after every check that needs no training."""
    check_output(recipe)
    if is_finished(recipe.output):
        raise RecipeError(f"{recipe.output}: there is already a finished student; choose another output or delete it.")
    _check_trackers(recipe)
    source = open_source(recipe)
    if recipe.student.checkpoint is not None:
        check_same_tokenizer(recipe.student.checkpoint, source)
    _check_eval(recipe, source)
    set_seed(recipe.training.seed)
    student = build_student(recipe.student, needs_of(recipe.student, source))
    return source, student, training_plan(recipe, source, student)


def _make_and_lock(output: Path, held: ExitStack) -> None:
    output.mkdir(parents=True, exist_ok=True)
    held.enter_context(only_one(output))


def _train(recipe: Recipe, student: PreTrainedModel, runs: list[StageRun], journal: Journal) -> list[StageResult]:
    """Train stage by stage, from the first one that has not ended."""
    results = ranks.first_does(journal.results)
    if results:
        journal.load(student, results[-1].name)
    for number, stage_run in enumerate(runs[len(results) :], len(results)):
        results.append(train(stage_run, student, recipe, journal, is_first=number == 0))
        ranks.first_does(lambda: journal.end(results, student))
    return results


def _save_and_score(
    recipe: Recipe, source: Source, student: PreTrainedModel, results: list[StageResult]
) -> Report | None:
    """Save the student with its tokenizer, scores and model card; the output folder gets them when all are written."""
    source.tokenizer.model_max_length = source.max_length
    fold(student)
    staging = recipe.output / STAGING
    with written(staging, RESUME_ADVICE):
        _save(student, source, staging)
        write_text_atomically(staging / STAGES, stages_json(results))
    report = _score(recipe, source, staging)
    write_card(staging, recipe, source, _steps(results), report)
    _commit(staging, recipe.output)
    shutil.rmtree(recipe.output / CHECKPOINTS, ignore_errors=True)
    return report


def _steps(results: list[StageResult]) -> int:
    return sum(result.steps for result in results)


def is_finished(output: Path) -> bool:
    """Whether a folder holds a complete student; its config.json is the file that is saved last."""
    return (output / "config.json").exists()


def tidy(output: Path) -> None:
    """Remove what a run leaves that is killed between its last two steps, when its student is finished already.

    Raises:
        RecipeError: if somebody has removed the student's weights.
    """
    if not any(output.glob("*.safetensors")):
        raise RecipeError(f"{output}: the student there has lost its weights; delete the folder to train it again.")
    for name in (CHECKPOINTS, STAGING):
        if not (output / name).is_symlink():
            shutil.rmtree(output / name, ignore_errors=True)


def open_source(recipe: Recipe) -> Source:
    """Open the dump or the files that the recipe trains on."""
    if recipe.dump is not None:
        return DumpSource(recipe.dump)
    assert recipe.data is not None
    data = recipe.data
    path = data.tokenizer or recipe.student.checkpoint
    if path is None:
        raise RecipeError(
            "the key 'data.tokenizer' is missing: a student that is not pretrained needs one (a folder or a hub id)."
        )
    task = task_named(data.task)
    return TextSource(
        task,
        data.train,
        task.columns(data, labels_required=True),
        load_tokenizer(path, RecipeError),
        data.max_length,
        data.labels,
        data.positions,
        data.limit,
        recipe.training.seed,
        data.stride,
    )


def _check_eval(recipe: Recipe, source: Source) -> None:
    """Check everything that scoring needs, so that it cannot fail after hours of training."""
    if recipe.eval is None:
        return
    task = source.task
    if not task.is_scored:
        raise RecipeError(f"the section 'eval': the task {task.name} has no metrics to score with; leave it out.")
    if task.has_embeddings:
        if recipe.eval.dump is not None:
            raise RecipeError(
                f"eval.dump: {task.name} has no predictions that could agree with a teacher's; leave it out."
            )
        ScoredPairs.of(task, recipe.eval.data, recipe.eval, source.tokenizer, source.max_length)
        return
    columns, positions = task.scored_columns(recipe.eval), task.check_positions(recipe.eval.positions)
    names = source.label_names or ()
    has_chains = positions == task.chain_positions
    check_decode(recipe.eval.decode, has_chains, source.label_names, recipe.student.crf, "eval.decode =")
    stride = recipe.eval.stride
    how = Tokenizing(source.tokenizer, source.max_length, names, positions, chats=columns.shape.is_chat, stride=stride)
    task.check_tokenizing(how)
    task.corpus(how, recipe.eval.data, columns).survey(check=lambda example: task.check_row(how, example))
    if recipe.eval.dump is not None:
        open_held_out(recipe.eval.dump, task, source.label_names)


def _check_trackers(recipe: Recipe) -> None:
    available = get_available_reporting_integrations()
    for name in recipe.training.report_to:
        if name not in available:
            raise RecipeError(
                f"training.report_to = {name!r}: no such tracker is installed here (there is "
                f"{', '.join(available) or 'none'}); install it, or leave it out."
            )


def _save(student: PreTrainedModel, source: Source, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with without_transitions(student):
        student.save_pretrained(folder)
    save_transitions(student, source.label_names, folder)
    source.tokenizer.save_pretrained(folder)
    pooling = pooling_of(student)
    if pooling is not None:
        write_sentence_folder(folder, pooling, hidden_widths(student)[-1], source.max_length)


def _score(recipe: Recipe, source: Source, folder: Path) -> Report | None:
    """Load the saved student, as its users will, and score it."""
    if recipe.eval is None:
        return None
    section, device = recipe.eval, recipe.training.device
    report = evaluate(
        folder,
        section.data,
        section,
        section.dump,
        source.task.name,
        device,
        positions=section.positions,
        stride=section.stride,
        decode=section.decode,
    )
    report = replace(report, model=str(recipe.output))
    write_text_atomically(folder / METRICS, json.dumps(report.as_dict(), indent=2) + "\n")
    return report


def _commit(staging: Path, output: Path) -> None:
    """Move file by file, config.json last, because it marks the student as complete."""
    for file in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        if file.is_dir():  # a folder of a run that was killed at this point may be there, and cannot be replaced
            shutil.rmtree(output / file.name, ignore_errors=True)
        os.replace(file, output / file.name)
    staging.rmdir()
