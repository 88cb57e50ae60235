"""Checks that plans of every kind share, each with its figures."""

from collections.abc import Sequence
from math import isclose

from planner.plan import Check, Placement, TrainingPrediction

__all__ = [
    "bandwidth_check",
    "groups_check",
    "layers_check",
    "order_check",
    "parts_check",
    "seats_check",
    "stages_fit_check",
]

_ROUNDING_FRAC = 1e-9


def seats_check(placement: Placement, num_ranks: int) -> Check:
    """Return whether the ranks are numbered through and each has a device of its own."""
    seats = {(rank.host, rank.device) for rank in placement.ranks}
    numbers = [rank.rank for rank in placement.ranks]
    return Check(
        name="every-rank-has-its-own-device",
        holds=numbers == list(range(num_ranks)) and len(seats) == num_ranks,
        detail=f"{len(numbers)} ranks on {len(seats)} devices",
    )


def groups_check(used: Sequence[int], sizes: Sequence[int]) -> Check:
    """Return whether the degrees of every group of the cluster multiply to its devices."""
    holds = list(used) == list(sizes)
    return Check(name="degrees-fill-every-group", holds=holds, detail=f"{used} of {sizes} devices")


def layers_check(layers: Sequence[int], total: int, counted: str = "") -> Check:
    """Return whether stages hold all layers of the model and none is empty."""
    return Check(
        name="layers-sum-to-the-model",
        holds=sum(layers) == total and min(layers) > 0,
        detail=f"{list(layers)} of {total}{counted}",
    )


def stages_fit_check(peak_bytes: Sequence[float], limit_bytes: Sequence[float]) -> Check:
    """Return whether every stage keeps within what its smallest device holds."""
    fitting = sum(peak <= limit for peak, limit in zip(peak_bytes, limit_bytes, strict=True))
    return Check(
        name="every-stage-fits",
        holds=fitting == len(peak_bytes),
        detail=f"{fitting} of {len(peak_bytes)} stages within their device",
    )


def parts_check(predicted: TrainingPrediction) -> Check:
    """Return whether the parts of the time add up to the step."""
    total_s = sum(predicted.time_parts_s.values())
    return Check(
        name="time-parts-sum-to-the-step",
        holds=isclose(total_s, predicted.step_s, rel_tol=_ROUNDING_FRAC),
        detail=f"{total_s:.6g} s of {predicted.step_s:.6g} s",
    )


def order_check(moved_frac: float, what: str) -> Check:
    """Return whether another order of what is enumerated leaves the cost as it is."""
    return Check(
        name="cost-independent-of-enumeration-order",
        holds=moved_frac <= _ROUNDING_FRAC,
        detail=f"{what} in another order: steps differ by at most {moved_frac:.1g}",
    )


def bandwidth_check(least_ratio: float) -> Check:
    """Return whether networks at half their rate make nothing faster; `least_ratio` is slow over fast."""
    return Check(
        name="monotone-in-bandwidth",
        holds=least_ratio >= 1.0 - _ROUNDING_FRAC,
        detail=f"at half the network's rate steps take {least_ratio:.3f} times as long or longer",
    )
