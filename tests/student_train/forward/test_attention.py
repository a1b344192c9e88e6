"""A student's queries, keys and values: those of its own attention, with gradients, and a student left as it was."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from shared.dump.signals import RELATIONS
from shared.errors import RecipeError
from student_train.forward.attention import Attended, capture, captured_on_probe
from student_train.students import BiLSTMModel
from student_train.students.bilstm import BiLSTMConfig

LENGTHS = (7, 2, 5)
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "distilbert": {},
    "modernbert": {"num_attention_heads": 4, "pad_token_id": 0, "global_attn_every_n_layers": 1},
    "gpt2": {},
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
}
CAUSAL = ("gpt2", "llama", "qwen3")


def model_of(kind: str, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {**TINY, "bos_token_id": None, "eos_token_id": None, **KINDS[kind]}
    model: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(kind, **sizes), attn_implementation=attention)
    return model.eval()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": torch.randint(5, 60, mask.shape), "attention_mask": mask.long()}


def configurations(model: nn.Module) -> list[int]:
    return [id(module.config) for module in model.modules() if hasattr(module, "config")]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_shows_its_attention_and_computes_as_before(kind: str, attention: str) -> None:
    model, inputs = model_of(kind, attention), batch()
    before = configurations(model)
    plain = model(**inputs).last_hidden_state
    with capture(model, [1, -1, 3]) as captured:
        shown = model(**inputs).last_hidden_state
    assert torch.equal(shown, plain)
    assert configurations(model) == before
    assert sorted(captured) == [-1, 1, 3]
    assert captured[3] is captured[-1] or captured[3].parts_BHLD == captured[-1].parts_BHLD
    assert not torch.equal(captured[1].parts_BHLD["queries"], captured[3].parts_BHLD["queries"])
    found = Attended.at_tokens(captured[3], inputs["attention_mask"].bool())
    assert found.lengths == LENGTHS
    assert found.is_causal == (kind in CAUSAL)
    assert {part: tensor.shape for part, tensor in found.parts_TD.items()} == {
        part: (sum(LENGTHS), width) for part, width in captured_on_probe(model, 3).widths.items()
    }
    # From them follow the model's own probabilities.
    eager = model_of(kind, "eager")
    probabilities = eager(**inputs, output_attentions=True).attentions[2]
    queries, keys = (found.parts_TD[part] for part in ("queries", "keys"))
    groups = queries.shape[1] // keys.shape[1]
    for row, length in enumerate(LENGTHS):
        tokens = slice(sum(LENGTHS[:row]), sum(LENGTHS[:row]) + length)
        heads = probabilities.shape[1]
        query_HLD = queries[tokens].unflatten(1, (heads, -1)).transpose(0, 1)
        key_HLD = keys[tokens].unflatten(1, (heads // groups, -1)).transpose(0, 1).repeat_interleave(groups, 0)
        scores = query_HLD @ key_HLD.transpose(1, 2) / query_HLD.shape[-1] ** 0.5
        if found.is_causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), probabilities[row, :, :length, :length], rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_weights_that_made_them_and_none_above() -> None:
    model, inputs = model_of("bert").train(), batch()
    with capture(model, [2]) as captured:
        model(**inputs)
    for part, projection in zip(RELATIONS, ("query", "key", "value"), strict=True):
        model.zero_grad()
        found = Attended.at_tokens(captured[2], inputs["attention_mask"].bool())
        found.parts_TD[part].square().sum().backward(retain_graph=True)
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert f"encoder.layer.1.attention.self.{projection}.weight" in reached
        assert "embeddings.word_embeddings.weight" in reached
        assert not any(name.startswith("encoder.layer.2") for name in reached)
        assert sum("layer.1.attention.self" in name for name in reached) == 2


def test_nothing_is_left_behind_even_by_a_forward_pass_that_fails() -> None:
    model, inputs = model_of("bert"), batch()
    before = configurations(model)
    with pytest.raises(ValueError, match="input_ids"), capture(model, [1]):
        model()
    assert configurations(model) == before
    with capture(model, [1]) as captured:
        model(**inputs)
    held = weakref.ref(captured[1])
    del captured
    gc.collect()
    assert held() is None


# ---------------------------------------------------------------- students that have none


def test_a_student_without_such_attention_is_refused() -> None:
    bilstm = BiLSTMModel(BiLSTMConfig(vocab_size=64, embedding_size=8, hidden_size=8))
    with pytest.raises(RecipeError, match="BiLSTMModel does not give access to its queries, keys and values"):
        captured_on_probe(bilstm, -1)


@pytest.mark.parametrize("layer", [0, 4, -4])
def test_a_layer_that_the_student_lacks_is_refused(layer: int) -> None:
    with pytest.raises(RecipeError, match=rf"student_layer = {layer}: the student has layers 1 to 3"):
        captured_on_probe(model_of("bert"), layer)


def test_layers_that_are_one_module_are_refused() -> None:
    model = model_of("bert")
    model.encoder.layer = nn.ModuleList([model.encoder.layer[0]] * 3)
    with pytest.raises(RecipeError, match="attention runs more than once in the student's layer 2"):
        captured_on_probe(model, 2)


def test_the_probe_leaves_the_student_in_the_mode_that_it_was_in() -> None:
    model = model_of("bert").train()
    state = torch.get_rng_state()
    captured_on_probe(model, 1)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
