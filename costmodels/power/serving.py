"""Watts and joules per token of a serving engine at a steady batch, fitted from measured runs.

The physics is one decode step: weights that a batch touches and its cache over memory bandwidth, arithmetic
over the peak. Draw over rated power and the ratio of the measured token rate to that of the physics are each
a smooth function of a few features; joules per token are draw over rate.
Measured were H100 and B200 under one engine; any other device takes the answer for an H100 with its own rated
speeds and power, with the wider error that each of the two shows when the other answers for it.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import numpy.typing as npt

from costmodels.power.data import read_power_coefficients
from costmodels.power.smooth import SmoothFunction, fit_smooth

__all__ = [
    "MEASURED_DEVICES",
    "ServingPower",
    "ServingRuns",
    "draw_features",
    "fit_serving_power",
    "rate_features",
    "serving_power",
    "serving_step_s",
]

Floats = npt.NDArray[np.float64]

_OVERHEAD_S = 4e-3
"""Scheduling and launches of one decode step (assumed; the fit corrects it)."""
_OVERLAP = 0.3
"""Share of the shorter of compute and memory time that is not hidden (assumed)."""
MEASURED_DEVICES = {"h100": 0.0, "b200": 1.0}
"""Devices that were measured, with their code among the features."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingRuns:
    """Steady serving runs as columns."""

    active_params: Floats
    total_params: Floats
    weight_bytes: Floats
    """Per parameter."""
    num_layers: Floats
    cache_bytes_per_token: Floats
    """Keys and values of one token over all layers; windowed layers left out."""
    batch: Floats
    """Sequences in flight, all devices."""
    num_devices: Floats
    prompt_tokens: Floats
    """Mean per request."""
    output_tokens: Floats
    """Mean per request."""
    moe: Floats
    recurrent: Floats
    """1 where layers keep a state in place of attention."""
    image: Floats
    """1 where prompts hold images."""
    video: Floats
    device: Floats
    """Code of `MEASURED_DEVICES`."""
    flops_per_s: Floats
    """Rated, dense bf16, one device."""
    memory_bytes_per_s: Floats
    rated_w: Floats

    def take(self, rows: npt.NDArray[np.bool_]) -> "ServingRuns":
        """Return the chosen rows."""
        return ServingRuns(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def serving_step_s(runs: ServingRuns) -> tuple[Floats, Floats, Floats]:
    """Return the time of one decode step for weights, for arithmetic and for the cache.

    A batch of B touches 1 - (1 - a)^B of the experts, where a is the share of parameters that a token uses; a
    request has half of its output in the cache.
    """
    active = np.clip(runs.active_params / runs.total_params, 1e-6, 1.0)
    touched = np.where(active < 0.99, 1 - (1 - active) ** np.maximum(runs.batch, 1), 1.0)
    num_bytes = np.maximum(runs.total_params * touched, runs.active_params) * runs.weight_bytes
    speedup = np.where(runs.weight_bytes == 1.0, 2.0, 1.0)
    weights_s = num_bytes / (runs.num_devices * runs.memory_bytes_per_s)
    compute_s = 2 * runs.active_params * runs.batch / (runs.num_devices * runs.flops_per_s * speedup)
    cached = runs.cache_bytes_per_token * runs.output_tokens / 2 * runs.batch
    return weights_s, compute_s, cached / (runs.num_devices * runs.memory_bytes_per_s)


def _rate(runs: ServingRuns) -> Floats:
    memory_s, compute_s, _ = serving_step_s(runs)
    step_s = np.maximum(memory_s, compute_s) + _OVERLAP * np.minimum(memory_s, compute_s) + _OVERHEAD_S
    rate: Floats = runs.batch / step_s
    return rate


def _features(runs: ServingRuns, last: Floats) -> Floats:
    weights_s, compute_s, cache_s = serving_step_s(runs)
    each = runs.batch / runs.num_devices
    logs = [each, weights_s, compute_s, cache_s, runs.num_layers, runs.num_devices, runs.output_tokens]
    logs += [runs.output_tokens * each, last]
    plain = [runs.moe, runs.weight_bytes, runs.recurrent, runs.image, runs.video, runs.device]
    return np.stack([*(np.log(c) for c in logs), *plain], axis=1)


def draw_features(runs: ServingRuns) -> Floats:
    """Return what the draw of each run depends on, prompts among it. shape (rows, features)"""
    return _features(runs, runs.prompt_tokens)


def rate_features(runs: ServingRuns) -> Floats:
    """Return what the token rate of each run depends on, over that of the physics. shape (rows, features)"""
    return _features(runs, runs.active_params / runs.total_params)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingPower:
    """Fitted draw and throughput."""

    draw: SmoothFunction
    """Of `draw_features`: logarithm of the draw over rated power."""
    rate: SmoothFunction
    """Of `rate_features`: logarithm of the token rate over that of the physics."""
    log_sigma: float = 0.0
    """Spread of ln(measured / predicted draw), whole models held out."""
    other_log_sigma: float = 0.0
    """The same for a device that was not measured."""

    def watts_per_device(self, runs: ServingRuns) -> Floats:
        """Return the mean draw of one device. [W]"""
        watts: Floats = runs.rated_w * np.exp(np.minimum(self.draw.predict(draw_features(runs)), 0.0))
        return watts

    def tokens_per_s(self, runs: ServingRuns) -> Floats:
        """Return output tokens per second of all devices."""
        rate: Floats = _rate(runs) * np.exp(self.rate.predict(rate_features(runs)))
        return rate

    def joules_per_token(self, runs: ServingRuns) -> Floats:
        """Return the energy of one output token, all devices. [J]"""
        joules: Floats = self.watts_per_device(runs) * runs.num_devices / self.tokens_per_s(runs)
        return joules


@cache
def serving_power() -> ServingPower:
    """Return the draw and the throughput fitted from published runs."""
    data = read_power_coefficients("serving")
    return ServingPower(
        draw=SmoothFunction.from_json(data["draw"]),
        rate=SmoothFunction.from_json(data["rate"]),
        log_sigma=float(data["log_sigma"]),
        other_log_sigma=float(data["other_log_sigma"]),
    )


def fit_serving_power(
    runs: ServingRuns, *, watts_per_device: Floats, tokens_per_s: Floats, seed: int = 0
) -> ServingPower:
    """Return draw and throughput fitted to measured runs."""
    return ServingPower(
        draw=fit_smooth(draw_features(runs), np.log(watts_per_device / runs.rated_w), seed=seed),
        rate=fit_smooth(rate_features(runs), np.log(tokens_per_s / _rate(runs)), seed=seed),
    )
