"""The objective: losses weighted and summed, blind to padding, and zero for a student that is its teacher."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from shared.dump.codecs import DenseTargets, Float16Vectors, SparseTargets
from shared.dump.signals import SignalKey
from shared.errors import RecipeError
from student_train.data.batch import Batch
from student_train.data.batches import collate
from student_train.data.sources import DumpSource, Source
from student_train.forward.observe import outputs_of, targets_of
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.forward.teacher_vectors import TeacherVectors
from student_train.losses import formulas
from student_train.losses.divergence import Divergence
from student_train.losses.hidden import HiddenLoss
from student_train.losses.logits import GoldLoss, KLLoss, LogitsMSELoss, TeacherLabelLoss
from student_train.losses.projections import make_projections
from student_train.losses.total import total_loss
from student_train.students import BiLSTMStudent, Needs, PretrainedStudent, TransformerStudent, build_student

TASKS = ("causal-lm", "masked-lm", "sequence-classification", "token-classification", "encoder")
# Codes so fine that a student with the teacher's weights has a loss of zero; one dump with a sampled tail.
SELECTIONS: dict[str, dict[str, Any]] = {
    "causal-lm": {"top_k": 30, "levels": 65_000},
    "masked-lm": {"threshold": 0.02, "levels": 65_000},
}
TRANSFORMER = TransformerStudent(layers=1, hidden_size=16, heads=2)
BILSTM = BiLSTMStudent(embedding_size=6, hidden_size=8)


@pytest.fixture(scope="module")
def teachers(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    return {task: make_teacher(task) for task in TASKS}


@pytest.fixture(scope="module")
def dumps(make_dump: Callable[..., Path], teachers: dict[str, Path]) -> dict[str, DumpSource]:
    return {
        task: DumpSource(make_dump(task, teacher=teachers[task], hidden="0,2", **SELECTIONS.get(task, {})))
        for task in TASKS
    }


def student_for(source: Source, spec: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build_student(
        spec,
        Needs(
            auto_class=source.task.auto_class,
            vocab_size=source.vocabulary,
            tokenizer_size=len(source.tokenizer),
            label_names=source.label_names,
            pad_token_id=source.tokenizer.pad_token_id,
            max_length=source.max_length,
        ),
    )
    return model.eval()


def batch_of(source: Source, rows: list[int]) -> Batch:
    """Rows of the first row group, with every column."""
    codecs = [*source.vectors.values(), *([source.distribution] if source.distribution else [])]
    loaded = {0: source.load(0, [column.name for codec in codecs for column in codec.columns])}
    return collate(loaded, np.asarray([[0, row] for row in rows]), source)


def loss_of(
    spec: Any, model: PreTrainedModel, projections: nn.ModuleDict, batch: Batch, source: Source
) -> torch.Tensor:
    outputs = outputs_of(model, batch, source, wants_hidden=bool(spec.student_layers))
    return total_loss((spec,), outputs, targets_of(batch, source), projections)[0]


def hidden_loss(teacher_layer: int, student_layer: int, **options: Any) -> HiddenLoss:
    return HiddenLoss(teacher_layer=teacher_layer, student_layer=student_layer, **options)


# ---------------------------------------------------------------- the weighted sum


def test_the_total_is_the_weighted_sum_and_the_parts_are_not_weighted() -> None:
    logits, teacher = torch.randn(6, 3), torch.randn(6, 3)
    labels = torch.tensor([0, 1, 2, -100, 1, 0])
    specs = (KLLoss(weight=2.0, temperature=3.0), LogitsMSELoss(weight=0.5), TeacherLabelLoss(), GoldLoss(weight=4.0))
    total, parts = total_loss(
        specs, Outputs(logits, ()), BatchTargets(DenseTargets(teacher), {}, labels), nn.ModuleDict()
    )
    expected = {
        "kl": formulas.kl_dense(logits, teacher, 3.0),
        "logits-mse": (logits - teacher).square().mean(),
        "teacher-label": nn.functional.cross_entropy(logits, teacher.argmax(-1)),
        "gold": nn.functional.cross_entropy(logits, labels),
    }
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )
    weights = {"kl": 2.0, "logits-mse": 0.5, "teacher-label": 1.0, "gold": 4.0}
    assert float(total) == pytest.approx(sum(weights[name] * float(value) for name, value in expected.items()))


def sparse_targets(seed: int = 0, positions: int = 4, classes: int = 10) -> tuple[SparseTargets, torch.Tensor]:
    """(three exact ids, two sampled ones, which weigh more, and padding; the teacher's log-probabilities)."""
    generator = torch.Generator().manual_seed(seed)
    log_probs_NV = torch.randn(positions, classes, generator=generator).log_softmax(-1)
    order_NV = log_probs_NV.argsort(-1, descending=True)
    exact_NK, sampled_NK = order_NV[:, :3], order_NV[:, [4, 7]]
    sampled_log_probs_NK, nothing_NK = torch.full((positions, 2), -0.1), torch.full((positions, 1), -torch.inf)
    targets = SparseTargets(
        ids_NK=torch.cat([exact_NK, sampled_NK, exact_NK[:, :1]], dim=1),
        log_probs_NK=torch.cat([log_probs_NV.gather(1, exact_NK), sampled_log_probs_NK, nothing_NK], dim=1),
        tail_N=log_probs_NV.gather(1, order_NV[:, 3:]).logsumexp(-1),
        sampled_NK=torch.tensor([False, False, False, True, True, False]).expand(positions, -1),
        log_sums_N={2.0: (log_probs_NV / 2.0).logsumexp(-1)},
    )
    return targets, log_probs_NV


def without_samples(targets: SparseTargets) -> SparseTargets:
    """The same exact ids from a dump that has no others."""
    return SparseTargets(targets.ids_NK[:, :3], targets.log_probs_NK[:, :3], targets.tail_N, None, targets.log_sums_N)


def kl(targets: SparseTargets, logits: torch.Tensor, **options: Any) -> float:
    return float(KLLoss(**options).value(Outputs(logits, ()), BatchTargets(targets, {}, torch.full((4,), -100)), None))


def test_sparse_losses_get_ids_log_probabilities_tail_and_their_options() -> None:
    logits, (targets, _) = torch.randn(4, 10), sparse_targets()
    exact = without_samples(targets)
    arguments = exact.ids_NK, exact.log_probs_NK, exact.tail_N
    options: dict[str, Any]
    for options in ({}, {"temperature": 3.0}, {"tail": "renormalise"}, {"tail": "renormalise", "temperature": 3.0}):
        expected = formulas.kl_sparse(logits, *arguments, **options)
        assert kl(exact, logits, **options) == pytest.approx(float(expected))
    assert kl(exact, logits, tail="class") == kl(exact, logits)
    batch_targets = BatchTargets(exact, {}, torch.full((4,), -100))
    hard = TeacherLabelLoss().value(Outputs(logits, ()), batch_targets, None)
    assert float(hard) == pytest.approx(float(nn.functional.cross_entropy(logits, exact.ids_NK[:, 0])))


def test_a_temperature_whose_log_sums_the_dump_keeps_is_that_of_the_whole_vocabulary() -> None:
    logits, (targets, log_probs_NV) = torch.randn(4, 10), sparse_targets()
    exact = without_samples(targets)
    p, q = ((side / 2.0).softmax(-1) for side in (log_probs_NV, logits))
    p, q = (
        torch.cat([side.gather(1, exact.ids_NK), side.scatter(1, exact.ids_NK, 0.0).sum(1, keepdim=True)], dim=1)
        for side in (p, q)
    )
    expected = 4.0 * (p * (p / q).log()).sum(1).mean()
    assert kl(exact, logits, temperature=2.0) == pytest.approx(float(expected), rel=1e-4)
    without_sums = SparseTargets(exact.ids_NK, exact.log_probs_NK, exact.tail_N)
    assert kl(without_sums, logits, temperature=2.0) != pytest.approx(float(expected), rel=1e-2)


def test_sampled_ids_stand_for_the_tail_unless_the_recipe_has_it_as_a_class_or_not_at_all() -> None:
    logits, (targets, _) = torch.randn(4, 10), sparse_targets()
    sampled = float(formulas.kl_sampled(logits, targets.ids_NK, targets.log_probs_NK))
    assert kl(targets, logits) == kl(targets, logits, tail="sampled") == pytest.approx(sampled)
    exact = without_samples(targets)
    for tail in ("class", "renormalise"):
        for temperature in (1.0, 2.0, 3.0):
            options = {"tail": tail, "temperature": temperature}
            assert kl(targets, logits, **options) == pytest.approx(kl(exact, logits, **options), rel=1e-5)
    assert len({round(kl(targets, logits, tail=tail), 4) for tail in ("sampled", "class", "renormalise")}) == 3


def test_exact_targets_are_those_whose_probability_is_known() -> None:
    targets, _ = sparse_targets()
    exact = targets.exact()
    assert exact.sampled_NK is None
    assert torch.equal(exact.log_probs_NK[:, :3], targets.log_probs_NK[:, :3])
    assert (exact.log_probs_NK[:, 3:] == -torch.inf).all()
    assert torch.equal(exact.tail_N, targets.tail_N)
    assert exact.log_sums_N is targets.log_sums_N
    assert exact.exact() is exact


def test_the_teachers_choice_is_the_best_exact_id_however_much_a_sampled_one_weighs() -> None:
    targets, log_probs_NV = sparse_targets()
    assert torch.equal(targets.argmax(), log_probs_NV.argmax(-1))
    all_drawn = SparseTargets(
        torch.tensor([[5, 2, 8]]), torch.tensor([[-1.5, -0.5, -torch.inf]]), torch.zeros(1), torch.ones(1, 3).bool()
    )
    assert all_drawn.argmax().tolist() == [2]


def test_ids_beyond_the_students_head_join_the_tail_and_sampled_ones_leave_it_as_it_is() -> None:
    """The tail already includes the mass that the sampled ids represent."""
    ids = torch.tensor([[1, 9, 3, 8], [1, 2, 3, 4]])
    log_probs = torch.tensor([[0.4, 0.2, 0.1, 0.1], [0.4, 0.2, 0.1, 0.1]]).log()
    is_sampled = torch.tensor([[False, False, True, True]] * 2)
    targets = SparseTargets(ids, log_probs, torch.tensor([0.4, 0.4]).log(), is_sampled, {2.0: torch.zeros(2)})
    fit = targets.resized(8)
    assert fit.ids_NK.max() < 8
    assert fit.log_probs_NK.exp().tolist() == [pytest.approx([0.4, 0, 0.1, 0]), pytest.approx([0.4, 0.2, 0.1, 0.1])]
    assert fit.tail_N.exp().tolist() == pytest.approx([0.6, 0.4])
    assert fit.sampled_NK is not None
    assert torch.equal(fit.sampled_NK, is_sampled)
    assert fit.log_sums_N is targets.log_sums_N
    no_samples = SparseTargets(ids, log_probs, torch.tensor([0.2, 0.2]).log()).resized(8)
    assert no_samples.tail_N.exp().tolist() == pytest.approx([0.5, 0.2])
    for tail in ("sampled", "class", "renormalise"):
        spec, outputs = KLLoss(tail=tail), Outputs(torch.randn(2, 8), ())
        assert spec.value(outputs, BatchTargets(targets, {}, torch.zeros(2)), None).isfinite()


def test_a_filling_beyond_the_students_head_points_into_it_and_adds_nothing() -> None:
    targets = SparseTargets(torch.tensor([[1, 9]]), torch.tensor([[-0.5, -torch.inf]]), torch.tensor([-1.0]))
    fit = targets.resized(8)
    assert fit.ids_NK.max() < 8
    assert fit.tail_N.tolist() == [-1.0]
    assert fit.log_probs_NK.tolist() == [[-0.5, -torch.inf]]


def test_a_dense_teacher_has_no_mass_beyond_its_own_head() -> None:
    logits = torch.randn(3, 5)
    assert torch.equal(DenseTargets(logits).resized(4).logits_NV, logits[:, :4])
    wider = DenseTargets(logits).resized(7).logits_NV
    assert torch.equal(wider[:, :5], logits)
    assert (wider[:, 5:] == -torch.inf).all()


def test_the_hidden_loss_takes_its_layer_its_signal_its_projection_and_its_metric() -> None:
    layers = tuple(torch.randn(5, 4) for _ in range(3))
    of_layers = {0: torch.randn(5, 6), 6: torch.randn(5, 6), 7: torch.randn(5, 4)}
    vectors = {SignalKey("hidden", layer): vector.half().float() for layer, vector in of_layers.items()}
    codecs = {key: Float16Vectors(name=key.name, width=vector.shape[1]) for key, vector in vectors.items()}
    coded = {key: TeacherVectors(codec, codec.encode(vectors[key])) for key, codec in codecs.items()}
    batch_targets, outputs = BatchTargets(None, coded, torch.zeros(0)), Outputs(None, layers)
    linear = nn.Linear(4, 6)
    linear.requires_grad_(False)
    mse = hidden_loss(6, 1).value(outputs, batch_targets, nn.ModuleDict({"6": linear}))
    assert float(mse) == pytest.approx(float(formulas.hidden_mse(linear(layers[1]), vectors[SignalKey("hidden", 6)])))
    cosine = hidden_loss(7, -1, metric="cosine").value(outputs, batch_targets, None)
    expected = 1 - nn.functional.cosine_similarity(layers[2], vectors[SignalKey("hidden", 7)], dim=-1).mean()
    assert float(cosine) == pytest.approx(float(expected))


# ---------------------------------------------------------------- a student that is its teacher


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_a_student_that_is_its_teacher_has_no_loss(
    task: str, teachers: dict[str, Path], dumps: dict[str, DumpSource]
) -> None:
    """Alignment from end to end: a position, row or layer out of place would show, as the teacher is far from flat."""
    source = dumps[task]
    itself = student_for(source, PretrainedStudent(path=str(teachers[task])))
    batch = batch_of(source, [0, 15, 7, 3])
    none = nn.ModuleDict()
    for layer in (0, 2):
        assert float(loss_of(hidden_loss(layer, layer), itself, none, batch, source)) < 1e-5
    assert float(loss_of(hidden_loss(0, 2), itself, none, batch, source)) > 0.1
    if source.distribution is None:
        return
    tail: Any = "class" if source.distribution.samples else None
    kinds = [KLLoss(tail=tail), KLLoss(tail=tail, temperature=3.0), KLLoss(tail="renormalise")]
    for spec in [*kinds, LogitsMSELoss()] if source.has_dense_logits else kinds:
        assert float(loss_of(spec, itself, none, batch, source)) < 1e-5, spec
    logits = outputs_of(itself, batch, source, wants_hidden=False).logits_NV
    targets = targets_of(batch, source).distributions
    assert logits is not None
    assert targets is not None
    assert (logits.argmax(-1) == targets.argmax()).float().mean() > 0.98  # but for ties after rounding
    shifted = Outputs(logits.roll(1, 0), ())
    assert float(KLLoss().value(shifted, targets_of(batch, source), None)) > 0.005, "a flat teacher shows nothing"


@torch.no_grad()
def test_pairs_reach_the_student_with_their_token_types(
    make_dump: Callable[..., Path], teachers: dict[str, Path], texts: list[str]
) -> None:
    teacher = teachers["sequence-classification"]
    rows = [{"text": one, "second": other} for one, other in zip(texts[:16], texts[16:32], strict=True)]
    source = DumpSource(make_dump("sequence-classification", teacher=teacher, data=rows, pair_column="second"))
    itself = student_for(source, PretrainedStudent(path=str(teacher)))
    batch = batch_of(source, [0, 9, 4])
    assert float(loss_of(LogitsMSELoss(), itself, nn.ModuleDict(), batch, source)) < 1e-6
    batch = replace(batch, token_type_ids=None)
    assert float(loss_of(LogitsMSELoss(), itself, nn.ModuleDict(), batch, source)) > 1e-4


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize(
    ("task", "student"),
    [(task, TRANSFORMER) for task in TASKS] + [("sequence-classification", BILSTM), ("token-classification", BILSTM)],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_padding_changes_no_loss_and_no_gradient(task: str, student: Any, dumps: dict[str, DumpSource]) -> None:
    """The mean over a padded batch is that over its rows, each alone and unpadded, weighted by what they count for."""
    source = dumps[task]
    model = student_for(source, student)
    rows = [0, 15, 8]  # the longest, the shortest and one between
    specs: list[Any] = [hidden_loss(2, -1), hidden_loss(2, 1, metric="cosine")]
    if source.distribution is not None:
        specs += [KLLoss(), KLLoss(temperature=2.0, tail="renormalise"), TeacherLabelLoss(), GoldLoss()]
        specs += [LogitsMSELoss()] if source.has_dense_logits else []
    for spec in specs:
        projections = make_projections((spec,), source, model)
        parameters = [*model.parameters(), *projections.parameters()]

        def run(
            rows: list[int], spec: Any = spec, projections: Any = projections, parameters: Any = parameters
        ) -> tuple[int, torch.Tensor, list[torch.Tensor]]:
            batch = batch_of(source, rows)
            loss = loss_of(spec, model, projections, batch, source)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            if spec.student_layers:
                count = int(batch.attention_mask.sum())
            else:
                count = int((batch.labels != -100).sum()) if spec.kind == "gold" else len(batch.positions)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
            return count, loss.detach(), filled

        alone = [run([row]) for row in rows]
        count, together, gradients = run(rows)
        assert count == sum(part[0] for part in alone)
        assert float(together) == pytest.approx(sum(float(n * loss) for n, loss, _ in alone) / max(count, 1), rel=1e-4)
        for index, gradient in enumerate(gradients):
            expected = sum((n * parts[index] for n, _, parts in alone), torch.zeros(())) / max(count, 1)
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
        assert any(gradient.abs().max() > 0 for gradient in gradients)


# ---------------------------------------------------------------- projections


def shapes(projections: nn.ModuleDict) -> dict[str, tuple[int, int]]:
    named = projections.named_modules()
    return {name: (each.in_features, each.out_features) for name, each in named if isinstance(each, nn.Linear)}


def test_a_projection_is_made_only_where_widths_differ(dumps: dict[str, DumpSource], teachers: dict[str, Path]) -> None:
    source = dumps["sequence-classification"]
    specs = (KLLoss(), hidden_loss(0, 0), hidden_loss(2, -1))
    narrow = make_projections(specs, source, student_for(source, TRANSFORMER))
    assert shapes(narrow) == {"1.0": (16, 32), "2.2": (16, 32)}
    mixed = make_projections(specs, source, student_for(source, BILSTM))
    assert shapes(mixed) == {"1.0": (6, 32), "2.2": (8, 32)}
    same = student_for(source, PretrainedStudent(path=str(teachers["sequence-classification"])))
    assert not make_projections(specs, source, same)
    assert not make_projections((KLLoss(),), source, same)


def test_making_projections_leaves_the_student_as_it_was(dumps: dict[str, DumpSource]) -> None:
    source = dumps["sequence-classification"]
    model = student_for(source, TRANSFORMER).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_projections((hidden_loss(2, 1),), source, model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_the_student_lacks_is_refused(dumps: dict[str, DumpSource], layer: int) -> None:
    source = dumps["sequence-classification"]
    model = student_for(source, TRANSFORMER)
    with pytest.raises(RecipeError, match=rf"loss\.1\.student_layer = {layer}: the student has layers 0 to 1"):
        make_projections((KLLoss(), hidden_loss(2, layer)), source, model)


# ---------------------------------------------------------------- what a source must have


def test_losses_refuse_a_source_without_what_they_need(
    make_dump: Callable[..., Path], dumps: dict[str, DumpSource], texts: list[str]
) -> None:
    top_k, encoder = dumps["causal-lm"], dumps["encoder"]
    for spec in (KLLoss(), LogitsMSELoss(), TeacherLabelLoss()):
        with pytest.raises(
            RecipeError, match=rf"'{spec.kind}' needs the signal 'distribution', .* has hidden\.0, hidd"
        ):
            spec.check(encoder)
    with pytest.raises(RecipeError, match=r"'logits-mse' needs all logits, .* keeps only some of them"):
        LogitsMSELoss().check(top_k)
    with pytest.raises(RecipeError, match=r"'hidden\.1' needs the signal 'hidden\.1', .* has distribution, hidden\.0"):
        hidden_loss(1, 0).check(top_k)
    unlabelled = DumpSource(make_dump("sequence-classification", data=texts[:5]))
    with pytest.raises(RecipeError, match=r"'gold' needs gold labels, .* has none"):
        GoldLoss().check(unlabelled)
    for spec in (KLLoss(), LogitsMSELoss(), TeacherLabelLoss(), GoldLoss(), hidden_loss(2, 0)):
        spec.check(dumps["sequence-classification"])


def test_kl_refuses_what_a_dump_of_its_selection_cannot_give(make_dump: Callable[..., Path], texts: list[str]) -> None:
    selections: dict[str, dict[str, Any]] = {
        "sampled": {"threshold": 0.1},
        "summed": {"threshold": 0.1, "tail": "mass"},
        "top-k": {"top_k": 3},
        "drawn": {"draws": 5},
    }
    found = {
        name: DumpSource(make_dump("masked-lm", data=texts[:3], **options)) for name, options in selections.items()
    }
    found["dense"] = DumpSource(make_dump("sequence-classification", data=texts[:3]))
    fine: dict[str, list[dict[str, Any]]] = {
        "sampled": [{}, {"tail": "sampled"}, {"tail": "class", "temperature": 2}, {"tail": "renormalise"}],
        "summed": [{}, {"tail": "class"}, {"tail": "renormalise", "temperature": 2}, {"temperature": 2}],
        "top-k": [{}, {"tail": "class"}, {"tail": "renormalise", "temperature": 2}, {"temperature": 2}],
        "drawn": [{}, {"tail": "sampled"}],
        "dense": [{}, {"temperature": 2}],
    }
    for name, kinds in fine.items():
        for options in kinds:
            KLLoss(**options).check(found[name])
    for name, tail in (("sampled", None), ("sampled", "sampled"), ("drawn", None), ("drawn", "sampled")):
        with pytest.raises(RecipeError, match=r"cannot apply temperature = 2 to sampled ids"):
            KLLoss(temperature=2, tail=tail).check(found[name])
    for name in ("summed", "top-k", "dense"):
        with pytest.raises(RecipeError, match=r"tail = \"sampled\" needs a sampled tail"):
            KLLoss(tail="sampled").check(found[name])
    for tail in ("class", "renormalise", "gold"):
        with pytest.raises(RecipeError, match=rf"tail = \"{tail}\" needs exact probabilities, .* only random draws"):
            KLLoss(tail=tail).check(found["drawn"])
    for divergence in ("reverse", "js"):
        for options in ({}, {"tail": "class"}, {"tail": "renormalise"}, {"tail": "class", "temperature": 2}):
            KLLoss(divergence=divergence, **options).check(found["top-k"])
        KLLoss(divergence=divergence, tail="class").check(found["sampled"])
        KLLoss(divergence=divergence).check(found["dense"])
        for name in ("sampled", "drawn"):
            with pytest.raises(RecipeError, match=rf"cannot compute the divergence '{divergence}' from sampled ids"):
                KLLoss(divergence=divergence).check(found[name])
    for name in ("sampled", "summed", "top-k"):
        KLLoss(tail="gold").check(found[name])
    with pytest.raises(RecipeError, match=r"tail = \"gold\" needs a tail, .* holds all logits"):
        KLLoss(tail="gold").check(found["dense"])
    with pytest.raises(RecipeError, match=r"tail = \"gold\" needs temperature = 1, but here it is 2"):
        KLLoss(tail="gold", temperature=2).check(found["top-k"])


def test_beta_belongs_to_jensen_shannon_and_lies_between_its_limits() -> None:
    assert KLLoss(divergence="js", beta=0.1).beta == 0.1
    with pytest.raises(ValueError, match='beta is for divergence = "js", but here it is "reverse"'):
        KLLoss(divergence="reverse", beta=0.1)
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match="beta"):
            KLLoss(divergence="js", beta=beta)


def test_divergences_and_the_gold_tail_reach_their_formulas() -> None:
    logits, (targets, log_probs_NV) = torch.randn(4, 10), sparse_targets()
    exact = targets.exact()
    kept, labels = (exact.ids_NK, exact.log_probs_NK, exact.tail_N), torch.tensor([3, 0, 9, -100])
    for divergence in (Divergence("reverse"), Divergence("js"), Divergence("js", 0.2)):
        beta = None if divergence.beta == 0.5 else divergence.beta
        options: dict[str, Any] = {"divergence": divergence.kind, "beta": beta}
        expected = formulas.kl_sparse(logits, *kept, divergence=divergence)
        assert kl(targets, logits, tail="class", **options) == pytest.approx(float(expected))
        expected = formulas.kl_dense(logits, log_probs_NV, divergence=divergence)
        assert kl(DenseTargets(log_probs_NV), logits, **options) == pytest.approx(float(expected))
    found = KLLoss(tail="gold").value(Outputs(logits, ()), BatchTargets(targets, {}, labels), None)
    torch.testing.assert_close(found, formulas.kl_sparse(logits, *formulas.tail_to_labels(*kept, labels)))


@pytest.mark.parametrize("kind", ["sparse", "dense", "made on demand"])
def test_a_part_of_the_targets_is_that_of_all(kind: str) -> None:
    targets, log_probs_NV = sparse_targets()
    whole: Any = targets if kind == "sparse" else DenseTargets(log_probs_NV)
    if kind == "made on demand":
        whole = DenseTargets(log_probs_NV.exp(), torch.log)
    logits, labels = torch.randn(4, 10), torch.full((4,), -100)
    expected = kl(whole, logits)
    parts = [
        float(KLLoss().value(Outputs(logits[part], ()), BatchTargets(whole, {}, labels).part(part), None)) * size
        for part, size in ((slice(0, 1), 1), (slice(1, 4), 3))
    ]
    assert sum(parts) / 4 == pytest.approx(expected, rel=1e-5)
    assert torch.equal(torch.cat([whole.part(slice(0, 3)).argmax(), whole.part(slice(3, 4)).argmax()]), whole.argmax())
    if kind == "sparse":
        part = whole.part(slice(1, 3))
        assert torch.equal(part.log_sums_N[2.0], whole.log_sums_N[2.0][1:3])
        assert torch.equal(part.sampled_NK, whole.sampled_NK[1:3])
