r"""How many instances of which kind to have at which hours, and on which offers to buy them.

The load changes between levels :math:`\ell` (its share :math:`f_\ell` of the peak, for the share
:math:`h_\ell` of the time). At each, the mix of `solvers.gpu_mix` holds for that load. Its :math:`y_{i\ell}`
instances are bought on offers :math:`o`, :math:`q_{oi\ell}` each, which take :math:`d_i` units of stock
(devices) at the price :math:`p_o`. An hourly offer is paid while it is used; a committed one,
:math:`R_o` units, at all times:

.. math::

    \min \sum_{o \in \text{hourly}} p_o \sum_\ell h_\ell \sum_i d_i q_{oi\ell}
         + \sum_{o \in \text{committed}} p_o R_o
    \quad\text{s.t.}\quad \sum_o q_{oi\ell} = y_{i\ell}, \qquad
    \sum_i d_i q_{oi\ell} \le R_o \text{ or } S_o, \qquad
    \sum_{o \in \text{spot}} q_{oi\ell} \le \varphi\, y_{i\ell}

so at most the share :math:`\varphi` of any kind of instance is lost when every interruptible one is taken
back. Of n interruptible instances, each away for the share :math:`\alpha_o` of the time, the load is put on
all but :math:`k_o(n)`, the most that are away at once (a quantile of the binomial distribution). The step
function is exact: k is a sum of binaries, each of which lets n reach the next step.
"""

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from solvers.gpu_mix import MixSolution, best_single, mix_program, require_servers
from solvers.gpu_mix_rate import RATE_SLACK, most_instances, rate_program
from solvers.gpu_offer_problem import (
    MAX_STEPS,
    MixOffer,
    OfferProblem,
    OfferSolution,
    away_in,
    away_steps,
    check_offers,
)
from solvers.milp import Program, solve_program
from solvers.outcome import Outcome, Status

__all__ = ["solve_most_load_on_offers", "solve_offers"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MAX_INSTANCES = 4096


def solve_offers(
    problem: OfferProblem, *, solver: str = "highs", time_limit_s: float | None = 60.0, rel_gap: float = 1e-6
) -> Outcome[OfferSolution]:
    """Return the cheapest mixes and purchases, re-checked against the problem itself.

    Raises
    ------
    InfeasibleError
        if a bucket cannot be served by any item; names it.
    """
    started = time.monotonic()
    require_servers(problem.mix)
    made = _Build(problem)
    outcome = solve_program(made.program(), solver=solver, time_limit_s=time_limit_s, rel_gap=rel_gap)
    if outcome.solution is None:
        return Outcome(
            status=outcome.status,
            bound=outcome.bound,
            wall_s=time.monotonic() - started,
            conflict=outcome.conflict,
        )
    solution = made.decoded(outcome.solution)
    broken = check_offers(problem, solution)
    if broken:
        return Outcome(
            status=Status.NO_ANSWER, bound=outcome.bound, wall_s=outcome.wall_s, conflict=tuple(broken)
        )
    objective = _objective(problem, solution)
    return Outcome(
        status=outcome.status,
        solution=solution,
        objective=objective,
        bound=None if outcome.bound is None else min(outcome.bound, objective),
        wall_s=time.monotonic() - started,
    )


def solve_most_load_on_offers(
    problem: OfferProblem, *, solver: str = "highs", time_limit_s: float | None = 60.0
) -> tuple[Outcome[OfferSolution], float]:
    """Return the cheapest purchase that carries the largest multiple of the load, and that multiple.

    Objective and bound of the outcome are multiples of the load.

    Raises
    ------
    InfeasibleError
        if a bucket cannot be served by any item; names it.
    ValueError
        if an item's count has no limit, or there are several levels.
    """
    started = time.monotonic()
    require_servers(problem.mix)
    most = np.minimum(most_instances(problem.mix), _most_bought(problem))
    if len(problem.levels) > 1 or not np.isfinite(most).all():
        message = "the most load is sought at one level, with a limit to every count"
        raise ValueError(message)
    bounded = replace(problem, mix=replace(problem.mix, max_count=np.floor(most + 1e-9).astype(np.int64)))
    made = _Build(bounded, most_load=True)
    outcome = solve_program(made.program(), solver=solver, time_limit_s=time_limit_s, rel_gap=1e-6)
    if outcome.solution is None or outcome.objective is None:
        return Outcome(status=outcome.status, wall_s=outcome.wall_s, conflict=outcome.conflict), 0.0
    rate = -outcome.objective * (1.0 - RATE_SLACK)
    if rate <= 0.0:
        limits = (*(limit.name for limit in problem.mix.limits), *(offer.name for offer in problem.offers))
        return Outcome(status=Status.INFEASIBLE, wall_s=outcome.wall_s, conflict=limits), 0.0
    mix = replace(problem.mix, load=problem.mix.load * rate, weight=None)
    cheapest = solve_offers(replace(problem, mix=mix), solver=solver, time_limit_s=time_limit_s)
    found = replace(
        cheapest,
        status=outcome.status if cheapest.solution is not None else cheapest.status,
        objective=rate,
        bound=None if outcome.bound is None else max(-outcome.bound, rate),
        wall_s=time.monotonic() - started,
    )
    return found, rate


def _most_bought(problem: OfferProblem) -> Floats:
    """Return the most instances of each item that the offers sell within the budget. shape (items,)"""
    units = np.stack([offer.units for offer in problem.offers])
    stock = np.array([offer.max_total for offer in problem.offers])[:, None]
    if problem.budget_usd_per_hour is not None:
        price = np.array([offer.usd_per_hour for offer in problem.offers])[:, None]
        stock = np.minimum(stock, problem.budget_usd_per_hour / price)
    most: Floats = np.where(units > 0, stock / np.where(units > 0, units, 1.0), 0.0).sum(axis=0)
    return most


def _objective(problem: OfferProblem, solution: OfferSolution) -> float:
    if problem.mix.weight is None:
        return solution.usd_per_hour
    pairs = zip(problem.levels, solution.levels, strict=True)
    return float(sum(level.time_frac * (problem.mix.weight @ mix.count) for level, mix in pairs))


class _Build:
    """The program of all levels: their mixes side by side, then the purchases."""

    def __init__(self, problem: OfferProblem, *, most_load: bool = False) -> None:
        self.problem = problem
        self.by_cost = problem.mix.weight is None and not most_load
        self.layouts = []
        self.offsets: list[int] = []
        self.blocks: list[Program] = []
        self.columns: list[tuple[str, float, float, float, bool]] = []
        self.rows: list[tuple[str, float, float]] = []
        self.entries: list[tuple[int, int, float]] = []
        self.bought: dict[tuple[int, int, int], int] = {}
        self.paid: dict[int, int] = {}
        self.num_block_columns = self.num_block_rows = 0
        self.row_offsets: list[int] = []
        for level in problem.levels:
            block, layout = mix_program(problem.at(level))
            self.layouts.append(layout)
            self.offsets.append(self.num_block_columns)
            self.row_offsets.append(self.num_block_rows)
            block = rate_program(problem.at(level)) if most_load else block
            self.blocks.append(block)
            self.num_block_columns += len(block.column_names)
            self.num_block_rows += len(block.row_names)
        self._buy()

    def _column(
        self, name: str, *, cost: float = 0.0, high: float = np.inf, low: float = 0.0, whole: bool
    ) -> int:
        self.columns.append((name, cost, low, high, whole))
        return self.num_block_columns + len(self.columns) - 1

    def _row(self, name: str, terms: dict[int, float], *, low: float = -np.inf, high: float = np.inf) -> None:
        row = self.num_block_rows + len(self.rows)
        self.rows.append((name, low, high))
        self.entries += [(row, column, value) for column, value in terms.items() if value]

    def _buy(self) -> None:
        """Add what is paid, then the purchases of every level."""
        problem = self.problem
        dollars: dict[int, float] = {}
        for o, offer in enumerate(problem.offers):
            if offer.committed:
                cost = offer.usd_per_hour if self.by_cost else 0.0
                self.paid[o] = self._column(
                    f"committed {offer.name}",
                    cost=cost,
                    low=offer.min_total,
                    high=offer.max_total,
                    whole=False,
                )
                dollars[self.paid[o]] = offer.usd_per_hour
        for number, level in enumerate(problem.levels):
            label = f"{level.rate_frac:g} load {number}: " if len(problem.levels) > 1 else ""
            for i, item in enumerate(problem.mix.item_names):
                for o, offer in enumerate(problem.offers):
                    if offer.units[i] <= 0:
                        continue
                    paid = (
                        0.0
                        if offer.committed
                        else level.time_frac * offer.usd_per_hour * float(offer.units[i])
                    )
                    column = self._column(
                        f"{label}{item} on {offer.name}", cost=paid if self.by_cost else 0.0, whole=True
                    )
                    self.bought[number, o, i] = column
                    dollars[column] = paid
                    if offer.interruptible and offer.away_frac > 0:
                        self._count_out(number, i, column, offer, f"{label}{item} on {offer.name}")
                self._link(number, i, f"{label}{item}")
            for o, offer in enumerate(problem.offers):
                self._stock(number, o, offer, f"{label}offer {offer.name}")
        if problem.budget_usd_per_hour is not None:
            self._row("limit budget_usd_per_hour", dollars, high=problem.budget_usd_per_hour)

    def _link(self, number: int, i: int, label: str) -> None:
        """Instances are bought somewhere; not too many of them where they can be taken back."""
        count = self.offsets[number] + i
        mine = {o: c for (n, o, k), c in self.bought.items() if n == number and k == i}
        self._row(f"buy {label}", {count: -1.0, **dict.fromkeys(mine.values(), 1.0)}, low=0.0, high=0.0)
        spot = [c for o, c in mine.items() if self.problem.offers[o].interruptible]
        if spot and self.problem.max_interruptible_frac < 1.0:
            share = {count: -self.problem.max_interruptible_frac, **dict.fromkeys(spot, 1.0)}
            self._row(f"interruptible {label}", share, high=0.0)

    def _stock(self, number: int, o: int, offer: MixOffer, label: str) -> None:
        taken = {c: float(offer.units[i]) for (n, k, i), c in self.bought.items() if n == number and k == o}
        if offer.committed:
            self._row(f"limit {label}", {**taken, self.paid[o]: -1.0}, high=0.0)
        elif np.isfinite(offer.max_total) or offer.min_total:
            self._row(f"limit {label}", taken, low=offer.min_total, high=offer.max_total)

    def _count_out(self, number: int, i: int, column: int, offer: MixOffer, label: str) -> None:
        """Let each further interruption at once be counted out of the capacity before more are bought."""
        mix = self.problem.mix
        load = mix.load[i][np.isfinite(mix.load[i])].sum()
        spare = 0 if mix.spare is None else int(mix.spare[i])
        most = 4 + int(min(2.0 * np.ceil(load + spare) + offer.min_total, offer.max_total / offer.units[i]))
        steps = away_steps(offer.away_frac, self.problem.beyond_frac, min(2 * most, _MAX_INSTANCES))
        if not len(steps):
            return
        capacity = self.row_offsets[number] + len(mix.bucket_names) + i
        reach = np.append(steps, min(2 * most, _MAX_INSTANCES) + 1)[: MAX_STEPS + 1]
        away = [self._column(f"away {j + 1} of {label}", high=1.0, whole=True) for j in range(len(reach) - 1)]
        self.entries += [(capacity, c, 1.0) for c in away]
        gaps = -np.diff(reach).astype(float)
        terms = {column: 1.0, **dict(zip(away, gaps.tolist(), strict=True))}
        self._row(f"away of {label}", terms, high=float(reach[0] - 1))
        for j, (first, second) in enumerate(pairwise(away)):
            self._row(f"away {j + 2} after {j + 1} of {label}", {first: -1.0, second: 1.0}, high=0.0)

    def program(self) -> Program:
        """Return everything as one program."""
        several = len(self.blocks) > 1
        names = [f"{n} at {k}" if several else n for k, b in enumerate(self.blocks) for n in b.column_names]
        rows = [f"{n} at {k}" if several else n for k, b in enumerate(self.blocks) for n in b.row_names]
        cost = [
            np.zeros(len(b.cost)) if self.by_cost else b.cost * level.time_frac
            for b, level in zip(self.blocks, self.problem.levels, strict=True)
        ]
        more = np.array([c[1:] for c in self.columns], dtype=float).reshape(-1, 4)
        extra = np.array(self.entries, dtype=float).reshape(-1, 3)
        entry_rows = [b.entry_rows + at for b, at in zip(self.blocks, self.row_offsets, strict=True)]
        entry_columns = [b.entry_columns + at for b, at in zip(self.blocks, self.offsets, strict=True)]
        all_rows = np.concatenate([*entry_rows, extra[:, 0].astype(np.int64)])
        all_columns = np.concatenate([*entry_columns, extra[:, 1].astype(np.int64)])
        values = np.concatenate([*(b.entry_values for b in self.blocks), extra[:, 2]])
        order = np.lexsort((all_columns, all_rows))
        return Program(
            column_names=(*names, *(c[0] for c in self.columns)),
            cost=np.concatenate([*cost, more[:, 0]]),
            lower=np.concatenate([*(b.lower for b in self.blocks), more[:, 1]]),
            upper=np.concatenate([*(b.upper for b in self.blocks), more[:, 2]]),
            integer=np.concatenate([*(b.integer for b in self.blocks), more[:, 3].astype(bool)]),
            row_names=(*rows, *(r[0] for r in self.rows)),
            row_lower=np.concatenate([*(b.row_lower for b in self.blocks), [r[1] for r in self.rows]]),
            row_upper=np.concatenate([*(b.row_upper for b in self.blocks), [r[2] for r in self.rows]]),
            entry_rows=all_rows[order],
            entry_columns=all_columns[order],
            entry_values=values[order],
        )

    def decoded(self, values: Floats) -> OfferSolution:
        """Return the mixes and purchases of a solved program."""
        problem = self.problem
        num_items, num_offers = len(problem.mix.item_names), len(problem.offers)
        bought = np.zeros((len(problem.levels), num_offers, num_items), dtype=np.int64)
        for (number, o, i), column in self.bought.items():
            bought[number, o, i] = round(values[column])
        units = np.stack([offer.units for offer in problem.offers])
        used = (bought * units).sum(axis=2)
        total = used.max(axis=0)
        for o, offer in enumerate(problem.offers):
            if offer.committed:
                total[o] = max(total[o], offer.min_total)
        committed = np.array([offer.committed for offer in problem.offers])
        price = np.array([offer.usd_per_hour for offer in problem.offers])
        bill = np.where(committed, total, used) @ price
        mixes = []
        for number, layout in enumerate(self.layouts):
            shares = np.zeros(problem.mix.load.shape)
            first = self.offsets[number] + num_items
            given = np.clip(values[first : first + len(layout.items)], 0.0, 1.0)
            shares[layout.items, layout.buckets] = given
            mixes.append(
                MixSolution(
                    count=bought[number].sum(axis=0),
                    share=shares / shares.sum(axis=0, keepdims=True),
                    usd_per_hour=float(bill[number]),
                    best_single_usd_per_hour=best_single(problem.mix),
                    away=away_in(problem, bought[number]),
                    bought=bought[number],
                )
            )
        hours = np.array([level.time_frac for level in problem.levels])
        return OfferSolution(levels=tuple(mixes), total=total, usd_per_hour=float(hours @ bill))
