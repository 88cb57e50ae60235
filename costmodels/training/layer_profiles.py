"""Measured layers and links of several device types: what a cost model of mixed pipelines reads.

A profile holds, for one model on one device, the time of every layer by micro-batch and tensor degree. The
file format is the one that the Sailor project publishes, ``{micro-batch: {tp: {layer: [forward, backward,
update]}}}`` in seconds; link curves are ``[[a, b, c], peak]``: a quadratic in the logarithm of the message in
MB that gives GB/s, and the largest rate measured in B/s.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hardware.errors import OutOfDomainError, SpecError

__all__ = ["LayerProfile", "LayerTable", "LinkCurve", "read_layer_profile", "read_layer_table"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerProfile:
    """Times of every layer of one model on one device."""

    device: str
    layer_s: dict[tuple[int, int], Floats]
    """Forward and backward of each layer by (micro-batch, tensor degree). shape (layers,) [s]"""
    update_s: dict[tuple[int, int], Floats]
    """Optimizer step of each layer. [s]"""

    @property
    def tensor_degrees(self) -> tuple[int, ...]:
        """Degrees that were measured."""
        return tuple(sorted({tp for _, tp in self.layer_s}))

    def micro_batches(self, tp: int) -> tuple[int, ...]:
        """Return the micro-batches measured at a tensor degree."""
        return tuple(sorted(batch for batch, degree in self.layer_s if degree == tp))

    def times_s(self, micro_batch: int, tp: int) -> Floats:
        """Return the time of each layer, forward and backward.

        A smaller micro-batch is never slower than a larger one: what was measured above the time of a larger
        batch is start-up and host noise, so the fastest total over all batches from this one up is used.

        Raises
        ------
        OutOfDomainError
            if that degree and micro-batch (or a larger one) were not measured.
        """
        known = [self.layer_s[batch, tp] for batch in self.micro_batches(tp) if batch >= micro_batch]
        if not known or (micro_batch, tp) not in self.layer_s:
            message = f"{self.device} has no profile at micro-batch {micro_batch}, tp {tp}"
            raise OutOfDomainError(message)
        return min(known, key=lambda times: float(times.sum()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCurve:
    """Rate of a link by message size."""

    coefficients: tuple[float, float, float]
    """Of the square, the first power and the constant. [GB/s over ln MB]"""
    peak_bytes_per_s: float
    collective_frac: float = 1.0
    """Share of this rate that the links of a gradient ring attain."""

    def slowed(self, factor: float) -> "LinkCurve":
        """Return the link that takes `factor` times as long for every message."""
        a, b, c = self.coefficients
        return replace(
            self,
            coefficients=(a / factor, b / factor, c / factor),
            peak_bytes_per_s=self.peak_bytes_per_s / factor,
        )

    def bytes_per_s(self, message_bytes: float) -> float:
        """Return the rate of a message of that size; positive, at most the largest rate measured."""
        a, b, c = self.coefficients
        log_mb = float(np.log(max(message_bytes, 1.0) / 1e6))
        rate = (a * log_mb * log_mb + b * log_mb + c) * 1e9
        return min(max(rate, 1e-3 * self.peak_bytes_per_s), self.peak_bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTable:
    """Sizes of the layers of one model, for one sequence and without tensor parallelism."""

    num_params: Floats
    """shape (layers,)"""
    activation_bytes: Floats
    """Kept for backward, per sequence. shape (layers,)"""
    output_bytes: Floats
    """What crosses a cut behind a layer, per sequence. shape (layers,)"""
    residual_bytes: float
    """One hidden-state tensor of one sequence."""


def read_layer_profile(path: Path, device: str) -> LayerProfile:
    """Return the profile in a file.

    Raises
    ------
    SpecError
        if it is no such table, or a time is negative or no number.
    """
    layer_s: dict[tuple[int, int], Floats] = {}
    update_s: dict[tuple[int, int], Floats] = {}
    try:
        for batch, degrees in json.loads(path.read_text(encoding="utf-8")).items():
            for tp, layers in degrees.items():
                times = np.array([layers[str(i)] for i in range(len(layers))], dtype=np.float64)
                layer_s[int(batch), int(tp)] = times[:, 0] + times[:, 1]
                update_s[int(batch), int(tp)] = times[:, 2]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise SpecError(str(path), [f"no layer profile: {type(error).__name__} {error}"]) from None
    if not layer_s or any(not np.all(t >= 0) for t in layer_s.values()):
        raise SpecError(str(path), ["layer times must be numbers and not negative, and there must be some"])
    return LayerProfile(device=device, layer_s=layer_s, update_s=update_s)


def read_layer_table(path: Path, model: str) -> LayerTable:
    """Return the sizes of a model's layers from a file ``{model: {micro-batch: {layer: sizes}}}``.

    Raises
    ------
    SpecError
        if the file lacks the model or its sizes at micro-batch 1.
    """
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))[model]["1"]
        rows = [layers[str(i)] for i in range(len(layers))]
        return LayerTable(
            num_params=np.array([row["params_floats"] for row in rows], dtype=np.float64),
            activation_bytes=np.array([row["act_mem_bytes"] for row in rows], dtype=np.float64),
            output_bytes=np.array([row["act_output_bytes"] for row in rows], dtype=np.float64),
            residual_bytes=float(rows[1]["act_output_bytes"]),
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise SpecError(str(path), [f"no sizes of {model}: {type(error).__name__} {error}"]) from None
