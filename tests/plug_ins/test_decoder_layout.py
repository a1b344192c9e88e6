"""Encoder-decoders from outside, through the tables alone: a task, and a layout whose positions are a decoder's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from shared import Dump
from shared.dump.layouts import LAYOUTS, BatchIndex, Field, Layout, Places
from shared.dump.rowgroup import Flat, Int32, Offsets, RowGroup, check_lengths
from shared.text.columns import ColumnNames, ScoredColumns
from shared.text.examples import Columns, Example
from shared.text.metrics import perplexity
from shared.text.predictions import Predictions
from shared.text.tasks import TASKS, Task
from shared.text.tasks.base import encode
from shared.text.tokenized import TokenizedRow, Tokenizing
from student_train import distill
from student_train.scoring import evaluate as evaluation
from student_train.scoring.evaluate import evaluate
from tests.student_train.runs import GOLD, KL, recipe

TASK, READ = "translation", "decoder_input_ids"
SIZES = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1}


class DecoderPositions(Layout):
    """At every token that the decoder reads, about the one that follows."""

    name = "decoder"
    place = f"one for each of `{READ}`: the distribution of the token that follows it"
    gold_title = "next"
    columns = (READ,)

    def fields(self, labelled: bool) -> tuple[Field, ...]:
        return Field(READ, "int32", "token ids as the decoder saw them"), Field(
            "target_ids", "int32", "what follows each"
        )

    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        ids = group.columns[READ]
        return {
            READ: Flat(ids, group.position_offsets),
            "target_ids": Flat(group.labels, group.position_offsets),
        }

    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        offsets = columns[READ].list_offsets()
        check_lengths("target_ids", columns, offsets)
        positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
        read = {READ: columns[READ].numbers()}
        return Places(offsets, positions.astype(np.int32), columns["target_ids"].numbers(), read)

    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        read = pl.col(READ)
        return {
            "position": pl.int_ranges(0, read.list.len().cast(pl.Int64), dtype=pl.Int32),
            "token_id": read,
            "label": pl.col("target_ids"),
        }

    def index(self, rows: RowGroup, length: int) -> BatchIndex:
        counts_B = np.diff(rows.position_offsets)
        is_there_BM = np.arange(max(1, counts_B.max(initial=0))) < counts_B[:, None]
        read_BM = np.zeros(is_there_BM.shape, np.int64)
        read_BM[is_there_BM] = rows.columns[READ]
        return BatchIndex(
            torch.from_numpy(np.flatnonzero(is_there_BM)),
            torch.from_numpy(rows.labels.astype(np.int64)),
            torch.from_numpy(counts_B),
            {READ: torch.from_numpy(read_BM)},
        )


class Translation(Task):
    """Texts, and a column of what they become."""

    name = TASK
    auto_class = "AutoModelForSeq2SeqLM"
    architectures = ("ForConditionalGeneration",)
    layouts = {None: "decoder"}  # noqa: RUF012
    predicts_vocabulary = True

    def columns_of_texts(self, names: ColumnNames, labels_required: bool | None) -> Columns:
        return Columns(names.text_column, None, "target", True)

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        rows = []
        for example, ids in zip(examples, encode(how, examples)["input_ids"], strict=True):
            target = np.asarray(how.tokenizer(example.label)["input_ids"], np.int32)
            read = {READ: np.concatenate([[how.tokenizer.pad_token_id], target[:-1]]).astype(np.int32)}
            positions = np.arange(len(target), dtype=np.int32)
            rows.append(TokenizedRow(np.asarray(ids, np.int32), None, positions, target, columns=read))
        return rows

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return perplexity(predictions)


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "decoder", DecoderPositions())
    monkeypatch.setitem(TASKS, TASK, Translation())
    monkeypatch.setattr(evaluation, "LATENCY_SECONDS", 0.0)


def model_folder(folder: Path, tokenizer: Any, seed: int) -> Path:
    special = {"pad_token_id": tokenizer.pad_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    entries = {"vocab_size": len(tokenizer), "init_std": 0.3, "forced_eos_token_id": None, **SIZES, **heads, **special}
    torch.manual_seed(seed)
    AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("bart", **entries)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    return model_folder(tmp_path_factory.mktemp("teacher"), tiny_tokenizer, seed=0)


@pytest.fixture(scope="module")
def rows(texts: list[str]) -> list[dict[str, str]]:
    """What is longer than its text, and what is shorter."""
    return [{"text": one, "target": other} for one, other in zip(texts[:20], texts[20:40], strict=True)]


@pytest.fixture
def dump(teacher: Path, rows: list[dict[str, str]], make_dump: Callable[..., Path]) -> Path:
    return make_dump(TASK, teacher=teacher, data=rows, top_k=5, batch_tokens=200)


@torch.inference_mode()
def expected(teacher: Path, row: dict[str, str]) -> tuple[list[int], Tensor]:
    """(the target's ids, log-probabilities after each token that the decoder reads) by a plain call."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    target = tokenizer(row["target"], return_tensors="pt")["input_ids"]
    output = AutoModelForSeq2SeqLM.from_pretrained(teacher).eval()(
        **tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False), labels=target
    )
    return target[0].tolist(), output.logits[0].log_softmax(-1)


def test_a_dump_holds_what_a_decoder_says(dump: Path, teacher: Path, rows: list[dict[str, str]]) -> None:
    opened = Dump(dump)
    assert opened.verify() == []
    found = opened.positions().sort("row", "position").collect()
    for number, row in enumerate(rows):
        target, log_probs = expected(teacher, row)
        mine = found.filter(row=number)
        assert mine["label"].to_list() == target
        assert mine["position"].to_list() == list(range(len(target)))
        for at, (ids, recorded) in enumerate(mine.select("ids", "log_probs").rows()):
            assert ids[0] == int(log_probs[at].argmax())
            assert recorded[0] == pytest.approx(float(log_probs[at].max()), abs=0.1)


def test_from_a_dump_to_a_students_scores(
    dump: Path, teacher: Path, rows: list[dict[str, str]], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    student = {"kind": "pretrained", "path": str(model_folder(tmp_path / "untrained", tiny_tokenizer, seed=1))}
    result = distill.run(recipe(tmp_path / "student", student, KL, GOLD, dump=dump), resume=False)
    assert result.steps == 3
    corpus = [str(dump.parent / "corpus.jsonl")]
    report = evaluate(tmp_path / "student", corpus, ScoredColumns(), dump=dump, device="cpu")
    assert report.task == TASK
    assert report.agreement < 1
    itself = evaluate(teacher, corpus, ScoredColumns(), dump=dump, device="cpu")
    assert (itself.agreement, itself.divergence) == (1, pytest.approx(0, abs=1e-3))
    losses = []
    for row in rows:
        target, log_probs = expected(teacher, row)
        losses.append(-log_probs[range(len(target)), target])
    assert itself.metrics["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
