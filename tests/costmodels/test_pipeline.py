"""Closed forms and the recurrence against a small event-driven simulation written on its own."""

import heapq
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.training.pipeline import (
    Kind,
    Schedule,
    StageTimes,
    bubble_s,
    exact_step_s,
    exact_timeline,
    flush_s,
    in_flight,
    rank_orders,
    zero_bubble_s,
)
from hardware.errors import OutOfDomainError


def simulate(orders, forward, backward, weight, down, up, *, overlap):
    """Event-driven: ranks start their next task when free and when its input has arrived.

    Returns the end of the last task and the most chunks that each rank held activations of.
    """
    pp, last = len(orders), len(forward) - 1
    arrived, at = {}, [0] * pp
    busy = [False] * pp
    held, peak = [0] * pp, [0] * pp
    events, finish = [(0.0, 0, "tick", None)], 0.0
    counter = 0

    def ready(rank):
        if busy[rank] or at[rank] == len(orders[rank]):
            return None
        kind, chunk, i = orders[rank][at[rank]]
        stage = chunk * pp + rank
        if kind is Kind.FORWARD and stage == 0:
            return kind, stage, i
        return (kind, stage, i) if (kind, stage, i) in arrived else None

    while events:
        now, _, what, detail = heapq.heappop(events)
        if what == "arrive":
            arrived[detail] = now
        elif what == "free":
            busy[detail] = False
        elif what == "done":
            rank, kind, stage, i = detail
            finish = max(finish, now)
            following = []
            if kind is Kind.FORWARD:
                following = (
                    [((Kind.FORWARD, stage + 1, i), down[stage])]
                    if stage < last
                    else [((Kind.BACKWARD, stage, i), 0.0)]
                )
            elif kind is Kind.BACKWARD:
                held[rank] -= 1
                arrived[Kind.WEIGHT, stage, i] = now
                following = [((Kind.BACKWARD, stage - 1, i), up[stage - 1])] if stage else []
            for task, delay in following:
                counter += 1
                heapq.heappush(events, (now + delay, counter, "arrive", task))
            hold = following[0][1] if following and not overlap else 0.0
            counter += 1
            heapq.heappush(events, (now + hold, counter, "free", rank))
        if events and events[0][0] == now:
            continue
        for rank in range(pp):
            task = ready(rank)
            if task is None:
                continue
            kind, stage, i = task
            busy[rank] = True
            at[rank] += 1
            if kind is Kind.FORWARD:
                held[rank] += 1
                peak[rank] = max(peak[rank], held[rank])
            counter += 1
            duration = {Kind.FORWARD: forward, Kind.BACKWARD: backward, Kind.WEIGHT: weight}[kind][stage]
            heapq.heappush(events, (now + duration, counter, "done", (rank, kind, stage, i)))
    assert all(at[r] == len(orders[r]) for r in range(pp))
    return finish, peak


durations = st.floats(0.2, 3.0)
schedules = st.sampled_from([Schedule.GPIPE, Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED, Schedule.ZB_H1])


@settings(max_examples=60, deadline=None)
@given(st.data(), schedules, st.integers(1, 4), st.booleans())
def test_recurrence_equals_simulation(data, schedule, pp, overlap):
    vpp = data.draw(st.integers(1, 3)) if schedule is Schedule.INTERLEAVED else 1
    m = pp * data.draw(st.integers(1, 3)) if vpp > 1 else data.draw(st.integers(1, 9))
    n = pp * vpp
    forward, backward, weight, down, up = (
        data.draw(st.lists(durations, min_size=n, max_size=n)) for _ in range(5)
    )
    orders = rank_orders(schedule, pp, m, vpp)
    simulated, _ = simulate(orders, forward, backward, weight, down, up, overlap=overlap)
    times = StageTimes(
        forward_s=np.array([forward]),
        backward_s=np.array([backward]),
        weight_s=np.array([weight]) if schedule is Schedule.ZB_H1 else None,
        forward_hop_s=np.array([down[: n - 1]]),
        backward_hop_s=np.array([up[: n - 1]]),
    )
    exact = exact_step_s(schedule, times, pp=pp, num_micro_batches=m, vpp=vpp, overlap_p2p=overlap)
    assert exact[0] == pytest.approx(simulated, rel=1e-9)


def equal(schedule, pp, m, vpp, forward, backward, hop, *, overlap, weight=None):
    n = pp * vpp
    times = StageTimes(
        forward_s=np.full((1, n), forward / vpp),
        backward_s=np.full((1, n), backward / vpp),
        weight_s=None if weight is None else np.full((1, n), weight),
        forward_hop_s=np.full((1, n - 1), hop),
        backward_hop_s=np.full((1, n - 1), hop),
    )
    return float(exact_step_s(schedule, times, pp=pp, num_micro_batches=m, vpp=vpp, overlap_p2p=overlap)[0])


def rows(**values):
    return {key: np.array([value]) for key, value in values.items()}


def closed(pp, m, vpp, forward, backward, hop, *, overlap):
    shape = rows(pp=pp, num_micro_batches=m, vpp=vpp, hop_s=hop, overlap_p2p=overlap)
    return float(flush_s(np.full((3, 1), forward), np.full((3, 1), backward), **shape)[0])


def test_one_f_one_b_by_hand():
    """Four stages of 1 s + 2 s and eight micro-batches: (8 + 3) * 3 s."""
    assert closed(4, 8, 1, 1.0, 2.0, 0.0, overlap=False) == 33.0
    assert equal(Schedule.ONE_F_ONE_B, 4, 8, 1, 1.0, 2.0, 0.0, overlap=False) == 33.0


def test_interleaving_divides_the_bubble():
    idle = bubble_s(np.array([1.0]), np.array([2.0]), np.array([4]), np.array([8]), np.array([2]))
    assert idle[0] == 4.5
    assert closed(4, 8, 2, 1.0, 2.0, 0.0, overlap=False) == 28.5
    assert equal(Schedule.INTERLEAVED, 4, 8, 2, 1.0, 2.0, 0.0, overlap=False) == 28.5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 30), durations, durations, st.floats(0, 0.02))
def test_one_f_one_b_with_overlapped_sends_is_exact(pp, m, forward, backward, hop):
    exact = equal(Schedule.ONE_F_ONE_B, pp, m, 1, forward, backward, hop, overlap=True)
    assert closed(pp, m, 1, forward, backward, hop, overlap=True) == pytest.approx(exact, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(2, 4), durations, durations)
def test_interleaved_without_sends_is_exact(pp, groups, vpp, forward, backward):
    m = pp * groups
    exact = equal(Schedule.INTERLEAVED, pp, m, vpp, forward, backward, 0.0, overlap=True)
    assert closed(pp, m, vpp, forward, backward, 0.0, overlap=True) == pytest.approx(exact, rel=1e-9)


def uneven(pp, m, first, last, ratio):
    """Return closed form and exact length of 1F1B with other first and last stages and free sends."""
    scale = np.array([first, *[1.0] * (pp - 2), last])[None]
    times = StageTimes(forward_s=scale, backward_s=ratio * scale)
    three = np.array([[first], [1.0], [last]])
    shape = rows(pp=pp, num_micro_batches=m, vpp=1, hop_s=0.0, overlap_p2p=False)
    exact = exact_step_s(Schedule.ONE_F_ONE_B, times, pp=pp, num_micro_batches=m)[0]
    return float(flush_s(three, ratio * three, **shape)[0]), float(exact)


ends = st.sampled_from([(1.0, 3.0), (0.3, 1.0)])


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(2, 8), st.integers(1, 30), ends, st.floats(1.0, 3.0))
def test_both_ends_heavier_or_both_lighter_is_exact(data, pp, m, bounds, ratio):
    first, last = data.draw(st.floats(*bounds)), data.draw(st.floats(*bounds))
    closed_s, exact_s = uneven(pp, m, first, last, ratio)
    assert closed_s == pytest.approx(exact_s, rel=1e-9)


@settings(max_examples=80, deadline=None)
@given(st.floats(0.3, 3.0), st.floats(0.3, 3.0), st.integers(2, 8), st.integers(1, 30), st.floats(1.0, 3.0))
def test_mixed_ends_are_bounded_from_below(first, last, pp, m, ratio):
    closed_s, exact_s = uneven(pp, m, first, last, ratio)
    assert closed_s <= exact_s * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), durations, st.floats(0.2, 1.0), st.floats(0.0, 1.0))
def test_zero_bubble_h1_with_equal_forward_and_input_gradient(pp, groups, unit, grad, share):
    weight = share * unit * min(grad, 1.0)
    exact = equal(Schedule.ZB_H1, pp, pp * groups, 1, unit, unit, 0.0, overlap=True, weight=weight)
    passes = (np.array([unit]), np.array([unit]), np.array([weight]))
    shape = rows(pp=pp, num_micro_batches=pp * groups)
    assert zero_bubble_s(Schedule.ZB_H1, *passes, **shape)[0] == pytest.approx(exact, rel=1e-9)


def test_v_schedule_has_no_bubble_when_the_passes_are_equal():
    one = np.array([1.0])
    assert zero_bubble_s(Schedule.ZB_V, one, one, one, **rows(pp=8, num_micro_batches=16))[0] == 48.0
    assert zero_bubble_s(Schedule.DUALPIPE, one, one, one, **rows(pp=8, num_micro_batches=16))[0] == 48.0
    with pytest.raises(ValueError, match="accepted"):
        zero_bubble_s(Schedule.GPIPE, one, one, one, **rows(pp=8, num_micro_batches=16))


@settings(max_examples=40, deadline=None)
@given(schedules, st.integers(1, 5), st.integers(1, 4), st.integers(2, 3))
def test_micro_batches_in_flight_are_what_the_simulation_holds(schedule, pp, groups, chunks):
    vpp = chunks if schedule is Schedule.INTERLEAVED else 1
    m, n = pp * groups, pp * vpp
    orders = rank_orders(schedule, pp, m, vpp)
    _, peak = simulate(orders, [1.0] * n, [2.0] * n, [0.0] * n, [0.0] * n, [0.0] * n, overlap=True)
    held = in_flight(schedule, np.arange(pp), np.full(pp, pp), np.full(pp, m), vpp)
    if schedule is Schedule.ZB_H1:
        assert np.all(held >= np.array(peak))
        assert held[0] == peak[0]
    else:
        assert held.tolist() == [p / vpp for p in peak]


def test_interleaving_holds_more_on_the_first_rank():
    held = in_flight(Schedule.INTERLEAVED, np.array([0]), np.array([8]), np.array([64]), np.array([2]))
    assert held[0] == 8 * (1 + 7 / 16)


def test_sends_of_interleaved_schedules_with_equal_stages():
    for pp, m, vpp in ((2, 8, 2), (4, 8, 2), (4, 16, 4), (8, 32, 2), (4, 4, 2)):
        for overlap in (False, True):
            exact = equal(Schedule.INTERLEAVED, pp, m, vpp, 4.0, 8.0, 0.001, overlap=overlap)
            assert closed(pp, m, vpp, 4.0, 8.0, 0.001, overlap=overlap) == pytest.approx(exact, rel=1e-9)


def test_timeline_names_its_tasks_and_never_overlaps_a_rank():
    times = StageTimes(forward_s=np.full((1, 4), 1.0), backward_s=np.full((1, 4), 2.0))
    start, end, what = exact_timeline(Schedule.INTERLEAVED, times, pp=2, num_micro_batches=4, vpp=2)
    assert len(what) == 2 * 4 * 4
    for rank in range(2):
        mine = sorted((start[j, 0], end[j, 0]) for j, task in enumerate(what) if task[2] == rank)
        assert all(a[1] <= b[0] for a, b in pairwise(mine))


def test_many_configurations_at_once():
    scale = np.array([[1.0, 1.0], [1.0, 2.0], [3.0, 1.0]])
    together = exact_step_s(
        Schedule.ONE_F_ONE_B, StageTimes(forward_s=scale, backward_s=2 * scale), pp=2, num_micro_batches=5
    )
    alone = [
        exact_step_s(
            Schedule.ONE_F_ONE_B,
            StageTimes(forward_s=row[None], backward_s=2 * row[None]),
            pp=2,
            num_micro_batches=5,
        )[0]
        for row in scale
    ]
    assert together.tolist() == alone


def test_bad_questions_are_refused():
    times = StageTimes(forward_s=np.ones((1, 3)), backward_s=np.ones((1, 3)))
    with pytest.raises(OutOfDomainError, match="columns"):
        exact_step_s(Schedule.ONE_F_ONE_B, times, pp=2, num_micro_batches=4)
    with pytest.raises(OutOfDomainError, match="weight_s"):
        exact_step_s(Schedule.ZB_H1, times, pp=3, num_micro_batches=4)
    with pytest.raises(OutOfDomainError, match="closed form"):
        exact_step_s(Schedule.DUALPIPE, times, pp=3, num_micro_batches=4)
    ragged = StageTimes(forward_s=np.ones((1, 16)), backward_s=np.ones((1, 16)))
    with pytest.raises(OutOfDomainError, match="deadlock"):
        exact_step_s(Schedule.INTERLEAVED, ragged, pp=4, num_micro_batches=5, vpp=4)
