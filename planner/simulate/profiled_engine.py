"""Iteration times of a whole model from its measured layers and its links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from costmodels.graph import Attention, Experts
from hardware.errors import SpecError
from planner.simulate.layer_profile import LayerProfile, profile_timer
from planner.simulate.timing import Skew, StepTimer

if TYPE_CHECKING:
    from costmodels.graph import ModelGraph

__all__ = ["measured_timer"]

Floats = npt.NDArray[np.float64]

_ACTIVATION_BYTES = 2.0


def measured_timer(
    profile: LayerProfile,
    model: ModelGraph,
    *,
    tp: int = 1,
    dp: int = 1,
    ep: int = 1,
    link_bytes_per_s: float | None = None,
    link_latency_s: float = 0.0,
    num_sms: int | None = None,
    host_s: float = 0.0,
    token_budget: int = 2048,
) -> StepTimer:
    """Return a timer of `model`, of whose layers `profile` was taken at tensor-parallel degree `tp`.

    Parameters
    ----------
    dp, ep : attention replicas in lockstep and the ways that experts are spread over them.
    link_bytes_per_s, link_latency_s : of one device, in reductions and expert exchanges.
    num_sms : multiprocessors of the device; None leaves out what unequal lengths cost.

    Raises
    ------
    SpecError
        if several devices are used and no link is given, or a mixture has no expert table.
    """
    experts = next((op for b in model.blocks for op in b.operators if isinstance(op, Experts)), None)
    attention = next((op for b in model.blocks for op in b.operators if isinstance(op, Attention)), None)
    if (tp > 1 or ep > 1) and link_bytes_per_s is None:
        raise SpecError("", ["reduce_bytes_per_s: is missing (the tables hold no communication)"])
    if experts is not None and not profile.experts:
        raise SpecError("", [f"{model.name} has experts, but the profile has no moe table"])
    skew = None
    if num_sms and attention is not None:
        heads, kv_heads = max(attention.num_heads // tp, 1), max(attention.num_kv_heads // tp, 1)
        skew = Skew(num_sms=num_sms, num_heads=heads, num_kv_heads=kv_heads)
    rate = link_bytes_per_s or 1.0

    def reduce_s(tokens: Floats) -> Floats:
        """Ring reduction: 2 (n - 1) / n of the buffer through each link."""
        num_bytes = tokens * model.hidden * _ACTIVATION_BYTES
        return link_latency_s + 2.0 * (tp - 1) / tp * num_bytes / rate

    return profile_timer(
        profile,
        num_layers=model.num_layers,
        reduce_s=reduce_s if tp > 1 else None,
        experts_s=None
        if experts is None
        else _experts_s(profile, experts, model.hidden, ep=ep, rate=rate, latency_s=link_latency_s),
        host_s=host_s,
        token_budget=token_budget,
        skew=skew,
    )


def _experts_s(
    profile: LayerProfile, experts: Experts, hidden: int, *, ep: int, rate: float, latency_s: float
) -> Callable[[Sequence[int]], float]:
    """Return the time of one expert layer by the tokens of each rank.

    Each of `ep` devices holds an equal share of the experts and sees the tokens of all ranks, of whose top-k
    choices an equal share falls to it. Experts reached by T tokens: E (1 - (1 - k/E)^T), choices taken as
    independent. Tokens are gathered before and summed after, (n - 1) / n of the buffer through each link.
    """
    local = experts.num_experts / ep

    def seconds(tokens: Sequence[int]) -> float:
        total = float(sum(tokens))
        reached = local * (1.0 - (1.0 - experts.top_k / experts.num_experts) ** total)
        time_s = profile.experts_s(total / ep, reached)
        if ep > 1:
            num_bytes = total * hidden * _ACTIVATION_BYTES
            time_s += 2.0 * (latency_s + (ep - 1) / ep * num_bytes / rate)
        return time_s

    return seconds
