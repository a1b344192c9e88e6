"""The CRF against the enumeration of all paths in float64, and against torch-struct where it is installed.

Shapes: B chains, L positions, C classes, K paths, P all paths of a chain.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student_train.chains.crf import CRF, IMPOSSIBLE, Transitions

seeds = st.integers(0, 2**32 - 1)
lengths = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def drawn(seed: int, lengths: list[int], classes: int, dtype: torch.dtype = torch.float64, masked: bool = False) -> CRF:
    """Random chains; with `masked`, some transitions are impossible, but each class may follow itself."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    transitions = Transitions(draw(classes, classes), draw(classes), draw(classes))
    if masked:
        is_cut_CC = (torch.rand(classes, classes, generator=generator) < 0.4) & ~torch.eye(classes).bool()
        transitions = transitions._replace(between_CC=transitions.between_CC.masked_fill(is_cut_CC, IMPOSSIBLE))
    return CRF(draw(len(lengths), max(lengths), classes), torch.tensor(lengths), transitions)


def enumerated(crf: CRF, chain: int) -> tuple[list[tuple[int, ...]], Tensor]:
    """All paths of a chain and their scores, position by position."""
    between_CC, first_C, last_C = crf.transitions
    length, classes = int(crf.lengths_B[chain]), crf.emissions_BLC.shape[-1]
    paths = list(itertools.product(range(classes), repeat=length))
    scores = []
    for path in paths:
        score = first_C[path[0]] + last_C[path[-1]]
        for at, tag in enumerate(path):
            score = score + crf.emissions_BLC[chain, at, tag]
        for before, after in itertools.pairwise(path):
            score = score + between_CC[before, after]
        scores.append(score)
    return paths, torch.stack(scores)


@given(seeds, lengths, st.integers(1, 4), st.booleans())
@settings(max_examples=30)
def test_log_z_and_its_gradients_are_those_of_all_paths(
    seed: int, lengths: list[int], classes: int, masked: bool
) -> None:
    crf = drawn(seed, lengths, classes, masked=masked)
    inputs = [crf.emissions_BLC, *crf.transitions]
    for each in inputs:
        each.requires_grad_()
    found_B = crf.log_partition()
    true_B = torch.stack([enumerated(crf, chain)[1].logsumexp(0) for chain in range(len(lengths))])
    torch.testing.assert_close(found_B, true_B)
    weights_B = torch.arange(1.0, len(lengths) + 1, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(found_B @ weights_B, inputs, materialize_grads=True),
        torch.autograd.grad(true_B @ weights_B, inputs, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@given(seeds, lengths, st.integers(1, 4), st.booleans())
@settings(max_examples=30)
def test_marginals_are_sums_over_all_paths(seed: int, lengths: list[int], classes: int, masked: bool) -> None:
    crf = drawn(seed, lengths, classes, masked=masked)
    found = crf.marginals()
    for chain, length in enumerate(lengths):
        paths, scores_P = enumerated(crf, chain)
        nodes_LC = torch.zeros(max(lengths), classes, dtype=torch.float64)
        edges_CC = torch.zeros(classes, classes, dtype=torch.float64)
        for path, probability in zip(paths, scores_P.softmax(0), strict=True):
            for at, tag in enumerate(path):
                nodes_LC[at, tag] += probability
            for before, after in itertools.pairwise(path):
                edges_CC[before, after] += probability
        torch.testing.assert_close(found.log_z_B[chain], scores_P.logsumexp(0))
        torch.testing.assert_close(found.nodes_BLC[chain], nodes_LC)
        torch.testing.assert_close(found.edges_BCC[chain], edges_CC)
        torch.testing.assert_close(found.lasts_BC[chain], nodes_LC[length - 1])


@given(seeds, seeds, lengths, st.integers(1, 4))
@settings(max_examples=20)
def test_an_expected_score_is_the_mean_over_all_paths(seed: int, other: int, lengths: list[int], classes: int) -> None:
    mine, theirs = drawn(seed, lengths, classes), drawn(other, lengths, classes)
    found_B = mine.expected_scores(theirs.marginals())
    for chain in range(len(lengths)):
        scores_P, probabilities_P = enumerated(mine, chain)[1], enumerated(theirs, chain)[1].softmax(0)
        torch.testing.assert_close(found_B[chain], scores_P @ probabilities_P)


@given(seeds, lengths, st.integers(1, 4), st.integers(1, 7), st.booleans())
@settings(max_examples=40)
def test_the_best_paths_are_those_of_all_paths(
    seed: int, lengths: list[int], classes: int, k: int, masked: bool
) -> None:
    crf = drawn(seed, lengths, classes, masked=masked)
    paths_BKL, scores_BK = crf.best_paths(k)
    assert paths_BKL.shape == (len(lengths), k, max(lengths))
    for chain, length in enumerate(lengths):
        paths, scores_P = enumerated(crf, chain)
        best = scores_P.argsort(descending=True)[:k].tolist()
        torch.testing.assert_close(scores_BK[chain, : len(best)], scores_P[best])
        assert (scores_BK[chain, len(best) :] == -torch.inf).all()
        possible = [rank for rank, at in enumerate(best) if scores_P[at] > IMPOSSIBLE / 2]
        assert [tuple(paths_BKL[chain, rank, :length].tolist()) for rank in possible] == [
            paths[best[rank]] for rank in possible
        ]
        assert not paths_BKL[chain, :, length:].any()


@given(seeds, lengths, st.integers(1, 4))
@settings(max_examples=20)
def test_the_score_of_a_path_and_of_a_lattice(seed: int, lengths: list[int], classes: int) -> None:
    crf = drawn(seed, lengths, classes)
    generator = torch.Generator().manual_seed(seed + 1)
    is_allowed_BLC = torch.rand(crf.emissions_BLC.shape, generator=generator) < 0.5
    is_allowed_BLC[..., 0] = True
    paths_BKL = torch.randint(classes, (len(lengths), 3, max(lengths)), generator=generator)
    found_BK, lattice_B = crf.path_scores(paths_BKL), crf.within(is_allowed_BLC).log_partition()
    for chain, length in enumerate(lengths):
        paths, scores_P = enumerated(crf, chain)
        for rank in range(3):
            at = paths.index(tuple(paths_BKL[chain, rank, :length].tolist()))
            torch.testing.assert_close(found_BK[chain, rank], scores_P[at])
        inside = [all(is_allowed_BLC[chain, at, tag] for at, tag in enumerate(path)) for path in paths]
        torch.testing.assert_close(lattice_B[chain], scores_P[torch.tensor(inside)].logsumexp(0))


def test_long_chains_in_float32_agree_with_float64() -> None:
    lengths = [300, 7, 120]
    wide = drawn(0, lengths, 9, masked=True)
    wide = CRF(wide.emissions_BLC.log_softmax(-1), wide.lengths_B, wide.transitions)
    narrow = CRF(wide.emissions_BLC.float(), wide.lengths_B, wide.transitions.like(torch.zeros(1)))
    torch.testing.assert_close(narrow.log_partition().double(), wide.log_partition(), rtol=1e-5, atol=1e-4)
    mine, theirs = narrow.marginals(), wide.marginals()
    torch.testing.assert_close(mine.nodes_BLC.double(), theirs.nodes_BLC, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mine.edges_BCC.double(), theirs.edges_BCC, rtol=1e-3, atol=1e-3)
    assert torch.equal(narrow.best_paths(1)[0], wide.best_paths(1)[0])
    assert narrow.emissions_BLC.dtype == mine.nodes_BLC.dtype == torch.float32


def test_torch_struct_agrees() -> None:
    torch_struct = pytest.importorskip("torch_struct")
    crf = drawn(3, [5, 3, 2], 4, torch.float32)
    between_CC, first_C, last_C = crf.transitions
    # Its potentials are [B, L - 1, to, from] of edges, to which we add those of single positions.
    edges_BLCC = between_CC.T + crf.emissions_BLC[:, 1:, :, None]
    edges_BLCC[:, 0] += (first_C + crf.emissions_BLC[:, 0])[:, None, :]
    for chain, length in enumerate(crf.lengths_B.tolist()):
        edges_BLCC[chain, length - 2] += last_C[:, None]
    theirs = torch_struct.LinearChainCRF(edges_BLCC, lengths=crf.lengths_B)
    torch.testing.assert_close(crf.log_partition(), theirs.partition)
    torch.testing.assert_close(crf.marginals().edges_BCC, theirs.marginals.sum(1).transpose(1, 2))
    torch.testing.assert_close(crf.best_paths(3)[1], theirs.kmax(3).T)
