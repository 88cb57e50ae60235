"""How the hosts of a training job are started: by hand, by Slurm, by Ray, by SkyPilot."""

from collections.abc import Mapping
from dataclasses import replace

import yaml

from planner.emit.accelerator_names import skypilot_name, slurm_gres
from planner.emit.emission import Caveat, Emission, header
from planner.emit.kubernetes_training import with_kubernetes
from planner.emit.shell import FIRST_LINES
from planner.emit.training_launch import TrainingLaunch

__all__ = ["SCHEDULERS", "with_ray", "with_skypilot", "with_slurm", "with_torchrun"]


def _added(
    emission: Emission,
    files: Mapping[str, str],
    *,
    commands: frozenset[str] = frozenset(),
    caveats: tuple[Caveat, ...] = (),
) -> Emission:
    return replace(
        emission,
        files={**emission.files, **files},
        commands=emission.commands | commands,
        caveats=emission.caveats + caveats,
    )


def _unpinned(launch: TrainingLaunch, scheduler: str) -> tuple[Caveat, ...]:
    if launch.is_default_order and len({host.group for host in launch.hosts}) == 1:
        return ()
    what = f"{scheduler} chooses the machines; give --hosts with their names to pin node ranks to them"
    return (Caveat(feature="placement.ranks", instead=what),)


def with_torchrun(launch: TrainingLaunch, emission: Emission, *, named_hosts: bool) -> Emission:
    """Return `emission` with `launch.sh`, which starts `train.sh` on every host of hosts.txt over ssh.

    Node ranks are explicit: torchrun's dynamic rendezvous would order hosts by name.
    """
    if len(launch.hosts) == 1:
        body = "exec ./train.sh 0 127.0.0.1\n"
    else:
        body = (
            "mapfile -t HOSTS < hosts.txt\n"
            "PIDS=()\n"
            'for k in "${!HOSTS[@]}"; do\n'
            '  ssh -n -o BatchMode=yes "${HOSTS[k]}" \\\n'
            '    "cd $(printf %q "$PWD") && exec ./train.sh $k ${HOSTS[0]}" > "host-$k.log" 2>&1 &\n'
            '  PIDS+=("$!")\n'
            "done\n"
            "STATUS=0\n"
            'for pid in "${PIDS[@]}"; do wait "$pid" || STATUS=$?; done\n'
            'exit "$STATUS"\n'
        )
    text = (
        FIRST_LINES
        + header(launch.origin)
        + "# Starts the job from here; this folder must be at the same path on every host.\n"
        + 'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")"\n'
        + body
    )
    return _added(emission, {"launch.sh": text}, commands=frozenset({"launch.sh"}))


def with_slurm(launch: TrainingLaunch, emission: Emission, *, named_hosts: bool) -> Emission:
    """Return `emission` with `job.sbatch`; node ranks follow a hostfile, not Slurm's order of names."""
    nodes = len(launch.hosts)
    options = [
        "#SBATCH --job-name=meshwright",
        f"#SBATCH --nodes={nodes}",
        f"#SBATCH --ntasks={nodes}",
        "#SBATCH --ntasks-per-node=1",
    ]
    per_host = launch.ranks_per_host
    if per_host is not None:
        options.append(f"#SBATCH --gpus-per-node={slurm_gres(launch.device)}:{per_host}")
    if named_hosts:
        options.append(f"#SBATCH --nodelist={','.join(host.name for host in launch.hosts)}")
    options.append("#SBATCH --exclusive")
    if named_hosts:
        order = "cp hosts.txt hostfile.slurm\n"
    else:
        numbers = " ".join(str(host.index) for host in launch.hosts)
        order = (
            'mapfile -t HOSTS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")\n'
            "# Node rank k runs on the ORDER[k]-th machine of the allocation, in the cluster's own order.\n"
            f"ORDER=({numbers})\n"
            ": > hostfile.slurm\n"
            'for k in "${ORDER[@]}"; do printf "%s\\n" "${HOSTS[k]}" >> hostfile.slurm; done\n'
            "cp hostfile.slurm hosts.txt\n"
        )
    text = (
        FIRST_LINES
        + "\n".join(options)
        + "\n"
        + header(launch.origin)
        + 'set -euo pipefail\ncd "$SLURM_SUBMIT_DIR"\n'
        + order
        + 'export SLURM_HOSTFILE="$PWD/hostfile.slurm"\n'
        'MASTER=$(head -n 1 "$SLURM_HOSTFILE")\n'
        "# Tasks are laid out as the hostfile says, so that the task number is the node rank.\n"
        "# shellcheck disable=SC2016\n"
        'exec srun --distribution=arbitrary --export=ALL,MASTER="$MASTER" \\\n'
        '  bash -c \'exec ./train.sh "$SLURM_PROCID" "$MASTER"\'\n'
    )
    mixed = len({host.group for host in launch.hosts}) > 1 and not named_hosts
    caveats = _unpinned(launch, "Slurm") if mixed else ()
    return _added(emission, {"job.sbatch": text}, commands=frozenset({"job.sbatch"}), caveats=caveats)


def with_skypilot(launch: TrainingLaunch, emission: Emission, *, named_hosts: bool) -> Emission:
    """Return `emission` with `task.yaml`."""
    devices = launch.ranks_per_host or max(len(host.devices) for host in launch.hosts)
    document = {
        "name": "meshwright",
        "workdir": ".",
        "num_nodes": len(launch.hosts),
        "resources": {
            "accelerators": f"{skypilot_name(launch.device)}:{devices}",
            "network_tier": "best",
        },
        "run": (
            'MASTER=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
            'echo "$SKYPILOT_NODE_IPS" > hosts.txt\n'
            './train.sh "$SKYPILOT_NODE_RANK" "$MASTER"\n'
        ),
    }
    text = header(launch.origin) + yaml.safe_dump(document, sort_keys=False)
    return _added(emission, {"task.yaml": text}, caveats=_unpinned(launch, "SkyPilot"))


_RAY_DRIVER = '''"""Starts train.sh once per host; the node rank is the line of the host in hosts.txt."""

import subprocess
import sys
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DEFAULT_ORDER = {default_order}


@ray.remote(num_cpus=1, num_gpus=0)
def start(node_rank: int, master: str) -> int:
    return subprocess.run(["bash", "train.sh", str(node_rank), master], check=False).returncode


def main() -> int:
    """Return the worst exit status of all hosts."""
    ray.init(address="auto")
    names = Path("hosts.txt").read_text().split()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    by_name = {{node["NodeManagerHostname"]: node for node in nodes}}
    if set(names) <= set(by_name):
        chosen = [by_name[name] for name in names]
    elif DEFAULT_ORDER and len(nodes) >= len(names):
        chosen = sorted(nodes, key=lambda node: node["NodeManagerHostname"])[: len(names)]
    else:
        missing = sorted(set(names) - set(by_name))
        sys.exit(f"Ray knows no host {{', '.join(missing)}}; put the names of its hosts into hosts.txt")
    master = chosen[0]["NodeManagerAddress"]
    running = [
        start.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        ).remote(rank, master)
        for rank, node in enumerate(chosen)
    ]
    return max(ray.get(running))


if __name__ == "__main__":
    sys.exit(main())
'''


def with_ray(launch: TrainingLaunch, emission: Emission, *, named_hosts: bool) -> Emission:
    """Return `emission` with a driver for `ray job submit`."""
    driver = header(launch.origin) + _RAY_DRIVER.format(default_order=launch.is_default_order)
    submit = (
        FIRST_LINES
        + header(launch.origin)
        + 'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")"\n'
        + "exec ray job submit --working-dir . -- python ray_driver.py\n"
    )
    files = {"ray_driver.py": driver, "ray_job.sh": submit}
    return _added(emission, files, commands=frozenset({"ray_job.sh"}), caveats=())


SCHEDULERS = {
    "torchrun": with_torchrun,
    "slurm": with_slurm,
    "kubernetes": with_kubernetes,
    "ray": with_ray,
    "skypilot": with_skypilot,
}
"""Every way to start the hosts of a training job."""
