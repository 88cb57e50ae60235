"""Draw of a training job's own matrix products on a device."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from costmodels.graph import Matmul
from costmodels.job import TrainingJob
from costmodels.kernels.times import kernel_model
from costmodels.power.draw import DevicePower, device_power
from costmodels.power.sustained import sustained_draw, used_fracs
from costmodels.training.layer_costs import matmul_dtype
from hardware.device import Device

__all__ = ["training_power"]

Floats = npt.NDArray[np.float64]


def training_power(device: Device, job: TrainingJob) -> DevicePower:
    """Return what a device draws by phase while it trains `job`.

    The draw of matrix products is the mean over the model's dense layers, forward and both products of
    backward, for one sequence and weights that are not cut, each by how far it uses the device and counted by
    its time. Cut weights draw about the same: a product this large fills the device either way. Training
    repeats its products for hours, so the law of settled readings holds.

    Raises
    ------
    OutOfDomainError
        if the device's rated power is not known, or it runs no products in the job's precision.
    """
    power, dtype, shapes = device_power(device), matmul_dtype(job.precision), _products(job)
    if not len(shapes):
        return power
    count, m, n, k = shapes.T
    each_s = kernel_model(device).matmul_s(m, n, k, dtype=dtype)
    drawn = sustained_draw().share(*used_fracs(device, dtype, m, n, k, each_s))
    share = float(np.average(drawn, weights=count * each_s))
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
