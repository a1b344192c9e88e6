"""Stages: each trains the parameters and uses the rows that its section names, and passes its best weights to the next
one; also in a run that was killed, and on several ranks."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from shared.dump.signals import SignalKey
from shared.errors import RecipeError
from shared.text.tasks import TASKS
from student_train import distill
from student_train.data.batches import in_order
from student_train.data.sources import DumpSource, Source
from student_train.data.subsets import Split, is_held_out
from student_train.recipe.kept import recipe_json
from student_train.recipe.recipe import Recipe
from student_train.students import Needs, build_student
from student_train.students.unfreezing import gradual, groups_of, unfrozen
from student_train.training import journal
from student_train.training.plan import training_plan
from student_train.training.stages import stages_of
from student_train.training.trainer import DistillationTrainer
from student_train.training.validation import Validation
from tests.student_train.runs import run_until_killed

TASK = "sequence-classification"
TRANSFORMER = {"kind": "transformer", "layers": 2, "hidden_size": 16, "heads": 2, "dropout": 0.1}
BILSTM = {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8}
REPRESENTATION = {
    "name": "representation",
    "loss": [{"kind": "hidden", "teacher_layer": 2, "student_layer": -1}],
    "learning_rate": 1e-2,
}
LOGITS = {"name": "logits", "loss": [{"kind": "logits-mse"}]}
GOLD = {"name": "gold", "loss": [{"kind": "gold"}], "rows": "labelled"}
VALIDATION = {"share": 0.25, "every_steps": 2}


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path]) -> Path:
    """60 rows in shards of 16, about one in four without a gold label."""
    return make_dump(TASK, hidden="2")


def recipe(output: Path, dump: Path, *stages: dict[str, Any], **sections: Any) -> Recipe:
    training = {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu", "log_steps": 1}
    training |= sections.pop("training", {})
    student = sections.pop("student", BILSTM)
    values = {"output": output, "dump": dump, "student": student, "stage": stages, "training": training}
    return Recipe.model_validate(values | sections)


def student_of(source: Source, spec: dict[str, Any] = TRANSFORMER, task: str = TASK) -> Any:
    made = recipe(Path("out"), Path("dump"), LOGITS, student=spec)
    torch.manual_seed(0)
    return build_student(
        made.student,
        Needs(
            auto_class=TASKS[task].auto_class,
            vocab_size=source.vocabulary,
            tokenizer_size=len(source.tokenizer),
            label_names=source.label_names,
            pad_token_id=source.tokenizer.pad_token_id or 0,
            max_length=source.max_length,
        ),
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict())


def results(made: Recipe) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = json.loads((made.output / "stages.json").read_text())
    return written


def rows_of(source: Source) -> list[int]:
    return sorted(row for group in range(len(source.group_rows)) for row in source.load(group, []).rows.tolist())


# ---------------------------------------------------------------- what a recipe's stages become


def test_a_stage_has_what_training_says_but_for_what_it_says_itself(dump: Path) -> None:
    own = {**LOGITS, "epochs": 2, "learning_rate": 5e-3, "batch_tokens": 100}
    made = recipe(Path("out"), dump, own, {**GOLD, "freeze_embeddings": True}, training={"weight_decay": 0.5})
    first, second = stages_of(made, student_of(DumpSource(dump)))
    assert (first.training.epochs, first.training.max_steps) == (2, None)
    assert (first.training.batch_tokens, first.training.batch_size) == (100, None)
    assert (first.training.learning_rate, first.training.weight_decay) == (5e-3, 0.5)
    assert (second.training.epochs, second.training.max_steps) == (None, 3)
    assert (second.training.batch_size, second.training.learning_rate) == (8, 1e-2)
    assert [stage.training.freeze_embeddings for stage in (first, second)] == [False, True]
    assert [stage.training.seed for stage in (first, second)] == [0, 1]


def test_a_recipe_that_is_written_down_says_no_more_than_it_was_told(dump: Path) -> None:
    made = recipe(Path("out"), dump, {**LOGITS, "learning_rate": 5e-3})
    content = json.loads(recipe_json(made))
    assert "weight_decay" not in content["stage"][0]
    assert content["stage"][0]["learning_rate"] == 5e-3
    assert Recipe.model_validate(content) == made


def test_gradual_unfreezing_is_a_stage_for_each_group_from_the_top(dump: Path) -> None:
    made = recipe(Path("out"), dump, REPRESENTATION, {**LOGITS, "unfreeze": "gradual"})
    stages = stages_of(made, student_of(DumpSource(dump)))
    assert [(stage.name, stage.trainable) for stage in stages] == [
        ("representation", "all"),
        ("logits.1", "head"),
        ("logits.2", 1),
        ("logits.3", 2),
        ("logits.4", 3),
    ]
    assert [stage.where for stage in stages] == ["stage.0."] + 4 * ["stage.1."]


def test_a_stage_that_does_not_train_the_head_is_scored_by_its_loss(dump: Path) -> None:
    validation = {**VALIDATION, "metric": "accuracy", "patience": 3}
    patient = {**GOLD, "metric": "macro_f1", "patience": 7}
    made = recipe(Path("out"), dump, REPRESENTATION, LOGITS, patient, validation=validation)
    stages = stages_of(made, student_of(DumpSource(dump)))
    assert [(stage.metric, stage.patience) for stage in stages] == [("loss", 3), ("accuracy", 3), ("macro_f1", 7)]


@pytest.mark.parametrize(
    ("stages", "sections", "message"),
    [
        ([], {}, "the key 'loss' is missing"),
        ([LOGITS], {"loss": [{"kind": "kl"}]}, r"give either \[\[loss\]\] or \[\[stage\]\]"),
        ([LOGITS, LOGITS], {}, r"stage\.1\.name = 'logits': another stage has this name"),
        ([{**LOGITS, "trainable": "tail"}], {}, 'give "all", "head", or the number of groups'),
        ([{**LOGITS, "trainable": 0}], {}, 'give "all", "head", or the number of groups'),
        ([{**LOGITS, "trainable": 1, "unfreeze": "gradual"}], {}, "give either trainable or unfreeze"),
        ([{**LOGITS, "epochs": 1, "max_steps": 1}], {}, "give either epochs or max_steps"),
        ([{**LOGITS, "name": "a/b"}], {}, "should match pattern"),
        ([{**LOGITS, "metric": "accuracy"}], {}, r"stage\.0: metric and patience need a section \[validation\]"),
        ([LOGITS], {"validation": {"every": 1, "every_steps": 3}}, "give either every"),
        ([LOGITS], {"training": {"max_steps": None}}, r"stage\.0: give either epochs or max_steps, here or in"),
    ],
)
def test_a_contradiction_in_a_recipe_is_refused(stages: Any, sections: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(Path("out"), Path("dump"), *stages, **sections)


# ---------------------------------------------------------------- unfreezing


@pytest.mark.parametrize(
    ("task", "spec", "head"),
    [
        (
            TASK,
            TRANSFORMER,
            {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"},
        ),
        (TASK, BILSTM, {"classifier.weight", "classifier.bias"}),
        (TASK, {**TRANSFORMER, "model_type": "distilbert"}, {"pre_classifier.weight", "classifier.weight"}),
        ("causal-lm", {**TRANSFORMER, "tie_embeddings": False}, {"lm_head.weight", "model.norm.weight"}),
        ("causal-lm", {**TRANSFORMER, "tie_embeddings": True}, {"model.norm.weight"}),
    ],
    ids=["bert", "bilstm", "distilbert", "llama", "tied llama"],
)
def test_groups_are_unfrozen_from_the_top(task: str, spec: dict[str, Any], head: set[str], dump: Path) -> None:
    student = student_of(DumpSource(dump), spec, task)
    names = {id(value): name for name, value in student.named_parameters()}
    groups = [{names[id(value)] for value in group} for group in groups_of(student)]
    assert head <= groups[-1]
    assert set().union(*groups) == set(names.values())
    assert sum(map(len, groups)) == len(names)
    assert {names[id(value)] for value in student.get_input_embeddings().parameters()} <= groups[0]
    for count, trainable in enumerate(gradual(student, freeze_embeddings=False)):
        before = {name: value.requires_grad for name, value in student.named_parameters()}
        with unfrozen(student, trainable, freeze_embeddings=False):
            now = {name for name, value in student.named_parameters() if value.requires_grad}
        expected = set().union(*groups[len(groups) - 1 - count :])
        assert now == {name for name in expected if before[name]}
        assert before == {name: value.requires_grad for name, value in student.named_parameters()}


def test_frozen_embeddings_are_never_unfrozen(dump: Path) -> None:
    """The last step of a BiLSTM would unfreeze the embeddings alone, and so there is none."""
    student = student_of(DumpSource(dump), BILSTM)
    assert gradual(student, freeze_embeddings=True) == ["head", 1]
    with unfrozen(student, "all", freeze_embeddings=True):
        assert not student.get_input_embeddings().weight.requires_grad
        assert student.classifier.weight.requires_grad


# ---------------------------------------------------------------- rows


def test_each_row_is_trained_on_or_held_out_and_of_one_kind(dump: Path) -> None:
    source = DumpSource(dump)
    split = Split(source, 0.25, seed=3)
    labels = {
        row: label
        for group in range(len(source.group_rows))
        for row, label in zip(source.load(group, []).rows.tolist(), source.load(group, []).labels.tolist(), strict=True)
    }
    held_out = {row for row in labels if is_held_out(np.asarray([row]), 0.25, 3)[0]}
    assert 5 < len(held_out) < 25
    for kind, fits in (("all", lambda _: True), ("labelled", lambda x: x != -100), ("unlabelled", lambda x: x == -100)):
        of_kind = {row for row, label in labels.items() if fits(label)}
        assert set(rows_of(split.to_train(kind))) == of_kind - held_out  # type: ignore[arg-type]
        assert set(rows_of(split.held_out(kind))) == of_kind & held_out  # type: ignore[arg-type]
    parts = [rows_of(split.held_out("all", rank, 3)) for rank in range(3)]
    assert sorted(chain(*parts)) == sorted(held_out)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rows_that_are_selected_keep_their_signals(dump: Path) -> None:
    source = DumpSource(dump)
    columns = source.columns_of(source.signals)
    taken = Split(source, 0.25, seed=3).to_train("labelled")
    for group, (number, kept) in enumerate(zip(taken.group_rows, taken._kept, strict=True)):  # type: ignore[attr-defined]
        whole, part = source.load(taken._groups[group], columns), taken.load(group, columns)  # type: ignore[attr-defined]
        assert len(part.rows) == number
        tokens = whole.token_offsets
        for place, row in enumerate(kept.tolist()):
            ours, theirs = slice(*part.token_offsets[place : place + 2]), slice(*tokens[row : row + 2])
            for name in (name for name in columns if source.per_column[name] == "token"):
                assert np.array_equal(part.columns[name][ours], whole.columns[name][theirs])  # type: ignore[arg-type]
    sizes = taken.sizes(columns)
    assert sizes.rows.tolist() == list(taken.group_rows)
    assert (sizes.tokens >= sizes.rows).all()


@pytest.mark.parametrize("task", ["token-classification", "causal-lm", "masked-lm", TASK])
def test_a_dump_tells_labelled_rows_from_its_smallest_columns(task: str, make_dump: Callable[..., Path]) -> None:
    source = DumpSource(make_dump(task))
    for group in range(len(source.group_rows)):
        rows, is_labelled = source.gold(group)
        expected_rows, expected = Source.gold(source, group)
        assert rows.tolist() == expected_rows.tolist()
        # Every text is a language model's gold label, even one of a single token, which nothing follows.
        assert is_labelled.tolist() == (expected | (task == "causal-lm")).tolist()


# ---------------------------------------------------------------- training


def test_stages_train_what_they_say_and_leave_no_projection(dump: Path, tmp_path: Path) -> None:
    before = student_of(DumpSource(dump), BILSTM).state_dict()
    head_only = {**LOGITS, "trainable": "head"}
    made = recipe(tmp_path / "a", dump, head_only, {**REPRESENTATION, "max_steps": 2}, {**GOLD, "epochs": 1})
    torch.manual_seed(99)
    result = distill.run(made, resume=False)
    stages = results(made)
    assert [(stage["name"], stage["best_score"]) for stage in stages] == [
        ("logits", None),
        ("representation", None),
        ("gold", None),
    ]
    labelled = len(rows_of(Split(DumpSource(dump), 0.0, 0).to_train("labelled")))
    assert [stage["steps"] for stage in stages] == [3, 2, -(-labelled // 8)]
    assert result.steps == sum(stage["steps"] for stage in stages)
    assert all(stage["seconds"] > 0 and stage["cpu_seconds"] > 0 for stage in stages)
    after = weights(made.output)
    assert after.keys() == before.keys()
    only_head = recipe(tmp_path / "b", dump, head_only)
    distill.run(only_head, resume=False)
    trained = weights(only_head.output)
    changed = {name for name in trained if not torch.equal(trained[name], weights_at_start(dump, tmp_path)[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def weights_at_start(dump: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What the seed gives a student before its first step."""
    made = recipe(folder / "start", dump, LOGITS)
    return dict(distill.prepare(made)[1].state_dict())


def test_a_recipe_without_stages_is_a_single_one(dump: Path, tmp_path: Path) -> None:
    one = recipe(tmp_path / "one", dump, {**LOGITS, "name": "training"})
    plain = recipe(tmp_path / "plain", dump, loss=[{"kind": "logits-mse"}])
    for made in (one, plain):
        distill.run(made, resume=False)
    first, second = weights(one.output), weights(plain.output)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [stage["name"] for stage in results(plain)] == ["training"]


def test_a_score_is_that_of_all_held_out_rows_at_once(dump: Path) -> None:
    """Against float64 sums over rows: losses by their weights and terms, agreement, and the task's metric."""
    source = DumpSource(dump)
    both = [{"kind": "logits-mse", "weight": 2.0}, {"kind": "gold", "weight": 0.5}]
    validation = {**VALIDATION, "share": 0.5}
    stages = [
        {"name": "a", "loss": both},
        {"name": "b", "loss": both, "metric": "agreement"},
        {"name": "c", "loss": both, "metric": "accuracy"},
    ]
    student = student_of(source, {**TRANSFORMER, "dropout": 0.0}).train()
    student.distillation_projections = torch.nn.ModuleDict()
    planned = training_plan(recipe(Path("out"), dump, *stages, validation=validation), source, student)
    found = [each.validation.score(student) for each in planned if each.validation]
    assert student.training
    student.eval()
    held_out = Split(source, 0.5, 0).held_out("all")
    errors, nats, agreed, right = [], [], [], []
    for batch in in_order(held_out, source.columns_of([SignalKey("distribution")]), 1):
        with torch.no_grad():
            logits = student(batch.input_ids, batch.attention_mask).logits[0].double()
        teacher = source.distribution.decode(batch.columns).logits_NV[0].double()  # type: ignore[union-attr]
        errors.append(float((logits - teacher).square().mean()))
        agreed.append(float(logits.argmax() == teacher.argmax()))
        if (label := int(batch.labels[0])) != -100:
            nats.append(float(-logits.log_softmax(-1)[label]))
            right.append(float(logits.argmax() == label))
    assert 0 < len(nats) < len(errors)
    assert found[0] == pytest.approx(2.0 * np.mean(errors) + 0.5 * np.mean(nats), rel=1e-4)
    assert found[1:] == [pytest.approx(np.mean(agreed)), pytest.approx(np.mean(right))]


def scored(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[dict[str, torch.Tensor]]:
    """Make the scores these, whatever the student predicts; return its weights at each of them."""
    seen: list[dict[str, torch.Tensor]] = []

    def score(self: Validation, student: Any) -> float:
        seen.append({name: value.clone() for name, value in student.state_dict().items()})
        return scores[len(seen) - 1]

    monkeypatch.setattr(Validation, "score", score)
    return seen


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [
        ("loss", [9.0, 3.0, 1.0, 2.0, 1.0], 2),
        ("accuracy", [0.1, 0.2, 0.3, 0.9, 0.9], 3),
        ("accuracy", [0.8, 0.7, 0.8, 0.8, 0.6], 0),  # no step has made the student better than it was before
    ],
)
def test_the_best_weights_go_to_the_next_stage(
    metric: str, scores: list[float], best: int, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scored(monkeypatch, [*scores, 1.0, 1.0])
    frozen = {**GOLD, "max_steps": 1, "trainable": "head", "learning_rate": 1e-12, "weight_decay": 0.0}
    stage = {**LOGITS, "max_steps": 7}
    made = recipe(tmp_path / "a", dump, stage, frozen, validation={**VALIDATION, "metric": metric})
    distill.run(made, resume=False)
    assert len(seen) == 7  # before the first step, steps 2, 4, 6, 7, and two of the second stage
    after = weights(made.output)
    for name, value in after.items():
        assert torch.allclose(value, seen[best][name], atol=1e-6), name
    assert any(not torch.allclose(value, seen[4][name], atol=1e-6) for name, value in after.items())
    first = results(made)[0]
    assert (first["metric"], first["best_score"], first["best_step"]) == (metric, scores[best], 2 * best)


def test_a_killed_stage_that_only_harms_ends_with_the_weights_it_began_with(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scored(monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    made = recipe(tmp_path / "a", dump, {**LOGITS, "max_steps": 7}, training={"save_steps": 3}, validation=VALIDATION)
    monkeypatch.setattr(DistillationTrainer, "_score", _killed_at(4, DistillationTrainer._score))
    with pytest.raises(KeyboardInterrupt):
        distill.run(made, resume=False)
    assert list(made.output.glob("checkpoints/logits/checkpoint-*"))
    distill.run(made, resume=True)
    after = weights(made.output)
    assert all(torch.equal(value, seen[0][name]) for name, value in after.items())
    assert [(stage["best_score"], stage["best_step"]) for stage in results(made)] == [(1.0, 0)]


def test_a_killed_stage_whose_best_weights_are_damaged_begins_anew_before_it_trains(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [9.0, 1.0, 2.0, 3.0, 4.0]
    made = recipe(tmp_path / "a", dump, {**LOGITS, "max_steps": 7}, training={"save_steps": 3}, validation=VALIDATION)
    scored(monkeypatch, scores)
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "_score", _killed_at(5, DistillationTrainer._score))
        with pytest.raises(KeyboardInterrupt):
            distill.run(made, resume=False)
    folder = made.output / "checkpoints" / "logits"
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "checkpoint-6"}
    (folder / "checkpoint-2" / "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    seen = scored(monkeypatch, scores)
    distill.run(made, resume=True)
    assert "checkpoint-6: damaged (checkpoint-2, the best one before it, " in capsys.readouterr().err
    assert len(seen) == 5
    after = weights(made.output)
    assert all(torch.equal(value, seen[1][name]) for name, value in after.items())


def _killed_at(call: int, work: Callable[..., Any]) -> Callable[..., Any]:
    calls = [0]

    def deadly(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return work(*arguments)

    return deadly


def test_a_stage_ends_when_patience_does(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, [4.0, 3.0, 2.0, 2.5, 2.0, 1.0, 2.0, 1.0])
    section = {**VALIDATION, "patience": 2}
    made = recipe(tmp_path / "a", dump, {**LOGITS, "max_steps": 50}, {**GOLD, "max_steps": 50}, validation=section)
    distill.run(made, resume=False)
    assert [(stage["steps"], stage["best_step"]) for stage in results(made)] == [(8, 4), (4, 0)]


def test_a_transformer_goes_from_stage_to_stage_in_mixed_precision(dump: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "out", dump, LOGITS, GOLD, student=TRANSFORMER, training={"precision": "bf16"})
    assert distill.run(made, resume=False).steps == 6


# ---------------------------------------------------------------- killed runs

STAGED = (REPRESENTATION, {**LOGITS, "unfreeze": "gradual", "max_steps": 5}, GOLD)


def staged(output: Path, dump: Path) -> Recipe:
    """Dropout, accumulation, projections, several stages, and a score at steps where there is no other checkpoint."""
    training = {"gradient_accumulation": 2, "save_steps": 3}
    student = {**BILSTM, "dropout": 0.2}
    return recipe(output, dump, *STAGED, student=student, training=training, validation=VALIDATION)


@pytest.fixture(scope="module")
def undisturbed(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = staged(tmp_path_factory.mktemp("staged") / "undisturbed", dump)
    distill.run(made, resume=False)
    return made


@pytest.mark.parametrize(
    ("owner", "call", "at"),
    [
        (DistillationTrainer, "compute_loss", 2),  # before the first checkpoint
        (DistillationTrainer, "compute_loss", 6 + 2 * 10 - 1),  # at the last step of the third stage
        (DistillationTrainer, "evaluate", 4),  # while it is scored in the second stage
        (DistillationTrainer, "_save_rng_state", 3),  # while a checkpoint is written
        (DistillationTrainer, "release", 2),  # after the last step of the second stage
        (journal, "save_model", 2),  # while the second stage's weights are written
        (journal, "write_text_atomically", 2),  # when they are, and the stage does not count as ended yet
        (journal.shutil, "rmtree", 2),  # when it does, and its checkpoints are there
        (distill, "_save", 1),  # after all stages
    ],
    ids=lambda value: str(getattr(value, "__name__", value)).rpartition(".")[2],
)
def test_a_run_killed_anywhere_goes_on_to_the_very_weights_of_an_undisturbed_one(
    owner: Any, call: str, at: int, undisturbed: Recipe, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = staged(tmp_path / "killed", dump)
    run_until_killed(killed, owner, call, at)
    if call != "compute_loss" or at > 2:
        with pytest.raises(RecipeError, match="an unfinished run is there"):
            distill.run(killed, resume=False)
    distill.run(killed, resume=True)
    first, second = weights(undisturbed.output), weights(killed.output)
    assert all(torch.equal(first[name], second[name]) for name in first)
    known = ("name", "steps", "metric", "best_score", "best_step")
    assert [[stage[key] for key in known] for stage in results(killed)] == [
        [stage[key] for key in known] for stage in results(undisturbed)
    ]
    assert {path.name for path in killed.output.iterdir()} == {path.name for path in undisturbed.output.iterdir()}


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("stages", "sections", "message"),
    [
        (
            [LOGITS, {**GOLD, "loss": [{"kind": "hidden", "teacher_layer": 1, "student_layer": -1}]}],
            {},
            r"stage\.1\.loss\.0: the loss 'hidden.1' needs the signal 'hidden\.1'",
        ),
        ([LOGITS, {**GOLD, "rows": "unlabelled"}], {}, r"stage\.1\.loss\.0: the loss 'gold' needs gold labels"),
        ([{**LOGITS, "trainable": 9}], {}, r"stage\.0: trainable = 9: the student has 2 groups below its head"),
        ([{**REPRESENTATION, "trainable": "head"}], {}, r"stage\.0: trainable = 'head': none of the stage's losses"),
        (
            [{**REPRESENTATION, "loss": [{"kind": "hidden", "teacher_layer": 2, "student_layer": 5}]}],
            {},
            r"stage\.0: loss\.0\.student_layer = 5",
        ),
        ([LOGITS], {"validation": {"share": 1e-6}}, r"validation\.share = 1e-06: it holds out no row of"),
        ([LOGITS], {"validation": {"share": 0.999999}}, r"stage\.0\.rows = 'all': no such row is left"),
        (
            [{**LOGITS, "metric": "acuracy"}],
            {"validation": VALIDATION},
            r"stage\.0\.metric: the metric 'acuracy' is unknown .*loss, agreement, accuracy, macro_f1",
        ),
        (
            [{**LOGITS, "unfreeze": "gradual"}, {**LOGITS, "name": "logits.2"}],
            {},
            r"stage\.1\.name: two stages would have the name 'logits\.2'",
        ),
    ],
)
def test_a_stage_that_cannot_work_is_refused_before_the_first_one(
    stages: Any, sections: Any, message: str, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DistillationTrainer, "compute_loss", lambda *_: pytest.fail("a step was taken"))
    made = recipe(tmp_path / "a", dump, *stages, **sections)
    with pytest.raises(RecipeError, match=message) as raised:
        distill.run(made, resume=False)
    assert "\n" not in str(raised.value)
    assert not made.output.exists()
