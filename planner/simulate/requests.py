"""The state of every request of one simulation, as plain lists that the engines write to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from costmodels.traces import Trace
    from planner.simulate.settings import Speculation

__all__ = ["RequestTable", "chains"]

_NEVER = float("inf")


class RequestTable:
    """Columns over requests; lists rather than arrays, since single elements are read and written.

    Attributes
    ----------
    target_tokens : tokens to compute before the next token can be sampled (the prompt, and after a
        recompute also what had been generated).
    queued_s : when an engine last took the request into its queue.
    ready_tokens : how many of them are cached.
    left_tokens : output tokens still to come.
    left_steps : decode iterations still to come; equal to `left_tokens` minus one after prefill without
        speculation.
    chain : which prefix chain the request extends.
    shared_tokens : leading prompt tokens that earlier turns of its chain may have left in a cache.
    given_prefix : the trace states the shared tokens; they count as cached wherever the request runs.
    tree : what the requests share, where the trace says so block by block or by parents.
    paths : nodes of each request in that tree, root first.
    """

    __slots__ = (
        "arrival_s",
        "chain",
        "engine",
        "finish_s",
        "first_s",
        "given_prefix",
        "hit_tokens",
        "last_s",
        "left_tokens",
        "longest_gap_s",
        "output_tokens",
        "paths",
        "preemptions",
        "prefill_engine",
        "prompt_tokens",
        "queued_s",
        "ready_tokens",
        "restarts",
        "shared_tokens",
        "start_s",
        "steps_per_token",
        "swapped",
        "target_tokens",
        "tree",
    )

    def __init__(self, trace: Trace, *, speculation: Speculation | None = None, seed: int = 0) -> None:
        count = len(trace)
        self.arrival_s: list[float] = trace.arrival_s.tolist()
        self.prompt_tokens: list[int] = trace.prompt_tokens.tolist()
        self.output_tokens: list[int] = trace.output_tokens.tolist()
        self.target_tokens = list(self.prompt_tokens)
        self.ready_tokens = [0] * count
        self.queued_s = list(self.arrival_s)
        self.left_tokens = list(self.output_tokens)
        self.first_s = [_NEVER] * count
        self.start_s = [_NEVER] * count
        self.finish_s = [_NEVER] * count
        self.last_s = [_NEVER] * count
        self.longest_gap_s = [0.0] * count
        self.preemptions = [0] * count
        self.restarts = [0] * count
        self.hit_tokens = [0] * count
        self.engine = [-1] * count
        self.prefill_engine = [-1] * count
        self.swapped = [False] * count
        self.chain, self.shared_tokens = chains(trace)
        self.tree = trace.tree
        self.paths = [] if trace.tree is None else [trace.tree.path(r) for r in range(count)]
        self.given_prefix = trace.prefix_tokens is not None
        self.steps_per_token = _steps_per_token(self.output_tokens, speculation, seed)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def note_gap(self, request: int, now_s: float) -> None:
        """Book the time since the request's last token, if that is the longest it waited."""
        gap_s = now_s - self.last_s[request]
        if gap_s > self.longest_gap_s[request]:
            self.longest_gap_s[request] = gap_s

    def restart(self, request: int) -> None:
        """Forget all progress, as after the failure of its engine; the first token, once sent, stays sent."""
        self.target_tokens[request] = (
            self.prompt_tokens[request] + self.output_tokens[request] - self.left_tokens[request]
        )
        self.ready_tokens[request] = 0
        self.swapped[request] = False
        self.restarts[request] += 1


def chains(trace: Trace) -> tuple[list[int], list[int]]:
    """Return the chain of each request and the leading tokens that its chain already held before it.

    Requests of a session share its chain; one that stands alone gets a chain of its own (negative), which
    matters when it is preempted. The share of a turn is the whole of the turn before it, as far as its own
    prompt reaches. Where the trace states `prefix_tokens`, that figure is the share; where it has a
    tree, what an unlimited cache would hold of it.
    """
    count = len(trace)
    chain = list(range(-1, -count - 1, -1))
    shared = [0] * count
    if trace.session is not None:
        last_tokens: dict[int, int] = {}
        prompt, output = trace.prompt_tokens.tolist(), trace.output_tokens.tolist()
        for i, session in enumerate(trace.session.tolist()):
            if session >= 0:
                chain[i] = session
                shared[i] = min(last_tokens.get(session, 0), prompt[i])
                last_tokens[session] = prompt[i] + output[i]
    if trace.prefix_tokens is not None:
        shared = trace.prefix_tokens.tolist()
    if trace.tree is not None:
        shared = np.minimum(trace.tree.seen_tokens(), trace.prompt_tokens).tolist()
    return chain, shared


def _steps_per_token(output_tokens: list[int], speculation: Speculation | None, seed: int) -> list[float]:
    """Return decode iterations per token of each request: one, or drawn for speculative decoding.

    Each iteration yields one token and as many drafts as are accepted in a row; a request's number of
    iterations is the first at which the sum reaches its output.
    """
    if speculation is None:
        return [1.0] * len(output_tokens)
    rng = np.random.default_rng(seed)
    ratios = []
    for tokens in output_tokens:
        need = tokens - 1
        if need < 1:
            ratios.append(1.0)
            continue
        runs = rng.geometric(1.0 - speculation.acceptance_frac, size=need)
        gained = np.cumsum(np.minimum(runs, speculation.num_tokens + 1))
        ratios.append(float(np.searchsorted(gained, need) + 1) / need)
    return ratios
