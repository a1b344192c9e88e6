"""The run of one stage, from its first step or its last checkpoint to its end."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState

from shared.errors import RecipeError, TrainingError
from shared.numbers import MOST
from student_train.recipe.recipe import Recipe
from student_train.recipe.sections import TrainingSection
from student_train.students.unfreezing import unfrozen
from student_train.training import ranks
from student_train.training.journal import TRACKED, Journal, StageResult
from student_train.training.log import LogAtTheEnd, ProgressReport
from student_train.training.plan import StageRun
from student_train.training.stages import Stage, order_of
from student_train.training.trainer import DistillationTrainer


class Clock(TrainerCallback, ExportableState):
    """Measures the wall and CPU seconds of a stage; checkpoints save them, so that a resumed run counts on."""

    def __init__(self) -> None:
        self.seconds_before = self.cpu_seconds_before = 0.0
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Wall seconds of the stage, without the work that a killed run lost."""
        return self.seconds_before + time.perf_counter() - self._start

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this process for the stage, counted in the same way."""
        return self.cpu_seconds_before + time.process_time() - self._cpu_start

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint saves."""
        return {"args": {}, "attributes": {"seconds_before": self.seconds, "cpu_seconds_before": self.cpu_seconds}}


class Scoring(TrainerCallback):
    """Requests an evaluation every `eval_steps` steps and after the last step."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request an evaluation if one is due."""
        is_due = state.global_step % args.eval_steps == 0 or state.global_step >= state.max_steps
        control.should_evaluate = control.should_evaluate or is_due


def train(
    stage_run: StageRun, student: PreTrainedModel, recipe: Recipe, journal: Journal, is_first: bool
) -> StageResult:
    """Train the student for one stage; the next stage starts from the resulting weights.

    Args:
        is_first: whether this is the recipe's first stage. Later stages set the random seed anew; the first one
            continues with the random numbers of building the student.
    """
    stage = stage_run.stage
    checkpoint = ranks.first_does(lambda: journal.checkpoint(stage.name))
    first_step = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    if not is_first:
        set_seed(stage.training.seed)
    with unfrozen(student, stage.trainable, stage.training.freeze_embeddings), _same_configuration(student):
        arguments = _arguments(stage_run, recipe, journal)
        with ranks.agreed():
            trainer = DistillationTrainer(stage, stage_run.rows, student, arguments, first_step, stage_run.validation)
        _add_callbacks(trainer, recipe, first_step)
        try:
            trainer.resume_or_train(checkpoint)
        except UnpicklingError as error:  # its checksums fit, so whoever put it there has written them too
            reason = str(error).split(". ")[0].split("\n")[0]
            raise TrainingError(
                f"{checkpoint}: it holds other things than a run writes, and nothing of it was used ({reason}); delete "
                "it, and --resume goes on from what was saved before it."
            ) from error
        trainer.release()
    result = _result(trainer)
    if ranks.count() > 1:
        # Free the wrapper around the student (DistributedDataParallel) before the next stage wraps it again.
        del trainer
        gc.collect()
    return result


@contextmanager
def _same_configuration(student: PreTrainedModel) -> Iterator[None]:
    """Keep `use_cache` of the configuration, which the Trainer turns off: a student is saved as it was built, whether
    its last stage has run in this process or was loaded."""
    values = student.config.__dict__
    before = {name: values[name] for name in ("use_cache",) if name in values}
    try:
        yield
    finally:
        values.pop("use_cache", None)
        values.update(before)


def _add_callbacks(trainer: DistillationTrainer, recipe: Recipe, first_step: int) -> None:
    """Add the clock, the evaluation, the log and the progress bar."""
    arguments, stage = trainer.args, trainer.stage
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogAtTheEnd())
    trainer.add_callback(Clock())
    if trainer.validation is not None:
        trainer.add_callback(Scoring())
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            # Beside the student, because the folder of checkpoints is deleted at the end.
            callback.logging_dir = str(recipe.output / TRACKED / (stage.name if recipe.stage else ""))
    if ranks.is_first():
        trainer.add_callback(ProgressReport(_label(stage, recipe), arguments.max_steps, first_step))


def _result(trainer: DistillationTrainer) -> StageResult:
    state, validation = trainer.state, trainer.validation
    (clock,) = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Clock))
    return StageResult(
        name=trainer.stage.name,
        steps=state.global_step,
        seconds=round(clock.seconds, 3),
        cpu_seconds=round(sum(ranks.gathered(clock.cpu_seconds)), 3),
        metric=None if validation is None else validation.metric,
        best_score=state.best_metric,
        best_step=state.best_global_step,
    )


def _label(stage: Stage, recipe: Recipe) -> str:
    return f"{recipe.output.name} {stage.name}" if recipe.stage else recipe.output.name


def _steps(training: TrainingSection, batches: float) -> int:
    return max(1, round(batches / training.gradient_accumulation))


def steps_of(stage_run: StageRun) -> int:
    """Return the number of optimizer steps of a stage. Raises RecipeError for more than anybody can take."""
    training = stage_run.stage.training
    if training.max_steps is not None:
        return training.max_steps
    assert training.epochs is not None
    steps = _steps(training, order_of(stage_run.stage, stage_run.rows)[0].batches(training.epochs))
    if steps > MOST:
        where = stage_run.stage.where or "training."
        raise RecipeError(f"{where}epochs = {training.epochs:g}: this would be {steps:,} steps; give fewer.")
    return steps


def _arguments(stage_run: StageRun, recipe: Recipe, journal: Journal) -> TrainingArguments:
    stage, validation = stage_run.stage, stage_run.validation
    training, steps = stage.training, steps_of(stage_run)
    scoring: dict[str, Any] = {}
    if validation is not None:
        order, _ = order_of(stage, stage_run.rows)
        scoring = {
            # `Scoring` decides when to evaluate: the Trainer's own schedule would require an evaluation data set.
            "eval_steps": validation.every_steps or _steps(training, order.batches(validation.every)),
            "metric_for_best_model": validation.metric,
            "greater_is_better": not validation.less_is_better,
        }
    arguments = TrainingArguments(
        output_dir=str(journal.folder_of(stage.name)),
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
        # The last one and the one before it, in case that the last one is damaged.
        save_total_limit=2,
        logging_steps=training.log_steps,
        report_to=list(training.report_to) or "none",
        run_name=_label(stage, recipe),
        disable_tqdm=True,
        # The loader itself starts at the step to resume from; nothing has to be skipped.
        ignore_data_skip=True,
        remove_unused_columns=False,
        **scoring,
    )
    # One process trains on one device; use torchrun for several. (By default, Trainer would use DataParallel.)
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
