"""The decoding requests of one scheduler, advanced together and never one by one.

All of them advance by one step per *tick*. A request is described by the tick at which it entered and the
tick at which it will end, the cached tokens of all by their sum, and the blocks that a tick needs by counting
requests per remainder of their length by the block size.
"""

from __future__ import annotations

from array import array
from heapq import heappop, heappush

__all__ = ["DecodeSet"]


class DecodeSet:
    """Requests that decode, in order of admission.

    Attributes
    ----------
    ends : request to the tick at which it ends, in order of admission.
    kv_tokens : cached tokens of all.
    growth : tokens that all gain per tick; the number of requests without speculation.
    tick : steps made so far.
    stints : (request, first tick, last tick) of every time that a request decoded here, flat.
    held : blocks per request, shared with the scheduler; only read where growth is uneven.
    """

    __slots__ = (
        "_block_tokens",
        "_cross",
        "_entered",
        "_heap",
        "_held",
        "_longest_from",
        "_step_tokens",
        "_uneven",
        "ends",
        "growth",
        "kv_tokens",
        "stints",
        "tick",
    )

    def __init__(self, *, block_tokens: int, step_tokens: int, held: dict[int, int]) -> None:
        self._block_tokens = block_tokens
        self._step_tokens = step_tokens
        self._uneven = step_tokens > 1
        self._cross = [0] * block_tokens
        self._heap: list[tuple[int, int]] = []
        self._entered: dict[int, tuple[int, int, float]] = {}
        self._held = held
        self._longest_from: int | None = 0
        self.ends: dict[int, int] = {}
        self.kv_tokens: float = 0
        self.growth: float = 0
        self.tick = 0
        self.stints = array("q")

    def enter(self, request: int, tokens: int, steps: int, growth: float) -> None:
        """Add a request with `tokens` cached that ends after `steps` ticks, gaining `growth` in each."""
        tick = self.tick
        end = tick + steps
        self.ends[request] = end
        heappush(self._heap, (end, request))
        self._entered[request] = (tick, tokens, growth)
        self.kv_tokens += tokens
        if self._uneven:
            self.growth += growth
        else:
            self.growth += 1
            self._cross[(tick - tokens) % self._block_tokens] += 1
        longest = self._longest_from
        if longest is not None and (len(self.ends) == 1 or tokens - tick > longest):
            self._longest_from = tokens - tick

    def leave(self, request: int) -> int:
        """Take a request out; return its cached tokens."""
        entered, tokens, growth = self._entered.pop(request)
        steps = self.tick - entered
        if tokens - entered == self._longest_from:
            self._longest_from = None
        del self.ends[request]
        if steps:
            self.stints.extend((request, entered, self.tick))
        if not self._uneven:
            self.growth -= 1
            self._cross[(entered - tokens) % self._block_tokens] -= 1
            self.kv_tokens -= tokens + steps
            return tokens + steps
        self.growth -= growth
        self.kv_tokens -= tokens + growth * steps
        if not self.ends:
            self.growth = self.kv_tokens = 0.0
        return tokens + int(growth * steps)

    def leave_ended(self) -> list[tuple[int, int]]:
        """Take out every request whose last tick is made; return (request, cached tokens) of each."""
        heap, ended = self._heap, []
        while heap and heap[0][0] <= self.tick:
            end, request = heappop(heap)
            if self.ends.get(request) == end:
                ended.append((request, self.leave(request)))
        return ended

    def clear(self) -> None:
        """Take out all."""
        for request in list(self.ends):
            self.leave(request)
        self._heap.clear()

    def ticks_to_end(self) -> int:
        """Return the ticks until the first request ends."""
        heap = self._heap
        while self.ends.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] - self.tick

    def gained(self, request: int) -> int:
        """Return the tokens that a request has gained since it entered."""
        entered, _, growth = self._entered[request]
        return int((self.tick - entered) * growth + 1e-9)

    def longest(self) -> float:
        """Return the cached tokens of the longest sequence (without speculation; else at least those)."""
        if self._longest_from is None:
            self._longest_from = max(tokens - entered for entered, tokens, _ in self._entered.values())
        return self.tick + self._longest_from

    def needed(self, ticks: int) -> int:
        """Return the blocks that all together take in the next `ticks` ticks."""
        if self._uneven:
            return sum(reach - self._held[r] for r, reach in self._reaches(ticks) if reach > self._held[r])
        size = self._block_tokens
        if ticks == 1:
            return self._cross[self.tick % size]
        whole, rest = divmod(ticks, size)
        blocks = whole * len(self.ends)
        at = self.tick % size
        cross = self._cross
        for i in range(at, at + rest):
            blocks += cross[i if i < size else i - size]
        return blocks

    def ticks_within(self, free_blocks: int, ticks: int) -> int:
        """Return how many of `ticks` the free blocks allow; the first is already known to fit."""
        if free_blocks >= len(self.ends) * (ticks // self._block_tokens + 2) * self._step_tokens:
            return ticks
        low, high = 1, ticks
        while low < high:
            middle = (low + high + 1) // 2
            if self.needed(middle) <= free_blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def advance(self, ticks: int) -> None:
        """Make `ticks` steps; the blocks for them have been taken."""
        if self._uneven:
            for request, reach in self._reaches(ticks):
                self._held[request] = max(self._held[request], reach)
        self.tick += ticks
        self.kv_tokens += self.growth * ticks

    def _reaches(self, ticks: int) -> list[tuple[int, int]]:
        """Return the blocks that each request touches, drafts included, by the end of `ticks` ticks."""
        size, reaches = self._block_tokens, []
        for request, (entered, tokens, growth) in self._entered.items():
            reach = tokens + int(growth * (self.tick + ticks - entered)) + self._step_tokens
            reaches.append((request, -(-reach // size)))
        return reaches
