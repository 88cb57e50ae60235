"""Watts of a serving fleet: its instances' draws added up, with what they rest on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from costmodels.power.engine import EngineDraw
from planner.serving.items import Item

__all__ = ["FleetDraw", "draw_notes", "fleet_draw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDraw:
    """Draw of all devices of a fleet; the interval takes all instances to be off the same way."""

    watts: float
    low_w: float
    high_w: float
    pools: Mapping[float, tuple[float, int]]
    """By rated power of a device, the mean draw of one and their number."""


def fleet_draw(pairs: Iterable[tuple[EngineDraw | None, int]]) -> FleetDraw | None:
    """Return the draw of devices with their numbers; None where the power of one is not known."""
    pools: dict[float, tuple[float, int]] = {}
    low = high = 0.0
    for draw, count in pairs:
        if draw is None:
            return None
        mean, have = pools.get(draw.rated_w, (0.0, 0))
        pools[draw.rated_w] = ((mean * have + draw.watts * count) / (have + count), have + count)
        low, high = low + draw.low_w * count, high + draw.high_w * count
    watts = sum(mean * count for mean, count in pools.values())
    return FleetDraw(watts=watts, low_w=low, high_w=high, pools=pools)


def draw_notes(items: Iterable[Item]) -> tuple[str, ...]:
    """Return, device by device, what its watts were fitted from and how sure they are."""
    found = []
    for item in items:
        draw = item.draw
        if draw is None:
            continue
        held_out = "whole models" if draw.measured else "either measured device"
        basis = "assumed" if item.role == "prefill" else f"with {held_out} held out"
        borrowed = "" if draw.measured else ", not measured itself, hence the wider interval"
        found.append(
            f"watts of {item.offer.device.name} ({item.role}): {draw.source}{borrowed}; "
            f"spread {100 * draw.log_sigma:.0f} % {basis}"
        )
    return tuple(dict.fromkeys(found))
