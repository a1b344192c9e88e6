"""Losses on paths against the enumeration of all paths in float64, and what they refuse.

Shapes: N positions, C classes, B rows, K paths.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.dump.codecs import DenseTargets
from shared.errors import RecipeError
from student_train import distill
from student_train.chains.batch import Chains, legal_transitions
from student_train.chains.crf import Transitions
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses import formulas
from student_train.losses.base import Loss
from student_train.losses.structure import CRFGoldLoss, KBestLoss, StructureLoss
from tests.student_train.runs import BILSTM, TRANSFORMER, recipe

BIO = ("O", "B-X", "I-X", "B-Y", "I-Y")
OTHER = ("N", "V", "A", "P", "D")  # no scheme
COUNTS = (3, 0, 1, 4)
N, C = sum(COUNTS), len(BIO)

seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from([BIO, OTHER])


def drawn(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(
    seed: int, names: tuple[str, ...], learnt: bool, labels: Tensor | None = None
) -> tuple[Outputs, BatchTargets, list[Tensor]]:
    """A student's outputs, the teacher's targets, and what gradients are for."""
    student_NC, teacher_NC = drawn(seed, N, C).requires_grad_(), drawn(seed + 1, N, C)
    transitions = None
    if learnt:
        transitions = Transitions(drawn(seed + 2, C, C), drawn(seed + 3, C), drawn(seed + 4, C))
        for each in transitions:
            each.requires_grad_()
    chains = Chains(torch.tensor(COUNTS), legal_transitions(names))
    labels_N = torch.full((N,), -100) if labels is None else labels
    targets = BatchTargets(DenseTargets(teacher_NC), {}, labels_N, chains=chains)
    return Outputs(student_NC, (), transitions=transitions), targets, [student_NC, *(transitions or ())]


def is_legal(names: tuple[str, ...], path: tuple[int, ...]) -> bool:
    tags = [names[tag] for tag in path]
    if names == OTHER:
        return True
    return all(
        tag[0] != "I" or (before != "O" and before[2:] == tag[2:]) for before, tag in itertools.pairwise(["O", *tags])
    )


def rows(logits_NC: Tensor) -> list[Tensor]:
    return list(logits_NC.split(COUNTS))


def scores_of_all_paths(
    logits_LC: Tensor, names: tuple[str, ...], learnt: Transitions | None, temperature: float = 1.0
) -> tuple[list[tuple[int, ...]], Tensor]:
    """All paths that the distribution has, and the score of each; without learnt transitions the legal ones."""
    paths = [path for path in itertools.product(range(C), repeat=len(logits_LC)) if learnt or is_legal(names, path)]
    log_probs_LC = logits_LC.log_softmax(-1)
    scores = []
    for path in paths:
        score = torch.zeros((), dtype=torch.float64)
        for at, tag in enumerate(path):
            score = score + log_probs_LC[at, tag]
        if learnt is not None:
            score = score + learnt.first_C[path[0]] + learnt.last_C[path[-1]]
            for before, tag in itertools.pairwise(path):
                score = score + learnt.between_CC[before, tag]
        scores.append(score / temperature)
    return paths, torch.stack(scores)


def longhand(outputs: Outputs, targets: BatchTargets, names: tuple[str, ...], temperature: float = 1.0) -> list[Any]:
    """For each row with words: (paths -> their log-probability for the student, for the teacher)."""
    assert outputs.logits_NV is not None
    assert isinstance(targets.distributions, DenseTargets)
    found = []
    for student_LC, teacher_LC in zip(rows(outputs.logits_NV), rows(targets.distributions.logits_NV), strict=True):
        if len(student_LC):
            paths, student_P = scores_of_all_paths(student_LC, names, outputs.transitions, temperature)
            own_paths, teacher_P = scores_of_all_paths(teacher_LC, names, None, temperature)
            student = dict(zip(paths, student_P.log_softmax(0), strict=True))
            found.append((student, dict(zip(own_paths, teacher_P.log_softmax(0), strict=True))))
    return found


def check_equal(mine: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(mine, theirs)
    gradients = [torch.autograd.grad(each, inputs, materialize_grads=True) for each in (mine, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@given(seeds, names, st.booleans(), st.sampled_from([0.5, 1.0, 2.0]))
@example(0, BIO, True, 2.0)
@settings(max_examples=5)
def test_structure_is_the_kl_of_the_distributions_over_all_paths(
    seed: int, names: tuple[str, ...], learnt: bool, temperature: float
) -> None:
    outputs, targets, inputs = batch(seed, names, learnt)
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in longhand(outputs, targets, names, temperature):
        for path, log_prob in teacher.items():
            total = total + log_prob.exp() * (log_prob - student[path])
    value = StructureLoss(temperature=temperature).value(outputs, targets, None)
    check_equal(value, total / N * temperature**2, inputs)


def test_structure_is_kl_where_no_transition_matters() -> None:
    outputs, targets, inputs = batch(5, OTHER, learnt=False)
    assert outputs.logits_NV is not None
    assert isinstance(targets.distributions, DenseTargets)
    plain = formulas.kl_dense(outputs.logits_NV, targets.distributions.logits_NV, 2.0)
    check_equal(StructureLoss(temperature=2.0).value(outputs, targets, None), plain, inputs)


@given(seeds, names, st.booleans(), st.integers(1, 12), st.booleans())
@example(0, BIO, True, 12, True)
@settings(max_examples=6)
def test_k_best_is_the_likelihood_of_the_teachers_best_paths(
    seed: int, names: tuple[str, ...], learnt: bool, k: int, fuzzy: bool
) -> None:
    """One row has a single word, and therefore fewer than 12 paths."""
    outputs, targets, inputs = batch(seed, names, learnt)
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in longhand(outputs, targets, names):
        best = sorted(teacher, key=lambda path: -float(teacher[path]))[:k]
        weights = torch.stack([teacher[path] for path in best]).softmax(0)
        total = total - sum(weight * student[path] for weight, path in zip(weights, best, strict=True))
        if fuzzy:
            tags_at = [set(tags) for tags in zip(*best, strict=True)]
            inside = [path for path in student if all(tag in tags for tag, tags in zip(path, tags_at, strict=True))]
            total = total - torch.stack([student[path] for path in inside]).logsumexp(0)
    check_equal(KBestLoss(k=k, fuzzy=fuzzy).value(outputs, targets, None), total / N, inputs)


@given(seeds, st.lists(st.integers(-1, C - 1), min_size=N, max_size=N))
@settings(max_examples=8)
def test_crf_gold_is_the_likelihood_of_the_known_tags(seed: int, tags: list[int]) -> None:
    """Tags that break the scheme are no problem: learnt transitions are not masked."""
    labels = torch.tensor([-100 if tag < 0 else tag for tag in tags])
    outputs, targets, inputs = batch(seed, BIO, True, labels)
    total, known = torch.zeros((), dtype=torch.float64), (labels >= 0).sum()
    gold = [row.tolist() for row in labels.split(COUNTS) if len(row)]
    for (student, _), row in zip(longhand(outputs, targets, BIO), gold, strict=True):
        fitting = [
            path for path in student if all(tag in (own, -100) for tag, own in zip(row, path, strict=True) if tag >= 0)
        ]
        total = total - torch.stack([student[path] for path in fitting]).logsumexp(0)
    loss = CRFGoldLoss()
    assert loss.counted(labels) == known
    check_equal(loss.value(outputs, targets, None), total / known.clamp(min=1), inputs)


@pytest.mark.parametrize("loss", [StructureLoss(), KBestLoss(), CRFGoldLoss()])
def test_rows_without_words_and_half_precision(loss: Loss) -> None:
    chains = Chains(torch.tensor([0, 0]), legal_transitions(BIO))
    learnt = Transitions(torch.zeros(C, C), torch.zeros(C), torch.zeros(C))
    nothing = torch.zeros(0, C, requires_grad=True)
    empty = BatchTargets(DenseTargets(torch.zeros(0, C)), {}, torch.zeros(0, dtype=torch.int64), chains=chains)
    value = loss.value(Outputs(nothing, (), transitions=learnt), empty, None)
    assert value == 0
    assert value.requires_grad
    outputs, targets, _ = batch(1, BIO, False, torch.zeros(N, dtype=torch.int64))
    assert outputs.logits_NV is not None
    half = Outputs(outputs.logits_NV.bfloat16(), (), transitions=learnt)
    single = replace(targets, distributions=DenseTargets(torch.zeros(N, C)))
    assert loss.value(half, single, None).dtype == torch.float32
    assert loss.value(half, single, None).isfinite()


@pytest.mark.parametrize("loss", ["structure", "k-best", "crf-gold"])
def test_other_tasks_and_positions_are_refused(
    loss: str, dumps: dict[str, Path], make_dump: Callable[..., Path], tmp_path: Path
) -> None:
    for task in ("sequence-classification", "question-answering", "causal-lm", "encoder"):
        with pytest.raises(RecipeError, match=rf"the loss '{loss}' needs a tag for each word.*of the task {task};"):
            distill.run(recipe(tmp_path / "student", TRANSFORMER, {"kind": loss}, dump=dumps[task]), resume=False)
    every = make_dump("token-classification", positions="all")
    with pytest.raises(RecipeError, match=rf"the loss '{loss}' needs .* records 'all' positions; choose another"):
        distill.run(recipe(tmp_path / "student", TRANSFORMER, {"kind": loss}, dump=every), resume=False)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("loss", ["structure", "k-best"])
def test_dumps_that_are_not_dense_are_refused(loss: str, make_dump: Callable[..., Path], tmp_path: Path) -> None:
    dump = make_dump("token-classification", top_k=2)
    with pytest.raises(RecipeError, match=rf"the loss '{loss}' needs all logits, but .* keeps only some of them"):
        distill.run(recipe(tmp_path / "student", TRANSFORMER, {"kind": loss}, dump=dump), resume=False)


def test_crf_gold_needs_gold_labels_and_a_crf(
    dumps: dict[str, Path], make_dump: Callable[..., Path], tmp_path: Path
) -> None:
    gold = {"kind": "crf-gold"}
    with pytest.raises(RecipeError, match=r"the loss 'crf-gold' needs a student with transitions.* set crf = true"):
        distill.run(recipe(tmp_path / "a", BILSTM, gold, dump=dumps["token-classification"]), resume=False)
    bare = make_dump("token-classification", data=[{"tokens": ["the", "fox"]}] * 4)
    with pytest.raises(RecipeError, match="the loss 'crf-gold' needs gold labels"):
        distill.run(recipe(tmp_path / "b", {**BILSTM, "crf": True}, gold, dump=bare), resume=False)
    made = recipe(tmp_path / "c", {**BILSTM, "crf": True}, {"kind": "kl"}, dump=dumps["sequence-classification"])
    with pytest.raises(RecipeError, match=r"student\.crf = true is for tags of words"):
        distill.run(made, resume=False)


@pytest.mark.parametrize(("key", "value"), [("k", 0), ("k", 101), ("k", 1.5), ("temperature", 0), ("fuzzy", 2)])
def test_bounds_of_the_keys(key: str, value: float, tmp_path: Path) -> None:
    kind = "structure" if key == "temperature" else "k-best"
    with pytest.raises(ValueError, match=key):
        recipe(tmp_path, BILSTM, {"kind": kind, key: value}, dump="x")
