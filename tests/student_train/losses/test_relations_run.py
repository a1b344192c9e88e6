"""Relations from end to end: a dump of queries, keys and values, a recipe, a trained student of another shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig

from shared.dump.signals import SignalKey
from shared.errors import RecipeError
from shared.storage.folder import Folder
from student_train import distill
from student_train.data.batch import Batch
from student_train.data.batches import collate
from student_train.data.sources import DumpSource
from student_train.forward.observe import outputs_of, targets_of
from student_train.losses.relations import RelationLoss
from student_train.losses.total import total_loss
from student_train.recipe.recipe import Recipe
from student_train.training.trainer import DistillationTrainer

NARROW = {"kind": "transformer", "layers": 1, "hidden_size": 24, "heads": 2, "dropout": 0.0}
SMALL_BERT = {
    "vocab_size": 128,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
RELATIONS = {"kind": "relations", "relation_heads": 8}


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("encoder")


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path], teacher: Path) -> Path:
    return make_dump("encoder", teacher=teacher, relations="last", hidden="none")


@pytest.fixture
def recipe(tmp_path: Path, dump: Path) -> Callable[..., Recipe]:
    def make(*losses: dict[str, Any], student: dict[str, Any] = NARROW, **training: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "output": tmp_path / "student",
                "dump": dump,
                "student": student,
                "loss": losses,
                "training": {"max_steps": 3, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"} | training,
            }
        )

    return make


def batch_of(source: DumpSource, rows: list[int]) -> Batch:
    columns = [column.name for codec in source.vectors.values() for column in codec.columns]
    return collate({0: source.load(0, columns)}, np.asarray([[0, row] for row in rows]), source)


def loss_of(spec: RelationLoss, model: nn.Module, source: DumpSource, rows: list[int]) -> torch.Tensor:
    batch = batch_of(source, rows)
    outputs = outputs_of(model, batch, source, wants_hidden=False, attention_layers=spec.attention_layers)
    return total_loss((spec,), outputs, targets_of(batch, source), nn.ModuleDict())[0]


# ---------------------------------------------------------------- the loss of a batch


@pytest.mark.parametrize("heads", [None, 1, 2, 4, 32])
def test_a_student_that_is_its_teacher_has_no_loss(heads: int | None, dump: Path, teacher: Path) -> None:
    source, itself = DumpSource(dump), AutoModel.from_pretrained(teacher).eval()
    spec = RelationLoss(relation_heads=heads, pairs=("queries", "keys", "values", "attention"))
    assert loss_of(spec, itself, source, [0, 15, 7, 3]).item() < 1e-5
    below = RelationLoss(relation_heads=heads, student_layer=1)
    assert loss_of(below, itself, source, [0, 15, 7, 3]).item() > 0.05


def test_the_relation_of_queries_and_keys_is_the_models_own_attention(dump: Path, teacher: Path) -> None:
    """With as many relation heads as heads: KL(teacher || another model) of what both report as their attention."""
    source, rows = DumpSource(dump), [0, 15, 7, 3]
    itself, other = (AutoModel.from_pretrained(teacher, attn_implementation="eager").eval() for _ in range(2))
    nn.init.normal_(other.encoder.layer[1].attention.self.query.weight, std=0.3)
    batch = batch_of(source, rows)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    p_BHLL, q_BHLL = (model(**inputs, output_attentions=True).attentions[1].double() for model in (itself, other))
    total, tokens = 0.0, 0
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        p, q = p_BHLL[row, :, :length, :length], q_BHLL[row, :, :length, :length]
        total += (p * (p.log() - q.log())).sum().item()
        tokens += length
    value = loss_of(RelationLoss(relation_heads=4, pairs=("attention",)), other, source, rows)
    assert value.item() == pytest.approx(total / (tokens * 4), rel=1e-3)


def test_padding_and_the_company_of_other_rows_change_nothing(dump: Path) -> None:
    source, spec = DumpSource(dump), RelationLoss(relation_heads=8)
    torch.manual_seed(0)
    model = AutoModel.from_config(BertConfig(**SMALL_BERT)).eval()
    rows = [0, 15, 7, 3]
    lengths = [int(batch_of(source, [row]).attention_mask.sum()) for row in rows]
    assert len(set(lengths)) > 1
    alone = [loss_of(spec, model, source, [row]) for row in rows]
    together = loss_of(spec, model, source, rows)
    expected = sum(value * length for value, length in zip(alone, lengths, strict=True)) / sum(lengths)
    assert together.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = [parameter for name, parameter in model.named_parameters() if "attention.self" in name]
    found, wanted = torch.autograd.grad(together, parameters), torch.autograd.grad(expected, parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


# ---------------------------------------------------------------- a run


def test_a_narrower_student_with_other_heads_learns_the_relations(
    recipe: Callable[..., Recipe], dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    compute = DistillationTrainer.compute_loss

    def watching(self: DistillationTrainer, *given: Any, **named: Any) -> Any:
        loss = compute(self, *given, **named)
        seen.append(loss.item())
        return loss

    monkeypatch.setattr(DistillationTrainer, "compute_loss", watching)
    distill.run(recipe(RELATIONS, max_steps=40), resume=False)
    assert sum(seen[-8:]) < 0.7 * sum(seen[:8]), seen


def test_accumulated_batches_are_captured_each_for_itself(recipe: Callable[..., Recipe]) -> None:
    result = distill.run(
        recipe(RELATIONS, {**RELATIONS, "pairs": ["attention"]}, gradient_accumulation=2), resume=False
    )
    model, info = AutoModel.from_pretrained(result.output, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.config._attn_implementation == "sdpa"


def test_only_the_columns_of_the_pairs_are_read(recipe: Callable[..., Recipe], dump: Path) -> None:
    spec = RelationLoss(pairs=("values",))
    assert spec.signals(DumpSource(dump).signals) == (SignalKey("values", 2),)
    attention = RelationLoss(pairs=("attention",)).signals(DumpSource(dump).signals)
    assert attention == (SignalKey("queries", 2), SignalKey("keys", 2))
    distill.run(recipe({**RELATIONS, "pairs": ["values"]}), resume=False)


def test_a_decoder_with_grouped_queries_learns_relations_beside_distributions_and_hidden_states(
    make_dump: Callable[..., Path], make_teacher: Callable[..., Path], recipe: Callable[..., Recipe]
) -> None:
    """From int8 codes, with keys and values half as wide as queries on the teacher's side."""
    grouped = make_teacher("causal-lm", num_key_value_heads=2)
    folder = Folder.of(make_dump("causal-lm", teacher=grouped, relations="1", hidden="2", hidden_codec="int8", top_k=8))
    widths = {str(key): width for key, width in DumpSource(folder).widths.items()}
    assert widths == {"hidden.2": 32, "queries.1": 32, "keys.1": 16, "values.1": 16}
    hidden = {"kind": "hidden", "teacher_layer": 2, "student_layer": -1}
    made = recipe({"kind": "kl", "tail": "class"}, hidden, {**RELATIONS, "student_layer": 1})
    result = distill.run(made.model_copy(update={"dump": folder}), resume=False)
    assert result.steps == 3
    elsewhere = {"dump": folder, "output": result.output.parent / "refused"}
    refused = recipe({**RELATIONS, "pairs": ["attention"]}).model_copy(update=elsewhere)
    with pytest.raises(RecipeError, match="the teacher's queries are 32 wide and its keys 16"):
        distill.run(refused, resume=False)


# ---------------------------------------------------------------- what is refused, before the first step


@pytest.mark.parametrize(
    ("loss", "student", "sentence"),
    [
        (
            {"relation_heads": 12},
            NARROW,
            r"relation_heads = 12: the teacher's queries are 32 wide and the student's 24",
        ),
        ({"teacher_layer": 1}, NARROW, r"needs queries\.1, keys\.1, values\.1, which .* has embedding, queries\.2"),
        ({"student_layer": 2}, NARROW, r"student_layer = 2: the student has layers 1 to 1"),
        (
            {},
            {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8},
            r"BiLSTMModel does not give access to its queries",
        ),
    ],
    ids=["heads", "teacher-layer", "student-layer", "bilstm"],
)
def test_what_cannot_be_related_is_refused(
    loss: dict[str, Any], student: dict[str, Any], sentence: str, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        distill.run(recipe({"kind": "relations", **loss}, student=student), resume=False)
    assert not (tmp_path / "student").exists()


def test_a_dump_without_relations_is_refused(make_dump: Callable[..., Path]) -> None:
    source = DumpSource(make_dump("encoder"))
    with pytest.raises(RecipeError, match=r"needs queries\.N, keys\.N, values\.N, which .* it has hidden\.2"):
        RelationLoss().check(source)
