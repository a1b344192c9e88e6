"""`distill search-mapping`: what it refuses, the candidates, going on after a kill, and a small search to the end."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import LecternError, UsageError
from student_train import cli, distill
from student_train.data.sources import DumpSource
from student_train.data.subsets import Split
from student_train.recipe.recipe import read_recipe
from student_train.search import candidates, mapping
from student_train.search.genetic import Genome
from student_train.search.maps import Maps
from student_train.search.options import SearchOptions
from student_train.search.recipe_file import recipe_toml
from student_train.sweep.work import Job

SMALL = SearchOptions(population=4, generations=2, steps=8, random_maps=1, confirm_seeds=2, jobs=2)
STAGES = (
    'stage=[{name="states", loss=[{kind="gold"}, {kind="hidden", map="last"}], epochs=3, patience=2},'
    ' {name="head", loss=[{kind="kl"}], unfreeze="gradual"}]'
)


def prepared(folder: Path, out: Path, *overrides: str, options: SearchOptions = SMALL, **more: Any) -> mapping.Prepared:
    return mapping.prepare(read_recipe(folder / "recipe.toml", list(overrides)), out, options, **more)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.1.map=", "loss.1.teacher_layer=4", "loss.1.student_layer=-1"], "no loss of the recipe has a layer map"),
        (['loss=[{kind="kl"}]'], "no loss of the recipe has a layer map"),
        (["dump={folder}/one-layer"], r"needs two layers of the teacher or more, .* this dump has 4; dump again with"),
        (['loss.1.kind="relations"'], r"this dump has none; .*--relations all"),
        (["dump={folder}/nowhere"], "nowhere"),
        (['eval={data=["nowhere.jsonl"]}'], "nowhere.jsonl"),
        (['validation={metric="f2"}'], "the metric 'f2' is unknown"),
        (["dump={folder}/encoder", 'loss=[{kind="relations", map="last", relation_heads=3}]'], "relation_heads|divide"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    overrides: list[str], message: str, folder: Path, tmp_path: Path
) -> None:
    given = [each.replace("{folder}", str(folder)) for each in overrides]
    with pytest.raises(LecternError, match=message):
        prepared(folder, tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--population", "1"], "population"),
        (["--steps", "0"], "steps"),
        (["--generations", "0"], "generations"),
        (["--confirm-seeds", "1001"], "--confirm-seeds 1001: give a number of at least 0 and at most 1,000"),
        (["--plot", "search.svg"], "must end in .png"),
        (["--out", "{folder}/dump"], "holds other files already"),
        (["--out", "{folder}/recipe.toml"], "is a file; name a folder"),
        (["--set", "loss.1.maps=3"], "unknown key 'loss.1.maps'"),
    ],
)
def test_a_wrong_call_ends_with_2(
    options: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [each.replace("{folder}", str(folder)) for each in options]
    monkeypatch.setattr("sys.argv", ["distill", "search-mapping", str(folder / "recipe.toml"), *given])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- maps and their candidates


def test_controls_are_the_usual_maps_of_the_layers_that_there_are(folder: Path) -> None:
    recipe = read_recipe(folder / "recipe.toml", [])
    maps = Maps(recipe, ("loss.1",), 3, (2, 4, 6, 8, 10, 12), (("", 100),), 0.1)
    found = {name: genome for genome, name in maps.controls(2, 0).items()}
    assert {name: found[name] for name in ("uniform", "last", "last-only", "first", "none")} == {
        "uniform": (4, 8, 12),
        "last": (8, 10, 12),
        "last-only": (0, 0, 12),
        "first": (2, 4, 6),
        "none": (0, 0, 0),
    }
    assert len({found["random 1"], found["random 2"], *found.values()}) == 7
    assert maps.controls(2, 0) == maps.controls(2, 0) != maps.controls(2, 1)
    assert maps.space.size == 7**3 - 1
    same = replace(maps, depth=2, layers=(3, 5)).controls(0, 0)
    assert same == {(3, 5): "uniform = last = first", (0, 5): "last-only", (0, 0): "none"}
    alone = replace(maps, recipe=read_recipe(folder / "recipe.toml", ['loss=[{kind="hidden", map="last"}]']))
    assert "none" not in replace(alone, keys=("loss.0",)).controls(0, 0).values()


def test_candidates_differ_in_the_map_alone(folder: Path, tmp_path: Path) -> None:
    search = prepared(folder, tmp_path / "out")
    maps, base = search.maps, search.maps.recipe
    one, other = (maps.candidate(genome, 8, 5).recipe(base, tmp_path) for genome in ((1, 3), (0, 4)))
    assert [recipe.loss[1].map for recipe in (one, other)] == [(1, 3), (0, 4)]
    assert one.model_copy(update={"loss": (), "output": 0}) == other.model_copy(update={"loss": (), "output": 0})
    assert (one.training.max_steps, one.training.epochs, one.training.seed, one.eval) == (8, None, 5, None)
    assert one.validation is not None
    assert one.validation.metric == "loss"
    (source, first, runs), (_, second, others) = (distill.prepare(recipe) for recipe in (one, other))
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    held_out = Split(source, one.validation.share, 5).held_out("all")
    assert [run.rows.group_rows for run in runs] == [run.rows.group_rows for run in others]
    assert sum(held_out.group_rows) + sum(runs[0].rows.group_rows) == sum(DumpSource(folder / "dump").group_rows)
    none = maps.candidate(maps.none, 8, 5).recipe(base, tmp_path)
    assert [spec.kind for spec in none.loss] == ["kl"]


def test_stages_share_the_steps_and_nothing_ends_one_early(folder: Path, tmp_path: Path) -> None:
    overrides = ("loss=", STAGES, 'validation={metric="accuracy"}')
    search = prepared(folder, tmp_path / "out", *overrides)
    maps = search.maps
    assert maps.keys == ("stage.0.loss.1",)
    counts = [steps for _, steps in maps.stage_steps]
    assert len(counts) > 3
    candidate = maps.candidate((2, 4), 40, 0)
    recipe = candidate.recipe(maps.recipe, tmp_path)
    runs = distill.prepare(recipe)[2]
    taken = [run.stage.training.max_steps for run in runs]
    assert taken == [max(1, round(40 * count / sum(counts))) for count in counts]
    assert candidate.steps == sum(step for step in taken if step is not None)
    assert all(run.stage.patience is None and run.stage.metric == "loss" for run in runs)
    assert search.fitness.name == "accuracy"
    none = maps.candidate(maps.none, 40, 0).recipe(maps.recipe, tmp_path)
    assert [spec.kind for spec in none.stage[0].loss] == ["gold"]


def test_a_recipe_is_the_same_after_it_was_written(folder: Path, tmp_path: Path) -> None:
    overrides = ["loss=", STAGES, "validation={share=0.1}", 'eval={data=["a b.jsonl"]}', 'output="a \\"b\\""']
    for recipe in (read_recipe(folder / "recipe.toml", []), read_recipe(folder / "recipe.toml", overrides)):
        (tmp_path / "recipe.toml").write_text(recipe_toml(recipe, "one line\nanother"))
        assert read_recipe(tmp_path / "recipe.toml", []) == recipe
        assert (tmp_path / "recipe.toml").read_text().startswith("# one line\n# another\noutput = ")


def test_candidates_have_no_trackers_and_other_seeds_the_section_eval(folder: Path, tmp_path: Path) -> None:
    maps = prepared(folder, tmp_path / "out").maps
    overrides = ['training.report_to=["tensorboard"]', f'eval={{data=["{folder}/rows.jsonl"]}}']
    maps = replace(maps, recipe=read_recipe(folder / "recipe.toml", overrides))
    short = maps.candidate((1, 3), 8, 0).recipe(maps.recipe, tmp_path)
    assert (short.training.report_to, short.eval) == ((), None)
    assert maps.candidate((1, 3), 8, 1, with_eval=True).recipe(maps.recipe, tmp_path).eval == maps.recipe.eval
    assert maps.best((1, 3)).training == maps.recipe.training
    assert maps.seeds(3) == [1, 2, 3]


# ---------------------------------------------------------------- killed and gone on with


class Pretended:
    """Trains nothing: each job has the score that a made-up function gives its map. It is killed after `most` jobs, or,
    if that is odd, when the next one is trained but not scored."""

    def __init__(self, most: int = 10_000) -> None:
        self.trained: list[str] = []
        self._most = most

    def work_through(self, jobs: Sequence[Job], output: Path, *_: Any, **__: Any) -> dict[str, str]:
        for job in jobs:
            if len(self.trained) == self._most and not self._most % 2:
                raise KeyboardInterrupt
            (output / "runs" / job.name).mkdir(parents=True, exist_ok=True)
            if len(self.trained) == self._most:
                raise KeyboardInterrupt
            self.trained.append(job.name)
            job.result()
        return {}

    @staticmethod
    def score(search: mapping.Prepared, folder: Path, recipe: Any) -> float:
        near = sum(abs(own - best) for own, best in zip(_map_of(folder), (3, 1), strict=True))
        return 1 + near + 0.01 * recipe.training.seed


def _map_of(folder: Path) -> Genome:
    return tuple(map(int, folder.name.split("_")[0].split("-")))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretended]:
    def made(most: int = 10_000) -> Pretended:
        pretended = Pretended(most)
        monkeypatch.setattr(candidates, "work_through", pretended.work_through)
        monkeypatch.setattr(mapping, "_score", pretended.score)
        return pretended

    return made


@pytest.mark.parametrize("most", [0, 1, 7, 12, 20])
def test_a_killed_search_goes_on_and_does_nothing_twice(
    most: int, pretend: Callable[..., Pretended], folder: Path, tmp_path: Path
) -> None:
    whole = pretend()
    expected = mapping.run(prepared(folder, tmp_path / "whole"))
    assert expected.best.genome == (3, 1)
    first = pretend(most)
    with pytest.raises(KeyboardInterrupt):
        mapping.run(prepared(folder, tmp_path / "killed"))
    with pytest.raises(UsageError, match="has begun there already; add --resume"):
        prepared(folder, tmp_path / "killed")
    second = pretend()
    results = mapping.run(prepared(folder, tmp_path / "killed", resume=True))
    assert sorted(first.trained + second.trained) == sorted(whole.trained) == sorted(set(whole.trained))
    assert results.history == expected.history
    assert [row.genome for row in results.rows] == [row.genome for row in expected.rows]
    assert results.cost.steps == expected.cost.steps
    assert not list((tmp_path / "killed" / "runs").iterdir())


def test_a_finished_search_costs_nothing_and_can_be_made_longer(
    pretend: Callable[..., Pretended], folder: Path, tmp_path: Path
) -> None:
    pretend()
    first = mapping.run(prepared(folder, tmp_path / "out"))
    again = pretend()
    assert mapping.run(prepared(folder, tmp_path / "out", resume=True)) == first
    assert again.trained == []
    longer = mapping.run(prepared(folder, tmp_path / "out", resume=True, options=replace(SMALL, generations=4)))
    assert longer.history[:2] == first.history
    assert len(longer.history) == 4
    best = [max(one.merits.values()) for one in longer.history]
    assert best == sorted(best)


def test_a_generation_is_halved_at_a_quarter_of_the_budget(
    pretend: Callable[..., Pretended], folder: Path, tmp_path: Path
) -> None:
    pretended = pretend()
    options = replace(SMALL, population=6, generations=1, random_maps=0, confirm_seeds=0)
    search = prepared(folder, tmp_path / "out", options=options)
    results = mapping.run(search)
    assert sum("_steps=2_" in name for name in pretended.trained) == 6
    assert len(results.history[0].merits) == 3
    assert len(results.history[0].dropped) == 3
    assert results.cost.runs == len(pretended.trained)
    assert "whether the mapping mattered is not known" in " ".join(results.lines())


def test_another_search_or_damage_in_the_folder_is_refused(
    pretend: Callable[..., Pretended], folder: Path, tmp_path: Path
) -> None:
    pretend()
    mapping.run(prepared(folder, tmp_path / "out"))
    with pytest.raises(UsageError, match=r"another search is there \(recipe.training.learning_rate was 0.01 and is"):
        prepared(folder, tmp_path / "out", "training.learning_rate=0.5", resume=True)
    with pytest.raises(UsageError, match=r"held_out was 1000 and is 20"):
        prepared(folder, tmp_path / "out", resume=True, options=replace(SMALL, held_out=20))
    file = min((tmp_path / "out" / "evaluations").iterdir())
    content = json.loads(file.read_text())
    for damage in ("{", json.dumps({**content, "score": "NaN"}), json.dumps({**content, "name": "other"})):
        file.write_text(damage)
        with pytest.raises(UsageError, match=r"not the evaluation of a candidate .*; delete it"):
            mapping.run(prepared(folder, tmp_path / "out", resume=True))
    file.unlink()
    left_over = tmp_path / "out" / "runs" / min(each.stem for each in file.parent.iterdir())
    left_over.mkdir()  # as of a search that was killed between a score and the removal of its student
    again = pretend()
    mapping.run(prepared(folder, tmp_path / "out", resume=True))
    assert again.trained == [file.stem]
    assert not left_over.exists()


def test_candidates_that_fail_are_named_and_tried_again(
    pretend: Callable[..., Pretended], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend()

    def fail_once(jobs: Sequence[Job], output: Path, *_: Any, **__: Any) -> dict[str, str]:
        pretended.work_through(jobs[1:], output)
        return {jobs[0].name: "the loss is NaN."}

    monkeypatch.setattr(candidates, "work_through", fail_once)
    with pytest.raises(LecternError, match=r"1 candidates failed: 2-4_steps=8_seed=0 \(the loss is NaN\)\. Their logs"):
        mapping.run(prepared(folder, tmp_path / "out"))
    again = pretend()
    mapping.run(prepared(folder, tmp_path / "out", resume=True))
    assert again.trained[0] == "2-4_steps=8_seed=0"
    assert not {*pretended.trained} & {*again.trained}
