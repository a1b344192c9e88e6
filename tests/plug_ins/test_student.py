"""A kind of student and an initialiser from outside, through their tables: from a dump to the scores of a student."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from shared import Dump
from shared.errors import RecipeError
from shared.text.columns import ScoredColumns
from student_train import distill
from student_train.recipe.recipe import Recipe, read_recipe
from student_train.scoring import evaluate
from student_train.students import INITIALISERS, STUDENTS, Initialiser, Needs, Student
from student_train.students.heads import fresh_model, fresh_values
from student_train.students.initialisers import Embeddings
from tests.student_train.runs import KL, TRANSFORMER, recipe

TASK = "sequence-classification"
WIDTH = 16


class BagConfig(PretrainedConfig):
    """A bag of words."""

    model_type = "lectern_test_bag"

    def __init__(self, vocab_size: int = 8, hidden_size: int = 4, pad_token_id: int | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        self.vocab_size, self.hidden_size, self.pad_token_id = vocab_size, hidden_size, pad_token_id


class BagForSequenceClassification(PreTrainedModel):
    """A linear layer on the mean of a row's word embeddings."""

    config_class = BagConfig

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.num_labels or 0)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutput:
        words_BLD, mask_BL1 = self.words(input_ids), attention_mask[..., None]
        return SequenceClassifierOutput(logits=self.head((words_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)))


class BagStudent(Student):
    """A kind of student whose words begin as an initialiser says."""

    kind: Literal["bag"] = "bag"
    width: PositiveInt
    embeddings: Embeddings = "random"

    @property
    def initialisers(self) -> tuple[Initialiser, ...]:
        return (INITIALISERS.named(self.embeddings)(kind=self.embeddings),)

    def build(self, needs: Needs) -> PreTrainedModel:
        return fresh_model(BagConfig(hidden_size=self.width, **fresh_values(needs)), needs.auto_class)


class FirstColumns(Initialiser):
    """The first numbers of the teacher's word embeddings."""

    needs_word_embeddings: ClassVar[bool] = True

    kind: Literal["first-columns"] = "first-columns"

    @torch.no_grad()
    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        weight_VD = model.get_input_embeddings().weight
        assert needs.word_embeddings_VD is not None
        weight_VD.copy_(needs.word_embeddings_VD[:, : weight_VD.shape[1]])


@pytest.fixture(autouse=True)
def _plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    AutoConfig.register(BagConfig.model_type, BagConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(BagConfig, BagForSequenceClassification, exist_ok=True)
    monkeypatch.setitem(STUDENTS, "bag", BagStudent)
    monkeypatch.setitem(INITIALISERS, "first-columns", FirstColumns)
    monkeypatch.setattr(evaluate, "LATENCY_SECONDS", 0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_corpus: Any, toy_rows: Any) -> Path:
    found: Path = write_corpus(tmp_path_factory.mktemp("corpus") / "rows.jsonl", toy_rows(TASK, 32))
    return found


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path], corpus: Path) -> Path:
    return make_dump(TASK, data=corpus, embeddings=True)


BAG = {"kind": "bag", "width": WIDTH, "embeddings": "first-columns"}
BERT = {**TRANSFORMER, "embeddings": "first-columns"}


def frozen(output: Path, student: dict[str, Any], **sections: Any) -> Recipe:
    return recipe(output, student, KL, training={"freeze_embeddings": True}, **sections)


@pytest.mark.parametrize("student", [BAG, BERT], ids=["a kind from outside", "a kind of ours"])
def test_a_student_that_was_plugged_in_begins_learns_and_is_scored(
    student: dict[str, Any], dump: Path, corpus: Path, tmp_path: Path
) -> None:
    made = frozen(tmp_path / "student", student, dump=dump)
    assert Recipe.model_validate(made.model_dump()) == made
    result = distill.run(made, resume=False)
    model = AutoModelForSequenceClassification.from_pretrained(result.output)
    teacher_VD = Dump(dump).word_embeddings().float()
    assert torch.equal(model.get_input_embeddings().weight, teacher_VD[:, :WIDTH])
    report = evaluate.evaluate(result.output, [str(corpus)], ScoredColumns(), dump, device="cpu")
    assert report.parameters == model.num_parameters()
    assert report.agreement is not None
    assert 0 <= report.metrics["accuracy"] <= 1


def test_an_initialiser_that_needs_a_teacher_is_refused_without_one(
    make_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    data = {"task": TASK, "train": [str(corpus)], "tokenizer": str(make_teacher(TASK))}
    made = frozen(tmp_path / "student", BAG, data=data)
    with pytest.raises(RecipeError, match=r"student\.embeddings = 'first-columns' needs a teacher's word"):
        distill.run(made, resume=False)


def test_its_keys_are_checked_like_any_others(tmp_path: Path) -> None:
    def read(student: str) -> Recipe:
        file = tmp_path / "recipe.toml"
        file.write_text(
            f'output = "x"\ndump = "y"\n[student]\n{student}\n[[loss]]\nkind = "kl"\n[training]\nmax_steps = 1\n'
        )
        return read_recipe(file, [])

    assert read('kind = "bag"\nwidth = 4').student == BagStudent(width=4)
    for student, message in {
        'kind = "bag"\nwidht = 4': r"unknown key 'student\.widht'.*: crf, embeddings, kind, normalize, pooling, width",
        'kind = "bagg"': r"student\.kind = 'bagg': the valid ones are .*'bilstm', 'bag'",
        'kind = "bag"\nwidth = 4\nembeddings = "last"': r"'random', 'svd' or 'first-columns'",
    }.items():
        with pytest.raises(RecipeError, match=message):
            read(student)
