"""`transformers.Trainer` with a streaming loader, a recipe's losses and log lines of its own.

Every loss is a mean over terms: recorded positions, labels or tokens. The terms of one optimizer step are spread
unevenly over micro-batches and ranks, so a mean of the batches' means would weigh some terms more than others. Each
batch therefore carries its share of the step's terms, which are counted before the step and summed over the ranks once.
The Trainer's own normalisation (by accumulated batches, by `num_items_in_batch`) is switched off.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from shared.errors import RecipeError, TrainingError
from student_train.data.batch import Batch
from student_train.data.batches import TrainingBatches
from student_train.data.sources import Source
from student_train.forward.head import plain_head
from student_train.forward.observe import targets_of
from student_train.losses.base import can_slice, outputs_for
from student_train.losses.projections import PROJECTIONS, make_projections
from student_train.losses.total import total_loss
from student_train.training.checkpoints import RESUME_ADVICE, problem_of, sign, written
from student_train.training.finite import FiniteLosses
from student_train.training.log import LOSS_PREFIX, SCORE_PREFIX, Account, compare
from student_train.training.stages import ONLY_STAGE, Stage, order_of
from student_train.training.validation import Validation


class DistillationTrainer(Trainer):
    """Trains a student on a source with the losses of a stage, and scores it on held-out rows if given `validation`.

    While the student trains, the projections of hidden-state losses are a submodule of it, so that the optimizer,
    checkpoints and data parallelism include them; `release` removes them.
    """

    control: TrainerControl

    def __init__(
        self,
        stage: Stage,
        source: Source,
        student: PreTrainedModel,
        arguments: TrainingArguments,
        first_step: int,
        validation: Validation | None = None,
    ) -> None:
        self.stage, self.source, self.validation = stage, source, validation
        self._initial_weights = _trainable_weights(student) if validation else {}
        student.add_module(PROJECTIONS, make_projections(stage.loss, source, student))
        self._first_batch = first_step * arguments.gradient_accumulation_steps
        self._account, self._logged_step = Account(), first_step
        self._finite = FiniteLosses("" if stage.name == ONLY_STAGE else stage.name)
        super().__init__(model=student, args=arguments)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise RecipeError(
                "the launcher asks for FSDP or DeepSpeed, which split a student's weights; here every rank trains a "
                "whole student: start the run with torchrun."
            )
        self._head = plain_head(student) if can_slice(stage.loss, source) else None
        # The shares already make the sum over accumulated batches a mean, so the Trainer must not divide again.
        self.loss_is_scaled_for_ga = True
        if arguments.process_index:
            # Ranks start from the same weights, but each draws dropout masks of its own.
            torch.manual_seed(arguments.seed + arguments.process_index)

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of finished batches, of which each process gets its own rows."""
        order, columns = order_of(self.stage, self.source)
        self.batches = TrainingBatches(
            self.source,
            columns,
            order,
            self._first_batch,
            self.args.process_index,
            self.args.world_size,
            pinned=self.args.device.type == "cuda",
        )
        # A generator of its own, so that the loader does not advance the global one: it would change the dropout masks
        # of a resumed run.
        return DataLoader(self.batches, batch_size=None, generator=torch.Generator())

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """Return the batches of one optimizer step, each with its shares of the step's terms, one for each loss."""
        start = time.monotonic()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._account.waited_seconds += time.monotonic() - start
        self._account.tokens += sum(batch.tokens for batch in batches if not batch.is_spare)
        counts = torch.tensor(
            [[0 if batch.is_spare else spec.count(batch) for spec in self.stage.loss] for batch in batches]
        )
        # The totals stay on the device, so that nothing has to wait for them.
        totals = self._sum_over_ranks(counts.sum(0).to(device)).clamp(min=1)
        shared = zip(batches, counts, strict=True)
        return [replace(batch, shares=count.to(device) / totals) for batch, count in shared], None

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Return an estimate, for checkpoints and trackers."""
        return int(super().floating_point_ops(inputs.inputs))

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: Any) -> Tensor:
        """Return the weighted sum of the stage's losses over one batch, as its share of the step's loss."""
        student = self.accelerator.unwrap_model(model)
        loss = as_forward_pass(model, student, lambda: self._loss(student, inputs))
        # Data parallelism averages gradients over ranks, but the shares already add up to one over all ranks.
        return loss * self.args.world_size

    def _loss(self, student: nn.Module, batch: Batch) -> Tensor:
        outputs = outputs_for(self.stage.loss, student, batch, self.source, self._head)
        targets = targets_of(batch, self.source)
        loss, parts = total_loss(self.stage.loss, outputs, targets, getattr(student, PROJECTIONS), batch.shares)
        self._account.add({LOSS_PREFIX + name: value for name, value in parts.items()})
        self._finite.note(self.state.global_step + 1, parts)
        if loss.device.type == "cpu" and self.args.world_size == 1:
            self._finite.check(self._get_learning_rate())
        if outputs.has_logits and targets.distributions is not None:
            sums = compare(outputs, targets.distributions)
            self._account.add({name: value * (not batch.is_spare) for name, value in sums.items()})
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what the Trainer gives, with the values of our account since the last line."""
        if "loss" in logs:
            self._finite.check(self._get_learning_rate())
            steps = self.state.global_step - self._logged_step
            logs |= self._account.take(steps, self.args.world_size, self._sum_over_ranks)
            self._logged_step = self.state.global_step
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, unless the weights are no longer finite: the last one that can be used is kept."""
        self._check_weights()
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with written(folder, RESUME_ADVICE):
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                sign(folder)

    def _check_weights(self) -> None:
        rate = self._get_learning_rate()
        self._finite.check(rate)
        self._finite.check_weights(self.model, self.state.global_step, rate)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save this rank's random state, and wait for all ranks: rank 0 then writes the file that completes the
        checkpoint."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum") if self.args.world_size > 1 else values

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the student on the held-out rows: save a checkpoint if it is better, end the stage if patience runs
        out."""
        assert self.validation is not None
        score = self._score(self.validation)
        if self.validation.is_better(score, self.state.best_metric):
            self.control.should_save = True
        elif self._has_waited_enough(self.state):
            self.control.should_training_stop = True
        metrics = {f"{SCORE_PREFIX}{self.validation.metric}": score}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _score(self, validation: Validation) -> float:
        start = time.monotonic()
        score = validation.score(self.model)
        self._account.leave_out(time.monotonic() - start)
        self.log({f"{SCORE_PREFIX}{validation.metric}": score})
        return score

    def _has_waited_enough(self, state: TrainerState) -> bool:
        if self.validation is None or self.validation.patience is None:
            return False
        return state.global_step - (state.best_global_step or 0) >= self.validation.patience * self.args.eval_steps

    def _init_training_state(self, *arguments: Any) -> tuple[int, int]:
        """Score the initial weights as well: a stage that makes the score only worse ends with them."""
        counts: tuple[int, int] = super()._init_training_state(*arguments)
        if self.state.best_global_step:
            # The run's folder may have been moved since its state was written.
            self.state.best_model_checkpoint = self._best_checkpoint()
        elif self.validation is not None and self.state.best_global_step is None:
            self.state.best_metric, self.state.best_global_step = self._score(self.validation), 0
        return counts

    def _best_checkpoint(self) -> str:
        return str(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")

    def resume_or_train(self, checkpoint: str | None) -> None:
        """Train, from `checkpoint` on if there is one, and then load the best weights if there is a validation.

        If the checkpoint is that of the last step, no step is taken.
        """
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)) if checkpoint else None
        if state and (state.global_step >= self.args.max_steps or self._has_waited_enough(state)):
            self.state = state
            self._load_callback_state()
            self._load_from_checkpoint(checkpoint)
        else:
            self.train(resume_from_checkpoint=checkpoint)
            self._check_weights()
        if self.state.best_global_step:
            best = self._best_checkpoint()
            if (problem := problem_of(Path(best))) is not None:
                raise TrainingError(
                    f"{best}: the best weights of the stage are damaged ({problem}); delete {self.args.output_dir} to "
                    "train the stage anew with --resume."
                )
            self._load_from_checkpoint(best)
        elif self.validation is not None:
            self.model.load_state_dict(self._initial_weights, strict=False)

    def release(self) -> PreTrainedModel:
        """Return the student without its projections and the wrappers that the training put around it."""
        student: PreTrainedModel = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        # Undoing mixed precision leaves a forward pass without the decorators of transformers beside the class's own.
        vars(student).pop("forward", None)
        delattr(student, PROJECTIONS)
        return student


def _trainable_weights(student: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().to("cpu", copy=True) for name, value in student.named_parameters() if value.requires_grad
    }


def as_forward_pass(wrapper: nn.Module, student: nn.Module, work: Callable[[], Tensor]) -> Tensor:
    """Run `work` as if it were the student's forward pass inside its wrapper (for instance DDP); return its result.

    A wrapper treats parameters as unused, and their gradients as an error, unless they are used during its forward
    pass. The losses use the student's projections, which its own forward pass does not.
    """
    if wrapper is student:
        return work()
    original = student.forward

    def forward() -> Tensor:
        student.forward = original
        return work()

    student.forward = forward
    try:
        return wrapper()
    finally:
        student.forward = original
