"""Draw of a training job's own matrix products, where a source measured the device's by shape."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from costmodels.graph import Matmul
from costmodels.job import TrainingJob
from costmodels.kernels.times import kernel_model
from costmodels.power.draw import DevicePower, device_power
from costmodels.power.kernels import matmul_power
from costmodels.training.layer_costs import matmul_dtype
from hardware.device import Device

__all__ = ["training_power"]

Floats = npt.NDArray[np.float64]


def training_power(device: Device, job: TrainingJob) -> DevicePower:
    """Return what a device draws by phase while it trains `job`.

    The draw of matrix products is the mean over the model's dense layers, forward and both products of
    backward, for one sequence and weights that are not cut, each counted by its time. Cut weights draw about
    the same: a product this large fills the device either way. A device or number format whose products no
    source measured by shape keeps the draw of its family.

    Raises
    ------
    OutOfDomainError
        if the device's rated power is not known.
    """
    power, measured = device_power(device), matmul_power(device.name)
    fmt = matmul_dtype(job.precision)
    if measured is None or fmt not in measured.formats:
        return power
    shapes = _products(job)
    if not len(shapes):
        return power
    count, m, n, k = shapes.T
    time_s = count * kernel_model(device).matmul_s(m, n, k, dtype=fmt)
    mean_w = float(np.sum(time_s * measured.draw_w(m, n, k, fmt)) / np.sum(time_s))
    share = mean_w / measured.machine.rated_w
    return replace(power, draw_frac={**power.draw_frac, "matmul": share}, by_shape=True)


def _products(job: TrainingJob) -> Floats:
    """Return how often each product occurs, and its rows, columns and depth. shape (products, 4)"""
    layers = np.bincount(np.asarray(job.model.layers), minlength=len(job.model.blocks))
    found: list[tuple[float, float, float, float]] = []
    for block, count in zip(job.model.blocks, layers, strict=True):
        for op in block.operators:
            if isinstance(op, Matmul):
                m = max(job.seq_len * op.tokens_frac, 1.0)
                n, k = float(op.out_features), float(op.in_features)
                found += [(float(count), *shape) for shape in ((m, n, k), (m, k, n), (k, n, m))]
    return np.array(found).reshape(-1, 4)
