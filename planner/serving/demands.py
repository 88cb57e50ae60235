"""One model's traffic, the instances that could serve it, and which sizes the percentile lets be late.

A percentile is of all requests together: a few sizes may miss the targets altogether if the others keep them
more strictly. Sizes that no device serves in time must; where some cost far more than their share, it is
tried whether a fleet that lets them be late is cheaper. Replays decide whether it keeps the percentile.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from costmodels.graph import ModelGraph
from costmodels.serving.engine import EngineStack
from planner.serving.items import ItemSearch, Role, find_items
from planner.serving.mix import Demand
from planner.serving.offers import DeviceOffer
from planner.serving.request import ServeRequest
from planner.workload import Buckets, Workload, bucketise, read_workload

__all__ = ["demand_of", "late_note", "with_late_sizes"]

Floats = npt.NDArray[np.float64]

_ALLOWANCES = (0.5, 0.8)
"""Of the requests that may be late, how many are given away by size; the rest is left to queueing."""
_DEAR_FRAC = 0.05
"""Of the cost: less than that is not worth another search."""
_FORMS: dict[str, tuple[Role, ...]] = {"joint": ("both",), "split": ("prefill", "decode")}


def demand_of(
    request: ServeRequest, model: ModelGraph, engine: EngineStack, offers: tuple[DeviceOffer, ...]
) -> Demand:
    """Return one model with its traffic and instances; sizes that none serves in time may be late."""
    rate = request.rate_per_s
    workload = read_workload(request.workload or "", rate_per_s=rate, percentile=request.percentile)
    buckets = bucketise(workload.traffic)
    found = Demand(
        request=request,
        model=model,
        engine=engine,
        workload=workload,
        buckets=buckets,
        search=_search(request, model, engine, offers, workload, buckets),
        offers=offers,
    )
    cost = _usd_per_request(found)
    hopeless = np.isinf(cost)
    if request.every_size or not hopeless.any() or hopeless.all():
        return found
    return _late(found, hopeless) or found


def with_late_sizes(demands: tuple[Demand, ...]) -> list[tuple[Demand, ...]]:
    """Return the same demands with more sizes late, where those cost much; never the given ones again."""
    found: list[tuple[Demand, ...]] = []
    seen = {tuple(d.buckets.late for d in demands)}
    gains = [_gain_per_request(d) for d in demands]
    for allowance in _ALLOWANCES:
        relaxed = tuple(_without_dear(d, g, allowance) for d, g in zip(demands, gains, strict=True))
        key = tuple(d.buckets.late for d in relaxed)
        if key not in seen:
            seen.add(key)
            found.append(relaxed)
    return found


def _search(
    request: ServeRequest,
    model: ModelGraph,
    engine: EngineStack,
    offers: tuple[DeviceOffer, ...],
    workload: Workload,
    buckets: Buckets,
) -> ItemSearch:
    return find_items(
        request,
        model,
        engine,
        offers,
        buckets,
        arrival_cv=workload.traffic.arrival_cv,
        prefix_hit_frac=request.prefix_hit_frac or workload.traffic.prefix_hit_frac,
    )


def _late(demand: Demand, mask: npt.NDArray[np.bool_]) -> Demand | None:
    """Return the demand with some sizes late and the others stricter; None if the percentile has no room."""
    names = tuple(n for n, late in zip(demand.buckets.names, mask, strict=True) if late)
    buckets = replace(demand.buckets, late=names)
    wanted = demand.request.percentile / (1.0 - buckets.late_frac)
    if wanted >= 100.0:
        return None
    stricter = replace(demand.request, percentile=wanted)
    search = _search(stricter, demand.model, demand.engine, demand.offers, demand.workload, buckets)
    return replace(demand, buckets=buckets, search=search)


def _usd_per_request(demand: Demand) -> Floats:
    """Return the least cost of one request of each size in the cheapest form. [USD/h per request/s]"""
    num = len(demand.buckets.names)
    best: Floats = np.full(num, np.inf)
    for form, roles in _FORMS.items():
        if demand.request.form not in ("auto", form):
            continue
        total: Floats = np.zeros(num)
        for role in roles:
            items = [item for item in demand.search.items if item.role == role]
            with np.errstate(divide="ignore"):
                each = [item.usd_per_hour / item.rate_per_s for item in items]
            total = total + (np.min(each, axis=0) if each else np.inf)
        best = np.minimum(best, total)
    return best


def _gain_per_request(demand: Demand) -> Floats:
    """Return what a request of each size would cost less without targets, as a share of the mean cost."""
    cost = _usd_per_request(demand)
    if demand.request.every_size or len(cost) == 1 or not np.isfinite(cost).all():
        return np.zeros(len(cost))
    free = replace(demand.buckets, late=demand.buckets.names)
    args = (demand.request, demand.model, demand.engine, demand.offers, demand.workload)
    gain: Floats = np.maximum(cost - _usd_per_request(replace(demand, search=_search(*args, free))), 0.0)
    share = demand.buckets.rate_per_s / demand.buckets.rate_per_s.sum()
    return gain / float(share @ cost)


def _without_dear(demand: Demand, gain: Floats, allowance: float) -> Demand:
    """Return the demand with the sizes late that gain most by it, up to a share of what may be.

    Parameters
    ----------
    gain : of a request of each size, as a share of the mean cost of all.
    """
    share = demand.buckets.rate_per_s / demand.buckets.rate_per_s.sum()
    mask = np.isin(demand.buckets.names, demand.buckets.late)
    room = allowance * (1.0 - demand.request.percentile / 100.0) - float(share[mask].sum())
    freed = 0.0
    for b in np.argsort(-gain, kind="stable").tolist():
        if not mask[b] and share[b] <= room and gain[b] > 0.0:
            mask[b] = True
            room -= float(share[b])
            freed += float(share[b] * gain[b])
    if freed < _DEAR_FRAC:
        return demand
    return _late(demand, mask) or demand


def late_note(demand: Demand) -> tuple[str, ...]:
    """Return which sizes the percentile lets be late, in words."""
    if not demand.buckets.late:
        return ()
    return (
        f"sizes {', '.join(demand.buckets.late)} may miss the targets: no device keeps them, or at a price "
        f"out of proportion; they are {100 * demand.buckets.late_frac:.2g} % of the requests, within the "
        f"{100 - demand.request.percentile:g} % that may (every_size: targets for every size)",
    )
