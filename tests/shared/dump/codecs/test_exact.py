"""Exact distributions: states and the output projection on disk give all logits back.

The references are transformers' own logits, and a float64 log-softmax of what polars and safetensors read without any
code of ours.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared import Dump
from shared.dump import inspection
from shared.dump.codecs import AnyCodec, DenseTargets, Exact, LogitStep, NotFiniteError
from shared.dump.codecs import exact as exact_module
from shared.dump.integrity.receipts import shard_path
from shared.dump.rowgroup import to_flat
from shared.dump.shards import column_sizes, open_shard, read_row_group
from shared.errors import DumpError, TeacherError, UsageError
from student_train.data.batch import Batch
from student_train.data.batches import in_order
from student_train.data.sources import DumpSource
from student_train.forward.observe import outputs_of, targets_of
from student_train.losses.logits import KLLoss, LogitsMSELoss, TeacherLabelLoss
from student_train.losses.total import total_loss
from student_train.students import Needs, TransformerStudent, build_student

STATES = ("float16", "int8", "int4")
# Of a state's channel: of its own size (float16), of its position's largest (int8, int4: see codecs/vectors.py).
ROUNDING = {"float16": 2**-11, "int8": 1 / 253, "int4": 0.195}
STEPS = (
    LogitStep(),
    LogitStep(step="softcap", value=3.0),
    LogitStep(step="scale", value=0.25),
    LogitStep(step="divisor", value=4.0),
)


def random_head(
    seed: int = 0, vocabulary: int = 200, width: int = 24, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """(weight_VD, bias_V)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, width, generator=generator)
    return weight.to(dtype), torch.randn(vocabulary, generator=generator).to(dtype)


def random_states(seed: int = 1, positions: int = 50, width: int = 24) -> Tensor:
    return torch.randn(positions, width, generator=torch.Generator().manual_seed(seed))


def keys_of(states: Tensor) -> Tensor:
    return torch.arange(len(states))


def frame(codec: Exact, states: Tensor) -> pl.DataFrame:
    """The columns as polars reads them: one binary, or one number, a position."""
    arrays = {name: values.numpy() for name, values in codec.encode(states, keys_of(states)).items()}
    return pl.DataFrame(
        {
            name: [row.tobytes() for row in array] if array.ndim == 2 else pl.Series(array)
            for name, array in arrays.items()
        }
    )


def after_in_float64(step: LogitStep, logits: np.ndarray) -> np.ndarray:
    return {
        "none": logits,
        "softcap": np.tanh(logits / step.value) * step.value,
        "scale": logits * step.value,
        "divisor": logits / step.value,
    }[step.step]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# ---------------------------------------------------------------- the codec alone


@pytest.mark.parametrize("states_as", STATES)
@pytest.mark.parametrize("after", STEPS, ids=lambda step: step.step)
@pytest.mark.parametrize("has_bias", [True, False])
def test_logits_come_back_but_for_the_rounding_of_the_states(states_as: str, after: LogitStep, has_bias: bool) -> None:
    (weight, bias), states = random_head(), random_states()
    codec = Exact.of_head("d", weight, bias if has_bias else None, after, states_as)
    found = codec.decode(codec.encode(states, keys_of(states)))
    assert isinstance(found, DenseTargets)
    assert found.logits_NV.dtype == torch.float32
    projected = states.double().numpy() @ weight.double().numpy().T + (bias.double().numpy() if has_bias else 0)
    size = states.abs() if states_as == "float16" else states.abs().amax(-1, keepdim=True).expand_as(states)
    # No step after the projection increases a difference, except the scale, which is below 1 here.
    bound = (ROUNDING[states_as] * size) @ weight.abs().T + 1e-5
    assert (np.abs(found.logits_NV.numpy() - after_in_float64(after, projected)) <= bound.numpy()).all()


@pytest.mark.parametrize("after", STEPS, ids=lambda step: step.step)
def test_the_formula_in_words_is_the_one_that_is_computed(after: LogitStep) -> None:
    logits = torch.linspace(-9, 9, 19)
    outputs = eval(after.formula("x + 1"), {"tanh": torch.tanh, "x": logits})
    assert torch.allclose(outputs, after(logits + 1))


@pytest.mark.parametrize("states_as", STATES)
@pytest.mark.parametrize("vocabulary", [1, 40, 64, 65, 300])
def test_polars_sees_the_most_probable_ids_the_mass_outside_and_the_whole_entropy(
    states_as: str, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_module, "SLICE_POSITIONS", 7)
    (weight, bias), states = random_head(vocabulary=vocabulary), random_states()
    codec = Exact.of_head("d", weight, bias, LogitStep(), states_as)
    columns = codec.encode(states, keys_of(states))
    exact = log_softmax(codec.decode(columns).logits_NV.double().numpy())
    seen = frame(codec, states).select(
        ids=codec.ids_expr(),
        log_probs=codec.log_probs_expr(),
        exact=codec.exact_expr(),
        tail=codec.tail_expr(),
        entropy=codec.entropy_expr(),
    )
    shown = min(64, vocabulary)
    assert seen.schema == {
        "ids": pl.List(pl.Int64), "log_probs": pl.List(pl.Float64), "exact": pl.UInt32, "tail": pl.Float64,
        "entropy": pl.Float64,
    }  # fmt: skip
    for row, position in zip(seen.iter_rows(named=True), exact, strict=True):
        assert row["exact"] == len(row["ids"]) == shown
        np.testing.assert_allclose(row["log_probs"], np.sort(position)[::-1][:shown], atol=1e-5)
        np.testing.assert_allclose(row["log_probs"], position[row["ids"]], atol=1e-5)
        outside = np.exp(np.delete(position, row["ids"])).sum()
        assert row["tail"] == (pytest.approx(np.log(outside), abs=1e-5) if shown < vocabulary else -np.inf)
        assert row["entropy"] == pytest.approx(-(np.exp(position) * position).sum(), abs=1e-5)


def test_no_position_is_no_trouble() -> None:
    codec = Exact.of_head("d", *random_head(), LogitStep())
    empty = torch.zeros(0, 24)
    assert codec.decode(codec.encode(empty, keys_of(empty))).logits_NV.shape == (0, 200)
    raw = pl.DataFrame({"d.state": []}, schema={"d.state": pl.Binary})
    assert len(raw.select(codec.ids_expr().alias("ids"), codec.tail_expr().alias("tail"))) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 65_520.0])
def test_a_state_that_float16_cannot_hold_is_refused_with_its_position(bad: float) -> None:
    codec, states = Exact.of_head("d", *random_head(), LogitStep()), random_states()
    states[7, 3] = states[9, 0] = bad
    with pytest.raises(NotFiniteError) as error:
        codec.encode(states, keys_of(states))
    assert error.value.position == 7


def test_int8_holds_states_beyond_float16() -> None:
    codec, states = Exact.of_head("d", *random_head(), LogitStep(), "int8"), random_states()
    states[7, 3] = 70_000.0
    assert codec.decode(codec.encode(states, keys_of(states))).logits_NV.isfinite().all()


def test_logits_are_float32_even_inside_autocast_and_of_a_head_in_half_precision() -> None:
    weight, bias = random_head(dtype=torch.bfloat16)
    codec, states = Exact.of_head("d", weight, bias, LogitStep()), random_states()
    columns = codec.encode(states, keys_of(states))
    with torch.autocast("cpu", torch.bfloat16):
        found = codec.decode(columns).logits_NV
    held = codec.state_codec.decode(columns).double()
    assert torch.allclose(found.double(), held @ weight.double().T + bias.double(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_codec_comes_back_from_the_manifest_with_its_constants(dtype: torch.dtype, tmp_path: Path) -> None:
    weight, bias = random_head(dtype=dtype)
    codec = Exact.of_head("d", weight, bias, LogitStep(step="softcap", value=30.0), "int8")
    read: Any = TypeAdapter(AnyCodec).validate_json(codec.model_dump_json())
    assert read == codec
    save_file(codec.constants(), tmp_path / "d.safetensors")
    opened = read.with_constants(load_file(tmp_path / "d.safetensors"))
    assert {name: tensor.dtype for name, tensor in opened.constants().items()} == {"weight": dtype, "bias": dtype}
    columns = codec.encode(random_states(), keys_of(random_states()))
    assert torch.equal(opened.decode(columns).logits_NV, codec.decode(columns).logits_NV)


def test_without_its_projection_or_with_another_nothing_is_decoded() -> None:
    weight, bias = random_head()
    codec, states = Exact.of_head("d", weight, bias, LogitStep()), random_states()
    bare: Any = TypeAdapter(AnyCodec).validate_json(codec.model_dump_json())
    columns = bare.encode(states, keys_of(states))
    for use in (lambda: bare.decode(columns).logits_NV, bare.constants):
        with pytest.raises(DumpError, match=r"without the teacher's output projection, .* weights/d\.safetensors"):
            use()
    for foreign in ({}, {"weight": weight}, {"weight": weight + 1e-6, "bias": bias}, {"weight": weight.T, "bias": bias},
                    {"weight": weight.double(), "bias": bias}):  # fmt: skip
        with pytest.raises(DumpError, match=r"weights/d\.safetensors: not the output projection"):
            bare.with_constants(foreign)


# ---------------------------------------------------------------- through a whole dump


def stored_logits(path: Path, after: str = "none") -> dict[int, np.ndarray]:
    """Row -> float64 logits [positions, V] as the dump's card says, without any code of ours."""
    head = load_file(path / "weights" / "distribution.safetensors")
    weight, bias = head["weight"].double().numpy(), head["bias"].double().numpy() if "bias" in head else 0.0
    raw = pl.scan_parquet(path / "shards" / "*.parquet").select("row", "distribution.state").collect()
    rows = {}
    for row, states in raw.iter_rows():
        values = np.frombuffer(b"".join(states), np.float16).reshape(-1, weight.shape[1]).astype(np.float64)
        logits = values @ weight.T + bias
        rows[row] = np.tanh(logits / 3.0) * 3.0 if after == "softcap" else logits
    return rows


def decoded_rows(path: Path) -> dict[int, Tensor]:
    """Row -> logits, as a trainer reads them."""
    dump = Dump(path)
    codec = dump.distribution
    found = {}
    for index in range(dump.manifest.shards):
        shard = open_shard(shard_path(dump.path, index), dump.receipts[index])
        for number in range(shard.num_row_groups):
            group = read_row_group(dump.manifest, shard, number, [column.name for column in codec.columns])
            targets: Any = codec.decode({n: torch.from_numpy(v.copy()) for n, v in to_flat(group.columns).items()})
            for at, row in enumerate(group.rows.tolist()):
                found[row] = targets.logits_NV[group.position_offsets[at] : group.position_offsets[at + 1]]
    return found


@pytest.fixture(scope="module")
def gemma(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("causal-lm", "gemma2", final_logit_softcapping=3.0, head_dim=8)


@pytest.fixture(scope="module")
def dumped(make_dump: Callable[..., Path], gemma: Path) -> Path:
    """A teacher that caps its logits, its head wider than the tokenizer."""
    return make_dump("causal-lm", teacher=gemma, exact=True)


def test_positions_are_the_float64_log_softmax_of_what_is_stored(dumped: Path) -> None:
    logits = stored_logits(dumped, "softcap")
    positions = Dump(dumped).positions().collect()
    assert len(positions) == sum(len(row) for row in logits.values())
    for (row,), part in positions.partition_by("row", as_dict=True).items():
        exact = log_softmax(logits[row])
        order = part["position"].to_numpy()
        ids = np.asarray(part["ids"].to_list())
        assert ids.shape == (len(exact), 64)
        log_probs = np.asarray(part["log_probs"].to_list())
        np.testing.assert_allclose(log_probs, np.take_along_axis(exact[order], ids, 1), atol=1e-5)
        np.testing.assert_allclose(log_probs, -np.sort(-exact[order], axis=1)[:, :64], atol=1e-5)
        outside = 1 - np.exp(log_probs).sum(1)
        np.testing.assert_allclose(np.exp(part["tail"].to_numpy()), outside, atol=1e-6)
        np.testing.assert_allclose(part["entropy"].to_numpy(), -(np.exp(exact) * exact).sum(1)[order], atol=1e-5)


def test_the_vocabulary_is_gone_over_once_a_position(dumped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = Exact.logits
    monkeypatch.setattr(Exact, "logits", lambda self, states: seen.append(len(states)) or whole(self, states))
    dump = Dump(dumped)
    count = len(dump.positions().collect())
    assert sum(seen) == count
    seen.clear()
    dump.positions().select("row", "token_id", "label").collect()
    assert seen == []


@pytest.mark.parametrize("states_as", STATES)
@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_a_whole_dump_holds_transformers_own_logits(
    task: str, states_as: str, make_teacher: Callable[..., Path], make_dump: Callable[..., Path]
) -> None:
    teacher = make_teacher(task)
    path = make_dump(task, teacher=teacher, exact=True, exact_codec=states_as, batch_tokens=77)
    auto_class = transformers.AutoModelForCausalLM if task == "causal-lm" else transformers.AutoModelForMaskedLM
    model, found = auto_class.from_pretrained(teacher).eval(), decoded_rows(path)
    caught: list[Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    weight = model.get_output_embeddings().weight
    rows = Dump(path).scan().select("row", "input_ids", *(["positions"] if task == "masked-lm" else [])).collect()
    divergence = []
    for row, ids, *listed in rows.iter_rows():
        with torch.no_grad():
            outputs = model(input_ids=torch.tensor([ids], dtype=torch.long)).logits[0]
        where = listed[0] if listed else range(len(ids) - 1)
        states, expected = caught.pop()[0, list(where)], outputs[list(where)]
        size = states.abs() if states_as == "float16" else states.abs().amax(-1, keepdim=True).expand_as(states)
        assert ((found[row] - expected).abs() <= (ROUNDING[states_as] * size) @ weight.abs().T + 1e-4).all()
        p, q = expected.double().log_softmax(-1), found[row].double().log_softmax(-1)
        divergence.append((p.exp() * (p - q)).sum(-1))
    measured = Dump(path).manifest.measured["distribution"]
    # The sample is the whole corpus here; causal rows come in another order, which a mean does not mind.
    assert measured["rounding_kl"] == pytest.approx(torch.cat(divergence).mean().item(), rel=0.02)
    assert measured["bytes_per_position"] > {"float16": 64, "int8": 32, "int4": 16}[states_as]


def test_half_precision_keeps_its_head_as_it_is(make_dump: Callable[..., Path], dumped: Path, gemma: Path) -> None:
    path = make_dump("causal-lm", teacher=gemma, exact=True, dtype="bf16")
    assert load_file(path / "weights" / "distribution.safetensors")["weight"].dtype == torch.bfloat16
    found, reference = decoded_rows(path), stored_logits(path, "softcap")
    assert all(np.allclose(found[row].numpy(), reference[row], atol=1e-5) for row in reference)
    others = decoded_rows(dumped)
    assert sum((found[row] - others[row]).abs().sum() for row in found) > 0


def test_the_card_says_how_to_read_it(dumped: Path) -> None:
    card = (dumped / "README.md").read_text(encoding="utf-8")
    assert "`tanh((state @ weight.T + bias) / 3) * 3`" in card
    assert "`weights/distribution.safetensors`" in card
    assert "float16 x 32" in card


def test_every_view(dumped: Path, tmp_path: Path) -> None:
    dump = Dump(dumped)
    assert dump.verify() == []
    signal = dict(inspection.facts(dump))["signal"]
    assert "all 320 logits" in signal
    assert "KL of rounding" in signal
    head = "\n".join(inspection.readable_rows(dump, 3, 4, 8))
    assert "candidates and their probabilities" in head
    spreads = {spread.name: spread for spread in inspection.spreads(dump)}
    exact = np.concatenate([log_softmax(row) for row in stored_logits(dumped, "softcap").values()])
    assert spreads["entropy"].mean == pytest.approx(-(np.exp(exact) * exact).sum(1).mean(), abs=1e-5)
    assert spreads["top-1 probability"].mean == pytest.approx(np.exp(exact.max(1)).mean(), abs=1e-5)
    assert inspection.teacher_accuracy(dump) is not None


def test_states_are_stored_as_they_are(dumped: Path) -> None:
    """A compressor would spend time on them and win nothing."""
    dump = Dump(dumped)
    shard = open_shard(shard_path(dump.path, 0), dump.receipts[0])
    assert column_sizes([shard.metadata])["distribution.state"] > 0
    leaves = [shard.metadata.row_group(0).column(at) for at in range(shard.metadata.num_columns)]
    compression = {leaf.path_in_schema.split(".list")[0]: leaf.compression for leaf in leaves}
    assert compression == {"row": "ZSTD", "input_ids": "ZSTD", "distribution.state": "UNCOMPRESSED"}


def test_a_missing_damaged_or_foreign_projection_is_named(
    dumped: Path, make_dump: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(dumped, out)
    file = out / "weights" / "distribution.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DumpError, match=r"distribution\.safetensors: .*not the output projection of the teacher"):
        Dump(out)
    file.write_bytes(whole[:1000])
    with pytest.raises(DumpError, match=r"distribution\.safetensors: damaged"):
        Dump(out)
    other = make_dump("causal-lm", exact=True, data=[{"text": "the fox"}])
    shutil.copy(other / "weights" / "distribution.safetensors", file)
    with pytest.raises(DumpError, match=r"distribution\.safetensors: .*not the output projection of the teacher"):
        Dump(out)
    file.unlink()
    with pytest.raises(DumpError, match=r"distribution\.safetensors: missing, and distribution needs it"):
        Dump(out)


def test_the_projection_is_as_readable_as_the_manifest(dumped: Path) -> None:
    modes = {(dumped / name).stat().st_mode for name in ("manifest.json", "weights/distribution.safetensors")}
    assert len(modes) == 1


@pytest.mark.parametrize("states_as", STATES)
def test_a_dump_is_finished_as_it_was_begun(
    states_as: str, make_teacher: Callable[..., Path], make_dump: Callable[..., Path]
) -> None:
    """Outlier channels, which a sample tells, are those of the first run."""
    teacher = make_teacher("causal-lm")
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    model.model.norm.weight.data[5] = 60.0
    model.save_pretrained(teacher)
    path = make_dump("causal-lm", teacher=teacher, exact=True, exact_codec=states_as)
    codec: Any = Dump(path).distribution
    assert codec.outlier_channels == (() if states_as == "float16" else (5,))
    before = (path / "shards" / "00001.parquet").read_bytes()
    for file in (path / "shards").glob("00001.*"):
        file.unlink()
    make_dump("causal-lm", teacher=teacher, exact=True, exact_codec=states_as, data=path.parent / "corpus.jsonl",
              out=path)  # fmt: skip
    assert (path / "shards" / "00001.parquet").read_bytes() == before
    card = (path / "README.md").read_text(encoding="utf-8")
    assert ("Channels [5] are not in it but in `distribution.state.outliers`" in card) == (states_as != "float16")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("causal-lm", {"exact": True, "threshold": 0.1}, "--threshold and --exact exclude each other"),
        ("causal-lm", {"exact": True, "dense": True}, "--dense and --exact exclude each other"),
        ("causal-lm", {"exact": True, "levels": 100}, "--levels, --temperatures and --entropy"),
        ("causal-lm", {"exact": True, "tail": "mass"}, "--tail is for ids below a threshold; give it with --threshold"),
        ("causal-lm", {"exact": True, "exact_codec": "int2"}, "--exact-codec 'int2': use float16, int8, int4"),
        ("causal-lm", {"exact_codec": "int8"}, "--exact-codec says how --exact keeps last hidden states"),
        ("sequence-classification", {"exact": True}, "sequence-classification are dense, which is exact already"),
        ("token-classification", {"exact": True}, "token-classification are dense, which is exact already"),
        ("encoder", {"exact": True, "hidden": "1"}, "the task encoder has no distribution; leave out --exact"),
    ],
)
def test_what_exact_excludes(task: str, options: dict[str, Any], message: str, make_dump: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        make_dump(task, out=tmp_path / "out", **options)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("part", "message"), [("head", "output projection of LlamaForCausalLM"), ("norm", "row ")])
def test_nan_is_refused_where_it_is(
    part: str, message: str, make_teacher: Callable[..., Path], make_dump: Any, tmp_path: Path
) -> None:
    teacher = make_teacher("causal-lm")
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    weight = model.lm_head.weight if part == "head" else model.model.norm.weight
    weight.data.view(-1)[3] = torch.nan
    model.save_pretrained(teacher)
    for states_as in STATES:
        with pytest.raises(TeacherError, match=message):
            make_dump("causal-lm", teacher=teacher, exact=True, exact_codec=states_as, out=tmp_path / "out")


def test_a_state_beyond_float16_names_its_row_and_the_way_out(
    make_teacher: Callable[..., Path], make_dump: Any, tmp_path: Path
) -> None:
    teacher = make_teacher("causal-lm")
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    model.model.norm.weight.data[3] = 1e6
    model.save_pretrained(teacher)
    with pytest.raises(TeacherError, match=r"row \d+: .* --exact-codec int8"):
        make_dump("causal-lm", teacher=teacher, exact=True, out=tmp_path / "out")
    make_dump("causal-lm", teacher=teacher, exact=True, exact_codec="int8", out=tmp_path / "out")


# ---------------------------------------------------------------- students


def first_batch(source: DumpSource) -> Batch:
    assert source.distribution is not None
    return next(in_order(source, [column.name for column in source.distribution.columns], 8))


def loss_and_gradient(source: DumpSource, spec: Any) -> tuple[float, Tensor]:
    """Of the same fresh student on the source's first batch."""
    torch.manual_seed(0)
    student = build_student(
        TransformerStudent(layers=1, hidden_size=16, heads=2),
        Needs(
            auto_class=source.task.auto_class,
            vocab_size=source.vocabulary,
            tokenizer_size=len(source.tokenizer),
            label_names=None,
            pad_token_id=source.tokenizer.pad_token_id,
            max_length=source.max_length,
        ),
    ).eval()
    batch = first_batch(source)
    outputs = outputs_of(student, batch, source, wants_hidden=False)
    loss, _ = total_loss((spec,), outputs, targets_of(batch, source), nn.ModuleDict())
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize(
    "spec",
    [KLLoss(), KLLoss(temperature=3.0), LogitsMSELoss(), TeacherLabelLoss()],
    ids=["kl", "kl at T = 3", "logits-mse", "teacher-label"],
)
@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_a_student_learns_what_it_learns_from_all_logits(
    task: str, spec: Any, make_teacher: Callable[..., Path], make_dump: Callable[..., Path]
) -> None:
    teacher = make_teacher(task)
    exact = DumpSource(make_dump(task, teacher=teacher, exact=True))
    dense = DumpSource(make_dump(task, teacher=teacher, dense=True))
    assert type(exact.distribution) is not type(dense.distribution)
    spec.check(exact)
    (found, gradient), (wanted, reference) = (loss_and_gradient(source, spec) for source in (exact, dense))
    # The states are off by 2**-12 of themselves, in the mean by far less.
    assert found == pytest.approx(wanted, rel=1e-3)
    assert (gradient - reference).norm() < 1e-3 * reference.norm()
    assert reference.norm() > 0
