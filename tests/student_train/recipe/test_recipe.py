"""Recipes: what a valid one becomes, and that every error names the key, its value and the valid ones."""

import json
from pathlib import Path

import pytest

from shared.errors import RecipeError
from shared.storage import Folder
from shared.text.columns import ColumnNames
from shared.text.examples import WORDS, Columns
from shared.text.tasks import TASKS
from student_train.losses.hidden import HiddenLoss
from student_train.losses.logits import GoldLoss, KLLoss
from student_train.recipe.kept import recipe_json
from student_train.recipe.recipe import Recipe, read_recipe
from student_train.students import BiLSTMStudent, PretrainedStudent, TransformerStudent

FROM_DUMP = """
output = "out/student"
dump = "out/dump"

[student]
kind = "transformer"
layers = 2
hidden_size = 32
heads = 4

[[loss]]
kind = "kl"
temperature = 2

[[loss]]
kind = "hidden"
teacher_layer = 6
student_layer = -1
weight = 0.5
metric = "cosine"

[eval]
data = ["dev.jsonl"]

[training]
epochs = 1.5
"""

FROM_DATA = """
output = "out/teacher"

[data]
task = "sequence-classification"
train = ["train.csv"]
text_column = "sentence"

[student]
kind = "pretrained"
path = "MiniLM"

[[loss]]
kind = "gold"

[training]
max_steps = 10
"""


def read(tmp_path: Path, content: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    return read_recipe(path, list(overrides))


def error(tmp_path: Path, content: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        read(tmp_path, content, *overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_batch_is_of_rows_or_of_tokens(tmp_path: Path) -> None:
    sizes = [
        (recipe.training.batch_size, recipe.training.batch_tokens)
        for recipe in (
            read(tmp_path, FROM_DUMP),
            read(tmp_path, FROM_DUMP, "training.batch_size=8"),
            read(tmp_path, FROM_DUMP, "training.batch_tokens=4096"),
        )
    ]
    assert sizes == [(32, None), (8, None), (None, 4096)]
    message = error(tmp_path, FROM_DUMP, "training.batch_tokens=4096", "training.batch_size=8")
    assert "give either batch_size (rows) or batch_tokens" in message


def test_a_recipe_from_a_dump(tmp_path: Path) -> None:
    recipe = read(tmp_path, FROM_DUMP)
    assert recipe.dump == Folder.of("out/dump")
    assert recipe.student == TransformerStudent(layers=2, hidden_size=32, heads=4)
    assert recipe.loss == (
        KLLoss(temperature=2.0),
        HiddenLoss(teacher_layer=6, student_layer=-1, weight=0.5, metric="cosine"),
    )
    assert recipe.eval is not None
    assert recipe.eval.data == ("dev.jsonl",)
    assert (recipe.training.epochs, recipe.training.max_steps, recipe.training.batch_size) == (1.5, None, 32)


def test_a_recipe_from_gold_labels(tmp_path: Path) -> None:
    recipe = read(tmp_path, FROM_DATA)
    assert recipe.dump is None
    assert recipe.data is not None
    assert (recipe.data.train, recipe.data.text_column, recipe.data.max_length) == (("train.csv",), "sentence", 512)
    assert recipe.student == PretrainedStudent(path="MiniLM")
    assert recipe.loss == (GoldLoss(),)


def test_columns_are_those_that_the_task_reads() -> None:
    names = ColumnNames(text_column="a", pair_column="b", label_column="c", tokens_column="d", tags_column="e")
    assert TASKS["sequence-classification"].columns(names, True) == Columns("a", "b", "c", label_required=True)
    assert TASKS["sequence-classification"].columns(names, False) == Columns("a", "b", "c")
    assert TASKS["token-classification"].columns(names, True) == Columns("d", None, "e", True, WORDS)
    assert TASKS["causal-lm"].columns(names, True) == Columns("a", "b", None)


def test_a_recipe_tells_where_its_dump_is_as_its_file_does(tmp_path: Path) -> None:
    """An unfinished run can be resumed only if the text of its recipe is that of the run before."""
    for given, written in (
        ("out/dump", "out/dump"),
        ("./out//dump/", "out/dump"),
        ("memory://dump/", "memory://dump/"),
        ("file:///dump", "file:///dump"),
    ):
        recipe = read(tmp_path, FROM_DUMP, f'dump="{given}"', f'eval.dump="{given}"')
        content = json.loads(recipe_json(recipe))
        assert (content["dump"], content["eval"]["dump"]) == (written, written)
        assert Recipe.model_validate(content) == recipe


# ---------------------------------------------------------------- overrides


def test_overrides_reach_every_place(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        FROM_DUMP,
        "training.seed=3",
        "training.learning_rate=1e-3",
        "loss.0.temperature=4",
        "loss.1.metric=mse",
        "output=elsewhere/student",
        'dump="quoted/dump"',
        'eval.data=["a.csv", "b.csv"]',
        "training.freeze_embeddings=true",
    )
    assert (recipe.training.seed, recipe.training.learning_rate, recipe.training.freeze_embeddings) == (3, 1e-3, True)
    assert isinstance(recipe.loss[0], KLLoss)
    assert isinstance(recipe.loss[1], HiddenLoss)
    assert (recipe.loss[0].temperature, recipe.loss[1].metric) == (4.0, "mse")
    assert (recipe.output, recipe.dump) == (Path("elsewhere/student"), Folder.of("quoted/dump"))
    assert recipe.eval is not None
    assert recipe.eval.data == ("a.csv", "b.csv")


def test_an_override_makes_a_section_that_is_not_there_and_keeps_equals_signs(tmp_path: Path) -> None:
    content = FROM_DUMP.replace('[eval]\ndata = ["dev.jsonl"]\n', "")
    recipe = read(tmp_path, content, 'eval.data=["a=b.csv"]', "eval.text_column=a=b")
    assert recipe.eval is not None
    assert (recipe.eval.data, recipe.eval.text_column) == (("a=b.csv",), "a=b")


def test_the_last_of_two_overrides_counts(tmp_path: Path) -> None:
    assert read(tmp_path, FROM_DUMP, "training.seed=1", "training.seed=2").training.seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.seed", "write key=value"),
        ("loss.7.weight=1", "'loss.7.weight'"),
        ("loss.first.weight=1", "'loss.first.weight'"),
        ("output.deeper=1", "'output.deeper'"),
        ('output=""', "name a folder"),
        ('output=" "', "name a folder"),
        ("training.sede=1", "unknown key 'training.sede' (its value is 1); valid here: batch_size, "),
        ("training.batch_size=many", "training.batch_size = 'many'"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    assert message in error(tmp_path, FROM_DUMP, override)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("content", "old", "new", "expected"),
    [
        # Unknown keys, in every section.
        (
            FROM_DUMP,
            "dump =",
            'dmup = "x"\ndump =',
            ["'dmup'", "'x'", "data, dump, eval, loss, output, stage, student"],
        ),
        (FROM_DUMP, "layers = 2", "layers = 2\ndepth = 3", ["'student.depth'", "3", "heads, hidden_size, intermed"]),
        (
            FROM_DATA,
            'path = "MiniLM"',
            'path = "MiniLM"\nrevision = "x"',
            ["'student.revision'", "kind, normalize, path, pooling"],
        ),
        (
            FROM_DUMP,
            "temperature = 2",
            "temperatur = 2",
            ["'loss.0.temperatur'", "2", "kind, tail, temperature, weight"],
        ),
        (
            FROM_DUMP,
            "metric =",
            "metrics =",
            ["'loss.1.metrics'", "'cosine'", "map, metric, shared_projection, student_layer, teacher_layer"],
        ),
        (FROM_DUMP, "data = [", "file = [", ["'eval.file'", "group_column, impossible_column, label_column"]),
        (
            FROM_DUMP,
            "epochs =",
            "steps = 3\nepochs =",
            ["'training.steps'", "3", "batch_tokens, device, epochs"],
        ),
        (FROM_DATA, "text_column", "txt_column", ["'data.txt_column'", "'sentence'", "label_column, labels, limit"]),
        # Values.
        (FROM_DUMP, "layers = 2", "layers = 0", ["student.layers = 0", "greater than or equal to 1"]),
        (FROM_DUMP, "layers = 2", 'layers = "two"', ["student.layers = 'two'", "integer"]),
        (FROM_DUMP, "heads = 4", "heads = 5", ["student", "hidden_size = 32 cannot be divided among heads = 5"]),
        (
            FROM_DUMP,
            "layers = 2",
            'layers = 2\nembeddings = "pca"',
            ["student.embeddings = 'pca'", "Input should be 'random' or 'svd'"],
        ),
        (FROM_DUMP, "layers = 2", "layers = 2\nembeddings = 3", ["student.embeddings = 3", "'random' or 'svd'"]),
        (
            FROM_DUMP,
            "layers = 2",
            'layers = 2\nembeddings = "keep-layers"',
            ["student.embeddings = 'keep-layers'", "Input should be 'random' or 'svd'"],
        ),
        (FROM_DUMP, "temperature = 2", "temperature = 0", ["loss.0.temperature = 0"]),
        (FROM_DUMP, "weight = 0.5", "weight = -1", ["loss.1.weight = -1"]),
        (FROM_DUMP, '"cosine"', '"cosinus"', ["loss.1.metric = 'cosinus'", "'mse', 'cosine' or 'kl'"]),
        (FROM_DUMP, "teacher_layer = 6", "teacher_layer = -2", ["loss.1.teacher_layer = -2"]),
        (FROM_DUMP, "epochs = 1.5", "epochs = 0", ["training.epochs = 0"]),
        (
            FROM_DUMP,
            "epochs = 1.5",
            'epochs = 1\nscheduler = "step"',
            ["training.scheduler = 'step'", "'linear', 'cosine'"],
        ),
        (FROM_DUMP, "epochs = 1.5", 'epochs = 1\ndevice = "tpu"', ["training.device = 'tpu'", "'auto' or 'cpu'"]),
        (FROM_DATA, '"sequence-classification"', '"encoder"', ["task 'encoder'", "causal-lm, masked-lm, sequence-cl"]),
        (FROM_DATA, 'train = ["train.csv"]', "train = []", ["data.train", "at least 1"]),
        (FROM_DATA, 'train = ["train.csv"]', 'train = "train.csv"', ["data.train = 'train.csv'", "tuple"]),
        # Kinds.
        (FROM_DUMP, '"transformer"', '"lstm"', ["student.kind = 'lstm'", "'pretrained', 'transformer', 'bilstm'"]),
        (FROM_DUMP, '"kl"', '"kld"', ["loss.0.kind = 'kld'", "'kl', 'logits-mse', 'teacher-label', 'gold', "]),
        (FROM_DUMP, 'kind = "transformer"', "", ["'student.kind' is missing", "'pretrained', 'transformer', 'bilstm'"]),
        (FROM_DUMP, 'kind = "kl"', "", ["'loss.0.kind' is missing", "'kl', 'logits-mse'"]),
        # Missing keys.
        (FROM_DUMP, 'output = "out/student"', "", ["'output' is missing"]),
        (FROM_DUMP, "layers = 2", "", ["'student.layers' is missing"]),
        (FROM_DUMP, "teacher_layer = 6", "", ["loss.1: give either both teacher_layer and student_layer, or last"]),
        (FROM_DUMP, "student_layer = -1", "", ["loss.1: give either both teacher_layer and student_layer, or last"]),
        (FROM_DATA, '[[loss]]\nkind = "gold"', "", ["'loss' is missing"]),
        (FROM_DATA, "[training]\nmax_steps = 10", "", ["'training' is missing"]),
        (FROM_DATA, 'train = ["train.csv"]', "", ["'data.train' is missing"]),
        # Combinations.
        (FROM_DATA, "[data]", 'dump = "d"\n[data]', ["give either dump", "or [data]"]),
        (FROM_DUMP, 'dump = "out/dump"', "", ["give either dump", "or [data]"]),
        (FROM_DATA, "max_steps = 10", "max_steps = 10\nepochs = 1", ["training", "give either epochs or max_steps"]),
        (FROM_DATA, "max_steps = 10", "", ["training", "give either epochs or max_steps"]),
    ],
)
def test_errors_name_key_value_and_what_is_valid(
    tmp_path: Path, content: str, old: str, new: str, expected: list[str]
) -> None:
    assert content.count(old) == 1
    message = error(tmp_path, content.replace(old, new))
    assert "recipe.toml: " in message
    for part in expected:
        assert part in message


def test_several_errors_are_told_at_once(tmp_path: Path) -> None:
    message = error(tmp_path, FROM_DUMP, "training.sede=1", "student.layers=0")
    assert "training.sede" in message
    assert "student.layers = 0" in message


def test_an_odd_bilstm_is_refused(tmp_path: Path) -> None:
    start, end = FROM_DUMP.index("[student]"), FROM_DUMP.index("[[loss]]")

    def with_width(hidden_size: int) -> str:
        student = f'[student]\nkind = "bilstm"\nembedding_size = 8\nhidden_size = {hidden_size}\n\n'
        return FROM_DUMP[:start] + student + FROM_DUMP[end:]

    assert read(tmp_path, with_width(8)).student == BiLSTMStudent(embedding_size=8, hidden_size=8)
    assert "hidden_size = 9" in error(tmp_path, with_width(9))


def test_a_missing_recipe_a_folder_and_bad_toml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.toml: there is no such recipe"):
        read_recipe(tmp_path / "absent.toml", [])
    with pytest.raises(RecipeError, match="is a folder"):
        read_recipe(tmp_path, [])
    assert "not valid TOML" in error(tmp_path, "output = ")
    (tmp_path / "recipe.toml").write_bytes(b'output = "\xff"')
    with pytest.raises(RecipeError, match="line 1: byte 0xff is not valid UTF-8"):
        read_recipe(tmp_path / "recipe.toml", [])
