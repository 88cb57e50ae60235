import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hardware.errors import SpecError
from planner.cli.main import build_app
from planner.emit.power_commands import power_emission
from planner.plan_io import read_plan
from planner.power.flow import plan_power
from planner.power.plan import CapRow, PowerPlan, ServingCaps
from planner.power.request import PowerRequest, RowSection, read_load_trace, read_power_request


def _run(*words):
    return CliRunner().invoke(build_app(list(words)), list(words))


@pytest.fixture(scope="module")
def train_plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("power") / "train.json"
    words = (
        "plan train --model gpt3-13b --cluster dgx-a100 --nodes 4 --seq-len 2048 --global-batch 32 --top 1"
    )
    request = path.with_suffix(".yaml")
    request.write_text("allow: {pp: [4], vpp: [1]}\n")
    result = _run(*words.split(), "--request", str(request), "-o", str(path))
    assert result.exit_code == 0, result.output
    return path


def test_the_clocks_of_a_training_plan_save_energy_and_keep_every_deadline(train_plan, tmp_path):
    target = tmp_path / "power.json"
    result = _run(
        "plan", "power", "--plan", str(train_plan), "-o", str(target), "--commands", str(tmp_path / "c")
    )
    assert result.exit_code == 0, result.output
    clocks = read_plan(target).plans[0].training
    saved = [p.saved_frac for p in clocks.points]
    assert saved == sorted(saved)
    assert saved[0] > 0.02
    for p in clocks.points:
        assert -1e-6 <= p.static_saved_frac <= p.saved_frac + 1e-6
        assert p.rounded_saved_frac <= p.saved_frac + 1e-6
    assert len(clocks.points[0].operation_clocks_mhz) == clocks.num_stages == 4
    assert (tmp_path / "c" / "nvidia-smi" / "stage-0.sh").exists()
    assert (tmp_path / "c" / "nvidia-smi" / "stage-0.rollback.sh").exists()


def test_a_row_plan_is_written_drawn_and_read_back(tmp_path):
    request = tmp_path / "row.yaml"
    request.write_text("row: {servers: 10, hours: 1, seeds: 1, most_extra_frac: 0.2}\n")
    target = tmp_path / "row.json"
    shown = _run("plan", "power", "--request", str(request), "-o", str(target))
    assert shown.exit_code == 0, shown.output
    assert "row power over budget" in shown.output
    row = read_plan(target).plans[0].row
    assert row.num_servers >= 10
    assert all(c.holds for c in read_plan(target).plans[0].certificate)
    printed = _run("plan", "power", "--request", str(request), "--json")
    assert json.loads(printed.output)["kind"] == "power"


def test_a_training_row_gets_no_credit_and_its_ramp_is_checked(tmp_path):
    request = tmp_path / "row.yaml"
    request.write_text("row: {work: training, servers: 40, prompt_frac: 1.0, valley_frac: 0.2}\n")
    target = tmp_path / "row.json"
    assert _run("plan", "power", "--request", str(request), "-o", str(target)).exit_code == 0
    plan = read_plan(target).plans[0]
    assert plan.row.num_servers == int(40 * 6500 / (3090 + 8 * 400))
    ramp = plan.certificate[0]
    assert not ramp.holds  # 41 servers x 2,560 W over 260 kW
    assert "40.4 %" in ramp.detail


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("row: {servers: 40, budget_w: 1000}", "bad.yaml: row.budget_w: 1000 W is below the idle draw"),
        ("row: {classes: {high: 1.5, low: -0.5}}", "row.classes.high: 1.5 is not a share from 0 to 1"),
        ("row: {low_clocks_mhz: [1110, 1275]}", "row.low_clocks_mhz: 1110, 1275 MHz rise"),
        ("row: {classes: {gold: 1.0}}", "row.classes.gold: unknown class; known: high, low"),
        ("row: {classes: {high: 0.5, low: 0.2}}", "add up to 0.7"),
        ("row: {high_clock_mhz: 2000}", "high_clock_mhz: 2000 MHz is outside"),
        ("row: {colour: red}", "colour"),
        ("catalog: []", "one of row, training and serving"),
        ("serving: {plan: none.json}", "none.json: cannot be read"),
    ],
)
def test_bad_requests_name_key_and_value(tmp_path, text, match):
    request = tmp_path / "bad.yaml"
    request.write_text(text + "\n")
    result = _run("plan", "power", "--request", str(request))
    assert result.exit_code == 2
    assert match in " ".join(result.output.split())


def test_a_cap_outside_the_devices_range_is_refused(train_plan, tmp_path):
    request = tmp_path / "clocks.yaml"
    request.write_text(f"training: {{plan: {train_plan}, device_cap_w: 50}}\n")
    result = _run("plan", "power", "--request", str(request))
    assert result.exit_code == 2
    assert "a cap of 50 W is outside what a100-80gb accepts: 100 to 400 W" in " ".join(result.output.split())


def test_a_stage_budget_that_nothing_meets_is_infeasible(train_plan, tmp_path):
    request = tmp_path / "clocks.yaml"
    request.write_text(f"training: {{plan: {train_plan}, stage_budget_w: 100}}\n")
    result = _run("plan", "power", "--request", str(request))
    assert result.exit_code == 3
    assert "training.stage_budget_w: 100 W is below" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ("time_s,load\n0,0.5\n3600,0.5\n10800,0.5\n", "line 4: a gap"),
        ("time_s,load\n0,0.5\n43200,\n", "line 3: time_s and load must be numbers"),
        ("time_s,load\n0,0.5\n43200,1.5\n", "outside 0 to 1"),
        ("time_s,load\n0,0.5\n3600,0.5\n", "covers 7200 s"),
        ("when,load\n0,1\n", "needs the columns"),
    ],
)
def test_traces_with_gaps_are_refused(tmp_path, lines, match):
    path = tmp_path / "trace.csv"
    path.write_text(lines)
    with pytest.raises(SpecError, match=match):
        read_load_trace(str(path))


def test_a_trace_of_a_day_replaces_the_wave(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("time_s,load\n0,0.2\n43200,0.6\n")
    workload = RowSection(trace=str(path)).settings().workload
    assert workload.load([0.0, 50_000.0]).tolist() == [0.2, 0.6]


def _serving(device: str) -> PowerPlan:
    pool = CapRow(
        pool="a", device=device, role="decode", num_devices=8, natural_w=400.0, cap_w=350.0, inert=False,
        clock_frac=0.8, throughput_frac=0.98, watts=350.0, below_floor=False,
    )  # fmt: skip
    return PowerPlan(
        serving=ServingCaps(pools=(pool,), natural_w=3200.0, watts=2800.0, joules_per_token=None, latency={})
    )


def test_command_files_are_shell_that_prints_by_default_and_each_has_a_rollback(tmp_path):
    files = power_emission(_serving("h100")).files
    assert set(files) == {
        f"{tool}/pool-a{end}" for tool in ("nvidia-smi", "dcgm", "redfish") for end in (".sh", ".rollback.sh")
    }
    for name, text in files.items():
        path = tmp_path / name.replace("/", "-")
        path.write_text(text)
        subprocess.run(["bash", "-n", str(path)], check=True)
    path = tmp_path / "nvidia-smi-pool-a.sh"
    shown = subprocess.run(
        ["bash", str(path)],
        env={"DEVICES": "0 1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shown == [f"nvidia-smi -i {d} {rest} " for d in (0, 1) for rest in ("-pm 1", "-pl 350")]


def test_amd_devices_get_their_own_tools():
    files = power_emission(_serving("mi300x")).files
    assert 'run rocm-smi -d "$d" --setpoweroverdrive 350' in files["rocm-smi/pool-a.sh"]
    assert 'run amd-smi reset -g "$d" --power-cap' in files["amd-smi/pool-a.rollback.sh"]
    assert not any(name.startswith("nvidia") for name in files)


def test_an_empty_request_is_no_row():
    assert PowerRequest().row is None


def test_explain_shows_a_power_plan_again(tmp_path):
    request = tmp_path / "row.yaml"
    request.write_text("row: {work: training}\n")
    target = tmp_path / "row.json"
    assert _run("plan", "power", "--request", str(request), "-o", str(target)).exit_code == 0
    shown = _run("explain", str(target))
    assert shown.exit_code == 0
    assert "ramp" in shown.output


def test_a_straggler_is_answered_with_the_latest_deadline_it_allows(train_plan, tmp_path):
    first = plan_power(read_power_request(None, str(train_plan), {})).plans[0].training
    assert first is not None
    asked = tmp_path / "power.yaml"
    slow = 1.07 * first.fastest_s
    asked.write_text(f"training: {{plan: {train_plan}, straggler_s: {slow}}}\n", encoding="utf-8")
    training = plan_power(read_power_request(str(asked), None, {})).plans[0].training
    assert training is not None
    assert training.straggler_deadline_s == pytest.approx(slow)
    point = next(p for p in training.points if p.deadline_s == training.straggler_deadline_s)
    assert point.saved_frac > first.points[2].saved_frac


@pytest.mark.parametrize("name", ["row", "training", "serving"])
def test_an_examples_tables_stand_in_eighty_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    plans = Path(__file__).parents[2] / "examples" / "power" / "plans"
    shown = _run("explain", str(plans / f"{name}.plan.json")).output
    tables = [line for line in shown.splitlines() if "   " in line.strip() and "note:" not in line]
    assert tables
    assert max(map(len, tables)) <= 80
    assert shown == (plans / f"{name}.txt").read_text(encoding="utf-8")
