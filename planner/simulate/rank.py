"""One scheduler with its cache: forms iterations, grows and frees blocks, preempts.

Decoding requests are never touched one by one. All of them advance by one step per *tick*, so a request is
described by the tick at which it entered and the tick at which it will end, the cached tokens of all by
their sum, and the blocks that a tick needs by counting requests per remainder of their length by the block
size. A run of ticks in which nothing enters or leaves is one event.
"""

from __future__ import annotations

from array import array
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from planner.simulate.prefix_cache import PrefixCache
from planner.simulate.settings import Batching, Preemption, Role
from planner.simulate.timing import Load

if TYPE_CHECKING:
    from planner.simulate.requests import RequestTable
    from planner.simulate.settings import EngineSettings

__all__ = ["Rank"]

_MANY = 1 << 40


class Rank:
    """Scheduler state of one replica (or one data-parallel rank of an engine in lockstep).

    Attributes
    ----------
    waiting : requests that hold no memory, next first.
    pending : requests prefilled elsewhere that wait for memory here, next first.
    num_arriving : requests whose cache is on its way here; their memory is held.
    ready : requests whose cache has arrived and that start decoding next.
    prefilling : requests whose prompt is being computed, in order.
    decodes : decoding requests in order of admission, with the tick at which each ends.
    free_blocks : blocks that no running request holds (cached blocks of earlier requests included).
    load : what the scheduled iteration holds.
    swap_tokens : cached tokens that the scheduled iteration moves to or from host memory.
    stints : (request, first tick, last tick) of every time that a request decoded here, flat.
    """

    __slots__ = (
        "_block_tokens",
        "_cache",
        "_chunks",
        "_cross",
        "_ends",
        "_entered",
        "_growth",
        "_held",
        "_longest_from",
        "_now_s",
        "_reserved_blocks",
        "_settings",
        "_speculates",
        "_table",
        "_watermark_blocks",
        "decodes",
        "free_blocks",
        "kv_tokens",
        "load",
        "num_arriving",
        "num_blocks",
        "pending",
        "prefilling",
        "ready",
        "role",
        "stints",
        "swap_tokens",
        "tick",
        "waiting",
    )

    def __init__(
        self, settings: EngineSettings, kv_tokens: int, table: RequestTable, role: Role = Role.BOTH
    ) -> None:
        self._settings = settings
        self._table = table
        self._block_tokens = settings.block_tokens
        self.num_blocks = kv_tokens // settings.block_tokens
        self.free_blocks = self.num_blocks
        self._watermark_blocks = int(settings.watermark_frac * self.num_blocks)
        self._cache = PrefixCache()
        self._cross = [0] * settings.block_tokens
        self._ends: list[tuple[int, int]] = []
        self._entered: dict[int, tuple[int, int, float]] = {}
        self._held: dict[int, int] = {}
        self._growth: float = 0
        self._longest_from: int | None = 0
        self._speculates = settings.speculation is not None
        self._chunks: list[tuple[int, int]] = []
        self._now_s = 0.0
        self._reserved_blocks = 0
        self.role = role
        self.waiting: deque[int] = deque()
        self.pending: deque[int] = deque()
        self.ready: deque[int] = deque()
        self.num_arriving = 0
        self.prefilling: dict[int, None] = {}
        self.decodes: dict[int, int] = {}
        self.kv_tokens: float = 0
        self.tick = 0
        self.load = Load()
        self.swap_tokens = 0
        self.stints = array("q")

    @property
    def num_running(self) -> int:
        """Requests that hold memory."""
        return len(self.decodes) + len(self.prefilling)

    @property
    def outstanding(self) -> int:
        """Requests that are not finished here."""
        queued = len(self.waiting) + len(self.pending) + len(self.ready) + self.num_arriving
        return queued + len(self.decodes) + len(self.prefilling)

    def fits(self, request: int) -> bool:
        """Return whether the request could ever be held, alone, from prompt to last token."""
        tokens = self._table.prompt_tokens[request]
        if self.role is not Role.PREFILL:
            tokens += self._table.output_tokens[request] - 1
        blocks = -(-tokens // self._block_tokens)
        return blocks <= self.num_blocks - self._watermark_blocks

    def schedule(self, now_s: float) -> int:
        """Form the next iteration; return for how many ticks it can repeat unchanged.

        Zero means an iteration of prompts only (decodes, if any, wait); -1 that there is nothing to do.
        """
        load = self.load
        load.prefill_tokens = load.num_prefills = 0
        load.prefill_pairs = 0.0
        self._chunks.clear()
        self._now_s = now_s
        self.swap_tokens = 0
        self._reserved_blocks = 0
        settings = self._settings
        if self.ready:
            self._start_ready(now_s)
        if settings.batching is Batching.PREFILL_FIRST:
            self._admit(settings.token_budget, now_s)
            if self._chunks:
                load.num_seqs = 0
                load.kv_tokens = 0.0
                return 0
            ticks = self._grow_decodes() if self.decodes else 0
        else:
            ticks = self._grow_decodes() if self.decodes else 0
            if self.prefilling or self.waiting:
                budget = settings.token_budget - len(self.decodes) * settings.step_tokens
                budget = self._continue_prefills(budget)
                if self.waiting and budget > 0 and ticks >= 0:
                    self._admit(budget, now_s)
        load.num_seqs = num_seqs = len(self.decodes)
        load.kv_tokens = self.kv_tokens + num_seqs
        load.longest_kv = self._longest() + 1 if num_seqs else 0.0
        if self._chunks:
            return 1 if num_seqs else 0
        if not num_seqs:
            return -1
        ticks = self._ends[0][0] - self.tick
        return ticks if ticks == 1 else self._ticks_within_memory(ticks)

    def reserve_pending(self) -> int | None:
        """Take the memory of the first pending request and return it; None if it must wait."""
        if not self.pending or self.waiting:
            return None
        request = self.pending[0]
        running = self.num_running + self.num_arriving + len(self.ready)
        if running >= self._settings.max_seqs:
            return None
        if not self._take_blocks(request, self._table.target_tokens[request], 0):
            return None
        self.pending.popleft()
        self.num_arriving += 1
        return request

    def receive(self, request: int) -> None:
        """Note that the cache of a reserved request has arrived."""
        self.num_arriving -= 1
        self._table.ready_tokens[request] = self._table.target_tokens[request]
        self.ready.append(request)

    def forget(self, request: int) -> None:
        """Drop a request whose cache is lost at the other end of its transfer, wherever it is here."""
        if request in self.pending:
            self.pending.remove(request)
        if request in self._held and request not in self.decodes and request not in self.prefilling:
            self.free_blocks += self._held.pop(request)
            if request in self.ready:
                self.ready.remove(request)
            elif self.role is Role.DECODE:
                self.num_arriving -= 1

    def holds(self, request: int) -> bool:
        """Return whether the request has memory here."""
        return request in self._held

    def held_requests(self) -> list[int]:
        """Return every request that has memory here."""
        return list(self._held)

    @property
    def block_tokens(self) -> int:
        """Tokens per block."""
        return self._block_tokens

    def hit_blocks(self, request: int) -> int:
        """Return the blocks of the request's prompt that are cached here."""
        return self._hit_blocks(request, self._table.target_tokens[request])

    def can_start(self, request: int) -> bool:
        """Return whether a newly arrived request could join the next iteration."""
        if self.waiting or self.num_running >= self._settings.max_seqs:
            return False
        if self.pending and self.pending[0] != request:
            return False
        blocks = -(-self._table.target_tokens[request] // self._block_tokens)
        return bool(blocks <= self.free_blocks - self._watermark_blocks)

    def finish(self, ticks: int, now_s: float) -> tuple[list[int], list[int]]:
        """Apply the scheduled iteration, `ticks` times; return the finished and the prefilled requests."""
        done: list[int] = []
        if ticks:
            self._advance(ticks)
            ends = self._ends
            while ends and ends[0][0] <= self.tick:
                end, request = heappop(ends)
                if self.decodes.get(request) == end:
                    self._leave(request)
                    self._release(request)
                    self._table.left_tokens[request] = 0
                    self._table.finish_s[request] = now_s
                    done.append(request)
        prefilled = self._finish_chunks(now_s, done) if self._chunks else []
        return done, prefilled

    def drop_all(self) -> list[int]:
        """Lose everything, as in a failure; return the requests that were here, in order."""
        lost = [*self.decodes, *self.prefilling, *self.ready, *self.waiting, *self.pending]
        table = self._table
        for request in list(self.decodes):
            table.left_tokens[request] -= self._generated(request)
            self._leave(request)
        self._ends.clear()
        self._held.clear()
        self.pending.clear()
        self.ready.clear()
        self.num_arriving = 0
        self._chunks.clear()
        self.prefilling.clear()
        self.waiting.clear()
        self._cache = PrefixCache()
        self.free_blocks = self.num_blocks
        return lost

    def release_handed_over(self, request: int) -> None:
        """Free the blocks of a prefilled request after its cache has been sent away."""
        self._release(request)

    def _start_ready(self, now_s: float) -> None:
        """Let requests whose cache has arrived decode, as far as sequences and the context limit allow."""
        while self.ready and self.num_running < self._settings.max_seqs:
            request = self.ready[0]
            if not self._decode_room(self._table.target_tokens[request]):
                return
            self.ready.popleft()
            self._resume(request, now_s)

    def _grow_decodes(self) -> int:
        """Take the blocks that the next tick needs, preempting the youngest; -1 if any was preempted."""
        preempted = 0
        while self.decodes and (needed := self._needed(1)) > self.free_blocks:
            self._preempt()
            preempted = -1
        self._reserved_blocks = needed if self.decodes else 0
        return preempted

    def _longest(self) -> float:
        """Return the cached tokens of the longest decoding sequence."""
        if self._longest_from is None:
            self._longest_from = max(tokens - entered for entered, tokens, _ in self._entered.values())
        return self.tick + self._longest_from

    def _needed(self, ticks: int) -> int:
        """Return the blocks that all decodes together take in the next `ticks` ticks."""
        if self._settings.reserve_output:
            return 0
        if self._speculates:
            return self._needed_uneven(ticks)
        size = self._block_tokens
        whole, rest = divmod(ticks, size)
        blocks = whole * len(self.decodes)
        at = self.tick % size
        cross = self._cross
        for i in range(at, at + rest):
            blocks += cross[i if i < size else i - size]
        return blocks

    def _needed_uneven(self, ticks: int) -> int:
        size, step = self._block_tokens, self._settings.step_tokens
        blocks = 0
        for request in self.decodes:
            entered, tokens, growth = self._entered[request]
            reach = tokens + int(growth * (self.tick + ticks - entered)) + step
            blocks += max(0, -(-reach // size) - self._held[request])
        return blocks

    def _ticks_within_memory(self, ticks: int) -> int:
        """Return how many of `ticks` the free blocks allow; the first is already known to fit."""
        size = self._block_tokens
        if self.free_blocks >= len(self.decodes) * (ticks // size + 2) * self._settings.step_tokens:
            return ticks
        low, high = 1, ticks
        while low < high:
            middle = (low + high + 1) // 2
            if self._needed(middle) <= self.free_blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def _advance(self, ticks: int) -> None:
        blocks = self._needed(ticks)
        if blocks:
            self.free_blocks -= blocks
            if self._speculates:
                self._hold_uneven(ticks)
            if self._cache.num_blocks > self.free_blocks:
                self._cache.trim(self.free_blocks)
        self.tick += ticks
        self.kv_tokens += self._growth * ticks

    def _hold_uneven(self, ticks: int) -> None:
        size, step = self._block_tokens, self._settings.step_tokens
        for request in self.decodes:
            entered, tokens, growth = self._entered[request]
            reach = tokens + int(growth * (self.tick + ticks - entered)) + step
            self._held[request] = max(self._held[request], -(-reach // size))

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
        load = self.load
        load.prefill_tokens += chunk
        load.num_prefills += 1
        load.prefill_pairs += chunk * (done + 0.5 * (chunk + 1))

    def _admit(self, budget: int, now_s: float) -> None:
        """Start waiting requests in order while budget, sequences and memory last."""
        settings, table, waiting = self._settings, self._table, self.waiting
        whole = settings.batching is not Batching.CHUNKED
        cap = settings.long_prefill_tokens or _MANY
        room = settings.max_seqs - len(self.decodes) - len(self.prefilling)
        while waiting and budget > 0 and room > 0:
            request = waiting[0]
            target = table.target_tokens[request]
            if not self._decode_room(target):
                return
            hit_blocks = self._hit_blocks(request, target)
            ready = max(table.ready_tokens[request], hit_blocks * self._block_tokens)
            chunk = target - ready
            if chunk > budget or chunk > cap:
                if whole and self._chunks:
                    return
                chunk = chunk if whole else min(budget, cap)
            if not self._take_blocks(request, target, hit_blocks):
                return
            waiting.popleft()
            room -= 1
            table.start_s[request] = min(table.start_s[request], now_s)
            table.hit_tokens[request] += hit_blocks * self._block_tokens
            table.ready_tokens[request] = ready
            if chunk == 0:
                self._resume(request, now_s)
                budget -= settings.step_tokens
                continue
            self.prefilling[request] = None
            self._add_chunk(request, chunk, ready)
            budget -= chunk

    def _decode_room(self, target: int) -> bool:
        limit = self._settings.max_decode_context_tokens
        return not limit or not self.decodes or self.kv_tokens + target <= limit

    def _hit_blocks(self, request: int, target: int) -> int:
        """Return the cached blocks that the request can use; its last token is always computed."""
        if not self._settings.prefix_caching or not self._cache.num_blocks:
            return 0
        table = self._table
        shared = table.shared_tokens[request]
        if table.preemptions[request]:
            shared = target
        return self._cache.hit_blocks(table.chain[request], min(shared, target - 1) // self._block_tokens)

    def _take_blocks(self, request: int, target: int, hit_blocks: int) -> bool:
        tokens = target
        if self._settings.reserve_output and self.role is not Role.PREFILL:
            tokens += self._table.left_tokens[request] - 1
        blocks = -(-tokens // self._block_tokens)
        # Hit blocks are among the free ones, so the whole request must fit into what is free.
        kept_blocks = self._reserved_blocks + (self._watermark_blocks if self.num_running else 0)
        if blocks > self.free_blocks - kept_blocks:
            return False
        if hit_blocks:
            self._cache.claim(self._table.chain[request], hit_blocks)
        self.free_blocks -= blocks
        self._held[request] = blocks
        if self._cache.num_blocks > self.free_blocks:
            self._cache.trim(self.free_blocks)
        return True

    def _finish_chunks(self, now_s: float, done: list[int]) -> list[int]:
        """Book the computed chunks; a prompt that is complete has its next token now."""
        table = self._table
        prefilled = []
        for request, chunk in self._chunks:
            if request not in self.prefilling:
                continue
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
                self._release(request)
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
        self._reserved_blocks += 1

    def _enter(self, request: int) -> None:
        """Turn a request whose prompt is cached into a decoding one."""
        table = self._table
        tokens, left = table.target_tokens[request], table.left_tokens[request]
        steps, growth = left, 1.0
        if self._speculates:
            steps = max(1, round(left * table.steps_per_token[request]))
            growth = left / steps
            self._growth += growth
        else:
            self._growth += 1
            self._cross[(self.tick - tokens) % self._block_tokens] += 1
        end = self.tick + steps
        self.decodes[request] = end
        heappush(self._ends, (end, request))
        self._entered[request] = (self.tick, tokens, growth)
        if self._longest_from is not None and (
            len(self.decodes) == 1 or tokens - self.tick > self._longest_from
        ):
            self._longest_from = tokens - self.tick
        self.kv_tokens += tokens

    def _generated(self, request: int) -> int:
        """Return the tokens that a decoding request has gained since it entered."""
        entered, _, growth = self._entered[request]
        gained = (self.tick - entered) * growth
        left: int = self._table.left_tokens[request]
        return min(int(gained + 1e-9), left)

    def _leave(self, request: int) -> None:
        """Take a request out of the decoding set; its blocks stay held."""
        entered, tokens, growth = self._entered.pop(request)
        steps = self.tick - entered
        if tokens - entered == self._longest_from:
            self._longest_from = None
        del self.decodes[request]
        if steps:
            self.stints.extend((request, entered, self.tick))
        if self._speculates:
            self._growth -= growth
            self.kv_tokens -= tokens + growth * steps
            if not self.decodes:
                self._growth = self.kv_tokens = 0.0
        else:
            self._growth -= 1
            self._cross[(entered - tokens) % self._block_tokens] -= 1
            self.kv_tokens -= tokens + steps
            if not self._settings.reserve_output:
                self._held[request] = max(self._held[request], -(-(tokens + steps) // self._block_tokens))

    def _release(self, request: int, *, cached_tokens: int | None = None) -> None:
        """Give all blocks back; full blocks stay readable under the request's chain."""
        table = self._table
        self.free_blocks += self._held.pop(request)
        if self._settings.prefix_caching:
            if cached_tokens is None:
                cached_tokens = table.prompt_tokens[request] + table.output_tokens[request] - 1
                if self.role is Role.PREFILL:
                    cached_tokens = table.target_tokens[request]
            self._cache.release(table.chain[request], cached_tokens // self._block_tokens)

    def _preempt(self) -> None:
        """Take the memory of the request that was admitted last and put it back in front of the queue."""
        table = self._table
        swap = self._settings.preemption is Preemption.SWAP
        if self.prefilling:
            request = next(reversed(self.prefilling))
            del self.prefilling[request]
            cached = table.ready_tokens[request]
        else:
            request = next(reversed(self.decodes))
            generated = self._generated(request)
            self._leave(request)
            cached = table.target_tokens[request] + generated
            table.left_tokens[request] -= generated
            table.last_s[request] = self._now_s
            # A recompute also needs the newest token, whose keys and values were never computed.
            table.target_tokens[request] = cached + (0 if swap else 1)
        table.preemptions[request] += 1
        self._release(request, cached_tokens=cached)
        table.ready_tokens[request] = cached if swap else 0
        if swap:
            self.swap_tokens += cached
            table.swapped[request] = True
        self.waiting.appendleft(request)
