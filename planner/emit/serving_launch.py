"""What an emitter needs of one serving plan: pools of instances, their engines, the split of traffic."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from costmodels.serving.config import Quant, ServingConfig
from hardware.errors import InputError, SpecError
from planner.emit.emission import Origin
from planner.plan import PlanFile
from planner.serving.plan import Route, ServingPlan

__all__ = ["DEVICES_PER_HOST", "Pool", "ServingLaunch", "dns_name", "serving_launch"]

DEVICES_PER_HOST = 8
"""Assumed of every machine: a serving plan buys devices, it does not say how they are boxed."""

_REPOSITORY = re.compile(r"config\.json of ([\w.-]+/[\w.-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Identical instances."""

    name: str
    """Lower case, digits and hyphens: also the name of its files and resources."""
    device: str
    vendor: str
    role: str
    count: int
    config: ServingConfig
    first_port: int
    num_spot: int = 0
    """Of the count, instances that the plan buys on spot offers."""

    @property
    def num_hosts(self) -> int:
        """Machines of one instance."""
        return -(-self.config.num_devices // DEVICES_PER_HOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLaunch:
    """One serving plan, ready to be written for an engine."""

    origin: Origin
    model: str
    """Repository or path that the engine loads."""
    model_name: str
    planned_engine: str
    is_split: bool
    pools: tuple[Pool, ...]
    routes: tuple[Route, ...]
    longest_tokens: int | None
    """Prompt and output of the longest request that the plan foresees; None is without limit."""
    longest_prompt_tokens: int | None
    num_levels: int = 1
    """Levels of the day with fleets of their own; the files start that of the peak."""

    def role_pools(self, role: str) -> tuple[Pool, ...]:
        """Return the pools of one role."""
        return tuple(pool for pool in self.pools if pool.role == role)


def serving_launch(file: PlanFile[ServingPlan], origin: Origin) -> ServingLaunch:
    """Return plan number `origin.plan_number` of `file`, with its model looked up.

    Raises
    ------
    SpecError
        if an engine configuration has unknown keys or values, or a route names no instances.
    """
    from hardware.catalog import find_device

    plan = file.plans[origin.plan_number - 1]
    _check_one_fleet(file, plan)
    catalogs = tuple(str(c) for c in file.request.get("catalog", ()))
    spot = {bought.offer for bought in plan.purchases if bought.kind == "spot"}
    pools, port = [], 8000
    names = [dns_name(entry.name) for entry in plan.mix]
    if len(set(names)) != len(names):
        raise SpecError("plan", [f"mix: names are not unique: {', '.join(names)}"])
    for number, entry in enumerate(plan.mix):
        config = _config(entry.config, f"plans.{origin.plan_number - 1}.mix.{number}.config")
        pools.append(
            Pool(
                name=names[number],
                device=entry.device,
                vendor=find_device(entry.device, catalogs=catalogs).vendor,
                role=entry.role,
                count=entry.count,
                config=config,
                first_port=port,
                num_spot=sum(count for name, count in entry.offers.items() if name in spot),
            )
        )
        port += entry.count
    _check_routes(plan)
    prompts, outputs = _longest(plan.routing)
    return ServingLaunch(
        origin=origin,
        model=_model_id(str(file.request.get("model"))),
        model_name=str(file.request.get("model")),
        planned_engine=plan.strategy.engine,
        is_split=plan.strategy.form == "split",
        pools=tuple(pools),
        routes=plan.routing,
        longest_tokens=None if prompts is None or outputs is None else prompts + outputs,
        longest_prompt_tokens=prompts,
        num_levels=max(len(plan.levels), 1),
    )


def _check_one_fleet(file: PlanFile[ServingPlan], plan: ServingPlan) -> None:
    """Refuse what no engine starts from one set of files: several models, layers over unlike machines."""
    if plan.layers:
        problem = "plans: the layers of one model stand on unlike machines, which no target can launch"
        raise SpecError("plan", [problem])
    models = [str(m["model"]) for m in file.request.get("models") or ()]
    if models:
        problem = f"request.models: {', '.join(models)}; `plan serve -o` wrote one file for each, emit those"
        raise SpecError("plan", [problem])


def dns_name(text: str) -> str:
    """Return `text` as a name that files and Kubernetes accept."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50]


def _config(values: Mapping[str, Any], where: str) -> ServingConfig:
    known = {f.name: f.default for f in fields(ServingConfig)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SpecError("plan", [f"{where}.{unknown[0]}: unexpected key; known: {', '.join(known)}"])
    labels = {quant.label: quant for quant in Quant}
    columns: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(known[name], Quant):
            if value not in labels:
                raise SpecError("plan", [f"{where}.{name}: {value!r} is none of {', '.join(labels)}"])
            columns[name] = labels[str(value)]
        elif type(value) is not type(known[name]):
            accepted = "true or false" if isinstance(known[name], bool) else "an integer"
            raise SpecError("plan", [f"{where}.{name}: {value!r} is not {accepted}"])
        else:
            columns[name] = value
    config = ServingConfig(**columns)
    small = [n for n in ("tp", "pp", "dp", "ep", "max_batch", "token_budget") if getattr(config, n) < 1]
    if small:
        raise SpecError("plan", [f"{where}.{small[0]}: {getattr(config, small[0])} is not at least 1"])
    if (config.tp * config.dp) % config.ep:
        problem = f"{where}.ep: {config.ep} does not divide tp x dp = {config.tp * config.dp}"
        raise SpecError("plan", [problem])
    return config


def _check_routes(plan: ServingPlan) -> None:
    names = {entry.name for entry in plan.mix}
    strange = sorted({name for route in plan.routing for name in route.shares} - names)
    if strange:
        known = ", ".join(sorted(names))
        raise SpecError("plan", [f"routing: {strange[0]!r} is no entry of the mix; known: {known}"])


def _longest(routes: tuple[Route, ...]) -> tuple[int | None, int | None]:
    prompts = [r.prompt_tokens_up_to for r in routes]
    outputs = [r.output_tokens_up_to for r in routes]
    longest_prompt = None if None in prompts else max((p for p in prompts if p is not None), default=None)
    longest_output = None if None in outputs else max((o for o in outputs if o is not None), default=None)
    return longest_prompt, longest_output


def _model_id(name: str) -> str:
    """Return what the engine loads: the repository that a catalogue model came from, or a local folder."""
    from costmodels.models import find_model

    path = Path(name)
    if path.suffix == ".json":
        if not path.exists():
            message = f"request.model: {name}: no such file"
            raise InputError(message)
        return str(path.resolve().parent)
    match = _REPOSITORY.search(find_model(name).source)
    return match.group(1) if match else name
