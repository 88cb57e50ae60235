"""What stages of a pipeline over groups of nodes hand on: one hop behind every stage but the last."""

import numpy as np
import numpy.typing as npt

from costmodels.collectives.times import Collective, collective_s, p2p_s
from costmodels.job import TrainingJob
from costmodels.parameters import rank_parameters
from costmodels.stacks import find_stack
from costmodels.strategy import Strategy
from hardware.cluster import Cluster
from hardware.levels import Level, LinkKind

__all__ = ["Layout", "StageHops", "exchanges_s"]

Floats = npt.NDArray[np.float64]

Layout = tuple[tuple[int, int, int], ...]
"""(group, tensor degree, stages) in pipeline order."""
_ELEMENT_BYTES = 2.0


def exchanges_s(hops_s: Floats) -> Floats:
    """Return what every stage exchanges with its neighbours per micro-batch."""
    out: Floats = np.concatenate([hops_s, [0.0]]) + np.concatenate([[0.0], hops_s])
    return out


class StageHops:
    """Times of hops between stages, each kind of hop costed once."""

    def __init__(self, job: TrainingJob, cluster: Cluster) -> None:
        self._job = job
        self._token_bytes = job.seq_len * job.model.hidden * _ELEMENT_BYTES
        self._cluster = cluster
        self._inside = [cluster.group_cluster(group).levels for group in range(len(cluster.groups))]
        self._known: dict[tuple[int, ...], float] = {}

    def seconds(self, strategy: Strategy, layout: Layout) -> Floats:
        """Return the time of one hop behind every stage but the last. shape (stages - 1,)"""
        hops: list[float] = []
        batch = strategy.micro_batch
        for index, (group, tp, stages) in enumerate(layout):
            if stages > 1:
                hops += [self._within(group, tp, strategy.dp, batch)] * (stages - 1)
            if index < len(layout) - 1:
                other, other_tp, _ = layout[index + 1]
                hops.append(self._between(group, other, min(tp, other_tp), strategy.dp, batch))
        return np.array(hops)

    def tied_s(self, strategy: Strategy, layout: Layout) -> float:
        """Return the time in which both ends of the pipeline add up the gradients of a tied embedding.

        Zero for a model that ties none, and for one stage. Unlike tensor degrees exchange their smaller one's
        shards.
        """
        first, last = layout[0], layout[-1]
        tp, num_stages = min(first[1], last[1]), sum(stages for _, _, stages in layout)
        inside = first[0] == last[0]
        key = (first[0], last[0], tp, num_stages if inside else 0, strategy.dp, -2)
        if key not in self._known:
            one = np.ones(1, dtype=np.int64)
            words = rank_parameters(self._job.model, tp * one, num_stages * one, one, one, one).tied
            stack = find_stack(self._job.stack)
            if inside:
                levels, stride = self._inside[first[0]], tp * strategy.dp * (num_stages - 1) * one
            else:
                levels, stride = (_level_between(self._cluster, first[0], last[0], tp * strategy.dp),), one
            size = words * stack.main_grad_bytes
            reduce_s = collective_s(Collective.ALL_REDUCE, size, stride, 2 * one, levels)
            self._known[key] = float(reduce_s[0]) * stack.dp_comm
        return self._known[key]

    def _within(self, group: int, tp: int, dp: int, micro_batch: int) -> float:
        key = (group, tp, dp, micro_batch)
        if key not in self._known:
            size = np.array([micro_batch * self._token_bytes / tp])
            self._known[key] = float(p2p_s(size, np.array([tp * dp]), self._inside[group])[0])
        return self._known[key]

    def _between(self, group: int, other: int, tp: int, dp: int, micro_batch: int) -> float:
        key = (group, other, tp, dp, micro_batch, -1)
        if key not in self._known:
            level = _level_between(self._cluster, group, other, tp * dp)
            size = np.array([micro_batch * self._token_bytes / tp])
            self._known[key] = float(p2p_s(size, np.array([1]), (level,))[0])
        return self._known[key]


def _level_between(cluster: Cluster, first: int, second: int, num_senders: int) -> Level:
    """Return the best common fabric of two groups as one level over both.

    A stage of fewer devices than a node leaves the others' share of the node's ports to those that send, up
    to one port each.
    """
    fabric = cluster.fabric_between(first, second)
    nodes = [cluster.groups[group].node for group in (first, second)]
    share = min(
        max(node.num_devices / max(num_senders, node.num_ports(fabric.technology) * node.num_hosts), 1.0)
        for node in nodes
    )
    return Level(
        name="between",
        size=cluster.num_devices,
        bytes_per_s=cluster.bytes_per_s_between(first, second) * share,
        latency_s=max(fabric.latency_s, fabric.far_latency_s or 0.0),
        kind=LinkKind.FABRIC,
        technology=fabric.technology,
        attained_frac=fabric.attained_frac,
    )
