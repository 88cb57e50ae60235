"""What is to be run: a training job; the traffic and the latency targets of a serving job."""

from dataclasses import dataclass

from costmodels.graph import ModelGraph

__all__ = ["Slo", "Traffic", "TrainingJob"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One optimizer step of `model` over `global_batch` sequences of `seq_len` tokens."""

    model: ModelGraph
    seq_len: int
    global_batch: int
    """Sequences per optimizer step, over all replicas."""
    precision: str = "bf16"
    """Matmul dtype: bf16, fp16, fp8, mxfp8, fp8-block, nvfp4, fp32."""
    stack: str = "megatron-core"
    """Software stack whose kernels and overheads apply."""
    release: str = ""
    """Container or release of that software, such as ``26.04.01``; blank: the one that it stands for."""
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        for name in ("seq_len", "global_batch"):
            if getattr(self, name) < 1:
                message = f"{name} must be at least 1, not {getattr(self, name)}"
                raise ValueError(message)

    @property
    def num_tokens(self) -> int:
        """Tokens per step."""
        return self.seq_len * self.global_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Latency targets; each one that is given must hold for `percentile` percent of the requests."""

    ttft_s: float | None = None
    """Arrival to first token."""
    tpot_s: float | None = None
    """Mean time per output token after the first, per request."""
    itl_s: float | None = None
    """Longest gap between two tokens of a request."""
    e2e_s: float | None = None
    """Arrival to last token."""
    percentile: float = 99.0

    def __post_init__(self) -> None:
        if not 1.0 <= self.percentile <= 100.0:
            message = f"percentile is in percent, from 1 to 100, not {self.percentile:g}"
            raise ValueError(message)
        for name, target_s in self.targets.items():
            if not 0.0 < target_s < float("inf"):
                message = f"{name} must be positive and finite, not {target_s:g}"
                raise ValueError(message)

    @property
    def targets(self) -> dict[str, float]:
        """The targets that are given, by field name (``ttft_s``, ``tpot_s``, ``itl_s``, ``e2e_s``)."""
        given = {n: getattr(self, n) for n in ("ttft_s", "tpot_s", "itl_s", "e2e_s")}
        return {n: v for n, v in given.items() if v is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests per second and their joint length distribution: size `i` has share `share_frac[i]`."""

    rate_per_s: float
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    share_frac: tuple[float, ...]
    """Of the requests, one per size; sums to one."""
    arrival_cv: float = 1.0
    """Standard deviation over mean of the time between arrivals; 1 is a Poisson process."""
    prefix_hit_frac: float = 0.0
    """Prompt tokens that an unlimited prefix cache would hold, as a share of all prompt tokens."""

    def __post_init__(self) -> None:
        if not len(self.prompt_tokens) == len(self.output_tokens) == len(self.share_frac) >= 1:
            message = "prompt_tokens, output_tokens and share_frac need the same length, at least one"
            raise ValueError(message)
        if min(self.prompt_tokens) < 1 or min(self.output_tokens) < 1:
            message = "every size needs at least one prompt token and one output token"
            raise ValueError(message)
        if min(self.share_frac) < 0.0 or abs(sum(self.share_frac) - 1.0) > 1e-6:
            message = f"share_frac must not be negative and must sum to 1, not {sum(self.share_frac):g}"
            raise ValueError(message)
        if not 0.0 < self.rate_per_s < float("inf") or self.arrival_cv < 0.0:
            message = "rate_per_s must be positive and finite, arrival_cv not negative"
            raise ValueError(message)
        if not 0.0 <= self.prefix_hit_frac < 1.0:
            message = f"prefix_hit_frac must lie in [0, 1), not {self.prefix_hit_frac:g}"
            raise ValueError(message)

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean over the requests."""
        return sum(n * w for n, w in zip(self.prompt_tokens, self.share_frac, strict=True))

    @property
    def mean_output_tokens(self) -> float:
        """Mean over the requests."""
        return sum(n * w for n, w in zip(self.output_tokens, self.share_frac, strict=True))
