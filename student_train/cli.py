"""The command line `distill`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shared.cli import EPILOG, run
from shared.options import grouped
from shared.text.columns import ColumnNames, ScoredColumns
from shared.text.lengths import Positions

if TYPE_CHECKING:
    from shared.text.groups import GroupScores

TaskOption = Annotated[
    str | None, typer.Option(help="By default what the model's architecture says.", show_default=False)
]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    epilog=EPILOG,
    help="Train students from a dump, and score them.",
)


@app.command("run")
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML): one student and how it learns.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key, for instance --set training.seed=1. Repeat it for more."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished run; leave a finished one as it is.")
    ] = False,
) -> None:
    """Train one student as a recipe says, save it and score it on its held-out file."""
    from student_train import distill
    from student_train.recipe.recipe import read_recipe
    from student_train.training import ranks

    description = read_recipe(recipe, set_ or [])
    if resume and distill.is_finished(description.output):
        if ranks.is_first():
            typer.echo(f"{description.output} is finished already, nothing to do.")
        return
    result = distill.run(description, resume)
    if not ranks.is_first():
        return
    typer.echo(f"\n{result.output}: trained for {result.steps:,} steps")
    if result.report is not None:
        _print(result.report.table())
        _print_groups(result.report.groups)


@app.command("eval")
@grouped
def evaluate_model(
    student: Annotated[str, typer.Argument(help="A model's folder; a teacher's too.")],
    data: Annotated[list[str], typer.Option(help="Held-out file with gold labels. Repeat it for more.")],
    *,
    dump: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="A dump of held-out rows, a folder or a URL, for the agreement with its teacher.",
            show_default=False,
        ),
    ] = None,
    task: TaskOption = None,
    names: ScoredColumns,
    where: Positions,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows are cut to this many tokens; by default what the model takes, at most 512.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="Also write the scores to this file.", show_default=False)] = None,
) -> None:
    """Score a model folder: the task's metrics, agreement with a dumped teacher, parameters, latency."""
    from json import dumps

    from shared.storage.files import write_text_atomically
    from student_train.scoring.evaluate import evaluate

    report = evaluate(student, data, names, dump, task, device, max_length, where.positions, where.stride)
    typer.echo(f"{report.model}: {report.task}, {report.counted}, {report.device}, {report.threads} threads")
    _print(report.table())
    _print_groups(report.groups)
    if json is not None:
        write_text_atomically(json, dumps(report.as_dict(), indent=2) + "\n")


@app.command("sweep")
def run_sweep(
    sweep: Annotated[Path, typer.Argument(help="A sweep (TOML): recipes, and what varies in them.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and their parameters; start none.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at work at once; by default what the sweep says, or one a CUDA device or CPU core.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train many students from one dump, and compare them. The same command again goes on where it was stopped."""
    from student_train import sweep as sweeps

    plan = sweeps.read_sweep(sweep)
    if dry_run:
        typer.echo("\n".join(sweeps.describe(plan, jobs)))
        return
    outcome = sweeps.run(plan, jobs)
    typer.echo("\n".join(outcome.lines))
    sweeps.check_outcome(outcome)


@app.command("export")
@grouped
def export_model(
    student: Annotated[Path, typer.Argument(help="A model's folder; a teacher's too.")],
    *,
    format_: Annotated[Literal["onnx"], typer.Option("--format", help="What to write.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file; by default model.onnx in the folder.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Check with these rows, too. Repeat it for more.", show_default=False)
    ] = None,
    task: TaskOption = None,
    names: ColumnNames,
) -> None:
    """Write a model folder as one ONNX file, and check that onnxruntime gives torch's logits."""
    from student_train.scoring.export import export

    exported = export(student, out, task, data or [], names)
    typer.echo(f"{exported.path}: {exported.path.stat().st_size / 1e6:,.1f} MB of {format_}")
    typer.echo(
        f"  {', '.join(exported.inputs)} -> {', '.join(exported.outputs)}: within {exported.difference:.1g} of torch's "
        f"on {exported.rows} rows in {exported.batches} batches"
    )


def _print(rows: list[tuple[str, str]]) -> None:
    width = max(34, *(len(name) for name, _ in rows))
    for name, value in rows:
        typer.echo(f"  {name:<{width}}{value:>14}")


def _print_groups(groups: "GroupScores | None") -> None:
    for line in groups.table() if groups is not None else ():
        typer.echo(f"  {line}")


def main() -> None:
    """Entry point of the console script."""
    # Torch warns that it has looked for parameters without a gradient and found none. Read when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    run(app)


if __name__ == "__main__":
    main()
