"""Engines whose devices run below their full speed under a power cap."""

from collections.abc import Sequence
from dataclasses import replace

from planner.simulate.fleet import EngineSpec
from planner.simulate.timing import Load, StepTimer

__all__ = ["SlowedTimer", "capped_engine"]


class SlowedTimer:
    """Another timer's times, longer by one factor with prompts in the iteration, by another without."""

    def __init__(self, timer: StepTimer, *, prefill_frac: float, decode_frac: float) -> None:
        """Take the throughput that is left, over the full one, with prompts and without."""
        self._timer = timer
        self._prefill_frac = prefill_frac
        self._decode_frac = decode_frac

    def decode_s(self, num_seqs: int, kv_tokens: float, longest_kv: float = 0.0) -> float:
        """Return the time of a pure decode iteration."""
        return self._timer.decode_s(num_seqs, kv_tokens, longest_kv) / self._decode_frac

    def step_s(self, load: Load) -> float:
        """Return the time of an iteration that holds prompt tokens."""
        return self._timer.step_s(load) / self._prefill_frac

    def lockstep_s(self, loads: Sequence[Load]) -> float:
        """Return the time of one iteration of ranks that wait for each other."""
        mixed = any(load.prefill_tokens for load in loads)
        return self._timer.lockstep_s(loads) / (self._prefill_frac if mixed else self._decode_frac)

    def prompt_bound_s(self, prompt_tokens: float) -> float:
        """Return a time that a prompt takes at the least, however it is batched."""
        return self._timer.prompt_bound_s(prompt_tokens) / self._prefill_frac


def capped_engine(
    spec: EngineSpec, *, cap_w: float | None, prefill_frac: float, decode_frac: float
) -> EngineSpec:
    """Return the engine under a power cap.

    Parameters
    ----------
    cap_w : of one device; no phase draws more. [W]
    prefill_frac, decode_frac : throughput that the cap leaves, over that without one.

    Raises
    ------
    ValueError
        if the cap is below what the devices draw at rest.
    """
    if cap_w is not None:
        most = cap_w * spec.num_devices
        if spec.idle_w is not None and most < spec.idle_w:
            message = f"cap_w: {cap_w:g} is below the {spec.idle_w / spec.num_devices:g} W of an idle device"
            raise ValueError(message)
        spec = replace(spec, prefill_w=_at_most(spec.prefill_w, most), decode_w=_at_most(spec.decode_w, most))
    if prefill_frac == decode_frac == 1.0:
        return spec
    timer = SlowedTimer(spec.timer, prefill_frac=prefill_frac, decode_frac=decode_frac)
    return replace(spec, timer=timer)


def _at_most(watts: float | None, most: float) -> float | None:
    return None if watts is None else min(watts, most)
