"""The main path of `distill search-mapping`: check, try the controls, search, confirm with other seeds, report.

Published layer maps differ little, and what a proxy budget says about them is noisy. Therefore the best maps and the
controls are trained again with seeds that the search did not see, and the report says whether maps differ by more than
seeds do.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

from shared.errors import UsageError
from shared.options import check_values
from shared.storage.files import check_file, only_one, write_text_atomically
from student_train import distill
from student_train.data.needs import needs_of
from student_train.data.sources import Source
from student_train.data.subsets import Split
from student_train.losses.hidden import hidden_widths
from student_train.recipe.recipe import Recipe
from student_train.search.candidates import BASE, Evaluation, Evaluations
from student_train.search.evolution import Generation, best_first, evolve, rungs
from student_train.search.fitness import Fitness, check_fitness, fitness_for, load_student
from student_train.search.folder import check_output, keep_identity
from student_train.search.genetic import Breeding, Genome
from student_train.search.maps import Maps, mapped_losses, teacher_layers
from student_train.search.options import SearchOptions
from student_train.search.plot import plot
from student_train.search.recipe_file import recipe_toml
from student_train.search.results import Cost, Results, Row
from student_train.students import build_student
from student_train.sweep.children import stopped_like_ctrl_c
from student_train.sweep.machine import machine_for
from student_train.sweep.plan import RUNS
from student_train.training.plan import StageRun
from student_train.training.stage_run import steps_of

BEST, RESULTS, PLOT = "best.toml", "results.json", "search.png"
LARGEST_SHARE = 0.2
SHARE_OF_FULL_TRAINING = 0.1
COMMENT_WIDTH = 110
CONFIRMED = 3  # maps of the search


@dataclass(frozen=True)
class Prepared:
    """A search whose recipe, dump and folder fit together."""

    output: Path
    maps: Maps
    source: Source
    fitness: Fitness
    options: SearchOptions
    steps: int
    plot: Path
    json: Path

    @property
    def controls(self) -> dict[Genome, str]:
        """The maps that the search is compared with, and their names."""
        return self.maps.controls(self.options.random_maps, self.options.seed)

    def describe(self) -> list[str]:
        """Return lines about what the search would do."""
        options, breeding = self.options, _breeding(self.options)
        new = options.population + (options.generations - 1) * (options.population - breeding.elite)
        controls, first = len(self.controls), rungs(self.steps)[0]
        whole = -(-options.population // 2) * options.generations + controls
        whole += options.confirm_seeds * (controls + CONFIRMED)
        steps = whole * self.steps + (new * first if first < self.steps else 0)
        return [
            f"{self.maps.depth} layers of the student, the teacher's layers {', '.join(map(str, self.maps.layers))}: "
            f"{self.maps.space.size:,} maps, compared by {self.fitness.words}",
            f"at most {new} runs of {first:,} steps and {whole} of {self.steps:,} ({controls} of them controls: "
            f"{', '.join(self.controls.values())})",
            f"{steps:,} steps, {steps / self.maps.full_steps:.2g} times those of one full training",
        ]


def prepare(
    recipe: Recipe,
    output: Path | None,
    options: SearchOptions,
    resume: bool = False,
    plot_file: Path | None = None,
    json_file: Path | None = None,
) -> Prepared:
    """Check everything that can be checked before the first candidate is trained. Writes nothing.

    Raises:
        RecipeError: if the recipe has no loss with a layer map, or the dump too few layers, or recipe and dump do not
            fit together.
        UsageError: for an option that is out of bounds, or a folder that holds anything else.
    """
    check_values(options)
    for file, option in ((plot_file, "--plot"), (json_file, "--json")):
        if file is not None:
            check_file(file, option, (".png",) if option == "--plot" else ())
    losses = mapped_losses(recipe)
    source = distill.open_source(recipe)
    layers = teacher_layers(losses, source)
    out = output or recipe.output.with_name(f"{recipe.output.name}-search")
    check_output(out, _identity(recipe, source, options), resume)
    share = min(LARGEST_SHARE, options.held_out / max(sum(source.group_rows), 1))
    fitness = fitness_for(recipe, source)
    depth = len(hidden_widths(build_student(recipe.student, needs_of(recipe.student, source)))) - 1
    maps = Maps(recipe, tuple(losses), depth, layers, (), share)
    maps = replace(maps, stage_steps=tuple((one.stage.where, steps_of(one)) for one in _full_plan(maps, out)))
    steps = options.steps or max(1, round(SHARE_OF_FULL_TRAINING * maps.full_steps))
    made = Prepared(out, maps, source, fitness, options, steps, plot_file or out / PLOT, json_file or out / RESULTS)
    _check_candidates(made)
    return made


def run(search: Prepared) -> Results:
    """Search, and write what was found to the folder of the search. What is there already is not done again.

    Raises:
        LecternError: if a candidate fails; if another search uses the folder.
    """
    output, options = search.output, search.options
    with ExitStack() as held:
        held.enter_context(stopped_like_ctrl_c())
        output.mkdir(parents=True, exist_ok=True)
        held.enter_context(only_one(output))
        keep_identity(output, _identity(search.maps.recipe, search.source, options))
        write_text_atomically(output / BASE, recipe_toml(search.maps.recipe))
        machine = machine_for([search.maps.recipe] * options.population, options.jobs)
        evaluations = Evaluations(output, search.maps.recipe, machine, lambda *student: _score(search, *student))
        results = _search(search, evaluations)
        _write(search, results)
        return results


def _search(search: Prepared, evaluations: Evaluations) -> Results:
    """Try the controls, breed maps, and confirm the best of both with other seeds."""
    maps, options = search.maps, search.options
    own_seed = maps.recipe.training.seed

    def tried(genomes: Sequence[Genome], steps: int) -> list[Evaluation]:
        return evaluations.of([maps.candidate(genome, steps, own_seed) for genome in genomes])

    def merits(genomes: Sequence[Genome], steps: int) -> list[float]:
        return [search.fitness.merit(one.score) for one in tried(genomes, steps)]

    controls = search.controls
    tried(list(controls), search.steps)
    history = evolve(maps.space, _breeding(options), options.generations, rungs(search.steps), options.seed, merits)
    found = {genome: merit for one in history for genome, merit in one.merits.items() if genome not in controls}
    chosen = best_first(found)[:CONFIRMED]
    genomes = [*chosen, *controls]
    seeds = maps.seeds(options.confirm_seeds)
    confirmed = evaluations.of([maps.candidate(one, search.steps, seed, True) for seed in seeds for one in genomes])
    rows = [
        Row(
            genome,
            controls.get(genome),
            _first_generation(history, genome),
            tried([genome], search.steps)[0],
            tuple(confirmed[index :: len(genomes)]),
        )
        for index, genome in enumerate(genomes)
    ]
    rows.sort(key=lambda row: search.fitness.merit(row.mean), reverse=True)
    cost = Cost.of(list(evaluations.asked.values()), maps.full_steps)
    return Results(search.fitness, maps.layers, search.steps, tuple(seeds), tuple(history), tuple(rows), cost)


def _first_generation(history: Sequence[Generation], genome: Genome) -> int | None:
    return next((number for number, one in enumerate(history, 1) if genome in one.merits), None)


def _breeding(options: SearchOptions) -> Breeding:
    usual = Breeding(options.population)
    return replace(usual, elite=min(usual.elite, options.population - 1))


def _score(search: Prepared, folder: Path, recipe: Recipe) -> float:
    student = load_student(folder, search.source, recipe.training.device)
    return search.fitness.measure(student, _split(search, recipe))


def _split(search: Prepared, recipe: Recipe) -> Split:
    """Return the rows as the candidate's training divided them."""
    return Split(search.source, search.maps.share, recipe.training.seed)


def _full_plan(maps: Maps, output: Path) -> list[StageRun]:
    """Return the stages of one full training, with a map that is always possible."""
    recipe = maps.best((*maps.none[1:], maps.layers[-1]))
    return distill.prepare(recipe.model_copy(update={"output": output / RUNS / "full"}))[2]


def _check_candidates(search: Prepared) -> None:
    """Check what every candidate needs, on the shortest one and on one that is also scored on the recipe's [eval]."""
    maps, seed = search.maps, search.maps.recipe.training.seed
    genome = (*maps.none[1:], maps.layers[-1])
    short = maps.candidate(genome, rungs(search.steps)[0], seed).recipe(maps.recipe, search.output)
    _, student, _ = distill.prepare(short)
    check_fitness(search.fitness, student, _split(search, short))
    whole = maps.candidate(genome, search.steps, seed, with_eval=True).recipe(maps.recipe, search.output)
    distill.prepare(whole)


def _identity(recipe: Recipe, source: Source, options: SearchOptions) -> dict[str, Any]:
    """Return what the scores depend on. A dump may be moved; its fingerprint stays."""
    return {
        "search": "layer maps",
        "recipe": recipe.model_dump(mode="json", exclude={"output", "dump"}),
        "source": source.fingerprint,
        "held_out": options.held_out,
    }


def _write(search: Prepared, results: Results) -> None:
    best = results.best
    score = f"{results.fitness.name} {best.mean:.5g} after {results.steps:,} steps"
    comment = f"The best of {len(results.rows)} layer maps that were compared to the end ({best.origin()}): {score}."
    text = "\n".join(line for said in (comment, *results.sentences()) for line in wrap(said, COMMENT_WIDTH))
    write_text_atomically(search.output / BEST, recipe_toml(search.maps.best(best.genome), text))
    write_text_atomically(search.json, json.dumps(results.as_dict(), indent=2) + "\n")


def report(search: Prepared, results: Results) -> list[str]:
    """Draw the plot, and return the lines that the command prints."""
    lines = ["", *results.lines(), ""]
    try:
        plot(results, f"{search.output.name}: search over layer maps", search.plot)
        lines.append(f"The search as a plot: {search.plot}")
    except UsageError as error:
        lines.append(f"There is no plot: {error}")
    return [*lines, f"The best map as a recipe: {search.output / BEST}", f"Everything: {search.json}"]
