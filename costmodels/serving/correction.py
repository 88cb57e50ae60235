"""What benchmarks add to the physics of a serving point, learned from measured points and shrunk.

TTFT of a point is ``c * steady + b * burst + k * TPOT + p * TPOT + a``: `steady` is the closed loop's median
TTFT and `burst` what its mean has above it, from clients that start together; `k` are the decode steps that
pass before a server polls its queue and sends its first tokens, `p` those more where polls are rarer because
clients are many, `a` the fixed part.
Both latencies of a split deployment are scaled besides, since what its table leaves out (drafting, worker
counts) shifts them. Each is a base value times factors of nested groups of points; a group that was never
seen has factor one. A scale is the one of least relative error over its group: where some runs drafted and
the table does not say which, that is nearer to the faster ones than the median is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

__all__ = ["LoopLatency", "PointKind", "ServingCorrection", "fit_serving_correction", "serving_correction"]

Floats = npt.NDArray[np.float64]

_BASE = (1.0, 1.0, 4.0, 0.5, 0.03)
"""c, b, k, p and a before any data: the loop itself, a handful of steps, 30 ms of server."""
_PRIOR_WIDTH = (0.2, 0.2, 0.4, 0.7, 0.4)
"""Standard deviations of the logarithms of their factors before any data."""
_NUM_TERMS = len(_BASE)
_SCALE_HALF_COUNT = 20.0
"""Points at which a group's scale is trusted half."""
_TPOT_POWER, _TTFT_POWER = 1.0, 0.5
"""A scale is the median of measured over predicted, each weighted by its inverse to this power: 1 is the
least mean relative error, 0 no bias; TTFT, which queues spread widely, stays between."""
_LOG_ERROR = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class PointKind:
    """What the groups of a point are made of."""

    split: bool
    guessed: bool
    """Worker counts were not given."""
    campaign: str
    engine: str
    generation: str
    """Of the device: vendor and narrowest matrix format."""
    device: str
    attention: str
    """wide where attention runs data-parallel, else narrow."""
    lengths: str
    """long answers, long prompts or even."""
    load: int
    """Doublings of requests per decoding device, in pairs: 0 below one, 4 from 64 up."""
    busy: bool
    """Clients are so many that published recipes poll the queue more rarely: 16 (launch scripts of InferenceX
    raise SGLang's ``--scheduler-recv-interval`` from 10 to 30 steps there)."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that TTFT's terms are fitted to: nested ones, widest first, and how attention is spread
        (data-parallel groups wait for one another's prompts).
        """
        mode = "split" if self.split else "joint"
        return (
            mode,
            f"{mode},{self.campaign},{self.engine}",
            f"{mode},{self.campaign},{self.engine},{self.generation}",
            f"{mode},{self.campaign},{self.engine},{self.device}",
            f"{mode},{self.engine},wide" if self.attention == "wide" else f"{mode},narrow",
        )

    @property
    def scale_groups(self) -> tuple[str, ...]:
        """The groups that scale latencies; none where one instance does both: physics alone is better."""
        if not self.split:
            return ()
        known = "guessed" if self.guessed else "given"
        shape = f"{known},{self.attention}"
        return (
            known,
            f"{known},{self.generation}",
            shape,
            f"{known},{self.lengths}",
            f"{shape},load {self.load}",
            f"{known},{self.engine}",
            f"{known},{self.device}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLatency:
    """What a closed loop's clients saw."""

    ttft_s: float
    """Mean."""
    ttft_median_s: float
    tpot_s: float
    """Mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCorrection:
    """Fitted factors by group."""

    ttft: Mapping[str, tuple[float, ...]]
    """Logarithms of the factors of c, b, k, p and a."""
    tpot: Mapping[str, float]
    """Logarithms of the factors of TPOT."""
    ttft_scale: Mapping[str, float]
    """Logarithms of the factors of TTFT as a whole."""

    def tpot_s(self, kind: PointKind, loop_tpot_s: float) -> float:
        """Return the corrected TPOT."""
        return loop_tpot_s * float(np.exp(sum(self.tpot.get(g, 0.0) for g in kind.scale_groups)))

    def ttft_s(self, kind: PointKind, loop: LoopLatency) -> float:
        """Return the corrected TTFT."""
        none = np.zeros(_NUM_TERMS)
        factors = np.exp(np.log(_BASE) + sum((np.array(self.ttft.get(g, none)) for g in kind.groups), none))
        scale = np.exp(sum(self.ttft_scale.get(g, 0.0) for g in kind.scale_groups))
        return float(scale * (factors @ _terms(kind, loop, self.tpot_s(kind, loop.tpot_s))))

    def covers(self, kind: PointKind) -> bool:
        """Return whether points of this kind were seen."""
        return kind.groups[2] in self.ttft


def _terms(kind: PointKind, loop: LoopLatency, tpot_s: float) -> Floats:
    """Return what TTFT is a weighted sum of. shape (terms,)"""
    burst = max(loop.ttft_s - loop.ttft_median_s, 0.0)
    return np.array([loop.ttft_median_s, burst, tpot_s, tpot_s * kind.busy, 1.0])


@cache
def serving_correction() -> ServingCorrection:
    """Return the correction that ships with the package."""
    text = (files("costmodels") / "data" / "coefficients" / "serving" / "correction.json").read_text("utf-8")
    document = json.loads(text)
    return ServingCorrection(
        ttft={k: tuple(v) for k, v in document["ttft"].items()},
        tpot=document["tpot"],
        ttft_scale=document["ttft_scale"],
    )


def fit_serving_correction(
    kinds: Sequence[PointKind],
    loops: Sequence[LoopLatency],
    *,
    ttft_s: Floats,
    tpot_s: Floats,
    weight: Floats,
) -> ServingCorrection:
    """Return factors that bring the loops' latencies to the measured ones, robust and shrunk.

    Parameters
    ----------
    weight : of each point; many alike points should not count as many.
    """
    steps = np.array([loop.tpot_s for loop in loops])
    plain = ServingCorrection(ttft={}, tpot=_fit_scales(kinds, tpot_s / steps, _TPOT_POWER), ttft_scale={})
    terms = np.array(
        [_terms(k, loop, plain.tpot_s(k, loop.tpot_s)) for k, loop in zip(kinds, loops, strict=True)]
    )
    names = sorted({g for kind in kinds for g in kind.groups})
    index = np.array([[names.index(g) for g in kind.groups] for kind in kinds])
    theta = _fit_ttft(index, len(names), terms, ttft_s, weight)
    parts = {n: tuple(theta[:, j].tolist()) for j, n in enumerate(names)}
    tailed = replace(plain, ttft=parts)
    ratio = ttft_s / np.array([tailed.ttft_s(k, loop) for k, loop in zip(kinds, loops, strict=True)])
    return replace(tailed, ttft_scale=_fit_scales(kinds, ratio, _TTFT_POWER))


def _fit_ttft(
    index: npt.NDArray[np.int64], num_groups: int, terms: Floats, measured: Floats, weight: Floats
) -> Floats:
    """Return logarithms of factors. shape (terms, groups)"""
    from scipy.optimize import least_squares

    base = np.log(_BASE)[:, None]
    width = np.repeat(_PRIOR_WIDTH, num_groups)
    scale = np.sqrt(weight) / _LOG_ERROR

    def parts(x: Floats) -> Floats:
        factors = np.exp(base + x.reshape(_NUM_TERMS, num_groups)[:, index].sum(axis=2))
        return np.asarray(factors * terms.T)

    def residual(x: Floats) -> Floats:
        return np.concatenate([scale * np.log(parts(x).sum(axis=0) / measured), x / width])

    def slope(x: Floats) -> Floats:
        part = parts(x)
        share = scale * part / part.sum(axis=0)
        found = np.zeros((len(measured), _NUM_TERMS, num_groups))
        for level in index.T:
            found[np.arange(len(measured)), :, level] += share.T
        return np.vstack([found.reshape(len(measured), -1), np.diag(1.0 / width)])

    begin = np.zeros(_NUM_TERMS * num_groups)
    found = least_squares(residual, begin, jac=slope, loss="soft_l1", max_nfev=60)
    return np.asarray(found.x, dtype=float).reshape(_NUM_TERMS, num_groups)


def _fit_scales(kinds: Sequence[PointKind], ratio: Floats, power: float) -> dict[str, float]:
    """Return shrunk scales by group, widest groups first, each of what the wider ones left."""
    left = np.log(ratio)
    scales: dict[str, float] = {}
    for level in range(max(len(kind.scale_groups) for kind in kinds)):
        members: dict[str, list[int]] = {}
        for row, kind in enumerate(kinds):
            if kind.scale_groups:
                members.setdefault(kind.scale_groups[level], []).append(row)
        for name, rows in sorted(members.items()):
            shrink = len(rows) / (len(rows) + _SCALE_HALF_COUNT)
            scales[name] = shrink * _weighted_median(left[rows], np.exp(-power * left[rows]))
            left[rows] -= scales[name]
    return scales


def _weighted_median(values: Floats, weight: Floats) -> float:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2.0)])
