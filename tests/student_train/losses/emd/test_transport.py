"""The flow between layers and the masses that it moves, against plain formulas, brute force and another solver."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from student_train.losses.emd.masses import MOST_RATIO, LayerMasses, cost_attention, set_to_mean
from student_train.losses.emd.transport import optimal_flow

FEW = settings(max_examples=30)
DEPTHS = some.integers(1, 7)
SEEDS = some.integers(0, 2**32 - 1)


def problem(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masses that are not equal, and costs."""
    draw = np.random.default_rng(seed)
    return tuple(
        torch.from_numpy(each).float()
        for each in (draw.dirichlet(np.ones(rows)), draw.dirichlet(np.ones(columns)), draw.random((rows, columns)))
    )


# ---------------------------------------------------------------- the flow


@FEW
@given(DEPTHS, DEPTHS, SEEDS)
def test_a_flow_empties_one_side_and_fills_the_other(rows: int, columns: int, seed: int) -> None:
    supply, demand, costs = problem(rows, columns, seed)
    flow = optimal_flow(supply, demand, costs)
    assert flow.dtype == torch.float64
    assert flow.shape == (rows, columns)
    assert (flow >= 0).all()
    torch.testing.assert_close(flow.sum(1), supply.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(flow.sum(0), demand.double(), atol=1e-6, rtol=0)
    assert (flow > 1e-9).sum() <= rows + columns - 1
    assert (flow * costs).sum() <= (supply[:, None] * demand * costs).sum() + 1e-6


@FEW
@given(some.integers(1, 5), SEEDS)
def test_equal_masses_make_the_best_assignment(layers: int, seed: int) -> None:
    """Of all n! ones: no flow between equal masses is cheaper than the best of them (Birkhoff)."""
    *_, costs = problem(layers, layers, seed)
    equal = torch.full((layers,), 1 / layers)
    best = min(
        sum(float(costs[row, column]) for row, column in enumerate(order))
        for order in itertools.permutations(range(layers))
    )
    assert float((optimal_flow(equal, equal, costs) * costs).sum()) == pytest.approx(best / layers, rel=1e-6)


@FEW
@given(DEPTHS, DEPTHS, SEEDS)
def test_prices_prove_that_no_flow_is_cheaper(rows: int, columns: int, seed: int) -> None:
    """Where anything flows, the prices u_i + v_j of a shortest-path potential are the cost, and nowhere above it."""
    supply, demand, costs = problem(rows, columns, seed)
    flow, costs = optimal_flow(supply, demand, costs), costs.double()
    # Residual graph: an edge i -> j at cost D_ij, and back at -D_ij where something flows; no cycle is negative.
    distance = torch.zeros(rows + columns, dtype=torch.float64)
    for _ in range(rows + columns):
        before = distance.clone()
        distance[rows:] = torch.minimum(distance[rows:], (distance[:rows, None] + costs).amin(0))
        back = torch.where(flow > 1e-7, distance[rows:] - costs, torch.inf)
        distance[:rows] = torch.minimum(distance[:rows], back.amin(1))
    torch.testing.assert_close(distance, before, atol=1e-6, rtol=0)


def test_another_solver_finds_the_same_flow() -> None:
    ot = pytest.importorskip("ot")
    for seed, (rows, columns) in enumerate([(1, 6), (3, 6), (4, 12), (6, 6), (12, 24)]):
        supply, demand, costs = problem(rows, columns, seed)
        exact = [each.double() / each.double().sum() for each in (supply, demand)]
        wanted = torch.from_numpy(ot.emd(*(each.numpy() for each in exact), costs.double().numpy()))
        torch.testing.assert_close(optimal_flow(supply, demand, costs), wanted, atol=1e-6, rtol=0)


def test_of_one_layer_everything_flows_where_the_masses_are() -> None:
    demand = torch.tensor([0.2, 0.5, 0.3])
    flow = optimal_flow(torch.ones(1), demand, torch.tensor([[3.0, 1.0, 2.0]]))
    torch.testing.assert_close(flow, demand.double()[None], atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_flow_is_diagonal_when_the_costs_say_so_whatever_their_size(scale: float) -> None:
    costs = (torch.full((4, 4), 1.1) - 0.1 * torch.eye(4)) * scale
    flow = optimal_flow(torch.full((4,), 0.25), torch.full((4,), 0.25), costs)
    torch.testing.assert_close(flow, torch.eye(4, dtype=torch.float64) / 4, atol=1e-6, rtol=0)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_costs_that_are_not_finite_have_a_flow_without_a_choice(broken: float) -> None:
    supply, demand = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    flow = optimal_flow(supply, demand, torch.tensor([[1.0, broken], [1.0, 1.0]]))
    torch.testing.assert_close(flow, torch.outer(supply, demand).double())


# ---------------------------------------------------------------- masses


@FEW
@given(DEPTHS, DEPTHS, SEEDS)
def test_masses_go_by_the_reciprocal_of_what_a_unit_costs(rows: int, columns: int, seed: int) -> None:
    supply, demand, costs = problem(rows, columns, seed)
    masses = LayerMasses(rows, columns)
    masses.set(supply, demand)
    flow = optimal_flow(supply, demand, costs)
    moved = masses.moved(flow, costs)
    for axis, own, found in ((0, supply, moved[0]), (1, demand, moved[1])):
        unit = []
        for layer, mass in enumerate(own.tolist()):
            line = (flow * costs).select(axis, layer).tolist()
            unit.append(sum(line) / mass)
        wanted = [1 / max(each, max(unit) / MOST_RATIO) for each in unit]
        assert found.tolist() == pytest.approx([each / sum(wanted) for each in wanted], rel=1e-6)


def test_a_layer_without_cost_gets_most_and_leaves_some_to_the_others() -> None:
    moved = cost_attention(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(moved, torch.tensor([1000.0, 1.0, 1.0]) / 1002)


@pytest.mark.parametrize("transported", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_masses_stay_where_nothing_costs_or_something_is_broken(transported: list[float]) -> None:
    masses = torch.tensor([0.3, 0.7])
    assert torch.equal(cost_attention(masses, torch.tensor(transported)), masses)


def test_masses_begin_equal_and_become_the_mean_of_those_that_moved() -> None:
    both = LayerMasses(2, 4), LayerMasses(2, 4)
    assert [mass.tolist() for mass in both[0].buffers()] == [[0.5, 0.5], [0.25] * 4]
    moved = (torch.tensor([0.2, 0.8]), torch.full((4,), 0.25)), (torch.tensor([0.4, 0.6]), torch.full((4,), 0.25))
    set_to_mean(both, moved)
    for each in both:
        assert each.student_M.tolist() == pytest.approx([0.3, 0.7])
    assert [name for name, _ in both[0].named_parameters()] == []
