"""The command line `distill`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shared.cli import EPILOG, run
from shared.options import MOST, grouped
from shared.text.columns import ColumnNames, ScoredColumns
from shared.text.lengths import Positions
from student_train.recipe.decoding import Decoding
from student_train.search.options import SearchOptions

if TYPE_CHECKING:
    from shared.text.groups import GroupScores

TaskOption = Annotated[
    str | None,
    typer.Option(help="The model's task; by default determined by its architecture.", show_default=False),
]

PLOTS = (".png", ".pdf", ".svg")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    epilog=EPILOG,
    help="Train students from a dump, and score them.",
)


@app.command("run")
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML file): one student and how it is trained.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Override a key of the recipe, for instance --set training.seed=1; key= unsets it. Repeatable.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished run of this recipe; do nothing if it is finished.")
    ] = False,
) -> None:
    """Train one student as described in a recipe, save it, and score it on the recipe's held-out file."""
    from student_train import distill
    from student_train.recipe.kept import check_same_recipe
    from student_train.recipe.recipe import read_recipe
    from student_train.training import ranks

    description = read_recipe(recipe, set_ or [])
    if resume and distill.is_finished(description.output):
        if ranks.is_first():
            advice = "choose another output, or delete the folder"
            check_same_recipe(description, "the finished student there", advice, but_for=frozenset({"output"}))
            distill.tidy(description.output)
            typer.echo(f"{description.output} is already finished, nothing to do.")
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
    student: Annotated[str, typer.Argument(help="The folder of a model, student or teacher.")],
    data: Annotated[
        list[str], typer.Option(help="A held-out file with gold labels, or scored pairs of texts. Repeatable.")
    ],
    *,
    dump: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="A dump of held-out rows (folder or URL), to measure the agreement with its teacher.",
            show_default=False,
        ),
    ] = None,
    task: TaskOption = None,
    names: ScoredColumns,
    where: Positions,
    how: Decoding,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help="Rows are cut to this many tokens; by default the model's maximum, but at most 512.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="Also write the scores to this file.", show_default=False)] = None,
) -> None:
    """Score a model folder: metrics of its task, agreement with the teacher of a dump, parameters, latency."""
    from json import dumps

    from shared.storage.files import check_file, write_text_atomically
    from student_train.scoring.evaluate import evaluate

    if json is not None:
        check_file(json, "--json")
    report = evaluate(student, data, names, dump, task, device, max_length, where.positions, where.stride, how.decode)
    typer.echo(f"{report.model}: {report.task}, {report.counted}, {report.device}, {report.threads} threads")
    _print(report.table())
    _print_groups(report.groups)
    if json is not None:
        write_text_atomically(json, dumps(report.as_dict(), indent=2) + "\n")


@app.command("sweep")
def run_sweep(
    sweep: Annotated[Path, typer.Argument(help="A sweep (TOML file): recipes, and the keys that vary in them.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their numbers of parameters; start none.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of runs at the same time; by default as the sweep says, or one per CUDA device or CPU core.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train many students from one dump, and compare them. After an interruption, the same command continues."""
    from student_train import sweep as sweeps

    plan = sweeps.read_sweep(sweep)
    if dry_run:
        typer.echo("\n".join(sweeps.describe(plan, jobs)))
        return
    outcome = sweeps.run(plan, jobs)
    typer.echo("\n".join(outcome.lines))
    sweeps.check_outcome(outcome)


@app.command("search-mapping")
@grouped
def search_mapping(
    recipe: Annotated[
        Path,
        typer.Argument(help='A recipe (TOML file) with a loss that has a layer map (kind "hidden" or "relations").'),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The folder of the search; by default OUTPUT-search beside the recipe's output."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the recipe, as in `run`. Repeatable.")
    ] = None,
    options: SearchOptions,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a search that was interrupted, or make a finished one longer."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much there is to do; train nothing.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="The plot (.png); by default search.png in the folder.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="All results; by default results.json in the folder.", show_default=False)
    ] = None,
) -> None:
    """Search which layer of the teacher each layer of a student should imitate, with a genetic algorithm.

    Candidates are students of the recipe that are trained for a few steps and compared on held-out rows of the dump by
    what does not depend on the map: the recipe's validation.metric; else the loss against the teacher's distributions;
    else how much of the teacher's topmost hidden states the student's do not explain. The usual maps are controls. The
    best map becomes best.toml, and the table says whether maps differ by more than seeds.
    """
    from student_train.recipe.recipe import read_recipe
    from student_train.search import mapping

    prepared = mapping.prepare(read_recipe(recipe, set_ or []), out, options, resume, plot, json)
    typer.echo("\n".join(prepared.describe()))
    if not dry_run:
        typer.echo("\n".join(mapping.report(prepared, mapping.run(prepared))))


@app.command("compare")
def compare_models(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Folders of models, students or teachers, each with a folder for each task: TASK/metrics.json, or "
            "TASK/SEED/metrics.json.",
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(help="Compare this task only. Repeatable; by default all that are found.", show_default=False),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=METRIC",
            help="Compare another metric of a task than its main one, such as mrpc=macro_f1. Repeatable.",
            show_default=False,
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this file.", show_default=False)] = None,
    json: Annotated[
        Path | None,
        typer.Option(help="Also write all scores to this file, those of each seed too.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Also draw the mean against the parameters into this file (.png, .pdf or .svg).", show_default=False
        ),
    ] = None,
) -> None:
    """Compare models on several tasks: their scores in one table, with means over seeds and over tasks.

    The scores are those that `distill run` and `distill eval --json` have written; nothing is scored again.
    """
    from shared.plotting import figure_type
    from shared.storage.files import check_file
    from student_train.comparison import output
    from student_train.comparison.scores import compare

    for file, option, endings in ((csv, "--csv", (".csv",)), (json, "--json", ()), (plot, "--plot", PLOTS)):
        if file is not None:
            check_file(file, option, endings)
    if plot is not None:
        figure_type()
    found = compare(folders, task or [], metric or [])
    typer.echo("\n".join(output.lines(found)))
    for file, write in (
        (csv, output.write_csv),
        (json, output.write_json),
        (plot, output.plot),
    ):
        if file is not None:
            write(found, file)


@app.command("export")
@grouped
def export_model(
    student: Annotated[Path, typer.Argument(help="The folder of a model, student or teacher.")],
    *,
    format_: Annotated[Literal["onnx"], typer.Option("--format", help="The format to write.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The output file; by default model.onnx in the folder.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A file whose rows are checked in addition to random ones. Repeatable.", show_default=False),
    ] = None,
    task: TaskOption = None,
    names: ColumnNames,
) -> None:
    """Write a model folder as one ONNX file, and check that onnxruntime gives the same logits as torch."""
    from student_train.scoring.export import export

    exported = export(student, out, task, data or [], names)
    typer.echo(f"{exported.path}: {exported.path.stat().st_size / 1e6:,.1f} MB of {format_}")
    typer.echo(
        f"  {', '.join(exported.inputs)} -> {', '.join(exported.outputs)}: differ from torch's by at most "
        f"{exported.difference:.1g} on {exported.rows} rows in {exported.batches} batches"
    )


def _print(rows: list[tuple[str, str]]) -> None:
    width = max(34, *(len(name) for name, _ in rows))
    for name, value in rows:
        typer.echo(f"  {name:<{width}}{value:>14}")


def _print_groups(groups: "GroupScores | None") -> None:
    for line in groups.table() if groups is not None else ():
        typer.echo(f"  {line}")


def main() -> None:
    """Run the console script `distill`."""
    # Silences torch's warning that it found no unused parameters. Torch reads the variable when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    run(app)


if __name__ == "__main__":
    main()
