"""What an engine is told to do: batching, memory and preemption, as one value with named presets."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from hardware.errors import UnknownNameError

__all__ = ["POLICIES", "Batching", "EngineSettings", "Preemption", "Role", "Speculation", "engine_settings"]


class Batching(StrEnum):
    """What one iteration may hold."""

    CHUNKED = "chunked"
    """Running decodes, then running prefills, then waiting prompts, up to the budget; prompts are cut."""
    MIXED = "mixed"
    """As above with whole prompts only (Orca's iteration-level batching)."""
    PREFILL_FIRST = "prefill-first"
    """Whole prompts alone while any can start, otherwise decodes alone."""


class Preemption(StrEnum):
    """What becomes of the request that gives up its memory."""

    RECOMPUTE = "recompute"
    SWAP = "swap"


class Role(StrEnum):
    """Which phases an engine runs."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Draft tokens per iteration and the chance that each is accepted, given the ones before it."""

    num_tokens: int
    acceptance_frac: float

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or not 0.0 <= self.acceptance_frac < 1.0:
            message = "speculation needs num_tokens of at least 1 and acceptance_frac in [0, 1)"
            raise ValueError(message)

    @classmethod
    def keeping(cls, num_tokens: int, accepted_tokens: float) -> Self:
        """Return drafts of which `accepted_tokens` are kept on average: a + a^2 + ... + a^num_tokens."""
        low, high = 0.0, 1.0 - 1e-9
        for _ in range(60):
            middle = 0.5 * (low + high)
            if sum(middle**i for i in range(1, num_tokens + 1)) < accepted_tokens:
                low = middle
            else:
                high = middle
        return cls(num_tokens=num_tokens, acceptance_frac=low)

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens per iteration: (1 - a^(k+1)) / (1 - a), Leviathan et al., ICML 2023."""
        a = self.acceptance_frac
        return float((1.0 - a ** (self.num_tokens + 1)) / (1.0 - a))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How an engine forms its iterations and keeps its cache."""

    batching: Batching = Batching.CHUNKED
    token_budget: int = 2048
    """Tokens of one iteration; with whole prompts, the prompt tokens that are added at once."""
    max_seqs: int = 256
    """Sequences that run at once."""
    long_prefill_tokens: int = 0
    """Largest chunk of one prompt; 0 is the budget."""
    block_tokens: int = 16
    watermark_frac: float = 0.0
    """Blocks that admission leaves free, as a share of all."""
    reserve_output: bool = False
    """Reserve the blocks of prompt and whole output on admission (Orca)."""
    preemption: Preemption = Preemption.RECOMPUTE
    prefix_caching: bool = True
    run_ahead: bool = False
    """Form each iteration while the one before it runs, as vLLM's asynchronous scheduling does: what arrives
    or is freed meanwhile counts one iteration later."""
    speculation: Speculation | None = None
    max_decode_context_tokens: int = 0
    """Cached tokens at which no further sequence starts to decode; 0 is no limit (DistServe uses 50,000)."""

    def __post_init__(self) -> None:
        for name in ("token_budget", "max_seqs", "block_tokens"):
            if getattr(self, name) < 1:
                message = f"{name} must be at least 1, not {getattr(self, name)}"
                raise ValueError(message)
        if self.long_prefill_tokens < 0 or self.max_decode_context_tokens < 0:
            message = "long_prefill_tokens and max_decode_context_tokens must not be negative"
            raise ValueError(message)
        if not 0.0 <= self.watermark_frac < 1.0:
            message = f"watermark_frac must lie in [0, 1), not {self.watermark_frac:g}"
            raise ValueError(message)
        if self.batching is Batching.CHUNKED and self.token_budget < self.max_seqs * self.step_tokens:
            need = self.max_seqs * self.step_tokens
            message = f"token_budget {self.token_budget} cannot hold max_seqs x tokens per step = {need}"
            raise ValueError(message)

    @property
    def step_tokens(self) -> int:
        """Query tokens of one sequence in a decode iteration."""
        return 1 + (self.speculation.num_tokens if self.speculation else 0)


POLICIES = {
    "vllm": EngineSettings(run_ahead=True),
    "sarathi": EngineSettings(token_budget=512, prefix_caching=False),
    "orca": EngineSettings(
        batching=Batching.MIXED, token_budget=1 << 30, reserve_output=True, prefix_caching=False
    ),
    "prefill-first": EngineSettings(
        batching=Batching.PREFILL_FIRST, token_budget=8192, watermark_frac=0.01, prefix_caching=False
    ),
}
"""Named starting points: vLLM v1, Sarathi-Serve (OSDI 2024), Orca (OSDI 2022), vLLM v0 and DistServe."""


def engine_settings(policy: str, **changes: object) -> EngineSettings:
    """Return a named policy with some fields changed.

    Raises
    ------
    UnknownNameError
        for a policy that is not in `POLICIES`.
    """
    if policy not in POLICIES:
        raise UnknownNameError("engine policy", policy, POLICIES)
    return replace(POLICIES[policy], **changes)  # type: ignore[arg-type]
