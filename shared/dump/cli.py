"""The command line `shards`: inspect and verify a dump."""

from pathlib import Path
from typing import Annotated

import typer

from shared.cli import EPILOG, run
from shared.printable import on_one_line

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    epilog=EPILOG,
    help="Inspect a dump: facts, readable rows, distributions, damage.",
)

DumpFolder = Annotated[str, typer.Argument(metavar="DUMP", help="The dump's folder, or its URL.")]


@app.command()
def info(dump: DumpFolder) -> None:
    """Show the facts of a dump, and the size of each column."""
    from shared.dump.dump import Dump
    from shared.dump.inspection import facts
    from shared.dump.integrity.receipts import shard_path
    from shared.dump.shards import column_sizes, open_shard
    from shared.progress import human_bytes

    opened = Dump(dump)
    for name, value in facts(opened):
        typer.echo(f"{name:<14}{on_one_line(value)}")
    tokens = sum(receipt.tokens for receipt in opened.receipts.values())
    sizes = column_sizes(
        open_shard(shard_path(opened.path, index), receipt).metadata for index, receipt in opened.receipts.items()
    )
    if sizes:
        typer.echo(f"\n{'column':<26}{'size':>10}{'bytes a token':>16}")
    for name, size in sizes.items():
        typer.echo(f"{name:<26}{human_bytes(size):>10}{size / max(tokens, 1):>16.2f}")


@app.command()
def head(
    dump: DumpFolder,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows to show.")] = 3,
    candidates: Annotated[
        int, typer.Option("-k", "--candidates", min=1, help="How many candidates to show per position.")
    ] = 4,
    positions: Annotated[int, typer.Option(min=1, help="How many positions to show per row.")] = 12,
) -> None:
    """Show the first rows as readable tokens, with the teacher's most probable candidates."""
    from shared.dump.dump import Dump
    from shared.dump.inspection import readable_rows

    for line in readable_rows(Dump(dump), rows, candidates, positions):
        typer.echo(line)


@app.command()
def stats(
    dump: DumpFolder,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw histograms into this file (.png, .pdf or .svg).", show_default=False)
    ] = None,
) -> None:
    """Show the distributions of length, entropy, top-1 probability and kept mass, and the teacher's accuracy."""
    from shared.dump import inspection
    from shared.dump.dump import Dump
    from shared.plotting import figure_type
    from shared.storage.files import check_file

    if plot is not None:
        check_file(plot, "--plot", (".png", ".pdf", ".svg"))
        figure_type()
    opened = Dump(dump)
    titles = "".join(f"{f'{q:.0%}':>9}" for q in inspection.QUANTILES)
    typer.echo(f"{'':<20}{'count':>14}{'mean':>9}{titles}")
    for spread in inspection.spreads(opened):
        values = "".join(f"{value:>9.4g}" for value in (spread.mean, *spread.quantiles))
        typer.echo(f"{spread.name:<20}{spread.count:>14,}{values}")
    accuracy = inspection.teacher_accuracy(opened)
    if accuracy is not None:
        typer.echo(f"\nthe teacher's first choice is the gold label at {accuracy[0]:.1%} of {accuracy[1]:,} positions")
    if plot is not None:
        inspection.plot(opened, plot)
        typer.echo(f"\nhistograms: {plot}")


@app.command()
def verify(dump: DumpFolder) -> None:
    """Check that every byte is as it was written. Exits with 1 and names the files if one is not."""
    from shared.dump.dump import Dump
    from shared.dump.integrity.verification import verify as damages_of
    from shared.storage import Folder

    damages = damages_of(Folder.of(dump))
    for damage in damages:
        typer.echo(damage, err=True)
    if damages:
        remedy = "delete damaged shards and run the same dump command again, and restore other files"
        typer.echo(f"\n{len(damages)} damaged; {remedy}.", err=True)
        raise typer.Exit(1)
    opened = Dump(dump)
    rows = sum(receipt.rows for receipt in opened.receipts.values())
    typer.echo(f"{dump}: {opened.manifest.shards} shards, {rows:,} rows, every byte as it was written.")


@app.command()
def seal(dump: DumpFolder) -> None:
    """Sign the manifest, the tokenizer and the weights as they are now, after a deliberate edit.

    Elsewhere a file that was changed by hand is refused. Shards are not signed; their receipts belong to them.
    """
    from shared.dump.integrity.sealing import seal as sealed
    from shared.storage import Folder

    for line in sealed(Folder.of(dump)):
        typer.echo(line)


def main() -> None:
    """Entry point of the console script."""
    run(app)


if __name__ == "__main__":
    main()
