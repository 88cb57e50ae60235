"""Collective and point-to-point samples to measured curves of the links that they crossed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from costmodels.calibration.device import chosen_seconds
from costmodels.collectives.curves import Curve, NetworkTraits, Technology, find_technology, fit_curve
from costmodels.kernels.fit import errors
from costmodels.kernels.machine import Floats
from costmodels.samples import KINDS, Sample
from hardware.levels import Level, group_factors

__all__ = ["LINK_KINDS", "fit_links"]

LINK_KINDS = tuple(kind for kind, shape in KINDS.items() if "message_bytes" in shape)
_LEAST = 4
"""Sizes from which a curve is fitted; start-up and bandwidth must both show."""


def fit_links(
    samples: Sequence[Sample], levels: tuple[Level, ...], *, statistic: str
) -> tuple[dict[str, Technology], dict[str, Any], tuple[str, ...]]:
    """Return curves by the technology of each level, how they did on held-out sizes, and what was left out.

    Only groups that live inside one level say something about that level alone.
    """
    rows = [s for s in samples if s.kind in LINK_KINDS]
    sizes = tuple(level.size for level in levels)
    found: dict[int, list[Sample]] = {}
    spanning = 0
    for sample in rows:
        at = sample.at
        factors = group_factors(sizes, np.array([int(at["stride"])]), np.array([int(at["degree"])]))[:, 0]
        active = np.flatnonzero(factors > 1)
        if len(active) == 1:
            found.setdefault(int(active[0]), []).append(sample)
        else:
            spanning += 1
    technologies: dict[str, Technology] = {}
    report: dict[str, Any] = {}
    notes = [f"{spanning} collective samples span several levels and were left out"] if spanning else []
    for index, own in sorted(found.items()):
        level = levels[index]
        curves, said = _curves(own, statistic)
        if not curves:
            notes.append(f"links of level {level.name}: fewer than {_LEAST} sizes of any operation")
            continue
        shipped = find_technology(level.technology)
        launch = min(curve.alpha_s[0] for curve in curves.values()) / 2
        technologies[level.technology] = Technology(
            name=level.technology,
            reference_bytes_per_s=level.bytes_per_s,
            curves=curves,
            traits=_traits(shipped.traits, launch),
            nvls_min_degree=shipped.nvls_min_degree,
        )
        report |= {f"{level.technology}/{name}": entry for name, entry in said.items()}
    return technologies, report, tuple(notes)


def _traits(shipped: NetworkTraits, launch_s: float) -> NetworkTraits:
    from dataclasses import replace

    return replace(shipped, launch_s=min(shipped.launch_s, launch_s))


def _curves(samples: Sequence[Sample], statistic: str) -> tuple[dict[str, Curve], dict[str, dict[str, Any]]]:
    curves, report = {}, {}
    for kind in LINK_KINDS:
        fits = {}
        held: list[tuple[Floats, Floats]] = []
        for degree in sorted({int(s.at["degree"]) for s in samples if s.kind == kind}):
            rows = [s for s in samples if s.kind == kind and int(s.at["degree"]) == degree]
            size = np.array([s.at["message_bytes"] for s in rows])
            if len(np.unique(size)) < _LEAST:
                continue
            seconds = chosen_seconds(rows, statistic)
            name = "all_to_all" if kind == "p2p" else kind
            fits[degree] = fit_curve(name, degree, size, seconds)
            held.append((_held_out(name, degree, size, seconds), seconds))
        if fits:
            columns = list(zip(*fits.values(), strict=True))
            names = ("alpha_s", "extra_s", "half_bytes", "bytes_per_s", "log_sigma")
            curves[kind] = Curve(degrees=tuple(fits), **dict(zip(names, columns, strict=True)))
            predicted, measured = (np.concatenate(c) for c in zip(*held, strict=True))
            report[kind] = {"num_samples": len(measured), "held_out": errors(predicted, measured)}
    return curves, report


def _held_out(op: str, degree: int, size: Floats, seconds: Floats) -> Floats:
    """Return each inner size predicted by a curve through the others; the ends have no neighbour outside."""
    out = seconds.copy()
    order = np.unique(size)
    for one in order[1:-1]:
        rest = size != one
        curve = fit_curve(op, degree, size[rest], seconds[rest])
        whole = Curve(
            degrees=(degree,),
            alpha_s=(curve[0],),
            extra_s=(curve[1],),
            half_bytes=(curve[2],),
            bytes_per_s=(curve[3],),
            log_sigma=(curve[4],),
        )
        out[~rest] = curve_seconds(whole, op, degree, size[~rest])
    return out


def curve_seconds(curve: Curve, op: str, degree: int, size: Floats) -> Floats:
    """Return the seconds that a curve says."""
    from costmodels.collectives.curves import traffic_factor

    n = np.full(len(size), float(degree))
    alpha, extra, half, rate, _ = curve.at(n)
    out: Floats = alpha + extra * size / (size + half) + traffic_factor(op, n) * size / rate
    return out


def links_to_json(technologies: Mapping[str, Technology]) -> dict[str, Any]:
    """Return technologies as a calibration file holds them."""
    from dataclasses import asdict

    return {name: asdict(technology) for name, technology in technologies.items()}


def links_from_json(data: Mapping[str, Any]) -> dict[str, Technology]:
    """Return technologies written by `links_to_json`."""
    return {
        name: Technology(
            **{
                **entry,
                "curves": {
                    op: Curve(**{k: tuple(v) for k, v in curve.items()})
                    for op, curve in entry["curves"].items()
                },
                "traits": NetworkTraits(**entry["traits"]),
            }
        )
        for name, entry in data.items()
    }
