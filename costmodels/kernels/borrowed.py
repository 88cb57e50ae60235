"""Coefficients of a device that was never measured: the pooled ones or a relative's, moved by what is known.

The exponentials of a soft-max run outside the matrix units, so counted in FLOPs of those they cost more the
faster the matrix units of one compute unit are. The share of its rated peak that a device sustains is moved
where it is known: cards of one die differ in it by a third, as power binds one and a halved rating the other.
"""

import numpy as np

from costmodels.kernels.data import find_surface, sustained_frac
from costmodels.kernels.machine import Coefficients, Machine, find_format, machine_of
from costmodels.kernels.matmul import MATMUL
from costmodels.kernels.surface import Surface
from hardware.device import Device

__all__ = ["borrowed_coefficients", "moved_softmax"]

_POOLED_FLOPS_PER_S_PER_UNIT = 6.85e12
"""Geometric mean of bf16 peak over compute units of the devices whose coefficients are pooled."""
_LARGE_MATMUL = 8192.0
"""Side of the square matmul at which a sustained share of peak is understood."""


def moved_softmax(coefficients: Coefficients, lender_flops_per_s: float, machine: Machine) -> Coefficients:
    """Return the coefficients with the exponentials of a soft-max counted in FLOPs of `machine`.

    Parameters
    ----------
    lender_flops_per_s : peak of one compute unit of the device that the coefficients come from.
    """
    if "softmax_flops" not in coefficients:
        return coefficients
    ratio = machine.peak_flops_per_s / machine.num_sms / lender_flops_per_s
    return {**coefficients, "softmax_flops": coefficients["softmax_flops"] * ratio}


def borrowed_coefficients(surface: Surface, machine: Machine, device: Device, file: str) -> Coefficients:
    """Return the coefficients of a surface for a device that it was not fitted to.

    Parameters
    ----------
    machine : `device` for the number format that is asked for.
    file : coefficient file that the device borrows from; a format that it lacks comes from the pooled one.
    """
    own = surface.machine.peak_flops_per_s / surface.machine.num_sms
    lender = own if surface.measured else _POOLED_FLOPS_PER_S_PER_UNIT
    coefficients = moved_softmax(surface.coefficients, lender, machine)
    wanted = sustained_frac(device)
    if wanted is None:
        return coefficients
    fmt = find_format("bf16")
    lent, _ = find_surface(file if surface.measured else "generic", MATMUL, fmt)
    rated = machine_of(device, fmt)
    side = {name: np.array([_LARGE_MATMUL]) for name in MATMUL.columns}
    seconds = float(MATMUL.physics(side, rated, fmt, lent.coefficients)[0])
    reached = 2.0 * _LARGE_MATMUL**3 / (seconds * rated.peak_flops_per_s)
    return {**coefficients, "compute_frac": coefficients["compute_frac"] * wanted / reached}
