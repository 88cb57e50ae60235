"""Watts and joules per token of a serving engine at a steady batch, fitted from measured runs.

The physics is one decode step: weights that a batch touches and its cache over memory bandwidth, arithmetic
over the peak. Draw over rated power and the ratio of the measured token rate to that of the physics are each
the mean of boosted trees and a smooth function of the same few features; joules per token are draw over rate.
Measured were H100 and B200 under one engine; any other device takes the answer for an H100 with its own rated
speeds and power, with the wider error that each of the two shows when the other answers for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.power.data import read_power_coefficients
from costmodels.power.smooth import SmoothFunction, fit_smooth
from costmodels.power.trees import FreeTrees, fit_free_trees

__all__ = [
    "MEASURED_DEVICES",
    "ServingFit",
    "ServingPower",
    "ServingRuns",
    "fit_serving_power",
    "serving_features",
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


def serving_features(runs: ServingRuns) -> Floats:
    """Return the features of each run. shape (rows, features)"""
    weights_s, compute_s, cache_s = serving_step_s(runs)
    each = runs.batch / runs.num_devices
    logs = [each, weights_s, compute_s, cache_s, runs.num_layers, runs.num_devices, runs.output_tokens]
    logs += [runs.output_tokens * each, runs.active_params / runs.total_params]
    plain = [runs.moe, runs.weight_bytes, runs.recurrent, runs.image, runs.video, runs.device]
    return np.stack([*(np.log(c) for c in logs), *plain], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingFit:
    """One fitted figure: the mean of trees and of a smooth function."""

    trees: FreeTrees
    smooth: SmoothFunction

    def predict(self, features: Floats) -> Floats:
        """Return the logarithm of the figure for every row."""
        both: Floats = 0.5 * (self.trees.predict(features) + self.smooth.predict(features))
        return both

    def to_json(self) -> dict[str, Any]:
        """Return the fit as JSON values."""
        return {"trees": self.trees.to_json(), "smooth": self.smooth.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ServingFit":
        """Return a fit written by `to_json`."""
        return cls(trees=FreeTrees.from_json(data["trees"]), smooth=SmoothFunction.from_json(data["smooth"]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingPower:
    """Fitted draw and throughput."""

    draw: ServingFit
    rate: ServingFit
    log_sigma: float = 0.0
    """Spread of ln(measured / predicted draw), whole models held out."""
    other_log_sigma: float = 0.0
    """The same for a device that was not measured."""

    def watts_per_device(self, runs: ServingRuns) -> Floats:
        """Return the mean draw of one device. [W]"""
        watts: Floats = runs.rated_w * np.exp(np.minimum(self.draw.predict(serving_features(runs)), 0.0))
        return watts

    def tokens_per_s(self, runs: ServingRuns) -> Floats:
        """Return output tokens per second of all devices."""
        rate: Floats = _rate(runs) * np.exp(self.rate.predict(serving_features(runs)))
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
        draw=ServingFit.from_json(data["draw"]),
        rate=ServingFit.from_json(data["rate"]),
        log_sigma=float(data["log_sigma"]),
        other_log_sigma=float(data["other_log_sigma"]),
    )


def fit_serving_power(
    runs: ServingRuns, *, watts_per_device: Floats, tokens_per_s: Floats, seed: int = 0
) -> ServingPower:
    """Return draw and throughput fitted to measured runs."""
    features = serving_features(runs)

    def fitted(target: Floats) -> ServingFit:
        trees = fit_free_trees(
            features,
            target,
            num_trees=400,
            num_leaves=12,
            learning_rate=0.05,
            min_rows_per_leaf=8,
            features_frac=0.2,
            l2=5.0,
            seed=seed,
        )
        return ServingFit(trees=trees, smooth=fit_smooth(features, target, seed=seed))

    return ServingPower(
        draw=fitted(np.log(watts_per_device / runs.rated_w)),
        rate=fitted(np.log(tokens_per_s / _rate(runs))),
    )
