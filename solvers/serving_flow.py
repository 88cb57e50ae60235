"""Tokens per second that pass through layers placed on machines: an exact maximum flow."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Evaluator", "LayerFlow", "LayerFlowProblem", "layer_flow"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SCALE = 1000.0
"""Flows are whole thousandths of a token per second inside the flow solver."""
_COVER_WEIGHT = 0.05
"""Weight of the scarcest layer beside the flow, so that the search sees a slope where no token passes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerFlowProblem:
    """Machines, their throughput by number of layers, and their links, in tokens per second."""

    num_layers: int
    tokens_per_s: tuple[Floats, ...]
    """Per machine: entry k is what k layers pass; entry 0 is unused. The length sets the most layers."""
    link_tokens_per_s: Floats
    """From machine i to machine j. shape (machines, machines)"""
    entry_tokens_per_s: Floats
    exit_tokens_per_s: Floats
    """Between the outside and each machine."""

    @property
    def num_machines(self) -> int:
        """How many machines there are."""
        return len(self.tokens_per_s)

    @property
    def max_layers(self) -> Ints:
        """Most layers that each machine holds."""
        return np.array([min(len(t) - 1, self.num_layers) for t in self.tokens_per_s], dtype=np.int64)

    @property
    def compute_bound(self) -> float:
        """No placement passes more: layer-tokens per second of all machines over the layers."""
        best = [float(np.max(np.arange(len(t)) * t)) for t in self.tokens_per_s]
        return sum(best) / self.num_layers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerFlow:
    """A placement with its flow."""

    start_layer: Ints
    num_layers: Ints
    tokens_per_s: float
    num_evaluations: int = 0


class Evaluator:
    """Maximum flow of placements; machines are split in two nodes, source is 2n, sink 2n + 1."""

    def __init__(self, problem: LayerFlowProblem) -> None:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_flow

        self.problem = problem
        self.matrix, self.flow = csr_array, maximum_flow
        n = problem.num_machines
        self.links = np.minimum(np.round(problem.link_tokens_per_s * _SCALE), 2**30).astype(np.int32)
        np.fill_diagonal(self.links, 0)
        self.entry = np.minimum(np.round(problem.entry_tokens_per_s * _SCALE), 2**30).astype(np.int32)
        self.exit = np.minimum(np.round(problem.exit_tokens_per_s * _SCALE), 2**30).astype(np.int32)
        width = int(problem.max_layers.max()) + 1
        self.speed = np.zeros((n, width))
        for i, t in enumerate(problem.tokens_per_s):
            self.speed[i, : len(t)] = t[:width]
        self.capacity = np.zeros((2 * n + 2, 2 * n + 2), dtype=np.int32)
        self.count = 0

    def tokens_per_s(self, start: Ints, held: Ints) -> float:
        """Return the maximum flow."""
        self.count += 1
        n = self.problem.num_machines
        end = start + held
        rows = np.arange(n)
        cap = self.capacity
        cap[rows, n + rows] = np.round(self.speed[rows, held] * _SCALE)
        usable = (start[None, :] <= end[:, None]) & (end[:, None] < end[None, :])
        cap[n : 2 * n, :n] = np.where(usable, self.links, 0)
        cap[2 * n, :n] = np.where(start == 0, self.entry, 0)
        cap[n : 2 * n, 2 * n + 1] = np.where(end == self.problem.num_layers, self.exit, 0)
        return float(self.flow(self.matrix(cap), 2 * n, 2 * n + 1).flow_value) / _SCALE

    def scarcest(self, start: Ints, held: Ints) -> float:
        """Return the capacity of the layer that least can pass."""
        steps = np.zeros(self.problem.num_layers + 1)
        speed = self.speed[np.arange(len(start)), held]
        np.add.at(steps, start, speed)
        np.add.at(steps, start + held, -speed)
        return float(np.cumsum(steps[:-1]).min())

    def value(self, start: Ints, held: Ints, least: float = -math.inf) -> tuple[float, float]:
        """Return the flow and the value that the search climbs; minus infinity where it cannot reach `least`.

        No flow passes more than the scarcest layer, which costs far less to know.
        """
        ceiling = self.scarcest(start, held)
        if (1.0 + _COVER_WEIGHT) * ceiling < least:
            return 0.0, -math.inf
        flow = self.tokens_per_s(start, held)
        return flow, flow + _COVER_WEIGHT * ceiling


def layer_flow(problem: LayerFlowProblem, start_layer: Ints, num_layers: Ints) -> LayerFlow:
    """Return the exact flow of a given placement.

    Raises
    ------
    ValueError
        if a machine holds no layer, more than it can, or layers that do not exist.
    """
    start, held = np.asarray(start_layer, np.int64), np.asarray(num_layers, np.int64)
    bad = (held < 1) | (held > problem.max_layers) | (start < 0) | (start + held > problem.num_layers)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        message = f"machine {i}: layers {start[i]} to {start[i] + held[i]} break its or the model's limits"
        raise ValueError(message)
    flow = Evaluator(problem).tokens_per_s(start, held)
    return LayerFlow(start_layer=start, num_layers=held, tokens_per_s=flow, num_evaluations=1)
