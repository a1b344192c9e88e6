"""Queries, keys and values computed from a layer's input are those that the teacher uses, or the teacher is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared import Dump
from shared.dump.signals import RELATIONS
from shared.dump.weights.projections import from_file, to_file
from shared.errors import TeacherError, UsageError
from teacher_dump.engines.batch import pad
from teacher_dump.engines.callable import CallableTeacher
from teacher_dump.engines.transformers.attention import Attention
from teacher_dump.engines.transformers.layers import Layers
from teacher_dump.engines.transformers.projections import projections_of
from teacher_dump.engines.transformers.projections.layer_calls import block_of, columns_of
from teacher_dump.engines.transformers.teacher import Teacher
from teacher_dump.request import SignalRequest
from tests.shared.models.architectures import DOES_NOT_PACK, PACKS, PAD, make, make_rows

# ALBERT has one module for all layers, so that its layers cannot be told apart.
KINDS = [kind for kind in PACKS if kind != "albert"]


def teacher_of(model: PreTrainedModel) -> Teacher:
    """A teacher with norms and biases that are not the identity, as after training."""
    torch.manual_seed(1)
    for name, values in model.named_parameters():
        if "norm" in name.lower() or name.endswith("bias"):
            values.data += 0.3 * torch.randn_like(values)
    known = SimpleNamespace(model=model, trunk=Layers(model), attention=Attention.take_over(model))
    return cast(Teacher, known)


@torch.inference_mode()
def seen(teacher: Teacher, layer: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(the layer's inputs at all tokens, their places, queries, keys and values) for padded rows."""
    batch = pad(make_rows(), range(len(make_rows())), PAD)
    is_token_BL = batch.inputs["attention_mask"].bool()
    assert teacher.attention is not None
    with teacher.attention.capture({layer: teacher.trunk.modules[layer - 1]}) as captured:
        states = teacher.model.base_model(**batch.inputs, output_hidden_states=True).hidden_states
    parts = captured[layer].parts_BHLD.items()
    at_tokens = {part: states_BHLD.transpose(1, 2).flatten(2)[is_token_BL] for part, states_BHLD in parts}
    return states[layer - 1][is_token_BL], (is_token_BL.cumsum(1) - 1)[is_token_BL], at_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_teacher(kind: str) -> None:
    teacher = teacher_of(make(kind))
    for layer in (1, 2):
        found = projections_of(teacher, [layer], 40)
        tensors, facts = to_file(found)
        projections = from_file(tensors, facts)[layer]
        inputs_TD, places_T, expected = seen(teacher, layer)
        assert projections.input_width == inputs_TD.shape[1]
        for part in RELATIONS:
            made_TW = projections.part(part, inputs_TD, places_T)
            assert projections.facts.part(part).width == made_TW.shape[1]
            torch.testing.assert_close(made_TW, expected[part], rtol=0, atol=1e-4 * float(expected[part].abs().max()))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_teacher_in_half_precision_is_understood(kind: str) -> None:
    teacher = teacher_of(make(kind).to(torch.bfloat16))
    projections = projections_of(teacher, [2], 40)[2]
    assert projections.tensors["queries.weight"].dtype == torch.bfloat16
    inputs_TD, places_T, expected = seen(teacher, 2)
    for part in RELATIONS:
        most = float(expected[part].abs().max())
        made_TW = projections.in_type(torch.float32, inputs_TD.device).part(part, inputs_TD.float(), places_T)
        torch.testing.assert_close(made_TW, expected[part].float(), rtol=0, atol=0.05 * most)


def test_the_kinds_of_rotation_and_norms_are_told_apart() -> None:
    def facts(kind: str) -> Any:
        return projections_of(teacher_of(make(kind)), [2], 40)[2].facts

    assert facts("bert").queries.rotation is None
    assert facts("llama").keys.rotation == "halves"
    assert facts("cohere2").keys.rotation == "pairs"
    assert facts("phi").head_width == 8  # of which half is rotated
    assert facts("qwen3").queries.norm.kind == "rms"
    assert facts("gpt2").norm.kind == "layer"
    assert facts("opt").queries.scale == pytest.approx(8**-0.5)
    assert facts("qwen2").keys.width == 16


@pytest.mark.parametrize("constant", [0.0, 100.0])
def test_columns_of_a_fused_projection_are_found_in_any_order(constant: float) -> None:
    """With a large bias, as some trained models have it, all columns point in nearly the same direction."""
    torch.manual_seed(0)
    output_NK = torch.randn(50, 12) + constant * torch.rand(12)
    output_NK[:, 5] = 0
    index = torch.tensor([3, 7, 5, 11, 0])
    assert torch.equal(found(columns_of(output_NK[:, index], output_NK)), index)
    assert torch.equal(found(block_of(0.5 * output_NK[:, 2:8], output_NK, 2)), torch.arange(2, 8))
    assert columns_of(output_NK[:, index] + 0.1 * torch.randn(50, 5), output_NK) is None
    assert block_of(output_NK[:, 3:5], output_NK, 2) is None


def found(index: Tensor | None) -> Tensor:
    assert index is not None
    return index


def test_a_teacher_in_which_all_tokens_of_the_probe_are_alike_is_understood() -> None:
    """Untrained embeddings are nearly the same, and so are the states that are computed from them alone."""
    model = make("bert")
    embeddings = model.get_input_embeddings().weight.data
    embeddings[:] = embeddings[0] + 1e-4 * torch.randn_like(embeddings)
    teacher = teacher_of(model)
    projections = projections_of(teacher, [2], 40)[2]
    inputs_TD, places_T, expected = seen(teacher, 2)
    for part in RELATIONS:
        torch.testing.assert_close(projections.part(part, inputs_TD, places_T), expected[part], rtol=1e-4, atol=1e-4)


class Clipped(nn.Linear):
    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values).clamp(-0.5, 0.5)


class Doubled(nn.Module):
    """Something of the input that is no norm."""

    def forward(self, values: Tensor) -> Tensor:
        return values * values.sigmoid()


@pytest.mark.parametrize("change", ["clipped", "gate", "late"])
def test_a_teacher_that_does_something_else_is_refused(change: str) -> None:
    model = make("llama")
    attention = model.base_model.layers[1].self_attn
    if change == "clipped":
        attention.q_proj.__class__ = Clipped
    elif change == "gate":
        model.base_model.layers[1].input_layernorm = Doubled()
    else:  # the frequencies of late positions are others
        rotary, own = model.base_model.rotary_emb, model.base_model.rotary_emb.forward
        rotary.forward = lambda states, position_ids: own(states, position_ids + 3 * (position_ids > 30))
    teacher = teacher_of(model)
    with pytest.raises(TeacherError, match=r"--attention-inputs 2: the queries, keys and values of LlamaForCausalLM"):
        projections_of(teacher, [2], 40)
    if change == "late":
        assert projections_of(teacher, [2], 30)


def test_a_layer_without_attention_is_refused() -> None:
    teacher = teacher_of(make("jamba", num_hidden_layers=2))
    assert DOES_NOT_PACK["jamba"]["attn_layer_offset"] == 1
    with pytest.raises(TeacherError, match=r"--attention-inputs 1: .*the layer has no attention"):
        projections_of(teacher, [1], 40)
    assert projections_of(teacher, [2], 40)


MakeDump = Callable[..., Path]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"attention_inputs": "3"}, r"--attention-inputs '3': use none, last, all, or layers from 1 to 2 such as 1,2"),
        ({"attention_inputs": "0"}, r"--attention-inputs '0': use none, last, all, or layers from 1 to 2"),
        ({"attention_inputs": "1", "attention_inputs_codec": "int7"}, r"--attention-inputs-codec 'int7': use float16,"),
        ({"attention_inputs_codec": "int4"}, r"--attention-inputs-codec needs --attention-inputs"),
    ],
)
def test_a_mistaken_option_is_refused_before_anything_is_written(
    options: dict[str, str], problem: str, make_dump: MakeDump, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=problem):
        make_dump("encoder", out=tmp_path / "dump", **options)
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2", "albert"])
def test_an_architecture_that_does_not_show_its_attention_is_refused(
    kind: str, make_dump: MakeDump, make_teacher: Callable[..., Path], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    teacher = make_teacher("encoder", kind, tokenizer=tiny_tokenizer, embedding_size=32)
    with pytest.raises(TeacherError, match=r"signal 'attention_inputs.1': .* does not give its inputs of attention"):
        make_dump("encoder", teacher=teacher, out=tmp_path / "dump", hidden="none", attention_inputs="last")
    assert not (tmp_path / "dump").exists()


def test_a_dump_has_the_inputs_and_their_projections(make_dump: MakeDump, make_teacher: Callable[..., Path]) -> None:
    teacher = make_teacher("encoder")
    dump = Dump(make_dump("encoder", teacher=teacher, hidden="0,1", attention_inputs="all"))
    assert [signal.name for signal in dump.manifest.signals if signal.layer is not None] == [
        "hidden.0", "hidden.1", "attention_inputs.1", "attention_inputs.2",
    ]  # fmt: skip
    assert dump.manifest.teacher.attention_heads == 4
    assert dump.verify() == []
    for layer in (1, 2):
        inputs = dump.vectors(f"attention_inputs.{layer}").collect().sort("row", "position")
        hidden = dump.vectors(f"hidden.{layer - 1}").collect().sort("row", "position")
        found, expected = (torch.tensor(frame["vector"].to_list()) for frame in (inputs, hidden))
        torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) / 200)
    projections = dump.attention_projections()
    assert list(projections) == [1, 2]
    assert projections[2].facts.heads == 4
    assert dump.manifest.tensor_files["attention"].bytes == 2 * 3 * (32 * 32 + 32) * 4


def test_a_dump_that_was_cut_off_is_finished_by_the_same_command(
    make_dump: MakeDump, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    """The projections are found again, and must be those that the dump was begun with."""
    teacher, out = make_teacher("causal-lm", "opt", ffn_dim=64, word_embed_proj_dim=32), tmp_path / "dump"
    make_dump("causal-lm", teacher=teacher, out=out, top_k=2, attention_inputs="2")
    kept = (out / "shards" / "00001.parquet").read_bytes()
    for name in ("00001.parquet", "00001.json"):
        (out / "shards" / name).unlink()
    make_dump("causal-lm", teacher=teacher, out=out, top_k=2, attention_inputs="2")
    assert (out / "shards" / "00001.parquet").read_bytes() == kept
    assert Dump(out).verify() == []
    with pytest.raises(UsageError, match=r"attention_inputs.1"):
        make_dump("causal-lm", teacher=teacher, out=out, top_k=2, attention_inputs="all")


def test_python_code_may_ask_for_inputs_with_any_codec(make_dump: MakeDump) -> None:
    asked = (SignalRequest("attention_inputs", 2, "low-rank", {"rank": 8, "coefficients": "int8"}),)
    dump = Dump(make_dump("encoder", hidden="none", signals=asked))
    assert list(dump.attention_projections()) == [2]
    assert dump.manifest.measured["attention_inputs.2"]["relations_kl"] > 1e-3


def test_a_teacher_given_as_a_function_is_refused(make_dump: MakeDump, tiny_tokenizer: Any, tmp_path: Path) -> None:
    asked = {"attention_inputs": "last"}
    teacher = CallableTeacher(make("bert"), tiny_tokenizer)
    with pytest.raises(TeacherError, match=r"BertForMaskedLM does not give its inputs of attention"):
        make_dump("encoder", teacher=teacher, out=tmp_path / "d", hidden="none", pooling="none", **asked)
    assert not (tmp_path / "d").exists()
