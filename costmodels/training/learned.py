"""Learned corrections of the step model: trees on the logarithm of measured over analytic time, per stack.

A correction ships only for a stack whose held-out error it lowers, applies only inside the range it was
fitted on,
and is stored as plain arrays. Outside that range the analytic prediction stands.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from costmodels.kernels.trees import Trees
from costmodels.strategy import ConfigTable
from costmodels.training.step_inputs import StepInputs
from costmodels.training.step_time import StepParts

__all__ = ["FEATURES", "MANY_DEVICES", "Correction", "correction_features", "find_correction"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SHARES = (
    "forward_s",
    "backward_s",
    "recompute_s",
    "tp_comm_s",
    "pp_comm_s",
    "host_s",
    "bubble_s",
    "dp_comm_s",
    "optimizer_s",
    "fixed_s",
)
_DEGREES = ("tp", "pp", "dp", "micro_batch", "vpp", "cp", "ep")
_SWITCHES = ("recompute", "zero", "sequence_parallel")
_SCALES = (
    "num_micro",
    "layers",
    "gemm_s",
    "attention_s",
    "vector_s",
    "device_over_host",
    "hidden",
    "seq_len",
)
MANY_DEVICES = 32
FEATURES = (*_SHARES, *_DEGREES, *_SCALES, *_SWITCHES)
"""Names of the columns that a correction reads, in order: shares of the analytic step, logarithms of
degrees and of
what one layer costs, switches."""
_BOXED = ("tp", "pp", "dp", "micro_batch", "cp", "hidden", "seq_len")
"""Columns whose fitted range bounds where a correction applies."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Correction:
    """A fitted correction and the box it may be used in."""

    trees: Trees
    low: Floats
    """Smallest fitted value of every boxed feature."""
    high: Floats
    sigma: float
    """Standard deviation of ln(measured / corrected) on held-out groups of few devices."""
    sigma_many: float
    """The same from `MANY_DEVICES` devices on, where the network adds its own spread."""

    def log_ratio(self, features: Floats) -> Floats:
        """Return ln(measured / analytic) as learned, zero outside the fitted box. features: (rows,
        features)
        """
        return np.where(self.covers(features), self.trees.predict(features), 0.0)

    def covers(self, features: Floats) -> npt.NDArray[np.bool_]:
        """Return which rows lie inside the fitted box."""
        boxed = features[:, [FEATURES.index(n) for n in _BOXED]]
        within = (boxed >= self.low - 1e-6) & (boxed <= self.high + 1e-6)
        return np.asarray(np.all(within, axis=1), dtype=np.bool_)


def box_of(features: Floats) -> tuple[Floats, Floats]:
    """Return the range of the boxed features."""
    boxed = features[:, [FEATURES.index(n) for n in _BOXED]]
    return boxed.min(axis=0), boxed.max(axis=0)


def correction_features(
    configs: ConfigTable, inputs: StepInputs, parts: StepParts, *, hidden: int | Ints, seq_len: int | Ints
) -> Floats:
    """Return the features of every row. shape (rows, features)"""
    total = parts.total_s
    layer = inputs.layer
    gemm = layer.gemm_fwd_s + layer.expert_fwd_s
    rows = len(total)
    scales = {
        "num_micro": np.log2(inputs.num_micro),
        "layers": inputs.layers_mean,
        "gemm_s": np.log(gemm),
        "attention_s": np.log(layer.attn_fwd_s + 1e-9),
        "vector_s": np.log(layer.vector_fwd_s + layer.norm_fwd_s + 1e-9),
        "device_over_host": np.log(gemm / (layer.num_ops * 1e-5)),
        "hidden": np.broadcast_to(np.log2(hidden), rows),
        "seq_len": np.broadcast_to(np.log2(seq_len), rows),
    }
    columns = [getattr(parts, n) / total for n in _SHARES]
    columns += [np.log2(getattr(configs, n)) for n in _DEGREES]
    columns += [scales[n] for n in _SCALES]
    columns += [getattr(configs, n).astype(np.float64) for n in _SWITCHES]
    return np.column_stack(columns)


@cache
def find_correction(stack: str) -> Correction | None:
    """Return the correction of a stack, None where none beat the analytic model on held-out runs."""
    path = files("costmodels") / "data" / "coefficients" / "training" / "corrections.json"
    entry = json.loads(path.read_text(encoding="utf-8"))["corrections"].get(stack)
    if entry is None:
        return None
    return Correction(
        trees=Trees.from_json(entry["trees"]),
        low=np.array(entry["low"]),
        high=np.array(entry["high"]),
        sigma=float(entry["sigma"]),
        sigma_many=float(entry["sigma_many"]),
    )
