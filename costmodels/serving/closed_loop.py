"""TTFT and TPOT of a closed loop: clients that each send their next request when one is answered.

This is how serving benchmarks measure. All clients start together and lengths differ, so prompts arrive in
waves that flatten slowly; a formula for the steady state misses that, and it decides TTFT. The loop is run on
events, runs of equal decode iterations being one event, with iteration times looked up in two small tables.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ClosedLoop", "LoopResult", "LoopTimes", "PrefillPool", "run_closed_loop"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoopTimes:
    """Iteration times of one attention group, by how many requests it decodes."""

    batch_nodes: Floats
    """Decoding requests at the nodes, from zero up. shape (nodes,)"""
    decode_s: Floats
    """Decode iteration without prompts. shape (nodes,)"""
    mixed_s: Floats
    """Iteration with one full chunk of prompt tokens beside the decoding requests. shape (nodes,)"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefillPool:
    """Queues that take prompts only, each as many waiting ones at a time as fit its budget."""

    num_queues: int
    token_nodes: Floats
    """Prompt tokens at the nodes, the last the most that one iteration takes. shape (nodes,)"""
    seconds: Floats
    """Iteration of a queue with so many tokens. shape (nodes,)"""
    transfer_s: float
    """One request's cache on its way to the decoding instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """One benchmark run."""

    concurrency: int
    """Clients of one attention group."""
    prompt_tokens: float
    """Longest prompt."""
    output_tokens: float
    """Longest answer."""
    length_spread_frac: float
    """Lengths are uniform from `1 - length_spread_frac` of the longest up to the longest."""
    requests_per_client: int
    chunk_tokens: float
    """Prompt tokens of one mixed iteration."""
    max_batch: int
    """Requests that the KV cache and the engine's limit admit at once."""
    admission_s: float
    """Added to every TTFT."""
    prefill: "PrefillPool | None" = None
    """Separate instances for prompts (split form); None is prompts in the same instance. The first token then
    reaches the client when a decoding instance has room for the request."""
    tokens_per_step: float = 1.0
    """Tokens that a decode step yields on average (drafts accepted plus one)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopResult:
    """What the clients saw."""

    ttft_mean_s: float
    ttft_median_s: float
    tpot_mean_s: float
    tpot_median_s: float
    ttft_prompt_s: float
    """Of the mean TTFT, what prompt tokens added to iterations; the rest decoded other requests."""
    tpot_prompt_s: float
    """Likewise of the mean TPOT."""
    throughput_tokens_per_s: float
    """Output tokens of the group."""
    mean_batch: float


def run_closed_loop(loop: ClosedLoop, times: LoopTimes, seed: int = 0) -> LoopResult:
    """Return mean and median latencies of one run.

    Decoding requests advance together, so a request that starts at tick `t` with `n` steps to go ends at tick
    `t + n`; an iteration with a prompt chunk is one tick too.
    """
    state = _Run(loop, times, np.random.default_rng(seed))
    while state.left:
        if state.waiting and len(state.running) < loop.max_batch:
            state.prefill()
        elif state.running:
            state.decode()
        else:
            state.idle()
    return state.result()


class _Run:
    """Clocks and queues of one run."""

    def __init__(self, loop: ClosedLoop, times: LoopTimes, rng: np.random.Generator) -> None:
        total = loop.concurrency * max(loop.requests_per_client, 1)
        low = 1.0 - loop.length_spread_frac
        self.loop = loop
        self.prompts = (rng.uniform(low, 1.0, total) * loop.prompt_tokens).tolist()
        self.steps = [
            max(1, round(x))
            for x in rng.uniform(low, 1.0, total) * max(loop.output_tokens - 1.0, 1.0) / loop.tokens_per_step
        ]
        size = min(loop.concurrency, loop.max_batch) + 1
        batches = np.arange(size + 1)
        self.decode_table = np.interp(batches, times.batch_nodes, times.decode_s).tolist()
        mixed = np.interp(batches, times.batch_nodes, times.mixed_s)
        plain = np.where(batches > 0, self.decode_table, 0.0)
        self.added_table = np.maximum(mixed - plain, 0.0).tolist()
        self.now = 0.0
        self.added = 0.0
        self.tick = 0
        self.sent_added: list[float] = [0.0] * total
        self.first_added: list[float] = [0.0] * total
        self.ttft_added: list[float] = [0.0] * total
        self.tpot_added: list[float] = [0.0] * total
        self.sent: list[float] = [0.0] * total
        self.first: list[float] = [0.0] * total
        self.ttft: list[float] = [0.0] * total
        self.tpot: list[float] = [0.0] * total
        self.running: list[tuple[int, int]] = []
        self.waiting: deque[int] = deque()
        self.ahead: list[tuple[float, int]] = []
        self.queues = [0.0] * (loop.prefill.num_queues if loop.prefill else 0)
        self.unread: deque[int] = deque()
        self.next = 0
        self.left = total
        self.batch_time = 0.0
        for _ in range(loop.concurrency):
            self.send(0.0)
        self.read()

    def send(self, at: float) -> None:
        """Send the next request, if any is left."""
        request = self.next
        if request >= len(self.sent):
            return
        self.next += 1
        self.sent[request] = at
        self.sent_added[request] = self.added
        (self.unread if self.queues else self.waiting).append(request)

    def read(self) -> None:
        """Let every free queue take its share of the prompts that wait."""
        pool = self.loop.prefill
        while pool is not None and self.unread:
            queue = min(range(len(self.queues)), key=self.queues.__getitem__)
            begin = max(self.queues[queue], self.sent[self.unread[0]])
            if begin > self.now:
                return
            idle = sum(free <= begin for free in self.queues)
            fair = -(-len(self.unread) // idle)
            taken = [self.unread.popleft()]
            tokens = self.prompts[taken[0]]
            while (
                self.unread
                and len(taken) < fair
                and self.sent[self.unread[0]] <= begin
                and tokens + self.prompts[self.unread[0]] <= pool.token_nodes[-1]
            ):
                taken.append(self.unread.popleft())
                tokens += self.prompts[taken[-1]]
            done = begin + float(np.interp(tokens, pool.token_nodes, pool.seconds))
            self.queues[queue] = done
            for request in taken:
                heapq.heappush(self.ahead, (done + pool.transfer_s, request))

    def start(self, request: int) -> None:
        """Move a request to decoding."""
        self.first[request] = self.now
        self.first_added[request] = self.added
        heapq.heappush(self.running, (self.tick + self.steps[request], request))

    def finish(self) -> None:
        """Answer every request that ends at this tick; its client sends the next one."""
        while self.running and self.running[0][0] <= self.tick:
            _, request = heapq.heappop(self.running)
            tokens = self.steps[request] * self.loop.tokens_per_step
            self.tpot[request] = (self.now - self.first[request]) / tokens
            self.tpot_added[request] = (self.added - self.first_added[request]) / tokens
            self.left -= 1
            self.send(self.now)

    def prefill(self) -> None:
        """Run iterations with prompt chunks until the oldest waiting prompt, and what fits with it, is in."""
        loop = self.loop
        if self.queues:
            request = self.waiting.popleft()
            self.ttft[request] = self.now - self.sent[request] + loop.admission_s
            self.ttft_added[request] = self.ttft[request]
            self.start(request)
            return
        room = loop.max_batch - len(self.running)
        tokens = 0.0
        taken: list[int] = []
        while (
            self.waiting
            and len(taken) < room
            and (not taken or tokens + self.prompts[self.waiting[0]] <= loop.chunk_tokens)
        ):
            request = self.waiting.popleft()
            tokens += self.prompts[request]
            taken.append(request)
        whole, rest = divmod(tokens, loop.chunk_tokens)
        for share in [1.0] * int(whole) + ([rest / loop.chunk_tokens] if rest > 0 else []):
            batch = len(self.running)
            added = share * self.added_table[batch]
            self.added += added
            self.advance((self.decode_table[batch] if batch else 0.0) + added, 1)
        for request in taken:
            self.ttft[request] = self.now - self.sent[request] + loop.admission_s
            self.ttft_added[request] = self.added - self.sent_added[request]
            self.start(request)

    def decode(self) -> None:
        """Run plain decode iterations until a request ends or a prompt arrives from a separate instance."""
        seconds = self.decode_table[len(self.running)]
        ticks = max(self.running[0][0] - self.tick, 1)
        event = self.next_event_s()
        if event < float("inf"):
            ticks = min(ticks, max(1, math.ceil((event - self.now) / seconds)))
        self.advance(ticks * seconds, ticks)
        self.arrive()

    def idle(self) -> None:
        """Wait for a separate instance."""
        self.now = max(self.now, self.next_event_s())
        self.arrive()

    def next_event_s(self) -> float:
        """Return when a separate instance next finishes prompts or is free for waiting ones."""
        free = min(self.queues) if self.unread else float("inf")
        return min(self.ahead[0][0] if self.ahead else float("inf"), free)

    def arrive(self) -> None:
        """Move prompts on to the separate instances, and those that they have finished to decoding."""
        self.read()
        while self.ahead and self.ahead[0][0] <= self.now:
            self.waiting.append(heapq.heappop(self.ahead)[1])

    def advance(self, seconds: float, ticks: int) -> None:
        """Let the decoding requests make `ticks` steps."""
        self.batch_time += len(self.running) * seconds
        self.now += seconds
        self.tick += ticks
        self.finish()

    def result(self) -> LoopResult:
        """Return what the clients saw."""
        tokens = sum(self.steps) * self.loop.tokens_per_step
        return LoopResult(
            ttft_mean_s=float(np.mean(self.ttft)),
            ttft_median_s=float(np.median(self.ttft)),
            tpot_mean_s=float(np.mean(self.tpot)),
            tpot_median_s=float(np.median(self.tpot)),
            ttft_prompt_s=float(np.mean(self.ttft_added)),
            tpot_prompt_s=float(np.mean(self.tpot_added)),
            throughput_tokens_per_s=tokens / max(self.now, 1e-12),
            mean_batch=self.batch_time / max(self.now, 1e-12),
        )
