"""Bad values: what nobody should give to an option or a key, drawn by hypothesis, and files that nobody should name."""

import gzip
import json
import os
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
from hypothesis import strategies as st

Drawn = TypeVar("Drawn")

FOLDER = "hostile"
BOMB_BYTES = 300_000_000
NESTED = 20_000
NAMES = (
    "missing.jsonl", "folder.jsonl", "circle.jsonl", "dangling.jsonl", "fifo.jsonl", "zero.jsonl", "null.jsonl",
    "empty.jsonl", "binary.jsonl", "deep.jsonl", "digits.jsonl", "long.txt", "latin.txt", "cut.jsonl.gz",
    "bomb.jsonl.gz", "fake.parquet", "fake.zst", "bare.csv", "strange.jsonl", "labels.jsonl", "deep.toml", "circle",
    "*.jsonl",
)  # fmt: skip
URLS = ("s3://bucket/x", "http://127.0.0.1:9/x.jsonl", "nonsense://x", "memory://x", "://", "file://", "zip://x::y.zip")
WORDS = (
    "", " ", "none", "all", "last", "auto", "cpu", "cuda", "meta", "mps", "int8", "float16", "fp16", "bf16", "mass",
    "sample", "completion", "masked", "first-subtoken", "default", "tiny", "near-lossless", "zstd",
    "sequence-classification", "causal-lm", "encoder", "question-answering", "token-classification", "masked-lm",
    "classifier", "lm", "reader", "tagger", "dense", "threshold", "answers", "student", "rows.jsonl",
    "labelled.jsonl", "questions.jsonl", "words.jsonl", "plain.toml", "sweep.toml", "text", "label", "loss",
    "agreement", "accuracy", "kl", "gold", "hidden", "relations", "bilstm", "transformer", "pretrained", "bert",
    "llama", "svd", "gradual", "head", "first", "second", "labelled", "true", "false", "yes", ".", "./", "-", "--",
    "-1", "0", "1", "2", "3", "0.5", "0,1", "6,12", "1,,2", "1-3", "2,4", "nan", "inf", "-inf", "1e308", "1e-320",
    "1e5", "0x10", "1_000", "٣", "²", "1.0", "١", "n" * 300, "ß" * 5000, "a\nb", "\x1b[2J", "\x07",
)  # fmt: skip


def drawn(strategy: st.SearchStrategy[Drawn], key: str) -> Drawn:
    """Return one value of a strategy, always the same for a key."""
    values: list[Drawn] = []

    @hypothesis.seed(key)
    @hypothesis.settings(
        max_examples=4,
        database=None,
        phases=[hypothesis.Phase.generate],
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(value: Drawn) -> None:
        values.append(value)

    collect()
    return values[-1]  # the first ones are the simplest


def texts() -> st.SearchStrategy[str]:
    """Return a strategy of texts that can be an argument of a command."""
    letters = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)
    return st.one_of(letters, st.text(string.printable, max_size=20)).map(safe)


def arguments() -> st.SearchStrategy[str]:
    """Return a strategy of values of options."""
    return st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from([f"{FOLDER}/{name}" for name in NAMES]),
        st.sampled_from(URLS),
        st.integers(-3, 70).map(str),
        st.integers().map(str),
        st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**18, 10**30, 10**400, -(2**63)]).map(str),
        st.floats().map(str),
        st.floats(0, 1).map(str),
        texts(),
    )


def values() -> st.SearchStrategy[str]:
    """Return a strategy of values of keys, as TOML."""
    plain = st.one_of(
        st.none().map(lambda _: "''"), st.booleans().map(json.dumps), st.integers().map(str), arguments(),
        arguments().map(json.dumps), st.floats().map(_toml_float), st.integers(-2, 40).map(str),
        st.sampled_from(["1979-05-27", "07:32:00", "[]", "{}", "[[]]", "{a = 1}", "[1, 'a', [2]]", "[{kind = 'kl'}]",
                         "[0, 1e400]", "[" * NESTED + "]" * NESTED, "9" * 5000]),
    )  # fmt: skip
    return st.one_of(plain, st.lists(plain, max_size=3).map(lambda items: f"[{', '.join(items)}]"))


def safe(text: str) -> str:
    """Return a text that names no place outside of the working folder."""
    return text.replace("..", "").replace("~", "").lstrip("/ \t\n\r\x0b\x0c")


def make_bomb(place: Path) -> None:
    """Write the file of one long line that is small while it is compressed."""
    with gzip.open(place / "bomb.gz", "wb", 6) as file:
        file.write(b'{"text": "')
        for _ in range(BOMB_BYTES // 1_000_000):
            file.write(b"a " * 500_000)
        file.write(b'"}\n')


def make_files(folder: Path, place: Path) -> None:
    """Fill a folder with files that are not what they seem."""
    folder.mkdir()
    (folder / "folder.jsonl").mkdir()
    for name, target in {"circle.jsonl": "circle.jsonl", "circle": "circle", "dangling.jsonl": "nowhere"}.items():
        (folder / name).symlink_to(target)
    for name, device in {"zero.jsonl": "/dev/zero", "null.jsonl": "/dev/null"}.items():
        (folder / name).symlink_to(device)
    os.mkfifo(folder / "fifo.jsonl")
    (folder / "bomb.jsonl.gz").symlink_to((place / "bomb.gz").resolve())
    chance = random.Random(0)
    contents: dict[str, Callable[[], Any]] = {
        "empty.jsonl": bytes,
        "binary.jsonl": lambda: chance.randbytes(500),
        "deep.jsonl": lambda: b'{"text": ' + b"[" * NESTED + b"]" * NESTED + b"}\n",
        "digits.jsonl": lambda: b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n",
        "long.txt": lambda: b"the quick " * 100_000 + b"\n",
        "latin.txt": lambda: "naïve\n".encode("latin-1"),
        "cut.jsonl.gz": lambda: gzip.compress(b'{"text": "a"}\n' * 50)[:-9],
        "fake.parquet": lambda: b"PAR1 no parquet PAR1",
        "fake.zst": lambda: b"(\xb5/\xfd no frame",
        "bare.csv": lambda: b'text,label\n"a,b\n',
        "strange.jsonl": lambda: b'{"text": "\\u001b[2J\\ud800", "label": "\\u0007"}\n[1]\n{"text": null}\n',
        "labels.jsonl": lambda: (
            b'{"text": "a", "label": true}\n{"text": "b", "label": NaN}\n{"text": "c", "label": 1e99}\n'
        ),
        "deep.toml": lambda: b"output = " + b"[" * NESTED + b"]" * NESTED + b"\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content())


def _toml_float(value: float) -> str:
    return repr(value)
