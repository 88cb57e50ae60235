"""How the instances of a fleet are started: by hand, by Slurm, by Kubernetes, by Ray Serve, by SkyPilot."""

import json
from dataclasses import replace
from typing import Any

import yaml

from hardware.errors import OutOfDomainError
from planner.emit.accelerator_names import skypilot_name, slurm_gres
from planner.emit.emission import Caveat, Emission, header
from planner.emit.kubernetes_serving import with_kubernetes
from planner.emit.serving_launch import DEVICES_PER_HOST, Pool, ServingLaunch
from planner.emit.shell import FIRST_LINES

__all__ = ["SCHEDULERS", "with_ray", "with_shell", "with_skypilot", "with_slurm"]


def with_shell(launch: ServingLaunch, emission: Emission) -> Emission:
    """Return `emission` with `launch.sh`, which starts every instance of instances.tsv over ssh."""
    text = (
        FIRST_LINES
        + header(launch.origin)
        + "# Starts every instance on the host that instances.tsv names (edit its host column); this folder\n"
        "# must be at the same path on every host. Instances that share a host need their own devices:\n"
        "# set CUDA_VISIBLE_DEVICES for them and start serve-POOL.sh by hand.\n"
        'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")"\n'
        "PIDS=()\n"
        "while IFS=$'\\t' read -r pool instance _ host port; do\n"
        '  ssh -n -o BatchMode=yes "$host" \\\n'
        '    "cd $(printf %q "$PWD") && PORT=$port exec ./serve-$pool.sh $instance" \\\n'
        '    > "$pool-$instance.log" 2>&1 &\n'
        '  PIDS+=("$!")\n'
        "done < <(tail -n +2 instances.tsv)\n"
        'wait "${PIDS[@]}"\n'
    )
    caveats = _one_host_only(launch, "launch.sh")
    files = {**emission.files, "launch.sh": text}
    return replace(
        emission,
        files=files,
        commands=emission.commands | {"launch.sh"},
        caveats=emission.caveats + caveats,
    )


def _one_host_only(launch: ServingLaunch, what: str) -> tuple[Caveat, ...]:
    large = [pool.name for pool in launch.pools if pool.num_hosts > 1]
    instead = f"{what} starts instances of one machine; start these by hand on each"
    return tuple(Caveat(feature=f"{name}: instances of several machines", instead=instead) for name in large)


def with_slurm(launch: ServingLaunch, emission: Emission) -> Emission:
    """Return `emission` with one job array per pool."""
    files = dict(emission.files)
    names = []
    for pool in launch.pools:
        name = f"{pool.name}.sbatch"
        files[name] = _batch(launch, pool)
        names.append(name)
    return replace(emission, files=files, commands=emission.commands | frozenset(names))


def _batch(launch: ServingLaunch, pool: Pool) -> str:
    devices = min(pool.config.num_devices, DEVICES_PER_HOST)
    hosts = pool.num_hosts
    return (
        FIRST_LINES
        + f"#SBATCH --job-name={pool.name}\n"
        + f"#SBATCH --array=0-{pool.count - 1}\n"
        + f"#SBATCH --nodes={hosts}\n#SBATCH --ntasks={hosts}\n#SBATCH --ntasks-per-node=1\n"
        + f"#SBATCH --gpus-per-node={slurm_gres(pool.device)}:{devices}\n"
        + header(launch.origin)
        + 'set -euo pipefail\ncd "$SLURM_SUBMIT_DIR"\n'
        + 'LEADER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\nexport LEADER\n'
        + "# shellcheck disable=SC2016\n"
        + "exec srun bash -c \\\n"
        + f"  'NODE_RANK=$SLURM_NODEID exec ./serve-{pool.name}.sh \"$SLURM_ARRAY_TASK_ID\"'\n"
    )


def with_skypilot(launch: ServingLaunch, emission: Emission) -> Emission:
    """Return `emission` with one service per pool, and one beside it for its spot instances."""
    files = dict(emission.files)
    for pool in launch.pools:
        for name, count, spot in (
            (pool.name, pool.count - pool.num_spot, False),
            (f"{pool.name}-spot", pool.num_spot, True),
        ):
            if count:
                document = _service(pool, name, count, spot=spot)
                text = yaml.safe_dump(document, sort_keys=False)
                files[f"{name}.sky.yaml"] = header(launch.origin) + text
    return replace(emission, files=files)


def _service(pool: Pool, name: str, count: int, *, spot: bool) -> dict[str, Any]:
    """Return the SkyPilot service of `count` instances of a pool."""
    devices = min(pool.config.num_devices, DEVICES_PER_HOST)
    return {
        "name": name,
        "workdir": ".",
        "num_nodes": pool.num_hosts,
        "resources": {
            "accelerators": f"{skypilot_name(pool.device)}:{devices}",
            "ports": 8000,
            **({"use_spot": True} if spot else {}),
        },
        "service": {"readiness_probe": "/health", "replicas": count},
        "run": (
            'export PORT=8000 NODE_RANK="$SKYPILOT_NODE_RANK"\n'
            'export LEADER=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
            f"./serve-{pool.name}.sh 0\n"
        ),
    }


def with_ray(launch: ServingLaunch, emission: Emission) -> Emission:
    """Return `emission` with a Ray Serve configuration, one application per pool.

    Raises
    ------
    OutOfDomainError
        for engines other than vLLM and for split fleets, which this configuration does not describe.
    """
    if launch.origin.target != "vllm":
        message = f"Ray Serve runs vLLM engines; target {launch.origin.target} has no such configuration"
        raise OutOfDomainError(message)
    if launch.is_split:
        message = "Ray Serve is emitted for joint fleets; use --scheduler kubernetes or slurm for a split one"
        raise OutOfDomainError(message)
    from planner.emit.vllm import engine_arguments

    applications = []
    for pool in launch.pools:
        options, _ = engine_arguments(launch, pool)
        kwargs: dict[str, Any] = {
            name.replace("-", "_"): json.loads(value) if name == "speculative-config" else value
            for name, value in options.items()
        }
        config = {
            "model_loading_config": {"model_id": pool.name, "model_source": launch.model},
            "accelerator_type": pool.device.split("-")[0].upper(),
            "engine_kwargs": kwargs,
            "deployment_config": {
                "autoscaling_config": {"min_replicas": pool.count, "max_replicas": pool.count}
            },
        }
        applications.append(
            {
                "name": pool.name,
                "route_prefix": f"/{pool.name}",
                "import_path": "ray.serve.llm:build_openai_app",
                "args": {"llm_configs": [config]},
            }
        )
    text = header(launch.origin) + yaml.safe_dump({"applications": applications}, sort_keys=False)
    what = "each pool has its own route; send requests to them as router.json says"
    caveat = Caveat(feature="routing by request size", instead=what)
    extra = (caveat,) if len(launch.pools) > 1 else ()
    return replace(
        emission, files={**emission.files, "serve_config.yaml": text}, caveats=emission.caveats + extra
    )


SCHEDULERS = {
    "shell": with_shell,
    "slurm": with_slurm,
    "kubernetes": with_kubernetes,
    "ray": with_ray,
    "skypilot": with_skypilot,
}
"""Every way to start the instances of a fleet."""
