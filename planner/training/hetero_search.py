"""The best pipeline over several device types: types, degrees and replicas per stage, layers, micro-batch.

Every stage has D replicas. A stage is held by one type with one tensor degree, or by two types that share its
replicas. The space is enumerated with a lower bound for each candidate, compute and gradient ring at their
best; candidates are solved in the order of their bounds until the bound of the next one is no better than the
best plan. Layers are split exactly for compute plus each layer's share of the ring; hops are costed on that
split, so the gap that is left speaks of candidates, each with this split.
"""

import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement, permutations, product

import numpy as np

from costmodels.training.hetero import HeteroModel, HeteroPlan, HeteroStage, hetero_cost
from hardware.errors import OutOfDomainError
from solvers.outcome import Outcome, Status
from solvers.stage_split import StageSplitProblem, solve_stage_split

__all__ = ["HeteroFleet", "best_hetero_plan", "num_candidates"]

_MAX_STAGES = 4
_MAX_TYPED_STAGES = 2
"""Up to this many stages, two types may share the replicas of one."""

Seats = tuple[tuple[str, int, int], ...]
"""(device, tensor degree, replicas) that hold one stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeteroFleet:
    """How many devices of each type there are, and what each can hold."""

    num_devices: Mapping[str, int]
    limit_bytes: Mapping[str, float]
    global_batch: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    micro_batch: int
    dp: int
    stages: tuple[Seats, ...]


def best_hetero_plan(
    fleet: HeteroFleet,
    model: HeteroModel,
    *,
    cost_s: Callable[[HeteroPlan], float] | None = None,
    rel_gap: float = 0.01,
    time_limit_s: float = 10.0,
    on_first: Callable[[HeteroPlan, float], None] | None = None,
) -> Outcome[HeteroPlan]:
    """Return the fastest plan of the space that fits, and a bound that no plan of the space beats.

    Parameters
    ----------
    cost_s : step time of a plan; `costmodels.training.hetero.hetero_cost` by default.
    rel_gap : stop once the bound is this close.
    on_first : called with the first plan found and the CPU seconds it took.
    """
    started, cpu = time.monotonic(), time.process_time()
    judge = cost_s or (lambda plan: hetero_cost(plan, model).step_s)
    bounds = _Bounds(fleet, model)
    queue = [(bounds.bound_s(c), i, c) for i, c in enumerate(_candidates(fleet, model))]
    heapq.heapify(queue)
    best: HeteroPlan | None = None
    best_s = np.inf
    bound = queue[0][0] if queue else np.inf
    while queue:
        bound, _, candidate = heapq.heappop(queue)
        if bound >= best_s * (1 - rel_gap) or time.monotonic() - started > time_limit_s:
            break
        plan = _solved(candidate, fleet, model)
        if plan is None:
            continue
        step_s = judge(plan)
        if best is None and on_first is not None:
            on_first(plan, time.process_time() - cpu)
        if step_s < best_s:
            best, best_s = plan, step_s
    wall_s = time.monotonic() - started
    if best is None:
        return Outcome(status=Status.INFEASIBLE, conflict=("memory of every stage",), wall_s=wall_s)
    proven = not queue or bound >= best_s * (1 - rel_gap)
    return Outcome(
        status=Status.OPTIMAL if proven and rel_gap == 0 else Status.FEASIBLE,
        solution=best,
        objective=best_s,
        bound=min(bound if queue else best_s, best_s),
        wall_s=wall_s,
    )


def num_candidates(fleet: HeteroFleet, model: HeteroModel) -> int:
    """Return how many combinations of types, degrees, replicas and micro-batches the space holds."""
    return sum(1 for _ in _candidates(fleet, model))


def _candidates(fleet: HeteroFleet, model: HeteroModel) -> Iterator[_Candidate]:
    devices = sorted(fleet.num_devices)
    batches = sorted({b for d in devices for b, _ in model.profiles[d].layer_s})
    total = sum(fleet.num_devices.values())
    for micro_batch in batches:
        pure = [
            (device, tp)
            for device in devices
            for tp in model.profiles[device].tensor_degrees
            if (micro_batch, tp) in model.profiles[device].layer_s
        ]
        for dp in (d for d in range(1, total + 1) if fleet.global_batch % (d * micro_batch) == 0):
            seats = [((device, tp, dp),) for device, tp in pure]
            shared = _shared(pure, dp)
            for num_stages in range(1, _MAX_STAGES + 1):
                options: list[Seats] = [*seats, *(shared if num_stages <= _MAX_TYPED_STAGES else [])]
                for group in combinations_with_replacement(range(len(options)), num_stages):
                    if _fits_fleet([options[i] for i in group], fleet):
                        for order in _orders(tuple(options[i] for i in group)):
                            yield _Candidate(micro_batch, dp, order)


def _orders(stages: tuple[Seats, ...]) -> list[tuple[Seats, ...]]:
    """Return the stages with equal ones together, in every order of the kinds: fewest hops between types."""
    kinds = sorted(set(stages))
    return [
        tuple(seats for kind in order for seats in stages if seats == kind) for order in permutations(kinds)
    ]


def _shared(pure: list[tuple[str, int]], dp: int) -> list[Seats]:
    """Return the ways in which two types hold a quarter, a half or three quarters of a stage's replicas."""
    found: list[Seats] = []
    for (a, tp_a), (b, tp_b) in product(pure, pure):
        if a < b:
            counts = sorted({dp // 4, dp // 2, 3 * dp // 4} - {0, dp})
            found += [((a, tp_a, n), (b, tp_b, dp - n)) for n in counts]
    return found


def _fits_fleet(stages: list[Seats], fleet: HeteroFleet) -> bool:
    used: dict[str, int] = {}
    for seats in stages:
        for device, tp, count in seats:
            used[device] = used.get(device, 0) + tp * count
    return all(count <= fleet.num_devices[device] for device, count in used.items())


class _Bounds:
    """Lower bounds of candidates; remembers what the same stage costs in all of them."""

    def __init__(self, fleet: HeteroFleet, model: HeteroModel) -> None:
        self.fleet = fleet
        self.model = model
        self.ring_bytes = 4.0 * float(model.layers.num_params.sum())
        self.hop_bytes = float(model.layers.output_bytes.min())
        self._whole: dict[tuple[int, Seats], float] = {}
        self._rates: dict[tuple[int, Seats], float] = {}

    def bound_s(self, candidate: _Candidate) -> float:
        """Return a time that no layer split of the candidate beats: compute and gradient ring."""
        batch, dp = candidate.micro_batch, candidate.dp
        whole = [self._whole_s(batch, seats) for seats in candidate.stages]
        rounds = self.fleet.global_batch // (batch * dp) - 1
        compute = rounds / sum(1.0 / w for w in whole) + min(whole)
        if dp == 1:
            return compute
        rates = sum(self._rate(dp, seats) for seats in candidate.stages)
        return compute + (2.0 * (dp - 1) / dp * self.ring_bytes / rates if rates > 0 else 0.0)

    def _whole_s(self, batch: int, seats: Seats) -> float:
        """Return the time of all layers on the slower type of the stage."""
        key = (batch, seats)
        if key not in self._whole:
            profiles = self.model.profiles
            self._whole[key] = max(float(profiles[d].times_s(batch, tp).sum()) for d, tp, _ in seats)
        return self._whole[key]

    def _rate(self, dp: int, seats: Seats) -> float:
        """Return the fastest rate of any message of a ring on the stage, its slower link counting."""
        key = (dp, seats)
        if key not in self._rates:
            pairs = [(a, b, tp) for a, tp, _ in seats for b, _, _ in seats if a == b or len(seats) > 1]
            links = [link for pair in pairs if (link := self.model.host_links.get(pair)) is not None]
            sizes = np.geomspace(1e4, self.ring_bytes / dp, 12)
            rates = [max(k.bytes_per_s(float(x)) for x in sizes) * k.collective_frac for k in links]
            self._rates[key] = min(rates, default=np.inf)
        return self._rates[key]


def _solved(candidate: _Candidate, fleet: HeteroFleet, model: HeteroModel) -> HeteroPlan | None:
    """Return the candidate with its best layer split, None if none fits or a link is unknown."""
    num_stages = len(candidate.stages)
    rounds = fleet.global_batch // (candidate.micro_batch * candidate.dp)
    times = np.array(
        [
            np.max([model.profiles[d].times_s(candidate.micro_batch, tp) for d, tp, _ in seats], axis=0)
            for seats in candidate.stages
        ]
    )
    layers, terms = model.layers, model.memory
    per_layer, limit = [], []
    for i, seats in enumerate(candidate.stages):
        in_flight = min(rounds, num_stages - i) * candidate.micro_batch
        tp = min(degree for _, degree, _ in seats)
        kept = layers.activation_bytes / tp + terms.residual_tensors * layers.residual_bytes
        per_layer.append(terms.bytes_per_param * layers.num_params / tp + in_flight * kept)
        limit.append(min(fleet.limit_bytes[device] for device, _, _ in seats))
    ring = _ring_per_layer_s(candidate, model) / rounds
    outcome = solve_stage_split(
        StageSplitProblem(
            layer_s=times + ring,
            num_micro_batches=rounds,
            layer_bytes=np.array(per_layer),
            base_bytes=np.full(num_stages, terms.constant_bytes),
            limit_bytes=np.array(limit),
        )
    )
    if outcome.solution is None:
        return None
    plan = HeteroPlan(
        stages=tuple(
            HeteroStage(num_layers=n, replicas=tuple((d, tp) for d, tp, count in seats for _ in range(count)))
            for n, seats in zip(outcome.solution.num_layers, candidate.stages, strict=True)
        ),
        micro_batch=candidate.micro_batch,
        global_batch=fleet.global_batch,
    )
    try:
        hetero_cost(plan, model)
    except OutOfDomainError:
        return None
    return plan


def _ring_per_layer_s(
    candidate: _Candidate, model: HeteroModel
) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Return each layer's share of its stage's gradient ring at its slowest type's peak rate. shape (P, L)"""
    dp = candidate.dp
    size = 4.0 * model.layers.num_params * 2.0 * (dp - 1) / dp
    rows = []
    for seats in candidate.stages:
        links = [model.host_links.get((device, device, tp)) for device, tp, _ in seats]
        rates = [link.collective_frac * link.peak_bytes_per_s for link in links if link is not None]
        rows.append(size / min(rates) if rates else np.zeros_like(size))
    return np.array(rows)
