"""The rank -> device mapping that the files produce equals the plan's placement, replayed with Megatron's
own arithmetic of rank groups.
"""

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from planner.emit.emission import Origin
from planner.emit.emit_plan import emit_plan
from planner.emit.network import crossing_groups
from planner.emit.rank_order import ORDERS
from planner.emit.training_launch import TrainingLaunch, training_launch
from planner.plan_io import read_plan
from tests.planner.emit.cases import plan_path

ORIGIN = Origin(plan_sha256="0", plan_number=1, target="megatron-lm", version="0.20", tool_version="0")


def megatron_groups(sizes: dict[str, int], order: tuple[str, ...], axis: str) -> list[list[int]]:
    """Megatron's groups of one axis: ranks are numbered with the first axis of the order fastest."""
    world = int(np.prod(list(sizes.values())))
    grid = np.arange(world).reshape([sizes[name] for name in reversed(order)])
    moved = np.moveaxis(grid, list(reversed(order)).index(axis), -1)
    return [list(map(int, row)) for row in moved.reshape(-1, sizes[axis])]


def moved_plan(tmp_path: Path, name: str, change: Any) -> str:
    """A plan whose ranks sit elsewhere: `change` maps (host number, device) to another such place."""
    document = json.loads(Path(plan_path(name)).read_text())
    ranks = document["plans"][0]["placement"]["ranks"]
    hosts = list(dict.fromkeys(r["host"] for r in ranks))
    for entry in ranks:
        number, device = change(hosts.index(entry["host"]), entry["device"])
        entry["host"], entry["device"] = hosts[number], device
    path = tmp_path / "moved.json"
    path.write_text(json.dumps(document))
    return str(path)


def launch_of(path: str) -> TrainingLaunch:
    return training_launch(read_plan(path), ORIGIN)


def check_replay(path: str) -> TrainingLaunch:
    """Every Megatron group runs on the devices whose coordinates the plan gave it, in their order."""
    launch = launch_of(path)
    ranks = json.loads(Path(path).read_text())["plans"][0]["placement"]["ranks"]
    at = {(r["host"], r["device"]): r["coordinates"] for r in ranks}
    s = launch.strategy
    sizes = {"tp": s.tp, "cp": s.cp, "dp": s.dp, "pp": s.pp}
    for axis in sizes:
        for group in megatron_groups(sizes, ORDERS[launch.rank_order], axis):
            places = [at[launch.seats[r].host, launch.seats[r].device] for r in group]
            assert [place[axis] for place in places] == list(range(sizes[axis]))
            others = [{k: v for k, v in p.items() if k in sizes and k != axis} for p in places]
            assert all(other == others[0] for other in others)
    return launch


@pytest.mark.parametrize("name", ["gpt3", "uneven", "mixtral", "context", "tensor", "ascend-stages"])
def test_default_placement(name: str) -> None:
    launch = check_replay(plan_path(name))
    assert launch.is_default_order
    assert launch.is_grouped


@pytest.mark.parametrize("seed", range(5))
def test_permuted_hosts(tmp_path: Path, seed: int) -> None:
    order = list(range(4))
    random.Random(seed).shuffle(order)
    path = moved_plan(tmp_path, "mixtral", lambda host, device: (order[host], device))
    launch = check_replay(path)
    assert [host.index for host in launch.hosts] == order
    script = emit_plan(path, "megatron-lm", scheduler="slurm").files["job.sbatch"]
    assert f"ORDER=({' '.join(map(str, order))})" in script
    assert "--distribution=arbitrary" in script


def test_permuted_devices_inside_hosts(tmp_path: Path) -> None:
    path = moved_plan(tmp_path, "mixtral", lambda host, device: (host, 7 - device))
    assert check_replay(path).is_grouped
    script = emit_plan(path, "megatron-lm").files["train.sh"]
    assert "CUDA_VISIBLE_DEVICES=7,6,5,4,3,2,1,0" in script


def test_scattered_ranks_start_one_by_one(tmp_path: Path) -> None:
    path = moved_plan(tmp_path, "mixtral", lambda host, device: (device % 4, host * 2 + device // 4))
    launch = check_replay(path)
    assert not launch.is_grouped
    script = emit_plan(path, "megatron-lm").files["train.sh"]
    assert "exec torchrun" not in script
    assert "WORLD_SIZE=32" in script


def with_stages_inside_hosts(tmp_path: Path, name: str) -> str:
    document = json.loads(Path(plan_path(name)).read_text())
    plan = document["plans"][0]
    tp, pp = plan["strategy"]["tp"], plan["strategy"]["pp"]
    hosts = list(dict.fromkeys(entry["host"] for entry in plan["placement"]["ranks"]))
    seats = list(product(hosts, range(8)))
    for entry in plan["placement"]["ranks"]:
        c = entry["coordinates"]
        entry["host"], entry["device"] = seats[c["tp"] + tp * (c["pp"] + pp * c["dp"])]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_pipeline_neighbours_use_the_other_order(tmp_path: Path) -> None:
    """Stages side by side on one host: only the order with pp before dp keeps hosts together."""
    path = with_stages_inside_hosts(tmp_path, "tensor")
    launch = check_replay(path)
    assert launch.rank_order == "tp-cp-ep-pp-dp"
    assert launch.is_grouped
    assert "--use-tp-pp-dp-mapping" in emit_plan(path, "megatron-lm").files["train.sh"]
    assert "dist.use_tp_pp_dp_mapping=true" in emit_plan(path, "megatron-bridge").files["train.sh"]


def test_experts_spread_over_replicas_keep_the_default_order(tmp_path: Path) -> None:
    """Megatron refuses the other order unless experts have as many replicas as the rest."""
    path = with_stages_inside_hosts(tmp_path, "mixtral")
    launch = check_replay(path)
    assert launch.rank_order == "tp-cp-ep-dp-pp"
    assert not launch.is_grouped
    assert "--use-tp-pp-dp-mapping" not in emit_plan(path, "megatron-lm").files["train.sh"]


def test_named_hosts_reach_every_file(tmp_path: Path) -> None:
    names = tmp_path / "hosts"
    names.write_text("# rack 1\nnode-a\nnode-b\nnode-c\nnode-d\n")
    files = emit_plan(plan_path("mixtral"), "megatron-lm", scheduler="slurm", hosts=str(names)).files
    assert files["hosts.txt"] == "node-a\nnode-b\nnode-c\nnode-d\n"
    assert "8\tnode-b\t0\n" in files["ranks.tsv"]
    assert "#SBATCH --nodelist=node-a,node-b,node-c,node-d" in files["job.sbatch"]
    pinned = emit_plan(plan_path("mixtral"), "megatron-lm", scheduler="kubernetes", hosts=str(names)).files
    assert pinned["jobset.yaml"].count("kubernetes.io/hostname: node-") == 4


def test_one_island_crosses_nothing() -> None:
    launch = launch_of(plan_path("mixtral"))
    assert crossing_groups(launch) == {"tp": False, "cp": False, "dp": False, "pp": False}


def test_mixed_halls_use_sockets_only_where_they_must(tmp_path: Path) -> None:
    """Only the pipeline leaves a hall, so its communicators take what both halls have."""
    document = json.loads(Path(plan_path("mixed-halls")).read_text())
    examples = Path(__file__).parents[3] / "examples" / "clusters"
    document["request"]["cluster"] = str(examples / document["request"]["cluster"])
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    launch = check_replay(str(path))
    assert crossing_groups(launch) == {"tp": False, "cp": False, "dp": False, "pp": True}
    emission = emit_plan(str(path), "megatron-lm", scheduler="slurm")
    networks = {k: v["net_name"] for k, v in yaml.safe_load(emission.files["communicators.yaml"]).items()}
    assert networks == {
        "tp": "IB", "dp": "IB", "dp_cp": "IB", "pp": "socket", "mp": "socket", "embd": "socket",
        "pos_embd": "socket",
    }  # fmt: skip
    assert "'Et*11|t*9|t*3|t*4|t*4|tL'" in emission.files["train.sh"]
    assert "  8|9|10" in emission.files["env.sh"]
    assert "NCCL_IB_GID_INDEX" in emission.files["env.sh"]
    assert [c.feature for c in emission.caveats] == ["placement.ranks"]
