"""`meshwright plan serve`: the cheapest fleet that keeps the latency targets."""

from typing import Annotated, Any

import typer

from hardware.errors import InfeasibleError
from planner.cli.errors import readable_errors
from planner.cli.options import (
    CatalogOption,
    FacilityFlag,
    JsonOption,
    ModelOption,
    OutputOption,
    RequestOption,
)

__all__ = ["plan_serve"]


Gpus = Annotated[str | None, typer.Option("--gpus", help="Devices, separated by commas.")]
ClusterName = Annotated[
    str | None, typer.Option("--cluster", help="In place of --gpus: all devices of a cluster, name or YAML.")
]
Nodes = Annotated[
    int | None, typer.Option("--nodes", help="Of the cluster, where its file leaves them open.")
]
Objective = Annotated[
    str | None, typer.Option("--objective", help="cost, energy, or throughput (within limits).")
]
Provider = Annotated[str | None, typer.Option("--provider", help="Whose prices: aws, gcp, lambda ...")]
Region = Annotated[str | None, typer.Option("--region", help="Where those prices hold.")]
Spot = Annotated[bool | None, typer.Option("--spot/--on-demand", help="Interruptible prices.")]
PriceFile = Annotated[
    str | None, typer.Option("--prices", help="Price file: offers on demand, spot and reserved.")
]
OfferKinds = Annotated[
    str | None, typer.Option("--offer-kinds", help="Of the price file: on-demand,spot,reserved.")
]
MaxSpot = Annotated[float | None, typer.Option("--max-spot-frac", help="Of the instances of every kind; 1.")]
LoadLevels = Annotated[
    str | None,
    typer.Option("--load-levels", help="Share of the peak rate = hours of the day: 1=6,0.5=10,0.2=8."),
]
Top = Annotated[int | None, typer.Option("--top", help="Plans to return, best first; 3.")]
WorkloadOption = Annotated[
    str | None,
    typer.Option("--workload", help="Trace or histogram CSV, azure-conv, azure-code, fixed:1024x256."),
]
Rate = Annotated[float | None, typer.Option("--rate-per-s", help="Requests per second.")]
Ttft = Annotated[float | None, typer.Option("--slo-ttft-s", help="Time to first token.")]
Tpot = Annotated[float | None, typer.Option("--slo-tpot-s", help="Time per output token.")]
EndToEnd = Annotated[float | None, typer.Option("--slo-e2e-s", help="Time to the last token.")]
Percentile = Annotated[
    float | None, typer.Option("--percentile", help="Percent of requests within every target; 99.")
]
EverySize = Annotated[
    bool | None,
    typer.Option("--every-size/--no-every-size", help="Targets of each size, not just of all."),
]
Engine = Annotated[str | None, typer.Option("--engine", help="vllm, sglang, trtllm or mindie.")]
Formats = Annotated[str | None, typer.Option("--formats", help="Allowed weight formats, by commas; bf16.")]
KvFormats = Annotated[str | None, typer.Option("--kv-formats", help="Allowed cache formats; bf16.")]
Form = Annotated[str | None, typer.Option("--form", help="auto, joint or split.")]
Prices = Annotated[str | None, typer.Option("--usd-per-hour", help="Prices of one device: h100=2.5,l4=0.7.")]
MaxDevices = Annotated[str | None, typer.Option("--max-devices", help="Devices that can be had: h100=16.")]
MinDevices = Annotated[str | None, typer.Option("--min-devices", help="Devices to use at least.")]
Spares = Annotated[
    int | None, typer.Option("--spare-instances", help="Instances of each kind that may fail.")
]
Zones = Annotated[int | None, typer.Option("--num-zones", help="Zones; one may be lost.")]
Budget = Annotated[float | None, typer.Option("--budget-usd-per-hour", help="Most to spend.")]
Power = Annotated[float | None, typer.Option("--power-budget-w", "--power-budget", help="Most to draw.")]
Simulate = Annotated[
    bool | None, typer.Option("--simulate/--no-simulate", help="Check the plan by simulation.")
]

LoraRank = Annotated[int | None, typer.Option("--lora-rank", help="Of adapters that requests name.")]
Adapters = Annotated[int | None, typer.Option("--num-adapters", help="Adapters kept in device memory.")]

MaxInstance = Annotated[
    int | None, typer.Option("--max-devices-per-instance", help="Devices that one instance may span; 8.")
]
PrefixHits = Annotated[
    float | None,
    typer.Option("--prefix-hit-frac", help="Prompt tokens found in the cache; else the trace's."),
]
Drafts = Annotated[int | None, typer.Option("--draft-tokens", help="Tokens drafted per step.")]
Accepted = Annotated[
    float | None, typer.Option("--accepted-tokens", help="Of them, accepted per step on average.")
]

_LISTS = ("gpus", "formats", "kv_formats", "offer_kinds")
_TABLES: dict[str, type] = {"usd_per_hour": float, "max_devices": int, "min_devices": int}
_OTHERS = ("request", "catalog", "output", "json", "load_levels")


def _given(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _by_name(text: str | None, flag: str, kind: type) -> dict[str, Any]:
    """Return `name=number` pairs of one flag."""
    from hardware.errors import InputError

    pairs: dict[str, Any] = {}
    for part in _given(text):
        name, _, value = part.partition("=")
        try:
            pairs[name] = kind(value)
        except ValueError:
            message = f"{flag}: {part!r} is not NAME=NUMBER (for example h100=2.5)"
            raise InputError(message) from None
    return pairs


_ASKED = ("every-size-served-and-limits-kept", "targets-hold-in-simulation")
"""Checks of what the request asks for; others are about the proof."""


def _levels(text: str | None) -> tuple[dict[str, float], ...]:
    """Return `rate=hours` pairs of the load over a day."""
    from hardware.errors import InputError

    levels = []
    for part in _given(text):
        rate, _, hours = part.partition("=")
        try:
            levels.append({"rate_frac": float(rate), "hours_per_day": float(hours)})
        except ValueError:
            message = f"--load-levels: {part!r} is not SHARE=HOURS (for example 0.5=12)"
            raise InputError(message) from None
    return tuple(levels)


def _flags(given: dict[str, Any]) -> dict[str, Any]:
    """Return the flags as values of a request."""
    flags = {k: v for k, v in given.items() if k not in (*_LISTS, *_TABLES, *_OTHERS)}
    flags |= {name: _given(given[name]) for name in _LISTS}
    for name, kind in _TABLES.items():
        flags[name] = _by_name(given[name], f"--{name.replace('_', '-')}", kind) or None
    flags["load_levels"] = _levels(given["load_levels"])
    return flags | {"catalog": tuple(given["catalog"] or ())}


def _show(plan: Any, written: tuple[Any, ...], *, json: bool) -> None:
    """Print a plan file as it is, or for people with the paths written; tell of checks that fail.

    Raises
    ------
    typer.Exit
        with the code of an infeasible request if the best plan does not keep what was asked; one that is
        kept but not proven best is only warned of.
    """
    if json:
        from planner.plan_io import plan_text

        typer.echo(plan_text(plan), nl=False)
    else:
        from planner.cli.render_serving import print_serving_plans

        print_serving_plans(plan)
        for path in written:
            typer.echo(f"written: {path}", err=True)
    failed = [check for check in plan.plans[0].certificate if not check.holds]
    if not failed:
        return
    told = ", ".join(f"{check.name} ({check.detail})" for check in failed)
    typer.echo(f"warning: no plan within the limits keeps every check; #1 fails {told}", err=True)
    if any(check.name in _ASKED for check in failed):
        raise typer.Exit(InfeasibleError.exit_code)


def plan_serve(
    context: typer.Context,
    model: ModelOption = None,
    gpus: Gpus = None,
    cluster: ClusterName = None,
    nodes: Nodes = None,
    workload: WorkloadOption = None,
    rate_per_s: Rate = None,
    slo_ttft_s: Ttft = None,
    slo_tpot_s: Tpot = None,
    slo_e2e_s: EndToEnd = None,
    percentile: Percentile = None,
    every_size: EverySize = None,
    engine: Engine = None,
    formats: Formats = None,
    kv_formats: KvFormats = None,
    form: Form = None,
    max_devices_per_instance: MaxInstance = None,
    prefix_hit_frac: PrefixHits = None,
    draft_tokens: Drafts = None,
    accepted_tokens: Accepted = None,
    lora_rank: LoraRank = None,
    num_adapters: Adapters = None,
    objective: Objective = None,
    usd_per_hour: Prices = None,
    provider: Provider = None,
    region: Region = None,
    spot: Spot = None,
    prices: PriceFile = None,
    offer_kinds: OfferKinds = None,
    max_spot_frac: MaxSpot = None,
    load_levels: LoadLevels = None,
    max_devices: MaxDevices = None,
    min_devices: MinDevices = None,
    spare_instances: Spares = None,
    num_zones: Zones = None,
    budget_usd_per_hour: Budget = None,
    power_budget_w: Power = None,
    facility: FacilityFlag = None,
    simulate: Simulate = None,
    top: Top = None,
    request: RequestOption = None,
    catalog: CatalogOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Find the cheapest fleet of instances that serves the workload within the latency targets."""
    # Flags have the names of the request's keys; the context holds them as they were parsed.
    given = context.params
    with readable_errors():
        from planner.serving.flow import plan_serving
        from planner.serving.parts import write_serving_plan
        from planner.serving.request import read_serve_request

        plan = plan_serving(read_serve_request(request, _flags(given)))
        written = () if output is None else write_serving_plan(plan, output)
        _show(plan, written, json=json)
