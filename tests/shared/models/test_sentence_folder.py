"""The files of sentence-transformers beside a model: written, read, and refused with a sentence."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from shared.dump.facts import Pooling, PoolingMode
from shared.errors import TeacherError
from shared.models.sentence_folder import SentenceFolder, read_sentence_folder, write_sentence_folder

TYPE = "sentence_transformers.models."
KINDS = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))


def folder_with(folder: Path, files: dict[str, Any]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


def modules(*kinds: tuple[str, str]) -> list[dict[str, str]]:
    return [{"type": TYPE + kind, "path": path} for kind, path in kinds]


def mean() -> dict[str, Any]:
    return {"modules.json": modules(*KINDS[:2]), "1_Pooling/config.json": {"pooling_mode_mean_tokens": True}}


@pytest.mark.parametrize("mode", get_args(PoolingMode))
@pytest.mark.parametrize("normalized", [False, True])
def test_what_is_written_is_read(tmp_path: Path, mode: PoolingMode, normalized: bool) -> None:
    write_sentence_folder(tmp_path, Pooling(mode=mode, normalized=normalized), 32, 64)
    found = read_sentence_folder(str(tmp_path), TeacherError)
    assert found == SentenceFolder(Pooling(mode=mode, normalized=normalized), 64, lowercases=False)
    assert (tmp_path / "2_Normalize").is_dir() == normalized


def test_the_key_of_recent_versions_is_read_and_a_folder_without_modules_is_a_plain_one(tmp_path: Path) -> None:
    assert read_sentence_folder(str(tmp_path), TeacherError) is None
    files = mean() | {"1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": "lasttoken"}}
    found = read_sentence_folder(folder_with(tmp_path, files), TeacherError)
    assert found == SentenceFolder(Pooling(mode="last"), None, lowercases=False)


DENSE = modules(*KINDS[:2], ("Dense", "2_Dense"))
WEIGHTED, BOTH = {"pooling_mode": "weightedmean"}, {"pooling_mode": ["cls", "mean"]}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"modules.json": "{"}, "modules.json: line 1: not valid JSON"),
        ({"modules.json": {"a": 1}}, "modules.json is not a list of modules"),
        ({"modules.json": [{"type": 1, "path": ""}]}, "modules.json is not a list of modules"),
        ({"modules.json": modules(KINDS[0], ("Pooling", "../elsewhere"))}, "modules.json is not a list of modules"),
        ({"modules.json": modules(KINDS[0], ("Pooling", "/tmp"))}, "modules.json is not a list of modules"),
        ({"modules.json": DENSE}, "has the modules Transformer, Pooling, Dense, but only.*--pooling mean"),
        ({"modules.json": modules(("Transformer", "0_Transformer"), KINDS[1])}, "in its folder '0_Transformer'"),
        ({"1_Pooling/config.json": WEIGHTED}, "it pools by 'weightedmean', but only one of mean, cls, last, max"),
        ({"1_Pooling/config.json": BOTH}, "it pools by .'cls', 'mean'., but only one of"),
        ({"1_Pooling/config.json": {"pooling_mode": 3}}, "it pools by 3, but only one of"),
        ({"1_Pooling/config.json": []}, "no table of values in 1_Pooling/config.json"),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, "max_seq_length = 0; give a number of tokens"),
        ({"sentence_bert_config.json": {"max_seq_length": "x"}}, "max_seq_length = 'x'; give a number of tokens"),
        (
            {"config_sentence_transformers.json": {"default_prompt_name": "q", "prompts": {"q": "query: "}}},
            "puts the prompt 'q' before every text",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path: Path, files: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TeacherError, match=sentence):
        read_sentence_folder(folder_with(tmp_path, mean() | files), TeacherError)


def test_a_folder_without_the_configuration_of_its_pooling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"no table of values in 1_Pooling/config\.json"):
        read_sentence_folder(folder_with(tmp_path, {"modules.json": modules(*KINDS[:2])}), TeacherError)


def test_lowercasing_is_refused_only_for_a_tokenizer_that_does_not(tmp_path: Path) -> None:
    files = mean() | {"sentence_bert_config.json": {"do_lower_case": True}}
    found = read_sentence_folder(folder_with(tmp_path, files), TeacherError)
    assert found is not None
    with pytest.raises(TeacherError, match="lowercases texts"):
        found.check_tokenizer("here", lambda text: {"input_ids": list(text)}, TeacherError)
    found.check_tokenizer("here", lambda text: {"input_ids": list(text.lower())}, TeacherError)
