"""Chats: rendered as transformers renders them, and the assistant's turns where one finds them by hand."""

import copy
import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from shared.errors import CorpusError, UsageError
from shared.text import chat as chat_module
from shared.text import examples
from shared.text.chat import tokens_of
from shared.text.corpus import Corpus, Example
from shared.text.examples import Columns
from shared.text.tasks import TASKS
from shared.text.tokenized import TokenizedRow, Tokenizing

HEADER = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
SAID = "{{ message['content'] + '<|im_end|>\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = "{% for message in messages %}" + HEADER + SAID + "{% endfor %}" + ASK
MARKED = (
    "{% for message in messages %}"
    + HEADER
    + "{% if message['role'] == 'assistant' %}{% generation %}"
    + SAID
    + "{% endgeneration %}{% else %}"
    + SAID
    + "{% endif %}{% endfor %}"
    + ASK
)
# As ChatML, but only the last turn shows what was thought, as in templates of models that reason.
FORGETS = (
    "{% for message in messages %}"
    + HEADER
    + "{% if loop.last and message['role'] == 'assistant' %}{{ '(thinks) ' }}{% endif %}"
    + SAID
    + "{% endfor %}"
    + ASK
)
# Asked for an answer, it writes more than it keeps.
THINKS = CHATML.replace(ASK, ASK.replace("assistant\\n", "assistant\\n(thinks) "))
STRICT = "{% if messages[0]['role'] == 'bot' %}{{ raise_exception('no bots. Ever') }}{% endif %}" + CHATML
BOS = "{{ bos_token }}" + CHATML

CHATS = Columns("messages", shape=examples.CHATS)


def chat(*turns: str) -> list[dict[str, Any]]:
    """chat("user: hi", "assistant: hello") as messages."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


TALK = chat("system: be kind", "user: hi", "assistant: hello you", "user: bye", "assistant: so long")
# One entry a token of TALK by the tokenizer below.
TOKENS = (
    "<|im_start|> system ⏎ be _ kind <|im_end|> ⏎ "
    "<|im_start|> user ⏎ hi <|im_end|> ⏎ "
    "<|im_start|> assistant ⏎ hello _ you <|im_end|> ⏎ "
    "<|im_start|> user ⏎ bye <|im_end|> ⏎ "
    "<|im_start|> assistant ⏎ so _ long <|im_end|> ⏎"
)


def word_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Words, blanks and line ends are one token each, and so are the special tokens. It would add <s> to a text."""
    words = ["system", "user", "assistant", "be", "kind", "hi", "hello", "you", "bye", "so", "long"]
    vocabulary = {word: index for index, word in enumerate(["?", " ", "\n", "<s>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s"), "isolated")
    backend.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>"), AddedToken("<s>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    tokenizer.chat_template = template
    return tokenizer


def rows_of(
    tokenizer: PreTrainedTokenizerFast, chats: list[Any], positions: str = "completion", max_length: int = 64
) -> list[TokenizedRow]:
    how = Tokenizing(tokenizer, max_length, (), positions, chats=True)
    return TASKS["causal-lm"].tokenize(how, [Example(messages) for messages in chats], 0)


def row_of(template: str, messages: Any, positions: str = "completion", max_length: int = 64) -> TokenizedRow:
    return rows_of(word_tokenizer(template), [messages], positions, max_length)[0]


def survey(path: Path, tokenizer: Any, positions: str = "completion") -> Any:
    """As `dump` looks at a corpus of chats."""
    how = Tokenizing(tokenizer, 64, (), positions, chats=True)
    return Corpus([str(path)], CHATS).survey(check=lambda example: TASKS["causal-lm"].check_row(how, example))


def write(path: Path, *chats: Any) -> Path:
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in chats))
    return path


# ---------------------------------------------------------------- where the assistant speaks


def test_tokens_are_those_written_out_by_hand() -> None:
    tokenizer = word_tokenizer(CHATML)
    names = {" ": "_", "\n": "⏎"}
    ids = row_of(CHATML, TALK).input_ids.tolist()
    assert " ".join(names.get(token, token) for token in tokenizer.convert_ids_to_tokens(ids)) == TOKENS


# A position is before the token that it is about: the first turn is tokens 17 to 21, the second 31 to 35.
FIRST, SECOND = [16, 17, 18, 19, 20], [30, 31, 32, 33, 34]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["prefixes", "marks"])
@pytest.mark.parametrize(
    ("messages", "max_length", "expected"),
    [
        (TALK, 64, FIRST + SECOND),
        (TALK[:4], 64, FIRST),  # the user has the last word
        (TALK[:3], 64, FIRST),
        (TALK[1:3], 64, [8, 9, 10, 11, 12]),  # no system turn
        (TALK[:2], 64, []),
        (TALK, 33, [*FIRST, 30, 31]),  # cut after "so" and a blank
        (TALK, 31, FIRST),  # cut right before the turn
        (TALK, 17, []),
        (TALK, 1, []),
        ([*TALK[1:3], TALK[4]], 64, [8, 9, 10, 11, 12, 16, 17, 18, 19, 20]),  # two turns in a row
    ],
)
def test_positions_are_those_before_what_the_assistant_says(
    template: str, messages: Any, max_length: int, expected: list[int]
) -> None:
    row = row_of(template, messages, max_length=max_length)
    assert row.positions.tolist() == expected
    assert row.labels.tolist() == row.input_ids[row.positions + 1].tolist()
    assert len(row.input_ids) <= max_length
    assert row.input_ids.dtype == row.positions.dtype == row.labels.dtype == "int32"


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["prefixes", "marks"])
def test_what_ends_a_turn_is_recorded_and_its_header_is_not(template: str) -> None:
    row = row_of(template, TALK)
    tokens = word_tokenizer(template).convert_ids_to_tokens(row.labels.tolist())
    assert "".join(tokens) == "hello you<|im_end|>\nso long<|im_end|>\n"


def test_all_positions_of_a_chat_are_those_of_a_text() -> None:
    row = row_of(CHATML, TALK, "all", max_length=20)
    assert row.positions.tolist() == list(range(19))
    assert row.labels.tolist() == row.input_ids.tolist()[1:]


def test_rows_are_cut_on_the_right_whatever_side_the_tokenizer_cuts() -> None:
    tokenizer = word_tokenizer(CHATML)
    whole = rows_of(tokenizer, [TALK])[0].input_ids.tolist()
    tokenizer.truncation_side = "left"
    for positions in ("all", "completion"):
        assert rows_of(tokenizer, [TALK], positions, 20)[0].input_ids.tolist() == whole[:20]


def test_special_tokens_are_those_of_the_template_alone() -> None:
    """The tokenizer itself would add a second <s>."""
    for template, count in ((CHATML, 0), (BOS, 1)):
        ids = row_of(template, TALK).input_ids.tolist()
        assert ids.count(3) == count
        assert ids == word_tokenizer(template).apply_chat_template(TALK, return_dict=False)


@pytest.mark.parametrize("template", [CHATML, MARKED, BOS])
def test_ids_and_positions_are_those_of_transformers(template: str, tiny_causal_tokenizer: Any, texts: Any) -> None:
    """Its mask needs generation marks; without them the same positions are found."""
    tokenizer, marked = copy.deepcopy(tiny_causal_tokenizer), copy.deepcopy(tiny_causal_tokenizer)
    tokenizer.bos_token = marked.bos_token = "<|end|>"
    tokenizer.chat_template, marked.chat_template = template, template.replace(CHATML, MARKED)
    choose = random.Random(0)
    chats = [
        [{"role": choose.choice(["user", "assistant"]), "content": choose.choice(texts)} for _ in range(9)]
        for _ in range(70)  # more than are tokenized at once
    ]
    chats = [[{"role": "user", "content": " "}, *messages] for messages in chats]
    for row, messages in zip(rows_of(tokenizer, chats, max_length=4096), chats, strict=True):
        reference = marked.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert row.input_ids.tolist() == reference["input_ids"]
        assert row.positions.tolist() == [at - 1 for at, mask in enumerate(reference["assistant_masks"]) if mask]
        assert 0 < len(row.positions) < len(row.input_ids)


@pytest.mark.parametrize("is_marked", [False, True])
def test_a_token_across_the_border_is_the_assistants(is_marked: bool, tiny_causal_tokenizer: Any) -> None:
    """The template's last blank and the answer's first word are one token, and so are the line end and what follows."""
    answer = "{{ message['content'] }}"
    answer = "{% generation %}" + answer + "{% endgeneration %}" if is_marked else answer
    tokenizer = copy.deepcopy(tiny_causal_tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['role'] == 'assistant' %}"
        + answer
        + "{% else %}{{ message['content'] }}{% endif %}{{ ' ' }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    (row,) = rows_of(tokenizer, [chat("user: fox", "assistant: the dog", "user: jugs")])
    pieces = [tokenizer.decode([index]) for index in row.labels]
    assert pieces[0] == " the"
    assert "".join(pieces).strip() == "the dog"


def test_one_character_makes_a_token_a_spans_and_touching_does_not() -> None:
    offsets_L2 = np.array([[0, 2], [2, 4], [4, 6], [6, 6], [6, 8], [8, 9]])
    assert tokens_of([(3, 5)], offsets_L2).tolist() == [False, True, True, False, False, False]
    assert tokens_of([(2, 4), (7, 9)], offsets_L2).tolist() == [False, True, False, False, True, True]
    assert not tokens_of([(4, 4)], offsets_L2[:2]).any()


def test_other_keys_reach_the_template_and_those_without_a_value_do_not(tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message | tojson }}{% endfor %}"
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    messages = [{"role": "user", "content": "hi", "name": "you"}, call]
    how = Tokenizing(word_tokenizer(template), 64, (), "all", chats=True)
    path = write(tmp_path / "a.jsonl", [{**messages[0], "tool_calls": None}, {**call, "content": None}])
    (example,) = Corpus([str(path)], CHATS).examples()
    assert example.text == messages
    row = TASKS["causal-lm"].tokenize(how, [example], 0)[0]
    expected = how.tokenizer("".join(json.dumps(each) for each in messages), add_special_tokens=False)["input_ids"]
    assert row.input_ids.tolist() == expected[:64]


def test_the_first_message_may_be_the_assistants_where_the_template_has_marks() -> None:
    assert row_of(MARKED, TALK[2:3]).positions.tolist() == [2, 3, 4, 5, 6]


# ---------------------------------------------------------------- corpora


def test_chats_are_the_same_in_json_lines_json_and_parquet(tmp_path: Path) -> None:
    chats = [TALK, TALK[1:3], chat("user: hi\nyou", "assistant: 日本語")]
    chats[1][0]["name"] = "you"  # Parquet gives this key to every message
    lines = write(tmp_path / "a.jsonl", *chats)
    array, parquet = tmp_path / "a.json", tmp_path / "a.parquet"
    array.write_text(json.dumps([{"messages": each} for each in chats]))
    pq.write_table(pa.Table.from_pylist([{"messages": each, "x": 1} for each in chats]), parquet)
    found = [Corpus([str(path)], CHATS).survey() for path in (lines, array, parquet)]
    for each in found:
        assert [example.text for example in each.sample] == chats
    assert len({each.fingerprint for each in found}) == 1


@pytest.mark.parametrize("change", [{"role": "system"}, {"content": "hi"}, {"name": "you"}])
def test_the_fingerprint_covers_every_value_of_every_message(tmp_path: Path, change: dict[str, str]) -> None:
    one = write(tmp_path / "one.jsonl", TALK)
    other = write(tmp_path / "other.jsonl", [*TALK[:3], {**TALK[3], **change}, TALK[4]])
    assert len({Corpus([str(path)], CHATS).survey().fingerprint for path in (one, other)}) == 2


def json_line(value: Any) -> bytes:
    return json.dumps({"messages": value}).encode() + b"\n"


GOOD = json_line(TALK)
BAD_FILES = {
    "a text": ("a.jsonl", GOOD + json_line("hi"), r"a\.jsonl, line 2: column 'messages' must hold a chat.*'hi'"),
    "null": ("a.jsonl", GOOD + b'{"messages": null}', r"line 2: .*must hold a chat.*'None'"),
    "no column": ("a.jsonl", b'{"talk": []}', r"a\.jsonl: no column 'messages'; it has 'talk'.*--messages-column"),
    "one message": ("a.jsonl", json_line(TALK[0]), r"line 1: .*must hold a chat"),
    "texts": ("a.jsonl", json_line(["hi", "hello"]), r"line 1: .*must hold a chat"),
    "empty": ("a.jsonl", GOOD + GOOD + json_line([]), r"a\.jsonl, line 3: .*a chat without messages"),
    "no role": ("a.jsonl", json_line([{"from": "user", "content": "x"}]), r"line 1: message 0 .*'role'.*'from'"),
    "no content": ("a.jsonl", json_line([TALK[0], {"role": "user"}]), r"line 1: message 1 .*'content'"),
    "a number": ("a.jsonl", json_line([{"role": "user", "content": 1}]), r"line 1: message 0 .*'content'"),
    "csv": ("a.csv", b"messages\nhi\n", r"a\.csv, line 2: .*must hold a chat.*\(in \.jsonl, \.json or \.parquet"),
    "tsv": ("a.tsv", b"messages\n[]\n", r"a\.tsv, line 2: .*must hold a chat.*\(in \.jsonl, \.json or \.parquet"),
    "txt": ("a.txt", b"hi\n", r"a\.txt, line 1: .*must hold a chat.*\(in \.jsonl, \.json or \.parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_chat_is_named_by_file_and_line(name: str, tmp_path: Path) -> None:
    file, content, message = BAD_FILES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as raised:
        Corpus([str(tmp_path / file)], CHATS).survey()
    assert "\n" not in str(raised.value)


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi", "sent": datetime(2026, 1, 1)}]
    pq.write_table(pa.Table.from_pylist([{"messages": messages}]), tmp_path / "a.parquet")
    with pytest.raises(
        CorpusError, match=r"a\.parquet, row 0: a message has a value that JSON cannot hold \(.*datetime"
    ):
        Corpus([str(tmp_path / "a.parquet")], CHATS).survey()


# ---------------------------------------------------------------- refusals of templates

BOT = chat("bot: hi")
REWRITTEN = (
    r"a\.jsonl, line 2: the chat template renders the messages up to number 2.*\{% generation %\}.*all positions"
)
UNASKED = r"line 2: the chat template writes '<\|im_start\|>assistant' before .*message 2.*add_generation_prompt"
BAD_ROWS = {
    "raises": (
        STRICT,
        BOT,
        r"a\.jsonl, line 2: the chat template refuses this chat \(no bots\. Ever\); correct or drop",
    ),
    "stumbles": (
        CHATML,
        [{"role": "user", "tool_calls": []}],
        r"line 2: the chat template refuses this chat \(.*content",
    ),
    "rewrites": (FORGETS, TALK, REWRITTEN),
    "asks for more than it keeps": (THINKS, TALK, REWRITTEN),
    "has no header to ask for": (CHATML.removesuffix(ASK), TALK, UNASKED),
    "begins with the assistant": (CHATML, TALK[2:], r"line 2: the chat begins with the assistant.*\{% generation %\}"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_template_that_cannot_serve_a_row_is_told_with_file_and_line(name: str, tmp_path: Path) -> None:
    template, messages, message = BAD_ROWS[name]
    path = write(tmp_path / "a.jsonl", TALK[1:2], messages)
    with pytest.raises(CorpusError, match=message) as raised:
        survey(path, word_tokenizer(template))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("template", [FORGETS, CHATML.removesuffix(ASK)])
def test_all_positions_need_no_turns_to_be_found(template: str, tmp_path: Path) -> None:
    assert survey(write(tmp_path / "a.jsonl", TALK), word_tokenizer(template), "all").rows == 1


def test_a_template_without_headers_needs_none() -> None:
    """As in [INST] ... [/INST], where the answer follows at once."""
    template = (
        "{% for message in messages %}{{ message['content'] + ('<|im_end|>' if loop.index0 % 2 else ' ') }}{% endfor %}"
    )
    row = row_of(template, chat("user: hi", "assistant: hello", "user: bye", "assistant: so long"))
    tokens = word_tokenizer(template).convert_ids_to_tokens(row.labels.tolist())
    assert tokens == ["hello", "<|im_end|>", "so", " ", "long", "<|im_end|>"]


def check(task: str, template: str | None, positions: str | None, chats: bool) -> None:
    TASKS[task].check_tokenizing(Tokenizing(word_tokenizer(template), 64, (), positions, chats=chats))


def test_what_cannot_go_together_is_refused_before_any_row_is_read() -> None:
    with pytest.raises(UsageError, match=r"no chat template.*chat_template\.jinja"):
        check("causal-lm", None, "all", True)
    with pytest.raises(UsageError, match=r"today's date \(strftime_now\)"):
        check("causal-lm", "{{ strftime_now('%d') }}" + CHATML, "all", True)
    with pytest.raises(UsageError, match=r"masked-lm reads no messages column; chats are for causal-lm"):
        check("masked-lm", CHATML, "all", True)
    with pytest.raises(UsageError, match=r"'completion'.*must be chats.*--messages-column"):
        check("causal-lm", CHATML, "completion", False)
    check("causal-lm", None, "all", False)
    check("causal-lm", CHATML, "completion", True)
    for text, pair, named in (("body", None, "text column 'body'"), ("text", "second", "pair column 'second'")):
        with pytest.raises(UsageError, match=f"'messages' holds the whole row.*{named}"):
            Columns.of_chats("messages", text, pair)
    assert Columns.of_chats("messages", "text", None) == CHATS


def test_a_template_that_does_not_end_is_a_sentence(
    tiny_chat_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, no_hang: None
) -> None:
    tokenizer = copy.deepcopy(tiny_chat_tokenizer)
    tokenizer.chat_template = "{% for i in range(9999) %}{% for j in range(9999) %}{{ i * j }}{% endfor %}{% endfor %}"
    monkeypatch.setattr(chat_module, "SECONDS_A_CHAT", 0.2)
    with pytest.raises(CorpusError, match=r"the chat template is not finished after 0\.2 seconds"):
        chat_module.render(tokenizer, [{"role": "user", "content": "hello"}])
