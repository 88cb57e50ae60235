"""Which rank runs on which host, by measured links: a strategy's traffic, and the order of the hosts.

Ranks keep the order that the framework gives them (`planner.training.ranks`); what is chosen is the
hosts' order.
All ranks of a host move together, so a unit is a block of ranks and a site is a host.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from costmodels.graph import Experts
from costmodels.job import TrainingJob
from costmodels.strategy import Strategy
from hardware.cluster import Cluster
from hardware.units import format_quantity
from planner.plan import Placement, PlannedRank
from planner.training.ranks import default_placement, rank_coordinates
from solvers.placement_links import RobustPlacement, believe_links, solve_robust_placement
from solvers.placement_problem import PlacementProblem, Term
from solvers.placement_search import Progress

__all__ = ["PlacedRanks", "host_terms", "planned_placement"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_GRADIENT_BYTES = 4.0
"""Gradients are reduced in fp32."""
_ACTIVATION_BYTES = 2.0
_NUM_MOVES = 12_000
"""Budget of the search over host orders: seconds for tens of hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRanks:
    """The placement of a plan and one sentence on how it came about."""

    placement: Placement
    diagnostics: tuple[str, ...] = ()


def planned_placement(
    strategy: Strategy, job: TrainingJob, cluster: Cluster, *, progress: Progress | None = None
) -> PlacedRanks:
    """Return where every rank runs; the default order unless measured links make another one win.

    Without measured links all orders of equal hosts cost the same, and the default is returned.
    """
    links = cluster.measured_links
    default = default_placement(strategy, cluster)
    if links is None:
        return PlacedRanks(placement=default)
    per_host = cluster.num_devices // links.num_hosts
    terms = host_terms(strategy, job, per_host=per_host, num_nics=_num_nics(cluster))
    rates = links.bytes_per_s.copy()
    rates[:, np.arange(links.num_hosts), np.arange(links.num_hosts)] = links.mean_bytes_per_s[
        ~np.eye(links.num_hosts, dtype=bool)
    ].max()
    problem = PlacementProblem(num_units=links.num_hosts, seconds_per_byte=1.0 / rates[:1], terms=terms)
    if not any(len(term.head) for term in terms):
        return PlacedRanks(placement=_named(default, links.hosts, per_host), diagnostics=(_rates(cluster),))
    hosts = np.arange(links.num_hosts)
    placed = solve_robust_placement(
        problem,
        believe_links(rates),
        hosts,
        num_moves=_NUM_MOVES,
        num_scenarios=int(np.clip(25_000 // links.num_hosts**2, 4, 100)),
        progress=progress,
    )
    chosen = tuple(links.hosts[site] for site in placed.site_of)
    return PlacedRanks(
        placement=_placement(strategy, chosen, per_host, placed),
        diagnostics=(_sentence(placed, len(rates)), _rates(cluster)),
    )


def _num_nics(cluster: Cluster) -> int:
    """Return the network ports of the host that has fewest, at least one."""
    return max(1, min(len(group.node.topology.nics) // group.node.num_hosts for group in cluster.groups))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _rates(cluster: Cluster) -> str:
    """Return the sentence that says at which rates the step was costed."""
    rates = [
        f"{fabric.name} {format_quantity(cluster.node_bytes_per_s(index, fabric.name), 'B/s')} per node over "
        f"{_counted(group.node.num_ports(fabric.technology), 'port')}"
        for index, group in enumerate(cluster.groups)
        for fabric in map(cluster.fabric, group.fabrics)
    ]
    how = "no faster than the slowest measured link of the hosts' rings on every port"
    return f"network: costed at {', '.join(rates)}, {how}"


def _placement(
    strategy: Strategy, hosts: tuple[str, ...], per_host: int, placed: RobustPlacement
) -> Placement:
    coordinates = rank_coordinates(strategy)
    ranks = tuple(
        PlannedRank(rank=r, host=hosts[r // per_host], device=r % per_host, coordinates=at)
        for r, at in enumerate(coordinates)
    )
    bound = placed.search.bound or 0.0
    most = 1.0 - bound / placed.default_cost_s if placed.default_cost_s > 0 else 0.0
    return Placement(
        ranks=ranks, gain_frac=0.0 if placed.is_default else placed.gain_frac, bound_frac=max(most, 0.0)
    )


def _named(placement: Placement, hosts: tuple[str, ...], per_host: int) -> Placement:
    ranks = tuple(
        PlannedRank(
            rank=r.rank, host=hosts[r.rank // per_host], device=r.rank % per_host, coordinates=r.coordinates
        )
        for r in placement.ranks
    )
    return Placement(ranks=ranks, gain_frac=0.0, bound_frac=0.0)


def _sentence(placed: RobustPlacement, num_snapshots: int) -> str:
    low, high = 100 * placed.gain_low_frac, 100 * placed.gain_high_frac
    found = f"{100 * placed.gain_frac:.1f} % of communication time (90 % interval {low:.1f} to {high:.1f} %)"
    basis = _counted(num_snapshots, "link snapshot")
    gap = f"at most {100 * placed.bound_frac:.1f} % above the best placement"
    if placed.is_default:
        kept = f"placement: default host order kept, {gap}"
        return f"{kept}; the best found saves {found} on {basis}, which is not significant"
    return f"placement: hosts reordered, saves {found} on {basis}; {gap}"


def host_terms(strategy: Strategy, job: TrainingJob, *, per_host: int, num_nics: int) -> tuple[Term, ...]:
    """Return the traffic between hosts of one step: gradients, pipeline, tensor and expert groups.

    Stages that hold the two ends of a tied embedding reduce its gradients between them.

    Parameters
    ----------
    per_host : ranks of one host.
    num_nics : ports of a host; more flows than that between two hosts share them.
    """
    s = strategy
    rank = np.arange(s.world).reshape(s.pp, s.dp, s.cp, s.tp)
    tokens = s.micro_batch * job.seq_len / s.cp
    micro_batches = max(1, job.global_batch // (s.micro_batch * s.dp))
    layers = -(-job.model.num_layers // s.pp)
    hidden_bytes = tokens * job.model.hidden * _ACTIVATION_BYTES
    gradients = rank.transpose(0, 3, 1, 2).reshape(s.pp * s.tp, s.dp * s.cp)
    params = job.model.num_params / (s.pp * s.tp)
    pipelines = rank.transpose(1, 2, 3, 0).reshape(-1, s.pp)
    hop_bytes = hidden_bytes / s.tp * -(-micro_batches // s.pp)
    reductions = 4.0 * layers * micro_batches
    terms = [
        _ring("gradients", gradients, _GRADIENT_BYTES * params, per_host, num_nics),
        _hops("pipeline", pipelines, hop_bytes, per_host, num_nics),
        _ring("tensor", rank.reshape(-1, s.tp), reductions * hidden_bytes, per_host, num_nics),
    ]
    if s.pp > 1 and job.model.tied_head:
        words = _GRADIENT_BYTES * job.model.vocab * job.model.hidden / s.tp
        terms.append(_ring("tied embedding", pipelines[:, [0, -1]], words, per_host, num_nics))
    experts = _expert_bytes(s, job, tokens) * micro_batches
    if s.ep > 1 and experts > 0:
        members = rank.reshape(s.pp, -1)
        groups = members.reshape(s.pp, -1, s.ep, s.etp).transpose(0, 1, 3, 2).reshape(-1, s.ep)
        terms.append(_exchange("experts", groups, experts / s.ep, per_host, num_nics))
    return tuple(terms)


def _expert_bytes(strategy: Strategy, job: TrainingJob, tokens: float) -> float:
    """Return what one rank sends to experts and back, forward and backward, per micro-batch."""
    total = 0.0
    for block in (job.model.blocks[i] for i in job.model.layers):
        top_k = sum(op.top_k for op in block.operators if isinstance(op, Experts))
        total += 4.0 * top_k * tokens * job.model.hidden * _ACTIVATION_BYTES
    return total / strategy.pp / strategy.tp


def _edge_table(edges: list[tuple[int, int, int]], num_bytes: float, num_nics: int) -> tuple[Ints, Floats]:
    """Return distinct (group, head, tail) and the bytes per link, flows beyond the ports sharing them."""
    table, flows = np.unique(np.array(edges, dtype=np.int64), axis=0, return_counts=True)
    pairs, index = np.unique(table[:, 1:], axis=0, return_inverse=True)
    between = np.bincount(index, weights=flows, minlength=len(pairs))[index]
    return table, num_bytes * np.maximum(1.0, between / num_nics)


def _distinct_groups(table: Ints, sizes: Floats) -> tuple[Ints, Floats]:
    """Return the edges without groups that repeat another one: all ranks of a host have the same ring."""
    starts = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
    seen: set[bytes] = set()
    kept = []
    for part in np.split(np.arange(len(table)), starts[1:]):
        key = table[part, 1:].tobytes() + sizes[part].tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(part)
    rows = np.concatenate(kept)
    return table[rows], sizes[rows]


def _term(
    name: str, edges: list[tuple[int, int, int]], num_bytes: float, num_nics: int, *, chain: bool
) -> Term:
    if not edges or num_bytes == 0:
        none = np.empty(0, dtype=np.int64)
        return Term(
            name=name, head=none, tail=none, group=none, num_bytes=np.empty(0), within="max", across="max"
        )
    table, sizes = _edge_table(edges, num_bytes, num_nics)
    table, sizes = _distinct_groups(table, sizes)
    _, group = np.unique(table[:, 0], return_inverse=True)
    return Term(
        name=name,
        head=table[:, 1],
        tail=table[:, 2],
        group=group.astype(np.int64),
        num_bytes=sizes,
        within="sum" if chain else "max",
        across="max",
    )


def _ring(name: str, groups: Ints, buffer_bytes: float, per_host: int, num_nics: int) -> Term:
    """Return rings over the hosts of each group; 2 (n - 1) / n of the buffer crosses every link."""
    edges = []
    num_hosts = 1
    for number, members in enumerate(groups // per_host):
        hosts = list(dict.fromkeys(members.tolist()))
        num_hosts = max(num_hosts, len(hosts))
        following = hosts[1:] + hosts[:1]
        edges += [(number, a, b) for a, b in zip(hosts, following, strict=True) if a != b]
    return _term(name, edges, 2.0 * (num_hosts - 1) / num_hosts * buffer_bytes, num_nics, chain=False)


def _hops(name: str, groups: Ints, hop_bytes: float, per_host: int, num_nics: int) -> Term:
    edges = []
    for number, members in enumerate((groups // per_host).tolist()):
        for a, b in pairwise(members):
            if a != b:
                edges += [(number, a, b), (number, b, a)]
    return _term(name, edges, hop_bytes, num_nics, chain=True)


def _exchange(name: str, groups: Ints, pair_bytes: float, per_host: int, num_nics: int) -> Term:
    """Return exchanges between all hosts of each group; what one host sends is one group of edges."""
    edges = []
    for number, members in enumerate(groups // per_host):
        hosts = list(dict.fromkeys(members.tolist()))
        edges += [(number * 10**6 + a, a, b) for a in hosts for b in hosts if a != b]
    return _term(name, edges, pair_bytes, num_nics, chain=True)
