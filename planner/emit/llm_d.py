"""llm-d: values of its model-service chart; the chart has one prefill and one decode pool."""

from typing import Any

import yaml

from hardware.errors import OutOfDomainError
from planner.emit.emission import Caveat, Emission, header
from planner.emit.serving_launch import DEVICES_PER_HOST, Pool, ServingLaunch
from planner.emit.vllm import engine_arguments, option_words

__all__ = ["emit"]

_OWN = {"tensor-parallel-size", "data-parallel-size"}
"""Options that the chart sets from `parallelism`."""


def emit(launch: ServingLaunch) -> Emission:
    """Return one values file per pair of pools.

    Raises
    ------
    OutOfDomainError
        for engines other than vLLM, and for fleets with several pools of one role.
    """
    if launch.planned_engine != "vllm":
        message = f"llm-d runs vLLM, the plan is for {launch.planned_engine}; plan with --engine vllm"
        raise OutOfDomainError(message)
    decode = launch.role_pools("decode") or launch.role_pools("both")
    prefill = launch.role_pools("prefill")
    if len(decode) > 1 or len(prefill) > 1:
        names = ", ".join(pool.name for pool in launch.pools)
        message = (
            f"an llm-d model service has one prefill and one decode pool, the plan has {names}; emit vllm"
        )
        raise OutOfDomainError(message)
    caveats: list[Caveat] = []
    values: dict[str, Any] = {
        "multinode": any(pool.num_hosts > 1 for pool in launch.pools),
        "modelArtifacts": {
            "uri": f"hf://{launch.model}",
            "name": launch.model,
            "size": "1Ti",
            "authSecretName": "hf-token",
            "labels": {"llm-d.ai/inference-serving": "true"},
        },
        "routing": {"servicePort": 8000, "proxy": {"connector": "nixlv2", "targetPort": 8200}},
        "accelerator": {"type": "nvidia"},
        "decode": _role(launch, decode[0], caveats),
        "prefill": _role(launch, prefill[0], caveats) if prefill else {"create": False},
    }
    unique = tuple(dict.fromkeys(caveats))
    text = header(launch.origin, unique) + yaml.safe_dump(values, sort_keys=False)
    facts: dict[str, object] = {"model": launch.model, "engine": "vllm"}
    return Emission(files={"values.yaml": text}, caveats=unique, facts=facts)


def _role(launch: ServingLaunch, pool: Pool, caveats: list[Caveat]) -> dict[str, Any]:
    options, notes = engine_arguments(launch, pool)
    caveats.extend(notes)
    words: list[str] = []
    for name, value in options.items():
        if name in _OWN:
            continue
        words += option_words(name, value)
    if pool.role != "both":
        words += ["--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}']
    devices = min(pool.config.num_devices, DEVICES_PER_HOST)
    return {
        "create": True,
        "replicas": pool.count,
        "parallelism": {
            "tensor": pool.config.tp,
            "data": pool.config.dp,
            "dataLocal": max(min(pool.config.dp, devices // pool.config.tp), 1),
            "workers": pool.num_hosts,
        },
        "containers": [
            {
                "name": "vllm",
                "image": "REPLACE-WITH-YOUR-VLLM-IMAGE",
                "modelCommand": "vllmServe",
                "args": words,
                "resources": {"limits": {"nvidia.com/gpu": str(devices)}},
            }
        ],
    }
