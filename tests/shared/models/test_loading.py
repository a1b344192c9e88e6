"""Models and tokenizers of unknown origin: no code is run, nothing is asked, and what is wrong becomes one sentence."""

import ast
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from shared.errors import LecternError, RecipeError, TeacherError
from shared.models import loading
from shared.text.columns import ColumnNames
from student_train import distill
from student_train.scoring import evaluate
from student_train.scoring.export import export
from teacher_dump.annotate import annotate, prepare
from teacher_dump.request import Request
from tests.student_train.runs import KL, TRANSFORMER, recipe

ROOT = Path(__file__).parents[3]
SOURCES = [
    ROOT / "lectern.py",
    *(path for part in ("shared", "teacher_dump", "student_train") for path in (ROOT / part).rglob("*.py")),
]
# What reads a folder of unknown origin, or can run its code.
TASK = "sequence-classification"
LOADS = {"from_pretrained", "from_config"}


def test_only_one_file_loads_from_folders_and_it_always_says_whether_code_is_trusted() -> None:
    found = []
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADS:
                found.append(source.relative_to(ROOT).as_posix())
                assert "trust_remote_code" in {word.arg for word in node.keywords}, f"{source}:{node.lineno}"
    assert set(found) == {"shared/models/loading.py"}


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The path of a file that exists if code of a folder was run; a question would be answered with yes."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists()


CODE = 'import os\nopen(os.environ["MARK"], "w")\nfrom transformers import BertConfig, PreTrainedTokenizerFast\n'
CODE += "class MyConfig(BertConfig):\n    model_type = 'mine'\nclass MyTokenizer(PreTrainedTokenizerFast):\n    pass\n"


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def with_code(folder: Path, part: str) -> Path:
    """Make the configuration or the tokenizer of a folder one that brings its code."""
    (folder / "mine.py").write_text(CODE)
    if part == "config":
        edit(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.MyConfig"})
    else:
        classes = {"AutoTokenizer": [None, "mine.MyTokenizer"]}
        edit(folder / "tokenizer_config.json", tokenizer_class="MyTokenizer", auto_map=classes)
    return folder


@pytest.fixture
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("sequence-classification")


@pytest.fixture
def corpus(tmp_path: Path, write_corpus: Any, toy_rows: Any) -> Path:
    return write_corpus(tmp_path / "rows.jsonl", toy_rows("sequence-classification", 20))


def dump(teacher: Path, corpus: Path, out: Path) -> None:
    options = {"teacher": str(teacher), "task": TASK, "data": (str(corpus),), "out": out}
    annotate(prepare(Request(**options, max_length=64, device="cpu")))


def test_a_teacher_that_brings_code_is_refused(
    teacher: Path, corpus: Path, tmp_path: Path, nobody_is_asked: Path
) -> None:
    with pytest.raises(TeacherError, match=r"config.json asks to run Python code .*dump --trust-remote-code"):
        dump(with_code(teacher, "config"), corpus, tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


def test_a_model_that_brings_code_is_not_scored_exported_or_trained(
    teacher: Path, corpus: Path, tmp_path: Path, nobody_is_asked: Path
) -> None:
    dump(teacher, corpus, tmp_path / "dump")
    with_code(teacher, "config")
    student = {"kind": "pretrained", "path": str(teacher)}
    for attempt in (
        lambda: evaluate.evaluate(teacher, [str(corpus)], evaluate.ScoredColumns()),
        lambda: export(teacher, None, TASK, [], ColumnNames()),
        lambda: distill.run(recipe(tmp_path / "student", student, KL, dump=str(tmp_path / "dump")), resume=False),
    ):
        with pytest.raises(RecipeError, match=r"config.json asks to run Python code"):
            attempt()
    assert not (tmp_path / "student").exists()


def test_a_tokenizer_of_a_known_kind_is_read_without_the_code_beside_it(
    teacher: Path, corpus: Path, tmp_path: Path, nobody_is_asked: Path
) -> None:
    with_code(teacher, "tokenizer")
    dump(teacher, corpus, tmp_path / "dump")
    evaluate.evaluate(teacher, [str(corpus)], evaluate.ScoredColumns())


def test_a_dump_whose_tokenizer_brings_code_is_not_trained_on(
    teacher: Path, corpus: Path, tmp_path: Path, nobody_is_asked: Path
) -> None:
    from shared.dump.integrity.sealing import seal
    from shared.storage import Folder

    dump(teacher, corpus, tmp_path / "dump")
    with_code(tmp_path / "dump" / "tokenizer", "tokenizer")
    seal(Folder.of(tmp_path / "dump"))  # as its maker would
    with pytest.raises(RecipeError, match="run Python code"):
        distill.run(recipe(tmp_path / "student", TRANSFORMER, KL, dump=str(tmp_path / "dump")), resume=False)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def reshape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, value in tensors.items() if value.dim() == 2 and "encoder" in name)
    save_file({**tensors, name: torch.zeros(3, 5)}, folder / "model.safetensors", {"format": "pt"})


def as_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut short": lambda folder: cut(folder / "model.safetensors"),
    "weights with another header": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "pickled weights": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "weights of another shape": reshape,
    "weights are a folder": as_folder,
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "configuration cut short": lambda folder: cut(folder / "config.json"),
    "configuration nested too deeply": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "configuration is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "unknown model type": lambda folder: edit(folder / "config.json", model_type="nonsense"),
    "sizes are words": lambda folder: edit(folder / "config.json", hidden_size="large"),
    "a size that heads do not divide": lambda folder: edit(folder / "config.json", num_attention_heads=7),
    "absurd width": lambda folder: edit(folder / "config.json", hidden_size=10**9, num_attention_heads=10),
    "absurd depth": lambda folder: edit(folder / "config.json", num_hidden_layers=10**7),
    "absurd vocabulary": lambda folder: edit(folder / "config.json", vocab_size=10**12),
    "negative width": lambda folder: edit(folder / "config.json", hidden_size=-32),
    "tokenizer cut short": lambda folder: cut(folder / "tokenizer.json"),
    "tokenizer nested too deeply": lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000),
    "tokenizer settings cut short": lambda folder: cut(folder / "tokenizer_config.json"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_sentence_for_dump_and_eval(
    damage: str, teacher: Path, corpus: Path, tmp_path: Path, no_hang: None
) -> None:
    DAMAGES[damage](teacher)
    for attempt in (
        lambda: dump(teacher, corpus, tmp_path / "dump"),
        lambda: evaluate.evaluate(teacher, [str(corpus)], evaluate.ScoredColumns(), task_name=TASK),
    ):
        with pytest.raises(LecternError) as raised:
            attempt()
        assert str(teacher) in str(raised.value)
        assert "\n" not in str(raised.value)
        assert not str(raised.value).endswith("..")
    assert not (tmp_path / "dump").exists()


def test_counting_parameters_changes_no_random_numbers(teacher: Path) -> None:
    config = AutoConfig.from_pretrained(teacher)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    parameters = loading.parameters_of("AutoModelForSequenceClassification", config)
    assert torch.equal(torch.rand(3), expected)
    assert parameters == loading.fresh_model("AutoModelForSequenceClassification", config, RecipeError).num_parameters()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 10**9, "larger than 8 EB, the most that a tensor can have"),
        ("hidden_size", 10**7, "weights would take"),
        ("layers", 501, "501 layers are more than 500"),
        ("intermediate_size", 10**9, "weights would take"),
    ],
)
def test_a_student_that_does_not_fit_into_memory_is_refused(
    key: str, value: int, message: str, teacher: Path, corpus: Path, tmp_path: Path, no_hang: None
) -> None:
    dump(teacher, corpus, tmp_path / "dump")
    made = recipe(tmp_path / "student", {**TRANSFORMER, key: value}, KL, dump=str(tmp_path / "dump"))
    with pytest.raises(RecipeError, match=message):
        distill.run(made, resume=False)
    assert not os.path.exists(tmp_path / "student")
