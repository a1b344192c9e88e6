"""The vocabulary head on slices: when it is used, and when the model's own logits are; and the exact codec made of it.

Shapes: N positions, V vocabulary, D width.
"""

from typing import Any

import pytest
import torch
import transformers

from shared.dump.codecs import LogitStep
from shared.errors import TeacherError
from teacher_dump.engines.transformers.head import VocabularyHead


def load(folder: Any, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def logits_of_both(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(the model's own logits, the head's) at the positions 1, 2 and 5 of two rows of four tokens."""
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    positions = torch.tensor([1, 2, 5])
    with torch.inference_mode():
        expected = model(**arguments).logits.flatten(0, 1)[positions].float()
        _, of = VocabularyHead(model).run(arguments)
        return expected, of(positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_slices_serve_every_precision(kind: str, dtype: torch.dtype, make_teacher: Any) -> None:
    model = load(make_teacher("causal-lm", kind), dtype)
    assert VocabularyHead(model).sliced
    expected, found = logits_of_both(model)
    assert torch.allclose(found, expected, rtol=0.02 if dtype != torch.float32 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unknown_step_after_the_projection_means_the_models_own_logits(
    dtype: torch.dtype, make_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A soft cap that the head does not know of, here because it was taken from its list, moves logits by a little."""
    model = load(make_teacher("causal-lm", "gemma2", final_logit_softcapping=30.0), dtype)
    assert VocabularyHead(model).sliced
    monkeypatch.setattr(LogitStep, "of", lambda config: LogitStep())
    assert not VocabularyHead(model).sliced
    expected, found = logits_of_both(model)
    assert torch.equal(found, expected)


def test_the_model_itself_still_gives_all_its_logits(make_teacher: Any) -> None:
    model = load(make_teacher("causal-lm"))
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    VocabularyHead(model)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_inside_the_model_the_projection_sees_no_token(make_teacher: Any) -> None:
    model = load(make_teacher("causal-lm"))
    ids = torch.tensor([[5, 6, 7]])
    output, _ = VocabularyHead(model).run({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert output.logits.shape[1] == 0


# ---------------------------------------------------------------- the exact codec of a head

# task, kind, configuration, what follows the projection
HEADS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama, untied": ("causal-lm", "llama", {}, "none"),
    "llama, tied": ("causal-lm", "llama", {"tie_word_embeddings": True}, "none"),
    "llama, padded to 384 entries": ("causal-lm", "llama", {"vocab_size": 384}, "none"),
    "gpt2": ("causal-lm", "gpt2", {}, "none"),
    "phi, with a bias": ("causal-lm", "phi", {}, "none"),
    "gemma2, capped": ("causal-lm", "gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}, "softcap"),
    "cohere, scaled": ("causal-lm", "cohere", {"logit_scale": 0.25}, "scale"),
    "granite, divided": ("causal-lm", "granite", {"logits_scaling": 4.0}, "divisor"),
    "bert, tied and with a bias": ("masked-lm", "bert", {}, "none"),
    "distilbert": ("masked-lm", "distilbert", {}, "none"),
    "roberta": ("masked-lm", "roberta", {}, "none"),
}
# Roundings that follow one another: the product, its bias, and up to three of a soft cap.
ROUNDINGS = 5


def head_and_logits(name: str, dtype: torch.dtype, make_teacher: Any) -> tuple[VocabularyHead, Any, Any, Any]:
    """(the head, states_ND that go into it, its logits_NV as the codec gives them back, the model's own)."""
    task, kind, config, _ = HEADS[name]
    auto_class = transformers.AutoModelForCausalLM if task == "causal-lm" else transformers.AutoModelForMaskedLM
    model = auto_class.from_pretrained(make_teacher(task, kind, **config), dtype=dtype).eval()
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    index = torch.tensor([0, 1, 3, 7, 9])
    with torch.inference_mode():
        expected = model(**arguments).logits.flatten(0, 1)[index].float()
        found = VocabularyHead(model)
        _, states_of = found.run(arguments, takes="states")
        states = states_of(index)
    codec = found.exact("distribution", "float16")
    return found, states, codec.decode(codec.encode(states, index)).logits_NV, expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HEADS)
def test_states_and_head_give_the_models_own_logits(name: str, dtype: torch.dtype, make_teacher: Any) -> None:
    """But for rounding: of the state to float16, and of the model's own steps to its own type."""
    found, states_ND, logits_NV, expected_NV = head_and_logits(name, dtype, make_teacher)
    weight_VD, bias_V = found.projection.weight.float(), found.projection.bias
    size_NV = states_ND.float().abs() @ weight_VD.abs().T + (0 if bias_V is None else bias_V.float().abs())
    of_states_NV = 2**-11 * size_NV + 2**-25 * weight_VD.abs().sum(-1)
    of_model_NV = ROUNDINGS * torch.finfo(dtype).eps / 2 * size_NV
    summing_NV = states_ND.shape[1] * 2**-24 * size_NV
    # No step widens a difference: the slope of a soft cap is 1 at most, the scale and the divisor here make it less.
    assert ((logits_NV - expected_NV).abs() <= of_states_NV + of_model_NV + 2 * summing_NV + 1e-6).all()


@pytest.mark.parametrize("name", HEADS)
def test_the_codec_knows_all_of_its_head(name: str, make_teacher: Any) -> None:
    head_of_model, *_ = head_and_logits(name, torch.bfloat16, make_teacher)
    codec = head_of_model.exact("distribution", "int8")
    assert codec.after.step == HEADS[name][3]
    assert (codec.vocabulary, codec.width) == tuple(head_of_model.projection.weight.shape)
    constants = codec.constants()
    assert torch.equal(constants["weight"], head_of_model.projection.weight)
    assert constants["weight"].dtype == torch.bfloat16
    assert not constants["weight"].requires_grad
    assert ("bias" in constants) == (head_of_model.projection.bias is not None)
    assert ("bias" in constants) == ("bias" in name or name in ("distilbert", "roberta"))


@pytest.mark.parametrize("name", ["gemma2, capped", "cohere, scaled", "granite, divided"])
def test_logits_that_an_unknown_step_changes_cannot_be_exact(
    name: str, make_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LogitStep, "of", lambda config: LogitStep())
    _, kind, config, _ = HEADS[name]
    unknown = VocabularyHead(load(make_teacher("causal-lm", kind, **config)))
    with pytest.raises(TeacherError, match=r"--exact: the logits of \w+ are not just its output projection"):
        unknown.exact("distribution", "float16")


def test_a_projection_that_is_no_matrix_cannot_be_exact(make_teacher: Any) -> None:
    model = load(make_teacher("causal-lm"))
    plain = model.get_output_embeddings()

    class Clamped(torch.nn.Module):
        """As an adapter wraps a layer: it has the weight, and does more with it."""

        weight = plain.weight

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return plain(states).clamp(-1, 1)

    model.set_output_embeddings(Clamped())
    wrapped = VocabularyHead(model)
    assert wrapped.sliced
    with pytest.raises(TeacherError, match=r"output projection \(Clamped\)"):
        wrapped.exact("distribution", "float16")
