"""Layers above the last recorded one do not run, and what the others say is what transformers says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from shared import Dump
from teacher_dump.annotate import annotate, prepare
from teacher_dump.engines.transformers.layers import Layers
from teacher_dump.request import Request

pytestmark = pytest.mark.usefixtures("no_hang")

LAYERS, WIDTH, VOCABULARY, LENGTH = 4, 32, 64, 11

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_inner": 64},
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 64},
    "modernbert": {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
}
DEFAULT_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
KINDS = ("bert", "llama", "gpt2", "distilbert", "roberta", "modernbert", "electra", "gpt_neox")


def tiny(kind: str, **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    entries = {"vocab_size": VOCABULARY, **tokens, **SIZES.get(kind, DEFAULT_SIZES), **config}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **entries)).eval().requires_grad_(False)
    model.config.use_cache = False
    # So that every weight counts: fresh ones are small and biases zero.
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def batch() -> dict[str, Any]:
    """Two rows of tokens, the second one padded."""
    ids_BL = torch.randint(1, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 7:] = 0
    return {"input_ids": ids_BL * mask_BL, "attention_mask": mask_BL, "return_dict": True}


class Watch:
    """How often each layer of a trunk has run."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.runs = [0] * len(modules)
        for index, module in enumerate(modules):
            module.register_forward_hook(lambda *_, index=index: self._count(index))

    def _count(self, index: int) -> None:
        self.runs[index] += 1


def whole(model: PreTrainedModel) -> tuple[Tensor, ...]:
    return model(**batch(), output_hidden_states=True).hidden_states


def hooks(model: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


# --- layer by layer --------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(request.param)


@torch.inference_mode()
@pytest.mark.parametrize("wanted", [{0}, {2}, {3}, {0, 3}, {1, 2, 3}, {0, 1}], ids=str)
def test_stopped_early_the_layers_say_what_they_say_in_the_whole_model(
    wanted: set[int], model: PreTrainedModel
) -> None:
    trunk = Layers(model)
    assert trunk.stops
    expected, before = whole(model), hooks(model)
    assert len(expected) == LAYERS + 1
    found = trunk.run(batch(), wanted)
    assert set(found) == wanted
    for layer in wanted:
        assert torch.equal(found[layer], expected[layer]), layer
    assert hooks(model) == before, "a hook is left behind"


@torch.inference_mode()
def test_layers_above_the_last_wanted_one_do_not_run(model: PreTrainedModel) -> None:
    trunk = Layers(model)
    for last in range(LAYERS):
        watch = Watch(trunk.modules)
        trunk.run(batch(), {0, last})
        # A hook that stops the model may come before the one that counts.
        assert watch.runs[: max(0, last - 1)] == [1] * max(0, last - 1)
        assert watch.runs[last:] == [0] * (LAYERS - last)


@torch.inference_mode()
def test_hooks_are_gone_when_the_model_fails(model: PreTrainedModel) -> None:
    trunk, before = Layers(model), hooks(model)
    broken = {**batch(), "input_ids": torch.full((2, LENGTH), VOCABULARY + 5)}
    with pytest.raises((IndexError, RuntimeError)):
        trunk.run(broken, {1})
    assert hooks(model) == before


def test_layers_are_counted_from_one(model: PreTrainedModel) -> None:
    trunk = Layers(model)
    assert len(trunk.modules) == LAYERS
    assert [type(module) for module in trunk.modules] == [type(trunk.modules[0])] * LAYERS


# --- models that go their own ways -----------------------------------------------------------------------------------


def test_a_model_that_does_not_report_what_its_layers_say_is_run_whole() -> None:
    """Some scale or normalise what is between two layers."""
    model = tiny("bert")
    forward = model.forward

    def strange(*arguments: Any, **named: Any) -> Any:
        output = forward(*arguments, **named)
        first, second, *others = output.hidden_states
        return type(output)(output.last_hidden_state, hidden_states=(first, 2 * second, *others))

    assert Layers(model).stops
    before = hooks(model)  # transformers leaves some of its own
    model.forward = strange
    assert not Layers(model).stops
    assert hooks(model) == before


def test_a_model_without_a_list_of_layers_is_run_whole() -> None:
    model = tiny("bert")
    model.config.num_hidden_layers = LAYERS + 1
    trunk = Layers(model)
    assert not trunk.stops
    assert trunk.modules == ()


def test_weights_of_nan_are_reported_later_and_do_not_look_like_a_strange_model() -> None:
    model = tiny("bert")
    model.encoder.layer[1].output.dense.bias.data[0] = torch.nan
    assert Layers(model).stops


# --- whole dumps -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(make_teacher: Any) -> Path:
    return make_teacher("encoder", num_hidden_layers=LAYERS)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Watch]:
    """What has run since a teacher was loaded, for each teacher that was."""
    watches: list[Watch] = []
    load = Layers.__init__

    def watched(trunk: Layers, model: PreTrainedModel) -> None:
        load(trunk, model)
        watches.append(Watch(trunk.modules))

    monkeypatch.setattr(Layers, "__init__", watched)
    return watches


def recorded(out: Path, layer: int) -> dict[int, np.ndarray[Any, Any]]:
    """Row -> its hidden states [L, D]."""
    frame = Dump(out).vectors(f"hidden.{layer}").collect()
    return {
        int(row): np.stack(part["vector"].to_numpy().tolist())
        for (row,), part in frame.sort("row", "position").partition_by("row", as_dict=True).items()
    }


def expected_of(teacher: Path, texts: list[str], layer: int) -> list[Tensor]:
    model, tokenizer = AutoModel.from_pretrained(teacher).eval(), AutoTokenizer.from_pretrained(teacher)
    with torch.inference_mode():
        return [
            model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]
            for text in texts
        ]


@pytest.mark.parametrize(
    ("hidden", "layers"), [("0", (0,)), ("1", (1,)), ("0,2", (0, 2)), ("last", (4,)), ("1,4", (1, 4))]
)
def test_a_dump_holds_what_transformers_says_and_costs_no_layer_too_many(
    hidden: str, layers: tuple[int, ...], teacher: Path, make_dump: Any, texts: list[str], counted: list[Watch]
) -> None:
    out = make_dump("encoder", teacher=teacher, data=texts[:20], hidden=hidden, pooling="none")
    (watch,) = counted
    last = max(layers)
    assert watch.runs[last:] == [0] * (LAYERS - last)
    assert all(runs > 0 for runs in watch.runs[: max(0, last - 1)])
    for layer in layers:
        found = recorded(out, layer)
        assert sorted(found) == list(range(20))
        for row, expected in enumerate(expected_of(teacher, texts[:20], layer)):
            np.testing.assert_allclose(found[row], expected.numpy(), rtol=2e-3, atol=2e-3)


def test_with_a_distribution_the_whole_teacher_runs(
    make_teacher: Any, make_dump: Any, texts: list[str], counted: list[Watch]
) -> None:
    make_dump("masked-lm", teacher=make_teacher("masked-lm", num_hidden_layers=LAYERS), data=texts[:9], hidden="1")
    assert min(counted[0].runs) > 0


def test_a_teacher_that_cannot_be_stopped_is_recorded_all_the_same(
    teacher: Path, write_corpus: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_corpus(tmp_path / "corpus.jsonl", texts[:20])
    request = Request(
        str(teacher), "encoder", (str(data),), tmp_path / "dump", hidden="1,2", max_length=64, device="cpu"
    )
    monkeypatch.setattr(Layers, "_same_as", lambda *_: False)
    plan = prepare(request)
    watch = Watch(plan.engine.teacher.trunk.modules)
    annotate(plan)
    assert min(watch.runs) > 0
    for layer in (1, 2):
        found = recorded(request.out, layer)
        for row, expected in enumerate(expected_of(teacher, texts[:20], layer)):
            np.testing.assert_allclose(found[row], expected.numpy(), rtol=2e-3, atol=2e-3)
    assert Dump(request.out).scan().select(pl.len()).collect().item() == 20
