"""NVIDIA Dynamo: one graph deployment (v1beta1) with a worker component per pool."""

from typing import Any

import yaml

from hardware.errors import OutOfDomainError
from planner.emit.emission import Caveat, Emission, header
from planner.emit.serving_files import EngineCommand
from planner.emit.serving_launch import DEVICES_PER_HOST, Pool, ServingLaunch
from planner.emit.sglang import sglang_command
from planner.emit.vllm import engine_arguments, option_words

__all__ = ["emit"]

_ENGINES = {"vllm": ("vllm", "dynamo.vllm"), "sglang": ("sglang", "dynamo.sglang")}
_IMAGE = "REPLACE-WITH-YOUR-DYNAMO-RUNTIME-IMAGE"
_TYPES = {"both": "worker", "prefill": "prefill", "decode": "decode"}


def emit(launch: ServingLaunch) -> Emission:
    """Return the graph deployment of a fleet.

    Raises
    ------
    OutOfDomainError
        for engines that this emitter does not drive, and for joint fleets of several kinds of instance.
    """
    if launch.planned_engine not in _ENGINES:
        known = ", ".join(_ENGINES)
        message = f"dynamo is emitted for engines {known}; the plan is for {launch.planned_engine}"
        raise OutOfDomainError(message)
    framework, module = _ENGINES[launch.planned_engine]
    frontend = {
        "name": "Frontend",
        "type": "frontend",
        "replicas": 1,
        "podTemplate": {
            "spec": {
                "containers": [
                    {"name": "main", "image": _IMAGE, "command": ["python3", "-m", "dynamo.frontend"]}
                ]
            }
        },
    }
    caveats: list[Caveat] = []
    workers = [_worker(launch, pool, module, caveats) for pool in launch.pools]
    document = {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": "meshwright"},
        "spec": {"backendFramework": framework, "components": [frontend, *workers]},
    }
    roles = [pool.role for pool in launch.pools]
    if len(set(roles)) < len(roles):
        what = "its frontend chooses among the workers of a role by load, not by the planned weights"
        caveats.append(Caveat(feature="routing by request size", instead=what))
    unique = tuple(dict.fromkeys(caveats))
    text = header(launch.origin, unique) + yaml.safe_dump(document, sort_keys=False)
    facts: dict[str, object] = {"model": launch.model, "engine": launch.planned_engine}
    return Emission(files={"deployment.yaml": text}, caveats=unique, facts=facts)


def _worker(launch: ServingLaunch, pool: Pool, module: str, caveats: list[Caveat]) -> dict[str, Any]:
    devices = min(pool.config.num_devices, DEVICES_PER_HOST)
    arguments, notes = _arguments(launch, pool)
    caveats.extend(notes)
    container = {
        "name": "main",
        "image": _IMAGE,
        "command": ["python3", "-m", module],
        "args": arguments,
        "resources": {"limits": {"nvidia.com/gpu": str(devices)}},
    }
    worker: dict[str, Any] = {
        "name": "".join(part.capitalize() for part in pool.name.split("-")),
        "type": _TYPES[pool.role],
        "replicas": pool.count,
        "sharedMemorySize": "16Gi",
        "podTemplate": {
            "spec": {
                "nodeSelector": {"meshwright/device": pool.device},
                "containers": [container],
            }
        },
    }
    if pool.num_hosts > 1:
        worker["multinode"] = {"nodeCount": pool.num_hosts}
    return worker


def _arguments(launch: ServingLaunch, pool: Pool) -> tuple[list[str], tuple[Caveat, ...]]:
    import shlex

    if launch.planned_engine == "sglang":
        command: EngineCommand = sglang_command(launch, pool)
        words = [word for line in command.arguments for word in shlex.split(line)]
        return ["--model-path", launch.model, *words], command.caveats
    options, caveats = engine_arguments(launch, pool)
    words = ["--model", launch.model]
    for name, value in options.items():
        words += option_words(name, value)
    if pool.role != "both":
        transfer = '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'
        words += ["--disaggregation-mode", pool.role, "--kv-transfer-config", transfer]
    return words, caveats
