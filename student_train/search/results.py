"""What a search has found: the table of maps, the verdict in words, the cost, and all of it as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.progress import human_seconds
from student_train.search.candidates import Evaluation
from student_train.search.evolution import Generation
from student_train.search.fitness import Fitness
from student_train.search.genetic import Genome
from student_train.search.verdict import Verdict, compared, verdict


@dataclass(frozen=True)
class Row:
    """One map at the whole proxy budget.

    Attributes:
        control: its name if it is a control.
        generation: the number (from 1 on) of the generation in which the search first gave it the whole budget.
        found: its evaluation with the recipe's own seed, by which the search chose.
        confirmed: its evaluations with other seeds.
    """

    genome: Genome
    control: str | None
    generation: int | None
    found: Evaluation
    confirmed: tuple[Evaluation, ...] = ()

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores that count: those of the other seeds if there are any, since the search has chosen by its own."""
        return tuple(one.score for one in self.confirmed) or (self.found.score,)

    @property
    def mean(self) -> float:
        """The mean of the scores that count."""
        return statistics.mean(self.scores)

    @property
    def is_a_map(self) -> bool:
        """Whether any layer imitates one."""
        return any(self.genome)

    def origin(self) -> str:
        """Say where the map comes from."""
        names = [f"generation {self.generation}"] if self.generation is not None else []
        return ", ".join([*names, *([f"control: {self.control}"] if self.control is not None else [])])


@dataclass(frozen=True)
class Cost:
    """What a search took; `full_steps` are those of one full training of its recipe."""

    runs: int
    steps: int
    full_steps: int
    seconds: float
    cpu_seconds: float

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation], full_steps: int) -> "Cost":
        """Return the cost of evaluations; `seconds` are added up, also of those that ran side by side."""
        return cls(
            len(evaluations),
            sum(one.steps for one in evaluations),
            full_steps,
            round(sum(one.seconds for one in evaluations), 1),
            round(sum(one.cpu_seconds for one in evaluations), 1),
        )

    def sentence(self) -> str:
        """Say it in a line."""
        return (
            f"Cost: {self.runs} runs, {self.steps:,} steps ({self.steps / self.full_steps:.2g} times those of one full "
            f"training), {human_seconds(self.cpu_seconds)} of CPU time."
        )


@dataclass(frozen=True)
class Results:
    """All that a search has found; `rows` are the best of the search and the controls, the best first."""

    fitness: Fitness
    layers: tuple[int, ...]
    steps: int
    seeds: tuple[int, ...]
    history: tuple[Generation, ...]
    rows: tuple[Row, ...]
    cost: Cost

    @property
    def best(self) -> Row:
        """The best map of all, found or a control."""
        return next(row for row in self.rows if row.is_a_map)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the maps differ; None without other seeds."""
        return verdict([row.scores for row in self.rows if row.is_a_map and row.confirmed])

    def lines(self) -> list[str]:
        """Return the table, and below it the verdict and the cost."""
        return [
            f"{self.fitness.name}: {self.fitness.words} on held-out rows after {self.steps:,} steps, "
            f"{'lower' if self.fitness.less_is_better else 'higher'} is better",
            "",
            *self._table(),
            "",
            *self.sentences(),
            self.cost.sentence(),
        ]

    def sentences(self) -> list[str]:
        """Say plainly whether the mapping mattered, and how the search compares with the best control."""
        found = self.verdict
        said = [
            "Not confirmed with other seeds, so whether the mapping mattered is not known; give --confirm-seeds 3."
            if found is None
            else found.sentence()
        ]
        of_search = next((row for row in self.rows if row.generation is not None), None)
        control = next((row for row in self.rows if row.control is not None and row.is_a_map), None)
        if of_search is not None and of_search is control:
            said.append(f"The best map of the search is a control, {control.control} ({_map(control.genome)}).")
        elif of_search is not None and control is not None:
            difference, error = compared(of_search.scores, control.scores)
            word = "better" if self.fitness.merit(difference) > 0 else "worse"
            spread = f" ± {error:.2g} (standard error)" if error is not None else ""
            said.append(
                f"The best map of the search, {_map(of_search.genome)}, is {word} than the best control, "
                f"{control.control} ({_map(control.genome)}), by {abs(difference):.3g}{spread}."
            )
        return said

    def _table(self) -> list[str]:
        seeds = len(self.rows[0].confirmed)
        header = ["", "map", "where from", "mean" if seeds else "score", "± seeds", "search's seed", "seeds"]
        has_eval = next((row.confirmed[0].eval_metric for row in self.rows if row.confirmed), None)
        header += [has_eval] if has_eval is not None else []
        table = [header]
        for number, row in enumerate(self.rows, 1):
            deviation = statistics.stdev(row.scores) if len(row.scores) > 1 else None
            line = [str(number), _map(row.genome), row.origin(), f"{row.mean:.4f}"]
            line += ["" if deviation is None else f"{deviation:.4f}", f"{row.found.score:.4f}", str(seeds)]
            if has_eval is not None:
                values = [one.eval_score for one in row.confirmed if one.eval_score is not None]
                line.append(f"{statistics.mean(values):.4f}" if values else "")
            table.append(line)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if at in (1, 2) else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        return [lines[0], "-" * max(map(len, lines)), *lines[1:]]

    def as_dict(self) -> dict[str, Any]:
        """Return everything for a JSON file. Scores of generations are those of the fitness, not negated."""
        found = self.verdict
        sign = self.fitness.merit(1.0)
        return {
            "fitness": {"name": self.fitness.name, "words": self.fitness.words, "less_is_better": sign < 0},
            "teacher_layers": list(self.layers),
            "steps": self.steps,
            "seeds": list(self.seeds),
            "best": {"map": list(self.best.genome), "from": self.best.origin(), "score": self.best.mean},
            "verdict": None
            if found is None
            else {
                "mattered": found.mattered if found.between_seeds is not None else None,
                "between_maps": found.between_maps,
                "between_seeds": found.between_seeds,
                "probability": found.probability,
            },
            "sentences": self.sentences(),
            "cost": vars(self.cost),
            "maps": [
                {
                    "map": list(row.genome),
                    "control": row.control,
                    "generation": row.generation,
                    "search_score": row.found.score,
                    "confirmed": [one.score for one in row.confirmed],
                    "eval": [one.eval_score for one in row.confirmed],
                }
                for row in self.rows
            ],
            "generations": [
                [
                    {
                        "map": list(genome),
                        "score": sign * (one.merits.get(genome, one.dropped.get(genome, 0.0))),
                        "whole_budget": genome in one.merits,
                    }
                    for genome in one.ranked
                ]
                for one in self.history
            ],
        }


def _map(genome: Genome) -> str:
    return " ".join(map(str, genome))
