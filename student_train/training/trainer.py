"""`transformers.Trainer` with a streaming loader, a recipe's losses and an account of what happens.

Every loss is a mean over places: recorded positions, labels, tokens. The places of one optimizer step lie in several
micro-batches on several ranks, in some more than in others, so that a mean of their means would weigh some places more
than others. Each batch is therefore told its share of the step's places, which are counted before the step and summed
over ranks once. The Trainer's own ways to divide (by accumulated batches, by `num_items_in_batch`) are switched off.
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

from shared.errors import RecipeError
from student_train.data.batch import Batch
from student_train.data.batches import TrainingBatches
from student_train.data.sources import Source
from student_train.forward.head import plain_head
from student_train.forward.observe import targets_of
from student_train.losses.base import outputs_for
from student_train.losses.projections import PROJECTIONS, make_projections
from student_train.losses.total import total_loss
from student_train.training.log import LOSS_PREFIX, SCORE_PREFIX, Account, look
from student_train.training.stages import Stage, order_of
from student_train.training.validation import Validation


class DistillationTrainer(Trainer):
    """Trains a student on a source by the losses of a stage, scored on held-out rows where there is a `validation`.

    The projections of hidden-state losses live inside the student while it trains, so that the optimizer, checkpoints
    and data parallelism treat them as its own; `release` takes them out.
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
        self._at_start = _trainable_weights(student) if validation else {}
        student.add_module(PROJECTIONS, make_projections(stage.loss, source, student))
        self._first_batch = first_step * arguments.gradient_accumulation_steps
        self._account, self._logged_step = Account(), first_step
        super().__init__(model=student, args=arguments)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise RecipeError(
                "the launcher asks for FSDP or DeepSpeed, which split a student's weights; every rank trains a whole "
                "student here: start with torchrun."
            )
        self._head = plain_head(student) if source.task.classes == "vocabulary" else None
        # The shares make the sum over accumulated batches a mean; there is nothing left to divide by.
        self.loss_is_scaled_for_ga = True
        if arguments.process_index:
            # Ranks start from the same weights, but each drops out units of its own.
            torch.manual_seed(arguments.seed + arguments.process_index)

    def get_train_dataloader(self) -> DataLoader:
        """Batches come ready made, each process taking its own rows."""
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
        # With a generator of its own the loader leaves the global one, and so the dropout of a resumed run, alone.
        return DataLoader(self.batches, batch_size=None, generator=torch.Generator())

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """The batches of one optimizer step, each told its shares of what the step counts."""
        start = time.monotonic()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._account.waited_seconds += time.monotonic() - start
        self._account.tokens += sum(batch.tokens for batch in batches if not batch.is_spare)
        counts = torch.tensor(
            [[0 if batch.is_spare else spec.count(batch) for spec in self.stage.loss] for batch in batches]
        )
        # Left on the device, so that nothing waits for it.
        totals = self._sum_over_ranks(counts.sum(0).to(device)).clamp(min=1)
        shared = zip(batches, counts, strict=True)
        return [replace(batch, shares=count.to(device) / totals) for batch, count in shared], None

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: Batch) -> int:
        """An estimate, for checkpoints and trackers."""
        return int(super().floating_point_ops(inputs.inputs))

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: Any) -> Tensor:
        """The recipe's weighted losses over one batch, as its share of the step's."""
        student = self.accelerator.unwrap_model(model)
        loss = as_forward_pass(model, student, lambda: self._loss(student, inputs))
        # Data parallelism averages gradients over ranks, and the shares of all of them add up to one.
        return loss * self.args.world_size

    def _loss(self, student: nn.Module, batch: Batch) -> Tensor:
        outputs = outputs_for(self.stage.loss, student, batch, self.source, self._head)
        targets = targets_of(batch, self.source)
        loss, parts = total_loss(self.stage.loss, outputs, targets, getattr(student, PROJECTIONS), batch.shares)
        self._account.add({LOSS_PREFIX + name: value for name, value in parts.items()})
        if outputs.has_logits and targets.distributions is not None:
            seen = look(outputs, targets.distributions)
            self._account.add({name: value * (not batch.is_spare) for name, value in seen.items()})
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What the Trainer logs, with our account of the steps since the last time."""
        if "loss" in logs:
            steps = self.state.global_step - self._logged_step
            logs |= self._account.take(steps, self.args.world_size, self._sum_over_ranks)
            self._logged_step = self.state.global_step
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        """A checkpoint counts once rank 0 has written its state: by then, all ranks have written theirs."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum") if self.args.world_size > 1 else values

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The score on the held-out rows: a better one is worth a checkpoint, too many others end the stage."""
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
        """A stage's first weights have a score, too: one that only makes them worse leaves them as they were."""
        counts: tuple[int, int] = super()._init_training_state(*arguments)
        if self.state.best_global_step:
            # The folder of a run may have moved since its state was written.
            self.state.best_model_checkpoint = self._best_checkpoint()
        elif self.validation is not None and self.state.best_global_step is None:
            self.state.best_metric, self.state.best_global_step = self._score(self.validation), 0
        return counts

    def _best_checkpoint(self) -> str:
        return str(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")

    def resume_or_train(self, checkpoint: str | None) -> None:
        """Train from the checkpoint on, if there is one, and end with the best weights where they are scored.

        A run that has taken its last step takes no other.
        """
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)) if checkpoint else None
        if state and (state.global_step >= self.args.max_steps or self._has_waited_enough(state)):
            self.state = state
            self._load_callback_state()
            self._load_from_checkpoint(checkpoint)
        else:
            self.train(resume_from_checkpoint=checkpoint)
        if self.state.best_global_step:
            self._load_from_checkpoint(self._best_checkpoint())
        elif self.validation is not None:
            self.model.load_state_dict(self._at_start, strict=False)

    def release(self) -> PreTrainedModel:
        """The student without what the training has put into and around it."""
        student: PreTrainedModel = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        delattr(student, PROJECTIONS)
        return student


def _trainable_weights(student: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().to("cpu", copy=True) for name, value in student.named_parameters() if value.requires_grad
    }


def as_forward_pass(wrapper: nn.Module, student: nn.Module, work: Callable[[], Tensor]) -> Tensor:
    """What `work` returns, done as the forward pass of the student inside of its wrapper (DDP, for instance).

    A wrapper takes parameters for unused, and their gradients for an error, unless they are used between the start and
    the end of a forward pass; ours use the student's projections, too, which its own forward pass knows nothing of.
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
