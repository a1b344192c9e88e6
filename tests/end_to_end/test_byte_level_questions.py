"""Questions with a byte-level tokenizer, from files to a dump's gold labels and to the scores of a model that knows all
answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from shared import Dump
from shared.errors import RecipeError, UsageError
from shared.text.columns import ScoredColumns
from student_train.data.sources import DumpSource
from student_train.losses.logits import GoldLoss
from student_train.scoring import evaluate as scoring
from tests.older_versions import downgrade
from tests.tokenizer_families import tokenizer_of

TASK = "question-answering"
CONTEXT = "the quick  brown fox, naïve café\na lazy dog 😀 東京 は 1 x"
ANSWERS = ("the", "quick", "brown fox", "café", "a", "😀", "東京", "は", "1", "x")
ROWS = [
    {"question": "fox" + number * " fox", "context": CONTEXT, "answer_texts": [answer], "answer_starts": [start]}
    for number, answer in enumerate(ANSWERS)
    for start in [f" {CONTEXT} ".replace("\n", " ").replace(",", " ").index(f" {answer} ")]
]
FAMILIES = ("byte-level, trims, RoBERTa", "byte-level, prefix, trims, RoBERTa", "byte-level, trims", "Unigram", "Llama")


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer_of(request.param)


@pytest.fixture(scope="module")
def teacher(make_teacher: Any, tokenizer: Any) -> Path:
    return Path(make_teacher(TASK, "roberta", tokenizer=tokenizer, max_position_embeddings=512, type_vocab_size=2))


def ends_of(tokenizer: Any, row: dict[str, Any]) -> tuple[tuple[int, ...], int, int]:
    """(ids, first and last token of the answer) by an ordinary call of the tokenizer."""
    encoded = tokenizer(row["question"], row["context"], return_offsets_mapping=True)
    start = row["answer_starts"][0]
    end = start + len(row["answer_texts"][0])
    touched = [
        at
        for at, (sequence, (first, last)) in enumerate(
            zip(encoded.sequence_ids(), encoded["offset_mapping"], strict=True)
        )
        if sequence == 1 and last > start and first < end
    ]
    return tuple(encoded["input_ids"]), touched[0], touched[-1]


def test_a_model_that_finds_every_answer_has_an_exact_match_of_100(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write_corpus: Any, teacher: Path, tokenizer: Any
) -> None:
    known = {ids: (first, last) for ids, first, last in (ends_of(tokenizer, row) for row in ROWS)}
    model, task = scoring.load_model(teacher, None)

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(2, *input_ids.shape)
        for at, (ids, mask) in enumerate(zip(input_ids, attention_mask.bool(), strict=True)):
            if (ends := known.get(tuple(ids[mask].tolist()))) is not None:
                logits[0, at, ends[0]] = logits[1, at, ends[1]] = 10.0
        return QuestionAnsweringModelOutput(start_logits=logits[0], end_logits=logits[1])

    monkeypatch.setattr(model, "forward", forward)
    monkeypatch.setattr(scoring, "load_model", lambda *_: (model, task))
    monkeypatch.setattr(scoring, "LATENCY_SECONDS", 0.01)
    data = write_corpus(tmp_path / "a.jsonl", ROWS)

    report = scoring.evaluate(teacher, [str(data)], ScoredColumns(), device="cpu", max_length=500)

    assert report.metrics == {"f1": 1.0, "exact_match": 1.0}


def test_the_gold_labels_of_a_dump_are_the_tokens_of_the_answers(make_dump: Any, teacher: Path, tokenizer: Any) -> None:
    dump = Dump(make_dump(TASK, teacher=teacher, data=ROWS, max_length=500))
    found = dump.positions().collect().partition_by("row", as_dict=True)
    for (number,), positions in found.items():
        ids, first, last = ends_of(tokenizer, ROWS[number])
        gold = [positions.filter(positions["label"] & mark > 0)["position"].item() for mark in (1, 2)]
        assert gold == [first, last]
        assert positions["token_id"].to_list()[1] == ids[positions["position"][1]]


def test_a_dump_whose_answers_lack_their_first_letter_is_not_continued(
    make_dump: Any, teacher: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Its manifest lacks the fact that tells how answers were placed."""
    out = make_dump(TASK, teacher=teacher, data=ROWS, max_length=500, out=tmp_path / "dump")
    trims = '"trim_offsets":true' in tokenizer.backend_tokenizer.to_str()
    assert Dump(out).manifest.tokenizer.offsets == ("trimmed once" if trims else None)
    manifest = downgrade(out, 5)
    manifest["tokenizer"]["offsets"] = None
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert DumpSource(out).has_misplaced_gold == trims
    if trims:
        with pytest.raises(RecipeError, match="missed the first letter of gold answers"):
            GoldLoss().check(DumpSource(out))
        with pytest.raises(UsageError, match=r"tokenizer.offsets: the dump has None, this command asks for trimmed"):
            make_dump(TASK, teacher=teacher, data=ROWS, max_length=500, out=out)
    else:
        make_dump(TASK, teacher=teacher, data=ROWS, max_length=500, out=out)


def test_a_dump_without_gold_answers_is_continued_whoever_began_it(make_dump: Any, teacher: Path) -> None:
    rows = [{"question": row["question"], "context": row["context"]} for row in ROWS]
    dump = Dump(make_dump(TASK, teacher=teacher, data=rows, max_length=500))
    assert dump.manifest.tokenizer.offsets is None
