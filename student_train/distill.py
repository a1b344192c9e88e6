"""The main path of `distill run`: recipe -> source -> student -> training -> saved student -> scores."""

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from shared.dump.storage import only_one, write_text_atomically
from shared.errors import LecternError, RecipeError
from shared.text.tasks import corpus_of, task_named
from shared.text.tokenized import Tokenizing
from student_train import ranks
from student_train.card import write_card
from student_train.evaluate import Report, evaluate, open_held_out
from student_train.loader import order_of
from student_train.recipe import Recipe
from student_train.sources import DumpSource, Source, TextSource, check_same_tokenizer, load_tokenizer
from student_train.students import PretrainedStudent, build_student
from student_train.trainer import DistillationTrainer, detach_projections
from student_train.training_log import LogAtTheEnd, ProgressReport

transformers.utils.logging.disable_progress_bar()

CHECKPOINTS = "checkpoints"
TRACKED = "runs"
RECIPE = "recipe.json"
METRICS = "metrics.json"
STAGING = "student.tmp"


@dataclass(frozen=True)
class Result:
    """A finished student: its folder, steps and scores (None where the recipe has no [eval], and on ranks but 0)."""

    output: Path
    steps: int
    report: Report | None


def run(recipe: Recipe, resume: bool) -> Result:
    """Train one student, save it and score it. Several processes that a launcher started train it together.

    Raises:
        RecipeError, DumpError, CorpusError: when something does not fit, before the first step.
    """
    ranks.join(recipe.training.device)
    with ranks.agreed():
        source, student = _prepare(recipe)
    with ExitStack() as held:
        ranks.first_does(lambda: _hold(recipe.output, held))
        try:
            return _train_and_save(recipe, source, student, resume)
        except LecternError:
            if ranks.is_first():
                _leave_no_trace(recipe.output)
            raise


def _prepare(recipe: Recipe) -> tuple[Source, PreTrainedModel]:
    """What to learn from, and the untrained student. Raises whatever can be known before the first step."""
    if is_finished(recipe.output):
        raise RecipeError(f"{recipe.output}: there is a finished student already; choose another output or delete it.")
    _check_trackers(recipe)
    source = open_source(recipe)
    for spec in recipe.loss:
        spec.check(source)
    if isinstance(recipe.student, PretrainedStudent):
        check_same_tokenizer(recipe.student.path, source)
    _check_eval(recipe, source)
    set_seed(recipe.training.seed)
    student = build_student(
        recipe.student,
        auto_class=source.task.auto_class,
        vocab_size=source.vocabulary,
        tokenizer_size=len(source.tokenizer),
        label_names=source.label_names,
        pad_token_id=source.tokenizer.pad_token_id,
        max_length=source.max_length,
    )
    if recipe.training.freeze_embeddings:
        student.get_input_embeddings().requires_grad_(False)
    return source, student


def _hold(output: Path, held: ExitStack) -> None:
    output.mkdir(parents=True, exist_ok=True)
    held.enter_context(only_one(output))


def _train_and_save(recipe: Recipe, source: Source, student: PreTrainedModel, resume: bool) -> Result:
    checkpoints = recipe.output / CHECKPOINTS
    checkpoint = ranks.first_does(lambda: _last_checkpoint(recipe, checkpoints, resume))
    steps = _steps(recipe, source)
    first_step = int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0
    with ranks.agreed():
        trainer = DistillationTrainer(recipe, source, student, _arguments(recipe, checkpoints, steps), first_step)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogAtTheEnd())
    _keep_tracked(trainer, recipe.output)
    if ranks.is_first():
        trainer.add_callback(ProgressReport(recipe.output.name, steps, first_step))
        write_text_atomically(recipe.output / RECIPE, _recipe_json(recipe))
    trainer.resume_or_train(checkpoint, is_trained=first_step >= steps)
    if not ranks.is_first():
        return Result(recipe.output, steps, None)
    detach_projections(student)
    source.tokenizer.model_max_length = source.max_length
    staging = recipe.output / STAGING
    _save(student, source.tokenizer, staging)
    report = _score(recipe, staging)
    write_card(staging, recipe, source, steps, report)
    _commit(staging, recipe.output)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Result(recipe.output, steps, report)


def is_finished(output: Path) -> bool:
    """Whether a whole student is there: its configuration is what is saved last."""
    return (output / "config.json").exists()


def open_source(recipe: Recipe) -> Source:
    """The dump or the files that the recipe names."""
    if recipe.dump is not None:
        return DumpSource(recipe.dump)
    assert recipe.data is not None
    data, student = recipe.data, recipe.student
    path = data.tokenizer or (student.path if isinstance(student, PretrainedStudent) else None)
    if path is None:
        raise RecipeError("the key 'data.tokenizer' is missing: a fresh student needs one (a folder or a hub id).")
    task = task_named(data.task)
    return TextSource(
        task,
        data.train,
        data.columns(task, labels_required=True),
        load_tokenizer(path),
        data.max_length,
        data.labels,
        data.positions,
        data.limit,
        recipe.training.seed,
        data.stride,
    )


def _check_eval(recipe: Recipe, source: Source) -> None:
    """Whatever the scoring would stumble over is found before the training, and not after hours of it."""
    if recipe.eval is None:
        return
    task = source.task
    if task.metrics is None:
        raise RecipeError(f"the section 'eval' has nothing to score, as the task is {task.name}; leave it out.")
    columns, positions = recipe.eval.columns(task, labels_required=True), task.check_positions(recipe.eval.positions)
    names = source.label_names or ()
    stride = recipe.eval.stride
    how = Tokenizing(source.tokenizer, source.max_length, names, positions, chats=columns.chats, stride=stride)
    task.check_chats(how)
    corpus_of(task, how, recipe.eval.data, columns).survey(check=lambda example: task.check_row(how, example))
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


def _keep_tracked(trainer: DistillationTrainer, output: Path) -> None:
    """TensorBoard's files go beside the student, and not among the checkpoints, which are deleted."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(output / TRACKED)


def _steps(recipe: Recipe, source: Source) -> int:
    training = recipe.training
    if training.max_steps is not None:
        return training.max_steps
    assert training.epochs is not None
    batches = order_of(recipe, source)[0].batches(training.epochs)
    return max(1, round(batches / training.gradient_accumulation))


def _arguments(recipe: Recipe, checkpoints: Path, steps: int) -> TrainingArguments:
    training = recipe.training
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=round(training.warmup * steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        use_cpu=ranks.runs_on_cpu(training.device),
        seed=training.seed,
        save_steps=training.save_steps,
        save_total_limit=1,
        logging_steps=training.log_steps,
        report_to=list(training.report_to) or "none",
        run_name=recipe.output.name,
        disable_tqdm=True,
        # The loader itself starts at the step to resume from.
        ignore_data_skip=True,
        remove_unused_columns=False,
    )
    # One process trains on one device; several devices take torchrun. (Left alone, Trainer would use DataParallel.)
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _last_checkpoint(recipe: Recipe, checkpoints: Path, resume: bool) -> str | None:
    """The checkpoint to go on from. Raises RecipeError where one is in the way, or is another recipe's."""
    for folder in checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        # The Trainer writes its state last: without it, the run was killed while it wrote the checkpoint.
        if not (folder / TRAINER_STATE_NAME).exists():
            shutil.rmtree(folder)
    checkpoint = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if checkpoint is None:
        return None
    if not resume:
        raise RecipeError(
            f"{recipe.output}: an unfinished run is there; add --resume to go on with it, or delete the folder."
        )
    if (recipe.output / RECIPE).read_text(encoding="utf-8") != _recipe_json(recipe):
        raise RecipeError(f"{recipe.output}: the unfinished run there has another recipe; choose another output.")
    return str(checkpoint)


def _leave_no_trace(output: Path) -> None:
    """Remove what a run that failed before its first checkpoint has written."""
    checkpoints = output / CHECKPOINTS
    if not any(checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        for folder in (checkpoints, output / TRACKED):
            shutil.rmtree(folder, ignore_errors=True)
        (output / RECIPE).unlink(missing_ok=True)
        if not any(output.iterdir()):
            output.rmdir()


def _recipe_json(recipe: Recipe) -> str:
    return recipe.model_dump_json(indent=2, by_alias=True) + "\n"


def _save(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _score(recipe: Recipe, folder: Path) -> Report | None:
    """Score the saved student: what is measured is what a user will load."""
    if recipe.eval is None:
        return None
    section, device = recipe.eval, recipe.training.device
    report = evaluate(
        folder,
        section.data,
        section,
        section.dump,
        device=device,
        positions=section.positions,
        stride=section.stride,
    )
    report = replace(report, model=str(recipe.output))
    write_text_atomically(folder / METRICS, json.dumps(report.as_dict(), indent=2) + "\n")
    return report


def _commit(staging: Path, output: Path) -> None:
    """Move file by file, the configuration last: it makes the student whole."""
    for file in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(file, output / file.name)
    staging.rmdir()
