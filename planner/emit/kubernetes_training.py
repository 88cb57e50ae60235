"""Kubernetes for training: a JobSet whose pods' index is the node rank, and the folder as a ConfigMap."""

from dataclasses import replace
from typing import Any

import yaml

from planner.emit.accelerator_names import kubernetes_resource
from planner.emit.emission import Caveat, Emission, header
from planner.emit.training_launch import Host, TrainingLaunch

__all__ = ["IMAGE", "with_kubernetes"]

IMAGE = "REPLACE-WITH-YOUR-IMAGE"
"""Container image: the plan does not decide it."""

_NAME = "meshwright"
_MOUNTED = "/plan"


def with_kubernetes(launch: TrainingLaunch, emission: Emission, *, named_hosts: bool) -> Emission:
    """Return `emission` with a JobSet and a kustomization that carries the other files to the pods."""
    jobs = (
        [_pinned_job(launch, k, host) for k, host in enumerate(launch.hosts)]
        if named_hosts
        else [_job(launch)]
    )
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": _NAME},
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": jobs,
        },
    }
    carried = sorted(name for name in emission.files if "/" not in name)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["jobset.yaml"],
        "configMapGenerator": [{"name": _NAME, "files": carried}],
        "generatorOptions": {"disableNameSuffixHash": True},
        "images": [{"name": IMAGE, "newName": IMAGE, "newTag": "latest"}],
    }
    files = {
        "jobset.yaml": header(launch.origin)
        + "# Apply with: kubectl apply -k .    Set the image in kustomization.yaml.\n"
        + yaml.safe_dump(jobset, sort_keys=False),
        "kustomization.yaml": header(launch.origin) + yaml.safe_dump(kustomization, sort_keys=False),
    }
    caveats: tuple[Caveat, ...] = ()
    if not named_hosts and not (launch.is_default_order and len({h.group for h in launch.hosts}) == 1):
        what = "the scheduler chooses the machines; give --hosts with their names to pin node ranks to them"
        caveats = (Caveat(feature="placement.ranks", instead=what),)
    return replace(emission, files={**emission.files, **files}, caveats=emission.caveats + caveats)


def _job(launch: TrainingLaunch) -> dict[str, Any]:
    num_hosts = len(launch.hosts)
    pod = _pod(launch, len(launch.hosts[0].devices), '"$JOB_COMPLETION_INDEX"', f"{_NAME}-node-0-0.{_NAME}")
    return {
        "name": "node",
        "replicas": 1,
        "template": {
            "spec": {
                "parallelism": num_hosts,
                "completions": num_hosts,
                "completionMode": "Indexed",
                "backoffLimit": 0,
                "template": {"spec": pod},
            }
        },
    }


def _pinned_job(launch: TrainingLaunch, node_rank: int, host: Host) -> dict[str, Any]:
    pod = _pod(launch, len(host.devices), str(node_rank), f"{_NAME}-node-0-0-0.{_NAME}")
    pod["nodeSelector"] = {"kubernetes.io/hostname": host.name}
    return {
        "name": f"node-{node_rank}",
        "replicas": 1,
        "template": {
            "spec": {
                "parallelism": 1,
                "completions": 1,
                "completionMode": "Indexed",
                "backoffLimit": 0,
                "template": {"spec": pod},
            }
        },
    }


def _pod(launch: TrainingLaunch, num_devices: int, node_rank: str, master: str) -> dict[str, Any]:
    resource = kubernetes_resource(launch.vendor)
    return {
        "restartPolicy": "Never",
        "containers": [
            {
                "name": "trainer",
                "image": IMAGE,
                "command": ["bash", "-c"],
                "args": [f"cp -L {_MOUNTED}/* . && exec bash train.sh {node_rank} {master}"],
                "workingDir": "/workspace",
                "resources": {"limits": {resource: num_devices}},
                "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
                "volumeMounts": [
                    {"name": "plan", "mountPath": _MOUNTED},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "plan", "configMap": {"name": _NAME}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }
