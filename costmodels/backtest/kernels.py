"""Compare predicted kernel times, and the draw of matrix products, with a table of measured ones.

The device is named, or read from a column ``device`` or ``system``, or from the file's name
(``h100_sxm_gemm_bf16.csv.gz``); the kind of kernel is read from the columns.
Every row is predicted as it was benchmarked: weights may stay in cache between repeats, the host may be the
bottleneck.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.backtest.kernel_draw import draw_rows
from costmodels.intervals import Z90
from costmodels.kernels.machine import Floats
from costmodels.kernels.samples import KernelSamples, read_kernel_samples
from costmodels.kernels.times import KernelModel, KernelTime, kernel_model
from hardware.catalog import find_device
from hardware.device import Device
from hardware.errors import OutOfDomainError, SpecError, UnknownNameError

__all__ = ["KernelBacktest", "KernelErrors", "backtest_kernels", "device_of_file"]

_OPS = {"gemm": "matmul", "moe": "experts"}
_DEVICE_COLUMNS = ("device", "system")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelErrors:
    """Errors of one set of rows, as fractions of the measured time or draw."""

    num_rows: int
    mape_frac: float
    median_ape_frac: float
    signed_median_frac: float
    p90_ape_frac: float
    interval_coverage_frac: float
    """Rows inside the predicted 90 % interval."""

    def to_json(self) -> dict[str, float | int]:
        """Return the errors as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBacktest:
    """How the kernel model of one device did on one table."""

    device: str
    family: str
    measured: bool
    """The device has surfaces of its own; otherwise another's, or the generic surface, answered."""
    surface: str
    num_rows: int
    rejected: tuple[tuple[int, str], ...]
    """Line and reason of every row without a prediction."""
    overall: KernelErrors | None
    groups: dict[str, dict[str, KernelErrors]]
    """Errors by column and value."""
    predicted_s: Floats
    measured_s: Floats
    log_sigma: Floats
    rows: npt.NDArray[np.int64]
    draw_source: str | None = None
    """Whose readings the predicted draw rests on; None where no draw was compared."""
    draw: dict[str, KernelErrors] = field(default_factory=dict)
    """Errors of the draw by number format, and of all."""

    def table_rows(self) -> list[tuple[str, KernelErrors]]:
        """Return what a person reads: one row per value of each column grouped by, then all."""
        parts = [(value, e) for values in self.groups.values() for value, e in sorted(values.items())]
        whole = [] if self.overall is None else [("all", self.overall)]
        return [*parts, *whole, *((f"draw, {name}", errors) for name, errors in self.draw.items())]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a JSON object; predictions are left out."""
        return {
            "kind": "kernels",
            "device": self.device,
            "op": self.family,
            "measured_device": self.measured,
            "surface": self.surface,
            "num_rows": self.num_rows,
            "num_predicted": len(self.rows),
            "rejected": [{"row_id": line, "why": why} for line, why in self.rejected],
            "overall": None if self.overall is None else self.overall.to_json(),
            "by": {
                column: {value: e.to_json() for value, e in sorted(values.items())}
                for column, values in self.groups.items()
            },
            "draw": {
                "source": self.draw_source,
                "by": {name: errors.to_json() for name, errors in self.draw.items()},
            }
            if self.draw
            else None,
        }


def device_of_file(path: Path) -> Device:
    """Return the device that a file is named after: its longest leading part that the catalogue knows.

    Raises
    ------
    SpecError
        if no leading part of the name is a device.
    """
    words = path.name.split(".")[0].replace("-", "_").split("_")
    for end in range(len(words), 0, -1):
        name = "-".join(words[:end])
        try:
            return find_device(name)
        except UnknownNameError:
            continue
    raise SpecError(str(path), ["the file is not named after a device; name one with --device"])


def _models(
    path: Path, samples: KernelSamples, device: Device | str | None
) -> list[tuple[KernelModel, npt.NDArray[np.bool_]]]:
    """Return one model per device of the table, and the rows that it predicts."""
    column = next((c for c in _DEVICE_COLUMNS if c in samples.labels), None)
    if device is None and column is not None:
        cells = np.array(samples.labels[column], dtype=np.str_)
        return [
            (_model(find_device(str(name).replace("_", "-"))), cells == name) for name in np.unique(cells)
        ]
    found = device_of_file(path) if device is None else device
    chosen = find_device(found) if isinstance(found, str) else found
    return [(_model(chosen), np.ones(len(samples), dtype=bool))]


def _model(device: Device) -> KernelModel:
    return kernel_model(device, as_benchmarked=True)


def _predict(
    model: KernelModel, samples: KernelSamples, dtype: str, rows: npt.NDArray[np.bool_]
) -> KernelTime:
    shape = {name: column[rows] for name, column in samples.shape.items()}
    return model.predict_shape(samples.family, shape, dtype)


def _errors(predicted_s: Floats, measured_s: Floats, log_sigma: Floats) -> KernelErrors:
    error = predicted_s / measured_s - 1.0
    inside = np.abs(np.log(measured_s / predicted_s)) <= Z90 * log_sigma
    return KernelErrors(
        num_rows=len(error),
        mape_frac=float(np.abs(error).mean()),
        median_ape_frac=float(np.median(np.abs(error))),
        signed_median_frac=float(np.median(error)),
        p90_ape_frac=float(np.quantile(np.abs(error), 0.9)),
        interval_coverage_frac=float(inside.mean()),
    )


def _grouped(
    cells: npt.NDArray[np.str_], keep: npt.NDArray[np.intp], seconds: Floats, measured: Floats, sigma: Floats
) -> dict[str, KernelErrors]:
    out: dict[str, KernelErrors] = {}
    for value in np.unique(cells[keep]):
        part = keep[cells[keep] == value]
        out[str(value)] = _errors(seconds[part], measured[part], sigma[part])
    return out


def _group_columns(path: Path, samples: KernelSamples, by: str | None) -> list[str]:
    if by is None:
        return [c for c in samples.labels if c.endswith("_dtype") or c == "kernel_source"]
    if by not in samples.labels:
        raise SpecError(str(path), [f"cannot group by {by!r}; columns: {', '.join(samples.labels)}"])
    return [by]


def _draw(samples: KernelSamples, device_name: str) -> tuple[str | None, dict[str, KernelErrors]]:
    """Return whose readings predict the draw of products, and its errors by number format and over all."""
    found = draw_rows(samples, device_name)
    if found is None or not len(found.rows):
        return None, {}
    dtype = samples.dtype[found.rows]
    parts = {str(name): dtype == name for name in np.unique(dtype)}
    parts["all"] = np.ones(len(dtype), dtype=bool)
    return found.source, {
        name: _errors(found.predicted_w[rows], found.measured_w[rows], found.log_sigma[rows])
        for name, rows in parts.items()
    }


def backtest_kernels(
    path: Path | str, *, device: Device | str | None = None, op: str | None = None, by: str | None = None
) -> KernelBacktest:
    """Return the errors of the shipped kernel model on a measured table.

    Parameters
    ----------
    path : CSV file, plain or gzip, with the columns of the public kernel tables.
    device : a device or its name; read from a column or the file's name when not given.
    op : gemm (matmul), attention, mla or experts; recognised from the columns when not given.
    by : a column to group the errors by; number formats and kernel sources when not given.

    Raises
    ------
    SpecError
        if the file is no kernel table, misses columns, or does not say which device it is of.
    """
    path = Path(path)
    samples = read_kernel_samples(path, op=None if op is None else _OPS.get(op, op))
    columns = _group_columns(path, samples, by)
    models = _models(path, samples, device)
    seconds, sigma = np.full(len(samples), np.nan), np.full(len(samples), np.nan)
    refused: list[tuple[int, str]] = []
    for model, mine in models:
        for dtype in np.unique(samples.dtype[mine]):
            rows = mine & (samples.dtype == dtype)
            try:
                time = _predict(model, samples, str(dtype), rows)
            except OutOfDomainError as error:
                refused += [(int(line), str(error)) for line in samples.row[rows]]
                continue
            seconds[rows], sigma[rows] = time.seconds, time.log_sigma
    keep = np.flatnonzero(np.isfinite(seconds))
    measured = samples.seconds
    groups = {
        c: _grouped(np.array(samples.labels[c], dtype=np.str_), keep, seconds, measured, sigma)
        for c in columns
    }
    source, draw = _draw(samples, models[0][0].device.name) if len(models) == 1 else (None, {})
    return KernelBacktest(
        draw_source=source,
        draw=draw,
        device=", ".join(m.device.name for m, _ in models),
        family=samples.family.name,
        measured=all(m.measured for m, _ in models),
        surface=", ".join(m.source.file for m, _ in models),
        num_rows=len(samples) + len(samples.rejected),
        rejected=tuple(sorted((*samples.rejected, *refused))),
        overall=_errors(seconds[keep], measured[keep], sigma[keep]) if len(keep) else None,
        groups=groups,
        predicted_s=seconds[keep],
        measured_s=measured[keep],
        log_sigma=sigma[keep],
        rows=samples.row[keep],
    )
