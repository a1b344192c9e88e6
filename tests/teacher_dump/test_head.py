"""The vocabulary head on slices: when it is used, and when the model's own logits are."""

from typing import Any

import pytest
import torch
import transformers

from teacher_dump import head
from teacher_dump.head import VocabularyHead


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
    monkeypatch.setattr(head, "_after_projection", lambda config: lambda logits: logits)
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
