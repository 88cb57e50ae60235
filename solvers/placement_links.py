"""Placement under links that will not stay as they were measured.

One measurement of a link is its lasting speed times the mood of the hour. With log speeds y of K snapshots,
the moods' variance s2 is the mean over links of the variance between snapshots (for a single snapshot it must
be assumed), and the lasting part is drawn towards the mean of the links of its class,

    lasting = mean + w * (y - mean),    w = max(0, 1 - (s2 / K) / var(y)),

the empirical-Bayes estimate (B. Efron and C. Morris, "Stein's estimation rule and its competitors", JASA 68,
1973). Scenarios add what is not known of the lasting part, w * s2 / K, and a new hour, s2, with the heavy
tails that slow links show (Laplace). A placement is optimised on some scenarios and judged on fresh ones; it
replaces the default order only if its gain is positive in all but a small share of them.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from solvers.outcome import Outcome
from solvers.placement import PlacementSolution, solve_placement
from solvers.placement_problem import PlacementProblem
from solvers.placement_search import Progress

__all__ = ["LinkBelief", "RobustPlacement", "believe_links", "draw_links", "solve_robust_placement"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ASSUMED_SPREAD_FRAC = 0.022
"""Spread of one link between two hours where only one snapshot is known. Assumed: links of sixteen hosts on
HDR InfiniBand changed by 2.2 % in the mean between two mpiGraph runs (both in the Pipette repository)."""

_ERROR_SHARE = 0.05
"""Largest share of fresh scenarios in which a placement may lose against the default order; and both tails of
the reported interval."""
_LOOK_UPS = 16_000_000
"""Link values held at once when scenarios are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinkBelief:
    """What is held true of the seconds per byte of every link."""

    log_seconds_per_byte: Floats
    """Lasting part, in logarithms. shape (S, S)"""
    spread: Floats
    """Standard deviation of a future hour around it, in logarithms. shape (S, S)"""
    lasting_weight: float
    """How much of a measured deviation from the class mean is taken as lasting, 0 to 1."""
    num_snapshots: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RobustPlacement:
    """The assignment to use, and what it is expected to gain over the default order."""

    site_of: Ints
    is_default: bool
    """Whether the default order was kept because no gain was significant."""
    gain_frac: float
    """Mean saving of the searched placement over fresh scenarios, relative to the default's mean cost."""
    gain_low_frac: float
    gain_high_frac: float
    """A 90 % interval of that saving."""
    default_cost_s: float
    cost_s: float
    bound_frac: float
    """How far the assignment in use can be above the best one, on the scenarios it was searched on."""
    search: Outcome[PlacementSolution]


def believe_links(
    bytes_per_s: Floats, *, link_class: Ints | None = None, assumed_spread: float = ASSUMED_SPREAD_FRAC
) -> LinkBelief:
    """Return the lasting speed and the spread of every link from one or several snapshots.

    Parameters
    ----------
    bytes_per_s : measured from site to site; the diagonal is taken as it is. shape (K, S, S)
    link_class : links of one class share a mean (inside a host, inside a fabric, across). shape (S, S)
    assumed_spread : used where there is one snapshot only.
    """
    logs = -np.log(bytes_per_s)
    num_snapshots, size = logs.shape[0], logs.shape[1]
    classes = np.zeros((size, size), dtype=np.int64) if link_class is None else link_class
    off = ~np.eye(size, dtype=bool)
    mean = logs.mean(axis=0)
    lasting, spread = mean.copy(), np.zeros((size, size))
    weights = []
    for value in np.unique(classes[off]):
        links = off & (classes == value)
        between = (
            float(np.var(logs[:, links], axis=0, ddof=1).mean()) if num_snapshots > 1 else assumed_spread**2
        )
        total = float(np.var(mean[links]))
        weight = max(0.0, 1.0 - between / num_snapshots / total) if total > 0 else 0.0
        centre = float(mean[links].mean())
        lasting[links] = centre + weight * (mean[links] - centre)
        spread[links] = np.sqrt(between * (1.0 + weight / num_snapshots))
        weights.append((int(links.sum()), weight))
    share = sum(n * w for n, w in weights) / max(1, sum(n for n, _ in weights))
    return LinkBelief(
        log_seconds_per_byte=lasting, spread=spread, lasting_weight=share, num_snapshots=num_snapshots
    )


def draw_links(belief: LinkBelief, num_scenarios: int, rng: np.random.Generator) -> Floats:
    """Return seconds per byte in that many possible hours. shape (scenarios, S, S)"""
    size = len(belief.spread)
    noise = rng.laplace(scale=np.sqrt(0.5), size=(num_scenarios, size, size))
    links: Floats = np.exp(belief.log_seconds_per_byte + belief.spread * noise)
    return links


def solve_robust_placement(
    problem: PlacementProblem,
    belief: LinkBelief,
    default: Ints,
    *,
    num_moves: int = 200_000,
    num_scenarios: int | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> RobustPlacement:
    """Return the placement to use, the default order unless another one wins significantly.

    Parameters
    ----------
    problem : units and terms; its own links are replaced by scenarios drawn from the belief.
    default : the assignment that is used without any placement. shape (units,)
    num_scenarios : possible hours to optimise over; fewer for large problems by default.
    """
    rng = np.random.default_rng(seed)
    size = problem.num_sites
    count = num_scenarios or int(np.clip(76_800 // size**2, 4, 300))
    searched = replace(problem, seconds_per_byte=draw_links(belief, count, rng))
    outcome = solve_placement(
        searched,
        starts=[default],
        num_moves=num_moves,
        time_limit_s=time_limit_s,
        seed=seed,
        progress=progress,
    )
    found = outcome.unwrap()
    default_s, found_s = _judge(problem, belief, np.stack([default, found.site_of]), rng)
    gain = (default_s - found_s) / default_s.mean() if default_s.mean() > 0 else np.zeros_like(default_s)
    low, high = np.quantile(gain, [_ERROR_SHARE, 1 - _ERROR_SHARE])
    keep = low <= 0.0
    used = default if keep else found.site_of
    used_s = float(searched.cost_s(used[None])[0])
    bound = outcome.bound or 0.0
    return RobustPlacement(
        site_of=used,
        is_default=bool(keep),
        gain_frac=float(gain.mean()),
        gain_low_frac=float(low),
        gain_high_frac=float(high),
        default_cost_s=float(default_s.mean()),
        cost_s=float((default_s if keep else found_s).mean()),
        bound_frac=used_s / bound - 1.0 if bound > 0 else 0.0,
        search=outcome,
    )


def _judge(
    problem: PlacementProblem, belief: LinkBelief, assignments: Ints, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the costs of two assignments in fresh scenarios."""
    size = problem.num_sites
    wanted = 400 if size <= 200 else 60
    step = max(1, _LOOK_UPS // size**2)
    parts = [
        replace(problem, seconds_per_byte=draw_links(belief, min(step, wanted - begin), rng)).scenario_cost_s(
            assignments
        )
        for begin in range(0, wanted, step)
    ]
    costs = np.concatenate(parts)
    return costs[:, 0], costs[:, 1]
