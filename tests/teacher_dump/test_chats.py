"""A dump of chats: what the teacher says before each token of the assistant's, and nowhere else."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from shared import Dump, UsageError
from shared.dump.cli import app as shards
from shared.dump.integrity.receipts import shard_path
from shared.dump.integrity.verification import verify
from shared.dump.shards import open_shard
from shared.dump.versions import FORMAT_VERSION
from shared.errors import CorpusError, DumpError
from shared.storage import Folder
from teacher_dump.cli import app as dump_app
from tests.older_versions import downgrade

CHATS: dict[str, Any] = {"messages_column": "messages", "positions": "completion"}
MAX_LENGTH = 64


@pytest.fixture(scope="module")
def teacher(make_teacher: Any, tiny_chat_tokenizer: Any) -> Path:
    return make_teacher("causal-lm", tokenizer=tiny_chat_tokenizer)


@pytest.fixture(scope="module")
def chat_dump(make_dump: Any, teacher: Path, toy_chats: Any) -> Path:
    return make_dump("causal-lm", teacher=teacher, data=toy_chats, dense=True, hidden="last", **CHATS)


def spoken(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """(ids, which of them the assistant says) of a chat in ChatML, put together token by token."""
    ids: list[int] = []
    said: list[int] = []

    def add(text: str, is_said: bool) -> None:
        new = tokenizer(text, add_special_tokens=False)["input_ids"]
        said.extend(range(len(ids), len(ids) + len(new)) if is_said else [])
        ids.extend(new)

    for message in messages:
        # A header ends in a line end and a turn begins with a letter, which the toy tokenizer never joins.
        add(f"<|im_start|>{message['role']}\n", False)
        add(f"{message['content']}<|im_end|>\n", message["role"] == "assistant")
    return ids[:MAX_LENGTH], [at for at in said if at < MAX_LENGTH]


@torch.no_grad()
def test_log_probabilities_are_those_of_transformers_before_every_token_that_is_said(
    chat_dump: Path, teacher: Path, toy_chats: Any
) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(teacher).eval(), AutoTokenizer.from_pretrained(teacher)
    found = Dump(chat_dump).positions().sort("row", "position", maintain_order=True).collect()
    rows = dict(Dump(chat_dump).scan().select("row", "input_ids").collect().iter_rows())
    silent, cut = set(), 0
    for number, row in enumerate(toy_chats):
        ids, said = spoken(tokenizer, row["messages"])
        assert rows[number] == ids
        mine = found.filter(pl.col("row") == number)
        assert mine["position"].to_list() == [at - 1 for at in said]
        assert mine["token_id"].to_list() == [ids[at - 1] for at in said]
        assert mine["label"].to_list() == [ids[at] for at in said]
        silent |= set() if said else {number}
        cut += bool(said) and said[-1] == MAX_LENGTH - 1
        if said:
            logits = model(torch.tensor([ids])).logits[0]
            expected = logits[[at - 1 for at in said]].double().log_softmax(-1).numpy()
            np.testing.assert_allclose(np.array(mine["log_probs"].to_list()), expected, atol=1e-4)
    assert len(silent) > 3
    assert cut > 3


def test_the_manifest_the_card_and_the_schema_say_what_is_recorded(chat_dump: Path) -> None:
    dump = Dump(chat_dump)
    assert (dump.manifest.layout.name, dump.manifest.labelled) == ("listed-next-token", True)
    assert dump.manifest.options.positions == "completion"
    assert dump.manifest.format_version == FORMAT_VERSION
    names = dump.scan().collect_schema().names()
    assert "positions" in names
    assert "labels" not in names, "the next token is there already"
    assert "the distribution after token t is that of token t + 1" in (chat_dump / "README.md").read_text()
    assert dump.verify() == []
    assert sum(receipt.positions for receipt in dump.receipts.values()) == len(dump.positions().collect())


@pytest.mark.parametrize("command", ["info", "head", "stats", "verify"])
def test_shards_look_into_it(command: str, chat_dump: Path) -> None:
    result = CliRunner().invoke(shards, [command, str(chat_dump)])
    assert result.exit_code == 0, result.output
    if command == "head":
        assert "  next " in result.output
    if command == "stats":
        assert "entropy" in result.output


def test_hidden_states_are_of_every_token_still(chat_dump: Path) -> None:
    dump = Dump(chat_dump)
    lengths = dump.scan().select(pl.col("input_ids").list.len().sum()).collect().item()
    assert len(dump.vectors("hidden.2").collect()) == lengths


@pytest.mark.parametrize("options", [{"threshold": 0.03}, {"top_k": 5}, {"preset": "tiny"}])
def test_every_codec_records_the_same_positions(
    options: dict[str, Any], chat_dump: Path, make_dump: Any, teacher: Path, toy_chats: Any
) -> None:
    where = ["row", "position", "token_id", "label"]
    found = Dump(make_dump("causal-lm", teacher=teacher, data=toy_chats, **options, **CHATS)).positions()
    assert (
        found.select(where)
        .sort(where)
        .collect()
        .equals(Dump(chat_dump).positions().select(where).sort(where).collect())
    )


def test_all_positions_of_chats_are_those_of_the_rendered_text(make_dump: Any, teacher: Path, toy_chats: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in toy_chats]
    chats, plain = (
        Dump(make_dump("causal-lm", teacher=teacher, data=data, top_k=4, **options))
        for data, options in ((toy_chats, {"messages_column": "messages"}), (texts, {}))
    )
    assert chats.manifest.layout.name == plain.manifest.layout.name == "next-token"
    assert chats.scan().sort("row").collect().equals(plain.scan().sort("row").collect())


# ---------------------------------------------------------------- resuming


def test_the_tokenizer_in_the_dump_keeps_the_template(chat_dump: Path, tiny_chat_tokenizer: Any) -> None:
    kept = AutoTokenizer.from_pretrained(chat_dump / "tokenizer")
    assert kept.chat_template == tiny_chat_tokenizer.chat_template


def test_a_lost_shard_is_made_again_byte_for_byte(
    make_dump: Any, teacher: Path, toy_chats: Any, write_corpus: Any, tmp_path: Path
) -> None:
    data = write_corpus(tmp_path / "a.jsonl", toy_chats)
    out = make_dump("causal-lm", teacher=teacher, data=data, **CHATS)
    shard = out / "shards" / "00001.parquet"
    before = shard.read_bytes()
    shard.unlink()
    make_dump("causal-lm", teacher=teacher, data=data, out=out, **CHATS)
    assert shard.read_bytes() == before


def with_template(teacher: Path, to: Path, change: Callable[[str], str]) -> Path:
    shutil.copytree(teacher, to)
    file = to / "chat_template.jinja"
    file.write_text(change(file.read_text()))
    return to


def test_another_template_is_another_dump(make_dump: Any, teacher: Path, toy_chats: Any, tmp_path: Path) -> None:
    out = make_dump("causal-lm", teacher=teacher, data=toy_chats, **CHATS)
    other = with_template(teacher, tmp_path / "other", lambda template: " " + template)
    with pytest.raises(UsageError, match=r"another dump.*tokenizer\.chat_template"):
        make_dump("causal-lm", teacher=other, data=toy_chats, out=out, **CHATS)


def test_so_are_other_special_tokens_that_the_template_can_name(
    make_dump: Any, make_teacher: Any, tiny_chat_tokenizer: Any, toy_chats: Any
) -> None:
    out = make_dump(
        "causal-lm", teacher=make_teacher("causal-lm", tokenizer=tiny_chat_tokenizer), data=toy_chats, **CHATS
    )
    tokenizer = copy.deepcopy(tiny_chat_tokenizer)
    tokenizer.bos_token = "<|im_start|>"
    other = make_teacher("causal-lm", tokenizer=tokenizer)
    with pytest.raises(UsageError, match=r"tokenizer\.special_tokens\.bos_token: the dump has none, .*<\|im_start\|>"):
        make_dump("causal-lm", teacher=other, data=toy_chats, out=out, **CHATS)


def test_a_template_is_no_matter_to_texts(make_dump: Any, teacher: Path, texts: list[str], tmp_path: Path) -> None:
    out = make_dump("causal-lm", teacher=teacher, data=texts[:9], top_k=3)
    other = with_template(teacher, tmp_path / "other", lambda template: " " + template)
    make_dump("causal-lm", teacher=other, data=texts[:9], out=out, top_k=3)
    assert Dump(out).manifest.tokenizer.chat_template is None


@pytest.mark.parametrize("change", [None, "", "{{ messages }}"])
def test_damage_to_the_template_is_found(change: str | None, chat_dump: Path, tmp_path: Path) -> None:
    copied = tmp_path / "dump"
    shutil.copytree(chat_dump, copied)
    file = copied / "tokenizer" / "chat_template.jinja"
    if change is None:
        file.unlink()
    else:
        file.write_text(change)
    (damage,) = verify(Folder.of(copied))
    assert damage.startswith(f"{file}: ")
    with pytest.raises(DumpError, match=r"chat_template\.jinja: "):
        Dump(copied)


def test_a_dump_of_an_earlier_version_goes_on_in_it(make_dump: Any, texts: list[str], make_teacher: Any) -> None:
    options: dict[str, Any] = {"teacher": make_teacher("causal-lm"), "data": texts[:40], "top_k": 3}
    out = make_dump("causal-lm", **options)
    downgrade(out, 2)
    (out / "shards" / "00001.parquet").unlink()
    make_dump("causal-lm", out=out, **options)
    dump = Dump(out)
    dump.require_complete()
    assert dump.manifest.format_version == 2
    assert (
        b'"format_version":2'
        in open_shard(shard_path(dump.path, 1), dump.receipts[1]).schema_arrow.metadata[b"lectern"]
    )


def test_a_dump_that_was_begun_with_lists_of_ids_goes_on_with_them(
    make_dump: Any, texts: list[str], make_teacher: Any
) -> None:
    options: dict[str, Any] = {"teacher": make_teacher("causal-lm"), "data": texts[:40], "top_k": 3}
    out = make_dump("causal-lm", **options)
    assert Dump(out).distribution.in_planes
    wanted = Dump(out).positions().collect()
    manifest = downgrade(out, 3)
    del manifest["signals"][0]["in_planes"], manifest["compression"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    for file in (out / "shards").iterdir():
        file.unlink()
    make_dump("causal-lm", out=out, **options)
    assert "distribution.entries" in Dump(out).scan().collect_schema()
    assert Dump(out).positions().collect().equals(wanted)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "completion"}, r"'completion'.*must be chats.*--messages-column"),
        ({**CHATS, "text_column": "body"}, r"messages column 'messages' holds the whole row.*text column 'body'"),
        ({**CHATS, "pair_column": "other"}, r"messages column 'messages' holds the whole row.*pair column 'other'"),
        ({**CHATS, "positions": "answers"}, r"positions 'answers' do not fit.*it has all, completion"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], message: str, make_dump: Any, teacher: Path, toy_chats: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        make_dump("causal-lm", teacher=teacher, data=toy_chats, out=tmp_path / "dump", **options)
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize("task", ["masked-lm", "sequence-classification", "token-classification", "encoder"])
def test_other_tasks_read_no_chats(task: str, make_dump: Any, toy_chats: Any) -> None:
    with pytest.raises(UsageError, match=f"the task {task} reads no messages column; chats are for causal-lm"):
        make_dump(task, data=toy_chats, messages_column="messages")


def test_a_teacher_without_a_template_is_refused(make_dump: Any, make_teacher: Any, toy_chats: Any) -> None:
    with pytest.raises(UsageError, match=r"no chat template"):
        make_dump("causal-lm", teacher=make_teacher("causal-lm"), data=toy_chats, **CHATS)


def test_a_row_that_the_template_refuses_is_named_before_anything_is_written(
    make_dump: Any, teacher: Path, toy_chats: Any, tmp_path: Path
) -> None:
    strict = with_template(
        teacher, tmp_path / "strict", lambda text: "{{ messages[0].content + 1 if messages[1] }}" + text
    )
    with pytest.raises(CorpusError, match=r"corpus\.jsonl, line 2: the chat template refuses this chat"):
        make_dump("causal-lm", teacher=strict, data=toy_chats, out=tmp_path / "dump", **CHATS)
    assert not (tmp_path / "dump").exists()


def test_a_corpus_in_which_nobody_answers_is_refused(make_dump: Any, teacher: Path, toy_chats: Any) -> None:
    renamed = json.loads(json.dumps(toy_chats).replace('"assistant"', '"gpt"'))
    with pytest.raises(UsageError, match=r"none of 40 sampled chats has any .*'completion' .* 64 tokens.*'assistant'"):
        make_dump("causal-lm", teacher=teacher, data=renamed, **CHATS)


def test_the_command_line_takes_chats(teacher: Path, toy_chats: Any, write_corpus: Any, tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "chats.parquet", toy_chats)
    arguments = ["--teacher", teacher, "--task", "causal-lm", "--data", data, "--out", tmp_path / "dump"]
    options = ["--messages-column", "messages", "--positions", "completion", "--max-length", 64, "--dry-run"]
    result = CliRunner().invoke(dump_app, [str(word) for word in (*arguments, *options)])
    assert result.exit_code == 0, result.output
    assert "40 rows" in result.output
