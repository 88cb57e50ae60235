"""Caps of every pool of a serving plan: as low as its phase bears, gated on tail latency."""

from typing import Any

import numpy as np

from costmodels.power.draw import DevicePower, device_power, serving_draw_w
from costmodels.power.response import EFFICIENT_FLOOR_FRAC, ClockResponse, cap_response, inert_cap
from hardware.catalog import find_device
from hardware.errors import InfeasibleError
from planner.plan import PlanFile
from planner.power.plan import CapRow, ServingCaps
from planner.power.request import DECODE_CLOCK, PREFILL_CLOCK, ServingSection
from planner.serving.plan import MixEntry, ServingPlan
from solvers.power_caps import CapProblem, choose_caps

__all__ = ["plan_caps"]

_STEPS = 41


def _clock_frac(response: ClockResponse, slowdown_frac: float) -> float:
    """Return the lowest clock whose time stays within the slowdown, never under the voltage floor."""
    needed = response.clock_share / (1 / (1 - slowdown_frac) - 1 + response.clock_share)
    return max(needed, response.voltage_floor)


def _tail_room(plan: PlanFile[Any], entry: MixEntry) -> float:
    """Return how much slower a pool may get before a latency target is missed, as lost throughput."""
    predicted: Any = plan.plans[0].predicted
    checks = {"ttft_s": "slo_ttft_s", "tpot_s": "slo_tpot_s"}
    touched = {"prefill": ("ttft_s",), "decode": ("tpot_s",)}.get(entry.role, ("ttft_s", "tpot_s"))
    room = 1.0
    for figure in touched:
        target = plan.request.get(checks[figure])
        if target is not None:
            room = min(room, 1 - getattr(predicted, figure) / float(target))
    return max(room, 0.0)


def plan_caps(plan: PlanFile[ServingPlan], section: ServingSection) -> tuple[ServingCaps, tuple[str, ...]]:
    """Return the caps of the best plan of a serving file, and what a reader must know.

    Raises
    ------
    InfeasibleError
        if the power budget asks for more than the latency targets leave.
    """
    best = plan.plans[0]
    powers = [device_power(find_device(e.device)) for e in best.mix]
    counts = np.array([e.count * e.devices_per_instance for e in best.mix], dtype=np.int64)
    natural = [
        e.watts_per_device if e.watts_per_device is not None else serving_draw_w(p, e.role)
        for p, e in zip(powers, best.mix, strict=True)
    ]
    budget = section.power_budget_w
    caps, losses = [], []
    for entry, power, draw in zip(best.mix, powers, natural, strict=True):
        least = power.min_cap_w if power.min_cap_w is not None else 0.3 * power.rated_w
        options = np.linspace(power.rated_w, least, _STEPS)
        kept = cap_response(entry.device).throughput_frac(options / power.rated_w, draw / power.rated_w)
        allowed = min(_tail_room(plan, entry), 1.0 if budget is not None else section.max_slowdown_frac)
        within = kept >= 1 - allowed
        within[0] = True
        caps.append(options[within])
        losses.append(1 - kept[within])
    chosen = _lowest(caps) if budget is None else _under(budget, best.mix, counts, caps, natural, losses)
    rows = tuple(
        _row(e, p, int(n), w, float(c[j]), 1 - float(loss[j]), section)
        for e, p, n, w, c, loss, j in zip(
            best.mix, powers, counts, natural, caps, losses, chosen, strict=True
        )
    )
    watts = sum(r.watts * r.num_devices for r in rows)
    slowest = {role: min((r.throughput_frac for r in rows if r.role in (role, "both")), default=1.0)
               for role in ("prefill", "decode")}  # fmt: skip
    tokens = best.predicted.throughput_tokens_per_s
    answer = ServingCaps(
        pools=rows,
        natural_w=float((np.array(natural) * counts).sum()),
        watts=watts,
        joules_per_token=watts / tokens if tokens else None,
        latency={
            "ttft_s": best.predicted.ttft_s / slowest["prefill"],
            "tpot_s": best.predicted.tpot_s / slowest["decode"],
        },
    )
    guessed = [p for p, e in zip(powers, best.mix, strict=True) if e.watts_per_device is None]
    return answer, _notes(powers, guessed, rows)


def _lowest(caps: list[Any]) -> tuple[int, ...]:
    return tuple(len(c) - 1 for c in caps)


def _under(
    budget_w: float,
    mix: tuple[MixEntry, ...],
    counts: Any,
    caps: list[Any],
    natural: list[float],
    losses: list[Any],
) -> tuple[int, ...]:
    draws = tuple(np.minimum(c, w) for c, w in zip(caps, natural, strict=True))
    answer = choose_caps(
        CapProblem(
            names=tuple(e.name for e in mix),
            count=counts,
            draw_w=draws,
            loss=tuple(losses),
            budget_w=budget_w,
        )
    )
    if answer.solution is None:
        least = sum(float(n * d.min()) for n, d in zip(counts, draws, strict=True))
        message = (
            f"serving.power_budget_w: {budget_w:g} W is below the {least:g} W that the fleet needs for its "
            "latency targets"
        )
        raise InfeasibleError(message, answer.conflict)
    return answer.solution


def _row(
    entry: MixEntry,
    power: DevicePower,
    num_devices: int,
    natural_w: float,
    cap_w: float,
    throughput: float,
    section: ServingSection,
) -> CapRow:
    clock = {"prefill": PREFILL_CLOCK, "decode": DECODE_CLOCK}.get(entry.role, PREFILL_CLOCK)
    return CapRow(
        pool=entry.name,
        device=entry.device,
        role=entry.role,
        num_devices=num_devices,
        natural_w=natural_w,
        cap_w=round(cap_w),
        inert=bool(inert_cap(cap_w, natural_w)),
        clock_frac=_clock_frac(clock, section.max_slowdown_frac),
        throughput_frac=throughput,
        watts=min(natural_w, cap_w),
        below_floor=cap_w < EFFICIENT_FLOOR_FRAC * power.rated_w,
    )


def _notes(
    powers: list[DevicePower], guessed: list[DevicePower], rows: tuple[CapRow, ...]
) -> tuple[str, ...]:
    """Return what a reader must know; `guessed` are devices whose draw the serving plan does not say."""
    responses = [cap_response(p.device) for p in powers]
    spread = 100 * max(response.log_sigma for response in responses)
    basis = "by published figures" if all(r.published for r in responses) else "measured on older devices"
    notes = [
        f"response to caps: {basis}, spread {spread:.0f} %; calibrate on this fleet before relying on it"
    ]
    unmeasured = sorted({p.device for p in guessed if not p.measured})
    if unmeasured:
        notes.append(
            f"draw of {', '.join(unmeasured)} was not measured: mean of the measured devices, by phase"
        )
    for row in rows:
        if row.inert:
            notes.append(f"{row.pool}: a cap of {row.cap_w:g} W binds nothing (draws {row.natural_w:.0f} W)")
        if row.below_floor:
            notes.append(
                f"{row.pool}: {row.cap_w:g} W is under half of rated power, where energy can rise again"
            )
    return tuple(notes)
