"""`distill.run` from recipe to scored student, on dumps of tiny teachers: what it leaves, resumes, refuses, scores."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from seqeval.metrics import f1_score as seqeval_f1
from transformers import AutoTokenizer

from shared import Dump
from shared.dump.codecs.presets import PRESETS
from shared.dump.storage import only_one
from shared.errors import CorpusError, DumpError, LecternError, RecipeError, UsageError
from shared.text.tasks import TASKS
from student_train import distill, evaluate
from student_train.recipe import Recipe, ScoredColumns
from student_train.trainer import DistillationTrainer

TRANSFORMER = {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2}
BILSTM = {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8}
KL, GOLD = {"kind": "kl"}, {"kind": "gold"}
HIDDEN = {"kind": "hidden", "teacher_layer": 2, "student_layer": -1}

Rows = Callable[..., list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _quick_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LATENCY_SECONDS", 0.0)


@pytest.fixture(scope="module")
def teachers(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    return {task: make_teacher(task) for task in TASKS}


@pytest.fixture(scope="module")
def corpora(
    tmp_path_factory: pytest.TempPathFactory, write_corpus: Callable[..., Path], toy_rows: Rows
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return {task: write_corpus(folder / f"{task}.jsonl", toy_rows(task)) for task in TASKS}


@pytest.fixture(scope="module")
def dumps(make_dump: Callable[..., Path], teachers: dict[str, Path], corpora: dict[str, Path]) -> dict[str, Path]:
    """One of each task; that of the encoder with the layer 2 that all have, and nothing else."""
    return {task: make_dump(task, teacher=teachers[task], data=corpora[task], hidden="2") for task in TASKS}


def recipe(output: Path, student: dict[str, Any], *losses: dict[str, Any], **sections: Any) -> Recipe:
    training = {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu"} | sections.pop("training", {})
    return Recipe.model_validate(
        {"output": output, "student": student, "loss": losses, "training": training, **sections}
    )


def weights(folder: Path, task: str = "sequence-classification") -> dict[str, torch.Tensor]:
    model = getattr(transformers, TASKS[task].auto_class).from_pretrained(folder)
    return {name: value.clone() for name, value in model.state_dict().items()}


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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
    has_classes = TASKS[task].classes is not None
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
    if TASKS[task].classes == "labels":
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
    make_teacher: Callable[..., Path], make_dump: Callable[..., Path], toy_rows: Rows, tmp_path: Path
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
    if not TASKS[task].words:
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
    """With dropout, accumulation, a learnt projection and a rate that changes with every step."""

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


def test_a_run_at_work_is_not_joined_by_a_second_one(dumps: dict[str, Path], tmp_path: Path) -> None:
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"])
    made.output.mkdir()
    (made.output / "recipe.json").write_text("the other run's")
    with only_one(made.output), pytest.raises(UsageError, match="another run is at work"):
        distill.run(made, resume=True)
    assert [path.name for path in made.output.iterdir()] == ["recipe.json"]


def test_a_finished_student_is_not_overwritten(dumps: dict[str, Path], tmp_path: Path) -> None:
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"])
    distill.run(made, resume=False)
    before = {path: path.read_bytes() for path in made.output.rglob("*") if path.is_file()}
    for resume in (False, True):
        with pytest.raises(RecipeError, match="there is a finished student already"):
            distill.run(made, resume=resume)
    assert before == {path: path.read_bytes() for path in made.output.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- refusals


@pytest.fixture
def copy(dumps: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda task: Path(shutil.copytree(dumps[task], tmp_path / "copy"))


def refused(made: Recipe, error: type[LecternError], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fails with this message before it has taken a step, and leaves nothing behind."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(DistillationTrainer, "compute_loss", never)
    with pytest.raises(error, match=message) as raised:
        distill.run(made, resume=False)
    assert "\n" not in str(raised.value)
    assert not made.output.exists()


def test_a_dump_with_a_shard_missing_is_refused(copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = copy("sequence-classification")
    (dump / "shards" / "00001.json").unlink()
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dump)
    refused(made, DumpError, r"1 of 4 shards are missing or cut short \(00001\)", monkeypatch)


def test_a_dump_with_a_flipped_byte_is_refused(copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = copy("sequence-classification")
    shard = dump / "shards" / "00002.parquet"
    content = bytearray(shard.read_bytes())
    ids = pq.ParquetFile(shard).metadata.row_group(0).column(1)
    content[ids.data_page_offset + ids.total_compressed_size - 1] ^= 1
    shard.write_bytes(content)
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dump)
    refused(made, DumpError, r"00002\.parquet: damaged \(row group 0: .*CRC", monkeypatch)


def test_what_is_no_dump_is_refused(copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(recipe(tmp_path / "a", BILSTM, KL, dump=tmp_path / "no"), DumpError, "no dump here", monkeypatch)
    dump = copy("sequence-classification")
    shutil.rmtree(dump / "tokenizer")
    refused(recipe(tmp_path / "a", BILSTM, KL, dump=dump), RecipeError, "no tokenizer", monkeypatch)
    manifest = json.loads((dump / "manifest.json").read_text())
    (dump / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    refused(recipe(tmp_path / "a", BILSTM, KL, dump=dump), DumpError, "format version 99", monkeypatch)


@pytest.mark.parametrize(
    ("task", "loss", "message"),
    [
        ("sequence-classification", {**HIDDEN, "teacher_layer": 1}, r"needs the signal 'hidden\.1', .* hidden\.2"),
        ("sequence-classification", {**HIDDEN, "student_layer": 5}, r"loss\.0\.student_layer = 5: the student has"),
        ("causal-lm", {"kind": "logits-mse"}, r"needs all logits"),
        ("encoder", KL, r"needs the signal 'distribution'"),
        ("encoder", GOLD, r"needs gold labels"),
    ],
)
def test_a_loss_that_the_dump_cannot_serve_is_refused(
    task: str,
    loss: dict[str, Any],
    message: str,
    dumps: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused(recipe(tmp_path / "a", TRANSFORMER, loss, dump=dumps[task]), RecipeError, message, monkeypatch)


def test_labels_in_another_order_than_the_students_are_refused(
    make_teacher: Callable[..., Path], dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["positive", "neutral", "negative"]
    other = make_teacher(
        "sequence-classification",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    student = {"kind": "pretrained", "path": str(other)}
    made = recipe(tmp_path / "a", student, KL, dump=dumps["sequence-classification"])
    refused(made, RecipeError, "positive, neutral, negative, and the dump has negative, neutral, positive", monkeypatch)


def test_a_student_with_another_tokenizer_is_refused(
    make_teacher: Callable[..., Path],
    tiny_causal_tokenizer: Any,
    dumps: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One with more entries than the dump's, so that no id is out of reach, and yet each is another token."""
    other = make_teacher("sequence-classification", tokenizer=tiny_causal_tokenizer)
    made = recipe(tmp_path / "a", {"kind": "pretrained", "path": str(other)}, KL, dump=dumps["sequence-classification"])
    refused(made, RecipeError, r"its tokenizer \(300 entries\) is not that of .* \(1\d\d entries\)", monkeypatch)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, CorpusError, r"dev\.jsonl: there is no such file"),
        (
            '{"text": "a", "label": "unknown"}\n',
            CorpusError,
            r"dev\.jsonl, line 1: label 'unknown' is not one of the 3",
        ),
        ('{"text": "a"}\n', CorpusError, r"no column 'label' in .*dev\.jsonl"),
        ('{"body": "a", "label": "neutral"}\n', CorpusError, r"dev\.jsonl: no column 'text'"),
    ],
)
def test_a_held_out_file_that_cannot_be_scored_is_refused_before_the_training(
    content: str | None,
    error: type[LecternError],
    message: str,
    dumps: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out = tmp_path / "dev.jsonl"
    if content is not None:
        held_out.write_text(content)
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"], eval={"data": [str(held_out)]})
    refused(made, error, message, monkeypatch)


def test_a_held_out_dump_of_another_task_and_an_unscorable_task_are_refused(
    dumps: dict[str, Path], corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = {"data": [str(corpora["sequence-classification"])], "dump": dumps["causal-lm"]}
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"], eval=held_out)
    refused(made, RecipeError, "a dump of causal-lm, but the model is one for sequence-classification", monkeypatch)
    made = recipe(tmp_path / "a", BILSTM, HIDDEN, dump=dumps["encoder"], eval={"data": held_out["data"]})
    refused(made, RecipeError, "'eval' has nothing to score", monkeypatch)


def test_files_without_gold_labels_or_a_tokenizer_are_refused(
    teachers: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"task": "sequence-classification", "train": [str(write_corpus(tmp_path / "a.jsonl", ["a", "b"]))]}
    refused(recipe(tmp_path / "a", BILSTM, GOLD, data=data), RecipeError, "'data.tokenizer' is missing", monkeypatch)
    data["tokenizer"] = str(teachers["sequence-classification"])
    refused(recipe(tmp_path / "a", BILSTM, GOLD, data=data), CorpusError, "no column 'label'", monkeypatch)
    bare = tmp_path / "bare"
    shutil.copytree(teachers["sequence-classification"], bare, ignore=shutil.ignore_patterns("token*"))
    data["tokenizer"] = str(bare)
    refused(recipe(tmp_path / "a", BILSTM, GOLD, data=data), RecipeError, "no tokenizer", monkeypatch)


# ---------------------------------------------------------------- scores


@lru_cache
def loaded(folder: Path, task: str) -> tuple[Any, Any]:
    return (
        AutoTokenizer.from_pretrained(folder),
        getattr(transformers, TASKS[task].auto_class).from_pretrained(folder).eval(),
    )


def plain_logits(folder: Path, task: str, *text: Any, **options: Any) -> tuple[torch.Tensor, Any]:
    """One row through the model, alone, as transformers' documentation does it."""
    tokenizer, model = loaded(folder, task)
    encoded = tokenizer(*text, return_tensors="pt", truncation=True, max_length=64, **options)
    with torch.no_grad():
        return model(**encoded).logits[0].double(), encoded


def score(folder: Path, data: Path, dump: Path | None = None, **options: Any) -> evaluate.Report:
    return evaluate.evaluate(folder, [str(data)], ScoredColumns(), dump, device="cpu", **options)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def students(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    """Models of other weights than the teachers, to be scored against them."""
    return {task: make_teacher(task, seed=7) for task in TASKS}


def test_accuracy_is_that_of_a_plain_loop_over_labelled_rows(
    students: dict[str, Path], corpora: dict[str, Path]
) -> None:
    task = "sequence-classification"
    rows = [row for row in read(corpora[task]) if row["label"]]
    names = ("negative", "neutral", "positive")
    right = [names[int(plain_logits(students[task], task, row["text"])[0].argmax())] == row["label"] for row in rows]
    report = score(students[task], corpora[task])
    assert report.rows == 60
    assert len(rows) < 60
    assert report.metrics["accuracy"] == pytest.approx(sum(right) / len(right))


def test_perplexity_is_that_of_a_plain_loop_over_tokens(students: dict[str, Path], corpora: dict[str, Path]) -> None:
    total, count = 0.0, 0
    for row in read(corpora["causal-lm"]):
        logits, encoded = plain_logits(students["causal-lm"], "causal-lm", row["text"])
        ids = encoded["input_ids"][0]
        if len(ids) > 1:
            total += float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
            count += len(ids) - 1
    report = score(students["causal-lm"], corpora["causal-lm"])
    assert report.metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_entity_f1_is_that_of_a_plain_loop_over_words(students: dict[str, Path], corpora: dict[str, Path]) -> None:
    task, names = "token-classification", ("O", "B-X", "I-X")
    truth, guesses = [], []
    for row in read(corpora[task]):
        if row["tags"] is None:
            continue
        logits, encoded = plain_logits(students[task], task, row["tokens"], is_split_into_words=True)
        words = encoded.word_ids(0)
        firsts = [words.index(word) for word in sorted({word for word in words if word is not None})]
        guesses.append([names[int(logits[at].argmax())] for at in firsts])
        truth.append(row["tags"][: len(firsts)])
    report = score(students[task], corpora[task])
    assert report.metrics["f1"] == pytest.approx(seqeval_f1(truth, guesses))
    assert report.metrics["f1"] > 0


@pytest.mark.parametrize("task", ["sequence-classification", "causal-lm"])
def test_agreement_and_divergence_are_those_of_two_plain_models(
    task: str, students: dict[str, Path], teachers: dict[str, Path], corpora: dict[str, Path], dumps: dict[str, Path]
) -> None:
    agreed: list[bool] = []
    divergences: list[float] = []
    for row in read(corpora[task]):
        mine, theirs = (plain_logits(folder[task], task, row["text"])[0] for folder in (students, teachers))
        if task == "causal-lm":
            mine, theirs = mine[:-1], theirs[:-1]
        mine, theirs = mine.reshape(-1, mine.shape[-1]), theirs.reshape(-1, theirs.shape[-1])
        agreed += (mine.argmax(-1) == theirs.argmax(-1)).tolist()
        if task == "causal-lm":
            # The dump has the exact probability of the ids above its threshold; what is outside is one class.
            is_exact = theirs.softmax(-1) > PRESETS["default"][0].threshold
            is_exact.scatter_(1, theirs.argmax(-1, keepdim=True), True)
            p, q = (logits.softmax(-1) * is_exact for logits in (theirs, mine))
            p, q = (torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1) for kept in (p, q))
        else:
            p, q = theirs.softmax(-1), mine.softmax(-1)
        divergences += torch.nn.functional.kl_div(q.log().nan_to_num(neginf=0.0), p, reduction="none").sum(-1).tolist()
    report = score(students[task], corpora[task], dumps[task])
    assert report.agreement == pytest.approx(np.mean(agreed), abs=0.01)
    assert report.divergence == pytest.approx(np.mean(divergences), rel=5e-3)
    itself = score(teachers[task], corpora[task], dumps[task])
    assert itself.agreement == pytest.approx(1.0, abs=0.01)
    assert itself.divergence == pytest.approx(0.0, abs=1e-3)


def test_rows_are_cut_to_what_the_model_takes_or_to_what_is_asked(
    teachers: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    long = write_corpus(tmp_path / "long.jsonl", ["the quick brown fox jumps over a lazy dog " * 20])
    whole = score(teachers["causal-lm"], long).metrics["loss"]
    short = score(teachers["causal-lm"], long, max_length=10).metrics["loss"]
    logits, encoded = plain_logits(teachers["causal-lm"], "causal-lm", read(long)[0]["text"])
    ids = encoded["input_ids"][0]
    assert len(ids) == 64
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    assert whole == pytest.approx(float(losses.mean()), rel=1e-4)
    assert short == pytest.approx(float(losses[:9].mean()), rel=1e-4)


def test_a_roberta_student_is_scored_on_rows_as_long_as_it_takes(
    dumps: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    """Its first positions are reserved: 65 of them are room for 64 tokens."""
    long = write_corpus(tmp_path / "long.jsonl", [{"text": "the quick brown fox " * 40, "label": "neutral"}])
    student = {**TRANSFORMER, "model_type": "roberta"}
    made = recipe(tmp_path / "a", student, KL, dump=dumps["sequence-classification"], eval={"data": [str(long)]})
    assert distill.run(made, resume=False).report is not None


def test_a_folder_that_cannot_be_scored_is_refused(
    teachers: dict[str, Path], corpora: dict[str, Path], dumps: dict[str, Path], tmp_path: Path
) -> None:
    task = "sequence-classification"
    with pytest.raises(RecipeError, match="no model can be loaded"):
        score(tmp_path / "no" / "model" / "here", corpora[task])
    with pytest.raises(RecipeError, match=r"has no weights for .*classifier.*lacks that head"):
        score(teachers["encoder"], corpora[task], task_name=task)
    with pytest.raises(RecipeError, match="does not tell the task; name it with --task"):
        score(teachers["encoder"], corpora[task])
    with pytest.raises(UsageError, match="the task encoder has nothing to score"):
        score(teachers["encoder"], corpora[task], task_name="encoder")
    with pytest.raises(RecipeError, match="a dump of causal-lm, but the model is one for sequence-classification"):
        score(teachers[task], corpora[task], dumps["causal-lm"])
    with pytest.raises(UsageError, match="device 'tpu': not to be used here"):
        evaluate.evaluate(teachers[task], [str(corpora[task])], ScoredColumns(), device="tpu")
    bare = tmp_path / "bare"
    shutil.copytree(teachers[task], bare, ignore=shutil.ignore_patterns("token*"))
    with pytest.raises(RecipeError, match="no tokenizer beside this model"):
        score(bare, corpora[task])
