"""How a recipe's sections say when what is learnt: [training] for all stages, [[stage]] for one, [validation]."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

from student_train.data.subsets import Kind
from student_train.losses.specs import LossSpec
from student_train.students.unfreezing import Trainable

# Of each pair one is given; a stage that gives one does without the other of [training].
_EITHER = (("epochs", "max_steps"), ("batch_size", "batch_tokens"))
EPOCHS_BETWEEN_SCORES = 0.5


class Section(BaseModel):
    """A section of a recipe: no key but these, none of them changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Schedule(Section):
    """What [training] says for all stages and a [[stage]] for itself: either `epochs` over the rows or `max_steps`; a
    batch has `batch_size` rows (32 where nothing is said) or about `batch_tokens` tokens, on all ranks together."""

    epochs: float | None = Field(default=None, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    batch_tokens: int | None = Field(default=None, ge=1, description="tokens of a batch, padding not counted")
    gradient_accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of all steps")
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
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
            raise ValueError("give either epochs or max_steps")
        return self


class TrainingSection(Schedule):
    """[training]: the schedule of all stages, and what is the same in all of them.

    `report_to` names trackers that the Trainer knows and that are installed: "tensorboard", "wandb", ...
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    seed: int = Field(default=0, ge=0)
    log_steps: int = Field(default=50, ge=1)
    report_to: tuple[str, ...] = ()
    save_steps: int = Field(default=500, ge=1, description="a checkpoint to resume from, every so many steps")

    @model_validator(mode="before")
    @classmethod
    def _usual_batch(cls, values: Any) -> Any:
        if not isinstance(values, dict) or any(values.get(key) is not None for key in ("batch_size", "batch_tokens")):
            return values
        return {**values, "batch_size": 32}

    @property
    def has_length(self) -> bool:
        """Whether it says when to end."""
        return self.epochs is not None or self.max_steps is not None


class ValidationSection(Section):
    """[validation]: a slice of the rows that is never trained on, by whose score a stage's best weights are chosen.

    `share` of the rows, drawn by training.seed. A score every so many epochs (0.5 where nothing is said) or steps, and
    at a stage's end. A stage ends when `patience` scores in a row were no better. `metric` is "loss" (the stage's own),
    "agreement" (with the teacher's first choice), or one of the task's by its name, against gold labels.
    """

    share: float = Field(default=0.05, gt=0, lt=1)
    every: float | None = Field(default=None, gt=0, description="epochs")
    every_steps: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    metric: str = "loss"

    @model_validator(mode="after")
    def _one_distance(self) -> Self:
        if self.every is not None and self.every_steps is not None:
            raise ValueError("give either every (epochs) or every_steps")
        return self


class StageSection(Schedule):
    """[[stage]]: one phase of the training; what it says of its schedule goes before what [training] says.

    `rows` are those with a gold label, those without, or all; `trainable` is "all", the "head", or the head and so many
    groups below it; `unfreeze = "gradual"` makes it several stages, each with one group more; `metric` and `patience`
    go before those of [validation].
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    loss: tuple[LossSpec, ...] = Field(min_length=1)
    rows: Kind = "all"
    trainable: Trainable = "all"
    unfreeze: Literal["gradual"] | None = None
    metric: str | None = None
    patience: int | None = Field(default=None, ge=1)

    @field_validator("trainable", mode="before")
    @classmethod
    def _all_head_or_groups(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value not in ("all", "head") and not is_number:
            raise ValueError('give "all", "head", or how many groups below the head (1 or more)')
        return value

    @model_validator(mode="after")
    def _unfrozen_one_way(self) -> Self:
        if self.unfreeze is not None and self.trainable != "all":
            raise ValueError("give either trainable or unfreeze")
        return self

    @model_serializer(mode="wrap")
    def _what_is_said(self, handler: Any) -> dict[str, Any]:
        """Without the schedule's defaults, which do not count here."""
        return {key: value for key, value in handler(self).items() if key not in self._unsaid()}

    def _unsaid(self) -> set[str]:
        return set(Schedule.model_fields) - self.model_fields_set

    def of(self, shared: TrainingSection) -> TrainingSection:
        """What [training] says, with this stage's own in its place."""
        own = self.model_dump(include=set(Schedule.model_fields) - self._unsaid())
        values = shared.model_dump()
        for pair in _EITHER:
            if any(own.get(key) is not None for key in pair):
                values |= dict.fromkeys(pair)
        return TrainingSection.model_validate({**values, **own})
