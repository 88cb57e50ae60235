"""How likely a strategy is to fit: the prediction's spread against what the device leaves free."""

import numpy as np
import numpy.typing as npt

__all__ = ["fits_probability", "normal_cdf"]

Floats = npt.NDArray[np.float64]


def normal_cdf(z: Floats) -> Floats:
    """Return the standard normal distribution function.

    Abramowitz and Stegun 26.2.17, error below 7.5e-8.
    """
    t = 1.0 / (1.0 + 0.2316419 * np.abs(z))
    series = 0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))
    tail = np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi) * t * series
    below: Floats = np.where(z >= 0, 1.0 - tail, tail)
    return below


def fits_probability(peak_bytes: Floats, usable_bytes: float, sigma: float) -> Floats:
    """Return the probability that the true peak stays within `usable_bytes`, peaks being log-normal."""
    return normal_cdf((np.log(usable_bytes) - np.log(np.maximum(peak_bytes, 1.0))) / sigma)
