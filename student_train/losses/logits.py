"""The losses of a recipe: what each needs from the dump, and its value over a batch.

Those on logits are here, those on layers in between in `intermediate`.

Shapes: N recorded positions, K candidates that the teacher kept, V classes.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.dump.codecs import DenseTargets
from shared.errors import RecipeError
from student_train.data.sources import Source
from student_train.losses import formulas
from student_train.losses.base import Heard, Loss, Said
from student_train.losses.divergence import Divergence
from student_train.losses.hidden import HiddenLoss, RelationLoss


class KLLoss(Loss):
    """KL(teacher || student) at a temperature, or another `divergence`: "reverse", or "js" with `beta` (0.5).

    It serves as soft cross-entropy (Hinton et al. 2015, arXiv 1503.02531), which is larger by the teacher's entropy, a
    constant, and has the same gradient.

    Where a dump keeps some ids, `tail` says what becomes of the others: "sampled" ids stand for them (the default where
    the dump has such), they are one "class" (the default elsewhere), the gold label has their mass, or both sides are
    "renormalise"d to the ids kept.
    """

    by_position = True

    kind: Literal["kl"] = "kl"
    divergence: Literal["forward", "reverse", "js"] = "forward"
    beta: float | None = Field(default=None, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0)
    tail: Literal["sampled", "class", "gold", "renormalise"] | None = None

    @model_validator(mode="after")
    def _beta_is_of_js(self) -> Self:
        if self.beta is not None and self.divergence != "js":
            raise ValueError(f'beta is for divergence = "js", and here it is "{self.divergence}"; leave beta out')
        return self

    def check(self, source: Source) -> None:
        super().check(source)
        codec = source.distribution
        assert codec is not None
        if self.tail == "sampled" and not codec.samples:
            raise RecipeError(
                f"the loss 'kl' with tail = \"sampled\" needs a sampled tail, which {source.name} lacks; dump with "
                '--threshold and --tail sample, or use tail = "class".'
            )
        if self.tail in ("class", "gold", "renormalise") and not codec.has_exact_ids:
            raise RecipeError(
                f"the loss 'kl' with tail = \"{self.tail}\" needs exact probabilities, and {source.name} holds random "
                "draws alone; leave tail out."
            )
        if self._is_sampled(codec.samples) and self.temperature != 1:
            raise RecipeError(
                f"the loss 'kl' cannot temper sampled ids (temperature = {self.temperature:g}), and {source.name} "
                'holds such; use temperature = 1, tail = "class", or a dump of another selection.'
            )
        if self._is_sampled(codec.samples) and self.divergence != "forward":
            raise RecipeError(
                f"the loss 'kl' knows no divergence {self.divergence!r} from sampled ids, and {source.name} holds "
                'such; use divergence = "forward", tail = "class", or a dump of another selection.'
            )
        if self.tail == "gold":
            self._check_gold(source)

    def _check_gold(self, source: Source) -> None:
        for is_so, reason in (
            (source.has_dense_logits, f"needs a tail, and {source.name} holds all logits; leave tail out."),
            (not source.has_gold, f"needs gold labels, and {source.name} has none; leave tail out."),
            (self.temperature != 1, f"knows no temperature (here {self.temperature:g}); use temperature = 1."),
        ):
            if is_so:
                raise RecipeError(f"the loss 'kl' with tail = \"gold\" {reason}")

    def _is_sampled(self, dump_samples: bool) -> bool:
        return self.tail == "sampled" or (self.tail is None and dump_samples)

    def value(self, said: Said, heard: Heard, projection: nn.Module | None) -> Tensor:
        assert said.logits_NV is not None
        assert heard.targets is not None
        targets = heard.targets.resized(said.logits_NV.shape[-1])
        divergence = Divergence(self.divergence, self.beta or 0.5)
        if isinstance(targets, DenseTargets):
            return formulas.kl_dense(said.logits_NV, targets.logits_NV, self.temperature, divergence)
        if self._is_sampled(targets.sampled_NK is not None):
            return formulas.kl_sampled(said.logits_NV, targets.ids_NK, targets.log_probs_NK, said.overwrite)
        exact = targets.exact()
        kept = exact.ids_NK, exact.log_probs_NK, exact.tail_N
        if self.tail == "gold":
            kept = formulas.tail_to_labels(*kept, heard.labels_N)
        return formulas.kl_sparse(
            said.logits_NV,
            *kept,
            temperature=self.temperature,
            tail="renormalise" if self.tail == "renormalise" else "class",
            log_sum_N=exact.log_sums_N.get(self.temperature),
            divergence=divergence,
            overwrite=said.overwrite,
        )


class LogitsMSELoss(Loss):
    """Mean squared difference of the logits, which only a dense or an exact dump has (arXiv 1910.01769, 2004.05686)."""

    by_position = True

    kind: Literal["logits-mse"] = "logits-mse"

    def check(self, source: Source) -> None:
        super().check(source)
        if not source.has_dense_logits:
            raise RecipeError(
                f"the loss 'logits-mse' needs all logits, but {source.name} keeps some of them; dump with --exact or "
                "--dense, or use the loss 'kl'."
            )

    def value(self, said: Said, heard: Heard, projection: nn.Module | None) -> Tensor:
        assert isinstance(heard.targets, DenseTargets)
        assert said.logits_NV is not None
        compare = formulas.logits_mse_ragged if heard.is_ragged else formulas.logits_mse
        return compare(said.logits_NV, heard.targets.logits_NV)


class TeacherLabelLoss(Loss):
    """Cross-entropy with the teacher's most probable class (hard labels)."""

    by_position = True

    kind: Literal["teacher-label"] = "teacher-label"

    def value(self, said: Said, heard: Heard, projection: nn.Module | None) -> Tensor:
        assert heard.targets is not None
        assert said.logits_NV is not None
        return formulas.cross_entropy(said.logits_NV, heard.targets.argmax(), said.overwrite)


class GoldLoss(Loss):
    """Cross-entropy with the gold labels (of a language model: the text's own tokens) where there are any."""

    by_position = True

    kind: Literal["gold"] = "gold"

    @property
    def signal(self) -> None:
        return None

    def check(self, source: Source) -> None:
        if not source.has_gold:
            raise RecipeError(
                f"the loss 'gold' needs gold labels, and {source.name} has none; dump a file with a label column, or "
                "leave the loss out."
            )

    def counted(self, labels_N: Tensor) -> Tensor:
        return (labels_N != formulas.MISSING_LABEL).sum()

    def value(self, said: Said, heard: Heard, projection: nn.Module | None) -> Tensor:
        assert said.logits_NV is not None
        return formulas.cross_entropy(said.logits_NV, heard.labels_N, said.overwrite)


LossSpec = Annotated[
    KLLoss | LogitsMSELoss | TeacherLabelLoss | GoldLoss | HiddenLoss | RelationLoss, Field(discriminator="kind")
]
