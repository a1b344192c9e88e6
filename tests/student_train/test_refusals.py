"""What `distill.run` refuses before the first step, and that it leaves nothing behind then."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shared.dump.integrity.sealing import seal
from shared.errors import CorpusError, DumpError, LecternError, RecipeError, UsageError
from shared.storage import Folder
from student_train import distill
from student_train.recipe.kept import recipe_json
from student_train.recipe.recipe import Recipe
from student_train.training.trainer import DistillationTrainer
from tests.student_train.runs import BILSTM, GOLD, HIDDEN, KL, TRANSFORMER, recipe


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
    refused(made, DumpError, r"1 of 4 shards are missing or unfinished \(00001\)", monkeypatch)


def test_a_dump_with_a_flipped_byte_is_refused(copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = copy("sequence-classification")
    shard = dump / "shards" / "00002.parquet"
    content = bytearray(shard.read_bytes())
    ids = pq.ParquetFile(shard).metadata.row_group(0).column(1)
    content[ids.data_page_offset + ids.total_compressed_size - 1] ^= 1
    shard.write_bytes(content)
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dump)
    refused(made, DumpError, r"00002\.parquet: damaged shard \(row group 0: .*CRC", monkeypatch)


def test_label_names_edited_by_hand_are_refused_until_they_are_sealed(
    copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = copy("sequence-classification")
    manifest = json.loads((dump / "manifest.json").read_text())
    names = ["bad", "so-so", "good"]
    (dump / "manifest.json").write_text(json.dumps({**manifest, "label_names": names}))
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dump)
    with monkeypatch.context() as patch:
        refused(made, DumpError, r"manifest\.json: not as it was written.*shards seal", patch)
    seal(Folder.of(dump))
    student = distill.run(made, resume=False)
    assert list(json.loads((student.output / "config.json").read_text())["id2label"].values()) == names


def test_what_is_no_dump_is_refused(copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(recipe(tmp_path / "a", BILSTM, KL, dump=tmp_path / "no"), DumpError, "no dump here", monkeypatch)
    dump = copy("sequence-classification")
    shutil.rmtree(dump / "tokenizer")
    refused(recipe(tmp_path / "a", BILSTM, KL, dump=dump), DumpError, "tokenizer.json: missing", monkeypatch)
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
    refused(made, RecipeError, "positive, neutral, negative, but the dump has negative, neutral, positive", monkeypatch)


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


def test_a_held_out_dump_of_another_task_and_embeddings_without_pairs_are_refused(
    dumps: dict[str, Path], corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = {"data": [str(corpora["sequence-classification"])], "dump": dumps["causal-lm"]}
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"], eval=held_out)
    refused(made, RecipeError, "a dump of causal-lm, but the model is one for sequence-classification", monkeypatch)
    made = recipe(tmp_path / "a", BILSTM, HIDDEN, dump=dumps["encoder"], eval={"data": held_out["data"]})
    refused(made, UsageError, "embeddings are scored on pairs of texts: name the columns of both", monkeypatch)


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


# ---------------------------------------------------------------- an output folder that is not ours


def _content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "theirs",
    [
        ["README.md"],
        ["checkpoints/best.pt", "tokenizer.json"],
        ["checkpoints/training/checkpoint-3/model.safetensors"],
        ["student.tmp/draft.txt"],
        ["runs/events"],
        ["recipe.json"],
        ["config.json", "model.safetensors"],
        [".git/HEAD"],
    ],
    ids=lambda names: names[0],
)
def test_a_folder_with_files_of_a_user_is_refused_and_stays_as_it_is(
    theirs: list[str], resume: bool, dumps: dict[str, Path], tmp_path: Path
) -> None:
    made = recipe(tmp_path / "mine", BILSTM, KL, dump=dumps["sequence-classification"])
    for name in theirs:
        (made.output / name).parent.mkdir(parents=True, exist_ok=True)
        (made.output / name).write_text('{"soup": "of the day"}')
    before = _content(made.output)
    with pytest.raises(UsageError, match=f"holds other files already .*{theirs[0].partition('/')[0]}") as raised:
        distill.run(made, resume)
    assert raised.value.exit_code == 2
    with pytest.raises(UsageError, match="holds other files already"):
        distill.check(made)
    assert before == _content(made.output)


def test_an_output_that_is_a_file_is_refused(dumps: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="this is a file; name a folder"):
        distill.run(recipe(tmp_path / "mine", BILSTM, KL, dump=dumps["sequence-classification"]), resume=False)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("place", [".", "student", "shards/student", "../link", "../link/student"])
@pytest.mark.parametrize("key", ["dump", "eval"])
def test_an_output_that_is_the_dump_or_lies_in_it_is_refused(
    key: str, place: str, copy: Any, dumps: dict[str, Path], corpora: dict[str, Path], tmp_path: Path
) -> None:
    task = "sequence-classification"
    dump = copy(task)
    (tmp_path / "link").symlink_to(dump, target_is_directory=True)
    sections: dict[str, Any] = {"dump": dump}
    if key == "eval":
        sections = {"dump": dumps[task], "eval": {"data": [str(corpora[task])], "dump": dump}}
    before = _content(dump)
    with pytest.raises(UsageError, match=r"this is the dump .* or lies in it"):
        distill.run(recipe(dump / place, BILSTM, KL, **sections), resume=False)
    assert before == _content(dump)


@pytest.mark.parametrize("left", [[], ["recipe.json.tmp"]])
def test_an_empty_folder_and_one_that_a_killed_run_has_hardly_begun_are_filled(
    left: list[str], dumps: dict[str, Path], tmp_path: Path
) -> None:
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"])
    made.output.mkdir()
    for name in left:
        (made.output / name).write_text("{")
    distill.run(made, resume=False)
    assert distill.is_finished(made.output)


def test_tracker_files_of_a_killed_run_are_no_files_of_a_user(dumps: dict[str, Path], tmp_path: Path) -> None:
    """Killed before its first checkpoint: the recipe and what a tracker has written are there."""
    made = recipe(tmp_path / "a", BILSTM, KL, dump=dumps["sequence-classification"])
    (made.output / "runs").mkdir(parents=True)
    (made.output / "runs" / "events").write_text("loss")
    (made.output / "recipe.json").write_text(recipe_json(made))
    distill.run(made, resume=True)
    assert distill.is_finished(made.output)
    assert (made.output / "runs" / "events").exists()


def test_a_finished_student_of_another_recipe_is_not_taken_for_this_one(dumps: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        f"""
        output = "{tmp_path / "student"}"
        dump = "{dumps["sequence-classification"]}"
        student = {{ kind = "bilstm", embedding_size = 8, hidden_size = 8 }}
        loss = [{{ kind = "kl" }}]
        training = {{ max_steps = 1, device = "cpu" }}
        """
    )

    def call(*options: str) -> tuple[int, str]:
        called = subprocess.run(
            [sys.executable, "-m", "student_train.cli", "run", str(file), "--resume", *options],
            capture_output=True,
            text=True,
            timeout=300,
        )
        return called.returncode, called.stdout + " ".join(called.stderr.split())

    assert call()[0] == 0
    before = _content(tmp_path / "student")
    code, told = call()
    assert (code, "is already finished, nothing to do" in told) == (0, True)
    code, told = call("--set", "student.hidden_size=64", "--set", "training.seed=1")
    assert code == 2
    assert "student.hidden_size was 8 and is 64, training.seed was 0 and is 1" in told
    assert "Traceback" not in told
    (tmp_path / "student" / "recipe.json").rename(tmp_path / "aside.json")
    code, told = call()
    assert (code, "its recipe.json cannot be read" in told) == (2, True)
    (tmp_path / "aside.json").rename(tmp_path / "student" / "recipe.json")
    assert before == _content(tmp_path / "student")
