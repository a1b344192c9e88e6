"""Lectern from Python: what the command lines do, for notebooks and programs.

    import lectern

    reviews = lectern.dump("models/teacher", "sequence-classification", "reviews.jsonl", "out/reviews", hidden="last")
    reviews.positions().filter(pl.col("entropy") > 1).collect()
    result = lectern.distill("bilstm.toml", set={"training.seed": 1})
    report = lectern.evaluate(result.output, "reviews-test.jsonl")

Everything that can be foreseen to fail raises a `LecternError` with one paragraph: what is wrong, where, how to mend
it.
Progress is a bar on a terminal and in a notebook, and a plain line now and then elsewhere.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shared.dump.dump import Dump
from shared.errors import CorpusError, DumpError, LecternError, RecipeError, TeacherError, UsageError
from shared.options import check_values
from shared.storage import Place
from shared.text.columns import ColumnNames, ScoredColumns
from shared.text.lengths import DEFAULT_STRIDE
from student_train import distill as _distill
from student_train import sweep as _sweep
from student_train.distill import Result
from student_train.recipe.decoding import Decode
from student_train.recipe.recipe import Recipe, overridden, read_recipe
from student_train.scoring import evaluate as _evaluate
from student_train.scoring import export as _export
from student_train.scoring.export import Exported
from student_train.scoring.report import Report
from student_train.sweep.names import override as _override
from teacher_dump import annotate as _annotate
from teacher_dump import estimate as _estimate
from teacher_dump.engines.callable import CallableTeacher
from teacher_dump.estimate import Estimate
from teacher_dump.request import Request, SignalRequest, TeacherObject

__all__ = [
    "ColumnNames",
    "CallableTeacher",
    "CorpusError",
    "Dump",
    "DumpError",
    "Estimate",
    "Exported",
    "LecternError",
    "Recipe",
    "RecipeError",
    "Report",
    "Result",
    "ScoredColumns",
    "SignalRequest",
    "TeacherError",
    "UsageError",
    "distill",
    "dump",
    "estimate",
    "evaluate",
    "export",
    "sweep",
]

Files = str | Path | Sequence[str | Path]
Function = TypeVar("Function", bound=Callable[..., Any])


def _with_options(function: Function) -> Function:
    """The function with the options of `dump` in its signature, in place of `**options`, for help and completion."""
    own = inspect.signature(function)
    named = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    known = {each.name for each in named}
    options = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for each in inspect.signature(Request).parameters.values()
        if each.name not in known
    ]
    function.__signature__ = own.replace(parameters=[*named, *options])  # type: ignore[attr-defined]
    return function


@_with_options
def dump(teacher: str | Path | TeacherObject, task: str, data: Files, out: Place, **options: Any) -> Dump:
    """Run a teacher once over a corpus, and keep what students learn from in the folder `out`.

    The same call again finishes what is missing, and several processes that make it share the work.

    Args:
        teacher: a model's folder or a hub id; or a `CallableTeacher`, a torch module or a function of your own.
        task: "sequence-classification", "causal-lm", ...; `dump --help` lists them.
        data: files, globs or URLs of text.
        out: where the dump is kept: a folder, or a URL that fsspec knows ("s3://bucket/dump").
        options: those of the command line `dump`, with `_` in place of `-`: hidden="last", top_k=64, max_length=256.
            And `signals`: what else of the teacher is kept, each as a `SignalRequest`.

    Returns:
        The finished dump.

    Raises:
        UsageError: for options that cannot work together, or a folder that holds another dump.
        CorpusError, TeacherError, DumpError: when the work fails; what is finished is kept.
        TypeError: for an option that does not exist.

    Example:
        >>> reviews = dump("models/teacher", "sequence-classification", "reviews.jsonl", "reviews", hidden="last")
        >>> reviews.manifest.corpus.rows, reviews.verify()
        (40, [])
        >>> reviews.positions().select("row", "label").head(2).collect().shape
        (2, 2)

        >>> layer_1 = SignalRequest("hidden", 1, "low-rank", {"rank": 4, "coefficients": "int8"})
        >>> asked = {"hidden": "last", "signals": (layer_1,)}
        >>> list(dump("models/teacher", "sequence-classification", "reviews.jsonl", "both", **asked).manifest.vectors)
        ['hidden.2', 'hidden.1']

        >>> from transformers import AutoModelForSequenceClassification, AutoTokenizer
        >>> model = AutoModelForSequenceClassification.from_pretrained("models/teacher")
        >>> tokenizer = AutoTokenizer.from_pretrained("models/teacher")
        >>> mine = CallableTeacher(model, tokenizer, label_names=("negative", "neutral", "positive"))
        >>> dump(mine, "sequence-classification", "reviews.jsonl", "mine").manifest.teacher.name
        'BertForSequenceClassification'
    """
    request = _request(teacher, task, data, out, options)
    _annotate.annotate(_annotate.prepare(request))
    return Dump(request.out)


@_with_options
def estimate(teacher: str | Path | TeacherObject, task: str, data: Files, out: Place, **options: Any) -> Estimate:
    """What the same call of `dump` would take: bytes, seconds, bytes a token of each signal. Writes nothing.

    Example:
        >>> found = estimate("models/teacher", "sequence-classification", "reviews.jsonl", "not-there", hidden="last")
        >>> found.rows, sorted(found.signal_bytes), Path("not-there").exists()
        (40, ['distribution', 'hidden.2', 'text'], False)
    """
    return _estimate.estimate(_annotate.prepare(_request(teacher, task, data, out, options)))


def distill(recipe: Recipe | str | Path, *, set: Mapping[str, Any] | None = None, resume: bool = False) -> Result:
    """Train one student as a recipe says, save it, and score it where the recipe has a section [eval].

    Args:
        recipe: a recipe's TOML file, or a `Recipe` (`Recipe.model_validate({...})` checks one that is made in Python).
        set: values that override keys of the recipe: {"training.seed": 1, "loss.0.temperature": 2.0}.
        resume: go on with an unfinished run. (A finished student is refused in any case.)

    Raises:
        RecipeError, DumpError, CorpusError: when something does not fit, before the first step.

    Example:
        >>> result = distill("bilstm.toml", set={"training.max_steps": 2})
        >>> result.steps, result.output
        (2, PosixPath('bilstm'))
    """
    overrides = [_override(key, value) for key, value in (set or {}).items()]
    if isinstance(recipe, Recipe):
        return _distill.run(overridden(recipe, overrides), resume)
    return _distill.run(read_recipe(Path(recipe), overrides), resume)


def evaluate(
    model: str | Path,
    data: Files,
    *,
    dump: Place | None = None,
    task: str | None = None,
    columns: ScoredColumns | None = None,
    positions: str | None = None,
    stride: int = DEFAULT_STRIDE,
    max_length: int | None = None,
    device: str = "auto",
    decode: Decode | None = None,
) -> Report:
    """Score a model's folder (a teacher's, too) on files with gold labels: metrics, parameters, latency.

    Args:
        model: the folder.
        data: held-out files with gold labels.
        dump: where a dump of held-out rows is, for the agreement with its teacher.
        task: by default what the model's architecture says.
        columns: which columns of the files hold what.
        positions, stride, max_length, device, decode: as of `distill eval`.

    Raises:
        RecipeError: when the folder holds no model of the task, or its labels are not those of the data or dump.

    Example:
        >>> report = evaluate("models/teacher", "reviews.jsonl", dump="reviews")
        >>> sorted(report.metrics), report.agreement
        (['accuracy', 'macro_f1'], 1.0)
    """
    names = columns or ScoredColumns()
    return _evaluate.evaluate(model, _files(data), names, dump, task, device, max_length, positions, stride, decode)


def sweep(path: str | Path, *, jobs: int | None = None) -> list[str]:
    """Train the many students of a sweep file, and compare them; the same call again goes on where it was stopped.

    Returns:
        The lines of its table; the rows are in `results.csv` and `results.parquet` in the sweep's folder.

    Raises:
        RecipeError: for a sweep or a recipe in it that cannot be carried out, before the first run.
        LecternError: when runs have failed.
    """
    outcome = _sweep.run(_sweep.read_sweep(Path(path)), jobs)
    _sweep.check_outcome(outcome)
    return outcome.lines


def export(
    model: str | Path,
    out: str | Path | None = None,
    *,
    task: str | None = None,
    data: Files = (),
    columns: ColumnNames | None = None,
) -> Exported:
    """Write a model's folder as one ONNX file, checked against torch on drawn rows and the first rows of `data`.

    Args:
        model: the folder.
        out: the file; by default model.onnx in the folder.
        task: by default what the model's architecture says.
        data: files of rows to check with.
        columns: which columns of the files hold what.

    Raises:
        UsageError: without the packages of `lectern[onnx]`.
        LecternError: when the file's logits are not torch's.
    """
    path = None if out is None else Path(out)
    return _export.export(Path(model), path, task, _files(data), columns or ColumnNames())


def _request(
    teacher: str | Path | TeacherObject, task: str, data: Files, out: Place, options: Mapping[str, Any]
) -> Request:
    known = {field.name for field in dataclasses.fields(Request)}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TypeError(f"dump() has no option {unknown[0]!r}; its options are {', '.join(sorted(known))}")
    if isinstance(teacher, Path):
        teacher = str(teacher)
    request = Request(teacher=teacher, task=task, data=tuple(_files(data)), out=str(out), **options)
    check_values(request)
    return request


def _files(data: Files) -> list[str]:
    return [str(data)] if isinstance(data, str | Path) else [str(each) for each in data]
