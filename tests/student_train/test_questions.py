"""Question answering learnt and scored: losses over a row's positions, and the way from raw files to F1 and back."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from shared.dump.dump import Dump
from shared.dump.layouts.spans import over_places
from shared.errors import RecipeError
from shared.text.columns import ColumnNames, ScoredColumns
from shared.text.tasks import task_named
from shared.text.tasks.question_answering import OFFSETS
from student_train import distill
from student_train.data.batches import collate, in_order
from student_train.data.sources import DumpSource, Source, TextSource
from student_train.data.subsets import Split
from student_train.forward.observe import outputs_of, targets_of
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses.logits import GoldLoss, KLLoss, LogitsMSELoss, TeacherLabelLoss
from student_train.recipe.recipe import Recipe
from student_train.scoring.evaluate import evaluate
from student_train.students import Needs, build_student
from student_train.training.plan import training_plan
from student_train.training.trainer import DistillationTrainer

TASK = "question-answering"
WINDOWS: dict[str, Any] = {"max_length": 32, "stride": 8}
TINY = {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2}
BILSTM = {"kind": "bilstm", "embedding_size": 8, "hidden_size": 16}


@pytest.fixture(scope="module")
def teacher(make_teacher: Any) -> Path:
    return Path(make_teacher(TASK))


@pytest.fixture(scope="module")
def rows(toy_rows: Any) -> list[dict[str, Any]]:
    return list(toy_rows(TASK, 20))


@pytest.fixture(scope="module")
def dump(make_dump: Any, teacher: Path, rows: list[dict[str, Any]]) -> Path:
    return Path(make_dump(TASK, teacher=teacher, data=rows, hidden="last", **WINDOWS))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_corpus: Any, rows: list[dict[str, Any]]) -> Path:
    return Path(write_corpus(tmp_path_factory.mktemp("corpus") / "questions.jsonl", rows))


def recipe(output: Path, student: dict[str, Any], *losses: dict[str, Any], **sections: Any) -> Recipe:
    training = {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu"} | sections.pop("training", {})
    return Recipe.model_validate(
        {"output": output, "student": student, "loss": losses, "training": training} | sections
    )


# --- losses against plain float64 ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def observed(dump: Path) -> tuple[Outputs, BatchTargets, list[tuple[np.ndarray, np.ndarray, int]]]:
    """A batch: (a student's outputs, their targets, and the same as plain lists of float64: the
    student's logits, the teacher's, the gold place or -100, of the start and then the end of each row)."""
    source, column = DumpSource(dump), "distribution.logits"
    groups = {number: source.load(number, [column]) for number in range(len(source.group_rows))}
    places = [(number, row) for number, group in groups.items() for row in range(len(group.rows))]
    batch = collate(groups, np.array(places), source)
    draw = torch.Generator().manual_seed(0)
    student_BL2 = torch.randn(*batch.input_ids.shape, 2, generator=draw)

    class Student(torch.nn.Module):
        def forward(self, **_: Any) -> Any:
            return type("Output", (), {"start_logits": student_BL2[..., 0], "end_logits": student_BL2[..., 1]})()

    plain = []
    for at, (number, row) in enumerate(places):
        group = groups[number]
        part = slice(group.position_offsets[row], group.position_offsets[row + 1])
        teacher_P2 = np.asarray(group.columns[column], np.float64).reshape(-1, 2)[part]
        for end in (0, 1):
            said_P = student_BL2[at].double().numpy()[group.positions[part], end]
            marked = np.flatnonzero((group.labels[part] >= 0) & (group.labels[part] & (1 + end) > 0))
            plain.append((said_P, teacher_P2[:, end], int(marked[0]) if len(marked) else -100))
    return outputs_of(Student(), batch, source, False), targets_of(batch, source), plain


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    return logits / temperature - np.log(np.exp(logits / temperature).sum())


def test_a_batch_has_rows_of_different_lengths_and_some_without_gold(observed: Any) -> None:
    _, batch_targets, plain = observed
    assert len({len(own) for own, _, _ in plain}) > 1
    assert [gold for _, _, gold in plain] == batch_targets.labels_N.tolist()
    assert {gold == -100 for _, _, gold in plain} == {True, False}


def test_gold_is_the_cross_entropy_of_start_and_end_over_the_rows_positions(observed: Any) -> None:
    outputs, batch_targets, plain = observed
    expected = np.mean([-log_softmax(logits)[gold] for logits, _, gold in plain if gold >= 0])
    assert float(GoldLoss().value(outputs, batch_targets, None)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_is_over_the_rows_positions(observed: Any, temperature: float) -> None:
    outputs, batch_targets, plain = observed
    pairs = [(log_softmax(teacher, temperature), log_softmax(own, temperature)) for own, teacher, _ in plain]
    expected = np.mean([(np.exp(p) * (p - q)).sum() for p, q in pairs]) * temperature**2
    assert float(KLLoss(temperature=temperature).value(outputs, batch_targets, None)) == pytest.approx(
        expected, rel=1e-4
    )


def test_reverse_and_jensen_shannon_know_no_padding(observed: Any) -> None:
    outputs, batch_targets, plain = observed
    pairs = [(log_softmax(teacher), log_softmax(own)) for own, teacher, _ in plain]
    reverse = np.mean([(np.exp(q) * (q - p)).sum() for p, q in pairs])
    middle = [np.log((np.exp(p) + np.exp(q)) / 2) for p, q in pairs]
    shannon = np.mean(
        [
            ((np.exp(p) * (p - m)).sum() + (np.exp(q) * (q - m)).sum()) / 2
            for (p, q), m in zip(pairs, middle, strict=True)
        ]
    )
    assert float(KLLoss(divergence="reverse").value(outputs, batch_targets, None)) == pytest.approx(reverse, rel=1e-4)
    assert float(KLLoss(divergence="js").value(outputs, batch_targets, None)) == pytest.approx(shannon, rel=1e-4)


def test_logits_mse_is_the_mean_over_rows_of_the_mean_over_their_positions(observed: Any) -> None:
    outputs, batch_targets, plain = observed
    expected = np.mean([((own - teacher) ** 2).mean() for own, teacher, _ in plain])
    assert float(LogitsMSELoss().value(outputs, batch_targets, None)) == pytest.approx(expected, rel=1e-5)


def test_teacher_label_is_the_teachers_best_position(observed: Any) -> None:
    outputs, batch_targets, plain = observed
    expected = np.mean([-log_softmax(own)[teacher.argmax()] for own, teacher, _ in plain])
    assert float(TeacherLabelLoss().value(outputs, batch_targets, None)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [GoldLoss(), KLLoss(), KLLoss(divergence="js"), LogitsMSELoss(), TeacherLabelLoss()])
def test_gradients_are_finite_and_none_goes_to_padding(observed: Any, loss: Any) -> None:
    _, batch_targets, _ = observed
    places_BM = torch.tensor([[True, True, True], [True, False, False]])
    logits_N2 = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    logits_SM: Tensor = over_places(logits_N2, places_BM)
    assert logits_SM.shape == (4, 3)
    assert logits_SM.isinf().tolist() == [[False] * 3, [False] * 3, [False, True, True], [False, True, True]]
    target = type(batch_targets.distributions)(over_places(torch.randn(4, 2), places_BM))
    loss.value(
        Outputs(logits_SM, ()), BatchTargets(target, {}, torch.tensor([1, 2, 0, -100]), is_ragged=True), None
    ).backward()
    assert logits_N2.grad is not None
    assert logits_N2.grad.isfinite().all()


# --- files, dump, student, scores ----------------------------------------------------------------------------------


def test_files_and_dump_give_the_same_rows_labels_and_positions(dump: Path, corpus: Path, teacher: Path) -> None:
    tokenizer, task = AutoTokenizer.from_pretrained(teacher), task_named(TASK)
    columns = task.columns(ColumnNames(), labels_required=True)
    files = TextSource(task, [str(corpus)], columns, tokenizer, WINDOWS["max_length"], stride=WINDOWS["stride"])

    def rows(source: Any) -> dict[int, tuple[list[int], list[int], list[int]]]:
        found = {}
        for group in range(len(source.group_rows)):
            loaded = source.load(group, [])
            for at, row in enumerate(loaded.rows.tolist()):
                ids = slice(loaded.token_offsets[at], loaded.token_offsets[at + 1])
                part = slice(loaded.position_offsets[at], loaded.position_offsets[at + 1])
                values = loaded.input_ids[ids], loaded.positions[part], loaded.labels[part]
                found[row] = tuple(each.tolist() for each in values)
        return found

    assert rows(files) == rows(DumpSource(dump))
    assert whose(files) == whose(DumpSource(dump))
    assert set(files.load(0, [OFFSETS]).columns) == {OFFSETS}
    assert files.label_names == DumpSource(dump).label_names == ("start", "end")


@pytest.mark.parametrize("student", [TINY, BILSTM], ids=["transformer", "bilstm"])
def test_from_a_dump_to_scores(dump: Path, corpus: Path, tmp_path: Path, student: dict[str, Any]) -> None:
    losses = [{"kind": kind} for kind in ("kl", "gold", "logits-mse", "teacher-label")]
    losses.append({"kind": "hidden", "teacher_layer": 2, "student_layer": -1})  # type: ignore[dict-item]
    held_out = {"data": [str(corpus)], "dump": dump, "stride": 8}

    result = distill.run(recipe(tmp_path / "student", student, *losses, dump=dump, eval=held_out), resume=False)

    assert result.report is not None
    scores = result.report.metrics
    assert list(scores)[:2] == ["f1", "exact_match"]
    assert (result.report.questions, result.report.rows) == (20, sum(DumpSource(dump).group_rows))
    assert 0 <= scores["exact_match"] <= scores["f1"] <= 1
    assert result.report.agreement is not None
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "student")
    assert loaded(input_ids=torch.tensor([[5, 6, 7]])).start_logits.shape == (1, 3)
    assert json.loads((tmp_path / "student" / "metrics.json").read_text())["task"] == TASK


def test_a_student_that_is_the_teacher_agrees_with_its_dump(dump: Path, corpus: Path, teacher: Path) -> None:
    report = evaluate(teacher, [str(corpus)], ScoredColumns(), dump, device="cpu", stride=8)
    assert report.agreement == 1.0
    assert report.divergence == pytest.approx(0.0, abs=1e-5)


def test_answers_are_learnt_from_gold_labels_alone(write_corpus: Any, tmp_path: Path, teacher: Path) -> None:
    """The answer is always the word "fox": EM goes to 1 only if labels, decoding and text agree with each other."""
    texts = ["the quick brown fox jumps", "fox over a lazy dog", "seven wizards box some fox jugs", "a lazy fox"]
    rows = [
        {"question": "which fox", "context": text, "answer_texts": ["fox"], "answer_starts": [text.index("fox")]}
        for text in texts
    ]
    rows.append({"question": "which fox", "context": "some jugs of liquor", "answer_texts": [], "answer_starts": []})
    files = str(write_corpus(tmp_path / "fox.jsonl", rows))
    result = distill.run(
        recipe(
            tmp_path / "student",
            BILSTM | {"dropout": 0.0},
            {"kind": "gold"},
            data={"task": TASK, "train": [files], "tokenizer": str(teacher), "max_length": 16},
            eval={"data": [files]},
            training={"max_steps": 80, "batch_size": 5, "learning_rate": 3e-2},
        ),
        resume=False,
    )
    assert result.report is not None
    assert result.report.metrics == pytest.approx(
        {"f1": 1, "exact_match": 1, "f1_with_answer": 1, "f1_without_answer": 1}
    )


def test_an_answer_in_the_second_window_is_found(write_corpus: Any, tmp_path: Path, teacher: Path, dump: Path) -> None:
    """Every window is scored, whatever the order of the batches."""
    tokenizer, task = AutoTokenizer.from_pretrained(teacher), task_named(TASK)
    text = "some jugs of liquor " * 6 + "fox"
    row = {"question": "which fox", "context": text, "answer_texts": ["fox"], "answer_starts": [text.index("fox")]}
    path = str(write_corpus(tmp_path / "a.jsonl", [row]))
    source = TextSource(task, [path], task.columns(ColumnNames(), True), tokenizer, 16, stride=4)
    batches = list(in_order(source, [OFFSETS], 2, by_length=True))
    labels = {
        row: batch.labels.reshape(-1, 2)[at].tolist() for batch in batches for at, row in enumerate(batch.rows.tolist())
    }
    *others, last = [labels[number] for number in sorted(labels)]
    assert all(each == [0, 0] for each in others)
    assert last[0] == last[1] > 0


def test_scores_by_group_are_those_of_each_groups_questions_alone(
    write_corpus: Any, tmp_path: Path, teacher: Path, rows: list[dict[str, Any]]
) -> None:
    """Questions of several windows, which `evaluate` reads out of order."""
    named = [row | {"of": ("a", "b", "b")[number % 3]} for number, row in enumerate(rows)]

    def scored(path: str, members: list[dict[str, Any]], **names: str) -> Any:
        data = [str(write_corpus(tmp_path / path, members))]
        return evaluate(teacher, data, ScoredColumns(**names), device="cpu", max_length=24, stride=4)

    groups = scored("all.jsonl", named, group_column="of").groups
    assert groups is not None
    for name in ("a", "b"):
        alone = scored(f"{name}.jsonl", [row for row in named if row["of"] == name])
        assert groups.metrics[name]["f1"] == pytest.approx(alone.metrics["f1"])
        assert groups.rows[name] == alone.rows > alone.questions
    assert groups.metrics["a"]["f1"] != pytest.approx(groups.metrics["b"]["f1"])


def whose(source: Source) -> dict[int, tuple[int, bool]]:
    """Row -> (its question, whether it has a gold answer), as the source says."""
    found: dict[int, tuple[int, bool]] = {}
    for group in range(len(source.group_rows)):
        questions, is_labelled = (each.tolist() for each in source.gold(group))
        rows = source.load(group, []).rows.tolist()
        found |= dict(zip(rows, zip(questions, is_labelled, strict=True), strict=True))
    return found


def test_all_windows_of_a_question_are_held_out_or_none(dump: Path) -> None:
    source = DumpSource(dump)
    split, question_of = Split(source, 0.5, seed=1), whose(source)
    groups = Dump(dump).scan().select("row", "question").collect()
    assert {row: question for row, (question, _) in question_of.items()} == dict(groups.iter_rows())
    assert len(question_of) > len(set(groups["question"]))
    sides = [
        {question_of[row][0] for at in range(len(part.group_rows)) for row in part.load(at, []).rows.tolist()}
        for part in (split.to_train("all"), split.held_out("all"))
    ]
    assert all(sides)
    assert sides[0].isdisjoint(sides[1])
    assert sides[0] | sides[1] == set(groups["question"])


def test_windows_that_are_held_out_score_a_stage_by_loss_and_agreement(dump: Path) -> None:
    """Against a plain loop over the rows' own positions."""
    source = DumpSource(dump)
    torch.manual_seed(0)
    made = recipe(
        Path("out"),
        TINY | {"dropout": 0.0},
        dump=dump,
        stage=[
            {"name": "gold", "loss": [{"kind": "gold"}], "rows": "labelled"},
            {"name": "kl", "loss": [{"kind": "kl"}], "metric": "agreement"},
        ],
        validation={"share": 0.5, "every_steps": 2},
    )
    student = build_student(
        made.student,
        Needs(
            auto_class="AutoModelForQuestionAnswering",
            vocab_size=source.vocabulary,
            tokenizer_size=len(source.tokenizer),
            label_names=source.label_names,
            pad_token_id=0,
            max_length=source.max_length,
        ),
    )
    student.distillation_projections = torch.nn.ModuleDict()
    found = [each.validation.score(student) for each in training_plan(made, source, student) if each.validation]
    student.eval()
    nats, agreed = [], []
    for batch in in_order(Split(source, 0.5, 0).held_out("all"), ["distribution.logits"], 1):
        with torch.no_grad():
            output = student(**batch.inputs)
        at = batch.positions
        teacher = batch.columns["distribution.logits"].double().reshape(-1, 2)
        for end, logits in enumerate((output.start_logits, output.end_logits)):
            own, gold = logits[0, at].double(), int(batch.labels[end])
            nats += [float(-own.log_softmax(0)[gold])] if gold >= 0 else []
            agreed.append(float(own.argmax() == teacher[:, end].argmax()))
    assert 0 < len(nats) < len(agreed)
    assert found == [pytest.approx(np.mean(nats), rel=1e-4), pytest.approx(np.mean(agreed))]


def test_stages_see_the_windows_whose_answers_are_known(dump: Path, tmp_path: Path) -> None:
    stages = [
        {"name": "kl", "loss": [{"kind": "kl"}]},
        {"name": "gold", "loss": [{"kind": "gold"}], "rows": "labelled", "unfreeze": "gradual"},
    ]
    validation = {"share": 0.3, "every_steps": 2}
    result = distill.run(recipe(tmp_path / "a", BILSTM, dump=dump, stage=stages, validation=validation), resume=False)
    assert result.steps == 3 * len(json.loads((tmp_path / "a" / "stages.json").read_text())) >= 9


def test_f1_of_windows_that_are_held_out_is_refused(dump: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "a", TINY, {"kind": "kl"}, dump=dump, validation={"share": 0.5, "metric": "f1"})
    with pytest.raises(RecipeError, match=r"the metric 'f1' is not available for question.* valid ones are loss, agre"):
        distill.run(made, resume=False)


def test_a_dump_without_answers_has_no_gold_to_learn(make_dump: Any, teacher: Path, rows: Any, tmp_path: Path) -> None:
    bare = make_dump(TASK, teacher=teacher, data=rows, answers_column="none", **WINDOWS)
    with pytest.raises(RecipeError, match="needs gold labels"):
        distill.run(recipe(tmp_path / "student", TINY, {"kind": "gold"}, dump=bare), resume=False)


def test_a_killed_run_goes_on_to_the_same_weights(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str) -> Recipe:
        return recipe(tmp_path / name, TINY, {"kind": "kl"}, dump=dump, training={"max_steps": 6, "save_steps": 3})

    def weights(output: Path) -> dict[str, Tensor]:
        return dict(AutoModelForQuestionAnswering.from_pretrained(output).state_dict())

    whole = weights(distill.run(made("whole"), resume=False).output)
    child = os.fork()
    if child == 0:
        calls, original = [0], DistillationTrainer.compute_loss

        def deadly(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        monkeypatch.setattr(DistillationTrainer, "compute_loss", deadly)
        try:
            distill.run(made("killed"), resume=False)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoints" / "training" / "checkpoint-3" / "trainer_state.json").exists()

    found = weights(distill.run(made("killed"), resume=True).output)

    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
