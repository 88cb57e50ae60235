"""Kubernetes for serving: Deployment and Service per pool; a LeaderWorkerSet for larger instances."""

from dataclasses import replace
from typing import Any

import yaml

from planner.emit.accelerator_names import kubernetes_resource
from planner.emit.emission import Emission, header
from planner.emit.kubernetes_training import IMAGE
from planner.emit.serving_launch import DEVICES_PER_HOST, Pool, ServingLaunch

__all__ = ["with_kubernetes"]

_PORT = 8000
_CONFIG = "meshwright-fleet"


def with_kubernetes(launch: ServingLaunch, emission: Emission) -> Emission:
    """Return `emission` with the manifests of all pools, the router, and a kustomization."""
    files = dict(emission.files)
    manifests = []
    for pool in launch.pools:
        name = f"{pool.name}.k8s.yaml"
        workload = _deployment(pool) if pool.num_hosts == 1 else _leader_worker_set(pool)
        files[name] = header(launch.origin) + _documents([workload, _service(pool)])
        manifests.append(name)
    if "router.py" in files:
        files["router.k8s.yaml"] = header(launch.origin) + _documents(_router())
        manifests.append("router.k8s.yaml")
        # Inside the cluster a pool is one name: its Service spreads over the instances.
        files["instances.tsv"] = "pool\tinstance\trole\thost\tport\n" + "".join(
            f"{pool.name}\t0\t{pool.role}\t{pool.name}\t{_PORT}\n" for pool in launch.pools
        )
    carried = sorted(n for n in files if not n.endswith(".k8s.yaml"))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": manifests,
        "configMapGenerator": [{"name": _CONFIG, "files": carried}],
        "generatorOptions": {"disableNameSuffixHash": True},
        "images": [{"name": IMAGE, "newName": IMAGE, "newTag": "latest"}],
    }
    files["kustomization.yaml"] = (
        header(launch.origin)
        + "# Apply with: kubectl apply -k .    Set the image below.\n"
        + yaml.safe_dump(kustomization, sort_keys=False)
    )
    return replace(emission, files=files)


def _documents(documents: list[dict[str, Any]]) -> str:
    return "---\n".join(yaml.safe_dump(d, sort_keys=False) for d in documents)


def _pod(pool: Pool, environment: str) -> dict[str, Any]:
    devices = min(pool.config.num_devices, DEVICES_PER_HOST)
    command = f"cp -L /plan/* . && {environment}PORT={_PORT} exec bash serve-{pool.name}.sh 0"
    return {
        "containers": [
            {
                "name": "engine",
                "image": IMAGE,
                "command": ["bash", "-c"],
                "args": [command],
                "workingDir": "/workspace",
                "ports": [{"containerPort": _PORT}],
                "resources": {"limits": {kubernetes_resource(pool.vendor): devices}},
                "volumeMounts": [
                    {"name": "plan", "mountPath": "/plan"},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "plan", "configMap": {"name": _CONFIG}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _ready(pod: dict[str, Any]) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/health", "port": _PORT}, "periodSeconds": 10, "failureThreshold": 180}
    pod["containers"][0]["readinessProbe"] = probe
    return pod


def _deployment(pool: Pool) -> dict[str, Any]:
    labels = {"app": pool.name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": pool.name, "labels": labels},
        "spec": {
            "replicas": pool.count,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _ready(_pod(pool, ""))},
        },
    }


def _leader_worker_set(pool: Pool) -> dict[str, Any]:
    environment = 'NODE_RANK="$LWS_WORKER_INDEX" LEADER="$LWS_LEADER_ADDRESS" '
    leader = {
        "metadata": {"labels": {"app": pool.name}},
        "spec": _ready(_pod(pool, environment)),
    }
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": pool.name},
        "spec": {
            "replicas": pool.count,
            "leaderWorkerTemplate": {
                "size": pool.num_hosts,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": leader,
                "workerTemplate": {"spec": _pod(pool, environment)},
            },
        },
    }


def _service(pool: Pool) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": pool.name},
        "spec": {"selector": {"app": pool.name}, "ports": [{"port": _PORT, "targetPort": _PORT}]},
    }


def _router() -> list[dict[str, Any]]:
    labels = {"app": "router"}
    pod = {
        "containers": [
            {
                "name": "router",
                "image": "python:3.12-slim",
                "command": ["python", "/plan/router.py"],
                "args": ["--config", "/plan/router.json", "--instances", "/plan/instances.tsv"],
                "ports": [{"containerPort": 8080}],
                "volumeMounts": [{"name": "plan", "mountPath": "/plan"}],
            }
        ],
        "volumes": [{"name": "plan", "configMap": {"name": _CONFIG}}],
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "router", "labels": labels},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "router"},
            "spec": {"selector": labels, "ports": [{"port": 8080, "targetPort": 8080}]},
        },
    ]
