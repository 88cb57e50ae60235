"""The stack of the reference step that `planner.profiling` runs: what it does, and what is believed of it."""

from dataclasses import dataclass
from math import inf
from types import MappingProxyType

__all__ = ["DOES", "PRIORS", "REFERENCE_STACK", "Prior"]

REFERENCE_STACK = "torch-reference"
"""Name of the stack that the generated reference step is."""

DOES = MappingProxyType(
    {
        "summary": "the reference training step: torch without compilation, gradients reduced after backward",
        "flash": True,
        "fused_norm": True,
        "overlap_gradients": False,
        "synchronous": True,
        "main_grad_bytes": 4.0,
        "loss_bytes_per_logit": 36.0,
        "optimizer": 1.0,
        "end_collectives": 4.0,
        "misaligned": 0.0,
        "evidence": "assumed; calibrated by measured steps",
    }
)
"""Fields of a `costmodels.stacks.Stack` that no measurement changes. Embedding and the input of the head talk
in messages of a layer's size, the loss three times in short ones that count as two. Torch's own loss
passes over 36 bytes per logit: 16 forward, 20 backward (counted)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is believed of a coefficient before any step was measured."""

    value: float
    log_sigma: float
    most: float = inf
    shared: bool = False
    """A similar device has nearly the same: what its own steps said is believed the more."""


PRIORS = MappingProxyType(
    {
        "gemm": Prior(value=1.0, log_sigma=0.08),
        "attention": Prior(value=1.0, log_sigma=0.2, shared=True),
        "vector": Prior(value=6.0, log_sigma=0.7, shared=True),
        "comm": Prior(value=1.0, log_sigma=0.3),
        "dp_comm": Prior(value=1.0, log_sigma=0.3),
        "host_s_per_op": Prior(value=2e-5, log_sigma=0.7, shared=True),
        "host_s_per_microbatch": Prior(value=3e-4, log_sigma=0.7, shared=True),
        "sync_s_per_collective": Prior(value=5e-5, log_sigma=2.0),
        "accumulation_frac": Prior(value=0.43, log_sigma=0.4, shared=True),
        "pp_exposed_frac": Prior(value=0.9, log_sigma=0.3, most=1.0),
        "step_s": Prior(value=1e-3, log_sigma=0.7, shared=True),
    }
)
"""Matmuls, attention and collectives were measured by themselves, so a step moves them little. Element-wise
work was measured as plain passes over memory; without compilation an activation function or a loss takes
several, and computes besides. Adding a gradient moves 12 bytes a parameter, an Adam step 28 (all assumed)."""
