"""A sweep file becomes runs with stable names; an invalid one is refused with a clear message."""

from pathlib import Path

import pytest

from shared.errors import RecipeError
from shared.storage import Folder
from student_train.sweep import Sweep, read_sweep
from student_train.sweep.names import name_of

BASE = """
output = "out/student"
dump = "out/dump"

[student]
kind = "bilstm"
embedding_size = 8
hidden_size = 8

[[loss]]
kind = "kl"

[training]
epochs = 1

[eval]
data = ["dev.jsonl"]
"""
LABELS = BASE.replace('dump = "out/dump"', '[data]\ntask = "sequence-classification"\ntrain = ["train.jsonl"]').replace(
    '"kl"', '"gold"'
)


@pytest.fixture(autouse=True)
def _recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text(BASE)
    Path("labels.toml").write_text(LABELS)


def sweep(content: str, recipe: str = 'recipe = "base.toml"') -> Sweep:
    Path("sweep.toml").write_text(f'output = "out/sweep"\n{recipe}\n{content}')
    return read_sweep(Path("sweep.toml"))


def test_runs_are_the_product_of_variants_grid_and_seeds() -> None:
    made = sweep(
        """
        seeds = [0, 1]
        [grid]
        "student.hidden_size" = [8, 16]
        "loss.0.temperature" = [1, 2.5]
        [[variant]]
        name = "soft"
        [[variant]]
        name = "reverse"
        set = { "loss.0.divergence" = "reverse" }
        [[variant]]
        name = "labels"
        recipe = "labels.toml"
        skip = ["loss.0.temperature"]
        """
    )
    assert len(made.runs) == 2 * 2 * 2 + 2 * 2 * 2 + 2 * 2
    first, last = made.runs[0], made.runs[-1]
    assert first.name == "soft_hidden_size=8_temperature=1_seed=0"
    assert first.group == "soft_hidden_size=8_temperature=1"
    assert first.recipe.output == Path("out/sweep/runs") / first.name
    assert first.has_teacher
    assert last.name == "labels_hidden_size=16_seed=1"
    assert not last.has_teacher
    assert (last.recipe.student.hidden_size, last.recipe.training.seed) == (16, 1)
    reversed_one = next(run for run in made.runs if run.name == "reverse_hidden_size=16_temperature=2.5_seed=1")
    assert reversed_one.recipe.loss[0].divergence == "reverse"
    assert reversed_one.recipe.loss[0].temperature == 2.5
    assert made.keys == ("student.hidden_size", "loss.0.temperature", "loss.0.divergence", "training.seed")


def test_seeds_alone_and_one_variant_alone_are_sweeps() -> None:
    made = sweep("seeds = [3, 4]")
    assert [(run.name, run.group) for run in made.runs] == [("seed=3", "base"), ("seed=4", "base")]
    (only,) = sweep('[[variant]]\nname = "labels"\nrecipe = "labels.toml"', recipe="").runs
    assert (only.name, only.group) == ("labels", "labels")


def test_gold_labels_alone_are_no_teacher_wherever_they_come_from() -> None:
    made = sweep(
        """
        [[variant]]
        name = "gold"
        set = { loss = [{ kind = "gold" }] }
        [[variant]]
        name = "gold-stage"
        set = { loss = [], stage = [{ name = "only", loss = [{ kind = "gold" }] }] }
        [[variant]]
        name = "both"
        set = { loss = [{ kind = "gold" }, { kind = "kl" }] }
        """
    )
    assert [run.has_teacher for run in made.runs] == [False, False, True]


def test_what_a_sweep_sets_holds_for_all_runs_and_what_a_variant_sets_goes_before_it() -> None:
    made = sweep(
        """
        set = { dump = "out/other", "student.hidden_size" = 32 }
        [[variant]]
        name = "wide"
        [[variant]]
        name = "narrow"
        set = { "student.hidden_size" = 16 }
        """
    )
    assert [run.recipe.dump for run in made.runs] == [Folder.of("out/other")] * 2
    assert [run.recipe.student.hidden_size for run in made.runs] == [32, 16]


def test_values_may_be_texts_lists_and_tables() -> None:
    made = sweep(
        """
        [grid]
        dump = ["out/dump-a/", 'say "dump"']
        "student" = [{ kind = "bilstm", embedding_size = 4, hidden_size = 4 },
                     { kind = "transformer", layers = 1, hidden_size = 8, heads = 2, dropout = 0.0 }]
        "eval.data" = [["dev.jsonl", "more.jsonl"]]
        """
    )
    assert [run.recipe.dump for run in made.runs[::2]] == [Folder.of("out/dump-a/"), Folder.of('say "dump"')]
    assert [run.recipe.student.kind for run in made.runs[:2]] == ["bilstm", "transformer"]
    assert made.runs[0].recipe.eval.data == ("dev.jsonl", "more.jsonl")
    assert all(run.name.isascii() and "/" not in run.name and '"' not in run.name for run in made.runs)


def test_a_name_depends_on_the_values_of_its_own_run_alone() -> None:
    keys = ["student.hidden_size", "loss.0.weight", "loss.1.weight"]
    assert name_of(None, dict(zip(keys, (8, 1.0, 0.5), strict=True)), keys) == (
        "hidden_size=8_loss.0.weight=1.0_loss.1.weight=0.5"
    )
    few, many = (
        sweep('[grid]\n"training.learning_rate" = [1e-3]'),
        sweep('[grid]\n"training.learning_rate" = [1, 1e-3]'),
    )
    assert few.runs[0].name == many.runs[1].name == "learning_rate=0.001"
    long, other = (name_of(None, {"a": ["x" * 80, end]}, ["a"]) for end in "yz")
    assert len(long) < 50
    assert long != other


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "nothing to vary; give seeds, "),
        ("[grid]", "grid is empty"),
        ("seeds = []", "seeds is empty"),
        ('[grid]\n"training.seed" = []', r"grid\.training\.seed is empty"),
        ("grids = 1", r"unknown key 'grids' \(its value is 1\); valid here: baselines, grid, "),
        (
            "[grid]\nstudent.hidden_size = [1]",
            r"'student' is a table; write each key in quotes: \"student.hidden_size\"",
        ),
        ('[grid]\n"student.width" = [1]', r"run width=1: base\.toml: unknown key 'student\.width'"),
        ('[grid]\n"loss.1.weight" = [1]', r"run weight=1: .*has no key 'loss\.1\.weight'"),
        ('[grid]\n"student.hidden_size" = [8, 7]', r"run hidden_size=7: .* cannot be halved"),
        ('[grid]\n"loss.0.weight" = [1, 1.0]', r"the runs weight=1 and weight=1\.0 are the same"),
        ('[grid]\noutput = ["a"]', "'output' cannot vary"),
        ('seeds = [1]\n[grid]\n"training.seed" = [1]', "either seeds or"),
        ("jobs = 0\nseeds = [1]", r"jobs = 0: give \"auto\", or the number of runs"),
        ('[grid]\n"eval.data" = [["a"], ["b"]]', "scored on different data"),
        ('[[variant]]\nname = "a"\n[[variant]]\nname = "a"', "two variants have the name 'a'"),
        ('[[variant]]\nname = "a/b"', r"variant\.0\.name = 'a/b'"),
        (f'[[variant]]\nname = "{"a" * 101}"', r"variant\.0\.name = 'aaa"),
        *(
            (f'seeds = [1]\n[baselines]\n"{name}" = "a"', r"baselines\.")
            for name in ("a/b", "../a", "..", ".", "", "a\\u0000b", "a" * 101)
        ),
        ('[grid]\n"loss.-1.weight" = [2]', r"has no key 'loss\.-1\.weight'"),
        ("\n".join(["[grid]", *(f'"{key}" = [{"1," * 1000}]' for key in "abc")]), "would be 1,000,000,000 runs, and"),
        ('[[variant]]\nname = "a"\nskip = ["b"]', "skips 'b', which is not a key of the grid"),
        (
            '[[variant]]\nname = "a"\nset = { "loss.0.weight" = 1 }\n[grid]\n"loss.0.weight" = [2]',
            "which the grid varies",
        ),
        ('[[variant]]\nname = "a"\nrecipe = "b.toml"', r"run a: b\.toml: there is no such recipe"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(content: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sweep(content)


def test_a_sweep_needs_a_recipe_with_scores() -> None:
    with pytest.raises(RecipeError, match="the key 'recipe' is missing"):
        sweep("seeds = [1]", recipe="")
    Path("base.toml").write_text(BASE.partition("[eval]")[0])
    with pytest.raises(RecipeError, match=r"run seed=1: base\.toml has no section \[eval\]"):
        sweep("seeds = [1]")
    with pytest.raises(RecipeError, match="there is no such sweep"):
        read_sweep(Path("elsewhere.toml"))
    with pytest.raises(RecipeError, match="this is a folder; name the sweep in it"):
        read_sweep(Path())
