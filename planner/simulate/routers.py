"""Which engine takes a request: small functions over the engines that are up.

A target is one rank of one engine, since ranks in lockstep have their own queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hardware.errors import UnknownNameError

if TYPE_CHECKING:
    from planner.simulate.fleet import Fleet
    from planner.simulate.rank import Rank
    from planner.simulate.requests import RequestTable

__all__ = ["ROUTERS", "Router", "Target", "make_router"]


class Target:
    """One rank of one engine as the router sees it."""

    __slots__ = ("engine", "pool", "rank", "rank_index", "routed")

    def __init__(self, engine: int, rank_index: int, rank: Rank, pool: int) -> None:
        self.engine = engine
        self.rank_index = rank_index
        self.rank = rank
        self.pool = pool
        self.routed = 0


Router = Callable[[int, Sequence[Target], float], Target]
"""(request, targets that are up, a uniform random number of that request) to the chosen target."""


def _random(_: int, targets: Sequence[Target], draw: float) -> Target:
    return targets[int(draw * len(targets))]


def _round_robin(_: int, targets: Sequence[Target], __: float) -> Target:
    return min(targets, key=lambda t: t.routed)


def _least_outstanding(_: int, targets: Sequence[Target], __: float) -> Target:
    return min(targets, key=lambda t: t.rank.outstanding)


def _vllm(_: int, targets: Sequence[Target], __: float) -> Target:
    """VLLM's own balancer of data-parallel ranks: four times the waiting plus the running requests."""
    return min(targets, key=lambda t: 4 * len(t.rank.waiting) + t.rank.num_running)


def _make_least_kv(table: RequestTable) -> Router:
    """The lowest share of cache that is held or waited for; a cached prefix counts for its engine."""

    def pressure(target: Target, request: int) -> float:
        rank = target.rank
        pool = rank.pool
        queued = sum(table.target_tokens[r] for r in (*rank.waiting, *rank.pending))
        saved = rank.hit_blocks(request)
        return (
            float(pool.num_blocks - pool.free_blocks + queued / pool.block_tokens - saved) / pool.num_blocks
        )

    return lambda request, targets, _: min(targets, key=lambda t: pressure(t, request))


def _make_prefix(table: RequestTable) -> Router:
    """The engine that served most of the prefix, unless it has twice the mean load; or least outstanding."""
    home: dict[int, tuple[int, int]] = {}

    def route(request: int, targets: Sequence[Target], draw: float) -> Target:
        path = table.paths[request] if table.tree is not None else (table.chain[request],)
        chosen = _least_outstanding(request, targets, draw)
        known = next((home[node] for node in reversed(path) if node in home), None)
        at_home = next((t for t in targets if (t.engine, t.rank_index) == known), None)
        if at_home is not None:
            mean = sum(t.rank.outstanding for t in targets) / len(targets)
            if at_home.rank.outstanding <= 2.0 * mean + 1.0:
                chosen = at_home
        home.update(dict.fromkeys(path, (chosen.engine, chosen.rank_index)))
        return chosen

    return route


def _make_size(table: RequestTable, fleet: Fleet) -> Router:
    """The pool by the plan's shares for the request's size, then the least outstanding of its engines, or
    the one with the prefix where the trace says what is shared.
    """
    taken: dict[tuple[int, int], float] = {}
    within = _least_outstanding if table.tree is None else _make_prefix(table)

    def shares(request: int) -> tuple[int, tuple[float, ...]]:
        prompt, output = table.prompt_tokens[request], table.output_tokens[request]
        for row, (prompt_max, output_max, share) in enumerate(fleet.shares):
            if prompt <= prompt_max and output <= output_max:
                return row, share
        return len(fleet.shares), tuple(float(p.count) for p in fleet.pools)

    def route(request: int, targets: Sequence[Target], draw: float) -> Target:
        row, share = shares(request)
        up = {t.pool for t in targets}
        able = [p for p in range(len(share)) if share[p] > 0.0 and p in up] or sorted(up)
        # Deficit round robin: the pool that is furthest behind its share gets the request.
        pool = min(able, key=lambda p: (taken.get((row, p), 0.0) + 1.0) / max(share[p], 1e-12))
        taken[row, pool] = taken.get((row, pool), 0.0) + 1.0
        return within(request, [t for t in targets if t.pool == pool], draw)

    return route


ROUTERS = ("random", "round-robin", "least-outstanding", "least-kv", "vllm", "prefix", "size")
STATELESS = {"random": _random, "round-robin": _round_robin}


def make_router(name: str, table: RequestTable, fleet: Fleet) -> Router:
    """Return the router of that name, fresh.

    Raises
    ------
    UnknownNameError
        for a name that is not in `ROUTERS`.
    """
    simple: dict[str, Router] = {
        **STATELESS,
        "least-outstanding": _least_outstanding,
        "vllm": _vllm,
    }
    if name in simple:
        return simple[name]
    if name == "least-kv":
        return _make_least_kv(table)
    if name == "prefix":
        return _make_prefix(table)
    if name == "size":
        return _make_size(table, fleet)
    raise UnknownNameError("router", name, ROUTERS)
