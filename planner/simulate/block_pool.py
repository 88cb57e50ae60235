"""The cache memory of one scheduler: blocks held by requests, free ones, and free ones still readable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.simulate.prefix_cache import PrefixCache
from planner.simulate.settings import Role

if TYPE_CHECKING:
    from planner.simulate.requests import RequestTable
    from planner.simulate.settings import EngineSettings

__all__ = ["BlockPool"]


class BlockPool:
    """Gives blocks to requests and takes them back.

    Attributes
    ----------
    num_blocks : all there are.
    free_blocks : those that no request holds (cached blocks of earlier requests included).
    held : blocks of each request.
    reserved_blocks : set aside for the next tick of the decoding requests.
    left : finished requests whose blocks come back when the iteration after their last one ends.
    """

    __slots__ = (
        "_cache",
        "_role",
        "_settings",
        "_table",
        "_watermark_blocks",
        "block_tokens",
        "free_blocks",
        "held",
        "left",
        "num_blocks",
        "reserved_blocks",
    )

    def __init__(self, settings: EngineSettings, kv_tokens: int, table: RequestTable, role: Role) -> None:
        self._settings = settings
        self._table = table
        self._role = role
        self._cache = PrefixCache()
        self.block_tokens = settings.block_tokens
        self.num_blocks = kv_tokens // settings.block_tokens
        self.free_blocks = self.num_blocks
        self._watermark_blocks = int(settings.watermark_frac * self.num_blocks)
        self.held: dict[int, int] = {}
        self.reserved_blocks = 0
        self.left: list[int] = []

    def fits(self, request: int) -> bool:
        """Return whether the request could ever be held, alone, from prompt to last token."""
        table = self._table
        tokens = table.prompt_tokens[request]
        if self._role is not Role.PREFILL:
            tokens += table.output_tokens[request] - 1 + self._settings.step_tokens - 1
        return -(-tokens // self.block_tokens) <= self.num_blocks - self._watermark_blocks

    def has_room(self, request: int) -> bool:
        """Return whether a request could be admitted beside others now."""
        tokens: int = self._table.target_tokens[request]
        blocks = -(-tokens // self.block_tokens)
        return blocks <= self.free_blocks - self._watermark_blocks

    def hit_blocks(self, request: int, target: int) -> int:
        """Return the cached blocks that the request can use; its last token is always computed."""
        table = self._table
        if not self._settings.prefix_caching or not (self._cache.num_blocks or table.given_prefix):
            return 0
        size = self.block_tokens
        given = min(table.shared_tokens[request], target - 1) // size
        wanted = (target - 1) // size if table.preemptions[request] else given
        found = self._cache.hit_blocks(table.chain[request], wanted)
        return max(found, given) if table.given_prefix else found

    def take(self, request: int, target: int, hit_blocks: int, *, ahead: int, alone: bool) -> bool:
        """Give a request the blocks of `target` tokens; return False, and give none, if they are not free.

        Parameters
        ----------
        ahead : tokens beyond the target whose block must be free too.
        alone : nothing runs, so that the watermark need not be kept.
        """
        tokens = self.held_tokens(request, target)
        kept_blocks = self.reserved_blocks + (0 if alone else self._watermark_blocks)
        # Cached blocks are among the free ones, so the whole request must fit into what is free.
        if -(-(tokens + ahead) // self.block_tokens) > self.free_blocks - kept_blocks:
            return False
        if hit_blocks:
            self._cache.claim(self._table.chain[request])
        blocks = -(-tokens // self.block_tokens)
        self.held[request] = blocks
        self.grow(blocks)
        return True

    def held_tokens(self, request: int, target: int) -> int:
        """Return the tokens whose blocks a request takes on admission."""
        if self._settings.reserve_output and self._role is not Role.PREFILL:
            target += self._table.left_tokens[request] - 1
        return target

    def computed_tokens(self, request: int) -> int:
        """Return the tokens whose cache a request leaves behind that is finished here."""
        table = self._table
        tokens: int = table.target_tokens[request]
        if self._role is not Role.PREFILL:
            tokens = table.prompt_tokens[request] + table.output_tokens[request] - 1
        return tokens

    def grow(self, blocks: int) -> None:
        """Take blocks that running requests need, evicting cached ones where no others are left."""
        self.free_blocks -= blocks
        if self._cache.num_blocks > self.free_blocks:
            self._cache.trim(self.free_blocks)

    def filled(self, request: int, tokens: int) -> None:
        """Note that a request has computed its first `tokens` tokens, or is about to.

        Nothing to do here: what is cached is found once its request has left.
        """

    def settle(self, request: int, tokens: int) -> None:
        """Count the blocks that a leaving request took while it decoded as its own."""
        if self._settings.speculation is None and not self._settings.reserve_output:
            self.held[request] = -(-tokens // self.block_tokens)

    def release(self, request: int, *, cached_tokens: int | None = None) -> None:
        """Take all blocks of a request back; full blocks stay readable under its chain.

        Parameters
        ----------
        cached_tokens : tokens computed so far; by default all of a finished request.
        """
        table = self._table
        self.free_blocks += self.held.pop(request)
        if not self._settings.prefix_caching:
            return
        if cached_tokens is None:
            cached_tokens = self.computed_tokens(request)
        self._cache.release(table.chain[request], cached_tokens // self.block_tokens)

    def release_finished(self, request: int, *, later: bool) -> None:
        """Take all blocks of a finished request back, at once or with the next `release_left`."""
        if later:
            self.left.append(request)
        else:
            self.release(request)

    def release_left(self) -> None:
        """Take the blocks back of requests that had finished one iteration earlier."""
        for request in self.left:
            self.release(request)
        self.left.clear()

    def forget(self, request: int) -> None:
        """Take the blocks of a request back whose cache was never filled."""
        self.free_blocks += self.held.pop(request)

    def clear(self) -> None:
        """Lose everything."""
        self.held.clear()
        self.left.clear()
        self._cache = PrefixCache()
        self.free_blocks = self.num_blocks
