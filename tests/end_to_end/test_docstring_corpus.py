"""The demo's corpus: no text or file in two splits, all classes present, deterministic, and no answer in a text."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "docstrings" / "make_corpus.py"
SIZES = {"labelled": 20, "unlabeled": 100, "test": 30}


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_corpus", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run_script(out: Path, **sizes: int) -> subprocess.CompletedProcess[str]:
    flags = [flag for name, size in sizes.items() for flag in (f"--{name}", str(size))]
    command = [sys.executable, str(SCRIPT), "--out", str(out), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "made" / "here"
    run = run_script(out, **SIZES)
    assert run.returncode == 0, run.stderr
    return out


def test_writes_three_files_of_the_sizes_asked_for_and_nothing_else(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {f"{name}.jsonl" for name in SIZES}
    assert {name: len(read_jsonl(written / f"{name}.jsonl")) for name in SIZES} == SIZES


def test_every_package_has_its_share_of_labels_and_unlabeled_rows_have_none(corpus: ModuleType, written: Path) -> None:
    for name in ("labelled", "test"):
        labels = Counter(row["label"] for row in read_jsonl(written / f"{name}.jsonl"))
        assert labels == dict.fromkeys(corpus.PACKAGES, SIZES[name] // len(corpus.PACKAGES))
    assert all(set(row) == {"text"} for row in read_jsonl(written / "unlabeled.jsonl"))


def test_no_text_stands_in_two_splits_or_twice_in_one(written: Path) -> None:
    texts = [row["text"] for name in SIZES for row in read_jsonl(written / f"{name}.jsonl")]
    assert len(set(texts)) == len(texts)


def test_no_package_name_is_left_in_a_text(corpus: ModuleType, written: Path) -> None:
    names = [*corpus.PACKAGES, "PyTorch", "scikit-learn", "pyplot", "hugging face", "numpy"]
    for split in SIZES:
        for row in read_jsonl(written / f"{split}.jsonl"):
            assert not [name for name in names if name.lower() in row["text"].lower()], row["text"]
            assert not {"np", "plt", "nx", "pl"} & set(row["text"].replace(".", " ").split()), row["text"]


def test_two_runs_write_the_same_bytes_and_another_seed_other_texts(written: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert run_script(again, **SIZES).returncode == 0
    assert run_script(other, **SIZES, seed=1).returncode == 0
    for name in SIZES:
        assert (again / f"{name}.jsonl").read_bytes() == (written / f"{name}.jsonl").read_bytes()
        assert (other / f"{name}.jsonl").read_bytes() != (written / f"{name}.jsonl").read_bytes()


def test_no_source_file_gives_texts_to_both_test_and_training(corpus: ModuleType) -> None:
    splits = corpus.make_splits(labelled=20, unlabeled=300, test=100, seed=0)
    files = {name: {text.file for text in texts} for name, texts in splits.items()}
    assert not files["test"] & (files["labelled"] | files["unlabeled"])
    assert max(Counter(text.file for text in splits["test"]).values()) <= corpus.MAX_TEST_TEXTS_PER_FILE


def test_a_text_of_two_packages_is_dropped_and_of_one_package_kept_once(corpus: ModuleType) -> None:
    rows = [("Return a graph.", "networkx"), ("return a graph", "sympy"), ("A plot.", "torch"), ("A `plot`", "torch")]
    texts = [corpus.Text(text, label, f"{index}.py") for index, (text, label) in enumerate(rows)]
    assert corpus.without_duplicates(texts) == [texts[2]]


def test_prose_ends_before_sections_and_doctests_and_names_no_package(corpus: ModuleType) -> None:
    docstring = """Multiply with `torch.matmul`, see :func:`np.dot`.

    .. versionadded:: 1.2
       Later.

    Works on scikit-learn input.

    Parameters
    ----------
    a : array
    """
    assert corpus.prose(docstring) == "Multiply with library.matmul, see library.dot. Works on library input."
    assert corpus.prose("Add.\n\n>>> add(1, 2)\n3") == "Add."
    assert len(corpus.prose("word " * 100).split()) == corpus.MAX_WORDS


@pytest.mark.parametrize(("left", "right"), list(combinations(["", "Args:\n    x: y", ">>> 1", "x (int): y"], 2)))
def test_docstrings_without_prose_yield_no_text(corpus: ModuleType, left: str, right: str) -> None:
    assert corpus.prose(f"{left}\n\n{right}") == ""


def test_a_missing_package_is_named(corpus: ModuleType) -> None:
    with pytest.raises(corpus.CorpusError, match="'no_such_package' is not installed"):
        corpus.read_package("no_such_package", enough=1, seed=0)


def test_a_size_that_cannot_be_shared_out_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = run_script(tmp_path / "out", **{**SIZES, "test": 33})
    assert run.returncode == 1
    assert "--test is 33" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()
