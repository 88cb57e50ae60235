r"""Training with states or activations kept in host memory or on NVMe drives.

Whether a device computes at its peak depends on how much work a transferred byte brings: with arithmetic
intensity :math:`a` [FLOP/byte] over a link of :math:`b` bytes/s and a peak of :math:`P` FLOP/s the efficiency
is :math:`a b / (a b + P)` when transfers and compute take turns (Rajbhandari et al., ZeRO-Infinity, SC 2021).
When all of them overlap the slowest of device, link, drive and host sets the step (Liao et al., Fuyou, 2024).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "HostPath",
    "activation_intensity",
    "needed_bytes_per_s",
    "offload_efficiency",
    "optimizer_intensity",
    "optimizer_step_s",
    "overlapped_step_s",
    "parameter_intensity",
]

Floats = npt.NDArray[np.float64]

_STATE_BYTES = 12.0
"""fp32 weight and two Adam moments of one parameter."""
_HOST_BYTES = 2 * _STATE_BYTES + 2.0 + 2.0
"""Host memory traffic of one Adam update: states read and written, gradient read, weight written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPath:
    """What one device has of its host, when all devices of the host use it at once; one way."""

    link_bytes_per_s: float
    """Between device and host memory."""
    host_bytes_per_s: float
    """Host memory bandwidth, for the processor's optimizer."""
    drive_read_bytes_per_s: float | None = None
    """None: no drives, states stay in host memory."""
    drive_write_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        if (self.drive_read_bytes_per_s is None) != (self.drive_write_bytes_per_s is None):
            message = "give both drive_read_bytes_per_s and drive_write_bytes_per_s, or neither"
            raise ValueError(message)


def parameter_intensity(tokens: Floats) -> Floats:
    """Return FLOP per byte of 16-bit weights and gradients moved, for `tokens` per device and step.

    8 FLOP per parameter and token (recompute included) over 8 bytes: two loads, one store of the gradient and
    one load for recompute.
    """
    return tokens * 1.0


def optimizer_intensity(tokens: Floats) -> Floats:
    """Return FLOP per byte of optimizer state moved: four times the bytes of weights and gradients."""
    return tokens / 4


def activation_intensity(hidden: Floats, layers_per_checkpoint: Floats) -> Floats:
    """Return FLOP per byte of activation checkpoints moved, one every so many layers."""
    return 24 * hidden * layers_per_checkpoint


def offload_efficiency(intensity: Floats, bytes_per_s: Floats, peak_flops_per_s: Floats) -> Floats:
    """Return the share of peak reached when transfers and compute take turns."""
    return intensity * bytes_per_s / (intensity * bytes_per_s + peak_flops_per_s)


def needed_bytes_per_s(intensity: Floats, efficiency_frac: Floats, peak_flops_per_s: Floats) -> Floats:
    """Return the bandwidth per device that reaches `efficiency_frac` of the peak."""
    return peak_flops_per_s / intensity * efficiency_frac / (1 - efficiency_frac)


def optimizer_step_s(params: Floats, path: HostPath) -> Floats:
    """Return the seconds of an Adam step on the host, transfers and update pipelined in pieces.

    Gradients come down and weights go up (2 bytes each), the processor streams the states through host
    memory, and with drives the states are read and written there: the slowest stream sets the time.

    Parameters
    ----------
    params : parameters whose states one device keeps outside. shape (rows,)
    path : what one device has of its host.
    """
    down_and_up = 2 * params / path.link_bytes_per_s
    update = _HOST_BYTES * params / path.host_bytes_per_s
    slowest = np.maximum(down_and_up, update)
    if path.drive_read_bytes_per_s is not None and path.drive_write_bytes_per_s is not None:
        drive = _STATE_BYTES * params * (1 / path.drive_read_bytes_per_s + 1 / path.drive_write_bytes_per_s)
        slowest = np.maximum(slowest, drive)
    return slowest


def overlapped_step_s(
    compute_s: Floats,
    params: Floats,
    activation_bytes: Floats,
    path: HostPath,
    drive_activation_frac: float = 0.0,
) -> Floats:
    """Return the seconds of a step whose compute, transfers, drive traffic and host update all overlap.

    Weights come up in 16 bits for forward and for backward, gradients go down, activations go down and come
    back, optimizer states are read and written once, by the drives if there are any.

    Parameters
    ----------
    compute_s : forward and backward on the device. shape (rows,) [s]
    params : parameters of one device. shape (rows,)
    activation_bytes : activations swapped out in forward and back in backward. shape (rows,) [B]
    path : what one device has of its host.
    drive_activation_frac : share of the swapped activations that goes on to the drives.
    """
    up = (4 * params + activation_bytes) / path.link_bytes_per_s
    down = (2 * params + activation_bytes) / path.link_bytes_per_s
    slowest = np.maximum(
        np.maximum(compute_s, np.maximum(up, down)), _HOST_BYTES * params / path.host_bytes_per_s
    )
    if path.drive_read_bytes_per_s is not None and path.drive_write_bytes_per_s is not None:
        each_way = _STATE_BYTES * params + drive_activation_frac * activation_bytes
        drive = each_way * (1 / path.drive_read_bytes_per_s + 1 / path.drive_write_bytes_per_s)
        slowest = np.maximum(slowest, drive)
    return slowest
