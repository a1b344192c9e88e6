"""The sections of a recipe about training: [training] for all stages, [[stage]] for one of them, [validation]."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_serializer, model_validator

from shared.numbers import STRICT, Batches, Count, Epochs, Factor, FactorOrZero, Seed
from student_train.data.subsets import Kind
from student_train.losses.specs import LossSpec
from student_train.recipe.columns import PairsSection
from student_train.students.unfreezing import Trainable

# Pairs of which one key is given; if a stage gives one, the other one of [training] does not apply to it.
_EITHER = (("epochs", "max_steps"), ("batch_size", "batch_tokens"))
EPOCHS_BETWEEN_SCORES = 0.5
USUAL_SHARE = 0.05
# One step of AdamW moves every weight by about the learning rate.
MOST_RATE = 1000.0


def _named(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():  # as a path, it is the working directory
        raise ValueError("name a folder")
    return value


# The folder of a student, or of a sweep's students.
OutputFolder = Annotated[Path, BeforeValidator(_named)]


class Section(BaseModel):
    """A section of a recipe; unknown keys are errors, and values cannot be changed later."""

    model_config = STRICT


class Schedule(Section):
    """The schedule, which [training] gives for all stages and a [[stage]] for itself.

    Attributes:
        epochs, max_steps: the length, in passes over the rows or in optimizer steps; one of them is given.
        batch_size, batch_tokens: rows of a batch (by default 32), or about how many tokens it has, over all ranks.
    """

    epochs: Epochs | None = None
    max_steps: Count | None = None
    batch_size: Count | None = None
    batch_tokens: Count | None = Field(default=None, description="tokens of a batch, without padding")
    gradient_accumulation: Batches = 1
    learning_rate: float = Field(default=5e-5, gt=0, le=MOST_RATE)
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of all steps")
    weight_decay: FactorOrZero = 0.01
    max_grad_norm: Factor = 1.0
    freeze_embeddings: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_batch(cls, values: Any) -> Any:
        if isinstance(values, dict) and all(values.get(key) is not None for key in ("batch_size", "batch_tokens")):
            raise ValueError("give either batch_size (rows) or batch_tokens")
        return values

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give either epochs or max_steps (on the command line, --set training.epochs= unsets it)")
        return self


class TrainingSection(Schedule):
    """[training]: the schedule of all stages, and the settings that are the same for all of them.

    `report_to` names installed trackers that the Trainer supports: "tensorboard", "wandb", ...
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    seed: Seed = 0
    log_steps: Count = 50
    report_to: tuple[str, ...] = ()
    save_steps: Count = Field(default=500, description="steps between two checkpoints to resume from")

    @model_validator(mode="before")
    @classmethod
    def _usual_batch(cls, values: Any) -> Any:
        if not isinstance(values, dict) or any(values.get(key) is not None for key in ("batch_size", "batch_tokens")):
            return values
        return {**values, "batch_size": 32}

    @property
    def has_length(self) -> bool:
        """Whether the length of the training is given."""
        return self.epochs is not None or self.max_steps is not None


class ValidationSection(Section):
    """[validation]: hold out some rows, and keep the weights of each stage that score best on them.

    Attributes:
        share: the share of the rows that is held out, drawn from training.seed.
        every, every_steps: epochs (by default 0.5) or steps between two scores; a stage is also scored at its end.
        patience: a stage ends after this many scores in a row that were no better than the best.
        pairs: in place of held-out rows, pairs of texts on which embeddings are scored (encoder); the metric is then
            "spearman" (the default) or "pearson".
        metric: "loss" (the stage's own), "agreement" (with the teacher's most probable class), or the name of one of
            the task's metrics, which compare with gold labels.
    """

    share: float | None = Field(default=None, gt=0, lt=1, description="by default 0.05; none with pairs")
    every: Epochs | None = Field(default=None, description="epochs")
    every_steps: Count | None = None
    patience: Count | None = None
    metric: str = "loss"
    pairs: PairsSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _rows_or_pairs(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("pairs") is None:
            return values if values.get("share") is not None else {**values, "share": USUAL_SHARE}
        if values.get("share") is not None:
            raise ValueError("give either share (of the rows, held out) or pairs (files of their own)")
        return {"metric": "spearman", **values}

    @property
    def held_out(self) -> float:
        """The share of the rows that is held out; 0 with pairs."""
        return self.share or 0.0

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        if self.every is not None and self.every_steps is not None:
            raise ValueError("give either every (epochs) or every_steps")
        return self


class StageSection(Schedule):
    """[[stage]]: one phase of the training. Its schedule takes precedence over that of [training].

    Attributes:
        rows: which rows to train on: those with a gold label, those without, or all.
        trainable: "all" parameters, the "head", or the head and this number of groups of parameters below it.
        unfreeze: "gradual" splits the stage into several, each of which unfreezes one more group.
        metric, patience: take precedence over those of [validation].
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    loss: tuple[LossSpec, ...] = Field(min_length=1)
    rows: Kind = "all"
    trainable: Trainable = "all"
    unfreeze: Literal["gradual"] | None = None
    metric: str | None = None
    patience: Count | None = None

    @field_validator("name")
    @classmethod
    def _no_name_of_a_file(cls, name: str) -> str:
        # A stage's checkpoints and weights have its name, beside the run's own files.
        if name.lower().endswith((".json", ".safetensors", ".tmp")):
            raise ValueError("a stage's name cannot end like a file of the run; choose another")
        return name

    @field_validator("trainable", mode="before")
    @classmethod
    def _all_head_or_groups(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value not in ("all", "head") and not is_number:
            raise ValueError('give "all", "head", or the number of groups below the head (1 or more)')
        return value

    @model_validator(mode="after")
    def _trainable_or_unfreeze(self) -> Self:
        if self.unfreeze is not None and self.trainable != "all":
            raise ValueError("give either trainable or unfreeze")
        return self

    @model_serializer(mode="wrap")
    def _without_default_schedule(self, handler: Any) -> dict[str, Any]:
        """Leave out the schedule's defaults: a key that the stage does not give is that of [training]."""
        return {key: value for key, value in handler(self).items() if key not in self._inherited_keys()}

    def _inherited_keys(self) -> set[str]:
        return set(Schedule.model_fields) - self.model_fields_set

    def of(self, shared: TrainingSection) -> TrainingSection:
        """Return the values of [training], replaced by this stage's own where it has some."""
        own = self.model_dump(include=set(Schedule.model_fields) - self._inherited_keys())
        values = shared.model_dump()
        for pair in _EITHER:
            if any(own.get(key) is not None for key in pair):
                values |= dict.fromkeys(pair)
        return TrainingSection.model_validate({**values, **own})
