"""Starting placements: teams of machines that hold the same layers, lined up at the highest throughput.

A team of smallest size passes a target through its layers; an integer program picks teams that hold all
layers without using a machine twice; the target is bisected. Regions behind narrow links meet in teams of
several machines, so that several links join them.
"""

import random

import numpy as np
import numpy.typing as npt

from solvers.milp import ProgramBuilder, solve_program
from solvers.serving_flow import LayerFlowProblem

__all__ = ["Team", "aligned_teams", "seat_teams"]

Ints = npt.NDArray[np.int64]
Team = tuple[int, tuple[int, ...]]
"""Layers held, and machines of each class."""

_MAX_TEAM = 6
"""Most machines that hold the same layers in a starting placement."""
_BISECTIONS = 9


def _regions(problem: LayerFlowProblem) -> Ints:
    """Return the region of each machine: machines joined by links that are no bottleneck."""
    n = problem.num_machines
    wide = problem.link_tokens_per_s >= problem.compute_bound
    region = np.full(n, -1, dtype=np.int64)
    for i in range(n):
        if region[i] < 0:
            frontier = [i]
            region[i] = i
            while frontier:
                near = np.flatnonzero(wide[frontier.pop()] & (region < 0))
                region[near] = i
                frontier += near.tolist()
    return region


def _classes(problem: LayerFlowProblem) -> list[list[int]]:
    """Return machines of one region with equal throughput, grouped."""
    region = _regions(problem)
    groups: dict[tuple[int, bytes], list[int]] = {}
    for i, speed in enumerate(problem.tokens_per_s):
        groups.setdefault((int(region[i]), np.asarray(speed, dtype=float).tobytes()), []).append(i)
    return list(groups.values())


def _teams(problem: LayerFlowProblem, classes: list[list[int]], target: float) -> list[Team]:
    """Return (layers, machines per class) of every smallest team that passes `target`."""
    teams: list[Team] = []
    region = _regions(problem)
    of_class = [int(region[c[0]]) for c in classes]
    for k in range(1, int(problem.max_layers.max()) + 1):
        speeds = [
            float(problem.tokens_per_s[c[0]][k]) if k < len(problem.tokens_per_s[c[0]]) else 0.0
            for c in classes
        ]
        order = sorted((i for i, v in enumerate(speeds) if v > 0.0), key=lambda i: -speeds[i])

        def grow(
            at: int,
            sum_: float,
            used: list[int],
            *,
            k: int = k,
            speeds: list[float] = speeds,
            order: list[int] = order,
        ) -> None:
            if sum_ >= target:
                teams.append((k, tuple(used)))
                return
            if sum(used) >= _MAX_TEAM:
                return
            for position in range(at, len(order)):
                i = order[position]
                mine = all(of_class[j] == of_class[i] for j, u in enumerate(used) if u)
                if mine and used[i] < len(classes[i]):
                    used[i] += 1
                    grow(position, sum_ + speeds[i], used)
                    used[i] -= 1

        grow(0, 0.0, [0] * len(classes))
    return list(dict.fromkeys(teams))


def _line_up(
    problem: LayerFlowProblem, classes: list[list[int]], target: float, *, borders: bool = False
) -> list[Team]:
    """Return teams that hold all layers between them, each passing `target`; empty where there are none.

    With `borders`, every region has two teams of several machines, since a narrow link joins each pair.
    """
    teams = _teams(problem, classes, target)
    if not teams:
        return []
    builder = ProgramBuilder()
    columns = [
        builder.column(f"team {i}", cost=-float(k), integer=True, upper=99.0)
        for i, (k, _) in enumerate(teams)
    ]
    for c, members in enumerate(classes):
        terms = {columns[i]: float(used[c]) for i, (_, used) in enumerate(teams) if used[c]}
        if terms:
            builder.row(f"class {c}", terms, upper=float(len(members)))
    if borders:
        region = _regions(problem)
        for r in sorted(set(region.tolist())):
            wide = {
                columns[i]: 1.0
                for i, (_, used) in enumerate(teams)
                if sum(used) > 1 and any(u and region[classes[c][0]] == r for c, u in enumerate(used))
            }
            if not wide:
                return []
            builder.row(f"border {r}", wide, lower=2.0)
    every = {columns[i]: float(k) for i, (k, _) in enumerate(teams)}
    builder.row("layers", every, upper=float(problem.num_layers + int(problem.max_layers.max())))
    outcome = solve_program(builder.build(), time_limit_s=5.0, rel_gap=1e-3, explain=False)
    if outcome.solution is None or -float(outcome.objective or 0.0) < problem.num_layers - 0.5:
        return []
    counts = np.round(outcome.solution).astype(int)
    return [team for team, count in zip(teams, counts.tolist(), strict=True) for _ in range(count)]


def aligned_teams(problem: LayerFlowProblem) -> list[Team]:
    """Return the teams of the highest throughput at which teams of whole stages hold all layers."""
    classes = _classes(problem)
    borders = len(set(_regions(problem).tolist())) > 1
    low, high = 0.0, problem.compute_bound
    best: list[Team] = []
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        teams = _line_up(problem, classes, middle, borders=borders)
        if teams:
            best, low = teams, middle
        else:
            high = middle
    return best


def _in_order(problem: LayerFlowProblem, teams: list[Team], rng: random.Random) -> list[Team]:
    """Return the teams region by region, several machines where two regions meet."""
    region = _regions(problem)
    home = [int(region[c[0]]) for c in _classes(problem)]
    by_region: dict[int, list[Team]] = {}
    for team in rng.sample(teams, len(teams)):
        by_region.setdefault(next(home[c] for c, u in enumerate(team[1]) if u), []).append(team)
    line: list[Team] = []
    for r in rng.sample(sorted(by_region), len(by_region)):
        ranked = sorted(by_region[r], key=lambda team: -sum(team[1]))
        ends, inner = ranked[:2], ranked[2:]
        rng.shuffle(inner)
        line += [*ends[:1], *inner, *ends[1:]]
    return line


def seat_teams(problem: LayerFlowProblem, teams: list[Team], rng: random.Random) -> tuple[Ints, Ints]:
    """Return a placement of the teams in a random order; machines left over double random teams."""
    free = [list(c) for c in _classes(problem)]
    for members in free:
        rng.shuffle(members)
    start = np.zeros(problem.num_machines, dtype=np.int64)
    held = np.ones(problem.num_machines, dtype=np.int64)
    at = 0
    spans: list[tuple[int, int]] = []
    for k, used in _in_order(problem, teams, rng):
        k = min(k, problem.num_layers - at)
        if k < 1:
            continue
        for c, count in enumerate(used):
            for _ in range(count):
                i = free[c].pop()
                start[i], held[i] = at, k
        spans.append((at, k))
        at += k
    for i in (i for members in free for i in members):
        fitting = [span for span in spans if span[1] <= problem.max_layers[i]]
        start[i], held[i] = rng.choice(fitting) if fitting else (0, 1)
    return start, held
