"""Measured layers and links of several device types: what a cost model of mixed pipelines reads.

A profile holds, for one model on one device, the time of every layer by micro-batch and tensor degree. The
file format is the one that the Sailor project publishes, ``{micro-batch: {tp: {layer: [forward, backward,
update]}}}`` in seconds; link curves are ``[[a, b, c], peak]``: a quadratic in the logarithm of the message in
MB that gives GB/s, and the largest rate measured in B/s.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hardware.errors import OutOfDomainError, SpecError
from hardware.schema import validate

__all__ = ["LayerProfile", "LayerTable", "LinkCurve", "read_layer_profile", "read_layer_table"]

Floats = npt.NDArray[np.float64]

Degree = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProfileFile:
    """A profile as its file gives it: forward, backward and update of each layer, in order from 0."""

    layers: dict[Degree, dict[Degree, dict[Index, tuple[Time, Time, Time]]]]
    """By micro-batch, tensor degree and layer. [s]"""


def read_layer_profile(path: Path, device: str) -> LayerProfile:
    """Return the profile in a file.

    Raises
    ------
    SpecError
        if it is no such table, a time is negative or no number, or layers are missing somewhere.
    """
    read = validate(_ProfileFile, {"layers": _json(path)}, str(path))
    known = {layer for degrees in read.layers.values() for layers in degrees.values() for layer in layers}
    expected = set(range(max(known, default=-1) + 1))
    problems = [
        f"layers.{batch}.{tp}: lacks layer {', '.join(map(str, sorted(expected - set(layers))))}"
        for batch, degrees in read.layers.items()
        for tp, layers in degrees.items()
        if set(layers) != expected
    ]
    if not known:
        problems.append("no layer times; expected {micro-batch: {tp: {layer: [forward, backward, update]}}}")
    if problems:
        raise SpecError(str(path), problems)
    times = {
        (batch, tp): np.array([layers[i] for i in range(len(layers))], dtype=np.float64)
        for batch, degrees in read.layers.items()
        for tp, layers in degrees.items()
    }
    return LayerProfile(
        device=device,
        layer_s={key: table[:, 0] + table[:, 1] for key, table in times.items()},
        update_s={key: table[:, 2] for key, table in times.items()},
    )


def _json(path: Path) -> Any:
    try:
        read: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise SpecError(str(path), [f"no JSON ({error})"]) from None
    return read


def read_layer_table(path: Path, model: str) -> LayerTable:
    """Return the sizes of a model's layers from a file ``{model: {micro-batch: {layer: sizes}}}``.

    Raises
    ------
    SpecError
        if the file lacks the model or its sizes at micro-batch 1.
    """
    try:
        found = _json(path)
        layers = found[model]["1"]
        rows = [layers[str(i)] for i in range(len(layers))]
        return LayerTable(
            num_params=np.array([row["params_floats"] for row in rows], dtype=np.float64),
            activation_bytes=np.array([row["act_mem_bytes"] for row in rows], dtype=np.float64),
            output_bytes=np.array([row["act_output_bytes"] for row in rows], dtype=np.float64),
            residual_bytes=float(rows[1]["act_output_bytes"]),
        )
    except (ValueError, KeyError, IndexError, TypeError):
        needed = "params_floats, act_mem_bytes and act_output_bytes of every layer at micro-batch 1"
        raise SpecError(str(path), [f"no sizes of {model}: expected {needed}"]) from None
