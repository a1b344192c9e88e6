"""`distill export`: the file gives the logits of torch for rows of any length, or it is not written."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from shared.errors import LecternError, UsageError
from shared.text.columns import ColumnNames, ScoredColumns
from shared.text.tasks import TASKS
from student_train import cli
from student_train.scoring import export, runtimes
from student_train.scoring.evaluate import evaluate
from student_train.students import BiLSTMConfig, bilstm

LABELS = ("negative", "neutral", "positive")
TAGS = ("O", "B-X", "I-X")
LENGTHS = (1, 11, 4, 7)


@pytest.fixture(scope="session")
def make_model(
    tmp_path_factory: pytest.TempPathFactory,
    make_teacher: Callable[..., Path],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Callable[..., Path]:
    """make_model(kind, task, seed=0) -> a folder; "bert-2" has two layers. Its logits are far from zero."""

    def make(kind: str, task: str, seed: int = 0) -> Path:
        model_type, _, layers = kind.partition("-")
        if model_type != "bilstm":
            name = "n_layers" if model_type == "distilbert" else "num_hidden_layers"
            return make_teacher(task, model_type, seed=seed, **{name: int(layers)})
        names = TAGS if task == "token-classification" else LABELS
        config = BiLSTMConfig(
            vocab_size=len(tiny_tokenizer),
            embedding_size=6,
            hidden_size=8,
            num_hidden_layers=int(layers),
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
        torch.manual_seed(seed)
        model = getattr(transformers, TASKS[task].auto_class).from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_()
        folder = tmp_path_factory.mktemp("student")
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def exported(make_model: Callable[..., Path]) -> Callable[..., export.Exported]:
    """exported(kind, task) -> what `export` makes of such a model, in its folder. Nobody changes the folder."""

    @functools.cache
    def made(kind: str, task: str) -> export.Exported:
        return write(make_model(kind, task))

    return made


@pytest.fixture(scope="session")
def bilstm_folder(exported: Callable[..., export.Exported]) -> Path:
    """A one-layer BiLSTM for sequences, exported."""
    return exported("bilstm-1", "sequence-classification").path.parent


def write(folder: Path, out: Path | None = None, task: str | None = None, **names: Any) -> export.Exported:
    return export.export(folder, out, task, names.pop("data", []), ColumnNames(**names))


def session(file: Path) -> Any:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def rows_of_unequal_length(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    mask = (np.arange(max(LENGTHS)) < np.asarray(LENGTHS)[:, None]).astype(np.int64)
    return generator.integers(5, vocabulary, mask.shape) * mask, mask


# --- the same logits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bilstm-1", "sequence-classification"),
        ("bilstm-2", "sequence-classification"),
        ("bilstm-1", "token-classification"),
        ("bilstm-2", "token-classification"),
        ("bert-2", "sequence-classification"),
        ("bert-1", "token-classification"),
        ("distilbert-1", "sequence-classification"),
        ("bert-1", "masked-lm"),
        ("llama-1", "causal-lm"),
    ],
)
@torch.no_grad()
def test_a_row_in_a_padded_batch_gets_what_torch_says_of_it_alone(
    kind: str, task: str, exported: Callable[..., export.Exported]
) -> None:
    made = exported(kind, task)
    model = getattr(transformers, TASKS[task].auto_class).from_pretrained(made.path.parent).eval()
    ids, mask = rows_of_unequal_length(100)
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (logits,) = session(made.path).run(["logits"], {name: feed[name] for name in made.inputs})
    for row, length in enumerate(LENGTHS):
        alone = model(torch.from_numpy(ids[row : row + 1, :length])).logits[0].numpy()
        found = logits[row] if task == "sequence-classification" else logits[row, :length]
        assert np.abs(alone).max() > 0.1
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)
    assert made.difference < 1e-3
    assert ("token_type_ids" in made.inputs) == kind.startswith("bert")


@pytest.mark.parametrize("kind", ["bilstm-1", "bert-1"])
@torch.no_grad()
def test_starts_and_ends_of_answers_are_those_of_torch(
    kind: str,
    make_model: Callable[..., Path],
    write_corpus: Callable[..., Path],
    toy_rows: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    task = "question-answering"
    rows = [{"asked": row["question"], "context": row["context"]} for row in toy_rows(task, 5)]
    data = [str(write_corpus(tmp_path / "rows.jsonl", rows))]
    folder = make_model(kind, task)
    exported = write(folder, tmp_path / "model.onnx", data=data, question_column="asked")
    assert exported.outputs == ("start_logits", "end_logits")
    assert exported.batches == len(export.CHECKED_SHAPES) + 12
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    ids, mask = rows_of_unequal_length(100)
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    starts, ends = session(exported.path).run(exported.outputs, {name: feed[name] for name in exported.inputs})
    for row, length in enumerate(LENGTHS):
        alone = model(torch.from_numpy(ids[row : row + 1, :length]))
        for found, logits in ((starts, alone.start_logits), (ends, alone.end_logits)):
            np.testing.assert_allclose(found[row, :length], logits[0].numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(starts - ends).max() > 0.1


@torch.no_grad()
def test_token_types_are_read(exported: Callable[..., export.Exported]) -> None:
    made = exported("bert-2", "sequence-classification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(made.path.parent).eval()
    ids, mask = rows_of_unequal_length(100)
    outputs = []
    for types in (np.zeros_like(ids), mask):
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        outputs += session(made.path).run(None, feed)
        expected = model(**{name: torch.from_numpy(value) for name, value in feed.items()}).logits.numpy()
        np.testing.assert_allclose(outputs[-1], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


@torch.no_grad()
def test_the_file_needs_neither_torch_nor_lectern(bilstm_folder: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys, numpy, onnxruntime\n"
        "ids = numpy.array(json.loads(sys.argv[2]))\n"
        "feed = {'input_ids': ids, 'attention_mask': numpy.ones_like(ids)}\n"
        "print(json.dumps(onnxruntime.InferenceSession(sys.argv[1]).run(None, feed)[0].tolist()))\n"
        "assert not {'torch', 'transformers', 'student_train'} & sys.modules.keys()\n"
    )
    ids = [[7, 8, 9, 10, 11]]
    call = [sys.executable, "-c", program, str(bilstm_folder / "model.onnx"), json.dumps(ids)]
    printed = subprocess.run(call, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bilstm_folder).eval()
    np.testing.assert_allclose(json.loads(printed), model(torch.tensor(ids)).logits.numpy(), rtol=1e-4, atol=1e-4)


def test_rows_of_a_file_are_checked_too(
    make_model: Callable[..., Path],
    write_corpus: Callable[..., Path],
    toy_rows: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    rows = [{"words": row["tokens"]} for row in toy_rows("token-classification", 10)]
    data = [str(write_corpus(tmp_path / "rows.jsonl", rows))]
    exported = write(make_model("bilstm-1", "token-classification"), data=data, tokens_column="words")
    drawn = sum(rows for rows, _ in export.CHECKED_SHAPES)
    assert exported.rows == drawn + 4 * (1 + 5 + 32)
    assert exported.batches == len(export.CHECKED_SHAPES) + 12


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_file_that_says_something_else_is_not_written(
    bilstm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faithful = bilstm._read_in_onnx

    def read_padding_too(layer: Any, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return faithful(layer, hidden, torch.full_like(lengths, hidden.shape[1]))

    monkeypatch.setattr(bilstm, "_read_in_onnx", read_padding_too)
    (tmp_path / "model.onnx").write_text("an older one")
    with pytest.raises(LecternError, match=r"model\.onnx: not written.*differ from torch's by up to .* on \d+ rows"):
        write(bilstm_folder, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "an older one"


def test_a_model_that_cannot_be_translated_is_refused(
    bilstm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_at_values(layer: Any, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return hidden if lengths.max() > 2 else -hidden

    monkeypatch.setattr(bilstm, "_read_in_onnx", look_at_values)
    with pytest.raises(LecternError, match="BiLSTMForSequenceClassification cannot be translated to ONNX"):
        write(bilstm_folder, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_its_name_is_given(
    package: str, bilstm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"export needs {package}: pip install 'lectern\[onnx\]'"):
        write(bilstm_folder)


def test_what_cannot_be_exported_is_refused_before_the_work(
    bilstm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="encoder has no logits"):
        write(bilstm_folder, task="encoder")
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere; create it first"):
        write(bilstm_folder, tmp_path / "nowhere" / "model.onnx")
    monkeypatch.setattr(export, "LARGEST_BYTES", 1000)
    with pytest.raises(LecternError, match="GB of weights"):
        write(bilstm_folder, tmp_path / "model.onnx")


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("not a model")
    with pytest.raises(LecternError, match=r"model\.onnx: onnxruntime cannot load it"):
        runtimes.OnnxRuntime(tmp_path / "model.onnx")


# --- the command lines -----------------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote(bilstm_folder: Path, tmp_path: Path) -> None:
    call = ["export", str(bilstm_folder), "--format", "onnx", "--out", str(tmp_path / "small.onnx")]
    result = CliRunner().invoke(cli.app, call)
    assert result.exit_code == 0, result.output
    assert "small.onnx: 0.1 MB of onnx" in result.output
    assert "input_ids, attention_mask -> logits: differ from torch's by at most" in result.output
    assert (tmp_path / "small.onnx").exists()


@pytest.fixture
def held_out(
    write_corpus: Callable[..., Path], toy_rows: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> list[str]:
    rows = [row | {"label": "neutral"} for row in toy_rows("sequence-classification", 40)]
    return [str(write_corpus(tmp_path / "held-out.jsonl", rows))]


def test_eval_times_the_exported_file_beside_torch(
    bilstm_folder: Path, held_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(bilstm_folder, held_out, ScoredColumns(), device="cpu")
    plain = report.as_dict()
    assert set(plain["latency_ms"]) == set(plain["onnxruntime_latency_ms"]) == {"1", "32"}
    assert json.loads(json.dumps(plain)) == plain
    names = [name for name, _ in report.table()]
    assert {"torch, batch 1, 1 thread", "onnxruntime, batch 32, 1 thread"} <= set(names)

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert evaluate(bilstm_folder, held_out, ScoredColumns(), device="cpu").onnxruntime_latency_ms == {}


def test_eval_refuses_a_file_of_other_weights(
    make_model: Callable[..., Path], bilstm_folder: Path, held_out: list[str]
) -> None:
    other = make_model("bilstm-1", "sequence-classification", seed=1)
    assert evaluate(other, held_out, ScoredColumns(), device="cpu").onnxruntime_latency_ms == {}
    (other / "model.onnx").write_bytes((bilstm_folder / "model.onnx").read_bytes())
    with pytest.raises(LecternError, match=r"model\.onnx: its logits differ .* export it again"):
        evaluate(other, held_out, ScoredColumns(), device="cpu")
