"""The losses on logits: what each needs of the dump, and its value over a batch.

Shapes: N recorded positions, K candidates that the teacher kept, V classes.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.dump.rowgroup import MISSING
from shared.errors import RecipeError
from student_train.data.sources import Source
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses import formulas
from student_train.losses.base import Loss
from student_train.losses.divergence import Divergence


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

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        assert outputs.logits_NV is not None
        assert targets.distributions is not None
        teacher = targets.distributions.resized(outputs.logits_NV.shape[-1])
        divergence = Divergence(self.divergence, self.beta or 0.5)
        if teacher.has_all_logits:
            return formulas.kl_dense(outputs.logits_NV, teacher.logits_NV, self.temperature, divergence)
        if self._is_sampled(teacher.sampled_NK is not None):
            return formulas.kl_sampled(outputs.logits_NV, teacher.ids_NK, teacher.log_probs_NK, outputs.overwrite)
        exact = teacher.exact()
        kept = exact.ids_NK, exact.log_probs_NK, exact.tail_N
        if self.tail == "gold":
            kept = formulas.tail_to_labels(*kept, targets.labels_N)
        return formulas.kl_sparse(
            outputs.logits_NV,
            *kept,
            temperature=self.temperature,
            tail="renormalise" if self.tail == "renormalise" else "class",
            log_sum_N=exact.log_sums_N.get(self.temperature),
            divergence=divergence,
            overwrite=outputs.overwrite,
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

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        assert targets.distributions is not None
        assert targets.distributions.has_all_logits
        assert outputs.logits_NV is not None
        compare = formulas.logits_mse_ragged if targets.is_ragged else formulas.logits_mse
        return compare(outputs.logits_NV, targets.distributions.logits_NV)


class TeacherLabelLoss(Loss):
    """Cross-entropy with the teacher's most probable class (hard labels)."""

    by_position = True

    kind: Literal["teacher-label"] = "teacher-label"

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        assert targets.distributions is not None
        assert outputs.logits_NV is not None
        return formulas.cross_entropy(outputs.logits_NV, targets.distributions.argmax(), outputs.overwrite)


class GoldLoss(Loss):
    """Cross-entropy with the gold labels (of a language model: the text's own tokens) where there are any."""

    by_position = True
    has_teacher = False

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
        return (labels_N != MISSING).sum()

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        assert outputs.logits_NV is not None
        return formulas.cross_entropy(outputs.logits_NV, targets.labels_N, outputs.overwrite)
