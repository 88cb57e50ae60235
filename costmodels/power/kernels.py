"""Natural draw of one device while it repeats a matrix product, by shape: one fit per measured source.

Power of the same product differs by 30 to 40 % between two measuring frameworks, so every source has its own
trees and its own name; a device takes the source that `SOURCES` lists first for it. The trees predict
ln(watts over rated power); the answer never exceeds rated power.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.power.data import read_power_coefficients
from costmodels.power.trees import FreeTrees
from hardware.errors import OutOfDomainError

__all__ = [
    "FORMATS",
    "SOURCES",
    "MatmulPower",
    "PowerMachine",
    "ShapeDraw",
    "matmul_features",
    "matmul_power",
]

Floats = npt.NDArray[np.float64]

FORMATS: Mapping[str, float] = {"bf16": 2.0, "fp8": 1.0, "fp8-block": 1.0, "nvfp4": 0.5625}
"""Bytes per element of the operands, scale factors included."""

SOURCES: Mapping[str, str] = {"h200": "h200-vllm", "b200": "b200-trtllm", "gb200": "gb200-trtllm"}
"""Source that answers for a device: the one whose framework is tuned best for it."""

_TILES = ((64, 64), (128, 128), (128, 256), (256, 128), (64, 128))


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMachine:
    """Rated figures that the features are made dimensionless with."""

    flops_per_s: float
    """Dense bf16 peak."""
    memory_bytes_per_s: float
    num_sms: int
    rated_w: float


def matmul_features(m: Floats, n: Floats, k: Floats, fmt: Floats, machine: PowerMachine) -> Floats:
    """Return the features of each product m x k by k x n. shape (rows, features)

    Parameters
    ----------
    fmt : index of the format in `FORMATS`.
    """
    width = np.array(list(FORMATS.values()))[fmt.astype(int)]
    flops, num_bytes = 2.0 * m * n * k, width * (m * k + n * k) + 2.0 * m * n
    compute_s = flops / (machine.flops_per_s * 2.0 / np.maximum(width, 0.5))
    memory_s = num_bytes / machine.memory_bytes_per_s
    columns = [np.log(m), np.log(n), np.log(k), fmt, np.log(flops), np.log(num_bytes)]
    columns += [np.log(flops / num_bytes), np.log(compute_s), np.log(memory_s), np.log(compute_s / memory_s)]
    columns += [np.log(np.maximum(compute_s, memory_s)), np.log(m * n), np.log(m * k), np.log(n * k)]
    columns += [np.log(width * n * k), np.log(n / k), np.log2(m) % 1.0]
    for rows, cols in _TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / cols)
        waves = tiles / machine.num_sms
        columns += [np.log(waves), waves / np.ceil(waves)]
    columns += [m % 2, m % 16, m % 64, m % 128, m % 256, (m % 8 == 0).astype(float)]
    columns += [np.ceil(m / 128), np.ceil(m / 128) * 128 / m]
    columns += [(fmt == i).astype(float) for i in range(len(FORMATS))]
    return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapeDraw:
    """Fitted draw of a group of formats that share trees."""

    formats: tuple[str, ...]
    trees: tuple[FreeTrees, ...]
    """Their mean is the prediction."""

    def log_share(self, features: Floats) -> Floats:
        """Return ln(watts over rated power) of each product. shape (rows,)"""
        mean: Floats = np.mean([t.predict(features) for t in self.trees], axis=0)
        return mean

    def to_json(self) -> dict[str, Any]:
        """Return the group as a document."""
        return {"formats": list(self.formats), "trees": [t.to_json() for t in self.trees]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShapeDraw":
        """Return a group written by `to_json`."""
        trees = tuple(FreeTrees.from_json(t) for t in data["trees"])
        return cls(formats=tuple(data["formats"]), trees=trees)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatmulPower:
    """The draw of one device under matrix products, as one source measured it."""

    source: str
    machine: PowerMachine
    draws: tuple[ShapeDraw, ...]
    """One per group of formats."""
    least_w: float
    """Lowest reading: a device that waits for launches."""
    log_sigma: float
    """Spread of ln(measured / predicted) on shapes held out."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats that were measured."""
        return tuple(name for draw in self.draws for name in draw.formats)

    def draw_w(self, m: Floats, n: Floats, k: Floats, fmt: str) -> Floats:
        """Return the natural draw of each product. [W]

        Raises
        ------
        OutOfDomainError
            if the source did not measure the format.
        """
        draw = next((d for d in self.draws if fmt in d.formats), None)
        if draw is None:
            message = f"{self.source} measured no {fmt} products; it has {', '.join(self.formats)}"
            raise OutOfDomainError(message)
        index = np.full(np.shape(m), list(FORMATS).index(fmt), dtype=float)
        rows, columns, depth = (np.asarray(x, dtype=float) for x in (m, n, k))
        share = np.exp(draw.log_share(matmul_features(rows, columns, depth, index, self.machine)))
        watts: Floats = np.clip(share * self.machine.rated_w, self.least_w, self.machine.rated_w)
        return watts


@cache
def matmul_power(device_name: str) -> MatmulPower | None:
    """Return the measured draw of matrix products on a device; None where no source measured it."""
    source = SOURCES.get(device_name)
    if source is None:
        return None
    data = read_power_coefficients(f"matmul_{source}")
    return MatmulPower(
        source=source,
        machine=PowerMachine(**data["machine"]),
        draws=tuple(ShapeDraw.from_json(d) for d in data["draws"]),
        least_w=float(data["least_w"]),
        log_sigma=float(data["log_sigma"]),
    )
