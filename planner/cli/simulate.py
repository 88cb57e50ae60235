"""`meshwright simulate`: replay requests through a serving plan or a described fleet, one by one."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import JsonOption

__all__ = ["simulate"]


def _seconds(flag: str, text: str) -> object:
    return typer.Option(flag, help=text, min=0.0)


Plan = Annotated[
    Path | None, typer.Argument(metavar="[PLAN]", help="A plan file of `plan serve`.", show_default=False)
]
TracePath = Annotated[
    Path | None,
    typer.Option("--trace", metavar="CSV", help="arrival_s,prompt_tokens,output_tokens; .gz and .jsonl too."),
]
FleetPath = Annotated[
    Path | None, typer.Option("--fleet", metavar="YAML", help="A fleet described by hand, without a plan.")
]
Rate = Annotated[
    float | None, typer.Option("--rate-per-s", help="Stretch the trace to this mean rate.", min=0.0)
]
NumRequests = Annotated[int | None, typer.Option("--num-requests", help="Only the first so many.", min=1)]
WorkloadName = Annotated[
    str | None,
    typer.Option("--workload", help="In place of a trace: azure-conv, azure-code, fixed:1024x256, CSV."),
]
Arrivals = Annotated[
    str | None,
    typer.Option("--arrivals", help="replay, or made: poisson, gamma, weibull, bursts (fitted), sessions."),
]
MeanTurns = Annotated[float, typer.Option("--mean-turns", help="Of a session's conversation.", min=1.0)]
Think = Annotated[float, _seconds("--think-s", "Mean time between the starts of two turns.")]
Ttft = Annotated[float | None, _seconds("--slo-ttft-s", "Target: arrival to first token.")]
Tpot = Annotated[float | None, _seconds("--slo-tpot-s", "Target: time per later token.")]
Itl = Annotated[float | None, _seconds("--slo-itl-s", "Target: longest gap between tokens.")]
EndToEnd = Annotated[float | None, _seconds("--slo-e2e-s", "Target: arrival to last token.")]
Percentile = Annotated[
    float | None, typer.Option("--percentile", help="Of the requests that must keep each target; 99.")
]
WarmUp = Annotated[float, _seconds("--warm-up-s", "Arrivals this early are not counted.")]
Drain = Annotated[float, _seconds("--drain-s", "Arrivals this close to the last are not counted.")]
Goodput = Annotated[bool, typer.Option("--goodput", help="Find the highest rate within the targets instead.")]
Replications = Annotated[
    int,
    typer.Option(
        "--replications", help="Also so many made traces of this rate, burstiness and sizes.", min=0
    ),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", help="Of replications: loky, threading, multiprocessing, dask or ray."),
]
Jobs = Annotated[int, typer.Option("--jobs", help="Replications at a time; -1 is all cores.")]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler-address", help="Of a running Dask scheduler or Ray head.")
]
BetweenFailures = Annotated[
    float | None,
    typer.Option("--mean-time-between-failures-s", help="Of one engine; drawn at random.", min=1.0),
]
Repair = Annotated[float | None, _seconds("--repair-s", "That a failed engine is away; 600.")]
WriteFleet = Annotated[
    Path | None,
    typer.Option("--write-fleet", metavar="YAML", help="The plan's fleet as a file that can be changed."),
]
Seed = Annotated[int, typer.Option("--seed", help="Of made traces, routing, failures and accepted drafts.")]
RequestsCsv = Annotated[
    Path | None, typer.Option("--requests-csv", metavar="FILE", help="One row per request.")
]
Timeline = Annotated[
    Path | None,
    typer.Option(
        "--timeline", metavar="FILE", help="Queue, batch, cache over time: JSON, or a picture (.svg)."
    ),
]


def simulate(
    plan: Plan = None,
    trace: TracePath = None,
    fleet: FleetPath = None,
    workload: WorkloadName = None,
    arrivals: Arrivals = None,
    rate_per_s: Rate = None,
    num_requests: NumRequests = None,
    mean_turns: MeanTurns = 4.0,
    think_s: Think = 30.0,
    slo_ttft_s: Ttft = None,
    slo_tpot_s: Tpot = None,
    slo_itl_s: Itl = None,
    slo_e2e_s: EndToEnd = None,
    percentile: Percentile = None,
    warm_up_s: WarmUp = 0.0,
    drain_s: Drain = 0.0,
    goodput: Goodput = False,
    replications: Replications = 0,
    backend: Backend = None,
    jobs: Jobs = -1,
    scheduler_address: Scheduler = None,
    mean_time_between_failures_s: BetweenFailures = None,
    repair_s: Repair = None,
    write_fleet: WriteFleet = None,
    seed: Seed = 0,
    requests_csv: RequestsCsv = None,
    timeline_json: Timeline = None,
    json: JsonOption = False,
) -> None:
    """Replay a trace, request by request, and show latencies, targets met, use and cost."""
    with readable_errors():
        from planner.simulate.asked_trace import AskedTrace
        from planner.simulate.report import Question, print_summary, run_question, write_fleet_file

        traffic = AskedTrace(
            path=trace, workload=workload, rate_per_s=rate_per_s, num_requests=num_requests,
            arrivals=arrivals, mean_turns=mean_turns, think_s=think_s,
        )  # fmt: skip
        question = Question(
            plan=plan, fleet=fleet, write_fleet=write_fleet, traffic=traffic, seed=seed,
            targets={"ttft_s": slo_ttft_s, "tpot_s": slo_tpot_s, "itl_s": slo_itl_s, "e2e_s": slo_e2e_s},
            percentile=percentile, warm_up_s=warm_up_s, drain_s=drain_s, goodput=goodput,
            replications=replications, backend=backend, jobs=jobs, scheduler_address=scheduler_address,
            mean_time_between_failures_s=mean_time_between_failures_s, repair_s=repair_s,
            requests_csv=requests_csv, timeline_json=timeline_json,
        )  # fmt: skip
        if write_fleet is not None and traffic.is_empty:
            write_fleet_file(question)
            typer.echo(f"written: {write_fleet}", err=True)
            return
        print_summary(run_question(question), as_json=json)
