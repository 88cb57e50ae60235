"""Make, write and read calibration files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from costmodels.calibrated import Calibration, KernelCalibration, MemoryCurve, using
from costmodels.calibration.device import FittedKernels, check_samples, fit_kernels, undisturbed
from costmodels.calibration.links import fit_links, links_from_json, links_to_json
from costmodels.calibration.steps import fit_steps
from costmodels.kernels.data import rated_device, rated_numbers
from costmodels.kernels.machine import FORMATS, machine_of
from costmodels.kernels.samples import FAMILIES
from costmodels.kernels.surface import Surface
from costmodels.reference_stack import REFERENCE_STACK
from costmodels.samples import Sample
from costmodels.stacks import Stack
from hardware.cluster import Cluster
from hardware.errors import InputError, SpecError

__all__ = ["SCHEMA_VERSION", "STATISTICS", "calibrate", "calibration_text", "read_calibration"]

SCHEMA_VERSION = 2
STATISTICS = ("median", "best")
_LOSS_BYTES_PER_LOGIT_BEFORE = 26.0
"""Traffic of the cross entropy that stacks in files of version 1 were fitted with, whatever they ran."""
_NEEDED = ("schema_version", "kind", "device", "rated", "kernels", "technologies", "stacks", "report")


def calibrate(
    samples: Sequence[Sample],
    cluster: Cluster,
    *,
    statistic: str = "median",
    like: Calibration | None = None,
    where: str = "samples",
) -> dict[str, Any]:
    """Return the calibration document of `cluster`'s device from samples that were taken on it.

    Parameters
    ----------
    cluster : what the samples were taken on: its device and levels are what is calibrated.
    statistic : median of each sample's repeats, or best (others were using the machine).
    like : calibration of a similar device, to lean on where samples are few.
    where : name of the samples in messages.

    Raises
    ------
    SpecError
        if the samples mix devices, contradict each other, or were not taken on the cluster's device.
    """
    if statistic not in STATISTICS:
        message = f"statistic {statistic!r} is none of {', '.join(STATISTICS)}"
        raise InputError(message)
    check_samples(samples, where)
    device = cluster.device
    measured_on = samples[0].device
    if measured_on not in (device.name, *device.aliases):
        problem = f"was measured on {measured_on!r}, but {cluster.name} holds {device.name!r}"
        raise SpecError(where, [problem])
    kept, quiet_notes = undisturbed(samples)
    kernels = fit_kernels(kept, device, statistic=statistic, like=like.kernels if like else None)
    own, said_links, notes = fit_links(kept, cluster.levels, statistic=statistic)
    links = {**(like.technologies if like and like.device == device.name else {}), **own}
    partial = _calibration(device.name, kernels, links, {})
    with using(partial):
        near = like.stacks.get(REFERENCE_STACK) if like else None
        stack, said_steps, step_notes = fit_steps(kept, cluster, statistic=statistic, like=near)
    report = {**kernels.report, **said_links} | ({"step": said_steps} if said_steps else {})
    text = "".join(repr(s) for s in samples)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "calibration",
        "device": device.name,
        "num_ranks": max(s.num_ranks for s in samples),
        "statistic": statistic,
        "software": sorted({s.software for s in samples}),
        "date": max((s.date for s in samples), default=""),
        "num_samples": len(samples),
        "samples_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rated": rated_numbers(device),
        "kernels": {
            "surfaces": {f"{family}/{fmt}": s.to_json() for (family, fmt), s in kernels.surfaces.items()},
            "memory": None if kernels.memory is None else asdict(kernels.memory),
            "norm": None if kernels.norm is None else asdict(kernels.norm),
            "optimizer": None if kernels.optimizer is None else asdict(kernels.optimizer),
            "attention_backward_ratio": kernels.attention_backward_ratio,
        },
        "technologies": links_to_json(links),
        "stacks": {} if stack is None else {stack.name: _stack_json(stack)},
        "report": report,
        "notes": [*quiet_notes, *kernels.notes, *notes, *step_notes],
    }


def _stack_json(stack: Stack) -> dict[str, Any]:
    return {f.name: getattr(stack, f.name) for f in fields(Stack) if f.name != "name"}


def _calibration(
    device: str, kernels: FittedKernels, links: Mapping[str, Any], stacks: Mapping[str, Stack]
) -> Calibration:
    return Calibration(
        device=device,
        sha256="",
        kernels=KernelCalibration(
            device=device,
            surfaces=kernels.surfaces,
            memory=kernels.memory,
            norm=kernels.norm,
            optimizer=kernels.optimizer,
            attention_backward_ratio=kernels.attention_backward_ratio,
        ),
        technologies=links,
        stacks=stacks,
    )


def calibration_text(document: Mapping[str, Any]) -> str:
    """Return the file's exact text."""
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def read_calibration(path: Path | str) -> Calibration:
    """Return the calibration in a file of this or an older version.

    Raises
    ------
    InputError
        if the file cannot be read or is no JSON.
    SpecError
        if it is no calibration of a known version; names what is missing.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise InputError(message) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        message = f"{path}: is not a calibration file (JSON): {error}"
        raise InputError(message) from None
    missing = [k for k in _NEEDED if not isinstance(data, dict) or k not in data]
    if missing:
        raise SpecError(
            str(path), [f"{key}: missing; is this a file of `meshwright calibrate`?" for key in missing]
        )
    version = data["schema_version"]
    if version not in (1, SCHEMA_VERSION):
        raise SpecError(str(path), [f"schema_version: {version!r} is none of 1 and {SCHEMA_VERSION}"])
    try:
        current = _from_version_1(data) if version == 1 else data
        return _read(current, hashlib.sha256(text.encode()).hexdigest())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(str(path), [f"has a wrong entry: {type(error).__name__} {error}"]) from None


def _from_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document whose stacks say their loss traffic rather than whether one kernel does the loss."""
    stacks = {
        name: {key: value for key, value in entry.items() if key != "fused_loss"}
        | {"loss_bytes_per_logit": _LOSS_BYTES_PER_LOGIT_BEFORE}
        for name, entry in data["stacks"].items()
    }
    return {**data, "schema_version": SCHEMA_VERSION, "stacks": stacks}


def _read(data: Mapping[str, Any], sha256: str) -> Calibration:
    kernels = data["kernels"]
    device = rated_device(data["device"], data["rated"])
    surfaces = {}
    for name, entry in kernels["surfaces"].items():
        family, dtype = name.split("/")
        fmt = FORMATS[dtype]
        surfaces[family, dtype] = Surface.from_json(
            entry, family=FAMILIES[family], fmt=fmt, machine=machine_of(device, fmt), measured=True
        )
    stacks = {
        name: Stack(name=name, **{**entry, "adjust": tuple((k, v) for k, v in entry["adjust"])})
        for name, entry in data["stacks"].items()
    }
    curves = {
        name: None if kernels[name] is None else MemoryCurve(**kernels[name])
        for name in ("memory", "norm", "optimizer")
    }
    return Calibration(
        device=data["device"],
        sha256=sha256,
        kernels=KernelCalibration(
            device=data["device"],
            surfaces=surfaces,
            **curves,
            attention_backward_ratio=kernels["attention_backward_ratio"],
        ),
        technologies=links_from_json(data["technologies"]),
        stacks=stacks,
        report=data["report"],
    )
