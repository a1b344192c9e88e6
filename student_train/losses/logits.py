"""Losses on logits: what each needs from the dump, and its value for a batch.

Shapes: N recorded positions, K candidates that the teacher kept, V classes.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.dump.rowgroup import MISSING
from shared.errors import RecipeError
from shared.numbers import Factor
from student_train.data.sources import Source
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses import formulas
from student_train.losses.base import Loss
from student_train.losses.divergence import Divergence


class KLLoss(Loss):
    """KL(teacher || student) at a temperature, or another `divergence`: "reverse", or "js" with `beta` (0.5).

    The forward KL has the same gradient as soft cross-entropy (Hinton et al. 2015, arXiv 1503.02531), which is larger
    by a constant, the teacher's entropy.

    If a dump keeps only some ids of a vocabulary, `tail` says what happens with the others:
    "sampled": they are represented by sampled ids (the default if the dump has some);
    "class": they form one class (the default otherwise);
    "gold": their mass is added to the gold label;
    "renormalise": both distributions are renormalised over the ids kept.
    """

    by_position = True

    kind: Literal["kl"] = "kl"
    divergence: Literal["forward", "reverse", "js"] = "forward"
    beta: float | None = Field(default=None, gt=0, lt=1)
    temperature: Factor = 1.0
    tail: Literal["sampled", "class", "gold", "renormalise"] | None = None

    @model_validator(mode="after")
    def _beta_is_of_js(self) -> Self:
        if self.beta is not None and self.divergence != "js":
            raise ValueError(f'beta is for divergence = "js", but here it is "{self.divergence}"; leave beta out')
        return self

    def check(self, source: Source) -> None:
        super().check(source)
        codec = source.distribution
        assert codec is not None
        if self.tail == "sampled" and not codec.samples:
            raise RecipeError(
                f"the loss 'kl' with tail = \"sampled\" needs a sampled tail, which {source.name} lacks; dump again "
                'with --threshold and --tail sample, or use tail = "class".'
            )
        if self.tail in ("class", "gold", "renormalise") and not codec.has_exact_ids:
            raise RecipeError(
                f"the loss 'kl' with tail = \"{self.tail}\" needs exact probabilities, but {source.name} holds only "
                "random draws; leave tail out."
            )
        if self._is_sampled(codec.samples) and self.temperature != 1:
            raise RecipeError(
                f"the loss 'kl' cannot apply temperature = {self.temperature:g} to sampled ids, which {source.name} "
                'holds; use temperature = 1, tail = "class", or a dump with another selection of ids.'
            )
        if self._is_sampled(codec.samples) and self.divergence != "forward":
            raise RecipeError(
                f"the loss 'kl' cannot compute the divergence {self.divergence!r} from sampled ids, which "
                f'{source.name} holds; use divergence = "forward", tail = "class", or a dump with another selection '
                "of ids."
            )
        if self.tail == "gold":
            self._check_gold(source)

    def _check_gold(self, source: Source) -> None:
        for applies, reason in (
            (source.has_dense_logits, f"needs a tail, but {source.name} holds all logits; leave tail out."),
            (not source.has_gold, f"needs gold labels, but {source.name} has none; leave tail out."),
            (self.temperature != 1, f"needs temperature = 1, but here it is {self.temperature:g}."),
        ):
            if applies:
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
    """Mean squared difference of the logits, which need a dense or an exact dump (arXiv 1910.01769, 2004.05686)."""

    by_position = True

    kind: Literal["logits-mse"] = "logits-mse"

    def check(self, source: Source) -> None:
        super().check(source)
        if not source.has_dense_logits:
            raise RecipeError(
                f"the loss 'logits-mse' needs all logits, but {source.name} keeps only some of them; dump again with "
                "--exact or --dense, or use the loss 'kl'."
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
    """Cross-entropy with the gold labels where there are any (for a language model, the text's own tokens)."""

    by_position = True
    has_teacher = False

    kind: Literal["gold"] = "gold"

    @property
    def signal(self) -> None:
        return None

    def check(self, source: Source) -> None:
        if not source.has_gold:
            raise RecipeError(
                f"the loss 'gold' needs gold labels, but {source.name} has none; dump a file with a label column, or "
                "leave the loss out."
            )
        if source.has_misplaced_gold:
            raise RecipeError(
                f"the loss 'gold' cannot be used with {source.name}: an earlier version of Lectern made this dump, and "
                "with such a tokenizer it missed the first letter of gold answers; dump again, or leave the loss out "
                "(the teacher's outputs are right)."
            )

    def counted(self, labels_N: Tensor) -> Tensor:
        return (labels_N != MISSING).sum()

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        assert outputs.logits_NV is not None
        return formulas.cross_entropy(outputs.logits_NV, targets.labels_N, outputs.overwrite)
