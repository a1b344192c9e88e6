"""`dump --importance`: against masks and gradients of weights by hand, in float64, one row at a time."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from shared import Dump, DumpError
from shared.dump.inspection import facts
from shared.errors import TeacherError, UsageError
from shared.text.tokenized import TokenizedRow
from student_train.data.sources import DumpSource
from teacher_dump import annotate as annotate_module
from teacher_dump.annotate import annotate, prepare
from teacher_dump.engines.callable import CallableTeacher
from teacher_dump.engines.transformers.importance import _product
from teacher_dump.estimate import estimate
from teacher_dump.plan import Plan
from teacher_dump.request import Request
from teacher_dump.tensor_files import importance
from teacher_dump.tensor_files.importance import measured
from tests.conftest import LABELS

FILE = "weights/importance.safetensors"
TASK = "sequence-classification"
ROWS = 7
# Architecture -> its layers, and in each the projection of the heads' outputs, those into the neurons, the one out.
PARTS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "bert": ("encoder.layer", "attention.output.dense", ("intermediate.dense",), "output.dense"),
    "roberta": ("encoder.layer", "attention.output.dense", ("intermediate.dense",), "output.dense"),
    "distilbert": ("transformer.layer", "attention.out_lin", ("ffn.lin1",), "ffn.lin2"),
    "gpt2": ("h", "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj"),
    "llama": ("layers", "self_attn.o_proj", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    "gpt_neox": ("layers", "attention.dense", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
}
# As many neurons as channels in some, so that no shape tells the projections apart.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": (TASK, "bert", {}),
    "bert, narrow": (TASK, "bert", {"intermediate_size": 32}),
    "bert, masked-lm": ("masked-lm", "bert", {}),
    "bert, tags": ("token-classification", "bert", {}),
    "bert, encoder": ("encoder", "bert", {}),
    "roberta": (TASK, "roberta", {"max_position_embeddings": 70, "pad_token_id": 0}),
    "distilbert": (TASK, "distilbert", {}),
    "gpt2": ("causal-lm", "gpt2", {}),
    "gpt2, one row at a time": (TASK, "gpt2", {}),
    "llama, grouped": ("causal-lm", "llama", {"num_key_value_heads": 2}),
    "llama, biased": ("causal-lm", "llama", {"mlp_bias": True, "intermediate_size": 32}),
    "gpt-neox, parallel": ("causal-lm", "gpt_neox", {}),
}


@pytest.fixture
def request_for(make_teacher: Any, write_corpus: Any, texts: list[str], tmp_path: Path) -> Callable[..., Request]:
    """request_for(task, model_type, config, **options) -> a command over a corpus of 12 rows, some without a label."""

    def make(task: str = TASK, kind: str | None = None, config: Any = None, **options: Any) -> Request:
        rows: list[dict[str, Any]] = [{"text": text} for text in texts[:12]]
        if task == TASK:
            rows = [row | {"label": LABELS[at % 3]} if at % 4 else row for at, row in enumerate(rows)]
        if task == "token-classification":
            words = [text.split() or ["x"] for text in texts[:12]]
            rows = [{"tokens": each, "tags": ["O", "B-X", "I-X"][: len(each)] + ["O"] * (len(each) - 3)}
                    for each in words]  # fmt: skip
        data = write_corpus(tmp_path / f"{task}.jsonl", rows)
        hidden = "last" if task == "encoder" else "none"
        given = {"teacher": str(make_teacher(task, kind, **(config or {}))), "task": task, "data": (str(data),),
                 "out": tmp_path / "dump", "max_length": 24, "shard_rows": 4, "device": "cpu", "hidden": hidden,
                 "importance": ROWS}  # fmt: skip
        return Request(**given | options)

    return make


# --- the reference ---------------------------------------------------------------------------------------------------


def by_hand(model: PreTrainedModel, kind: str, task: str, rows: list[tuple[int, TokenizedRow]]) -> dict[str, Tensor]:
    """Each row alone, without padding: masks of ones on the heads, and gradients of the weights themselves."""
    stack, projection, into, out = PARTS[kind]
    layers = list(model.base_model.get_submodule(stack))
    heads = model.config.num_attention_heads
    model.requires_grad_(True)
    masks = [torch.ones(heads, dtype=torch.float64, requires_grad=True) for _ in layers]

    def masked(mask: Tensor) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (given[0] * mask.repeat_interleave(given[0].shape[-1] // heads),)

        return hook

    hooks = [
        layer.get_submodule(projection).register_forward_pre_hook(masked(mask))
        for layer, mask in zip(layers, masks, strict=True)
    ]
    total: dict[str, Any] = {"heads": 0, "neurons": 0, "residual": 0}
    for number, row in rows:
        found = model(input_ids=torch.from_numpy(row.input_ids).long()[None], output_hidden_states=True)
        for state in found.hidden_states:
            state.retain_grad()
        loss = loss_by_hand(task, found, number, row)
        if loss is None:
            continue
        model.zero_grad()
        for mask in masks:
            mask.grad = None
        loss.backward()
        total["heads"] += torch.stack([mask.grad.abs() for mask in masks])
        neurons = []
        for layer in layers:
            terms = [of_neurons(layer.get_submodule(name), 0).abs() for name in into]
            neurons.append(sum(terms) + of_neurons(layer.get_submodule(out), 1).abs())
        total["neurons"] += torch.stack(neurons)
        total["residual"] += sum(
            (state * (torch.zeros_like(state) if state.grad is None else state.grad)).abs().sum((0, 1)).detach()
            for state in found.hidden_states
        )
    for hook in hooks:
        hook.remove()
    model.requires_grad_(False)
    return total


def of_neurons(module: Any, side: int) -> Tensor:
    """The sum of weight times gradient of each neuron, on the output side (0, with the bias) or the input side (1)."""
    weight, grad = module.weight.detach(), module.weight.grad
    if isinstance(module, nn.Linear):
        weight, grad = weight.T, grad.T
    products = (weight * grad).sum(side)  # [into, out]
    return products + module.bias.detach() * module.bias.grad if side == 0 and module.bias is not None else products


def loss_by_hand(task: str, found: Any, number: int, row: TokenizedRow) -> Tensor | None:
    labels = torch.from_numpy(row.labels).long()
    if task == "encoder":
        states_LD = found.last_hidden_state[0]
        drawn = torch.from_numpy(np.random.default_rng([0, number]).standard_normal(tuple(states_LD.shape)))
        return (states_LD * drawn).sum(-1).mean()
    known = labels != -100
    if not known.any():
        return None
    logits = found.logits if task == TASK else found.logits[0, torch.from_numpy(row.positions).long()]
    return functional.cross_entropy(logits[known], labels[known])


def in_float64(plan: Plan) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what the engine finds, what the reference finds), in float64 where the engine keeps it."""
    engine: Any = plan.engine
    model = engine.teacher.model.double()
    found = measured(plan.request, engine, plan.task, plan.loss_layout, plan.loss_rows(ROWS)).unwritten()
    kind = model.config.model_type
    return dict(found), by_hand(model, kind, plan.task.name, list(plan.loss_rows(ROWS)))


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_masks_and_gradients_of_weights_give(case: str, request_for: Any) -> None:
    task, kind, config = CASES[case]
    found, expected = in_float64(prepare(request_for(task, kind, config)))
    assert found.keys() == expected.keys() == {"heads", "neurons", "residual"}
    for name, values in found.items():
        assert values.dtype == torch.float32
        assert values.shape == expected[name].shape
        assert (values > 0).any()
        torch.testing.assert_close(values.double(), expected[name], rtol=1e-5, atol=1e-7)


def test_questions_have_two_losses_a_window(
    make_teacher: Any, write_corpus: Any, tmp_path: Path, request_for: Any
) -> None:
    rows = [
        {"question": "fox?", "context": "the quick brown fox jumps over a lazy dog", "answer_texts": ["lazy dog"],
         "answer_starts": [33]},
        {"question": "jugs?", "context": "some jugs of liquor", "answer_texts": ["jugs"], "answer_starts": [5]},
    ]  # fmt: skip
    data = write_corpus(tmp_path / "questions.jsonl", rows)
    task = "question-answering"
    plan = prepare(request_for(task, "bert", {}, data=(str(data),), max_length=40, stride=2))
    model = plan.engine.teacher.model.double()  # type: ignore[attr-defined]
    found = measured(plan.request, plan.engine, plan.task, plan.loss_layout, plan.loss_rows(ROWS)).unwritten()
    state_2 = torch.zeros(model.config.hidden_size, dtype=torch.float64)
    for _, row in plan.loss_rows(ROWS):
        types = torch.from_numpy(row.token_type_ids).long()[None]
        with torch.enable_grad():
            states = model.bert(torch.from_numpy(row.input_ids).long()[None], token_type_ids=types)[0].detach()
            states.requires_grad_()
            logits_P2 = model.qa_outputs(states)[0, torch.from_numpy(row.positions).long()]
            gold = [int(np.flatnonzero(row.labels & mark)[0]) for mark in (1, 2)]
            loss = sum(functional.cross_entropy(logits_P2[:, at], torch.tensor(gold[at])) for at in (0, 1)) / 2
            loss.backward()
        state_2 += (states * states.grad).abs().sum((0, 1)).detach()
    last_only = {}

    def keep(batches: Any, loss: Any) -> Mapping[str, Tensor]:
        for batch in batches:
            output = model(**batch.inputs, output_hidden_states=True)
            state = output.hidden_states[-1].detach().requires_grad_()
            logits = model.qa_outputs(state)
            grad = torch.autograd.grad(loss(logits, state, batch), state)[0]
            last_only["residual"] = last_only.get("residual", 0) + (state * grad).abs().sum((0, 1)).detach()
        return last_only

    plan.engine.importance = keep  # type: ignore[assignment]
    measured(plan.request, plan.engine, plan.task, plan.loss_layout, plan.loss_rows(ROWS))
    torch.testing.assert_close(last_only["residual"], state_2)
    assert (found["residual"].double() >= state_2 - 1e-6).all()


@pytest.mark.parametrize("tokens", [1, 60, 2048])
def test_it_does_not_matter_how_rows_are_batched(tokens: int, request_for: Any) -> None:
    whole = prepare(request_for()).manifest.tensor_files["importance"].unwritten()
    other = prepare(request_for(batch_tokens=tokens)).manifest.tensor_files["importance"].unwritten()
    for name, values in whole.items():
        torch.testing.assert_close(other[name], values, rtol=1e-4, atol=1e-6)


def test_padding_counts_for_nothing_whatever_is_there() -> None:
    tensor_BLD = torch.ones(2, 3, 4)
    tensor_BLD[1, 2] = torch.nan
    is_token_BL = torch.tensor([[True, True, True], [True, True, False]])
    found = _product(tensor_BLD, torch.full((2, 3, 4), 2.0), is_token_BL)
    assert found.sum() == 2 * 4 * 5
    assert not _product(tensor_BLD, None, is_token_BL).any()


def test_masks_are_drawn_whatever_positions_the_dump_records(request_for: Any) -> None:
    masked, everywhere = (
        prepare(request_for("masked-lm", "bert", {}, positions=choice, top_k=3)) for choice in ("masked", "all")
    )
    assert masked.manifest.tensor_files == everywhere.manifest.tensor_files


# --- the dump --------------------------------------------------------------------------------------------------------


def test_a_dump_keeps_it_once(request_for: Any) -> None:
    request = request_for()
    annotate(prepare(request))
    dump = Dump(request.out)
    found = dump.importance()
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "heads": (2, 4), "neurons": (2, 64), "residual": (32,),
    }  # fmt: skip
    size = 4 * (8 + 128 + 32)
    described = f"importance of heads, neurons and residual dimensions (3 tensors, {size} B, rows {ROWS})"
    assert ("weights", described) in facts(dump)
    assert f"| weights | the teacher's {described} |" in (dump.path.local / "README.md").read_text()
    assert all(torch.equal(values, found[name]) for name, values in DumpSource(request.out).importance().items())
    assert dump.verify() == []
    (request.out / FILE).unlink()
    assert any(FILE in damage for damage in dump.verify())
    with pytest.raises(DumpError, match=f"{FILE}: missing"):
        dump.importance()


def test_a_dump_without_it_says_how_to_get_it(make_dump: Any) -> None:
    with pytest.raises(DumpError, match="dump again with --importance to keep them"):
        Dump(make_dump()).importance()


def test_a_dump_that_was_begun_keeps_what_was_measured_then(request_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other hardware the last digits differ; it is not even measured again."""
    request = request_for()
    annotate(prepare(request))
    out = Path(request.out)
    whole = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    for path in (out / "shards").glob("*00001*"):
        path.unlink()
    before = (out / FILE).read_bytes()
    plan = prepare(request_for(out=Path("elsewhere")))
    monkeypatch.setattr(annotate_module, "measured", lambda *given: pytest.fail("measured again"))
    other = json.loads((out / "manifest.json").read_text())["tensor_files"]["importance"]
    assert plan.manifest.tensor_files["importance"].sha256 == other["sha256"], "the same twice"
    annotate(prepare(request))
    assert (out / FILE).read_bytes() == before
    assert {path.name: path.read_bytes() for path in (out / "shards").iterdir()} == whole
    for options, message in (
        ({"importance": 5}, r"tensor_files\.importance\.facts\.rows: the dump has 7, this command asks for 5"),
        ({"importance": None}, r"tensor_files\.importance\.bytes: the dump has \d+, this command asks for none"),
    ):
        with pytest.raises(UsageError, match=message):
            annotate(prepare(request_for(**options)))


def test_processes_that_measured_it_apart_use_that_of_the_one_that_began(request_for: Any) -> None:
    request = request_for()
    late = prepare(request)
    file = late.manifest.tensor_files["importance"]
    object.__setattr__(file, "sha256", "1" * 64)  # other last digits
    annotate(prepare(request))
    for path in (Path(request.out) / "shards").glob("*00001*"):
        path.unlink()
    annotate(late)
    assert Dump(request.out).verify() == []


def test_the_dry_run_counts_it(request_for: Any) -> None:
    sizes = [estimate(prepare(request_for(importance=count))).bytes for count in (ROWS, None)]
    assert sizes[0] - sizes[1] == 4 * (8 + 128 + 32)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_loss_without_labels_is_refused_before_the_teacher_is_loaded(
    request_for: Any, write_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_corpus(tmp_path / "bare.jsonl", ["the fox", "a dog", "jugs"])
    monkeypatch.setattr("teacher_dump.engines.transformers.loading.load_teacher", lambda *given: pytest.fail("loaded"))
    match = f"--importance 7: the loss of {TASK} needs gold labels, but no row of the corpus has one"
    with pytest.raises(UsageError, match=match):
        prepare(request_for(data=(str(data),)))


def test_first_rows_without_labels_are_refused(request_for: Any) -> None:
    with pytest.raises(UsageError, match="none of the first 1 rows of the corpus has a gold label; ask for more rows"):
        prepare(request_for(importance=1))


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("albert", {"embedding_size": 16}, "it is no single stack of layers"),
        ("mpnet", {}, "its attention cannot be looked into"),
    ],
)
def test_architectures_without_plain_layers_are_refused(
    kind: str, config: dict[str, Any], reason: str, request_for: Any, tiny_tokenizer: Any, make_teacher: Any
) -> None:
    teacher = str(make_teacher(TASK, kind, tokenizer=tiny_tokenizer, **config))
    with pytest.raises(
        TeacherError, match=f"--importance: the heads and neurons of .* are not found, because {reason}"
    ):
        prepare(request_for(teacher=teacher))


def test_a_callable_is_refused(request_for: Any, tiny_tokenizer: Any) -> None:
    class Bag(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return torch.zeros(len(input_ids), 3)

    with pytest.raises(TeacherError, match="--importance: Bag is no model of transformers"):
        prepare(request_for(teacher=CallableTeacher(Bag(), tiny_tokenizer, label_names=LABELS)))


def test_gradients_that_are_nan_are_refused(request_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importance, "cross_entropy", lambda layout: lambda logits, states, batch: logits.sum() * torch.nan
    )
    with pytest.raises(TeacherError, match="--importance: NaN or infinity in the teacher's gradients"):
        prepare(request_for())


def test_memory_that_runs_out_is_one_sentence(request_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(logits: Tensor, states: Tensor, batch: Any) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(importance, "cross_entropy", lambda layout: no_memory)
    with pytest.raises(TeacherError, match="the gradients of 2,048 tokens do not fit into the memory of cpu"):
        prepare(request_for())


def test_the_model_is_left_as_it_was(request_for: Any) -> None:
    plan = prepare(request_for(importance=None))
    model = plan.engine.teacher.model  # type: ignore[attr-defined]

    def state() -> list[Any]:
        hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
        return [hooks, model.config._attn_implementation, [weight.requires_grad for weight in model.parameters()]]

    before = state()
    measured(plan.request, plan.engine, plan.task, plan.loss_layout, plan.loss_rows(ROWS))
    assert state() == before
