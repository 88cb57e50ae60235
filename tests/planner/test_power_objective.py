import json
from dataclasses import replace

import pytest

from costmodels.job import TrainingJob
from costmodels.models import find_model
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import evaluate
from hardware.catalog import find_cluster
from hardware.errors import InputError
from planner.request import TrainRequest
from planner.training.power_objective import power_view


def _request(**other):
    return TrainRequest(model="gpt3-13b", cluster="dgx-a100", nodes=2, seq_len=2048, global_batch=32, **other)


CLUSTER = find_cluster("dgx-a100", 2)
JOB = TrainingJob(model=find_model("gpt3-13b"), seq_len=2048, global_batch=32)
ROWS = ConfigTable.from_strategies([Strategy(tp=4, pp=2, dp=2, zero=1)])


def test_no_budget_and_no_objective_change_nothing():
    view = power_view(_request(), JOB, CLUSTER)
    assert (view.cap_w, view.throughput_frac, view.notes) == (None, 1.0, ())


def test_a_budget_becomes_a_cap_per_device_that_slows_kernels():
    loose, tight = (power_view(_request(power_budget_w=16 * w), JOB, CLUSTER) for w in (300.0, 200.0))
    assert (loose.cap_w, tight.cap_w) == (300.0, 200.0)
    assert tight.throughput_frac < loose.throughput_frac < 1.0


def test_a_budget_above_rated_power_is_inert_and_said_so():
    view = power_view(_request(power_budget_w=16 * 500.0), JOB, CLUSTER)
    assert view.cap_w is None
    assert "binds nothing" in view.notes[0]


@pytest.mark.parametrize(("watts", "match"), [(50.0, "draws idle"), (80.0, "accepts: 100 to 400 W")])
def test_budgets_below_what_a_device_accepts_are_refused(watts, match):
    with pytest.raises(InputError, match=match):
        power_view(_request(power_budget_w=16 * watts), JOB, CLUSTER)


def test_plans_carry_watts_and_joules_and_a_budget_slows_and_saves(meshwright, tmp_path):
    words = "plan train --model gpt3-13b --cluster dgx-a100 --nodes 2 --top 1 --json"
    words += " --seq-len 2048 --global-batch 32"
    plain = json.loads(meshwright(*words.split()).output)["plans"][0]["predicted"]
    capped = json.loads(meshwright(*words.split(), "--power-budget", "4000").output)["plans"][0]["predicted"]
    energy = json.loads(meshwright(*words.split(), "--objective", "energy").output)["plans"][0]["predicted"]
    assert plain["watts_per_device"] == pytest.approx(plain["energy_j"] / plain["step_s"] / 16)
    assert plain["joules_per_token"] == pytest.approx(plain["energy_j"] / (2048 * 32))
    assert capped["step_s"] > plain["step_s"]
    assert capped["watts_per_device"] <= 250.0 + 1e-6
    assert energy["energy_j"] <= plain["energy_j"] * (1 + 1e-9)


def test_cost_without_a_price_says_where_one_goes(meshwright):
    asked = ("plan", "train", "--model", "gpt3-1.3b", "--cluster", "atlas-910b", "--nodes", "1")
    said = meshwright(*asked, "--seq-len", "2048", "--global-batch", "64", "--objective", "cost")
    assert said.exit_code == 2
    assert "objective: 'cost' needs a price of ascend-910b; give it as `prices`" in said.stderr


def test_a_cap_slows_the_learned_correction_with_the_step_it_corrects():
    view = power_view(_request(power_budget_w=16 * 200.0), JOB, CLUSTER)
    plain = evaluate(JOB, CLUSTER, ROWS)
    corrected = replace(plain, correction_s=0.1 * (plain.step_s - plain.correction_s))
    slower = view.slowed(corrected)
    assert slower.correction_s / (slower.step_s - slower.correction_s) == pytest.approx(0.1)
