"""A head held back inside of its model, and whether what is held back gives the model's own logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from shared.dump.codecs import LogitStep
from shared.models.head import gives_own_logits, run_without_head

HEADS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama, untied": ("causal-lm", "llama", {}),
    "llama, tied": ("causal-lm", "llama", {"tie_word_embeddings": True}),
    "gpt2": ("causal-lm", "gpt2", {}),
    "phi, with a bias": ("causal-lm", "phi", {}),
    "gemma2, capped": ("causal-lm", "gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}),
    "cohere, scaled": ("causal-lm", "cohere", {"logit_scale": 0.25}),
    "granite, divided": ("causal-lm", "granite", {"logits_scaling": 4.0}),
    "bert, tied and with a bias": ("masked-lm", "bert", {}),
    "distilbert": ("masked-lm", "distilbert", {}),
    "roberta": ("masked-lm", "roberta", {}),
}
HAVE_A_STEP = ("gemma2, capped", "cohere, scaled", "granite, divided")
INPUTS = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), "attention_mask": torch.ones(2, 4).long()}


@pytest.fixture
def load(make_teacher: Callable[..., Path]) -> Callable[..., Any]:
    def of(name: str, dtype: torch.dtype = torch.float32) -> Any:
        task, kind, config = HEADS[name]
        auto_class = transformers.AutoModelForCausalLM if task == "causal-lm" else transformers.AutoModelForMaskedLM
        return auto_class.from_pretrained(make_teacher(task, kind, **config), dtype=dtype).eval()

    return of


def is_own(model: Any, after: Callable[[Tensor], Tensor], change: float = 0.0) -> bool:
    """Whether projecting what is held back gives the model's own logits, where its projection is moved by `change`."""
    projection = model.get_output_embeddings()

    def logits_of(inputs: dict[str, Any], index_N: Tensor) -> Tensor:
        _, held_back = run_without_head(model, projection, inputs)
        return after(projection(held_back.states_ND[index_N]) + change).float()

    return gives_own_logits(model, projection, after, logits_of)


def step_of(model: Any) -> LogitStep:
    return LogitStep.of(model.config.get_text_config())


def hooks(model: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


# Holding back


@pytest.mark.parametrize("name", HEADS)
def test_the_projection_sees_no_token_and_what_it_would_have_seen_is_kept(name: str, load: Callable[..., Any]) -> None:
    model = load(name)
    projection, seen = model.get_output_embeddings(), []
    watch = projection.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    expected = model(**INPUTS).logits
    before = hooks(model)
    output, held_back = run_without_head(model, projection, INPUTS)
    assert output.logits.numel() == 0
    assert seen[1].numel() == 0
    assert torch.equal(held_back.states_BLD, seen[0])
    assert torch.equal(held_back.states_ND, seen[0].flatten(0, 1))
    assert held_back.dtype == torch.float32
    assert hooks(model) == before
    watch.remove()
    assert torch.equal(model(**INPUTS).logits, expected)


def test_gradients_go_through_what_is_held_back(load: Callable[..., Any]) -> None:
    model = load("llama, untied")
    _, held_back = run_without_head(model, model.get_output_embeddings(), INPUTS)
    held_back.states_ND.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None
    assert model.get_output_embeddings().weight.grad is None


def test_a_model_inside_of_a_wrapper_is_held_back_too(load: Callable[..., Any]) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, **inputs: Any) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.module(**inputs)

    model = load("llama, untied")
    output, held_back = run_without_head(Wrapper(model), model.get_output_embeddings(), INPUTS)
    assert output.logits.numel() == 0
    assert held_back.dtype == torch.bfloat16, "autocast was open inside"


@pytest.mark.parametrize("times", [0, 2])
def test_a_projection_that_does_not_run_exactly_once_is_refused(times: int, load: Callable[..., Any]) -> None:
    model = load("llama, untied")
    projection, before = nn.Linear(32, 320), hooks(model)
    if times:
        projection = model.get_output_embeddings()
        model.lm_head = nn.Sequential(projection, nn.Linear(320, 32), projection)
    with pytest.raises(ValueError, match=rf"projection of LlamaForCausalLM ran {times} times"):
        run_without_head(model, projection, INPUTS)
    assert hooks(model) == before


def test_nothing_stays_behind_where_the_model_fails(load: Callable[..., Any]) -> None:
    model = load("gpt2")
    before = hooks(model)
    with pytest.raises(IndexError):
        run_without_head(model, model.get_output_embeddings(), {"input_ids": torch.tensor([[100_000]])})
    assert hooks(model) == before


# The probe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HEADS)
def test_known_heads_give_their_models_own_logits_in_every_precision(
    name: str, dtype: torch.dtype, load: Callable[..., Any]
) -> None:
    model = load(name, dtype)
    before = hooks(model)
    assert is_own(model, step_of(model))
    assert hooks(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HAVE_A_STEP)
def test_a_step_that_is_not_known_is_noticed(name: str, dtype: torch.dtype, load: Callable[..., Any]) -> None:
    assert not is_own(load(name, dtype), LogitStep())


def test_logits_that_are_not_those_of_the_projection_are_noticed(load: Callable[..., Any]) -> None:
    model = load("llama, untied")
    assert not is_own(model, step_of(model), change=0.01)


def test_a_projection_that_runs_twice_is_noticed(load: Callable[..., Any]) -> None:
    model = load("llama, untied")
    projection = model.get_output_embeddings()
    model.get_output_embeddings = lambda: projection
    model.lm_head = nn.Sequential(projection, nn.Linear(320, 32), projection)
    assert not is_own(model, LogitStep())


def test_weights_of_nan_do_not_look_like_an_unknown_head(load: Callable[..., Any]) -> None:
    model = load("llama, untied")
    nn.init.constant_(model.get_output_embeddings().weight[3], torch.nan)
    assert is_own(model, step_of(model))
