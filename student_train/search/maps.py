"""Layer maps as genomes, and the candidates that stand for them (arXiv 2012.06153).

A genome has a gene for each of the student's M layers: the layer of the teacher that it imitates, 0 for none. Only
layers that the dump has are possible. The same map is given to every loss of the recipe that has a `map`.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from shared.dump.signals import HIDDEN, RELATIONS
from shared.errors import RecipeError
from shared.numbers import MOST_SEED
from student_train.data.sources import Source
from student_train.losses.base import Loss, stored_layers
from student_train.losses.layer_maps import last_map, uniform_map
from student_train.losses.relations import RelationLoss
from student_train.recipe.recipe import Recipe, overridden
from student_train.search.candidates import Candidate
from student_train.search.genetic import Genome, Space
from student_train.sweep.names import override

LONGEST_GENOME = 60  # characters of a name
_ATTEMPTS_PER_RANDOM_MAP = 100


@dataclass(frozen=True)
class Maps:
    """The maps that are possible for a recipe, and the candidates that try them.

    Attributes:
        keys: the losses that are given the map, by their keys ("loss.0", "stage.1.loss.0").
        depth: the student's layers.
        layers: the teacher's layers that may be imitated, lowest first.
        stage_steps: for each stage of the plan, (the prefix of its keys, "" without [[stage]]; the steps of one full
            training).
        share: of the rows that is held out.
    """

    recipe: Recipe
    keys: tuple[str, ...]
    depth: int
    layers: tuple[int, ...]
    stage_steps: tuple[tuple[str, int], ...]
    share: float

    @cached_property
    def space(self) -> Space:
        """All maps but the one in which no layer imitates any."""
        return Space(((0, *self.layers),) * self.depth, frozenset({self.none}))

    @property
    def none(self) -> Genome:
        """The map in which no layer imitates any: training without the layer losses."""
        return (0,) * self.depth

    @property
    def full_steps(self) -> int:
        """The steps of one full training."""
        return sum(steps for _, steps in self.stage_steps)

    def controls(self, random_maps: int, seed: int) -> dict[Genome, str]:
        """Return the maps that a search is compared with, and their names: "uniform" and "last" as in recipes,
        "last-only" (the top layer alone), "first" (layer i imitates the teacher's i-th), some random ones, and "none"
        if the recipe has other losses. Equal ones are one control with both names.
        """
        values, count = (0, *self.layers), len(self.layers)
        numbers = {
            "uniform": uniform_map(self.depth, count),
            "last": last_map(self.depth, count),
            "last-only": (*self.none[1:], count),
            "first": tuple(layer if layer <= count else 0 for layer in range(1, self.depth + 1)),
        }
        found: dict[Genome, str] = {}
        for name, numbered in numbers.items():
            genome = tuple(values[number] for number in numbered)
            found[genome] = f"{found[genome]} = {name}" if genome in found else name
        chance, named = Random(f"{seed} controls"), len(found)
        for _ in range(_ATTEMPTS_PER_RANDOM_MAP * random_maps):
            if len(found) < named + random_maps:
                found.setdefault(self.space.random(chance), f"random {len(found) - named + 1}")
        if all(left for _, left in self._losses_without_map()):
            found[self.none] = "none"
        return found

    def candidate(self, genome: Genome, steps: int, seed: int, with_eval: bool = False) -> Candidate:
        """Return the candidate that tries a map for a number of steps, without the recipe's section [eval] unless
        asked. `seed` is that of its training: of its initial weights, the order of its rows and which are held out.
        """
        lengths = self._lengths(steps)
        given = [*self._given(), *(key for key, _ in lengths), override("training.seed", seed)]
        # The score at the end decides; the loss can only be better than at the start, unless training diverges.
        given.append(override("validation", {"share": self.share, "every_steps": steps}))
        if self.recipe.eval is not None and not with_eval:
            given.append("eval=")
        given += self._map_overrides(genome)
        text = "-".join(map(str, genome))
        if len(text) > LONGEST_GENOME:
            text = f"{text[: LONGEST_GENOME - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        return Candidate(f"{text}_steps={steps}_seed={seed}", tuple(given), sum(count for _, count in lengths))

    def best(self, genome: Genome) -> Recipe:
        """Return the user's recipe with a map."""
        return overridden(self.recipe, self._map_overrides(genome))

    def seeds(self, count: int) -> list[int]:
        """Return seeds other than the recipe's."""
        return [(self.recipe.training.seed + number) % (MOST_SEED + 1) for number in range(1, count + 1)]

    def _map_overrides(self, genome: Genome) -> list[str]:
        if genome != self.none:
            return [override(f"{key}.map", list(genome)) for key in self.keys]
        return [override(key, losses) for key, losses in self._losses_without_map()]

    def _losses_without_map(self) -> list[tuple[str, list[Any]]]:
        """Return, for the recipe or each of its stages, (the key of its losses, those that are given no map)."""
        content = self.recipe.model_dump(mode="json", exclude_unset=True)
        lists = [("loss", content["loss"])] if not self.recipe.stage else []
        lists += [(f"stage.{index}.loss", stage["loss"]) for index, stage in enumerate(content.get("stage", ()))]
        return [
            (key, [spec for index, spec in enumerate(losses) if f"{key}.{index}" not in self.keys])
            for key, losses in lists
        ]

    def _given(self) -> list[str]:
        """Return what no candidate has: trackers, and what would end a stage or choose its weights otherwise."""
        given = [override("training.report_to", [])] if self.recipe.training.report_to else []
        for index, stage in enumerate(self.recipe.stage):
            given += [f"stage.{index}.{key}=" for key in ("patience", "metric") if getattr(stage, key) is not None]
        return given

    def _lengths(self, steps: int) -> list[tuple[str, int]]:
        """Return (an override, the steps that it stands for) of a training of about `steps` steps; each stage has its
        share of them, but one at least."""
        if not self.recipe.stage:
            unset = [("training.epochs=", 0)] if self.recipe.training.epochs is not None else []
            return [*unset, (override("training.max_steps", steps), steps)]
        found: dict[str, int] = {}
        for where, full in self.stage_steps:
            own = max(1, round(steps * full / self.full_steps))
            text = override(f"{where}max_steps", own)
            found[text] = found.get(text, 0) + own  # a stage that unfreezes gradually is several of the plan
        for index, stage in enumerate(self.recipe.stage):
            if stage.epochs is not None:
                found[f"stage.{index}.epochs="] = 0
        return sorted(found.items(), key=lambda entry: entry[1])  # first the keys that are unset


def mapped_losses(recipe: Recipe) -> dict[str, Loss]:
    """Return the losses of a recipe that have a layer map, by their keys. Raises RecipeError if there are none."""
    found = {f"loss.{index}": spec for index, spec in enumerate(recipe.loss)}
    for number, stage in enumerate(recipe.stage):
        found |= {f"stage.{number}.loss.{index}": spec for index, spec in enumerate(stage.loss)}
    mapped = {key: spec for key, spec in found.items() if getattr(spec, "map", None) is not None}
    if not mapped:
        raise RecipeError(
            "no loss of the recipe has a layer map, so there is nothing to search; give a loss of kind 'hidden' or "
            "'relations' with map = \"uniform\"."
        )
    return mapped


def teacher_layers(losses: dict[str, Loss], source: Source) -> tuple[int, ...]:
    """Return the teacher's layers (from 1 on) for which the dump has what all these losses compare.

    Raises:
        RecipeError: if they are fewer than two.
    """
    found: set[int] | None = None
    for spec in losses.values():
        sites = RELATIONS if isinstance(spec, RelationLoss) else (HIDDEN,)
        stored = {layer for layer in stored_layers(source.signals, sites) if layer > 0}
        found = stored if found is None else found & stored
    if len(found or ()) < 2:
        have = ", ".join(map(str, sorted(found or ()))) or "none"
        raise RecipeError(
            f"{source.name}: a search over layer maps needs two layers of the teacher or more, but of those that the "
            f"losses with a map compare, this dump has {have}; dump again with --hidden all "
            "(for 'relations' --relations all)."
        )
    return tuple(sorted(found or ()))
