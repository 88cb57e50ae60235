"""Predicted against measured draw of matrix products, where a kernel table holds a power column."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.kernels.samples import KernelSamples
from costmodels.power.kernels import matmul_power

__all__ = ["DrawRows", "draw_rows"]

Floats = npt.NDArray[np.float64]

_COLUMNS = ("power_w", "power")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawRows:
    """Rows of a table whose draw was measured and can be predicted."""

    source: str
    """Whose readings the prediction rests on: another framework's may lie 40 % apart."""
    rows: npt.NDArray[np.intp]
    """Position of each among the samples."""
    predicted_w: Floats
    measured_w: Floats
    log_sigma: Floats


def draw_rows(samples: KernelSamples, device_name: str) -> DrawRows | None:
    """Return the draw of every product that has a reading, in formats that the device's source measured.

    None for other kernels, tables without a power column and devices whose products no source measured.
    """
    column = next((c for c in _COLUMNS if c in samples.labels), None)
    measured = matmul_power(device_name)
    if column is None or measured is None or samples.family.name != "matmul":
        return None
    readings = np.array([_watts(cell) for cell in samples.labels[column]])
    predicted = np.full(len(samples), np.nan)
    for dtype in np.unique(samples.dtype):
        if dtype in measured.formats:
            rows = samples.dtype == dtype
            m, n, k = (samples.shape[name][rows] for name in ("m", "n", "k"))
            predicted[rows] = measured.draw_w(m, n, k, str(dtype))
    keep = np.flatnonzero(np.isfinite(readings) & (readings > 0) & np.isfinite(predicted))
    return DrawRows(
        source=measured.source,
        rows=keep,
        predicted_w=predicted[keep],
        measured_w=readings[keep],
        log_sigma=np.full(len(keep), measured.log_sigma),
    )


def _watts(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
