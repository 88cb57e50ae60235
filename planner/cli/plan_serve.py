"""`meshwright plan serve`: the cheapest fleet that keeps the latency targets."""

from typing import Annotated, Any

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import CatalogOption, JsonOption, ModelOption, OutputOption, RequestOption

__all__ = ["plan_serve"]


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


def plan_serve(
    model: ModelOption = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="Devices, separated by commas.")] = None,
    workload: Annotated[
        str | None,
        typer.Option("--workload", help="Trace or histogram CSV, azure-conv, azure-code, fixed:1024x256."),
    ] = None,
    rate_per_s: Annotated[float | None, typer.Option("--rate-per-s", help="Requests per second.")] = None,
    slo_ttft_s: Annotated[float | None, typer.Option("--slo-ttft-s", help="Time to first token.")] = None,
    slo_tpot_s: Annotated[float | None, typer.Option("--slo-tpot-s", help="Time per output token.")] = None,
    slo_e2e_s: Annotated[float | None, typer.Option("--slo-e2e-s", help="Time to the last token.")] = None,
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="Percent of requests within every target; 99.")
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="vllm, sglang, trtllm or mindie.")] = None,
    formats: Annotated[
        str | None, typer.Option("--formats", help="Allowed weight formats, by commas; bf16.")
    ] = None,
    kv_formats: Annotated[
        str | None, typer.Option("--kv-formats", help="Allowed cache formats; bf16.")
    ] = None,
    form: Annotated[str | None, typer.Option("--form", help="auto, joint or split.")] = None,
    usd_per_hour: Annotated[
        str | None, typer.Option("--usd-per-hour", help="Prices of one device: h100=2.5,l4=0.7.")
    ] = None,
    max_devices: Annotated[
        str | None, typer.Option("--max-devices", help="Devices that can be had: h100=16.")
    ] = None,
    min_devices: Annotated[str | None, typer.Option("--min-devices", help="Devices to use at least.")] = None,
    spare_instances: Annotated[
        int | None, typer.Option("--spare-instances", help="Instances of each kind that may fail.")
    ] = None,
    num_zones: Annotated[int | None, typer.Option("--num-zones", help="Zones; one may be lost.")] = None,
    budget_usd_per_hour: Annotated[
        float | None, typer.Option("--budget-usd-per-hour", help="Most to spend.")
    ] = None,
    power_budget_w: Annotated[float | None, typer.Option("--power-budget-w", help="Most to draw.")] = None,
    simulate: Annotated[
        bool | None, typer.Option("--simulate/--no-simulate", help="Check the plan by simulation.")
    ] = None,
    request: RequestOption = None,
    catalog: CatalogOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Find the cheapest fleet of instances that serves the workload within the latency targets."""
    given = locals()
    with readable_errors():
        from planner.plan_io import plan_text, write_plan
        from planner.serving_plan import plan_serving
        from planner.serving_request import read_serve_request

        plain = (
            "model", "workload", "rate_per_s", "slo_ttft_s", "slo_tpot_s", "slo_e2e_s", "percentile",
            "engine", "form", "spare_instances", "num_zones", "budget_usd_per_hour", "power_budget_w",
            "simulate",
        )  # fmt: skip
        flags: dict[str, Any] = {name: given[name] for name in plain}
        flags |= {name: _given(given[name]) for name in ("gpus", "formats", "kv_formats")}
        flags["catalog"] = tuple(catalog or ())
        for name, kind in (("usd_per_hour", float), ("max_devices", int), ("min_devices", int)):
            flags[name] = _by_name(given[name], f"--{name.replace('_', '-')}", kind) or None
        plan = plan_serving(read_serve_request(request, flags))
        if output is not None:
            write_plan(plan, output)
        if json:
            typer.echo(plan_text(plan), nl=False)
            return
        from planner.cli.render_serving import print_serving_plans

        print_serving_plans(plan)
        if output is not None:
            typer.echo(f"written: {output}", err=True)
