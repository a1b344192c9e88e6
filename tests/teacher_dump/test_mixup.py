"""`dump --mixup`: the teacher's logits for mixtures of rows, the draws, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from shared import Dump
from shared.dump.inspection import facts, spreads
from shared.errors import TeacherError, UsageError
from shared.models.mixing import MixedInputs, run_mixed, takes_embeddings
from teacher_dump.annotate import prepare
from teacher_dump.batching.mixing import draws_of, partners_of
from teacher_dump.engines.callable import CallableTeacher
from teacher_dump.engines.transformers.engine import TransformersEngine
from teacher_dump.estimate import estimate
from teacher_dump.request import Request, SignalRequest
from tests.conftest import MAX_LENGTH

TASK = "sequence-classification"
DRAWS = 3


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path], make_teacher: Callable[..., Path], toy_rows: Any) -> tuple[Path, Path]:
    """A teacher and its dump; hidden states of every layer make the row groups of a few rows."""
    teacher = make_teacher(TASK)
    return teacher, make_dump(TASK, teacher=teacher, data=toy_rows(TASK, 40), mixup=DRAWS, mixup_alpha=0.7)


def by_hand(model: PreTrainedModel, first: list[int], second: list[int], weight: float, pad: int) -> Tensor:
    """A plain forward pass of one mixture, in float32."""
    length = max(len(first), len(second))
    embed = model.get_input_embeddings()
    one, other = (embed(torch.tensor([ids + [pad] * (length - len(ids))])) for ids in (first, second))
    mask = torch.ones(1, length, dtype=torch.long)
    logits: Tensor = model(inputs_embeds=weight * one + (1 - weight) * other, attention_mask=mask).logits[0]
    return logits


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@torch.no_grad()
def test_the_logits_are_those_of_a_plain_forward_pass_over_mixed_embeddings(
    kind: str, make_teacher: Callable[..., Path], make_dump: Callable[..., Path], toy_rows: Any
) -> None:
    # RoBERTa counts positions from the padding token's id on.
    teacher = make_teacher(TASK, kind, **({"max_position_embeddings": MAX_LENGTH + 1} if kind == "roberta" else {}))
    opened = Dump(make_dump(TASK, teacher=teacher, data=toy_rows(TASK, 24), mixup=DRAWS, batch_tokens=100))
    model = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    pad = AutoTokenizer.from_pretrained(teacher).pad_token_id
    ids = dict(opened.scan().select("row", "input_ids").collect().rows())
    found = opened.mixtures().collect()
    assert found.columns == ["row", "draw", "partner", "lambda", "logits"]
    assert found.select("row", "draw").sort("row", "draw").rows() == [(row, at) for row in range(24) for at in range(3)]
    lengths = set()
    for row, _, partner, weight, logits in found.iter_rows():
        lengths.add(len(ids[row]) - len(ids[partner]))
        wanted = by_hand(model, ids[row], ids[partner], weight, pad)
        torch.testing.assert_close(torch.tensor(logits), wanted, rtol=1e-4, atol=1e-4)
        assert weight == np.float16(weight)
    assert min(lengths) < 0 < max(lengths)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@torch.no_grad()
def test_a_mixture_with_lambda_one_is_the_row_itself(kind: str, make_teacher: Callable[..., Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(make_teacher(TASK, kind)).eval()
    ids_BL = torch.tensor([[7, 8, 9, 10], [11, 12, 0, 0]])
    batch = {"input_ids": ids_BL, "attention_mask": (ids_BL > 0).long()}
    other = {name: tensor.flip(1) if name == "input_ids" else tensor for name, tensor in batch.items()}
    inputs = MixedInputs.of(batch, other, torch.ones(2), 0)
    torch.testing.assert_close(run_mixed(model, inputs).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)
    inputs = MixedInputs.of(other, batch, torch.zeros(2), 0)
    torch.testing.assert_close(run_mixed(model, inputs).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)


def test_both_rows_are_filled_up_with_the_padding_token_and_attended_to() -> None:
    first = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    second = {"input_ids": torch.tensor([[7, 8, 9, 9]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    types = [{"token_type_ids": torch.tensor([values])} for values in ([0, 1, 0], [0, 0, 1, 0])]
    mixed = MixedInputs.of(first | types[0], second | types[1], torch.tensor([0.25]), pad_token_id=3)
    assert mixed.first_ids.tolist() == [[5, 6, 3, 3]]
    assert mixed.second_ids.tolist() == [[7, 8, 9, 3]]
    assert mixed.attention_mask.tolist() == [[1, 1, 1, 0]]
    assert mixed.token_type_ids is not None
    assert mixed.token_type_ids.tolist() == [[0, 1, 1, 0]]


@torch.no_grad()
def test_pairs_keep_the_token_types_of_the_first_row(
    make_teacher: Callable[..., Path], make_dump: Callable[..., Path], texts: list[str]
) -> None:
    teacher = make_teacher(TASK)
    rows = [{"text": texts[at], "other": texts[at + 50]} for at in range(8)]
    opened = Dump(make_dump(TASK, teacher=teacher, data=rows, pair_column="other", mixup=1))
    model = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    raw = {
        row: (ids, types)
        for row, ids, types in opened.scan().select("row", "input_ids", "token_type_ids").collect().rows()
    }
    for row, _, partner, weight, logits in opened.mixtures().collect().iter_rows():
        (first, types), (second, beyond) = raw[row], raw[partner]
        length = max(len(first), len(second))
        one, other = (
            model.get_input_embeddings()(torch.tensor([ids + [0] * (length - len(ids))])) for ids in (first, second)
        )
        wanted = model(
            inputs_embeds=weight * one + (1 - weight) * other,
            attention_mask=torch.ones(1, length),
            token_type_ids=torch.tensor([types + beyond[len(types) :]]),
        ).logits[0]
        torch.testing.assert_close(torch.tensor(logits), wanted, rtol=1e-4, atol=1e-4)


def test_draws_depend_on_the_seed_and_the_row_alone(
    dump: tuple[Path, Path], make_dump: Callable[..., Path], toy_rows: Any
) -> None:
    teacher, folder = dump
    options = {"teacher": teacher, "data": toy_rows(TASK, 40), "mixup": DRAWS, "mixup_alpha": 0.7}
    drawn = ["row", "draw", "partner", "lambda"]
    mine = Dump(folder).mixtures().sort("row", "draw").collect()
    again = Dump(make_dump(TASK, **options, batch_tokens=70)).mixtures().sort("row", "draw").collect()
    assert again.select(drawn).equals(mine.select(drawn))
    np.testing.assert_allclose(again["logits"].to_list(), mine["logits"].to_list(), rtol=1e-4, atol=1e-4)
    other = Dump(make_dump(TASK, **options, seed=1)).mixtures().sort("row", "draw").collect()
    assert not other.select(drawn).equals(mine.select(drawn))
    assert (mine["row"] != mine["partner"]).all()
    same_shard = (mine["row"] // 16) == (mine["partner"] // 16)
    assert same_shard.all()


def test_a_dump_that_was_killed_has_the_same_shards(
    dump: tuple[Path, Path], make_dump: Callable[..., Path], tmp_path: Path, write_corpus: Any, toy_rows: Any
) -> None:
    data = write_corpus(tmp_path / "corpus.jsonl", toy_rows(TASK, 40))
    options = {"teacher": dump[0], "data": data, "mixup": DRAWS, "out": tmp_path / "dump", "batch_tokens": 90}
    shard = make_dump(TASK, **options) / "shards" / "00001.parquet"
    before = shard.read_bytes()
    shard.unlink()
    make_dump(TASK, **options)
    assert shard.read_bytes() == before
    with pytest.raises(UsageError, match=r"signals\.mixtures\.draws: the dump has 3, this command asks for 4"):
        make_dump(TASK, **{**options, "mixup": 4})


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 8), st.floats(0.01, 100), st.integers(1, 40))
def test_partners_are_other_rows_and_lambdas_are_weights(
    seed: int, row: int, draws: int, alpha: float, rows: int
) -> None:
    uniforms_D, weights_D = draws_of(seed, row, draws, alpha)
    for again, first in zip(draws_of(seed, row, draws, alpha), (uniforms_D, weights_D), strict=True):
        assert np.array_equal(again, first)
    assert weights_D.dtype == np.float16
    assert ((weights_D >= 0) & (weights_D <= 1)).all()
    own = row % rows
    partners_D = partners_of(own, rows, uniforms_D)
    assert ((partners_D >= 0) & (partners_D < rows)).all()
    assert rows == 1 or own not in partners_D


def test_every_other_row_is_as_likely_and_lambda_is_of_the_beta_distribution() -> None:
    drawn = [draws_of(0, row, 8, 0.4) for row in range(2000)]
    partners = np.concatenate([partners_of(2, 5, uniforms) for uniforms, _ in drawn])
    counts = np.bincount(partners, minlength=5)
    assert counts[2] == 0
    assert np.abs(counts[[0, 1, 3, 4]] / len(partners) - 0.25).max() < 0.02
    weights = np.concatenate([weights for _, weights in drawn]).astype(np.float64)
    # The mean of Beta(A, A) is 1/2, its variance 1 / (4 (2 A + 1)).
    assert abs(weights.mean() - 0.5) < 0.02
    assert abs(weights.var() - 1 / (4 * 1.8)) < 0.01


def test_partners_are_in_the_same_row_group(
    make_dump: Callable[..., Path], toy_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.dump.shards.ROW_GROUP_BYTES", 6000)
    folder = make_dump(TASK, data=toy_rows(TASK, 40), mixup=2, hidden="1", shard_rows=40)
    opened = Dump(folder)
    assert len(opened.receipts[0].row_groups) > 3
    file = pq.ParquetFile(folder / "shards" / "00000.parquet")
    for group in range(file.num_row_groups):
        table = pl.DataFrame(file.read_row_group(group))
        assert set(table["mixtures.partner"].explode().explode()) <= set(table["row"])
    assert opened.verify() == []
    # Neighbours by length, except in the last group.
    lengths = opened.scan().select("row", pl.col("input_ids").list.len().alias("length")).collect()
    both = opened.mixtures().collect().join(lengths, on="row").join(lengths, left_on="partner", right_on="row")
    assert (both["length"].cast(pl.Int64) - both["length_right"].cast(pl.Int64)).abs().mean() < 4


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            "causal-lm",
            {"mixup": 2},
            "the logits of causal-lm are not those of a row; use it with sequence-classification",
        ),
        ("token-classification", {"mixup": 2}, "the logits of token-classification are not those of a row"),
        ("question-answering", {"mixup": 2}, "the logits of question-answering are not those of a row"),
        ("encoder", {"mixup": 2}, "the logits of encoder are not those of a row"),
        (TASK, {"signals": (SignalRequest("mixtures"),)}, r"signal 'mixtures': request it by --mixup DRAWS"),
        (TASK, {"mixup_alpha": 0.4}, r"--mixup-alpha says how --mixup draws lambda; give --mixup DRAWS too"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    task: str, options: dict[str, Any], message: str, make_dump: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match=message):
        make_dump(task, **options)


def test_teachers_that_cannot_read_embeddings_are_refused(
    make_dump: Callable[..., Path], make_teacher: Callable[..., Path], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    last_token = make_teacher(TASK, "gpt2", tokenizer=tiny_tokenizer)
    with pytest.raises(TeacherError, match=r"--mixup: GPT2ForSequenceClassification does not give a row's logits for"):
        make_dump(TASK, teacher=last_token, mixup=2)
    made = CallableTeacher(
        lambda input_ids, attention_mask: input_ids[:, :1].float(), tiny_tokenizer, ["a"], name="mine", version="1"
    )
    with pytest.raises(TeacherError, match=r"--mixup: mine takes token ids, and no embeddings in their place"):
        make_dump(TASK, teacher=made, mixup=2, data=["a fox"])


def test_a_teacher_with_another_padding_token_than_its_tokenizer_is_refused(
    make_dump: Callable[..., Path], make_teacher: Callable[..., Path]
) -> None:
    teacher = make_teacher(TASK, pad_token_id=5)
    with pytest.raises(TeacherError, match=r"that of the tokenizer \(0\) is not that of the model \(5\)"):
        make_dump(TASK, teacher=teacher, mixup=2)


def test_logits_that_are_not_finite_are_refused_with_their_row(
    make_dump: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(engine: Any, inputs: MixedInputs) -> Tensor:
        return torch.where(inputs.weights[:, None] == inputs.weights[0], torch.inf, torch.zeros(1, 3))

    monkeypatch.setattr(TransformersEngine, "mixed_logits", broken)
    with pytest.raises(TeacherError, match=r"row \d: NaN or infinity in the teacher's logits for mixtures of the row"):
        make_dump(TASK, mixup=2, data=["a fox", "a dog", "the lazy dog"])


def test_a_model_without_embeddings_is_found_out(make_teacher: Callable[..., Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(make_teacher(TASK)).eval()
    assert takes_embeddings(model)
    forward = model.forward

    def without(inputs_embeds: Any = None, **arguments: Any) -> Any:
        if inputs_embeds is not None:
            raise NotImplementedError("no embeddings")
        return forward(**arguments)

    model.forward = without
    assert not takes_embeddings(model)


def test_the_dry_run_counts_mixtures(dump: tuple[Path, Path], tmp_path: Path, write_corpus: Any, toy_rows: Any) -> None:
    data = write_corpus(tmp_path / "corpus.jsonl", toy_rows(TASK, 40))
    request = Request(str(dump[0]), TASK, (str(data),), tmp_path / "out", max_length=64, device="cpu", mixup=DRAWS)
    found = estimate(prepare(request))
    # 3 x (8 + 2 + 3 x 4) bytes a row of some 18 tokens, compressed.
    assert 0.5 < found.signal_bytes["mixtures"] < 8
    assert found.mixed_rows == 3 * 40


def test_a_dump_describes_its_mixtures(dump: tuple[Path, Path]) -> None:
    opened = Dump(dump[1])
    assert opened.verify() == []
    assert (
        "signal",
        "mixtures (logits for rows mixed with other rows: 3 a row, lambda from Beta(0.7, 0.7), all 3 logits)",
    ) in facts(opened)
    card = (dump[1] / "README.md").read_text()
    assert "`mixtures.partner` is the partner's `row`, `mixtures.lambda` is lambda" in re.sub(r"\s+", " ", card)
    shown = {spread.name: spread for spread in spreads(opened)}
    assert shown["mixed: lambda"].count == 40 * DRAWS
    assert 0 <= shown["mixed: lambda"].mean <= 1
    assert 1 / 3 < shown["mixed: top-1"].mean <= 1
