r"""Measured size-to-time curves of collectives on one level, by technology.

A curve has four numbers per operation and degree, and time on a buffer of :math:`S` bytes is

.. math:: t = \alpha + c \frac{S}{S + h} + \frac{f(n) S}{B}

with the start-up time :math:`\alpha`, the extra latency :math:`c` of the bulk protocol (reached around
:math:`h` bytes, where the library leaves its low-latency protocols) and the saturated bus bandwidth
:math:`B`; :math:`f` is the traffic factor of nccl-tests. Start-up and bandwidth alone overstate the middle
of the range by up to 1.7 times. Bandwidths are fitted at a rated link speed and scale with the level's own.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from costmodels.in_force import in_force
from hardware.errors import SpecError

__all__ = ["Curve", "NetworkTraits", "Technology", "find_technology", "fit_curve", "traffic_factor"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FOLDER = files("costmodels") / "data" / "coefficients" / "collectives"


def traffic_factor(op: str, degree: Floats) -> Floats:
    """Return bytes that one rank must send per byte of buffer: the busbw factor of nccl-tests."""
    share = (degree - 1) / np.maximum(degree, 1)
    if op.startswith("all_reduce"):
        return 2 * share
    return np.minimum(degree - 1, 1.0) if op == "broadcast" else share


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Fitted numbers of one operation at the degrees that were measured, in rising order."""

    degrees: tuple[int, ...]
    alpha_s: tuple[float, ...]
    extra_s: tuple[float, ...]
    half_bytes: tuple[float, ...]
    bytes_per_s: tuple[float, ...]
    """Saturated bus bandwidth at the technology's reference speed."""
    log_sigma: tuple[float, ...]
    """Standard deviation of ln(measured / curve)."""

    def at(self, degree: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Return start-up, extra latency, half size, bandwidth and sigma at each degree.

        Between measured degrees all are interpolated in log2(degree). Above the largest the latencies go on
        growing at their mean slope per doubling while the bandwidth stays.
        """
        x = np.log2(np.maximum(degree, 2.0))
        known = np.log2(np.array(self.degrees, dtype=np.float64))
        alpha, extra, half, rate, sigma = (
            np.asarray(np.interp(x, known, column), dtype=np.float64)
            for column in (self.alpha_s, self.extra_s, self.half_bytes, self.bytes_per_s, self.log_sigma)
        )
        if len(known) > 1:
            beyond = np.maximum(x - known[-1], 0.0) / (known[-1] - known[0])
            alpha = alpha + beyond * max(self.alpha_s[-1] - self.alpha_s[0], 0.0)
            extra = extra + beyond * max(self.extra_s[-1] - self.extra_s[0], 0.0)
            sigma = sigma + 0.1 * beyond
        return alpha, extra, half, rate, sigma


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTraits:
    """What a technology does beyond its rated speed and latency."""

    efficiency: float
    """Saturated bus bandwidth of rings and trees over rated."""
    exchange_efficiency: float
    """The same for all-to-all."""
    p2p_efficiency: float
    launch_s: float
    """Time until the first byte leaves, once per collective."""
    hop_s: float | None
    """Latency of one step of a ring; None: the level's own latency."""
    bulk_hop_s: float
    """Added to every step by the bulk protocol."""
    peer_s: float
    """Added by each further peer of an all-to-all."""
    log_sigma: float
    partial_efficiency: float | None = None
    """`efficiency` of groups that fill a mesh of packages only in part: the library finds fewer rings."""
    away_step_s: float = 0.0
    """Added by the library of devices that these links join to each step of a ring between their machines."""
    rings_only: bool = False
    """That library gathers and scatters between machines in rings, whatever their number."""
    contention_growth: float = 0.0
    """Network time added, as a share of itself, when a group spans `contention_span` devices."""
    contention_span: float = 1.0
    contention_power: float = 1.0
    """How that share grows with the span."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Technology:
    """Curves and traits of one link technology."""

    name: str
    reference_bytes_per_s: float
    """Rated speed, per device and one way, of the machines that were measured."""
    curves: dict[str, Curve]
    traits: NetworkTraits
    nvls_min_degree: int = 0
    """Least ranks from which the library lets the switch add; 0: whenever it is faster."""
    known: bool = True
    """False: nothing about this technology was measured, generic numbers are used."""


def _read(name: str) -> dict[str, object]:
    data: dict[str, object] = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return data


@cache
def _technologies() -> dict[str, Technology]:
    data = _read("technologies")["technologies"]
    if not isinstance(data, dict):
        raise SpecError("technologies.json", ["technologies: a map of technologies is needed"])
    found: dict[str, Technology] = {}
    for name, entry in data.items():
        body = (
            _read(str(entry["curves"]))
            if entry.get("curves")
            else {"curves": {}, "reference_bytes_per_s": 0.0}
        )
        curves = body["curves"]
        assert isinstance(curves, dict)
        found[name] = Technology(
            name=name,
            reference_bytes_per_s=float(str(body["reference_bytes_per_s"])),
            curves={op: Curve(**{k: tuple(v) for k, v in curve.items()}) for op, curve in curves.items()},
            traits=NetworkTraits(**entry["traits"]),
            nvls_min_degree=int(entry.get("nvls_min_degree", 0)),
            known=name != "generic",
        )
    return found


def find_technology(name: str) -> Technology:
    """Return the technology of that name; an unknown one gets generic traits and `known` False."""
    measured = in_force(Technology, name)
    if measured is not None:
        return measured
    table = _technologies()
    return table.get(name, table["generic"])


def fit_curve(
    op: str, degree: int, size_bytes: Floats, time_s: Floats
) -> tuple[float, float, float, float, float]:
    """Return start-up [s], extra [s], half size [B], bus bandwidth [B/s] and log sigma fitted to samples.

    Relative errors are minimised (least squares on ln t, large residuals damped).

    Parameters
    ----------
    op : operation, as in `Curve` tables.
    degree : ranks that took part.
    size_bytes : nccl-tests sizes. shape (samples,)
    time_s : measured times. shape (samples,)
    """
    from scipy.optimize import least_squares

    factor = float(traffic_factor(op, np.array([float(degree)]))[0])
    log_time = np.log(time_s)

    def model(log_params: Floats) -> Floats:
        alpha, extra, half, rate = np.exp(log_params)
        out: Floats = alpha + extra * size_bytes / (size_bytes + half) + size_bytes * factor / rate
        return out

    peak = float(np.max(size_bytes * factor / time_s))
    floor = float(np.min(time_s))
    low = np.log([floor / 10, floor / 1e3, 1e3, peak * 0.9])
    high = np.log([floor * 3, floor * 1e3, 1e9, peak * 1.5])
    starts = [np.log([floor, floor * k, h, peak * 1.05]) for h in (1e5, 1e7, 1e8) for k in (0.3, 5.0)]

    def residuals(log_params: Floats) -> Floats:
        out: Floats = np.log(model(log_params)) - log_time
        return out

    bounds = (low, high)
    fits = [least_squares(residuals, x, bounds=bounds, loss="soft_l1", f_scale=0.05) for x in starts]
    best = min(fits, key=lambda fit: float(fit.cost))
    alpha, extra, half, rate = (float(v) for v in np.exp(best.x))
    return alpha, extra, half, rate, float(np.sqrt(np.mean(residuals(best.x) ** 2)))
