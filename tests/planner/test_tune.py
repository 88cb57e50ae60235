from dataclasses import replace

import numpy as np
import pytest

import planner.tune as module
from costmodels.strategy import Strategy
from hardware.errors import InputError, OutOfDomainError
from planner.request import TrainRequest
from planner.tune import Candidate, TuneRequest, command_runner, expected_gain, tune

REQUEST = TrainRequest(model="gpt3-13b", cluster="dgx-a100", seq_len=2048, global_batch=64)


def grid() -> list[Candidate]:
    found = []
    for tp in (1, 2, 4, 8):
        for pp in (1, 2, 4):
            for micro in (1, 2, 4):
                row = Strategy(tp=tp, pp=pp, dp=64 // (tp * pp), micro_batch=micro)
                point = tuple(float(np.log2(max(int(getattr(row, n)), 1))) for n in module._AXES)
                predicted = 1.0 + 0.1 * np.log2(tp) + 0.05 * pp + 0.02 * micro
                found.append(Candidate(strategy=row, predicted_s=float(predicted), point=point))
    return sorted(found, key=lambda c: c.predicted_s)


def truth(row: Strategy) -> float:
    """Micro-batches of one cost more, and deep pipelines less, than predicted."""
    predicted = 1.0 + 0.1 * float(np.log2(row.tp)) + 0.05 * row.pp + 0.02 * row.micro_batch
    return predicted * (1.25 if row.micro_batch == 1 else 1.0) * (0.95 if row.pp == 4 else 1.0)


def test_a_quarter_of_the_runs_comes_within_two_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "candidates", lambda request: grid())
    found = tune(REQUEST, truth, TuneRequest(min_gain_frac=0.0))
    best = min(truth(c.strategy) for c in grid())
    assert found["num_runs"] <= len(grid()) // 4
    assert found["best"]["measured_s"] <= 1.02 * best


def test_it_stops_when_nothing_is_to_be_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "candidates", lambda request: grid())
    found = tune(REQUEST, truth, TuneRequest(min_gain_frac=0.9))
    assert found["num_runs"] == 1
    assert "no candidate" in found["stopped"]


def test_runs_that_fail_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "candidates", lambda request: grid())

    def run(row: Strategy) -> float:
        if row.tp == 1:
            message = "out of memory"
            raise OutOfDomainError(message)
        return truth(row)

    found = tune(REQUEST, run, TuneRequest(max_runs=20, min_gain_frac=0.0))
    assert any(r["measured_s"] is None for r in found["runs"])
    assert "tp=1" not in found["best"]["strategy"]
    with pytest.raises(OutOfDomainError, match="none of 2 runs"):
        tune(REQUEST, lambda row: command_runner("false")(row), TuneRequest(max_runs=2))


def test_gain_grows_with_doubt_and_with_speed() -> None:
    assert expected_gain(1.0, 0.0, 0.2) > expected_gain(1.0, 0.0, 0.1) > 0
    assert expected_gain(1.0, -0.2, 0.1) > expected_gain(1.0, 0.0, 0.1)


def test_a_command_prints_its_seconds_last() -> None:
    run = command_runner("echo tp {tp} took 0.25")
    assert run(replace(Strategy(), tp=4)) == 0.25
    with pytest.raises(OutOfDomainError, match="no positive number"):
        command_runner("echo tp is nothing")(Strategy())
    with pytest.raises(OutOfDomainError, match="no-such-program"):
        command_runner("no-such-program {tp}")(Strategy())
    with pytest.raises(InputError, match="'tq' is no column of a strategy"):
        command_runner("echo {tq}")
