"""Ranks on devices as an assignment problem: units, sites, what one unit sends to another, and its cost.

A *unit* is what moves as one: a rank, or all ranks of one host. A *site* is where it may sit: a device or a
host. Traffic comes in *terms* (the gradient rings of all stages, the pipeline hops, an all-to-all), a term in
groups (one ring, one pipeline), a group in directed edges. With x_e the seconds per byte of the link under
edge e and c_e its bytes,

    cost = sum over terms  weight * across_groups( within_group( c_e * x_e ) ),

where *within* is the maximum (a ring waits for its slowest link) or the sum (a micro-batch passes hop after
hop), and *across* is the maximum (all groups must end) or the sum. With several scenarios of the link speeds
the cost of an assignment is its mean over them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["PlacementProblem", "Reduce", "Term", "all_to_all_term", "chain_term", "ring_term"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Reduce = Literal["max", "sum"]

_CHUNK = 4_000_000
"""Values held at once when many assignments are costed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Term:
    """One kind of traffic. Edges are sorted by group and groups are numbered from 0 without holes."""

    name: str
    head: Ints
    """Unit that sends. shape (edges,)"""
    tail: Ints
    """Unit that receives. shape (edges,)"""
    group: Ints
    """shape (edges,)"""
    num_bytes: Floats
    """Bytes that pass the edge, times how often. shape (edges,)"""
    within: Reduce
    across: Reduce
    weight: float = 1.0

    def __post_init__(self) -> None:
        sizes = {len(self.head), len(self.tail), len(self.group), len(self.num_bytes)}
        if len(sizes) != 1:
            message = f"term {self.name}: edge columns differ in length: {sorted(sizes)}"
            raise ValueError(message)
        if len(self.group) and (
            np.diff(self.group, prepend=-1).max() > 1 or np.diff(self.group).min(initial=0) < 0
        ):
            message = f"term {self.name}: groups must be sorted and numbered from 0 without holes"
            raise ValueError(message)
        if np.any(self.num_bytes < 0) or self.weight < 0:
            message = f"term {self.name}: bytes and weight must not be negative"
            raise ValueError(message)

    @property
    def num_groups(self) -> int:
        """Groups of this term."""
        return int(self.group[-1]) + 1 if len(self.group) else 0

    @property
    def starts(self) -> Ints:
        """First edge of each group."""
        return np.searchsorted(self.group, np.arange(self.num_groups)).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacementProblem:
    """Assign every unit to its own site at the least cost."""

    num_units: int
    seconds_per_byte: Floats
    """From site to site, one matrix per scenario; the diagonal is traffic inside a site. shape (K, S, S)"""
    terms: tuple[Term, ...]
    unit_class: Ints | None = None
    """A unit may only sit on a site of its own class (device type, fabric). shape (units,)"""
    site_class: Ints | None = None
    """shape (S,)"""

    def __post_init__(self) -> None:
        links = self.seconds_per_byte
        if links.ndim != 3 or links.shape[1] != links.shape[2]:
            message = f"seconds_per_byte has shape {links.shape}, (scenarios, sites, sites) is needed"
            raise ValueError(message)
        if not np.all(np.isfinite(links)) or np.any(links < 0):
            message = "seconds_per_byte must be finite and not negative"
            raise ValueError(message)
        if self.num_units > links.shape[1]:
            message = f"{self.num_units} units do not fit on {links.shape[1]} sites"
            raise ValueError(message)
        for term in self.terms:
            if len(term.head) and max(int(term.head.max()), int(term.tail.max())) >= self.num_units:
                message = f"term {term.name} names a unit beyond {self.num_units - 1}"
                raise ValueError(message)
        if (self.unit_class is None) != (self.site_class is None):
            message = "unit_class and site_class belong together"
            raise ValueError(message)

    @property
    def num_sites(self) -> int:
        """Places to choose from."""
        return int(self.seconds_per_byte.shape[1])

    def cost_s(self, assignments: Ints) -> Floats:
        """Return the mean cost over scenarios. shape (B,) for assignments of shape (B, units)."""
        mean: Floats = self.scenario_cost_s(assignments).mean(axis=0)
        return mean

    def scenario_cost_s(self, assignments: Ints) -> Floats:
        """Return the cost per scenario. shape (K, B)"""
        num_scenarios, num_rows = self.seconds_per_byte.shape[0], len(assignments)
        total = np.zeros((num_scenarios, num_rows))
        for term in self.terms:
            if not len(term.head):
                continue
            step = max(1, _CHUNK // (num_scenarios * len(term.head)))
            for begin in range(0, num_rows, step):
                part = assignments[begin : begin + step]
                groups = self.group_cost_s(term, part)
                reduced = groups.max(axis=-1) if term.across == "max" else groups.sum(axis=-1)
                total[:, begin : begin + step] += term.weight * reduced
        return total

    def group_cost_s(self, term: Term, assignments: Ints) -> Floats:
        """Return the cost of each group of a term. shape (K, B, groups)"""
        size = self.num_sites
        flat = self.seconds_per_byte.reshape(len(self.seconds_per_byte), -1)
        edges = flat[:, assignments[:, term.head] * size + assignments[:, term.tail]] * term.num_bytes
        reduce = np.maximum if term.within == "max" else np.add
        groups: Floats = reduce.reduceat(edges, term.starts, axis=-1)
        return groups


def ring_term(name: str, groups: Ints, num_bytes: float, *, weight: float = 1.0) -> Term:
    """Return rings in the given member order; all rings run at once and each waits for its slowest link.

    Parameters
    ----------
    groups : units in ring order, one row per ring. shape (groups, members)
    num_bytes : bytes that pass every link of a ring, 2 (n - 1) / n of the buffer for an all-reduce.
    """
    if groups.shape[1] < 2:
        return _edges(
            name, np.empty((len(groups), 0), np.int64), np.empty((len(groups), 0), np.int64), 0.0, weight
        )
    return _edges(name, groups, np.roll(groups, -1, axis=1), num_bytes, weight)


def chain_term(
    name: str,
    groups: Ints,
    forward_bytes: float,
    backward_bytes: float,
    *,
    across: Reduce = "max",
    weight: float = 1.0,
) -> Term:
    """Return pipelines: hop after hop down the row and, for gradients, up again; the slowest row counts."""
    head, tail = groups[:, :-1], groups[:, 1:]
    down = _edges(name, head, tail, forward_bytes, weight, within="sum", across=across)
    if backward_bytes == 0:
        return down
    both = _edges(
        name, np.hstack([head, tail]), np.hstack([tail, head]), 1.0, weight, within="sum", across=across
    )
    hops = head.shape[1]
    sizes = np.tile(np.repeat([forward_bytes, backward_bytes], hops), len(groups)).astype(float)
    return Term(
        name=name,
        head=both.head,
        tail=both.tail,
        group=both.group,
        num_bytes=sizes,
        within="sum",
        across=across,
        weight=weight,
    )


def all_to_all_term(name: str, groups: Ints, pair_bytes: float, *, weight: float = 1.0) -> Term:
    """Return exchanges in which every member sends `pair_bytes` to every other one, one after the other.

    A member's sends are one group, so the term is the slowest member's time.
    """
    size = groups.shape[1]
    if size < 2:
        return ring_term(name, groups, 0.0, weight=weight)
    other = np.array([[(i + d) % size for d in range(1, size)] for i in range(size)], dtype=np.int64)
    head = np.repeat(groups.reshape(-1, 1), size - 1, axis=1)
    tail = groups[:, other.reshape(size, -1)].reshape(-1, size - 1)
    return _edges(name, head, tail, pair_bytes, weight, within="sum")


def _edges(
    name: str,
    head: Ints,
    tail: Ints,
    num_bytes: float,
    weight: float,
    *,
    within: Reduce = "max",
    across: Reduce = "max",
) -> Term:
    """Return a term from equal tables of heads and tails, one row per group; without columns it is empty."""
    num_groups, width = head.shape
    return Term(
        name=name,
        head=head.reshape(-1).astype(np.int64),
        tail=tail.reshape(-1).astype(np.int64),
        group=np.repeat(np.arange(num_groups if width else 0), width),
        num_bytes=np.full(num_groups * width, float(num_bytes)),
        within=within,
        across=across,
        weight=weight,
    )
