"""What the network between hosts was measured to do: one matrix of rates per snapshot.

In a cluster file::

    measured_links:
      hosts: [node0, node1, node2]
      snapshots:                # one matrix per measurement, B/s; row i holds what host i sends to host j
        - ["- 1.91e10 1.88e10", "1.9e10 - 1.87e10", "1.92e10 1.85e10 -"]
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from hardware.errors import SpecError

__all__ = ["MeasuredLinks", "MeasuredLinksEntry", "links_from_matrices", "read_links"]

Floats = npt.NDArray[np.float64]

_PLAUSIBLE_BYTES_PER_S = (1e5, 2e12)
"""From below a 1 Mb/s line to beyond the fastest link of 2026: outside, the unit was another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLinksEntry:
    """`measured_links` as a cluster file gives it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    hosts: tuple[str, ...]
    """In the order of the cluster's nodes."""
    snapshots: tuple[tuple[str, ...], ...]
    """One text per row, rates in B/s, ``-`` on the diagonal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredLinks:
    """Rates from host to host, in one or several snapshots."""

    hosts: tuple[str, ...]
    bytes_per_s: Floats
    """One way; the diagonal is not a number. shape (snapshots, hosts, hosts)"""

    @cached_property
    def mean_bytes_per_s(self) -> Floats:
        """Harmonic mean over the snapshots: the rate of the mean time. shape (hosts, hosts)"""
        mean: Floats = 1.0 / np.mean(1.0 / self.bytes_per_s, axis=0)
        return mean

    @cached_property
    def spread_frac(self) -> Floats | None:
        """Standard deviation between snapshots, in logarithms; None for a single one. shape (hosts, hosts)"""
        if len(self.bytes_per_s) < 2:
            return None
        spread: Floats = np.std(np.log(self.bytes_per_s), axis=0, ddof=1)
        return spread

    @property
    def num_hosts(self) -> int:
        """Hosts measured."""
        return len(self.hosts)

    def first(self, num_hosts: int) -> "MeasuredLinks":
        """Return the links among the first hosts."""
        rates = self.bytes_per_s[:, :num_hosts, :num_hosts]
        return MeasuredLinks(hosts=self.hosts[:num_hosts], bytes_per_s=rates)

    def entry(self) -> dict[str, object]:
        """Return the `measured_links` block of a cluster file."""
        rows = [
            [" ".join("-" if np.isnan(v) else f"{v:.6g}" for v in row) for row in snapshot]
            for snapshot in self.bytes_per_s
        ]
        return {"hosts": list(self.hosts), "snapshots": rows}


def links_from_matrices(where: str, hosts: tuple[str, ...], snapshots: list[Floats]) -> MeasuredLinks:
    """Return checked links.

    Raises
    ------
    SpecError
        naming repeated hosts, and every missing, negative or implausible rate (the first few of them).
    """
    problems = [f"hosts: {h!r} is given twice" for h in sorted({h for h in hosts if hosts.count(h) > 1})]
    size = len(hosts)
    if size < 2:
        problems.append(f"hosts: at least 2 are needed, found {size}")
    if not snapshots:
        problems.append("snapshots: at least one matrix is needed")
    for number, matrix in enumerate(snapshots):
        if matrix.shape != (size, size):
            problems.append(
                f"snapshots.{number}: {matrix.shape[0]} x {matrix.shape[1]} rates for {size} hosts"
            )
            continue
        low, high = _PLAUSIBLE_BYTES_PER_S
        bad = ~np.eye(size, dtype=bool) & ~((matrix >= low) & (matrix <= high))
        found = [f"{hosts[i]} to {hosts[j]} is {matrix[i, j]:g}" for i, j in np.argwhere(bad)[:5]]
        if found:
            more = f" and {int(bad.sum()) - 5} more" if bad.sum() > 5 else ""
            needed = f"rates must be positive, B/s from {low:g} to {high:g}"
            problems.append(f"snapshots.{number}: {'; '.join(found)}{more}; {needed}")
    if problems:
        raise SpecError(where, problems)
    stack = np.stack([np.asarray(matrix, dtype=np.float64) for matrix in snapshots])
    stack[:, np.arange(size), np.arange(size)] = np.nan
    return MeasuredLinks(hosts=hosts, bytes_per_s=stack)


def read_links(entry: MeasuredLinksEntry, where: str) -> MeasuredLinks:
    """Return the links of a cluster file's block.

    Raises
    ------
    SpecError
        naming what is no matrix of positive rates.
    """
    matrices = []
    for number, rows in enumerate(entry.snapshots):
        values = [[_rate(text) for text in row.split()] for row in rows]
        widths = sorted({len(row) for row in values})
        if widths != [len(values)]:
            place = f"measured_links.snapshots.{number}"
            raise SpecError(where, [f"{place}: {len(values)} rows of {widths} rates are no square matrix"])
        matrices.append(np.array(values))
    return links_from_matrices(where, entry.hosts, matrices)


def _rate(text: str) -> float:
    if text == "-":
        return float("nan")
    try:
        return float(text)
    except ValueError:
        return float("nan")
