"""JSON and TOML of unknown origin: a value, or one exception with a sentence and, where it is known, the line."""

import pytest

from shared.parsing import NotParsed, decode, parse_json, parse_toml

DEEP, LONG = 10_000, 5_000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: not valid JSON (Expecting value)"),
        ('{"a":\n 1,}', "line 2: not valid JSON (Expecting property name enclosed in double quotes)"),
        ("[" * DEEP + "]" * DEEP, "not valid JSON (it is nested too deeply)"),
        ('{"a":' * DEEP + "1" + "}" * DEEP, "not valid JSON (it is nested too deeply)"),
        ("9" * LONG, "not valid JSON (an integer has more than 4,300 digits)"),
        ('{"a": "\0"}', "line 1: not valid JSON (Invalid control character at)"),
        (b'{"a": 1,\n"b": "\xef"}', "line 2: byte 0xef is not valid UTF-8; convert the file first"),
        ('{"a": 1}'.encode("utf-16"), "line 1: byte 0xff is not valid UTF-8"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_json_that_cannot_be_parsed(text: str | bytes, sentence: str) -> None:
    with pytest.raises(NotParsed) as raised:
        parse_json(text)
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a = ", "not valid TOML (Invalid value (at end of document))"),
        ("a = 1\na = 2", "not valid TOML (Cannot overwrite a value (at end of document))"),
        ("a = " + "[" * DEEP + "]" * DEEP, "not valid TOML (it is nested too deeply)"),
        (f"a = {'9' * LONG}", "not valid TOML (an integer has more than 4,300 digits)"),
        ("a = 2000-13-41", "not valid TOML ("),
        (b"a = 1\nb = '\xef'", "line 2: byte 0xef is not valid UTF-8"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_toml_that_cannot_be_parsed(text: str | bytes, sentence: str) -> None:
    with pytest.raises(NotParsed) as raised:
        parse_toml(text)
    assert str(raised.value).startswith(sentence)


def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    assert parse_json(b"\xef\xbb\xbf[1]") == parse_json("\ufeff[1]") == [1]
    assert parse_toml(b"\xef\xbb\xbfa = 1\r\nb = 2") == {"a": 1, "b": 2}
    assert decode(b"\xef\xbb\xbfa", first_line=2) == "\ufeffa"
