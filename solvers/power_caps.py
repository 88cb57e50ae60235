r"""Power under a budget: when a controller must act, how likely a breach is, which caps cost least.

*Thresholds.* A controller that sees late and acts later still must act at a power from which the row cannot
pass its budget before the action takes hold. With p the row's power over its budget and L the delay:

.. math:: T = \max \{ T : T + Q_{1-\epsilon}[\max_{\tau \le L} p(t+\tau) - p(t) \mid p(t) \approx T] \le 1 \}

Rises are taken from powers near T, because a row that is already busy has less left to rise; the quantile of
all rises is the floor that holds where too few were seen near any T.

*Breaches.* n servers of mean m and deviation s whose draws correlate with r add up to mean n m and variance
n s^2 (1 + (n - 1) r); with r = 1 (one training job) there is no multiplexing credit at all.

*Caps.* Each unit takes one of its options; the draw of all stays under the budget, the loss is least: a
multiple-choice knapsack, solved exactly.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from hardware.errors import InfeasibleError, InputError
from solvers.milp import ProgramBuilder, solve_program
from solvers.outcome import Outcome, Status

__all__ = [
    "CapProblem",
    "brakes_per_year",
    "breach_probability",
    "choose_caps",
    "max_rise",
    "servers_without_breach",
    "threshold",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEAST_SAMPLES = 200
"""Fewer rises near a power are no basis for a quantile; such powers are passed over."""
_LEAST_THRESHOLD = 0.3
"""A controller that must act below this share of the budget is no help."""
_YEAR_S = 365.25 * 86_400.0
_EULER = 0.5772156649


def max_rise(power_frac: Floats, num_steps: int) -> Floats:
    """Return for every step how far power rises at most over the next `num_steps`; never below zero.

    Parameters
    ----------
    power_frac : traces as columns. shape (steps, traces)
    """
    rise = np.zeros((len(power_frac) - num_steps, *power_frac.shape[1:]))
    for ahead in range(1, num_steps + 1):
        later = power_frac[ahead : len(power_frac) - num_steps + ahead]
        rise = np.maximum(rise, later - power_frac[: len(rise)])
    return rise


def threshold(
    power_frac: Floats, num_steps: int, *, epsilon: float = 1e-4, width: float = 0.01
) -> tuple[float, float]:
    """Return the highest power to act at, and the spike quantile there.

    Parameters
    ----------
    power_frac : traces of the row without control, over its budget. shape (steps, traces)
    num_steps : steps from a rise to the effect of an action on it.
    epsilon : share of the moments near the threshold that may still pass the budget.

    Raises
    ------
    InputError
        if the traces are shorter than the delay or hold gaps.
    InfeasibleError
        if no power is low enough to act from.
    """
    if not np.isfinite(power_frac).all():
        message = (
            f"the power trace has gaps: {int((~np.isfinite(power_frac)).sum())} of its values are missing"
        )
        raise InputError(message)
    if len(power_frac) <= 2 * num_steps:
        message = f"a trace of {len(power_frac)} steps is too short for a delay of {num_steps}"
        raise InputError(message)
    rise = max_rise(power_frac, num_steps).ravel()
    start = power_frac[: len(power_frac) - num_steps].ravel()
    spike = float(np.quantile(rise, 1 - epsilon))
    top = 1.0 - spike
    for level in np.arange(0.99, max(top, 0.3), -0.005):
        near = rise[np.abs(start - level) <= width]
        if len(near) < _LEAST_SAMPLES:
            continue
        quantile = float(np.quantile(near, 1 - epsilon))
        if level + quantile <= 1.0:
            top, spike = float(level), quantile
            break
    if top < _LEAST_THRESHOLD:
        message = f"power rises by {spike:.2f} of the budget within the delay: no threshold is early enough"
        raise InfeasibleError(message, ("control delay",))
    return round(top, 3), spike


def breach_probability(
    num_servers: int, *, mean_w: float, deviation_w: float, correlation: float, budget_w: float
) -> float:
    """Return the probability that a row draws more than its budget at a given moment (normal sum)."""
    variance = num_servers * deviation_w**2 * (1 + (num_servers - 1) * correlation)
    if variance <= 0:
        return float(num_servers * mean_w > budget_w)
    return 1.0 - NormalDist().cdf((budget_w - num_servers * mean_w) / variance**0.5)


def servers_without_breach(
    *,
    mean_w: float,
    deviation_w: float,
    correlation: float,
    budget_w: float,
    probability: float,
    most: int = 10_000,
) -> int:
    """Return the largest number of servers whose breach probability stays at or under `probability`."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        chance = breach_probability(
            middle, mean_w=mean_w, deviation_w=deviation_w, correlation=correlation, budget_w=budget_w
        )
        low, high = (middle, high) if chance <= probability else (low, middle - 1)
    return low


def brakes_per_year(power_frac: Floats, step_s: float, *, block_s: float = 3600.0) -> float:
    """Return how often per year the power passes the budget, from a Gumbel fit to the maxima of blocks.

    By moments: scale = deviation sqrt(6) / pi, location = mean - 0.5772 scale; a short trace has four
    blocks. Only blocks of the busiest quarter are fitted, as the others never come near the budget; each day
    has a quarter of its blocks so.
    """
    size = max(1, min(int(block_s / step_s), len(power_frac) // 4))
    block_s = size * step_s
    blocks = power_frac[: len(power_frac) // size * size].reshape(-1, size, *power_frac.shape[1:])
    maxima = np.sort(blocks.max(axis=1).ravel())[-max(4, blocks.max(axis=1).size // 4) :]
    scale = float(maxima.std()) * 6**0.5 / np.pi
    if scale == 0:
        return 0.0 if maxima[0] <= 1 else _YEAR_S / block_s / 4
    location = float(maxima.mean()) - _EULER * scale
    exceed = -np.expm1(-np.exp(-(1.0 - location) / scale))
    return float(exceed * _YEAR_S / block_s / 4)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CapProblem:
    """Units with options; option j of unit i draws `draw_w[i][j]` and loses `loss[i][j]`."""

    names: tuple[str, ...]
    count: Ints
    """Identical devices that each unit stands for; all take the same option."""
    draw_w: tuple[Floats, ...]
    """Per device."""
    loss: tuple[Floats, ...]
    """Per device, in any one unit: lost throughput, money."""
    budget_w: float


def choose_caps(problem: CapProblem, *, time_limit_s: float = 10.0) -> Outcome[tuple[int, ...]]:
    """Return the option of every unit with the least total loss under the budget."""
    builder = ProgramBuilder()
    columns = [
        [
            builder.column(f"{name}.{j}", cost=float(count * value), upper=1.0, integer=True)
            for j, value in enumerate(loss)
        ]
        for name, count, loss in zip(problem.names, problem.count, problem.loss, strict=True)
    ]
    for name, options in zip(problem.names, columns, strict=True):
        builder.row(f"one option of {name}", dict.fromkeys(options, 1.0), lower=1.0, upper=1.0)
    terms = {
        column: float(count * watts)
        for options, count, draw in zip(columns, problem.count, problem.draw_w, strict=True)
        for column, watts in zip(options, draw, strict=True)
    }
    builder.row("power budget", terms, upper=problem.budget_w)
    answer = solve_program(builder.build(), time_limit_s=time_limit_s)
    if answer.solution is None:
        return Outcome(status=answer.status, wall_s=answer.wall_s, conflict=answer.conflict)
    values = answer.solution
    chosen = tuple(int(np.argmax([values[c] for c in options])) for options in columns)
    draw = sum(float(n * w[j]) for n, w, j in zip(problem.count, problem.draw_w, chosen, strict=True))
    if draw > problem.budget_w * (1 + 1e-9):
        return Outcome(status=Status.NO_ANSWER, wall_s=answer.wall_s)
    return Outcome(
        status=answer.status,
        solution=chosen,
        objective=answer.objective,
        bound=answer.bound,
        wall_s=answer.wall_s,
    )
