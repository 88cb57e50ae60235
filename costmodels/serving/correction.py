"""What benchmarks add to the physics of a serving point, learned from measured points and shrunk.

TTFT of a point is ``c * loop + k * TPOT + a``: `loop` is the closed loop's TTFT, `k` the decode steps that
pass before a server polls its queue and sends its first tokens, `a` the fixed part.
Both latencies of a split deployment are scaled besides, since what its table leaves out (drafting, worker
counts) shifts them. Each is a base value times factors of nested groups of points; a group that was never
seen has factor one. A scale is the one of least relative error over its group: where some runs drafted and
the table does not say which, that is nearer to the faster ones than the median is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

__all__ = ["PointKind", "ServingCorrection", "fit_serving_correction", "serving_correction"]

Floats = npt.NDArray[np.float64]

_BASE = (1.0, 4.0, 0.03)
"""c, k and a before any data: the loop itself, a handful of steps, 30 ms of server."""
_PRIOR_WIDTH = (0.3, 0.7, 0.7)
"""Standard deviations of the logarithms of their factors before any data."""
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
    attention: str
    """wide where attention runs data-parallel, else narrow."""
    lengths: str
    """long answers, long prompts or even."""
    load: int
    """Doublings of requests per decoding device, in pairs: 0 below one, 4 from 64 up."""

    @property
    def groups(self) -> tuple[str, str, str]:
        """The nested groups, widest first."""
        mode = "split" if self.split else "joint"
        return (
            mode,
            f"{mode},{self.campaign},{self.engine}",
            f"{mode},{self.campaign},{self.engine},{self.generation}",
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
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCorrection:
    """Fitted factors by group."""

    ttft: Mapping[str, tuple[float, float, float]]
    """Logarithms of the factors of c, k and a."""
    tpot: Mapping[str, float]
    """Logarithms of the factors of TPOT."""
    ttft_scale: Mapping[str, float]
    """Logarithms of the factors of TTFT as a whole."""

    def tpot_s(self, kind: PointKind, loop_tpot_s: float) -> float:
        """Return the corrected TPOT."""
        return loop_tpot_s * float(np.exp(sum(self.tpot.get(g, 0.0) for g in kind.scale_groups)))

    def ttft_s(self, kind: PointKind, loop_ttft_s: float, loop_tpot_s: float) -> float:
        """Return the corrected TTFT."""
        c, k, a = np.exp(
            np.log(_BASE) + sum((np.array(self.ttft.get(g, (0, 0, 0))) for g in kind.groups), np.zeros(3))
        )
        scale = np.exp(sum(self.ttft_scale.get(g, 0.0) for g in kind.scale_groups))
        return float(scale * (c * loop_ttft_s + k * self.tpot_s(kind, loop_tpot_s) + a))

    def covers(self, kind: PointKind) -> bool:
        """Return whether points of this kind were seen."""
        return kind.groups[-1] in self.ttft


@cache
def serving_correction() -> ServingCorrection:
    """Return the correction that ships with the package."""
    text = (files("costmodels") / "data" / "coefficients" / "serving" / "correction.json").read_text("utf-8")
    document = json.loads(text)
    return ServingCorrection(
        ttft={k: (v[0], v[1], v[2]) for k, v in document["ttft"].items()},
        tpot=document["tpot"],
        ttft_scale=document["ttft_scale"],
    )


def fit_serving_correction(
    kinds: Sequence[PointKind],
    *,
    loop_ttft_s: Floats,
    loop_tpot_s: Floats,
    ttft_s: Floats,
    tpot_s: Floats,
    weight: Floats,
) -> ServingCorrection:
    """Return factors that bring the loop's latencies to the measured ones, robust and shrunk.

    Parameters
    ----------
    weight : of each point; many alike points should not count as many.
    """
    plain = ServingCorrection(
        ttft={}, tpot=_fit_scales(kinds, tpot_s / loop_tpot_s, _TPOT_POWER), ttft_scale={}
    )
    steps = np.array([plain.tpot_s(k, t) for k, t in zip(kinds, loop_tpot_s, strict=True)])
    names = sorted({g for kind in kinds for g in kind.groups})
    index = np.array([[names.index(g) for g in kind.groups] for kind in kinds])
    theta = _fit_ttft(index, len(names), loop_ttft_s, steps, ttft_s, weight)
    parts = {n: (float(theta[0, j]), float(theta[1, j]), float(theta[2, j])) for j, n in enumerate(names)}
    tailed = replace(plain, ttft=parts)
    seen = zip(kinds, loop_ttft_s, loop_tpot_s, strict=True)
    ratio = ttft_s / np.array([tailed.ttft_s(*values) for values in seen])
    return replace(tailed, ttft_scale=_fit_scales(kinds, ratio, _TTFT_POWER))


def _fit_ttft(
    index: npt.NDArray[np.int64],
    num_groups: int,
    loop: Floats,
    step: Floats,
    measured: Floats,
    weight: Floats,
) -> Floats:
    from scipy.optimize import least_squares

    base = np.log(_BASE)[:, None]
    width = np.repeat(_PRIOR_WIDTH, num_groups)

    def residual(x: Floats) -> Floats:
        c, k, a = np.exp(base + x.reshape(3, num_groups)[:, index].sum(axis=2))
        error = np.log((c * loop + k * step + a) / measured)
        return np.concatenate([np.sqrt(weight) * error / _LOG_ERROR, x / width])

    found = least_squares(residual, np.zeros(3 * num_groups), loss="soft_l1", max_nfev=60)
    return np.asarray(found.x, dtype=float).reshape(3, num_groups)


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
