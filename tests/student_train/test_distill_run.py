"""`distill.run` from recipe to scored student, on dumps of tiny teachers: files, training and resuming."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from shared import Dump
from shared.errors import RecipeError, UsageError
from shared.storage.files import only_one
from shared.text.tasks import TASKS
from student_train import cli, distill
from student_train.recipe.kept import recipe_json
from student_train.recipe.recipe import Recipe
from student_train.training import journal
from student_train.training.trainer import DistillationTrainer
from tests.student_train.runs import BILSTM, GOLD, HIDDEN, KL, TRANSFORMER, are_equal, recipe, weights

# ---------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize(
    ("task", "student"),
    [(task, TRANSFORMER) for task in TASKS]
    + [(task, BILSTM) for task in ("sequence-classification", "token-classification", "encoder")]
    + [(task, {"kind": "pretrained"}) for task in ("causal-lm", "sequence-classification")],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_every_kind_of_student_is_saved_scored_and_described(
    task: str,
    student: dict[str, Any],
    dumps: dict[str, Path],
    teachers: dict[str, Path],
    corpora: dict[str, Path],
    tmp_path: Path,
) -> None:
    if student["kind"] == "pretrained":
        student = {**student, "path": str(teachers[task])}
    has_classes = Dump(dumps[task]).manifest.distribution is not None
    losses = [KL, GOLD, HIDDEN] if has_classes else [HIDDEN]
    scoring = {"eval": {"data": [str(corpora[task])], "dump": dumps[task]}} if has_classes else {}
    output = tmp_path / "out" / "student"
    result = distill.run(recipe(output, student, *losses, dump=dumps[task], **scoring), resume=False)

    model, info = getattr(transformers, TASKS[task].auto_class).from_pretrained(output, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert (result.output, result.steps) == (output, 3)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(dumps[task] / "tokenizer").get_vocab()
    assert tokenizer.model_max_length == 64
    assert json.loads((output / "recipe.json").read_text())["dump"] == str(dumps[task])
    assert not (output / "checkpoints").exists()
    assert not (output / "student.tmp").exists()
    card = (output / "README.md").read_text()
    assert "3 steps" in card
    rows = Dump(dumps[task]).manifest.corpus.rows
    assert f"{rows} rows" in card
    if TASKS[task].has_labels and TASKS[task].label_names is None:
        assert tuple(model.config.id2label.values()) == Dump(dumps[task]).manifest.label_names
    if has_classes:
        metrics = json.loads((output / "metrics.json").read_text())
        assert result.report is not None
        assert metrics == result.report.as_dict()
        assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert (metrics["rows"], metrics["task"]) == (rows, task)
        assert 0 <= metrics["agreement"] <= 1
        assert set(metrics["latency_ms"]) == {"1", "32"}
        assert f"{metrics['agreement']:.4f}" in card
    else:
        assert result.report is None
        assert not (output / "metrics.json").exists()


def test_a_student_needs_no_teacher_and_no_particular_place_of_the_dump(
    make_teacher: Callable[..., Path], make_dump: Callable[..., Path], toy_rows: Any, tmp_path: Path
) -> None:
    teacher = make_teacher("sequence-classification")
    made = make_dump(teacher=teacher, data=toy_rows("sequence-classification"), out=tmp_path / "here" / "dump")
    first = distill.run(recipe(tmp_path / "first", TRANSFORMER, KL, dump=made), resume=False)
    shutil.rmtree(teacher)
    moved = Path(shutil.move(made, tmp_path / "elsewhere"))
    second = distill.run(recipe(tmp_path / "second", TRANSFORMER, KL, dump=moved), resume=False)
    assert are_equal(weights(first.output), weights(second.output))


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm", "sequence-classification", "token-classification"])
def test_a_student_comes_closer_to_its_teacher(
    task: str, dumps: dict[str, Path], corpora: dict[str, Path], tmp_path: Path
) -> None:
    def divergence(steps: int) -> float:
        result = distill.run(
            recipe(
                tmp_path / f"{steps}-steps",
                {**TRANSFORMER, "dropout": 0.0},
                KL,
                dump=dumps[task],
                eval={"data": [str(corpora[task])], "dump": dumps[task]},
                training={"max_steps": steps, "learning_rate": 1e-2},
            ),
            resume=False,
        )
        assert result.report is not None
        assert result.report.divergence is not None
        return result.report.divergence

    assert divergence(60) < 0.8 * divergence(1)


def test_the_seed_decides_and_nothing_else(dumps: dict[str, Path], tmp_path: Path) -> None:
    def train(name: str, seed: int) -> dict[str, torch.Tensor]:
        made = recipe(tmp_path / name, TRANSFORMER, KL, dump=dumps["sequence-classification"], training={"seed": seed})
        return weights(distill.run(made, resume=False).output)

    first = train("first", 1)
    torch.manual_seed(99)
    assert are_equal(first, train("again", 1))
    assert not are_equal(first, train("other", 2))


def test_a_projection_is_trained_along(dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    original = DistillationTrainer.release

    def look(self: Any) -> Any:
        (projection,) = self.model.distillation_projections["0"].values()
        seen.append(projection.weight.detach().clone())
        return original(self)

    monkeypatch.setattr(DistillationTrainer, "release", look)
    for name, rate in (("still", 1e-12), ("moved", 1e-2)):
        made = recipe(tmp_path / name, TRANSFORMER, HIDDEN, dump=dumps["encoder"], training={"learning_rate": rate})
        distill.run(made, resume=False)
    assert (seen[0] - seen[1]).abs().mean() > 1e-3


def test_frozen_embeddings_stay_as_they_are(dumps: dict[str, Path], teachers: dict[str, Path], tmp_path: Path) -> None:
    task = "sequence-classification"
    student = {"kind": "pretrained", "path": str(teachers[task])}
    made = recipe(tmp_path / "a", student, KL, dump=dumps[task], training={"freeze_embeddings": True})
    before, after = weights(teachers[task]), weights(distill.run(made, resume=False).output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "bert.embeddings.word_embeddings.weight" not in changed
    assert "classifier.weight" in changed


@pytest.mark.parametrize("task", ["sequence-classification", "causal-lm"])
def test_two_accumulated_batches_are_one_of_twice_the_size(
    task: str, make_dump: Callable[..., Path], teachers: dict[str, Path], texts: list[str], tmp_path: Path
) -> None:
    """Of 16 rows cut to one length, so that the mean of two means is that of all. (Trainer treats llama otherwise.)"""
    long_ones = [text for text in texts if len(text.split()) > 6][:16]
    dump = make_dump(task, teacher=teachers[task], data=long_ones, max_length=6)
    student = {**TRANSFORMER, "dropout": 0.0}

    def train(name: str, **training: Any) -> dict[str, torch.Tensor]:
        options = {"max_steps": 1, "learning_rate": 1e-2, "warmup": 0.0, **training}
        return weights(
            distill.run(recipe(tmp_path / name, student, KL, dump=dump, training=options), False).output, task
        )

    whole = train("whole", batch_size=16)
    halves = train("halves", batch_size=8, gradient_accumulation=2)
    half = train("half", batch_size=8)
    norm = torch.cat([value.flatten() for value in whole.values()]).norm()
    apart = torch.cat([(whole[name] - halves[name]).flatten() for name in whole]).norm() / norm
    other = torch.cat([(whole[name] - half[name]).flatten() for name in whole]).norm() / norm
    assert apart < 1e-3
    assert apart < other / 10


def test_epochs_are_counted_in_batches_and_accumulation(dumps: dict[str, Path], tmp_path: Path) -> None:
    def steps(name: str, **training: Any) -> int:
        made = recipe(
            tmp_path / name, BILSTM, KL, dump=dumps["sequence-classification"], training={"max_steps": None, **training}
        )
        return distill.run(made, resume=False).steps

    assert steps("a", epochs=2, batch_size=16) == 8  # 60 rows are 4 batches
    assert steps("b", epochs=0.5, batch_size=16) == 2
    assert steps("c", epochs=2, batch_size=8, gradient_accumulation=4) == 4


# ---------------------------------------------------------------- gold labels, no dump


def test_fine_tuning_on_gold_labels_learns_them(
    teachers: dict[str, Path], write_corpus: Callable[..., Path], texts: list[str], tmp_path: Path
) -> None:
    rows = [{"body": text, "kind": "with" if "fox" in text else "without"} for text in texts]
    train = write_corpus(tmp_path / "train.csv", rows[:200])
    held_out = write_corpus(tmp_path / "held_out.parquet", rows[200:])
    columns = {"text_column": "body", "label_column": "kind"}
    made = recipe(
        tmp_path / "student",
        {"kind": "bilstm", "embedding_size": 32, "hidden_size": 32, "dropout": 0.0},
        GOLD,
        data={
            "task": "sequence-classification",
            "train": [str(train)],
            "tokenizer": str(teachers["sequence-classification"]),
            "max_length": 64,
            **columns,
        },
        eval={"data": [str(held_out)], **columns},
        training={"max_steps": 150, "learning_rate": 1e-2},
    )
    result = distill.run(made, resume=False)
    assert result.report is not None
    assert result.report.metrics["accuracy"] > 0.9
    assert result.report.agreement is None
    model = transformers.AutoModelForSequenceClassification.from_pretrained(result.output)
    assert model.config.id2label == {0: "with", 1: "without"}


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm", "token-classification"])
def test_fine_tuning_goes_for_every_task(
    task: str, teachers: dict[str, Path], corpora: dict[str, Path], tmp_path: Path
) -> None:
    """A teacher made of a checkpoint: its tokenizer is the checkpoint's own, its labels those that occur."""
    student = {"kind": "pretrained", "path": str(teachers[task])}
    data = {"task": task, "train": [str(corpora[task])], "max_length": 32, "labels": ["O", "B-X", "I-X"]}
    if task != "token-classification":
        del data["labels"]
    made = recipe(tmp_path / "a", student, GOLD, data=data, eval={"data": [str(corpora[task])]})
    result = distill.run(made, resume=False)
    assert result.report is not None
    assert not are_equal(weights(teachers[task], task), weights(result.output, task))


# ---------------------------------------------------------------- stopping and resuming


def interrupted(made: Recipe, monkeypatch: pytest.MonkeyPatch, call: str, at: int) -> None:
    """Run it in a child that is killed with SIGKILL when a method of the trainer is called for the `at`-th time."""
    child = os.fork()
    if child == 0:
        original, calls = getattr(DistillationTrainer, call), [0]

        def deadly(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        monkeypatch.setattr(DistillationTrainer, call, deadly)
        try:
            distill.run(made, resume=False)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("call", "at", "kept"),
    [
        ("compute_loss", 2, None),  # before the first checkpoint
        ("compute_loss", 15, "checkpoint-6"),  # in the second half of step 8, in the second epoch
        ("_save_rng_state", 2, "checkpoint-3"),  # while checkpoint 6 was written
    ],
)
def test_a_killed_run_goes_on_to_the_very_weights_of_an_undisturbed_one(
    call: str, at: int, kept: str | None, dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, accumulation, a projection that is trained, and a learning rate that changes with every step."""

    def made(name: str) -> Recipe:
        return recipe(
            tmp_path / name,
            {**TRANSFORMER, "dropout": 0.2},
            KL,
            HIDDEN,
            dump=dumps["sequence-classification"],
            training={"max_steps": 9, "save_steps": 3, "gradient_accumulation": 2, "scheduler": "cosine"},
        )

    undisturbed = weights(distill.run(made("undisturbed"), resume=False).output)
    killed = made("killed")
    interrupted(killed, monkeypatch, call, at)
    assert not distill.is_finished(killed.output)
    if kept is not None:
        assert (killed.output / "checkpoints" / "training" / kept / "trainer_state.json").exists()
        with pytest.raises(RecipeError, match="an unfinished run is there; add --resume"):
            distill.run(killed, resume=False)
        other = killed.model_copy(update={"student": killed.student.model_copy(update={"dropout": 0.3})})
        with pytest.raises(RecipeError, match="has another recipe"):
            distill.run(other, resume=True)
    steps: list[int] = []
    original = DistillationTrainer.training_step

    def count(self: Any, *arguments: Any, **options: Any) -> Any:
        steps.append(self.state.global_step)
        return original(self, *arguments, **options)

    monkeypatch.setattr(DistillationTrainer, "training_step", count)
    distill.run(killed, resume=True)
    assert steps[0] == (int(kept.rpartition("-")[2]) if kept else 0)
    assert are_equal(undisturbed, weights(killed.output))
    assert not (killed.output / "checkpoints").exists()


@pytest.mark.parametrize("source", ["dump", "files"])
def test_a_run_does_not_go_on_with_another_dump_or_other_files_at_the_same_place(
    source: str,
    make_teacher: Callable[..., Path],
    make_dump: Callable[..., Path],
    write_corpus: Callable[..., Path],
    toy_rows: Any,
    teachers: dict[str, Path],
    dumps: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = "sequence-classification"
    place, aside = tmp_path / "place.jsonl", tmp_path / "aside"
    training = {"max_steps": 9, "save_steps": 3}
    if source == "dump":
        shutil.copytree(dumps[task], place)
        made = recipe(tmp_path / "a", BILSTM, KL, dump=place, training=training)
        other = make_dump(teacher=make_teacher(task, seed=1), data=toy_rows(task), out=tmp_path / "other")
    else:
        rows = toy_rows(task)
        write_corpus(place, rows)
        data = {"task": task, "train": [str(place)], "tokenizer": str(teachers[task]), "max_length": 64}
        made = recipe(tmp_path / "a", BILSTM, GOLD, data=data, training=training)
        other = write_corpus(tmp_path / "other.jsonl", [*rows[1:], rows[0]])
    interrupted(made, monkeypatch, "compute_loss", 5)
    place.rename(aside)
    other.rename(place)
    before = {path: path.read_bytes() for path in made.output.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match=r"place.jsonl: not what the unfinished run in .* began with"):
        distill.run(made, resume=True)
    assert before == {path: path.read_bytes() for path in made.output.rglob("*") if path.is_file()}
    place.rename(tmp_path / "gone")
    aside.rename(place)
    distill.run(made, resume=True)
    assert distill.is_finished(made.output)


def test_a_run_killed_after_its_last_step_takes_no_other(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(name: str) -> Recipe:
        training = {"max_steps": 4, "scheduler": "constant_with_warmup", "learning_rate": 1e-2}
        return recipe(tmp_path / name, TRANSFORMER, KL, dump=dumps["sequence-classification"], training=training)

    undisturbed = weights(distill.run(made("undisturbed"), resume=False).output)
    killed = made("killed")
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "release", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            distill.run(killed, resume=False)
    assert (killed.output / "checkpoints" / "training" / "checkpoint-4").exists()
    distill.run(killed, resume=True)
    assert are_equal(undisturbed, weights(killed.output))


def test_a_run_killed_while_it_was_scored_is_scored_on_resume(
    dumps: dict[str, Path], corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(
        tmp_path / "a",
        BILSTM,
        KL,
        dump=dumps["sequence-classification"],
        eval={"data": [str(corpora["sequence-classification"])]},
    )
    with monkeypatch.context() as patch:
        patch.setattr(distill, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            distill.run(made, resume=False)
    assert not distill.is_finished(made.output)
    distill.run(made, resume=True)
    assert distill.is_finished(made.output)
    assert json.loads((made.output / "metrics.json").read_text())["model"] == str(made.output)


@pytest.mark.parametrize("student", [{**TRANSFORMER, "model_type": "llama"}, TRANSFORMER, BILSTM])
def test_a_run_killed_after_its_last_stage_saves_the_same_configuration(
    student: dict[str, Any], dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(name: str) -> Recipe:
        return recipe(tmp_path / name, student, KL, dump=dumps["sequence-classification"])

    undisturbed, killed = distill.run(made("undisturbed"), resume=False).output, made("killed")
    with monkeypatch.context() as patch:
        patch.setattr(distill, "_save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            distill.run(killed, resume=False)
    distill.run(killed, resume=True)
    for name in ("config.json", "model.safetensors"):
        assert (undisturbed / name).read_bytes() == (killed.output / name).read_bytes()
    assert json.loads((undisturbed / "config.json").read_text()).get("use_cache", True)


def test_what_a_run_leaves_that_is_killed_at_its_very_end_is_removed_on_resume(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"])
    commit = distill._commit

    def killed(*paths: Path) -> None:
        commit(*paths)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(distill, "_commit", killed)
        with pytest.raises(KeyboardInterrupt):
            distill.run(made, resume=False)
    assert distill.is_finished(made.output)
    assert (made.output / "checkpoints").exists()
    (tmp_path / "recipe.toml").write_text("")
    monkeypatch.setattr("student_train.recipe.recipe.read_recipe", lambda *_: made)
    monkeypatch.setattr(sys, "argv", ["distill", "run", "recipe.toml", "--resume"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "already finished" in capsys.readouterr().out
    assert not (made.output / "checkpoints").exists()
    (made.output / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "has lost its weights" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("at", ["its rows are kept", "its first stage"])
def test_a_run_killed_before_its_first_step_is_begun_again(
    at: str, dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"])
    with monkeypatch.context() as patch:
        if at == "its rows are kept":
            patch.setattr(journal, "keep_rows", killed)
        else:
            patch.setattr(distill, "_train", killed)
        with pytest.raises(KeyboardInterrupt):
            distill.run(made, resume=False)
    distill.run(made, resume=True)
    assert distill.is_finished(made.output)


def test_a_run_at_work_is_not_joined_by_a_second_one(dumps: dict[str, Path], tmp_path: Path) -> None:
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"])
    made.output.mkdir()
    (made.output / "recipe.json").write_text(recipe_json(made))
    with only_one(made.output), pytest.raises(UsageError, match="another run is at work"):
        distill.run(made, resume=True)
    assert [path.name for path in made.output.iterdir()] == ["recipe.json"]


def test_a_finished_student_is_not_overwritten(dumps: dict[str, Path], tmp_path: Path) -> None:
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"])
    distill.run(made, resume=False)
    before = {path: path.read_bytes() for path in made.output.rglob("*") if path.is_file()}
    for resume in (False, True):
        with pytest.raises(RecipeError, match="there is already a finished student"):
            distill.run(made, resume=resume)
    assert before == {path: path.read_bytes() for path in made.output.rglob("*") if path.is_file()}
