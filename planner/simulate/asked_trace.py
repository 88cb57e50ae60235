"""The trace that a question asks for: replayed as it is, or made from a trace or a named workload."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from costmodels.traces import Trace, read_trace
from hardware.errors import SpecError, UnknownNameError
from planner.simulate.arrivals import fit_bursts, make_trace, sessions_trace
from planner.workload import read_workload

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ARRIVALS", "AskedTrace"]

ARRIVALS = ("replay", "poisson", "gamma", "weibull", "bursts", "sessions")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTrace:
    """What is replayed; see the options of `meshwright simulate`."""

    path: Path | None = None
    workload: str | None = None
    """In place of a trace: a named distribution, fixed:PROMPTxOUTPUT or a histogram."""
    rate_per_s: float | None = None
    num_requests: int | None = None
    arrivals: str | None = None
    """One of `ARRIVALS`; by default a trace is replayed, a workload arrives with its own variation."""
    mean_turns: float = 4.0
    think_s: float = 30.0
    """Of sessions: mean turns of a conversation, and mean time from one turn's start to the next one's."""

    @property
    def is_empty(self) -> bool:
        """Whether neither a trace nor a workload is given."""
        return self.path is None and self.workload is None

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises
        ------
        SpecError, UnknownNameError
        """
        if self.is_empty:
            told = "is missing: a CSV with arrival_s, prompt_tokens and output_tokens (or --workload NAME)"
            raise SpecError("--trace", [told])
        if self.path is not None and self.workload is not None:
            raise SpecError("--trace", ["give either --trace CSV or --workload NAME"])
        if self.arrivals is not None and self.arrivals not in ARRIVALS:
            raise UnknownNameError("arrivals", self.arrivals, ARRIVALS)
        if self.workload is not None:
            if self.arrivals in ("replay", "bursts"):
                raise SpecError("--arrivals", [f"{self.arrivals} needs a --trace, not a --workload"])
            if self.num_requests is None:
                raise SpecError("--num-requests", ["is needed with --workload: how many requests to make"])
        if self.mean_turns < 1.0 or self.think_s <= 0.0:
            problem = f"--mean-turns {self.mean_turns:g}, --think-s {self.think_s:g}: from 1, and above 0"
            raise SpecError("--arrivals sessions", [problem])

    def trace(self, seed: int) -> Trace:
        """Return the trace that is simulated."""
        self.check()
        if self.path is None:
            return self._made(seed, None)
        given = read_trace(self.path)
        if self.num_requests is not None:
            given = given.head(self.num_requests)
        if self.rate_per_s is not None:
            given = given.scaled(self.rate_per_s)
        return given if self.arrivals in (None, "replay") else self._made(seed, given)

    def replication(self, seed: int) -> Trace:
        """Return a made trace of the same traffic; another for every seed."""
        given = None if self.path is None else replace(self, arrivals=None).trace(seed)
        return self._made(seed, given)

    def _made(self, seed: int, given: Trace | None) -> Trace:
        """Return a made trace with the sizes and the rate of a trace or a workload."""
        if given is None:
            traffic = read_workload(self.workload or "", rate_per_s=self.rate_per_s).traffic
            count = self.num_requests or 1
        else:
            traffic, count = given.traffic(), len(given)
        if self.arrivals == "sessions":
            sessions = max(1, round(count / self.mean_turns))
            return sessions_trace(
                traffic, num_sessions=sessions, mean_turns=self.mean_turns, think_s=self.think_s, seed=seed
            )
        if self.arrivals == "bursts" and given is not None:
            return make_trace(traffic, num_requests=count, seed=seed, bursts=fit_bursts(given))
        if self.arrivals == "poisson":
            traffic = replace(traffic, arrival_cv=1.0)
        law = self.arrivals if self.arrivals in ("gamma", "weibull") else None
        made = make_trace(traffic, num_requests=count, seed=seed, law=law)
        assert np.all(np.diff(made.arrival_s) >= 0.0)
        return made
