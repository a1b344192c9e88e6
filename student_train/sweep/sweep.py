"""The main path of `distill sweep`: check all runs, train those that are not finished, score the baselines, compare."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

from shared.errors import LecternError, UsageError
from shared.storage.files import only_one
from student_train import distill
from student_train.sweep.baselines import baseline_jobs, check_baselines, scored_baselines
from student_train.sweep.children import stopped_like_ctrl_c
from student_train.sweep.folder import check_output, check_run, is_done, metrics_of
from student_train.sweep.machine import Machine, machine_for
from student_train.sweep.pareto import plot
from student_train.sweep.plan import Run, Sweep
from student_train.sweep.results import Metrics, Scored, frame, main_metric, scored, summaries, write_results
from student_train.sweep.table import table
from student_train.sweep.work import Job, work_through

PLOT = "pareto.png"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a sweep: lines to print, and the name of each failed run -> the reason."""

    lines: list[str]
    failed: dict[str, str]


@dataclass(frozen=True)
class Planned:
    """A run, the number of its student's parameters, and whether it is finished."""

    run: Run
    parameters: int
    is_done: bool


def describe(sweep: Sweep, jobs: int | None) -> list[str]:
    """Return a line about every run: its name, its student's parameters, whether it is finished. Starts nothing.

    Raises:
        LecternError: as for `run`.
    """
    check_output(sweep.spec.output)
    check_baselines(sweep)
    planned, machine = _planned(sweep), _machine(sweep, jobs)
    width = max(len(one.run.name) for one in planned)
    lines = [
        f"{one.run.name:<{width}}  {one.parameters:>13,} parameters  {'finished' if one.is_done else 'to do'}"
        for one in planned
    ]
    left = sum(not one.is_done for one in planned)
    where = f"on {len(machine.devices)} CUDA devices" if machine.devices else "on the CPU"
    lines.append(
        f"{len(planned)} runs, {left} to do: {machine.jobs} at a time {where}, threads for each: {machine.threads}"
    )
    return lines


def run(sweep: Sweep, jobs: int | None) -> Outcome:
    """Train the students that are not finished, and compare all of them. A run that fails does not stop the others.

    Raises:
        LecternError: before the first run, if a recipe, dump or file is not valid; if another sweep uses the folder.
    """
    output = sweep.spec.output
    check_output(output)
    check_baselines(sweep)
    with ExitStack() as held:
        held.enter_context(stopped_like_ctrl_c())
        planned, machine = _planned(sweep), _machine(sweep, jobs)
        left = [one.run for one in planned if not one.is_done]
        output.mkdir(parents=True, exist_ok=True)
        held.enter_context(only_one(output))
        for one in planned:
            if one.is_done:
                distill.tidy(one.run.recipe.output)
        failed = work_through([_job(one) for one in left], output, machine, done=len(sweep.runs) - len(left))
        reference = _reference(sweep)
        if reference is None:
            raise LecternError(f"no run of {output} is finished, so there is nothing to compare; {_failures(failed)}")
        # One at a time, because a teacher may be large, and so that its latency is not disturbed.
        failed |= work_through(baseline_jobs(sweep, reference), output, replace(machine, jobs=1))
        return Outcome(_compare(sweep, reference, failed), failed)


def check_outcome(outcome: Outcome) -> None:
    """Raise LecternError if a run failed, so that the command ends with exit code 1."""
    if outcome.failed:
        raise LecternError(_failures(outcome.failed))


def _planned(sweep: Sweep) -> list[Planned]:
    """Return every run with its number of parameters, after all checks that are possible before its first step."""
    parameters: dict[str, int] = {}
    planned = []
    for one in sweep.runs:
        check_run(one)
        metrics = metrics_of(one.recipe.output) if is_done(one) else None
        if metrics is not None:
            planned.append(Planned(one, metrics["parameters"], True))
            continue
        # Runs that differ in the seed alone need one check: it changes neither the result nor the parameters.
        content = _without_seed(one)
        if content not in parameters:
            try:
                parameters[content] = distill.check(one.recipe)
            except LecternError as error:
                raise type(error)(f"run {one.name}: {error}") from None
        planned.append(Planned(one, parameters[content], False))
    return planned


def _without_seed(one: Run) -> str:
    training = one.recipe.training.model_copy(update={"seed": 0})
    return one.recipe.model_copy(update={"training": training}).model_dump_json(exclude={"output"})


def _machine(sweep: Sweep, jobs: int | None) -> Machine:
    asked = jobs if jobs is not None else sweep.spec.jobs
    return machine_for([one.recipe for one in sweep.runs], None if asked == "auto" else asked)


def _job(one: Run) -> Job:
    overrides = [argument for override in one.overrides for argument in ("--set", override)]

    def result() -> str:
        metrics = metrics_of(one.recipe.output)
        assert metrics is not None
        name, value = main_metric(metrics)
        return f"{name} {value:.4g}"

    return Job(one.name, ("run", str(one.path), *overrides, "--resume"), result)


def _reference(sweep: Sweep) -> Metrics | None:
    """Return the scores of the first finished run."""
    return next((one.metrics for run in sweep.runs if (one := scored(run, sweep.spec.output))), None)


def _compare(sweep: Sweep, reference: Metrics, failed: dict[str, str]) -> list[str]:
    output = sweep.spec.output
    baselines = scored_baselines(sweep, reference)
    runs = [one for run in sweep.runs if (one := scored(run, output))]
    write_results(frame(sweep, baselines, failed), output)
    found = summaries([*runs, *baselines])
    lines = ["", *table(found), "", *_remarks(runs, reference)]
    try:
        title = f"{output.name}: {main_metric(reference)[0]} on {reference['rows']:,} held-out rows"
        plot(found, title, output / PLOT)
        lines.append(f"The same as a plot: {output / PLOT}")
    except UsageError as error:
        lines.append(f"There is no plot: {error}")
    return [*lines, f"Every run: {output / 'results.csv'} and results.parquet"]


def _remarks(runs: list[Scored], reference: Metrics) -> list[str]:
    """Return lines about the conditions of the measurements; latencies of different conditions cannot be compared."""
    conditions = {(one.metrics["device"], one.metrics["threads"]) for one in runs}
    if len(conditions) == 1:
        lines = [f"Latencies: medians, on {reference['device']} with {reference['threads']} threads."]
    else:
        names = ", ".join(sorted(f"{device} with {threads} threads" for device, threads in conditions))
        lines = [f"Latencies cannot be compared, because they were measured under different conditions: {names}."]
    return lines


def _failures(failed: dict[str, str]) -> str:
    """Return a paragraph about all failures."""
    reasons = "; ".join(f"{name} ({reason.rstrip('.')})" for name, reason in failed.items())
    return f"{len(failed)} failed: {reasons}. Their logs are in the sweep's logs/; the same command tries them again."
