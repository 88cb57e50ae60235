import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from solvers.pareto import pareto_front


def test_hand_worked_front() -> None:
    first = np.array([3.0, 1.0, 2.0, 2.0, 4.0])
    second = np.array([1.0, 5.0, 3.0, 4.0, 1.0])
    assert pareto_front(first, second).tolist() == [1, 2, 0]


def test_nothing_in_nothing_out() -> None:
    assert pareto_front(np.array([]), np.array([])).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25))
def test_agrees_with_the_definition(points: list[tuple[int, int]]) -> None:
    found = {points[i] for i in pareto_front(*np.array(points, dtype=float).T)}
    wanted = {p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)}
    assert found == wanted
