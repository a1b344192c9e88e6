"""Students of chats: batches, losses and scores are of the assistant's tokens, and no others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from shared import Dump
from shared.errors import RecipeError, UsageError
from shared.models.loading import load_tokenizer
from shared.text import examples
from shared.text.columns import ScoredColumns
from shared.text.examples import Columns
from shared.text.tasks import TASKS
from student_train import distill
from student_train.cli import app
from student_train.data.batches import collate, in_order
from student_train.data.sources import DumpSource, Source, TextSource
from student_train.recipe.recipe import Recipe

CHATS: dict[str, Any] = {"messages_column": "messages", "positions": "completion"}
MARKS = "{% generation %}{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}"


@pytest.fixture(scope="module")
def teacher(make_teacher: Any, tiny_chat_tokenizer: Any) -> Path:
    return make_teacher("causal-lm", tokenizer=tiny_chat_tokenizer)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_corpus: Any, toy_chats: Any) -> Path:
    return write_corpus(tmp_path_factory.mktemp("chats") / "chats.jsonl", toy_chats)


@pytest.fixture(scope="module")
def chat_dump(make_dump: Any, teacher: Path, corpus: Path) -> Path:
    return make_dump("causal-lm", teacher=teacher, data=corpus, threshold=0.05, **CHATS)


def row_by_row(source: Source) -> dict[int, dict[str, Any]]:
    """Row number -> its batch of one row."""
    found = {}
    for group in range(len(source.group_rows)):
        loaded = source.load(group, [])
        for at, number in enumerate(loaded.rows.tolist()):
            found[number] = collate({group: loaded}, np.asarray([[group, at]]), source)
    return found


def test_a_dump_and_its_files_give_the_same_positions_and_labels(chat_dump: Path, teacher: Path, corpus: Path) -> None:
    dump = DumpSource(chat_dump)
    tokenizer = load_tokenizer(str(teacher), RecipeError)
    columns = Columns("messages", shape=examples.CHATS)
    files = TextSource(TASKS["causal-lm"], [str(corpus)], columns, tokenizer, 64, positions="completion")
    assert (files.has_gold, files.positions, files.layout.name) == (True, "completion", "listed-next-token")
    assert (dump.has_gold, dump.positions, dump.layout.name) == (True, "completion", "listed-next-token")
    one, other = row_by_row(dump), row_by_row(files)
    listed = dict(Dump(chat_dump).scan().select("row", "positions").collect().iter_rows())
    assert one.keys() == other.keys() == listed.keys()
    for row, batch in one.items():
        assert batch.positions.tolist() == other[row].positions.tolist() == listed[row]
        assert batch.labels.tolist() == other[row].labels.tolist()
        assert batch.labels.tolist() == batch.input_ids.flatten()[batch.positions + 1].tolist()


def test_a_padded_batch_asks_about_the_same_tokens(chat_dump: Path) -> None:
    dump = DumpSource(chat_dump)
    assert dump.distribution is not None
    columns = [column.name for column in dump.distribution.columns]
    alone = row_by_row(dump)
    for batch in in_order(dump, columns, 7):
        following = batch.input_ids.flatten()[batch.positions + 1]
        assert batch.labels.tolist() == following.tolist()
        assert batch.attention_mask.flatten()[batch.positions + 1].all()
    total = sum(len(batch.labels) for batch in alone.values())
    assert total == sum(receipt.positions for receipt in Dump(chat_dump).receipts.values())


@torch.no_grad()
def spoken_loss(model_path: Path, chats: list[dict[str, Any]]) -> float:
    """Mean negative log-likelihood of the assistant's tokens, with transformers' own mask and cross-entropy."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model_path).eval(),
        AutoTokenizer.from_pretrained(model_path),
    )
    marked = tokenizer.chat_template.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
        + MARKS
        + "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}",
    )
    assert "generation %}" in marked
    total, count = 0.0, 0
    for row in chats:
        encoded = tokenizer.apply_chat_template(
            row["messages"], chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = torch.tensor([encoded["input_ids"][:64]]), torch.tensor([encoded["assistant_masks"][:64]])
        labels = ids.masked_fill(mask == 0, -100)
        here = int(mask.sum())
        total += float(model(ids, labels=labels).loss) * here if here else 0.0
        count += here
    return total / count


def recipe(output: Path, *losses: str, **sections: Any) -> Recipe:
    # Three rows a batch: some batches hold no answer at all.
    training = {"max_steps": 12, "batch_size": 3, "learning_rate": 1e-3, "device": "cpu"}
    student = {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2}
    made = {"output": output, "student": student, "training": training, "loss": [{"kind": kind} for kind in losses]}
    return Recipe.model_validate(made | sections)


def test_a_student_of_a_dump_learns_and_is_scored_on_what_is_said(
    chat_dump: Path, corpus: Path, toy_chats: Any, tmp_path: Path
) -> None:
    scoring = {"data": [str(corpus)], "dump": chat_dump, **CHATS}
    result = distill.run(recipe(tmp_path / "student", "kl", "gold", dump=chat_dump, eval=scoring), resume=False)
    assert result.report is not None
    assert result.report.metrics["loss"] == pytest.approx(spoken_loss(result.output, toy_chats), rel=1e-4)
    assert result.report.agreement is not None
    model = AutoModelForCausalLM.from_pretrained(result.output)
    assert all(weight.isfinite().all() for weight in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(result.output)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(chat_dump / "tokenizer").chat_template


@pytest.mark.parametrize("positions", ["all", "completion"])
def test_fine_tuning_on_chats_and_scoring_from_the_command_line(
    positions: str, teacher: Path, corpus: Path, toy_chats: Any, tmp_path: Path
) -> None:
    data = {"task": "causal-lm", "train": [str(corpus)], "tokenizer": str(teacher), "max_length": 64}
    result = distill.run(
        recipe(tmp_path / "student", "gold", data={**data, "messages_column": "messages", "positions": positions}),
        False,
    )
    options = ["--messages-column", "messages", "--positions", positions, "--json", tmp_path / "scores.json"]
    called = CliRunner().invoke(app, [str(word) for word in ("eval", result.output, "--data", corpus, *options)])
    assert called.exit_code == 0, called.output
    loss = json.loads((tmp_path / "scores.json").read_text())["metrics"]["loss"]
    expected = spoken_loss(result.output, toy_chats)
    assert (loss == pytest.approx(expected, rel=1e-4)) == (positions == "completion")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"positions": "completion"}, "must be chats"),
        ({"positions": "first-subtoken"}, "it has all, completion"),
        ({**CHATS, "text_column": "body"}, "messages column 'messages' holds the whole row"),
    ],
)
def test_an_eval_section_that_cannot_be_is_refused_before_the_training(
    section: dict[str, str], message: str, chat_dump: Path, corpus: Path, tmp_path: Path
) -> None:
    made = recipe(tmp_path / "student", "kl", dump=chat_dump, eval={"data": [str(corpus)], **section})
    with pytest.raises(UsageError, match=message):
        distill.run(made, resume=False)
    assert not (tmp_path / "student").exists()


def test_a_data_section_needs_chats_for_their_positions(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    data = {"task": "causal-lm", "train": [str(corpus)], "tokenizer": str(teacher), "positions": "completion"}
    with pytest.raises(UsageError, match=r"must be chats: name the column .*messages_column in a recipe"):
        distill.run(recipe(tmp_path / "student", "gold", data={**data, "text_column": "messages"}), resume=False)


def test_columns_of_a_recipe_are_those_of_chats() -> None:
    names = ScoredColumns(messages_column="talk")
    assert TASKS["causal-lm"].columns(names, True) == Columns("talk", shape=examples.CHATS)
