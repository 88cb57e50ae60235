"""An engine: one scheduler, or several in lockstep, whose iterations take the time that a timer says."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from planner.simulate.rank import Rank
from planner.simulate.timing import Load

if TYPE_CHECKING:
    from planner.simulate.requests import RequestTable
    from planner.simulate.settings import EngineSettings, Role
    from planner.simulate.timing import StepTimer

__all__ = ["LOG_FIELDS", "Engine"]

_NEVER = float("inf")

LOG_FIELDS = (
    "start_s",
    "end_s",
    "ticks",
    "num_seqs",
    "prefill_tokens",
    "used_blocks",
    "waiting",
    "last_tick",
    "longest_gap_s",
)
"""One row per event of a rank: an iteration, or a run of decode iterations."""


class Engine:
    """Runs the iterations of its ranks, one event per change of the batch.

    Attributes
    ----------
    index : position in the fleet.
    ranks : schedulers; more than one steps in lockstep.
    end_s : when the running event ends; infinite while idle.
    busy : whether an event is running.
    logs : one flat array per rank with the columns `LOG_FIELDS`; empty if not `logged`.
    """

    __slots__ = (
        "_first_s",
        "_gate",
        "_growth_s",
        "_logged",
        "_num_stages",
        "_run_ahead",
        "_seen_s",
        "_stalled_s",
        "_start_s",
        "_swap_s_per_token",
        "_ticks",
        "_timer",
        "busy",
        "end_s",
        "index",
        "logs",
        "ranks",
    )

    def __init__(
        self,
        index: int,
        *,
        settings: EngineSettings,
        timer: StepTimer,
        table: RequestTable,
        kv_tokens: int,
        num_ranks: int = 1,
        role: Role,
        swap_s_per_token: float = 0.0,
        gate: list[float] | None = None,
        num_stages: int = 1,
        logged: bool = True,
    ) -> None:
        self.index = index
        self._gate = gate
        self._num_stages = num_stages
        self._logged = logged
        self.ranks = [Rank(settings, kv_tokens, table, role) for _ in range(num_ranks)]
        self._timer = timer
        self._swap_s_per_token = swap_s_per_token
        self._run_ahead = settings.run_ahead
        self._seen_s = _NEVER
        self._ticks = 0
        self._start_s = 0.0
        self._first_s = 0.0
        self._growth_s = 0.0
        self._stalled_s = [0.0] * num_ranks
        self.end_s = _NEVER
        self.busy = False
        self.logs = [array("d") for _ in range(num_ranks)]

    def plan(self, now_s: float) -> bool:
        """Start the next event; return False, and stay idle, when there is nothing to do."""
        ranks = self.ranks
        if len(ranks) > 1:
            return self._plan_lockstep(now_s)
        rank = ranks[0]
        ticks = rank.schedule(now_s, self._seen_s)
        if ticks < 0:
            self._rest()
            return False
        load = rank.load
        timer = self._timer
        first_s = (
            timer.step_s(load)
            if load.prefill_tokens
            else timer.decode_s(load.num_seqs, load.kv_tokens, load.longest_kv)
        )
        growth_s = 0.0
        if ticks > 1:
            last_kv = load.kv_tokens + (ticks - 1) * rank.batch.growth
            last_s = timer.decode_s(load.num_seqs, last_kv, load.longest_kv + ticks - 1)
            growth_s = (last_s - first_s) / (ticks - 1)
        if rank.swap_tokens:
            first_s += rank.swap_tokens * self._swap_s_per_token
            ticks = min(ticks, 1)
        self._start(now_s, ticks, first_s, growth_s)
        return True

    def interrupt(self, now_s: float, request: int, rank: int) -> bool:
        """End a run of decode iterations at the first boundary after `now_s`, if `request` could join then.

        Returns whether the end has moved.
        """
        if self._ticks <= 1 or not self.ranks[rank].can_start(request):
            return False
        passed_s = now_s - self._start_s
        ticks = min(self._ticks, max(1, int(passed_s / self._first_s)))
        while ticks > 1 and self._elapsed_s(ticks - 1) >= passed_s:
            ticks -= 1
        while ticks < self._ticks and self._elapsed_s(ticks) < passed_s:
            ticks += 1
        ticks += self._run_ahead
        if ticks >= self._ticks:
            return False
        self._ticks = ticks
        self.end_s = self._start_s + self._elapsed_s(ticks)
        return True

    def complete(self) -> tuple[list[int], list[int]]:
        """Book the event that ends now; return the finished requests and those prefilled for others."""
        if self._run_ahead:
            self._seen_s = self._start_s + self._elapsed_s(max(self._ticks, 1) - 1)
        if len(self.ranks) == 1:
            return self._complete_rank(0, self._ticks)
        done: list[int] = []
        prefilled: list[int] = []
        for i, rank in enumerate(self.ranks):
            if rank.load.prefill_tokens or rank.load.num_seqs:
                finished, handed = self._complete_rank(i, self._ticks if rank.load.num_seqs else 0)
                done += finished
                prefilled += handed
        return done, prefilled

    def fail(self) -> list[int]:
        """Lose all state; return the requests that were here."""
        self._rest()
        self._stalled_s = [0.0] * len(self.ranks)
        return [request for rank in self.ranks for request in rank.drop_all()]

    @property
    def outstanding(self) -> int:
        """Requests that are not finished here."""
        return sum(rank.outstanding for rank in self.ranks)

    def _start(self, now_s: float, ticks: int, first_s: float, growth_s: float) -> None:
        if self._gate is not None:
            # The lanes of a pipeline share its first stage, which is busy for an equal part of an iteration.
            now_s = max(now_s, self._gate[0])
            self._gate[0] = now_s + first_s / self._num_stages
        self._ticks = ticks
        self._start_s = now_s
        self._first_s = first_s
        self._growth_s = growth_s
        self.end_s = now_s + self._elapsed_s(max(ticks, 1))
        self.busy = True

    def _elapsed_s(self, ticks: int) -> float:
        """Return the time of the first `ticks` iterations, whose times grow by a constant."""
        return ticks * (self._first_s + 0.5 * (ticks - 1) * self._growth_s)

    def _rest(self) -> None:
        self.busy = False
        self.end_s = self._seen_s = _NEVER

    def _plan_lockstep(self, now_s: float) -> bool:
        """Start one iteration of all ranks, or as many as none of them changes its batch in."""
        timer = self._timer
        ticks = [rank.schedule(now_s, self._seen_s) for rank in self.ranks]
        if max(ticks) < 0:
            self._rest()
            return False
        loads = [rank.load for rank in self.ranks]
        first_s = timer.lockstep_s(loads)
        growth_s = 0.0
        mixed = any(load.prefill_tokens for load in loads)
        run = 1 if mixed else min(t for t in ticks if t > 0)
        if run > 1:
            later = [
                Load(
                    num_seqs=load.num_seqs,
                    kv_tokens=load.kv_tokens + (run - 1) * rank.batch.growth,
                    longest_kv=load.longest_kv + run - 1,
                )
                for rank, load in zip(self.ranks, loads, strict=True)
            ]
            growth_s = (timer.lockstep_s(later) - first_s) / (run - 1)
        swap_tokens = max(rank.swap_tokens for rank in self.ranks)
        if swap_tokens:
            first_s += swap_tokens * self._swap_s_per_token
            run = 1
        self._start(now_s, run, first_s, growth_s)
        return True

    def _complete_rank(self, index: int, ticks: int) -> tuple[list[int], list[int]]:
        rank = self.ranks[index]
        end_s, load = self.end_s, rank.load
        if not self._logged:
            return rank.finish(ticks, end_s)
        if ticks:
            longest_s = max(
                self._first_s + self._stalled_s[index], self._first_s + (ticks - 1) * self._growth_s
            )
            self._stalled_s[index] = 0.0
        else:
            longest_s = 0.0
            self._stalled_s[index] += end_s - self._start_s
        used = rank.pool.num_blocks - rank.pool.free_blocks
        done, prefilled = rank.finish(ticks, end_s)
        if not rank.batch.ends:
            self._stalled_s[index] = 0.0
        self.logs[index].extend(
            (
                self._start_s,
                end_s,
                ticks,
                load.num_seqs,
                load.prefill_tokens,
                used,
                len(rank.waiting),
                rank.batch.tick,
                longest_s,
            )
        )
        return done, prefilled
