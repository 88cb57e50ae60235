r"""Which consecutive layers each of many unlike machines holds, so that most tokens per second pass through.

Machine i holds layers :math:`[s_i, s_i + k_i)` and passes at most :math:`T_i(k_i)` tokens per second
through them. Tokens enter where layer 0 is held, go from i to j where j holds the layer after the last one of
i (j may begin earlier and then skips what is done), and leave after the last layer. A placement's value is
the maximum flow of this network under machine and link capacities; it is exact. Placements are searched by
annealing with restarts from greedy covers, since big-M relaxations of the same problem bound nothing
(Y. Mei et al., Helix, ASPLOS 2025, whose objective this is).
"""

import math
import random
import time

import numpy as np
import numpy.typing as npt

from solvers.outcome import Outcome, Status
from solvers.serving_flow import Evaluator, LayerFlow, LayerFlowProblem, layer_flow
from solvers.serving_teams import aligned_teams, seat_teams

__all__ = ["LayerFlow", "LayerFlowProblem", "layer_flow", "solve_layer_flow"]

Ints = npt.NDArray[np.int64]

_START_TEMPERATURE = 0.03
"""Of the value, at the start of a run; falls to a hundredth."""
_NUM_SEATINGS = 100


def solve_layer_flow(
    problem: LayerFlowProblem, *, max_evaluations: int = 60000, num_restarts: int = 3, seed: int = 0
) -> Outcome[LayerFlow]:
    """Return the best placement found, with the compute bound that no placement passes.

    Parameters
    ----------
    max_evaluations : exact flows over all restarts; the same number gives the same answer.
    """
    started = time.monotonic()
    if int(problem.max_layers.sum()) < problem.num_layers:
        rows = (f"{int(problem.max_layers.sum())} layers fit of {problem.num_layers}",)
        return Outcome(status=Status.INFEASIBLE, conflict=rows)
    evaluator = Evaluator(problem)
    best: tuple[float, Ints, Ints] | None = None
    teams = aligned_teams(problem)
    share = max_evaluations // max(num_restarts + 1, 1)
    for run in range(num_restarts + 1):
        rng = random.Random(seed * 1000 + run)
        from_best = run == num_restarts and best is not None
        if from_best and best is not None:
            start, held = best[1].copy(), best[2].copy()
        elif teams and run % 2 == 0:
            seats = [seat_teams(problem, teams, rng) for _ in range(_NUM_SEATINGS)]
            start, held = max(seats, key=lambda seat: evaluator.tokens_per_s(*seat))
        else:
            start, held = _cover(problem, rng)
        found = _anneal(evaluator, start, held, share, rng, _START_TEMPERATURE)
        if best is None or found[0] > best[0]:
            best = found
    assert best is not None
    solution = LayerFlow(
        start_layer=best[1], num_layers=best[2], tokens_per_s=best[0], num_evaluations=evaluator.count
    )
    return Outcome(
        status=Status.FEASIBLE,
        solution=solution,
        objective=best[0],
        bound=problem.compute_bound,
        wall_s=time.monotonic() - started,
    )


def _cover(problem: LayerFlowProblem, rng: random.Random) -> tuple[Ints, Ints]:
    """Return a placement in which the scarcest layers are filled first, fastest machines first."""
    n, num_layers = problem.num_machines, problem.num_layers
    start, held = np.zeros(n, dtype=np.int64), np.ones(n, dtype=np.int64)
    covered = np.zeros(num_layers)
    order = sorted(range(n), key=lambda i: -float(problem.tokens_per_s[i][-1]) * rng.uniform(0.7, 1.3))
    most = problem.max_layers
    for i in order:
        k = int(most[i]) if rng.random() < 0.5 else max(1, round(int(most[i]) * rng.uniform(0.4, 1.0)))
        windows = np.convolve(covered, np.ones(k), mode="valid")
        at = int(np.argmin(windows + np.arange(len(windows)) * 1e-9))
        start[i], held[i] = at, k
        covered[at : at + k] += problem.tokens_per_s[i][k]
    return start, held


def _anneal(
    evaluator: Evaluator, start: Ints, held: Ints, steps: int, rng: random.Random, temperature: float
) -> tuple[float, Ints, Ints]:
    """Return the best of one annealing run."""
    flow, value = evaluator.value(start, held)
    best = (flow, start.copy(), held.copy())
    scale = max(value, evaluator.problem.compute_bound * 0.05)
    for step in range(steps - 1):
        heat = temperature * scale * 0.01 ** (step / steps)
        new_start, new_held = _neighbour(evaluator.problem, start, held, rng)
        least = value + heat * math.log(max(rng.random(), 1e-300))
        new_flow, new_value = evaluator.value(new_start, new_held, least)
        if new_value >= least:
            start, held, value = new_start, new_held, new_value
            if new_flow > best[0]:
                best = (new_flow, start.copy(), held.copy())
                scale = max(scale, new_flow)
    return best


def _neighbour(problem: LayerFlowProblem, start: Ints, held: Ints, rng: random.Random) -> tuple[Ints, Ints]:
    """Return the placement after one move: slide, grow, jump beside another, swap two, or start anew."""
    n, num_layers = problem.num_machines, problem.num_layers
    most = problem.max_layers
    new_start, new_held = start.copy(), held.copy()
    i = rng.randrange(n)
    kind = rng.random()
    if kind < 0.3:
        new_held[i] = min(max(1, int(held[i]) + rng.choice((-2, -1, 1, 2))), int(most[i]))
        if rng.random() < 0.5:
            new_start[i] = start[i] + held[i] - new_held[i]
    elif kind < 0.5:
        new_start[i] = start[i] + rng.choice((-2, -1, 1, 2))
    elif kind < 0.75:
        j = rng.randrange(n)
        new_start[i] = rng.choice((int(start[j]), int(start[j] + held[j]), int(start[j]) - int(held[i])))
        if rng.random() < 0.4:
            new_held[i] = min(int(held[j]), int(most[i]))
    elif kind < 0.9:
        j = rng.randrange(n)
        new_start[i], new_start[j] = start[j], start[i]
        new_held[i], new_held[j] = min(held[j], most[i]), min(held[i], most[j])
    else:
        new_held[i] = rng.randint(1, int(most[i]))
        new_start[i] = rng.randrange(num_layers)
    np.clip(new_start, 0, num_layers - new_held, out=new_start)
    return new_start, new_held
