"""Blocks that stay cached after their request has left, oldest evicted first.

A chain is one growing token sequence (a conversation, or one request that was preempted): the hash of a block
covers all blocks before it, so a hit is always a leading part of a chain, and the blocks of a chain that are
released together are evicted from its end. Keeping a count per chain is therefore the same as keeping every
block hash, as long as chains do not branch.
"""

__all__ = ["PrefixCache"]


class PrefixCache:
    """Released but still readable blocks, per chain, in order of release.

    Attributes
    ----------
    num_blocks : blocks held, all of them free to be overwritten.
    """

    __slots__ = ("_chains", "num_blocks")

    def __init__(self) -> None:
        self._chains: dict[int, int] = {}
        self.num_blocks = 0

    def hit_blocks(self, chain: int, wanted_blocks: int) -> int:
        """Return how many of the first `wanted_blocks` blocks of `chain` are cached."""
        return min(self._chains.get(chain, 0), wanted_blocks)

    def claim(self, chain: int) -> None:
        """Take the cached blocks of `chain` out: the leading ones go back into use, the rest is forgotten."""
        self.num_blocks -= self._chains.pop(chain, 0)

    def release(self, chain: int, blocks: int) -> None:
        """Keep the leading `blocks` blocks of `chain`, as the newest."""
        if blocks > 0:
            self.num_blocks += blocks - self._chains.pop(chain, 0)
            self._chains[chain] = blocks

    def trim(self, num_blocks: int) -> None:
        """Evict, oldest chain first and each from its end, until at most `num_blocks` are left."""
        excess = self.num_blocks - num_blocks
        while excess > 0:
            chain = next(iter(self._chains))
            blocks = self._chains[chain]
            taken = min(blocks, excess)
            if taken == blocks:
                del self._chains[chain]
            else:
                self._chains[chain] = blocks - taken
            self.num_blocks -= taken
            excess -= taken
