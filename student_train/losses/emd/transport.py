"""The flow between the layers of two models: an exact solution of the transport problem, by scipy's linear programming.

Its time does not depend on the batch, and for a dozen layers most of it is the checks of scipy. A step waits for it:
the costs are copied to the host.

Shapes: M layers of the student, N of the teacher.
"""

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor


def optimal_flow(student_M: Tensor, teacher_N: Tensor, costs_MN: Tensor) -> Tensor:
    """Return the flow F [M, N] of least cost, the sum of F_ij D_ij, in float64 on the CPU, without a gradient.

    F is not negative, its rows add up to the student's masses, its columns to the teacher's (Li et al. 2020,
    "BERT-EMD", arXiv 2010.06133, section 3.2). For costs that are not finite it is the product of the masses: the loss
    is not finite then, which ends the training with a message of its own.

    Args:
        student_M, teacher_N: masses, each with the sum 1 up to rounding.

    >>> half = torch.tensor([0.5, 0.5])
    >>> optimal_flow(half, half, torch.tensor([[1.0, 3.0], [2.0, 1.0]])).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    supply, demand = (masses.detach().double().cpu() for masses in (student_M, teacher_N))
    supply, demand = supply / supply.sum(), demand / demand.sum()
    costs = costs_MN.detach().double().cpu()
    if not bool(costs.isfinite().all()):
        return supply[:, None] * demand
    rows, columns = costs.shape
    sums = np.concatenate([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    # The solver's tolerances are absolute, so costs get a scale of their own.
    scaled = (costs / costs.max().clamp(min=torch.finfo(torch.float64).tiny)).flatten().numpy()
    found = linprog(scaled, A_eq=sums, b_eq=torch.cat([supply, demand]).numpy(), method="highs")
    assert found.success, found.message  # a transport problem with equal sums always has a solution
    return torch.from_numpy(found.x).reshape(rows, columns).clamp(min=0) + 0.0  # not -0.0
