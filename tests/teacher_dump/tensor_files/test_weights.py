"""`dump --teacher-weights`: of a dump's weights and configuration a model is made whose outputs are the teacher's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig
from typer.testing import CliRunner

from shared import Dump, DumpError
from shared.dump.inspection import facts
from shared.errors import LecternError, RecipeError, TeacherError, UsageError
from shared.text.columns import ColumnNames
from shared.text.tasks import task_named
from student_train.data.sources import DumpSource, TextSource
from teacher_dump.annotate import annotate, prepare
from teacher_dump.cli import app
from teacher_dump.engines.callable import CallableTeacher
from teacher_dump.engines.transformers.weights import weights_of
from teacher_dump.estimate import estimate
from teacher_dump.request import Request
from tests.conftest import LABELS

FILE = "weights/teacher.safetensors"
TASK = "sequence-classification"
TEACHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": (TASK, "bert", {}),
    "roberta": (TASK, "roberta", {"max_position_embeddings": 70, "pad_token_id": 0}),
    "distilbert": (TASK, "distilbert", {}),
    "a tagger": ("token-classification", "bert", {}),
    "an encoder": ("encoder", "bert", {}),
    "bert with tied embeddings": ("masked-lm", "bert", {}),
    "llama": ("causal-lm", "llama", {}),
    "llama, tied": ("causal-lm", "llama", {"tie_word_embeddings": True}),
    "gpt2": ("causal-lm", "gpt2", {}),
    "albert, whose layers are one": (TASK, "albert", {"embedding_size": 16}),
}


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher(TASK)


@pytest.fixture(scope="module")
def made(make_dump: Callable[..., Path], teacher: Path) -> Path:
    return make_dump(teacher=teacher, teacher_weights="all")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def base(teacher: Path, made: Path, tmp_path: Path) -> dict[str, Any]:
    data = (str(made.parent / "corpus.jsonl"),)
    return {"teacher": str(teacher), "task": TASK, "data": data, "out": tmp_path / "dump", "max_length": 64,
            "shard_rows": 16, "device": "cpu"}  # fmt: skip


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_model_of_the_dumps_weights_gives_the_teachers_outputs(
    kind: str, make_teacher: Any, make_dump: Callable[..., Path]
) -> None:
    task, model_type, changes = TEACHERS[kind]
    teacher = make_teacher(task, model_type, **changes)
    folder = make_dump(task, teacher=teacher, teacher_weights="all", hidden="last")
    config, weights = Dump(folder).teacher_weights()
    own = load_file(teacher / "model.safetensors")
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    assert config == {
        key: value for key, value in json.loads((teacher / "config.json").read_text()).items() if key != "use_cache"
    }

    auto_class = getattr(transformers, task_named(task).auto_class)
    expected = auto_class.from_pretrained(teacher).eval()
    model = auto_class.from_config(AutoConfig.for_model(**config)).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not set(missing) - set(model.all_tied_weights_keys)
    model.tie_weights()
    ids_BL = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(model(ids_BL)[0], expected(ids_BL)[0])


def test_chosen_layers_are_kept_with_everything_outside_of_them(make_teacher: Any, make_dump: Any) -> None:
    teacher = make_teacher(TASK, "bert", num_hidden_layers=4)
    _, all_of_them = Dump(make_dump(teacher=teacher, teacher_weights="all")).teacher_weights()
    dump = Dump(make_dump(teacher=teacher, teacher_weights="4,2"))
    config, weights = dump.teacher_weights()
    assert config["num_hidden_layers"] == 4
    assert dump.manifest.tensor_files["teacher"].facts["layers"] == "2,4"
    left_out = {name for name in all_of_them if ".layer.0." in name or ".layer.2." in name}
    assert left_out
    assert weights.keys() == all_of_them.keys() - left_out
    assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= weights.keys()


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_they_are_kept_in_the_type_that_is_asked_for(
    name: str, dtype: torch.dtype, teacher: Path, made: Path, make_dump: Any
) -> None:
    dump = Dump(make_dump(teacher=teacher, teacher_weights="all", teacher_weights_dtype=name))
    _, expected = Dump(made).teacher_weights()
    _, found = dump.teacher_weights()
    assert {key: value.dtype for key, value in found.items()} == dict.fromkeys(expected, dtype)
    assert all(torch.equal(found[key], expected[key].to(dtype)) for key in expected)
    size = sum(value.numel() for value in expected.values()) * 2
    assert dump.manifest.tensor_files["teacher"].bytes == size
    assert (dump.path.local / FILE).stat().st_size == pytest.approx(size, abs=5000)
    assert dump.verify() == []


def test_they_are_shown_verified_and_counted(made: Path, teacher: Path, base: dict[str, Any]) -> None:
    file = Dump(made).manifest.tensor_files["teacher"]
    described = f"weights ({file.tensors} tensors, 98.1 KB, layers all, dtype fp32)"
    assert ("weights", described) in facts(Dump(made))
    assert f"| weights | the teacher's {described} |" in (made / "README.md").read_text()
    assert str(teacher) not in json.dumps(file.facts), "a path of this machine"
    sizes = [estimate(prepare(Request(**base, **options))).bytes for options in ({"teacher_weights": "all"}, {})]
    assert sizes[0] - sizes[1] == file.bytes
    dry = CliRunner().invoke(
        app,
        ["--teacher", str(teacher), "--task", TASK, "--data", *base["data"], "--out", str(base["out"]),
         "--max-length", "64", "--teacher-weights", "all", "--dry-run"],
    )  # fmt: skip
    assert dry.exit_code == 0, dry.output
    assert f"weights  {described}" in dry.output
    assert not base["out"].exists()


def test_damaged_missing_and_swapped_weights_are_found(copy: Path) -> None:
    tensors = load_file(copy / FILE)
    tensors["classifier.bias"][0] += 1
    save_file(tensors, copy / FILE)
    (damage,) = Dump(copy).verify()
    assert FILE in damage
    with pytest.raises(DumpError, match=rf"{FILE}: these are not the tensors that the manifest describes"):
        DumpSource(copy).teacher_weights()
    (copy / FILE).unlink()
    with pytest.raises(DumpError, match=f"{FILE}: missing, and weights needs it"):
        Dump(copy).teacher_weights()


def test_the_same_command_goes_on_and_another_is_refused(copy: Path, made: Path, base: dict[str, Any]) -> None:
    for path in (copy / "shards").glob("*00001*"):
        path.unlink()
    base["out"] = copy
    for options, message in (
        ({}, r"tensor_files\.teacher\.bytes: the dump has \d+, this command asks for none"),
        ({"teacher_weights": "1"}, r"tensor_files\.teacher\.facts\.layers: the dump has all, this command asks for 1"),
        ({"teacher_weights": "all", "teacher_weights_dtype": "bf16"}, r"facts\.dtype: the dump has fp32"),
    ):
        with pytest.raises(UsageError, match=message):
            annotate(prepare(Request(**base, **options)))
    before = (copy / FILE).stat().st_mtime_ns
    annotate(prepare(Request(**base, teacher_weights="all")))
    assert (copy / "shards" / "00001.parquet").read_bytes() == (made / "shards" / "00001.parquet").read_bytes()
    assert (copy / FILE).stat().st_mtime_ns == before


def test_a_source_gives_them_or_says_what_it_lacks(
    made: Path, make_dump: Any, teacher: Path, tiny_tokenizer: Any
) -> None:
    config, weights = DumpSource(made).teacher_weights()
    assert config["model_type"] == "bert"
    assert "classifier.weight" in weights
    without = make_dump(teacher=teacher)
    with pytest.raises(DumpError, match="weights are not in this dump; dump again with --teacher-weights to keep them"):
        DumpSource(without).teacher_weights()
    data = [str(made.parent / "corpus.jsonl")]
    text = TextSource(task_named(TASK), data, task_named(TASK).columns(ColumnNames(), True), tiny_tokenizer, 64)
    for call in (text.teacher_weights, text.importance):
        with pytest.raises(RecipeError, match=r"corpus\.jsonl: .* begins with a teacher's .* do not; train on a dump"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weights": "some"}, "--teacher-weights 'some': use none, all, or layers such as 2,4,6"),
        ({"teacher_weights": "1,,2"}, "--teacher-weights '1,,2': use none"),
        ({"teacher_weights": "-1"}, "--teacher-weights '-1': use none"),
        ({"teacher_weights": "0"}, "--teacher-weights 0: this teacher has layers 1 to 2"),
        ({"teacher_weights": "1,3"}, "--teacher-weights 3: this teacher has layers 1 to 2"),
        ({"teacher_weights": "all", "teacher_weights_dtype": "int8"}, "--teacher-weights-dtype 'int8': use auto, fp32"),
        ({"teacher_weights_dtype": "fp16"}, "give --teacher-weights too"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, base: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(Request(**base, **options))
    assert not base["out"].exists()


def test_layers_that_are_one_module_cannot_be_chosen(base: dict[str, Any], make_teacher: Any) -> None:
    base["teacher"] = str(make_teacher(TASK, "albert", embedding_size=16))
    with pytest.raises(TeacherError, match="layers of AlbertForSequenceClassification are not modules of their own"):
        prepare(Request(**base, teacher_weights="1"))


def test_a_callable_has_no_weights_to_keep(base: dict[str, Any], tiny_tokenizer: Any) -> None:
    class Bag(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(input_ids), 3)

    base["teacher"] = CallableTeacher(Bag(), tiny_tokenizer, label_names=LABELS)
    with pytest.raises(TeacherError, match="--teacher-weights: Bag is no model of transformers"):
        prepare(Request(**base, teacher_weights="all"))


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_values_that_the_type_cannot_hold_are_refused(value: float, base: dict[str, Any], make_teacher: Any) -> None:
    teacher = make_teacher(TASK, seed=5)
    tensors = load_file(teacher / "model.safetensors")
    tensors["bert.pooler.dense.bias"][3] = value
    save_file(tensors, teacher / "model.safetensors", {"format": "pt"})
    base["teacher"] = str(teacher)
    match = "weight bert.pooler.dense.bias is NaN, or too large for fp16"
    with pytest.raises(LecternError, match=match):
        prepare(Request(**base, teacher_weights="all", teacher_weights_dtype="fp16"))


@pytest.fixture
def model(teacher: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(teacher)


def test_a_model_with_its_own_code_is_refused(model: Any) -> None:
    class Own(type(model)):  # type: ignore[misc]
        """A model that transformers does not have."""

    model.__class__ = Own
    with pytest.raises(TeacherError, match="--teacher-weights: Own comes with Python code of its own"):
        weights_of(model, None)


def test_a_quantized_model_is_refused(model: Any) -> None:
    weight = model.requires_grad_(False).classifier.weight
    weight.data = weight.data.to(torch.int8)
    with pytest.raises(TeacherError, match="BertForSequenceClassification is quantized"):
        weights_of(model, None)
    weight.data = weight.data.float()
    model.config.quantization_config = {"quant_method": "any"}
    with pytest.raises(TeacherError, match="BertForSequenceClassification is quantized"):
        weights_of(model, None)


def test_weights_that_save_pretrained_leaves_out_are_left_out(model: Any) -> None:
    model._keys_to_ignore_on_save = {"classifier.bias"}
    assert "classifier.bias" not in weights_of(model, None)
    assert "classifier.weight" in weights_of(model, None)


def test_of_tied_weights_the_one_stays_to_which_others_are_tied(model: Any) -> None:
    """Whichever comes first in the state dict."""
    model.classifier.bias = model.bert.pooler.dense.bias
    for tied, kept in (("classifier", "bert.pooler.dense"), ("bert.pooler.dense", "classifier")):
        model.all_tied_weights_keys = {f"{tied}.bias": f"{kept}.bias"}
        found = weights_of(model, None)
        assert f"{tied}.bias" not in found
        assert f"{kept}.bias" in found
