"""From a plan file to an emission: read, look up the target, emit, schedule, add the manifest."""

import json
import re
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hardware.errors import InputError, UnknownNameError
from planner.emit.emission import Emission, Origin, require_expressible
from planner.emit.targets import TARGETS, Target, find_target
from planner.plan_io import read_plan

__all__ = ["MANIFEST", "emit_plan", "plan_and_number"]

MANIFEST = "emission.json"
"""Names target, version, scheduler, the plan's hash and the caveats; `verify` starts from it."""

_NUMBERED = re.compile(r"(.+)#(\d+)$")


def plan_and_number(where: str) -> tuple[str, int]:
    """Return the path and the number of ``plan.json`` (its best plan) or ``plan.json#N``."""
    match = _NUMBERED.match(where)
    if match and not Path(where).exists():
        return match.group(1), int(match.group(2))
    return where, 1


def emit_plan(
    where: str,
    target_text: str,
    *,
    scheduler: str | None = None,
    hosts: str | None = None,
    strict: bool = False,
    power_plan: str | None = None,
) -> Emission:
    """Return the files for a plan.

    Parameters
    ----------
    where : a plan file, or ``FILE#N`` for its N-th plan.
    target_text : ``NAME`` or ``NAME@VERSION``.
    scheduler : None is the target's default.
    hosts : file with the real host names, one per line, in the cluster's order.
    strict : refuse where the target cannot express all of the plan.
    power_plan : a power plan whose command files ride along, under ``power/``.

    Raises
    ------
    InputError
        if the plan, the target or the scheduler do not go together.
    """
    name, target_version, target = find_target(target_text)
    chosen = scheduler or target.schedulers[0]
    if chosen not in target.schedulers:
        kind = f"scheduler of target {name}"
        raise UnknownNameError(kind, chosen, target.schedulers)
    path, number = plan_and_number(where)
    file = read_plan(path)
    _check_kind(path, file.kind, name, target)
    if not 1 <= number <= len(file.plans):
        message = f"{path}: there is no plan #{number}; it holds #1 to #{len(file.plans)}"
        raise InputError(message)
    text = Path(path).read_text(encoding="utf-8")
    origin = Origin(
        plan_sha256=sha256(text.encode()).hexdigest(),
        plan_number=number,
        target=name,
        version=target_version,
        tool_version=version("meshwright"),
    )
    emission = _emission(file, origin, target, chosen, _host_names(hosts))
    if power_plan is not None:
        emission = _with_power(emission, power_plan)
    if strict:
        require_expressible(name, emission.caveats)
    manifest = json.dumps(_manifest(origin, chosen, emission), indent=2) + "\n"
    return replace(emission, files={**emission.files, "plan.json": text, MANIFEST: manifest})


def _with_power(emission: Emission, path: str) -> Emission:
    from planner.emit.power_commands import power_emission

    file = read_plan(path)
    if file.kind != "power":
        message = f"{path}: kind: {file.kind!r}; --power-plan takes a plan of `plan power`"
        raise InputError(message)
    power = power_emission(file.plans[0])
    return replace(
        emission,
        files={**emission.files, **{f"power/{name}": text for name, text in power.files.items()}},
        commands=emission.commands | {f"power/{name}" for name in power.commands},
        caveats=emission.caveats + power.caveats,
    )


def _check_kind(path: str, kind: str, name: str, target: Target) -> None:
    if kind == target.kind:
        return
    fitting = ", ".join(n for n, t in TARGETS.items() if t.kind == kind) or "none yet"
    message = (
        f"{path}: kind: {kind!r}; target {name} starts {target.kind} plans (targets of {kind}: {fitting})"
    )
    raise InputError(message)


def _host_names(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"{path}: cannot be read: {reason}"
        raise InputError(message) from None
    names = tuple(line.split("#")[0].strip() for line in lines if line.split("#")[0].strip())
    wrong = [n for n in names if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", n)]
    if wrong or len(set(names)) != len(names) or not names:
        what = f"{wrong[0]!r} is no host name" if wrong else "names must be given once each, at least one"
        message = f"{path}: {what}; accepted: one host name per line, in the cluster's order"
        raise InputError(message)
    return names


def _emission(file: Any, origin: Origin, target: Target, scheduler: str, hosts: tuple[str, ...]) -> Emission:
    if target.kind == "train":
        from planner.emit.rank_order import DEFAULT, ORDERS
        from planner.emit.schedule_training import SCHEDULERS
        from planner.emit.training_launch import training_launch

        orders = tuple(ORDERS) if origin.target in _BOTH_ORDERS else (DEFAULT,)
        launch = training_launch(file, origin, orders=orders, host_file=hosts)
        return SCHEDULERS[scheduler](launch, target.load()(launch), named_hosts=bool(hosts))
    from planner.emit.schedule_serving import SCHEDULERS as SERVING_SCHEDULERS
    from planner.emit.serving_launch import serving_launch

    if hosts:
        message = "--hosts pins ranks of a training plan; a serving plan's hosts stand in instances.tsv"
        raise InputError(message)
    fleet = serving_launch(file, origin)
    if origin.target in _WHOLE_MANIFESTS:
        return target.load()(fleet)
    return SERVING_SCHEDULERS[scheduler](fleet, target.load()(fleet))


_WHOLE_MANIFESTS = {"dynamo", "llm-d"}
"""Targets that bring their own Kubernetes objects."""

_BOTH_ORDERS = {"megatron-lm", "megatron-bridge", "mindspeed"}
"""Targets that can be told to put pipeline stages on neighbouring ranks."""


def _manifest(origin: Origin, scheduler: str, emission: Emission) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "plan_sha256": origin.plan_sha256,
        "plan_number": origin.plan_number,
        "target": origin.target,
        "version": origin.version,
        "scheduler": scheduler,
        "tool_version": origin.tool_version,
        "files": sorted(emission.files),
        "caveats": [{"feature": c.feature, "instead": c.instead} for c in emission.caveats],
        "facts": dict(emission.facts),
    }
