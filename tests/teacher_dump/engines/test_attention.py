"""Packed rows give what padded rows and rows alone give; queries, keys and values are what a layer's weights say."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from shared.errors import TeacherError
from shared.models import attention as routes_module
from shared.text.tokenized import TokenizedRow
from teacher_dump.engines.batch import pad
from teacher_dump.engines.transformers import attention as attention_module
from teacher_dump.engines.transformers import packing
from teacher_dump.engines.transformers.attention import Attention
from teacher_dump.engines.transformers.packing import Run, attend_packed, packed_inputs, runs_of
from teacher_dump.engines.transformers.packing_probe import LENGTHS as PROBE_LENGTHS
from teacher_dump.engines.transformers.packing_probe import probe_rows
from tests.shared.models.architectures import (
    BOS,
    DOES_NOT_PACK,
    EOS,
    LEFT_ALONE,
    PACKS,
    PAD,
    ROW_LENGTHS,
    SIZES,
    VOCABULARY,
    make,
    make_rows,
)
from tests.shared.models.attention_by_hand import attended, heads, parts_of, seen_by


def taken_over(model: PreTrainedModel) -> Attention:
    attention = Attention.take_over(model)
    assert attention is not None
    return attention


@torch.inference_mode()
def outputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """All hidden states [layers, rows, tokens, width], and logits."""
    output = model(**inputs, output_hidden_states=True)
    return torch.stack(output.hidden_states), output.logits


def packed_outputs(attention: Attention, rows: Sequence[TokenizedRow]) -> tuple[Tensor, Tensor]:
    with attention.packed([len(row.input_ids) for row in rows]):
        return outputs(attention.model, packed_inputs(rows, attention.first_position, attention.model.device))


def alone_outputs(model: PreTrainedModel, rows: Sequence[TokenizedRow]) -> tuple[Tensor, Tensor]:
    """Rows one by one, without mask or position ids; joined along the tokens."""
    each = []
    for row in rows:
        inputs = {"input_ids": torch.from_numpy(row.input_ids)[None].long()}
        if row.token_type_ids is not None:
            inputs["token_type_ids"] = torch.from_numpy(row.token_type_ids)[None].long()
        each.append(outputs(model, inputs))
    return torch.cat([hidden for hidden, _ in each], dim=2), torch.cat([logits for _, logits in each], dim=1)


def padded_outputs(model: PreTrainedModel, rows: Sequence[TokenizedRow]) -> tuple[Tensor, Tensor]:
    batch = pad(rows, range(len(rows)), PAD)
    real = batch.inputs["attention_mask"].bool()
    hidden, logits = outputs(model, batch.inputs)
    return hidden[:, real][:, None], logits[real][None]


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5 * float(other.abs().max()))


def assert_identical(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# Packing


@pytest.mark.parametrize("kind", PACKS)
def test_packed_rows_give_what_rows_alone_and_padded_rows_give(kind: str) -> None:
    model, rows = make(kind), make_rows()
    attention = taken_over(model)
    assert attention.packs
    packed = packed_outputs(attention, rows)
    assert_same(packed, alone_outputs(model, rows))
    assert_same(packed, padded_outputs(model, rows))


@pytest.mark.parametrize("kind", DOES_NOT_PACK)
def test_models_that_do_not_pack_are_found_out(kind: str) -> None:
    attention = taken_over(make(kind))
    assert not attention.packs
    with pytest.raises(TeacherError, match="cannot be packed"), attention.packed([3]):
        pass


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_models_with_attention_of_their_own_are_left_alone(kind: str) -> None:
    model = make(kind)
    implementation = model.config._attn_implementation
    assert Attention.take_over(model) is None
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("kind", PACKS | DOES_NOT_PACK | {"mpnet": {}})
def test_a_model_is_the_same_to_the_bit_after_it_was_taken_over(kind: str) -> None:
    model, batch = make(kind), pad(make_rows(), range(len(make_rows())), PAD)

    def hidden() -> Tensor:
        with torch.inference_mode():
            return torch.stack(model(**batch.inputs, output_hidden_states=True).hidden_states)

    implementation, before = model.config._attn_implementation, hidden()
    attention = Attention.take_over(model)
    assert torch.equal(hidden(), before)
    assert model.config._attn_implementation == implementation
    if attention is not None:
        with attention.capture({}):
            assert torch.equal(hidden(), before)


@pytest.mark.parametrize("kind", ["bert", "llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_packs(kind: str, dtype: torch.dtype) -> None:
    assert taken_over(make(kind).to(dtype)).packs


def test_token_types_are_packed_along() -> None:
    model, rows = make("bert"), make_rows(pairs=True)
    packed = packed_outputs(taken_over(model), rows)
    assert_same(packed, alone_outputs(model, rows))
    with pytest.raises(AssertionError):
        assert_same(packed, alone_outputs(model, make_rows(pairs=False)))


def test_rows_without_tokens_take_no_part() -> None:
    model, rows = make("gpt2"), make_rows((3, 2, 0, 0))
    assert_same(packed_outputs(taken_over(model), rows), alone_outputs(model, rows[:2]))


def test_packed_rows_may_outgrow_the_table_of_positions() -> None:
    model, rows = make("bert", max_position_embeddings=8), make_rows((8, 8, 8))
    assert_same(packed_outputs(taken_over(model), rows), alone_outputs(model, rows))


@pytest.mark.parametrize(("kind", "first"), [("bert", 0), ("roberta", PAD + 1), ("opt", 0), ("llama", 0)])
def test_positions_begin_where_the_model_begins(kind: str, first: int) -> None:
    assert taken_over(make(kind)).first_position == first


def test_runs_are_consecutive_rows_of_equal_length() -> None:
    assert runs_of([5, 3, 3, 0, 3, 1]) == (Run(0, 1, 5), Run(5, 3, 3), Run(14, 1, 1))
    assert runs_of([]) == ()


def test_inputs_that_are_not_the_rows_are_refused() -> None:
    attention = taken_over(make("llama"))
    inputs = packed_inputs(make_rows((4, 4)), 0, torch.device("cpu"))
    with pytest.raises(ValueError, match="rows of 7 tokens"), attention.packed([4, 3]):
        outputs(attention.model, inputs)
    del inputs["attention_mask"]
    with pytest.raises(ValueError, match="attention_mask of ones"), attention.packed([4, 4]):
        outputs(attention.model, inputs)


def test_what_cannot_be_cut_by_row_is_refused() -> None:
    heads_1HTD, module, runs = torch.zeros(1, 2, 5, 8), nn.Module(), runs_of([3, 2])

    def attend(tensors: Tensor = heads_1HTD, mask: Any = None, **options: Any) -> None:
        attend_packed(sdpa_attention_forward, False, runs, module, tensors, tensors, tensors, mask, **options)

    attend(is_causal=True, position_ids=torch.arange(5)[None], s_aux=torch.zeros(2))
    with pytest.raises(ValueError, match="makes its own attention mask"):
        attend(mask=torch.zeros(1, 1, 5, 5))
    with pytest.raises(ValueError, match="position_bias"):
        attend(position_bias=torch.zeros(1, 2, 5, 5))
    for wrong in (torch.zeros(1, 2, 6, 8), torch.zeros(2, 2, 5, 8)):
        with pytest.raises(ValueError, match="rows of 5 tokens"):
            attend(wrong)


# What the probe must see


def leak(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    """Each token is given a trace of the one before it, far below rounding."""
    return output + 1e-9 * output.roll(1, dims=1)


def leak_backwards(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + 1e-9 * output.roll(-1, dims=1)


@pytest.mark.parametrize("hook", [leak, leak_backwards])
def test_a_leak_below_rounding_is_found(hook: Callable[..., Tensor]) -> None:
    model = make("bert")
    model.bert.encoder.layer[0].output.register_forward_hook(hook)
    assert not taken_over(model).packs


def test_tokens_counted_from_the_start_of_the_batch_are_found() -> None:
    def count(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * torch.linspace(1, 1.05, output.shape[1])[None, :, None]

    model = make("bert")
    model.bert.encoder.layer[0].output.register_forward_hook(count)
    assert not taken_over(model).packs


def test_a_model_that_fails_on_more_tokens_than_it_has_positions_does_not_pack() -> None:
    def at_most_64(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments[0].shape[1] > SIZES["max_position_embeddings"]:
            raise IndexError

    model = make("bert")
    assert sum(PROBE_LENGTHS) < SIZES["max_position_embeddings"]
    model.bert.encoder.layer[0].register_forward_pre_hook(at_most_64)
    assert not taken_over(model).packs


def test_weights_that_are_not_numbers_are_left_to_others_to_report() -> None:
    model = make("bert")
    nn.init.constant_(model.bert.encoder.layer[0].output.dense.bias, torch.nan)
    assert Attention.take_over(model) is None


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
def test_classifiers_can_be_asked(kind: str, task: str) -> None:
    assert taken_over(make(kind, task)).packs


def test_the_probe_avoids_special_tokens() -> None:
    ids = torch.cat([torch.from_numpy(row.input_ids) for row in probe_rows(make("roberta", vocab_size=16))])
    assert len(ids) == sum(PROBE_LENGTHS)
    assert not {PAD, BOS, EOS} & set(ids.tolist())
    ids = torch.cat([torch.from_numpy(row.input_ids) for row in probe_rows(make("llama", eos_token_id=[2, 3, 4]))])
    assert ids.min() > 4
    assert ids.max() > VOCABULARY * 0.9


# Queries, keys and values


@torch.inference_mode()
def test_captured_of_bert_is_what_its_projections_give_and_makes_its_attention() -> None:
    model, batch = make("bert"), pad(make_rows((6, 6)), range(2), PAD)
    layer = model.bert.encoder.layer[1]
    own = layer.attention.self
    with taken_over(model).capture({1: layer}) as captured:
        (hidden_BLD, *_), _ = seen_by(layer.attention, lambda: model(**batch.inputs))
        made_BLD = seen_by(own, lambda: model(**batch.inputs), output=True)[0]
    assert list(captured) == [1]
    expected = tuple(heads(projection(hidden_BLD), 8) for projection in (own.query, own.key, own.value))
    torch.testing.assert_close(parts_of(captured[1]), expected, rtol=0, atol=0)
    torch.testing.assert_close(attended(*parts_of(captured[1]), causal=False), made_BLD)


@torch.inference_mode()
def test_captured_of_llama_has_rotary_embedding_and_its_own_number_of_key_heads() -> None:
    model, batch = make("llama"), pad(make_rows((6, 6)), range(2), PAD)
    layers = dict(enumerate(model.model.layers))
    own = layers[1].self_attn
    with taken_over(model).capture(layers) as captured:
        _, named = seen_by(own, lambda: model(**batch.inputs))
        (made_BLD, *_), _ = seen_by(own.o_proj, lambda: model(**batch.inputs))
    assert set(captured) == {0, 1}
    query, key, value = (
        heads(projection(named["hidden_states"]), 8) for projection in (own.q_proj, own.k_proj, own.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *named["position_embeddings"])
    torch.testing.assert_close(parts_of(captured[1]), (query, key, value), rtol=0, atol=0)
    assert captured[1].parts_BHLD["keys"].shape == (2, 2, 6, 8)
    torch.testing.assert_close(attended(*parts_of(captured[1]), causal=True), made_BLD)


@pytest.mark.parametrize("kind", ["bert", "llama", "gemma2"])
def test_captured_of_packed_rows_is_what_rows_alone_give(kind: str) -> None:
    model, rows = make(kind), make_rows()
    layer = model.bert.encoder.layer[1] if kind == "bert" else model.model.layers[1]
    attention = taken_over(model)
    with attention.capture({1: layer}) as captured:
        packed_outputs(attention, rows)
        packed = parts_of(captured[1])
        each = []
        for row in rows:
            alone_outputs(model, [row])
            each.append(parts_of(captured[1]))
    expected = [torch.cat(parts, dim=2) for parts in zip(*each, strict=True)]
    torch.testing.assert_close(list(packed), expected, rtol=2e-5, atol=2e-5)


def test_a_layer_that_runs_twice_cannot_be_captured() -> None:
    model = make("albert")
    shared_layer = model.albert.encoder.albert_layer_groups[0]
    with taken_over(model).capture({1: shared_layer}), pytest.raises(TeacherError, match="more than once in layer 1"):
        alone_outputs(model, make_rows((3,)))


# Models that are not ours to touch


def test_unknown_code_is_left_alone() -> None:
    class OfSomeoneElse(transformers.BertForMaskedLM):
        pass

    assert Attention.take_over(OfSomeoneElse(make("bert").config).eval()) is None


def test_another_attention_function_is_left_in_place() -> None:
    AttentionInterface.register("someone's", sdpa_attention_forward)
    AttentionMaskInterface.register("someone's", sdpa_mask)
    model = make("bert")
    model.set_attn_implementation("someone's")
    assert Attention.take_over(model) is None
    assert model.config._attn_implementation == "someone's"


def test_a_compiled_model_is_left_alone() -> None:
    model = make("bert")
    model.compile(backend="eager")
    assert Attention.take_over(model) is None


# Nothing stays behind


def test_a_closed_capture_takes_no_more() -> None:
    model, rows = make("bert"), make_rows((3, 3))
    attention = taken_over(model)
    with attention.capture({0: model.bert.encoder.layer[0]}) as captured:
        outputs(model, packed_inputs(rows[:1], 0, model.device))
    kept = captured[0]
    for _ in range(2):
        packed_outputs(attention, rows)
    assert captured[0] is kept


def test_other_models_take_no_notice_of_an_open_context() -> None:
    model, other, rows = make("bert"), make("bert", seed=1), make_rows()
    attention, others = taken_over(model), taken_over(other)
    alone, captured = alone_outputs(other, rows), {}
    with ExitStack() as open_contexts:
        open_contexts.enter_context(attention.packed(ROW_LENGTHS))
        captured = open_contexts.enter_context(attention.capture({0: model.bert.encoder.layer[0]}))
        assert_identical(alone_outputs(other, rows), alone)
        assert_same(packed_outputs(others, rows[:2]), alone_outputs(other, rows[:2]))
        assert not captured
        assert_same(packed_outputs(attention, rows), alone_outputs_of_twin(rows))
        assert captured


def alone_outputs_of_twin(rows: Sequence[TokenizedRow]) -> tuple[Tensor, Tensor]:
    return alone_outputs(make("bert"), rows)


def test_nothing_stays_behind_when_a_forward_pass_fails() -> None:
    model, rows = make("gemma2"), make_rows()
    alone, attention = alone_outputs(model, rows), taken_over(model)
    layer = model.model.layers[0]
    with pytest.raises(IndexError), attention.capture({0: layer}), attention.packed(ROW_LENGTHS):
        outputs(model, {"input_ids": torch.tensor([[VOCABULARY]])})
    assert model.config._attn_implementation == "eager"
    assert not model._forward_pre_hooks
    assert not routes_module._ROUTES
    assert_identical(alone_outputs(model, rows), alone)
    assert_same(packed_outputs(attention, rows), alone)


def test_one_model_is_not_routed_twice() -> None:
    model = make("bert")
    one, other = taken_over(model), taken_over(model)
    with one.capture({}), pytest.raises(TeacherError, match="another Attention"), other.packed([3]):
        pass
    assert_identical(alone_outputs(model, make_rows((3,))), alone_outputs(make("bert"), make_rows((3,))))


# The kernel for rows of varying length, which only CUDA has: that it is asked the right thing


@pytest.mark.parametrize("kind", ["bert", "llama", "mistral"])
def test_the_kernel_for_rows_of_varying_length_is_told_everything(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make(kind), make_rows()
    attention = taken_over(model)
    calls = SimpleNamespace(count=0)

    def varlen(
        query: Tensor, key: Tensor, value: Tensor, ends: Tensor, ends_k: Tensor, *longest: int, **options: Any
    ) -> Tensor:
        calls.count += 1
        assert options["enable_gqa"] == (query.shape[1] != key.shape[1])
        assert longest == (max(ROW_LENGTHS),) * 2
        assert ends.dtype == torch.int32
        assert ends is ends_k
        assert options["scale"] == pytest.approx(query.shape[-1] ** -0.5)
        causal = options["window_size"] == (-1, 0)
        each = [
            attended(*(part[start:stop].transpose(0, 1)[None] for part in (query, key, value)), causal)[0]
            for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ]
        return torch.cat(each).unflatten(-1, query.shape[1:])

    monkeypatch.setattr(packing, "varlen_attn", varlen)
    monkeypatch.setattr(attention_module, "varlen_serves", lambda query, value: True)
    assert_same(packed_outputs(attention, rows), alone_outputs(model, rows))
    # Rows longer than Mistral's window need a mask, which the kernel does not take.
    assert calls.count == (0 if kind == "mistral" else 2)
