"""Layer maps: by name or as a list, what they compare, and what is refused before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn
from transformers import AutoModel

from shared.dump.signals import SignalKey
from shared.errors import RecipeError
from student_train import distill
from student_train.data.sources import DumpSource
from student_train.losses.hidden import HiddenLoss
from student_train.losses.layer_maps import (
    LayerPair,
    fitted_map,
    last_map,
    named_map,
    pairs_of,
    refuse_missing,
    uniform_map,
)
from student_train.losses.projections import make_projections
from student_train.losses.relations import RelationLoss
from student_train.recipe.recipe import Recipe, overridden
from tests.student_train.losses.batches import batch_of, loss_of, student_of

ATTENTION = {"pairs": ("attention",), "own_heads": True, "metric": "mse"}
BILSTM = {"kind": "bilstm", "embedding_size": 6, "hidden_size": 8}
DEPTHS = some.integers(1, 40)


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("encoder", num_hidden_layers=4)


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path], teacher: Path) -> Path:
    return make_dump("encoder", teacher=teacher, hidden="all", relations="2,3,4")


@pytest.fixture(scope="module")
def source(dump: Path) -> DumpSource:
    return DumpSource(dump)


# ---------------------------------------------------------------- the maps themselves


@pytest.mark.parametrize(
    ("student", "teacher", "uniform", "last"),
    [
        (4, 12, (3, 6, 9, 12), (9, 10, 11, 12)),
        (3, 6, (2, 4, 6), (4, 5, 6)),
        (4, 6, (2, 3, 5, 6), (3, 4, 5, 6)),  # 1.5, 3, 4.5, 6
        (2, 5, (3, 5), (4, 5)),  # 2.5: a half is rounded up
        (1, 6, (6,), (6,)),
        (3, 3, (1, 2, 3), (1, 2, 3)),
        (4, 2, (1, 1, 2, 2), (0, 0, 1, 2)),
        (3, 1, (0, 1, 1), (0, 0, 1)),
    ],
)
def test_named_maps(student: int, teacher: int, uniform: tuple[int, ...], last: tuple[int, ...]) -> None:
    assert uniform_map(student, teacher) == named_map("uniform", student, teacher) == uniform
    assert last_map(student, teacher) == named_map("last", student, teacher) == last


@given(DEPTHS, DEPTHS)
def test_a_named_map_rises_to_the_top_layer(student: int, teacher: int) -> None:
    for made in (uniform_map(student, teacher), last_map(student, teacher)):
        assert len(made) == student
        assert list(made) == sorted(made)
        assert (made[0] >= 0, made[-1]) == (True, teacher)
    nearest = [layer * teacher / student for layer in range(1, student + 1)]
    assert all(abs(own - exact) <= 0.5 for own, exact in zip(uniform_map(student, teacher), nearest, strict=True))


def test_a_layer_with_a_zero_has_no_partner() -> None:
    assert pairs_of((0, 5, 0, 5, 2)) == (LayerPair(2, 5), LayerPair(4, 5), LayerPair(5, 2))


def test_a_map_is_made_for_the_layers_that_the_dump_has() -> None:
    assert fitted_map("uniform", 2, [1, 2, 3, 4], "x") == (2, 4)
    assert fitted_map("last", 2, [4, 8], "x") == (7, 8)
    assert fitted_map((4, 0), 2, [4], "x") == (4, 0)
    refuse_missing((4, 8), [4, 8], "x", "--hidden all")
    with pytest.raises(RecipeError, match=r"x lacks the teacher's layers 6, 7 \(it has 4, 8\); dump again with --hid"):
        refuse_missing((6, 7, 8), [4, 8], "x", "--hidden all")
    with pytest.raises(RecipeError, match=r"x lacks the teacher's layers \(it has none\)"):
        refuse_missing((), [], "x", "--hidden all")


def test_the_layers_of_a_named_map_must_be_there(dump: Path) -> None:
    few, model = DumpSource(dump), student_of(width=32)
    few.signals = {key: signal for key, signal in few.signals.items() if key.layer != 2}
    for kind in (HiddenLoss, RelationLoss):
        assert kind(map="last").for_student(few, model) == kind(map=(3, 4))
        with pytest.raises(RecipeError, match=r"lacks the teacher's layers 2 \(it has"):
            kind(map="uniform").for_student(few, model)


# ---------------------------------------------------------------- what they compare


@pytest.mark.parametrize("kind", [HiddenLoss, RelationLoss])
@pytest.mark.parametrize(
    ("given_map", "explicit"), [("uniform", (2, 4)), ("last", (3, 4)), ((0, 3), (0, 3)), ((4, 4), (4, 4))]
)
def test_a_map_is_the_sum_of_its_pairs_of_layers(
    kind: Any, given_map: Any, explicit: tuple[int, ...], source: DumpSource
) -> None:
    model, batch = student_of(width=32), batch_of(source)
    spec = kind(map=given_map).for_student(source, model)
    assert spec.map == explicit
    pairs = [(layer, teacher) for layer, teacher in enumerate(explicit, 1) if teacher]
    alone = sum(
        loss_of(kind(student_layer=own, teacher_layer=teacher), model, nn.ModuleDict(), source, batch).item()
        for own, teacher in pairs
    )
    value = loss_of(spec, model, nn.ModuleDict(), source, batch)
    assert value.item() == pytest.approx(alone, rel=1e-6)
    assert value.item() > 0


def test_only_the_layers_of_the_map_are_read(source: DumpSource) -> None:
    assert HiddenLoss(map=(4, 0, 2, 4)).signals(()) == (SignalKey("hidden", 4), SignalKey("hidden", 2))
    assert HiddenLoss(map=(0, 2)).student_layers == (2,)
    relations = RelationLoss(map=(0, 3, 3), pairs=("values",))
    assert relations.signals(source.signals) == (SignalKey("values", 3),)
    assert relations.attention_layers == (2, 3)


def test_a_student_that_is_its_teacher_has_no_loss_under_its_own_map(teacher: Path, source: DumpSource) -> None:
    """Hidden state 0 is that of the embeddings in both."""
    itself, batch = AutoModel.from_pretrained(teacher).eval(), batch_of(source)
    for name in ("uniform", "last"):
        spec = HiddenLoss(map=name, embeddings=True).for_student(source, itself)
        assert (spec.map, spec.student_layers) == ((1, 2, 3, 4), (0, 1, 2, 3, 4))
        assert loss_of(spec, itself, nn.ModuleDict(), source, batch).item() < 1e-5
    shifted = HiddenLoss(map=(2, 3, 4, 0), embeddings=True).for_student(source, itself)
    assert loss_of(shifted, itself, nn.ModuleDict(), source, batch).item() > 0.01


def test_the_embeddings_are_compared_beside_the_map(source: DumpSource) -> None:
    model, batch = student_of(width=32), batch_of(source)
    both, without, alone = (
        loss_of(spec, model, nn.ModuleDict(), source, batch).item()
        for spec in (
            HiddenLoss(map=(2, 4), embeddings=True),
            HiddenLoss(map=(2, 4)),
            HiddenLoss(student_layer=0, teacher_layer=0),
        )
    )
    assert both == pytest.approx(without + alone, rel=1e-6)


# ---------------------------------------------------------------- linear maps


def test_each_layer_of_a_map_has_its_own_linear_map_or_all_share_one(source: DumpSource) -> None:
    """Two layers that imitate the same one, too; the gradient of a shared map is the sum of both."""
    model, batch = student_of(width=24), batch_of(source)
    own = HiddenLoss(map=(4, 4), embeddings=True)
    shared = HiddenLoss(map=(4, 4), embeddings=True, shared_projection=True)
    separate, one = (make_projections((spec,), source, model) for spec in (own, shared))
    assert [name for name, _ in separate["0"].named_children()] == ["0", "1", "2"]
    assert [name for name, _ in one["0"].named_children()] == ["shared"]
    weights = one["0"].get_submodule("shared").state_dict()
    for linear in separate["0"].children():
        linear.load_state_dict(weights)
    values = [
        loss_of(spec, model, projections, source, batch) for spec, projections in ((own, separate), (shared, one))
    ]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-6)
    for value in values:
        value.backward()
    summed = sum(linear.weight.grad for linear in separate["0"].children())  # type: ignore[operator, union-attr]
    torch.testing.assert_close(one["0"].get_submodule("shared").weight.grad, summed)


def test_equal_widths_need_no_linear_map(source: DumpSource) -> None:
    spec = HiddenLoss(map="last", shared_projection=True).for_student(source, student_of(width=32))
    assert not make_projections((spec,), source, student_of(width=32))


# ---------------------------------------------------------------- runs


@pytest.fixture
def recipe(tmp_path: Path, dump: Path) -> Callable[..., Recipe]:
    def make(*losses: dict[str, Any], dump: Path = dump, **student: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "output": tmp_path / "student",
                "dump": dump,
                "student": {"kind": "transformer", "layers": 2, "hidden_size": 24, "heads": 4} | student,
                "loss": losses,
                "training": {"max_steps": 3, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"},
            }
        )

    return make


def test_a_run_with_maps_by_name_and_by_list(recipe: Callable[..., Recipe]) -> None:
    """A recipe's map is overridden as any key is."""
    hidden = {"kind": "hidden", "map": "uniform", "embeddings": True, "shared_projection": True}
    made = overridden(recipe(hidden, {"kind": "relations", "map": "last", **ATTENTION}), ["loss.1.map=[0, 3]"])
    assert made.loss[1] == RelationLoss(map=(0, 3), **ATTENTION)
    result = distill.run(made, resume=False)
    model, info = AutoModel.from_pretrained(result.output, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.config.num_hidden_layers == 2


def test_a_bilstm_has_layers_of_its_own_to_map(recipe: Callable[..., Recipe]) -> None:
    made = recipe({"kind": "hidden", "map": "last"})
    student = {**BILSTM, "layers": 2}
    made = Recipe.model_validate({**made.model_dump(mode="json", exclude_unset=True), "student": student})
    assert distill.run(made, resume=False).steps == 3


@pytest.mark.parametrize(
    ("loss", "student", "sentence"),
    [
        ({"kind": "hidden", "map": [1, 2, 3]}, {}, r"loss 'hidden': its map has 3 entries, but the student has 2 lay"),
        ({"kind": "hidden", "map": [2]}, {}, r"loss 'hidden': its map has 1 entries, but the student has 2 layers"),
        ({"kind": "hidden", "map": [0, 9]}, {}, r"dump lacks the teacher's layers 9 \(it has 0, 1, 2, 3, 4\); dump ag"),
        ({"kind": "relations", "map": [2, 3, 4]}, {}, r"loss 'relations': its map has 3 entries, but .* 2 layers"),
        ({"kind": "relations", "map": [1, 4]}, {}, r"lacks the teacher's layers 1 \(it has 2, 3, 4\).*--relations all"),
        ({"kind": "relations", "map": "uniform"}, {"layers": 4}, r"lacks the teacher's layers 1 \(it has 2, 3, 4\)"),
        ({"kind": "relations", "map": "last"}, BILSTM, r"BiLSTMModel does not give access to its queries"),
        (
            {"kind": "hidden", "map": "last", "embeddings": True, "shared_projection": True},
            BILSTM,
            r"loss\.0\.shared_projection: the layers have several widths \(6 to 32, 8 to 32\)",
        ),
    ],
)
def test_maps_that_do_not_fit_are_refused(
    loss: dict[str, Any], student: dict[str, Any], sentence: str, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    made = recipe(loss).model_dump(mode="json", exclude_unset=True)
    made["student"] = student if "kind" in student else made["student"] | student
    with pytest.raises(RecipeError, match=sentence):
        distill.run(Recipe.model_validate(made), resume=False)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("kind", ["hidden", "relations"])
def test_a_dump_without_layers_is_refused(
    kind: str, recipe: Callable[..., Recipe], make_dump: Callable[..., Path]
) -> None:
    other = {"hidden": {"hidden": "none", "relations": "last"}, "relations": {"hidden": "last"}}[kind]
    with pytest.raises(RecipeError, match=r"lacks the teacher's layers \(it has none\); dump again with --"):
        distill.run(recipe({"kind": kind, "map": "uniform"}, dump=make_dump("encoder", **other)), resume=False)


@pytest.mark.parametrize("kind", [HiddenLoss, RelationLoss])
@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"map": "unifrom"}, r'give "uniform", "last", or a list'),
        ({"map": []}, r'give "uniform", "last", or a list'),
        ({"map": 3}, r'give "uniform", "last", or a list'),
        ({"map": [0, 0]}, r"it has zeros only, so no layer has a loss"),
        ({"map": [1, -1]}, r"the entry -1 is not the number of a layer"),
        ({"map": [1, 2.5]}, r"the entry 2\.5 is not the number of a layer"),
        ({"map": [True]}, r"the entry True is not the number of a layer"),
        ({"map": [10**9]}, r"the entry 1000000000 is not the number of a layer"),
        ({"map": [1] * 10_001}, r"it has 10,001 entries"),
        ({"map": "last", "last": 2}, r"give either .* or map"),
        ({"map": "last", "teacher_layer": 2, "student_layer": 1}, r"give either .* or map"),
    ],
)
def test_keys_without_sense_are_refused(kind: Any, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**keys)


def test_embeddings_alone_are_asked_for_by_their_number() -> None:
    with pytest.raises(ValueError, match="for the embeddings alone give both layers as 0"):
        HiddenLoss(teacher_layer=2, student_layer=1, embeddings=True)
