"""`meshwright simulate`: replay requests through a serving plan or a described fleet, one by one."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import JsonOption

__all__ = ["simulate"]


def _seconds(flag: str, text: str) -> object:
    return typer.Option(flag, help=text, min=0.0)


def simulate(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="A plan file of `plan serve`.", show_default=False)
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="CSV", help="arrival_s,prompt_tokens,output_tokens; .gz too."),
    ] = None,
    fleet: Annotated[
        Path | None,
        typer.Option("--fleet", metavar="YAML", help="A fleet described by hand, without a plan."),
    ] = None,
    rate_per_s: Annotated[
        float | None, typer.Option("--rate-per-s", help="Stretch the trace to this mean rate.", min=0.0)
    ] = None,
    num_requests: Annotated[
        int | None, typer.Option("--num-requests", help="Only the first so many.", min=1)
    ] = None,
    slo_ttft_s: Annotated[float | None, _seconds("--slo-ttft-s", "Target: arrival to first token.")] = None,
    slo_tpot_s: Annotated[float | None, _seconds("--slo-tpot-s", "Target: time per later token.")] = None,
    slo_itl_s: Annotated[float | None, _seconds("--slo-itl-s", "Target: longest gap between tokens.")] = None,
    slo_e2e_s: Annotated[float | None, _seconds("--slo-e2e-s", "Target: arrival to last token.")] = None,
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="Of the requests that must keep each target; 99.")
    ] = None,
    warm_up_s: Annotated[float, _seconds("--warm-up-s", "Arrivals this early are not counted.")] = 0.0,
    drain_s: Annotated[
        float, _seconds("--drain-s", "Arrivals this close to the last are not counted.")
    ] = 0.0,
    goodput: Annotated[
        bool, typer.Option("--goodput", help="Find the highest rate within the targets instead.")
    ] = False,
    replications: Annotated[
        int,
        typer.Option(
            "--replications", help="Also so many made traces of this rate, burstiness and sizes.", min=0
        ),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of routing, failures and accepted drafts.")] = 0,
    requests_csv: Annotated[
        Path | None, typer.Option("--requests-csv", metavar="FILE", help="One row per request.")
    ] = None,
    timeline_json: Annotated[
        Path | None,
        typer.Option("--timeline", metavar="FILE", help="Queue, batch and cache over time, JSON."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Replay a trace, request by request, and show latencies, targets met, use and cost."""
    given = locals()
    with readable_errors():
        from planner.simulate.report import Question, print_summary, run_question

        targets = {name: given.pop(f"slo_{name}") for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s")}
        as_json = given.pop("json")
        print_summary(run_question(Question(**given, targets=targets)), as_json=as_json)
