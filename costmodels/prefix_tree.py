"""What the requests of a trace share: a tree of token sequences, each request a path from its root.

Two requests that share a leading part of their tokens share the nodes of it. Every request ends in a node of
its own, which holds the rest of its prompt and its answer until another request continues them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PrefixTree", "hash_block_tokens", "tree_of_hashes", "tree_of_parents"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixTree:
    """Nodes by the tokens that they cover, and the nodes of each request, root first."""

    start_tokens: Ints
    """Tokens before a node on its path. shape (nodes,)"""
    end_tokens: Ints
    first: Ints
    """Where the path of each request begins in `nodes`; one more entry at the end. shape (requests + 1,)"""
    nodes: Ints
    """Paths of all requests, one after the other."""

    def __len__(self) -> int:
        return len(self.first) - 1

    def path(self, request: int) -> list[int]:
        """Return the nodes of one request, root first."""
        found: list[int] = self.nodes[self.first[request] : self.first[request + 1]].tolist()
        return found

    def take(self, rows: npt.NDArray[np.intp]) -> "PrefixTree":
        """Return the tree of some of the requests; nodes keep their numbers."""
        paths = [self.nodes[self.first[r] : self.first[r + 1]] for r in rows.tolist()]
        return PrefixTree(
            start_tokens=self.start_tokens,
            end_tokens=self.end_tokens,
            first=np.cumsum([0, *(len(p) for p in paths)], dtype=np.int64),
            nodes=np.concatenate(paths) if paths else np.zeros(0, dtype=np.int64),
        )

    def seen_tokens(self) -> Ints:
        """Return the leading tokens of each request that requests before it had. shape (requests,)"""
        seen: set[int] = set()
        found = np.zeros(len(self), dtype=np.int64)
        ends = self.end_tokens.tolist()
        for request in range(len(self)):
            path = self.path(request)
            for node in path:
                if node not in seen:
                    break
                found[request] = ends[node]
            seen.update(path)
        return found


def hash_block_tokens(num_hashes: Ints, prompt_tokens: Ints) -> int:
    """Return the block size in tokens with which every prompt has the hashes that it has.

    The only power of two that does, or else the only whole number; the longest prompt where each has one.

    Raises
    ------
    ValueError
        if none or several do.
    """
    low = int(np.max(-(-prompt_tokens // num_hashes)))
    many = num_hashes > 1
    if not many.any():
        return low
    high = int(np.min(-(-prompt_tokens[many] // (num_hashes[many] - 1)) - 1))
    powers = [2**k for k in range(31) if low <= 2**k <= high]
    if len(powers) == 1 or low == high:
        return powers[0] if powers else low
    told = f"between {low} and {high}" if low <= high else "none"
    message = f"the tokens of one hashed block cannot be told from the number of hashes ({told} fits all)"
    raise ValueError(message)


def tree_of_hashes(
    hashes: Sequence[Sequence[int]], block_tokens: int, prompt_tokens: Ints, output_tokens: Ints
) -> PrefixTree:
    """Return the tree of prompts whose blocks are hashed; the last block of a prompt may be shorter.

    Equal hashes are the same block only behind the same blocks. Answers are not hashed, so they are shared
    where a later prompt holds their blocks only from there on.
    """
    children: dict[tuple[int, int, int], int] = {}
    ends: list[int] = []
    above: list[int] = []
    blocks: list[list[int]] = []
    for ids, prompt in zip(hashes, prompt_tokens.tolist(), strict=True):
        node, path = -1, []
        for number, label in enumerate(ids):
            end = min((number + 1) * block_tokens, prompt)
            key = (node, label, end)
            if key not in children:
                children[key] = len(ends)
                ends.append(end)
                above.append(node)
            node = children[key]
            path.append(node)
        blocks.append(path)
    merged = _merged(blocks, above, ends)
    total = (prompt_tokens + output_tokens).tolist()
    return _tree(merged, ends, total)


def _merged(paths: list[list[int]], above: list[int], ends: list[int]) -> list[list[int]]:
    """Return the paths without the nodes that are always followed by the same one."""
    num_children = [0] * len(ends)
    for parent in above:
        if parent >= 0:
            num_children[parent] += 1
    stops = {path[-1] for path in paths if path}
    kept = [n != 1 or node in stops for node, n in enumerate(num_children)]
    return [[node for node in path if kept[node]] for path in paths]


def _tree(paths: list[list[int]], ends: list[int], total_tokens: list[int]) -> PrefixTree:
    """Return the tree of shared paths, given the token at which each node ends, with a last node for each."""
    number: dict[int, int] = {}
    starts: list[int] = []
    stops: list[int] = []
    nodes: list[int] = []
    first = [0]
    for path, total in zip(paths, total_tokens, strict=True):
        at = 0
        for node in path:
            if node not in number:
                number[node] = len(starts)
                starts.append(at)
                stops.append(ends[node])
            nodes.append(number[node])
            at = ends[node]
        nodes.append(len(starts))
        starts.append(at)
        stops.append(total)
        first.append(len(nodes))
    return PrefixTree(
        start_tokens=np.array(starts, dtype=np.int64),
        end_tokens=np.array(stops, dtype=np.int64),
        first=np.array(first, dtype=np.int64),
        nodes=np.array(nodes, dtype=np.int64),
    )


def tree_of_parents(
    parent: Ints, prompt_tokens: Ints, output_tokens: Ints, shared_tokens: Ints | None = None
) -> PrefixTree:
    """Return the tree of requests that continue others.

    Parameters
    ----------
    parent : row of the request that each continues, an earlier one; -1 for none.
    shared_tokens : leading tokens of the parent's prompt and answer that the prompt repeats; by default all,
        as far as the prompt reaches.
    """
    total = (prompt_tokens + output_tokens).tolist()
    prompts = prompt_tokens.tolist()
    wanted = prompts if shared_tokens is None else np.minimum(shared_tokens, prompt_tokens).tolist()
    owner, begin = _owners(parent.tolist(), wanted, total)
    cuts: list[set[int]] = [{end} for end in total]
    for row, at in zip(owner, begin, strict=True):
        if row >= 0:
            cuts[row].add(at)
    starts: list[int] = []
    stops: list[int] = []
    paths: list[list[int]] = []
    for row, end in enumerate(total):
        path = [] if owner[row] < 0 else [n for n in paths[owner[row]] if stops[n] <= begin[row]]
        at = begin[row]
        for cut in sorted(c for c in cuts[row] if at < c <= end):
            path.append(len(starts))
            starts.append(at)
            stops.append(cut)
            at = cut
        paths.append(path)
    return PrefixTree(
        start_tokens=np.array(starts, dtype=np.int64),
        end_tokens=np.array(stops, dtype=np.int64),
        first=np.cumsum([0, *(len(p) for p in paths)], dtype=np.int64),
        nodes=np.array([n for p in paths for n in p], dtype=np.int64),
    )


def _owners(parent: list[int], wanted: list[int], total: list[int]) -> tuple[list[int], list[int]]:
    """Return, of each request, the one in whose own part its shared tokens end, and how many they are."""
    owner: list[int] = []
    begin: list[int] = []
    for row, above in enumerate(parent):
        shared = 0 if above < 0 else min(wanted[row], total[above])
        while above >= 0 and shared <= begin[above]:
            above = owner[above]
        owner.append(above)
        begin.append(shared if above >= 0 else 0)
    return owner, begin
