"""Queries, keys and values computed from inputs of attention are those that `--relations` stores; so are losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shared import Dump
from shared.dump.signals import RELATIONS, SignalKey
from shared.errors import RecipeError
from student_train.data.sources import DumpSource
from student_train.forward.observe import targets_of
from student_train.losses.hidden import HiddenLoss
from student_train.losses.relations import RelationLoss
from tests.student_train.losses.batches import batch_of, loss_of, student_of

# Post-LN, pre-LN with a fused projection, rotation with fewer keys and values, norms of queries and keys.
TEACHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("encoder", {}),
    "gpt2": ("causal-lm", {}),
    "llama": ("causal-lm", {"num_key_value_heads": 2}),
    "qwen3": ("causal-lm", {"num_key_value_heads": 2, "head_dim": 8}),
}
MakeDump = Callable[..., Path]
# In float16, which `--relations` has by default.
ROUNDING = 2e-3


@pytest.fixture(scope="module")
def dumps(make_dump: MakeDump, make_teacher: Callable[..., Path]) -> Callable[..., tuple[DumpSource, DumpSource]]:
    """dumps(kind, codec="float16") -> the same rows with queries, keys and values, and with inputs of attention."""
    stored: dict[str, tuple[Path, DumpSource]] = {}

    def make(kind: str, codec: str = "float16") -> tuple[DumpSource, DumpSource]:
        task, config = TEACHERS[kind]
        common: dict[str, Any] = {"top_k": 2} if task == "causal-lm" else {"hidden": "none"}
        if kind not in stored:
            teacher = make_teacher(task, kind, **config)
            stored[kind] = (
                teacher,
                DumpSource(make_dump(task, teacher=teacher, **{**common, "hidden": "all"}, relations="all")),
            )
        teacher, relations = stored[kind]
        inputs = make_dump(task, teacher=teacher, **common, attention_inputs="all", attention_inputs_codec=codec)
        return relations, DumpSource(inputs)

    return make


@pytest.mark.parametrize("kind", TEACHERS)
def test_computed_queries_keys_and_values_are_the_stored_ones(kind: str, dumps: Callable[..., Any]) -> None:
    relations, inputs = dumps(kind)
    stored, computed = (targets_of(batch_of(source), source).vectors for source in (relations, inputs))
    for layer in (1, 2):
        for part in RELATIONS:
            key = SignalKey(part, layer)
            assert inputs.widths[key] == relations.widths[key] == computed[key].width
            expected, found = stored[key].decode(slice(None)), computed[key].decode(slice(None))
            torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
            # Any tokens, in any order.
            some = torch.tensor([5, 0, 11])
            torch.testing.assert_close(computed[key].decode(some), found[some])


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_relations_from_inputs_teach_a_student_the_same(kind: str, dumps: Callable[..., Any]) -> None:
    heads = 4
    for spec in (
        RelationLoss(teacher_layer=1, relation_heads=2),
        RelationLoss(last=2, pairs=("values",), relation_heads=2),
        *([RelationLoss(own_heads=True, pairs=("attention",), metric="mse")] if kind == "bert" else []),
    ):
        losses, gradients = [], []
        for source in dumps(kind):
            student = student_of(width=32, heads=heads)
            student.resize_token_embeddings(source.vocabulary)
            spec.check(source)
            spec.check_student(source, student)
            loss = loss_of(spec, student, nn.ModuleDict(), source, batch_of(source))
            loss.backward()
            losses.append(loss.item())
            gradients.append(torch.cat([each.grad.flatten() for each in student.parameters() if each.grad is not None]))
        assert losses[1] == pytest.approx(losses[0], rel=0.01)
        assert losses[0] > 1e-4
        assert torch.cosine_similarity(*gradients, dim=0) > 0.999


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_input_of_a_layer_is_the_hidden_state_below_it(kind: str, dumps: Callable[..., Any]) -> None:
    relations, inputs = dumps(kind)
    stored, computed = (targets_of(batch_of(source), source).vectors for source in (relations, inputs))
    for layer in (0, 1):
        key = SignalKey("hidden", layer)
        torch.testing.assert_close(computed[key].decode(slice(None)), stored[key].decode(slice(None)))
    assert SignalKey("hidden", 2) not in inputs.signals
    HiddenLoss(teacher_layer=1, student_layer=1).check(inputs)
    with pytest.raises(RecipeError, match=r"needs the signal 'hidden.2', which .* lacks; it has .*hidden.1"):
        HiddenLoss(teacher_layer=2, student_layer=1).check(inputs)


def test_stored_vectors_are_used_where_a_dump_has_both(make_dump: MakeDump) -> None:
    source = DumpSource(make_dump("encoder", hidden="1", relations="2", attention_inputs="all"))
    assert source.columns_of({SignalKey("queries", 2)}) == ["queries.2"]
    assert source.columns_of({SignalKey("hidden", 1)}) == ["hidden.1"]
    inputs = ["attention_inputs.1.codes", "attention_inputs.1.scale"]
    assert source.columns_of({SignalKey("queries", 1), SignalKey("keys", 1), SignalKey("hidden", 0)})[:2] == inputs


def test_a_loss_reads_the_columns_of_the_inputs_once(dumps: Callable[..., Any]) -> None:
    _, inputs = dumps("bert", "int8")
    spec = RelationLoss(last=2)
    columns = inputs.columns_of(spec.signals(inputs.signals))
    assert len(columns) == len(set(columns))
    assert {column.rsplit(".", 1)[0] for column in columns} == {"attention_inputs.1", "attention_inputs.2"}


def test_int8_inputs_leave_relations_as_they_are_nearly(dumps: Callable[..., Any]) -> None:
    _, inputs = dumps("bert", "int8")
    manifest = Dump(inputs.name).manifest
    for layer in (1, 2):
        measured = manifest.measured[f"attention_inputs.{layer}"]
        assert 0 < measured["relations_kl"] < 1e-2
        assert measured["relative_error"] < 1e-3
    assert "KL of relations" in manifest.measured_in_words("attention_inputs.1")


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (RelationLoss(teacher_layer=3), r"needs queries.3, keys.3, values.3, which .* lacks; it has .*queries.2"),
        (RelationLoss(relation_heads=5), r"relation_heads = 5: the teacher's queries are 32 wide and the student's 24"),
        (RelationLoss(own_heads=True), r"the student has 6 heads and the teacher 4"),
        (RelationLoss(last=3), r"needs the relations of 3 of the teacher's layers, but .* has those of 2"),
    ],
)
def test_a_loss_that_the_inputs_do_not_serve_is_refused(
    spec: RelationLoss, problem: str, dumps: Callable[..., Any]
) -> None:
    _, inputs = dumps("bert")

    def checked() -> None:
        spec.check(inputs)
        spec.check_student(inputs, student_of(heads=6))

    with pytest.raises(RecipeError, match=problem):
        checked()
