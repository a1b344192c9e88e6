"""`transformers.Trainer` with a streaming loader, a recipe's losses and a plain account of its progress."""

import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from shared.progress import Progress, human_seconds
from student_train.loader import Batch, TrainingBatches, order_of
from student_train.objective import Heard, Said, make_projections, total_loss
from student_train.recipe import Recipe
from student_train.sources import Source

PROJECTIONS = "distillation_projections"


class DistillationTrainer(Trainer):
    """Trains a student on a source by the losses of a recipe.

    The projections of hidden-state losses live inside the student while it trains, so that the optimizer, checkpoints
    and data parallelism treat them as its own; `detach_projections` takes them out before the student is saved.
    """

    def __init__(
        self, recipe: Recipe, source: Source, student: PreTrainedModel, arguments: TrainingArguments, first_step: int
    ) -> None:
        self.recipe, self.source = recipe, source
        student.add_module(PROJECTIONS, make_projections(recipe.loss, source, student))
        self._first_batch = first_step * arguments.gradient_accumulation_steps
        self._wants_hidden = any(spec.student_layer is not None for spec in recipe.loss)
        self._parts: dict[str, torch.Tensor] = {}
        self._tokens_seen = torch.zeros((), dtype=torch.long)
        super().__init__(model=student, args=arguments)
        # The losses are means over a batch; the Trainer is to average them over accumulated batches.
        self.loss_is_scaled_for_ga = False

    def get_train_dataloader(self) -> DataLoader:
        """Batches come ready made, each process taking its own rows."""
        order, columns = order_of(self.recipe, self.source)
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

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: Any) -> Any:
        """The recipe's weighted losses over one batch."""
        said = said_about(model, inputs, self.source, self._wants_hidden)
        projections = getattr(self.accelerator.unwrap_model(model), PROJECTIONS)
        loss, parts = total_loss(self.recipe.loss, said, heard_about(inputs, self.source), projections)
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, torch.zeros_like(value)) + value
        self._tokens_seen = inputs["attention_mask"].sum() + self._tokens_seen
        return (loss, said) if return_outputs else loss

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on, padding not counted. Waits for the device, so it is asked for only now and then."""
        return int(self._tokens_seen)

    def resume_or_train(self, checkpoint: str | None, is_trained: bool) -> None:
        """Train from the checkpoint on, if there is one. A run that has taken its last step takes no other."""
        if is_trained and checkpoint is not None:
            self._load_from_checkpoint(checkpoint)
        else:
            self.train(resume_from_checkpoint=checkpoint)

    def take_parts(self) -> dict[str, float]:
        """Each loss summed since the last call."""
        parts, self._parts = {name: float(value) for name, value in self._parts.items()}, {}
        return parts


def said_about(model: nn.Module, batch: Batch, source: Source, wants_hidden: bool) -> Said:
    """What a student says about a batch, at the recorded positions (logits) and at all tokens (hidden states)."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
    output = model(**inputs, output_hidden_states=wants_hidden, return_dict=True)
    logits = getattr(output, "logits", None)
    if logits is not None and source.recorded != "row":
        logits = logits.flatten(0, 1)[batch["positions"]]
    real_BL = batch["attention_mask"].bool()
    return Said(logits, tuple(layer[real_BL] for layer in output.hidden_states) if wants_hidden else ())


def heard_about(batch: Batch, source: Source) -> Heard:
    """What the teacher said, decoded on the batch's device."""
    columns = batch["columns"]
    codec = source.distribution
    has_distribution = codec is not None and all(column.name in columns for column in codec.columns)
    return Heard(
        codec.decode(columns) if codec is not None and has_distribution else None,
        {name: codec.decode(columns) for name, codec in source.vectors.items() if codec.columns[0].name in columns},
        batch["labels"],
    )


def detach_projections(student: PreTrainedModel) -> None:
    """Take the projections out again: they served the training and are no part of the student."""
    delattr(student, PROJECTIONS)


class ProgressReport(TrainerCallback):
    """A bar of steps on a terminal, and every `log_steps` a line with the losses, tokens/s and time left."""

    def __init__(self, trainer: DistillationTrainer, label: str, steps: int, first_step: int) -> None:
        self._trainer = trainer
        self._progress = Progress(label, "steps", steps)
        self._progress.advance(first_step)
        self._label, self._steps, self._first_step = label, steps, first_step
        self._start = self._last_log = time.monotonic()
        self._tokens, self._logged_step = 0, first_step

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Move the bar; log now and then."""
        self._progress.advance(1)
        if state.global_step % self._trainer.recipe.training.log_steps and state.global_step != self._steps:
            return
        now, steps = time.monotonic(), state.global_step - self._logged_step
        batches = steps * args.gradient_accumulation_steps
        parts = "  ".join(f"{name} {total / batches:.4f}" for name, total in self._trainer.take_parts().items())
        tokens = self._trainer.tokens_seen
        rate = (tokens - self._tokens) / (now - self._last_log)
        left = (now - self._start) / (state.global_step - self._first_step) * (self._steps - state.global_step)
        self._progress.say(
            f"{self._label}  step {state.global_step}/{self._steps}  {parts}  {rate:,.0f} tokens/s  "
            f"{human_seconds(left)} left"
        )
        self._last_log, self._tokens, self._logged_step = now, tokens, state.global_step

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self._progress.close()
