"""Trimmed vocabularies: rare tokens are read as the unknown token inside the student, and nothing changes outside."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from shared import Dump
from shared.errors import RecipeError
from student_train import distill
from student_train.data.sources import DumpSource
from student_train.data.vocabulary import kept_ids, token_counts
from student_train.recipe.recipe import Recipe
from student_train.scoring import evaluate
from student_train.students import BiLSTMModel, BiLSTMStudent, Needs, TransformerStudent, build_student

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
AT_LEAST = 46
SPEC = BiLSTMStudent(embedding_size=6, hidden_size=8, trim_vocabulary=AT_LEAST)
TEXTS = ["the quick brown fox", "seven naïve wizards jump over unheard-of jugs", "liquor"]

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def dump(make_dump: Make) -> Path:
    return make_dump()


def recipe(dump: Path, output: Path, **sections: Any) -> Recipe:
    training = {"max_steps": 3, "batch_size": 8, "learning_rate": 0.01, "device": "cpu"} | sections.pop("training", {})
    student = SPEC.model_dump()
    return Recipe.model_validate(
        {"output": output, "dump": dump, "student": student, "loss": [{"kind": "kl"}], "training": training, **sections}
    )


def build(kept: list[int] | None, unknown_id: int = 1) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_student(
        BiLSTMStudent(embedding_size=6, hidden_size=8),
        Needs(
            auto_class="AutoModelForSequenceClassification",
            vocab_size=50,
            tokenizer_size=47,
            label_names=("a", "b", "c"),
            pad_token_id=0,
            max_length=12,
            kept_ids_K=None if kept is None else torch.tensor(kept),
            unknown_id=unknown_id,
        ),
    ).eval()


@torch.no_grad()
def logits_of_texts(model: PreTrainedModel, folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


@torch.no_grad()
def untrimmed(trimmed: PreTrainedModel, kept: list[int], unknown_id: int) -> PreTrainedModel:
    """The same student with a row for every id, where those that were left out have the unknown token's."""
    size = trimmed.config.vocab_size
    config = trimmed.config.__class__(**{**trimmed.config.to_dict(), "embedding_rows": None})
    model = AutoModelForSequenceClassification.from_config(config)
    weights = trimmed.state_dict()
    rows = weights["bilstm.embeddings.weight"]
    del weights["bilstm.embeddings.row_of_id"]
    where = {token: row for row, token in enumerate(kept)}
    whole = torch.stack([rows[where.get(token, where[unknown_id])] for token in range(size)])
    model.load_state_dict({**weights, "bilstm.embeddings.weight": whole})
    return model.eval()


# --- which tokens ----------------------------------------------------------------------------------------------------


def test_tokens_that_are_often_enough_in_the_dump_and_special_ones_are_kept(dump: Path) -> None:
    source = DumpSource(dump)
    counts = Counter(Dump(dump).scan().select("input_ids").collect()["input_ids"].explode().to_list())
    special = set(source.tokenizer.all_special_ids)
    expected = sorted({token for token, count in counts.items() if count >= AT_LEAST} | special)
    found = kept_ids(SPEC, source)
    assert found is not None
    assert found.tolist() == expected
    assert set(expected) - special
    assert counts.keys() - set(expected)
    assert token_counts(source).tolist() == [counts[token] for token in range(source.vocabulary)]


def test_a_token_that_occurs_exactly_so_often_is_kept(dump: Path) -> None:
    source = DumpSource(dump)
    counts = token_counts(source)
    token = int(max(set(range(len(counts))) - set(source.tokenizer.all_special_ids), key=lambda index: counts[index]))
    for at_least, is_kept in ((counts[token], True), (counts[token] + 1, False)):
        spec = SPEC.model_copy(update={"trim_vocabulary": int(at_least)})
        if is_kept:
            assert token in kept_ids(spec, source)  # type: ignore[operator]
        else:
            with pytest.raises(RecipeError, match=rf"the most frequent one occurs {counts[token]} times"):
                kept_ids(spec, source)


def test_without_the_key_the_vocabulary_is_whole(dump: Path) -> None:
    source = DumpSource(dump)
    assert kept_ids(BiLSTMStudent(embedding_size=6, hidden_size=8), source) is None
    assert kept_ids(TransformerStudent(layers=1, hidden_size=6, heads=2), source) is None


# --- what a trimmed student computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown_id", [1, 9])
def test_a_trimmed_student_is_the_whole_one_with_the_unknown_tokens_row_for_the_others(unknown_id: int) -> None:
    kept = [0, 1, 5, 9, 11, 30, 46]
    trimmed = build(kept, unknown_id)
    input_ids = torch.randint(50, (64, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = trimmed(input_ids).logits, untrimmed(trimmed, kept, unknown_id)(input_ids).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        left_out, unknown = torch.tensor([[5, 40, 11]]), torch.tensor([[5, unknown_id, 11]])
        assert torch.equal(trimmed(left_out).logits, trimmed(unknown).logits)
        assert not torch.equal(trimmed(left_out).logits, trimmed(torch.tensor([[5, 46, 11]])).logits)


def test_parameters_are_those_of_the_rows_that_are_kept() -> None:
    kept = [0, 1, 5, 9, 11, 30, 46]
    assert build(None).num_parameters() - build(kept).num_parameters() == (50 - len(kept)) * 6


def test_only_the_kept_rows_learn_and_the_unknown_one_for_all_others() -> None:
    model = build([0, 1, 5, 9])
    model(torch.tensor([[5, 40, 41]])).logits.sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient.any(-1).tolist() == [False, True, True, False]


def test_a_trimmed_vocabulary_cannot_be_resized() -> None:
    model = build([0, 1, 5, 9])
    with pytest.raises(ValueError, match="trimmed"):
        model.resize_token_embeddings(60)
    assert model.resize_token_embeddings() is model.get_input_embeddings()


def test_ids_beyond_the_tokenizer_are_still_refused() -> None:
    with pytest.raises(RecipeError, match="vocabulary has 50 ids, but the tokenizer has 51"):
        build_student(
            SPEC,
            Needs(
                auto_class="AutoModel",
                vocab_size=50,
                tokenizer_size=51,
                label_names=None,
                pad_token_id=0,
                max_length=12,
                kept_ids_K=torch.tensor([0, 1, 2]),
                unknown_id=1,
            ),
        )


# --- folders ---------------------------------------------------------------------------------------------------------


def word_piece(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=110, special_tokens=SPECIAL))
    return tokenizer


def bpe(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=110, special_tokens=SPECIAL))
    return tokenizer


def unigram(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="[UNK]")
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.mark.parametrize("train", [word_piece, bpe, unigram])
def test_the_saved_folder_predicts_from_plain_text_as_the_trained_student(
    train: Callable[[list[str]], Tokenizer],
    texts: list[str],
    make_teacher: Make,
    make_dump: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train(texts), pad_token="[PAD]", unk_token="[UNK]")
    dump = make_dump(teacher=make_teacher("sequence-classification", tokenizer=tokenizer))
    trained: list[PreTrainedModel] = []
    save = distill._save
    monkeypatch.setattr(distill, "_save", lambda student, *others: (trained.append(student), save(student, *others)))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "the lazy dog", "label": "neutral"}\n')
    scoring = {"eval": {"data": [str(rows)], "dump": dump}}
    report = distill.run(recipe(dump, tmp_path / "student", **scoring), resume=False).report

    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    found = logits_of_texts(reloaded, tmp_path / "student")
    torch.testing.assert_close(found, logits_of_texts(trained[0].cpu(), dump / "tokenizer"), rtol=0, atol=0)
    source = DumpSource(dump)
    kept = kept_ids(SPEC, source)
    assert kept is not None
    assert 5 < len(kept) == reloaded.config.embedding_rows < len(source.tokenizer)
    whole = untrimmed(reloaded, kept.tolist(), source.tokenizer.unk_token_id)
    torch.testing.assert_close(found, logits_of_texts(whole, dump / "tokenizer"), rtol=0, atol=0)

    assert report is not None
    assert report.agreement is not None
    assert report.parameters == reloaded.num_parameters()
    evaluate.evaluate(tmp_path / "student", [str(rows)], evaluate.ScoredColumns(), dump)


def test_a_trimmed_folder_is_saved_again_and_loads_without_lectern(dump: Path, tmp_path: Path) -> None:
    distill.run(recipe(dump, tmp_path / "student"), resume=False)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    expected = logits_of_texts(model, tmp_path / "student")
    model.save_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(tmp_path / "student").save_pretrained(tmp_path / "again")
    script = (
        "import sys\n"
        "from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "assert not any(name.startswith('student_train') for name in sys.modules)\n"
        f"inputs = AutoTokenizer.from_pretrained(sys.argv[1])({TEXTS!r}, padding=True, return_tensors='pt')\n"
        "print(model(**inputs).logits.tolist())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "again")],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(expected.tolist())


def test_a_killed_run_goes_on_with_the_same_vocabulary(dump: Path, tmp_path: Path, monkeypatch: Any) -> None:
    training = {"save_steps": 2}
    distill.run(recipe(dump, tmp_path / "whole", training=training), resume=False)
    with monkeypatch.context() as patch:
        patch.setattr(distill, "_save", lambda *_: pytest.fail("killed"))
        with pytest.raises(BaseException, match="killed"):
            distill.run(recipe(dump, tmp_path / "killed", training=training), resume=False)
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "checkpoint-3", ignore_errors=True)
    distill.run(recipe(dump, tmp_path / "killed", training=training), resume=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert "bilstm.embeddings.row_of_id" in one
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_an_unknown_token_is_refused(make_dump: Make, make_teacher: Make, tmp_path: Path) -> None:
    dump = make_dump(teacher=make_teacher("sequence-classification", "gpt2"))
    with pytest.raises(RecipeError, match="no unknown token"):
        distill.run(recipe(dump, tmp_path / "student"), resume=False)


def test_a_vocabulary_task_is_refused(make_dump: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no head for AutoModelForMaskedLM"):
        distill.run(recipe(make_dump("masked-lm"), tmp_path / "student"), resume=False)


def test_a_transformer_is_refused() -> None:
    with pytest.raises(ValidationError, match="trim_vocabulary is for kind = 'bilstm'"):
        TransformerStudent.model_validate({"layers": 1, "hidden_size": 8, "heads": 2, "trim_vocabulary": 5})


def test_the_base_model_is_trimmed_as_well() -> None:
    model = build([0, 1, 5, 9])
    assert isinstance(model.bilstm, BiLSTMModel)
    assert len(model.bilstm.embeddings.weight) == 4
