"""What is to be run: a training job, a serving job with its traffic and latency targets."""

from dataclasses import dataclass

from costmodels.graph import ModelGraph

__all__ = ["TrainingJob"]


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
