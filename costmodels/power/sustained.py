r"""Draw of a device that repeats one kernel until its meter has settled, by how far the kernel uses it.

.. math:: p = \min(1, \; s + a u^{g} + b v^{h})

with p the draw over rated power, u the kernel's arithmetic and v its memory traffic per second, both over
what the device is rated for. A product at half of the rated arithmetic already draws rated power.

Coefficients are fitted to matrix products of 0.1 ms and more on three devices together, by absolute
deviations: a meter that averages over a second reads shorter loops low, never high.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from costmodels.kernels.machine import find_format, machine_of
from costmodels.power.data import read_power_coefficients
from hardware.device import Device

__all__ = ["SustainedDraw", "fit_sustained_draw", "sustained_draw", "used_fracs"]

Floats = npt.NDArray[np.float64]

_START = (0.2, 1.0, 0.7, 0.5, 0.7)
_SOFT = 0.02
"""Errors in ln beyond which a reading counts by its distance, no longer by its square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SustainedDraw:
    """Coefficients of the law above; all shares are of rated power."""

    base: float
    arithmetic: float
    arithmetic_exponent: float
    memory: float
    memory_exponent: float

    def share(self, flops_frac: Floats | float, bytes_frac: Floats | float) -> Floats:
        """Return the draw over rated power, at most 1.

        Parameters
        ----------
        flops_frac, bytes_frac : arithmetic and memory traffic per second over what the device is rated for.
        """
        drawn = (
            self.base
            + self.arithmetic * np.asarray(flops_frac, dtype=float) ** self.arithmetic_exponent
            + self.memory * np.asarray(bytes_frac, dtype=float) ** self.memory_exponent
        )
        share: Floats = np.minimum(drawn, 1.0)
        return share


def fit_sustained_draw(flops_frac: Floats, bytes_frac: Floats, share: Floats) -> SustainedDraw:
    """Return the law fitted to readings, one per row; `share` is watts over rated power."""
    from scipy.optimize import least_squares  # slow to import, needed for fitting only

    def law(x: Floats) -> SustainedDraw:
        base, arithmetic, exponent, memory, other = (float(v) for v in x)
        return SustainedDraw(
            base=base,
            arithmetic=arithmetic,
            arithmetic_exponent=exponent,
            memory=memory,
            memory_exponent=other,
        )

    def error(x: Floats) -> Floats:
        return np.asarray(np.log(law(x).share(flops_frac, bytes_frac) / share))

    found = least_squares(
        error, _START, bounds=([0.02, 0.0, 0.1, 0.0, 0.1], [0.5, 10.0, 4.0, 4.0, 4.0]), loss="soft_l1",
        f_scale=_SOFT,
    )  # fmt: skip
    return law(found.x)


@cache
def sustained_draw() -> SustainedDraw:
    """Return the law as it was fitted."""
    fitted = read_power_coefficients("sustained")
    return SustainedDraw(**{name: float(fitted[name]) for name in SustainedDraw.__slots__})


def used_fracs(
    device: Device, dtype: str, m: Floats, n: Floats, k: Floats, seconds: Floats
) -> tuple[Floats, Floats]:
    """Return arithmetic and memory traffic per second of m x k by k x n products, over what is rated.

    Raises
    ------
    OutOfDomainError
        if the device is not rated for the number format.
    """
    fmt = find_format(dtype)
    machine = machine_of(device, fmt)
    flops = 2.0 * m * n * k
    num_bytes = fmt.input_bytes * m * k + fmt.weight_bytes * n * k + fmt.output_bytes * m * n
    return flops / seconds / machine.peak_flops_per_s, num_bytes / seconds / machine.bytes_per_s
