"""One scheduler with its cache: forms iterations, grows and frees blocks, preempts.

A run of iterations in which nothing enters or leaves the batch is one event.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from planner.simulate.decode_set import DecodeSet
from planner.simulate.settings import Batching, Preemption, Role
from planner.simulate.timing import Load
from planner.simulate.tree_pool import block_pool

if TYPE_CHECKING:
    from planner.simulate.requests import RequestTable
    from planner.simulate.settings import EngineSettings

__all__ = ["Rank"]

_MANY = 1 << 40
_NEVER = float("inf")


class Rank:
    """Scheduler state of one replica (or one data-parallel rank of an engine in lockstep).

    Attributes
    ----------
    batch : the decoding requests.
    waiting : requests that hold no memory, next first.
    pending : requests prefilled elsewhere that wait for memory here, next first.
    num_arriving : requests whose cache is on its way here; their memory is held.
    ready : requests whose cache has arrived and that start decoding next.
    prefilling : requests whose prompt is being computed, in order.
    pool : the cache memory.
    outstanding : requests that are not finished here.
    load : what the scheduled iteration holds.
    swap_tokens : cached tokens that the scheduled iteration moves to or from host memory.
    """

    __slots__ = (
        "_chunks",
        "_now_s",
        "_settings",
        "_step_tokens",
        "_table",
        "_unseen",
        "batch",
        "load",
        "num_arriving",
        "outstanding",
        "pending",
        "pool",
        "prefilling",
        "ready",
        "role",
        "swap_tokens",
        "waiting",
    )

    def __init__(
        self, settings: EngineSettings, kv_tokens: int, table: RequestTable, role: Role = Role.BOTH
    ) -> None:
        self._settings = settings
        self._step_tokens = settings.step_tokens
        self._table = table
        self.pool = block_pool(settings, kv_tokens, table, role)
        self._chunks: list[tuple[int, int]] = []
        self._unseen = False
        self._now_s = 0.0
        self.batch = DecodeSet(
            block_tokens=settings.block_tokens, step_tokens=self._step_tokens, held=self.pool.held
        )
        self.role = role
        self.waiting: deque[int] = deque()
        self.pending: deque[int] = deque()
        self.ready: deque[int] = deque()
        self.num_arriving = 0
        self.outstanding = 0
        self.prefilling: dict[int, None] = {}
        self.load = Load()
        self.swap_tokens = 0

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self.batch.ends) + len(self.prefilling)

    def enqueue(self, request: int) -> None:
        """Add a new request, or one that starts again."""
        self.waiting.append(request)
        self.outstanding += 1

    def enqueue_prefilled(self, request: int) -> None:
        """Add a request whose prompt was computed elsewhere."""
        self.pending.append(request)
        self.outstanding += 1

    def can_start(self, request: int) -> bool:
        """Return whether a newly arrived request could join the next iteration."""
        if self.waiting or self.num_running + len(self.pool.left) >= self._settings.max_seqs:
            return False
        if self.pending and self.pending[0] != request:
            return False
        return self.pool.has_room(request)

    def schedule(self, now_s: float, seen_s: float = _NEVER) -> int:
        """Form the next iteration; return for how many ticks it can repeat unchanged.

        Zero means an iteration of prompts only (decodes, if any, wait); -1 that there is nothing to do.

        Parameters
        ----------
        seen_s : what was queued later is not known yet, unless there is nothing else to do.
        """
        ticks = self._form(now_s, seen_s)
        if ticks < 0 and (self._unseen or self.pool.left):
            self.pool.release_left()
            ticks = self._form(now_s, _NEVER)
        elif ticks > 1 and self.waiting and (self._unseen or self.pool.left):
            ticks = 1
        return ticks

    def _form(self, now_s: float, seen_s: float) -> int:
        load, settings, batch = self.load, self._settings, self.batch
        load.prefill_tokens = 0
        load.prefill_pairs = 0.0
        self._chunks.clear()
        self._now_s, self._unseen = now_s, False
        self.swap_tokens = self.pool.reserved_blocks = 0
        if self.ready:
            self._start_ready(now_s)
        if settings.batching is Batching.PREFILL_FIRST:
            self._admit(settings.token_budget, now_s, seen_s)
            if self._chunks:
                load.num_seqs = 0
                load.kv_tokens = load.longest_kv = 0.0
                return 0
            self._make_room()
        else:
            stable = self._make_room() if batch.ends else True
            if self.prefilling or self.waiting:
                budget = settings.token_budget - len(batch.ends) * self._step_tokens
                budget = self._continue_prefills(budget)
                if self.waiting and budget > 0 and stable:
                    self._admit(budget, now_s, seen_s)
        load.num_seqs = num_seqs = len(batch.ends)
        if not num_seqs:
            load.kv_tokens = load.longest_kv = 0.0
            return 0 if self._chunks else -1
        load.kv_tokens = batch.kv_tokens + num_seqs
        load.longest_kv = batch.longest() + 1
        if self._chunks:
            return 1
        ticks = batch.ticks_to_end()
        if ticks == 1 or settings.reserve_output:
            return ticks
        return batch.ticks_within(self.pool.free_blocks, ticks)

    def finish(self, ticks: int, now_s: float) -> tuple[list[int], list[int]]:
        """Apply the scheduled iteration, `ticks` times; return the finished and the prefilled requests."""
        done: list[int] = []
        if self.pool.left:
            self.pool.release_left()
        # Running ahead, the engine has formed its next iteration before it learns who has finished.
        later = self._settings.run_ahead and bool(self.waiting)
        if ticks:
            self._advance(ticks)
            table = self._table
            for request, tokens in self.batch.leave_ended():
                self.pool.settle(request, tokens)
                self.pool.release_finished(request, later=later)
                table.left_tokens[request] = 0
                table.finish_s[request] = now_s
                done.append(request)
        prefilled = self._finish_chunks(now_s, done, later) if self._chunks else []
        self.outstanding -= len(done) + len(prefilled)
        return done, prefilled

    def reserve_pending(self) -> int | None:
        """Take the memory of the first pending request and return it; None if it must wait."""
        if not self.pending or self.waiting:
            return None
        request = self.pending[0]
        if self.num_running + self.num_arriving + len(self.ready) >= self._settings.max_seqs:
            return None
        alone = not self.num_running
        if not self.pool.take(request, self._table.target_tokens[request], 0, ahead=0, alone=alone):
            return None
        self.pending.popleft()
        self.num_arriving += 1
        return request

    def receive(self, request: int) -> None:
        """Note that the cache of a reserved request has arrived."""
        self.num_arriving -= 1
        self._table.ready_tokens[request] = self._table.target_tokens[request]
        self.ready.append(request)

    def release_handed_over(self, request: int) -> None:
        """Free the blocks of a prefilled request after its cache has been sent away."""
        self.pool.release(request)

    def forget(self, request: int) -> None:
        """Drop a request whose cache is lost at the other end of its transfer, wherever it is here."""
        if request in self.pending:
            self.pending.remove(request)
            self.outstanding -= 1
        if request in self.pool.held and request not in self.batch.ends and request not in self.prefilling:
            self.pool.forget(request)
            if request in self.ready:
                self.ready.remove(request)
                self.outstanding -= 1
            elif self.role is Role.DECODE:
                self.num_arriving -= 1
                self.outstanding -= 1

    def held_requests(self) -> list[int]:
        """Return every request that has memory here."""
        return list(self.pool.held)

    def hit_blocks(self, request: int) -> int:
        """Return the blocks of the request's prompt that are cached here."""
        return self.pool.hit_blocks(request, self._table.target_tokens[request])

    def drop_all(self) -> list[int]:
        """Lose everything, as in a failure; return the requests that were here, in order."""
        lost = [*self.batch.ends, *self.prefilling, *self.ready, *self.waiting, *self.pending]
        table = self._table
        for request in self.batch.ends:
            table.left_tokens[request] -= min(self.batch.gained(request), table.left_tokens[request] - 1)
            table.last_s[request] = min(table.last_s[request], self._now_s)
        self.batch.clear()
        self._chunks.clear()
        for queue in (self.waiting, self.pending, self.ready):
            queue.clear()
        self.prefilling.clear()
        self.num_arriving = self.outstanding = 0
        self.pool.clear()
        return lost

    def _start_ready(self, now_s: float) -> None:
        """Let requests whose cache has arrived decode, as far as sequences and the context limit allow."""
        while self.ready and self.num_running < self._settings.max_seqs:
            request = self.ready[0]
            if not self._decode_room(self._table.target_tokens[request]):
                return
            self.ready.popleft()
            self._resume(request, now_s)

    def _make_room(self) -> bool:
        """Set the blocks aside that the next tick needs; return False if a request had to be preempted."""
        if self._settings.reserve_output:
            return True
        stable, batch = True, self.batch
        while batch.ends and (needed := batch.needed(1)) > self.pool.free_blocks:
            self._preempt()
            stable = False
        self.pool.reserved_blocks = needed if batch.ends else 0
        return stable

    def _advance(self, ticks: int) -> None:
        if not self._settings.reserve_output:
            self.pool.grow(self.batch.needed(ticks))
        self.batch.advance(ticks)

    def _continue_prefills(self, budget: int) -> int:
        """Give each started prompt its next chunk; return what is left of the budget."""
        table = self._table
        cap = self._settings.long_prefill_tokens or _MANY
        for request in self.prefilling:
            if budget <= 0:
                break
            done = table.ready_tokens[request]
            chunk = min(table.target_tokens[request] - done, budget, cap)
            self._add_chunk(request, chunk, done)
            budget -= chunk
        return budget

    def _add_chunk(self, request: int, chunk: int, done: int) -> None:
        self._chunks.append((request, chunk))
        self.pool.filled(request, done + chunk)
        load = self.load
        load.prefill_tokens += chunk
        load.prefill_pairs += chunk * (done + 0.5 * (chunk + 1))

    def _admit(self, budget: int, now_s: float, seen_s: float) -> None:
        """Start waiting requests in order while budget, sequences and memory last."""
        settings, table, waiting, pool = self._settings, self._table, self.waiting, self.pool
        whole = settings.batching is not Batching.CHUNKED
        cap = settings.long_prefill_tokens or _MANY
        room = settings.max_seqs - self.num_running - len(self.pool.left)
        while waiting and budget > 0 and room > 0:
            request = waiting[0]
            if table.queued_s[request] > seen_s:
                self._unseen = True
                return
            target = table.target_tokens[request]
            if not self._decode_room(target):
                return
            hit_blocks = pool.hit_blocks(request, target)
            ready = max(table.ready_tokens[request], hit_blocks * pool.block_tokens)
            chunk = target - ready
            if chunk > budget or chunk > cap:
                if whole and self._chunks:
                    return
                chunk = chunk if whole else min(budget, cap)
            # One that decodes at once also needs the block of its next token.
            ahead = 0 if chunk else self._step_tokens
            if not pool.take(request, target, hit_blocks, ahead=ahead, alone=not self.num_running):
                return
            waiting.popleft()
            room -= 1
            table.start_s[request] = min(table.start_s[request], now_s)
            table.hit_tokens[request] += hit_blocks * pool.block_tokens
            table.ready_tokens[request] = ready
            if chunk == 0:
                self._resume(request, now_s)
                budget -= self._step_tokens
                continue
            self.prefilling[request] = None
            self._add_chunk(request, chunk, ready)
            budget -= chunk

    def _decode_room(self, target: int) -> bool:
        limit = self._settings.max_decode_context_tokens
        return not limit or not self.batch.ends or self.batch.kv_tokens + target <= limit

    def _finish_chunks(self, now_s: float, done: list[int], later: bool) -> list[int]:
        """Book the computed chunks; a prompt that is complete has its next token now."""
        table = self._table
        prefilled = []
        for request, chunk in self._chunks:
            table.ready_tokens[request] += chunk
            if table.ready_tokens[request] < table.target_tokens[request]:
                continue
            del self.prefilling[request]
            table.left_tokens[request] -= 1
            if table.first_s[request] > now_s:
                table.first_s[request] = now_s
            else:
                table.note_gap(request, now_s)
            table.last_s[request] = now_s
            if table.left_tokens[request] == 0:
                self.pool.release_finished(request, later=later)
                table.finish_s[request] = now_s
                done.append(request)
            elif self.role is Role.PREFILL:
                prefilled.append(request)
            else:
                self._enter(request)
        return prefilled

    def _resume(self, request: int, now_s: float) -> None:
        """Go on decoding a request whose cache came from elsewhere: another engine or host memory."""
        table = self._table
        if table.swapped[request]:
            self.swap_tokens += table.target_tokens[request]
            table.swapped[request] = False
        table.note_gap(request, now_s)
        self._enter(request)
        self.pool.reserved_blocks += self._step_tokens

    def _enter(self, request: int) -> None:
        """Turn a request whose prompt is cached into a decoding one."""
        table = self._table
        tokens, left = table.target_tokens[request], table.left_tokens[request]
        if self._settings.speculation is None:
            self.batch.enter(request, tokens, left, 1.0)
        else:
            steps = max(1, round(left * table.steps_per_token[request]))
            self.batch.enter(request, tokens, steps, left / steps)

    def _preempt(self) -> None:
        """Take the memory of the request that was admitted last and put it back in front of the queue."""
        table = self._table
        swap = self._settings.preemption is Preemption.SWAP
        if self.prefilling:
            request = next(reversed(self.prefilling))
            del self.prefilling[request]
            cached = table.ready_tokens[request]
        else:
            request = next(reversed(self.batch.ends))
            gained = min(self.batch.gained(request), table.left_tokens[request] - 1)
            self.pool.settle(request, self.batch.leave(request))
            cached = table.target_tokens[request] + gained
            table.left_tokens[request] -= gained
            table.last_s[request] = self._now_s
            # A recompute also needs the newest token, whose keys and values were never computed.
            table.target_tokens[request] = cached + (0 if swap else 1)
        table.preemptions[request] += 1
        self.pool.release(request, cached_tokens=cached)
        table.ready_tokens[request] = cached if swap else 0
        if swap:
            self.swap_tokens += cached
            table.swapped[request] = True
        self.waiting.appendleft(request)
