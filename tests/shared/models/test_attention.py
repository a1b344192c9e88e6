"""Queries, keys and values are what a layer's weights say, and a model whose attention is looked at is as it was."""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from shared.models import attention
from shared.models.attention import (
    NAME,
    AlreadyRoutedError,
    Capture,
    Captured,
    captured_in,
    configs_of,
    own_attention,
    own_mask_function,
    routed,
)
from shared.models.layers import numbered_layers
from tests.shared.models.architectures import DOES_NOT_PACK, PACKS, VOCABULARY, make
from tests.shared.models.attention_by_hand import attended, heads, parts_of, seen_by

ROUTED = sorted({*PACKS, *DOES_NOT_PACK})
Look = Callable[[PreTrainedModel, Mapping[int, nn.Module]], AbstractContextManager[dict[int, Captured]]]


class TwiceError(Exception):
    """Attention in the layer of this number runs twice."""


def in_its_layers(
    model: PreTrainedModel, layers: Mapping[int, nn.Module]
) -> AbstractContextManager[dict[int, Captured]]:
    return captured_in(model, layers, TwiceError)


@contextmanager
def in_all_of_it(model: PreTrainedModel, layers: Mapping[int, nn.Module]) -> Iterator[dict[int, Captured]]:
    """The whole model's attention routed, of which some layers are looked at."""
    capture = Capture(layers, TwiceError)

    def attend(own: str, module: nn.Module, *arguments: Any, **options: Any) -> Any:
        capture.note(module, *arguments[:3])
        return own_attention(own, module)(module, *arguments, **options)

    with routed(configs_of(model), attend), capture.renewed(model) as captured:
        yield captured


looks = pytest.mark.parametrize("look", [in_its_layers, in_all_of_it])


def inputs() -> dict[str, Tensor]:
    """Two rows, the second one padded."""
    ids_BL = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 6:] = 0
    return {"input_ids": ids_BL, "attention_mask": mask_BL}


def last_hidden(model: PreTrainedModel) -> Tensor:
    hidden: Tensor = model(**inputs(), output_hidden_states=True).hidden_states[-1]
    return hidden


def state_of(model: PreTrainedModel) -> tuple[list[tuple[int, str]], int]:
    """Which configurations its modules hold, the names in these, and how many hooks there are."""
    configs = [(id(module.config), module.config._attn_implementation) for module in model.modules() if has(module)]
    return configs, sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def has(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation")


# What is captured


@looks
@torch.inference_mode()
def test_captured_of_bert_is_what_its_projections_give_and_makes_its_attention(look: Look) -> None:
    model = make("bert")
    layer = model.bert.encoder.layer[1]
    own, unpadded = layer.attention.self, {"input_ids": inputs()["input_ids"]}
    with look(model, {7: layer}) as captured:
        (hidden_BLD, *_), _ = seen_by(layer.attention, lambda: model(**unpadded))
        made_BLD = seen_by(own, lambda: model(**unpadded), output=True)[0]
    assert list(captured) == [7]
    expected = tuple(heads(projection(hidden_BLD), 8) for projection in (own.query, own.key, own.value))
    torch.testing.assert_close(parts_of(captured[7]), expected, rtol=0, atol=0)
    torch.testing.assert_close(attended(*parts_of(captured[7]), causal=False), made_BLD)
    assert not captured[7].is_causal
    assert captured[7].heads == 4
    assert captured[7].widths == {"queries": 32, "keys": 32, "values": 32}


@looks
@torch.inference_mode()
def test_captured_of_llama_has_rotary_embedding_and_its_own_number_of_key_heads(look: Look) -> None:
    model, unpadded = make("llama"), {"input_ids": inputs()["input_ids"]}
    layers = dict(enumerate(model.model.layers))
    own = layers[1].self_attn
    with look(model, layers) as captured:
        _, named = seen_by(own, lambda: model(**unpadded))
        (made_BLD, *_), _ = seen_by(own.o_proj, lambda: model(**unpadded))
    assert set(captured) == {0, 1}
    query, key, value = (
        heads(projection(named["hidden_states"]), 8) for projection in (own.q_proj, own.k_proj, own.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *named["position_embeddings"])
    torch.testing.assert_close(parts_of(captured[1]), (query, key, value), rtol=0, atol=0)
    torch.testing.assert_close(attended(*parts_of(captured[1]), causal=True), made_BLD)
    assert captured[1].is_causal
    assert captured[1].heads == 4
    assert captured[1].widths == {"queries": 32, "keys": 16, "values": 16}


@looks
def test_gradients_reach_the_weights_that_made_what_is_captured_and_none_above(look: Look) -> None:
    model = make("bert")
    with look(model, {1: model.bert.encoder.layer[0]}) as captured:
        model(**inputs())
    captured[1].parts_BHLD["keys"].square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert "bert.embeddings.word_embeddings.weight" in reached
    assert {name for name in reached if "layer" in name} == {
        "bert.encoder.layer.0.attention.self.key.weight",
        "bert.encoder.layer.0.attention.self.key.bias",
    }


@looks
def test_a_layer_may_have_several_numbers(look: Look) -> None:
    model = make("bert")
    with look(model, {2: model.bert.encoder.layer[1], -1: model.bert.encoder.layer[1]}) as captured:
        model(**inputs())
    assert set(captured) == {2, -1}
    assert all(one is other for one, other in zip(parts_of(captured[2]), parts_of(captured[-1]), strict=True))


@looks
def test_a_layer_that_runs_twice_is_refused(look: Look) -> None:
    model = make("albert")
    shared_layer = model.albert.encoder.albert_layer_groups[0]
    with look(model, {5: shared_layer}), pytest.raises(TwiceError, match="5"):
        model(**inputs())


@looks
def test_every_forward_pass_begins_with_nothing_captured(look: Look) -> None:
    model = make("bert")
    with look(model, {1: model.bert.encoder.layer[0]}) as captured:
        model(**inputs())
        first = captured[1]
        model(input_ids=torch.tensor([[5, 6]]))
    assert first.parts_BHLD["queries"].shape == (2, 4, 9, 8)
    assert captured[1].parts_BHLD["queries"].shape == (1, 4, 2, 8)
    model(**inputs())
    assert captured[1].parts_BHLD["queries"].shape == (1, 4, 2, 8), "closed, it takes no more"


# A model is as it was


@looks
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ROUTED)
@torch.inference_mode()
def test_an_architecture_computes_as_before_to_the_bit_while_it_is_looked_at(
    kind: str, implementation: str, look: Look
) -> None:
    model = make(kind)
    if implementation != model.config._attn_implementation:
        try:
            model.set_attn_implementation(implementation)
        except ValueError:
            pytest.skip(f"{kind} has no {implementation}")
    layers = dict(enumerate(numbered_layers(model), 1))
    expected = last_hidden(model)
    before = state_of(model)  # after a first pass, for transformers leaves some hooks of its own
    with look(model, layers) as captured:
        assert torch.equal(last_hidden(model), expected)
    assert bool(captured) == bool(layers)
    assert torch.equal(last_hidden(model), expected)
    assert state_of(model) == before
    assert not attention._ROUTES


def test_where_only_layers_are_looked_at_the_model_keeps_its_own_name_of_attention() -> None:
    model = make("bert")
    with captured_in(model, {2: model.bert.encoder.layer[1]}, TwiceError):
        assert (
            model.config._attn_implementation == model.bert.encoder.layer[0].attention.self.config._attn_implementation
        )
        assert model.config._attn_implementation != NAME
        assert model.bert.encoder.layer[1].attention.self.config._attn_implementation == NAME


def test_another_attention_function_may_be_looked_at_in_layers() -> None:
    calls = []

    def someones(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return sdpa_attention_forward(*arguments, **options)

    AttentionInterface.register("someone's own", someones)
    AttentionMaskInterface.register("someone's own", sdpa_mask)
    model = make("bert")
    model.set_attn_implementation("someone's own")
    with captured_in(model, {1: model.bert.encoder.layer[0]}, TwiceError) as captured:
        model(**inputs())
    assert len(calls) == 2
    assert set(captured) == {1}


@looks
def test_nothing_stays_behind_when_a_forward_pass_fails(look: Look) -> None:
    model = make("gemma2")
    before = state_of(model)
    with pytest.raises(IndexError), look(model, {1: model.model.layers[0]}):
        model(input_ids=torch.tensor([[VOCABULARY]]))
    assert state_of(model) == before
    assert not attention._ROUTES


@looks
def test_what_was_captured_is_let_go(look: Look) -> None:
    model = make("bert")
    with look(model, {1: model.bert.encoder.layer[0]}) as captured:
        model(**inputs())
    held = weakref.ref(captured[1])
    del captured
    gc.collect()
    assert held() is None


@looks
@torch.inference_mode()
def test_other_models_take_no_notice(look: Look) -> None:
    model, other = make("bert"), make("bert", seed=1)
    expected = last_hidden(other)
    with look(model, {1: model.bert.encoder.layer[0]}) as captured:
        assert torch.equal(last_hidden(other), expected)
        assert not captured


# Routing


@torch.inference_mode()
def test_masks_are_made_by_what_they_are_routed_to() -> None:
    model, asked = make("llama"), []

    def attend(own: str, module: nn.Module, *arguments: Any, **options: Any) -> Any:
        return own_attention(own, module)(module, *arguments, **options)

    def make_mask(own: str, arguments: dict[str, Any]) -> Any:
        asked.append((own, arguments["q_length"]))
        return own_mask_function(own)(**arguments)

    expected = last_hidden(model)
    with routed(configs_of(model), attend, make_mask):
        assert torch.equal(last_hidden(model), expected)
    assert asked == [("sdpa", 9)]


def attend_nothing(own: str, *arguments: Any, **options: Any) -> Any:
    raise AssertionError("nothing runs here")


def test_a_configuration_is_routed_to_one_function_at_a_time() -> None:
    model = make("bert")
    name, configs = model.config._attn_implementation, configs_of(model)
    with routed(configs, attend_nothing):
        with routed(configs, attend_nothing):
            assert model.config._attn_implementation == NAME
        assert model.config._attn_implementation == NAME, "the outer one is still open"
        with pytest.raises(AlreadyRoutedError), routed(configs, lambda *arguments, **options: None):
            pass
        with pytest.raises(AlreadyRoutedError), captured_in(model, {1: model.bert.encoder.layer[0]}, TwiceError):
            pass
    assert model.config._attn_implementation == name
    assert model.bert.encoder.layer[0].attention.self.config is model.config
