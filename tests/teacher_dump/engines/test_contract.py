"""What every engine must do, asked of each of ours: a folder run by transformers, and the same model as a callable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from shared import Dump
from shared.dump.signals import HIDDEN, SITES, SignalKey, Site
from shared.errors import LecternError, TeacherError, UsageError
from shared.text.tasks import TASKS
from shared.text.tokenized import TokenizedRow
from teacher_dump.engines import ENGINES, describe_teacher
from teacher_dump.engines.base import Engine, Wanted
from teacher_dump.engines.callable import CallableTeacher
from teacher_dump.request import Request

ENGINE_NAMES = ("transformers", "callable")
LAYERS, WIDTH = 2, 32
TEXTS = ("the quick brown fox jumps over", "some jugs of liquor", "seven wizards box", "a")


def model_of(folder: Path, task: str) -> Any:
    return getattr(transformers, TASKS[task].auto_class).from_pretrained(folder, output_hidden_states=True).eval()


def as_callable(folder: Path, task: str) -> CallableTeacher:
    """The model of a folder as a module that puts out its hidden states."""
    model = model_of(folder, task)
    return CallableTeacher(model, AutoTokenizer.from_pretrained(folder), TASKS[task].label_names_of(model.config))


def engine_of(kind: str, folder: Path, task: str) -> Engine:
    teacher = str(folder) if kind == "transformers" else as_callable(folder, task)
    return describe_teacher(Request(teacher, task, (), "out", device="cpu"), TASKS[task]).load()


class Case(NamedTuple):
    """An engine, and the bare model that it runs."""

    task: str
    folder: Path
    engine: Engine
    model: Any


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(task: str, make_teacher: Callable[..., Path]) -> Path:
    return make_teacher(task)


@pytest.fixture(scope="module", params=ENGINE_NAMES)
def case(request: pytest.FixtureRequest, task: str, folder: Path) -> Case:
    return Case(task, folder, engine_of(request.param, folder, task), model_of(folder, task))


def is_by_row(task: str) -> bool:
    return TASKS[task].layout(TASKS[task].check_positions(None)).by_row


def rows_of(case: Case) -> list[TokenizedRow]:
    """Rows of four lengths, the longest first; every second token is a recorded position, or the whole row is."""
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    rows = []
    for text in TEXTS:
        ids = np.array(tokenizer(text)["input_ids"], np.int32)
        positions = np.zeros(1, np.int32) if is_by_row(case.task) else np.arange(0, len(ids), 2, dtype=np.int32)
        rows.append(TokenizedRow(ids, None, positions, np.zeros_like(positions)))
    return rows


@torch.inference_mode()
def alone(case: Case, row: TokenizedRow) -> tuple[Tensor | None, list[Tensor]]:
    """(logits of the row's positions, hidden states of all its tokens by layer) of the bare model."""
    ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
    output = case.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    logits = TASKS[case.task].logits_of(output)
    if logits is not None and not is_by_row(case.task):
        logits = logits[0, torch.from_numpy(row.positions).long()]
    return logits, [states[0] for states in output.hidden_states]


def has_distribution(task: str) -> bool:
    return TASKS[task].layout(TASKS[task].check_positions(None)).has_distributions


def test_a_batch_gives_each_row_what_the_bare_model_gives_it_alone(case: Case) -> None:
    rows, keys = rows_of(case), tuple(SignalKey(HIDDEN, layer) for layer in (0, LAYERS))
    batch = case.engine.batch(rows, range(len(rows)))
    assert list(batch.rows) == rows
    with torch.inference_mode():
        outputs = case.engine.run(
            batch.to(case.engine.device), Wanted("logits" if has_distribution(case.task) else None, keys)
        )
    expected = [alone(case, row) for row in rows]
    assert set(outputs.vectors) == set(keys)
    for key in keys:
        torch.testing.assert_close(
            outputs.vectors[key], torch.cat([hidden[key.layer] for _, hidden in expected]), atol=1e-4, rtol=1e-4
        )
    if not has_distribution(case.task):
        assert outputs.distribution_at is None
        return
    assert outputs.distribution_at is not None
    index = torch.arange(len(rows)) if is_by_row(case.task) else torch.from_numpy(batch.position_index())
    found = torch.cat([outputs.distribution_at(part) for part in index.split(3)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.cat([logits for logits, _ in expected]), atol=1e-3, rtol=1e-4)


def test_vectors_alone_are_given_where_no_distribution_is_wanted(case: Case) -> None:
    rows, key = rows_of(case), SignalKey(HIDDEN, 1)
    batch = case.engine.batch(rows, range(len(rows))).to(case.engine.device)
    with torch.inference_mode():
        outputs = case.engine.run(batch, Wanted(None, (key,)))
    assert outputs.distribution_at is None
    expected = torch.cat([alone(case, row)[1][1] for row in rows])
    torch.testing.assert_close(outputs.vectors[key], expected, atol=1e-4, rtol=1e-4)


def test_all_that_is_offered_has_a_width_and_may_be_asked_for(case: Case) -> None:
    assert list(case.engine.offers()[HIDDEN]) == list(range(LAYERS + 1))
    keys = [SignalKey(site, layer) for site, layers in case.engine.offers().items() for layer in layers]
    for key in keys:
        case.engine.check(key)
    widths = case.engine.widths(keys)
    batch = case.engine.batch(rows_of(case), range(len(TEXTS))).to(case.engine.device)
    with torch.inference_mode():
        outputs = case.engine.run(batch, Wanted(None, tuple(keys)))
    counts = [len(batch.owners(SITES[key.site].per)) for key in keys]
    assert [tuple(outputs.vectors[key].shape) for key in keys] == list(zip(counts, widths, strict=True))


def test_more_is_refused_with_a_sentence(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SITES, "mood", Site("mood"))
    with pytest.raises(UsageError, match=rf"signal 'hidden\.9': this teacher has it in layers 0 to {LAYERS}; name one"):
        case.engine.check(SignalKey(HIDDEN, 9))
    with pytest.raises(TeacherError, match=r"signal 'mood': Bert\w+|Llama\w+ does not give its mood, but hidden"):
        case.engine.check(SignalKey("mood"))
    with pytest.raises(UsageError, match="unknown signal 'smell'"):
        case.engine.check(SignalKey("smell"))


def test_facts_tell_teachers_apart(case: Case, make_teacher: Callable[..., Path]) -> None:
    kind = next(name for name in ENGINE_NAMES if type(case.engine).__name__.lower().startswith(name))
    facts = case.engine.facts()
    assert facts.architecture == case.engine.architecture == type(case.model).__name__
    assert facts.parameters == case.model.num_parameters()
    assert engine_of(kind, case.folder, case.task).facts() == facts
    other = engine_of(kind, make_teacher(case.task, seed=1), case.task).facts()
    assert other.fingerprint != facts.fingerprint


def test_what_is_known_beforehand(case: Case) -> None:
    assert case.engine.dtype == "fp32"
    assert case.engine.vocabulary >= len(AutoTokenizer.from_pretrained(case.folder))
    assert case.engine.memory.default_tokens > 0
    assert not case.engine.memory.is_measured
    assert case.engine.memory.ran_out(MemoryError())


def test_both_engines_make_the_same_dump(
    task: str, folder: Path, make_dump: Callable[..., Path], toy_rows: Callable[..., list[dict[str, Any]]]
) -> None:
    options: dict[str, Any] = {"data": toy_rows(task, 12), "hidden": "0,2", "max_length": 32, "batch_tokens": 90}
    if TASKS[task].predicts_vocabulary:
        options["top_k"] = 7
    if task == "encoder":
        options["pooling"] = "none"  # a callable does not pool
    dumps = [Dump(make_dump(task, teacher=each, **options)) for each in (folder, as_callable(folder, task))]
    mine, theirs = (dump.vectors(f"hidden.{LAYERS}").collect() for dump in dumps)
    assert mine.select("row", "position").equals(theirs.select("row", "position"))
    np.testing.assert_allclose(mine["vector"].to_list(), theirs["vector"].to_list(), atol=5e-3)
    if not has_distribution(task):
        return
    mine, theirs = (dump.positions().drop("texts", strict=False).collect() for dump in dumps)
    same = [name for name in ("row", "position", "token_id", "label") if name in mine.columns]
    assert mine.select(same).equals(theirs.select(same))
    name = "start_logit" if task == "question-answering" else "log_probs"
    values = [frame[name].explode() if name == "log_probs" else frame[name] for frame in (mine, theirs)]
    np.testing.assert_allclose(*values, atol=0.05)


def test_the_table_says_what_there_is() -> None:
    assert tuple(ENGINES) == ENGINE_NAMES
    with pytest.raises(LecternError, match="unknown engine 'steam'; there are: transformers, callable"):
        describe_teacher(Request("t", "encoder", (), "out", engine="steam"), TASKS["encoder"])
