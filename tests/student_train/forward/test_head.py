"""A student's head held back: the same losses, gradients, trained weights and scores as with all its logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from shared.dump.codecs import LogitStep
from student_train import distill
from student_train.data.batch import Batch
from student_train.data.batches import collate
from student_train.data.sources import DumpSource
from student_train.forward import head
from student_train.forward import sliced_logits as fused
from student_train.forward.head import plain_head
from student_train.forward.observe import outputs_of, targets_of
from student_train.losses.logits import GoldLoss, KLLoss, TeacherLabelLoss
from student_train.losses.total import total_loss
from student_train.recipe.recipe import Recipe
from student_train.scoring import agreement, evaluate
from student_train.training import trainer

# Task, kind, configuration, what follows the projection.
HEADS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("causal-lm", "llama", {}, "none"),
    "llama, tied": ("causal-lm", "llama", {"tie_word_embeddings": True}, "none"),
    "gpt2": ("causal-lm", "gpt2", {}, "none"),
    "gemma2, capped": ("causal-lm", "gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}, "softcap"),
    "cohere, scaled": ("causal-lm", "cohere", {"logit_scale": 0.25}, "scale"),
    "granite, divided": ("causal-lm", "granite", {"logits_scaling": 4.0}, "divisor"),
    "bert, tied and with a bias": ("masked-lm", "bert", {}, "none"),
    "distilbert": ("masked-lm", "distilbert", {}, "none"),
}
DUMPS: dict[str, dict[str, Any]] = {
    "causal-lm": {"top_k": 5},
    "masked-lm": {"threshold": 0.05},
    "exact": {"exact": True},
}
SPECS = (KLLoss(tail="class"), GoldLoss(weight=0.5), TeacherLabelLoss())


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "FEWEST_POSITIONS", 10)
    monkeypatch.setattr(fused, "SLICE_VALUES", {"cpu": 1})


@pytest.fixture(scope="module")
def dumps(make_dump: Callable[..., Path]) -> dict[str, Path]:
    return {name: make_dump("causal-lm" if name == "exact" else name, **options) for name, options in DUMPS.items()}


def load(task: str, folder: Path) -> Any:
    auto_class = transformers.AutoModelForCausalLM if task == "causal-lm" else transformers.AutoModelForMaskedLM
    return auto_class.from_pretrained(folder).eval()


def batch_of(source: DumpSource, rows: list[int]) -> Batch:
    assert source.distribution is not None
    loaded = {0: source.load(0, [column.name for column in source.distribution.columns])}
    return collate(loaded, np.asarray([[0, row] for row in rows]), source)


def loss_and_gradients(model: Any, source: DumpSource, batch: Batch, is_sliced: bool) -> tuple[Any, dict[str, Any]]:
    outputs = outputs_of(model, batch, source, False, plain_head(model) if is_sliced else None)
    assert (outputs.sliced is not None) == is_sliced
    model.zero_grad()
    total, parts = total_loss(SPECS, outputs, targets_of(batch, source), nn.ModuleDict())
    total.backward()
    return parts, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", HEADS)
def test_the_student_learns_the_same_from_slices(
    name: str, make_teacher: Callable[..., Path], dumps: dict[str, Path]
) -> None:
    task, kind, config, step = HEADS[name]
    model, source = load(task, make_teacher(task, kind, **config)), DumpSource(dumps[task])
    found = plain_head(model)
    assert found is not None
    assert found.after.step == step
    batch = batch_of(source, [0, 15, 7, 3])
    expected_parts, expected = loss_and_gradients(model, source, batch, is_sliced=False)
    parts, gradients = loss_and_gradients(model, source, batch, is_sliced=True)
    torch.testing.assert_close(parts, expected_parts, rtol=1e-4, atol=1e-5)
    assert any(gradient is not None for gradient in expected.values())
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", DUMPS)
def test_padding_changes_nothing(name: str, dumps: dict[str, Path], make_teacher: Callable[..., Path]) -> None:
    """Losses of single rows without padding, weighted by their shares of the terms, add up to the padded batch's."""
    source = DumpSource(dumps[name])
    task = source.task.name
    model, rows = load(task, make_teacher(task, seed=1)), [0, 15, 8]
    plain, together = plain_head(model), batch_of(source, rows)
    whole = torch.stack([spec.counted(together.labels) for spec in SPECS])
    totals = []
    for batch in (together, *(batch_of(source, [row]) for row in rows)):
        outputs = outputs_of(model, batch, source, False, plain)
        shares = torch.stack([spec.counted(batch.labels) for spec in SPECS]) / whole
        totals.append(total_loss(SPECS, outputs, targets_of(batch, source), nn.ModuleDict(), shares)[0])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole = torch.autograd.grad(totals[0], parameters, allow_unused=True, materialize_grads=True)
    alone = torch.autograd.grad(torch.stack(totals[1:]).sum(), parameters, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(totals[0], torch.stack(totals[1:]).sum(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole, alone, rtol=1e-3, atol=1e-5)


def test_inside_the_student_the_projection_sees_no_token_and_afterwards_all_again(
    make_teacher: Callable[..., Path],
) -> None:
    model = load("causal-lm", make_teacher("causal-lm"))
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    plain = plain_head(model)
    assert plain is not None
    expected = model(**inputs).logits
    output, sliced = plain.run(model, inputs, torch.tensor([2, 0]))
    assert output.logits.shape[1] == 0
    torch.testing.assert_close(next(logits for _, logits in sliced.parts()), expected[0, [2, 0]])
    assert torch.equal(model(**inputs).logits, expected)


def test_under_autocast_a_slice_is_what_the_student_itself_says(make_teacher: Callable[..., Path]) -> None:
    model = load("causal-lm", make_teacher("causal-lm"))
    plain = plain_head(model)
    assert plain is not None
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(**inputs).logits
        _, sliced = plain.run(model, inputs, torch.tensor([0, 1, 2]))
    assert sliced.dtype == torch.bfloat16
    logits = next(logits for _, logits in sliced.parts())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected[0].float(), rtol=0.01, atol=0.01)


def test_a_step_that_is_not_known_means_the_students_own_logits(
    make_teacher: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("causal-lm", make_teacher("causal-lm", "gemma2", final_logit_softcapping=30.0, head_dim=8))
    monkeypatch.setattr(LogitStep, "of", lambda config: LogitStep())
    assert plain_head(model) is None


def test_a_projection_that_is_more_than_a_linear_map_means_the_students_own_logits(
    make_teacher: Callable[..., Path],
) -> None:
    model = load("causal-lm", make_teacher("causal-lm"))
    model.lm_head = nn.Sequential(model.lm_head, nn.Tanh())
    assert plain_head(model) is None


def test_looking_for_the_head_leaves_the_student_and_the_random_numbers_as_they_were(
    make_teacher: Callable[..., Path],
) -> None:
    model = load("causal-lm", make_teacher("causal-lm", "gpt2", resid_pdrop=0.5)).train()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert plain_head(model) is not None
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


# ---------------------------------------------------------------- from recipe to scores


def trained(output: Path, dump: Path, losses: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], Any]:
    recipe = Recipe.model_validate(
        {
            "output": output,
            "dump": dump,
            "student": {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2},
            "loss": losses,
            "training": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu"},
        }
    )
    distill.run(recipe, resume=False)
    model, _ = evaluate.load_model(output, None)
    found = agreement.agreement_of(model, DumpSource(dump))
    return {name: value.clone() for name, value in model.state_dict().items()}, (found.share, found.divergence)


@pytest.mark.parametrize("name", DUMPS)
def test_training_and_scoring_in_slices_end_at_the_same_weights_and_scores(
    name: str, dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    js = {"kind": "kl", "divergence": "js", "tail": "class", "weight": 0.5}
    losses = [{"kind": "kl"}, {"kind": "gold"}, js]
    ran = []
    run = head.StudentHead.run
    monkeypatch.setattr(head.StudentHead, "run", lambda *arguments: ran.append(1) or run(*arguments))
    weights, scores = trained(tmp_path / "sliced", dumps[name], losses)
    assert ran, "nothing was sliced"
    for module in (trainer, agreement):
        monkeypatch.setattr(module, "plain_head", lambda model: None)
    expected_weights, expected_scores = trained(tmp_path / "whole", dumps[name], losses)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-3, atol=2e-5)
    assert scores == pytest.approx(expected_scores, rel=1e-3)
