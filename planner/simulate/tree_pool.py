"""Cache memory in which requests share the blocks of what they have in common, in memory once.

The blocks of a node of the trace's prefix tree become readable as a request computes them, from the first on.
Requests that find them refer to them; a node that no request refers to stays cached until its memory is
needed. A request refers to all nodes above one that it refers to, and lets go of the deepest first, so the
least recently used nodes are always leaves: what is evicted has nothing cached behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.simulate.block_pool import BlockPool

if TYPE_CHECKING:
    from planner.simulate.requests import RequestTable
    from planner.simulate.settings import EngineSettings, Role

__all__ = ["TreePool", "block_pool"]


def block_pool(settings: EngineSettings, kv_tokens: int, table: RequestTable, role: Role) -> BlockPool:
    """Return the cache memory of one scheduler, shared where the trace says what its requests share."""
    kind = TreePool if table.tree is not None and settings.prefix_caching else BlockPool
    return kind(settings, kv_tokens, table, role)


class TreePool(BlockPool):
    """A block pool over a prefix tree.

    Attributes
    ----------
    shared : blocks of each request that belong to the tree; the rest of those it holds are its own.
    resident : readable blocks of each node, leading ones.
    users : requests that refer to each node.
    cached_blocks : readable blocks of nodes without users; they are among the free ones.
    """

    __slots__ = (
        "_at",
        "_first",
        "_last",
        "_oldest",
        "_referred",
        "cached_blocks",
        "resident",
        "shared",
        "users",
    )

    def __init__(self, settings: EngineSettings, kv_tokens: int, table: RequestTable, role: Role) -> None:
        super().__init__(settings, kv_tokens, table, role)
        size = settings.block_tokens
        tree = table.tree
        assert tree is not None
        self._first: list[int] = (tree.start_tokens // size).tolist()
        self._last: list[int] = (tree.end_tokens // size).tolist()
        self._forget_all()

    def _forget_all(self) -> None:
        self.shared: dict[int, int] = {}
        self.resident: dict[int, int] = {}
        self.users: dict[int, int] = {}
        self.cached_blocks = 0
        self._oldest: dict[int, None] = {}
        self._referred: dict[int, int] = {}
        self._at: dict[int, int] = {}

    def has_room(self, request: int) -> bool:
        """Return whether a request could be admitted beside others now."""
        target: int = self._table.target_tokens[request]
        hit = self.hit_blocks(request, target)
        pinned = self._pinned_by(request, hit)[1]
        new = -(-target // self.block_tokens) - hit + pinned
        return new <= self.free_blocks - self._watermark_blocks

    def hit_blocks(self, request: int, target: int) -> int:
        """Return the blocks that the request can use; its last token is always computed."""
        wanted = (target - 1) // self.block_tokens
        resident, found = self.resident, 0
        for node in self._table.paths[request]:
            size = self._last[node] - self._first[node]
            have = resident.get(node, 0)
            found += have
            if have < size or found >= wanted:
                break
        return min(found, wanted)

    def _pinned_by(self, request: int, hit_blocks: int) -> tuple[int, int]:
        """Return how many nodes such a hit refers to, and their blocks that are only cached so far."""
        num_nodes = pinned = 0
        for node in self._table.paths[request]:
            if self._first[node] >= hit_blocks:
                break
            num_nodes += 1
            if node not in self.users:
                pinned += self.resident.get(node, 0)
        return num_nodes, pinned

    def take(self, request: int, target: int, hit_blocks: int, *, ahead: int, alone: bool) -> bool:
        """Give a request the blocks of `target` tokens, those of the tree that it found among them."""
        kept_blocks = self.reserved_blocks + (0 if alone else self._watermark_blocks)
        num_nodes, pinned = self._pinned_by(request, hit_blocks)
        taken = pinned - hit_blocks
        tokens = self.held_tokens(request, target)
        if -(-(tokens + ahead) // self.block_tokens) + taken > self.free_blocks - kept_blocks:
            return False
        for node in self._table.paths[request][:num_nodes]:
            self._refer(node)
        self.cached_blocks -= pinned
        self._referred[request] = self._at[request] = num_nodes
        if num_nodes and self._last[self._table.paths[request][num_nodes - 1]] > hit_blocks:
            self._at[request] -= 1
        self.shared[request] = hit_blocks
        blocks = -(-tokens // self.block_tokens)
        self.held[request] = blocks
        self.grow(blocks + taken)
        return True

    def _refer(self, node: int) -> None:
        self.users[node] = self.users.get(node, 0) + 1
        self._oldest.pop(node, None)

    def grow(self, blocks: int) -> None:
        """Take blocks that running requests need, evicting leaves where no others are left."""
        self.free_blocks -= blocks
        excess = self.cached_blocks - self.free_blocks
        while excess > 0:
            node = next(iter(self._oldest))
            have = self.resident[node]
            evicted = min(have, excess)
            if evicted == have:
                del self._oldest[node], self.resident[node]
            else:
                self.resident[node] = have - evicted
            self.cached_blocks -= evicted
            excess -= evicted

    def filled(self, request: int, tokens: int) -> None:
        """Make the blocks readable that a request has computed or is about to, up to `tokens`."""
        done = tokens // self.block_tokens
        path = self._table.paths[request]
        at = self._at[request]
        while at < len(path) and self._first[path[at]] < done:
            node = path[at]
            first, last = self._first[node], self._last[node]
            have = self.resident.get(node, 0)
            if at == self._referred[request]:
                if have and node not in self.users:
                    # Computed here again since it was looked for: these blocks stand in for the cached ones.
                    if first + have > done:
                        break
                    self.cached_blocks -= have
                    self.shared[request] += have
                self._refer(node)
                self._referred[request] += 1
            new = min(last, done) - first - have
            if new > 0:
                self.resident[node] = have + new
                self.shared[request] += new
            if first + self.resident.get(node, 0) < last:
                break
            at += 1
        self._at[request] = at

    def release(self, request: int, *, cached_tokens: int | None = None) -> None:
        """Take the blocks of a request back; those of the tree stay readable."""
        if cached_tokens is None:
            cached_tokens = self.computed_tokens(request)
        self.filled(request, cached_tokens)
        self.forget(request)

    def forget(self, request: int) -> None:
        """Take the blocks of a request back that nobody else refers to or could read."""
        self.free_blocks += self.held.pop(request) - self.shared.pop(request)
        for node in reversed(self._table.paths[request][: self._referred.pop(request)]):
            self.users[node] -= 1
            if not self.users[node]:
                del self.users[node]
                have = self.resident.get(node, 0)
                if have:
                    self._oldest[node] = None
                    self.cached_blocks += have
                    self.free_blocks += have
        del self._at[request]

    def clear(self) -> None:
        """Lose everything."""
        super().clear()
        self._forget_all()
