"""A question to the simulator, as typed, answered: read, run, write the files that were asked for."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.job import Slo
from costmodels.traces import Trace
from hardware.errors import SpecError
from hardware.units import format_quantity
from planner.plan_io import write_text
from planner.simulate.asked_trace import AskedTrace
from planner.simulate.core import Raw, simulate
from planner.simulate.fleet import Fleet
from planner.simulate.fleet_file import read_fleet
from planner.simulate.goodput import find_goodput, replicate
from planner.simulate.outcome import Latencies, Measurement, latencies, summary, timeline
from planner.simulate.parallel import workers
from planner.simulate.plan_fleet import plan_fleet_text, read_plan_fleet
from planner.simulate.rate_bound import rate_bound_per_s
from planner.simulate.settling import settling_s
from planner.simulate.timeline_picture import timeline_svg

__all__ = ["Question", "print_summary", "requests_table", "run_question", "write_fleet_file"]

SCHEMA_VERSION = 1
_NO_PLAN = "needs a PLAN; a --fleet is a file already"
_RATE_MISSED_FRAC = 0.1
"""Between the mean rate of a made trace and the asked one before it is told (chance and the ends)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be simulated; see the options of `meshwright simulate`."""

    plan: Path | None = None
    fleet: Path | None = None
    traffic: AskedTrace = field(default_factory=AskedTrace)
    targets: dict[str, float | None] = field(default_factory=dict)
    percentile: float | None = None
    warm_up_s: float = 0.0
    drain_s: float = 0.0
    goodput: bool = False
    replications: int = 0
    """Made traces, for 95 % intervals."""
    backend: str | None = None
    """Where replications run; see `planner.simulate.parallel`."""
    jobs: int = -1
    scheduler_address: str | None = None
    mean_time_between_failures_s: float | None = None
    """Of one engine; failures are drawn at random on top of the fleet's own."""
    repair_s: float | None = None
    write_fleet: Path | None = None
    """The plan's fleet as a file that can be changed: scaling, failures, policies, routers."""
    seed: int = 0
    requests_csv: Path | None = None
    timeline_json: Path | None = None


def run_question(question: Question) -> dict[str, Any]:
    """Return the answer as it goes into a file.

    Raises
    ------
    InputError
        if the flags do not fit together, or a file is wrong.
    """
    fleet, planned = _fleet(question)
    trace = question.traffic.trace(question.seed)
    if question.write_fleet is not None:
        write_fleet_file(question)
    slo = _slo(question, planned)
    head = {"schema_version": SCHEMA_VERSION, "kind": "simulation", "seed": question.seed}
    if question.goodput:
        if slo is None:
            raise SpecError(
                "--goodput", ["needs a target: --slo-ttft-s, --slo-tpot-s, --slo-itl-s or --slo-e2e-s"]
            )
        found = find_goodput(fleet, trace, slo, seed=question.seed)
        return head | {
            "goodput": {
                "rate_per_s": found.rate_per_s,
                "failed_per_s": found.failed_per_s if np.isfinite(found.failed_per_s) else None,
                "bound_per_s": rate_bound_per_s(fleet, trace),
                "rate_per_s_per_device": found.rate_per_s / fleet.num_devices,
                "attainment_frac": found.attainment_frac,
                "num_probes": found.num_probes,
                "span_s": (len(trace) - 1) / found.rate_per_s if found.rate_per_s > 0.0 else None,
                "settling_s": settling_s(slo, float(trace.output_tokens.mean())),
            },
            "num_requests": len(trace),
        }
    raw = simulate(fleet, trace, seed=question.seed)
    rule = Measurement(warm_up_s=question.warm_up_s, drain_s=question.drain_s)
    seen = latencies(raw, rule)
    if not len(seen.request):
        raise SpecError(
            "--warm-up-s", [f"no arrival is left between warm-up and drain of {trace.span_s:g} s"]
        )
    answer = head | summary(raw, slo, rule) | {"rate_bound_per_s": rate_bound_per_s(fleet, trace)}
    answer["arrivals_per_s"] = trace.rate_per_s if np.isfinite(trace.rate_per_s) else None
    answer["asked_arrivals_per_s"] = question.traffic.rate_per_s
    if question.replications:
        answer["replications"] = _replications(question, fleet, trace, slo)
    if question.requests_csv is not None:
        write_text(requests_table(raw, seen), question.requests_csv)
    if question.timeline_json is not None:
        write_text(_timeline_text(raw, question.timeline_json), question.timeline_json)
    return answer


def write_fleet_file(question: Question) -> None:
    """Write the plan's fleet as a file that can be changed.

    Raises
    ------
    SpecError, InputError
        if there is no plan, or it holds no fleet.
    """
    if question.plan is None or question.write_fleet is None:
        raise SpecError("--write-fleet", [_NO_PLAN])
    write_text(plan_fleet_text(question.plan), question.write_fleet)


def _replications(question: Question, fleet: Fleet, trace: Trace, slo: Slo | None) -> dict[str, Any]:
    """Return mean and 95 % interval of the main figures over made traces of the same traffic."""

    def run(seed: int) -> dict[str, float]:
        made = question.traffic.replication(seed)
        rule = Measurement(warm_up_s=question.warm_up_s, drain_s=question.drain_s)
        found = summary(simulate(fleet, made, seed=seed), slo, rule)
        figures = {
            f"{name}.{point}": found[name][point]
            for name in ("ttft_s", "tpot_s", "e2e_s")
            if found[name] is not None
            for point in ("mean", "p50", "p99")
        }
        return figures if slo is None else figures | {"slo_attainment_frac": found["slo_attainment_frac"]}

    seeds = range(question.seed, question.seed + question.replications)
    with workers(question.backend, num_jobs=question.jobs, address=question.scheduler_address):
        found = replicate(run, seeds=seeds, num_jobs=None)
    return {"num_replications": question.replications} | {
        name: {"mean": e.mean, "low": e.low, "high": e.high} for name, e in found.items()
    }


def _fleet(question: Question) -> tuple[Fleet, Slo | None]:
    if (question.plan is None) == (question.fleet is None):
        raise SpecError("simulate", ["give either a PLAN or --fleet YAML"])
    if question.plan is None and question.write_fleet is not None:
        raise SpecError("--write-fleet", [_NO_PLAN])
    if question.plan is not None:
        fleet, planned = read_plan_fleet(question.plan)
    else:
        assert question.fleet is not None
        fleet, planned = read_fleet(question.fleet), None
    failing = {
        name: value
        for name in ("mean_time_between_failures_s", "repair_s")
        if (value := getattr(question, name)) is not None
    }
    return (replace(fleet, **failing) if failing else fleet), planned


def _timeline_text(raw: Raw, path: Path) -> str:
    """Return the timeline as a picture for names that end in .svg, else as JSON."""
    if path.suffix == ".svg":
        return timeline_svg(timeline(raw))
    return json.dumps(timeline(raw), sort_keys=True) + "\n"


def _slo(question: Question, planned: Slo | None) -> Slo | None:
    """Return the targets that were typed, or the plan's where none was."""
    given = {name: value for name, value in question.targets.items() if value is not None}
    if not given and question.percentile is None:
        return planned
    base = {} if planned is None else planned.targets
    percentile = question.percentile
    if percentile is None:
        percentile = planned.percentile if planned is not None else 99.0
    try:
        return Slo(**(base | given), percentile=percentile)
    except ValueError as error:
        raise SpecError("--slo", [str(error)]) from None


def requests_table(raw: Raw, seen: Latencies) -> str:
    """Return the counted requests as CSV text, one row each."""
    from io import StringIO

    table, trace = raw.table, raw.trace
    names = [pool.name for pool in raw.fleet.pools]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            "request",
            "arrival_s",
            "prompt_tokens",
            "output_tokens",
            "queue_s",
            "ttft_s",
            "tpot_s",
            "longest_itl_s",
            "e2e_s",
            "pool",
            "engine",
            "prefix_hit_tokens",
            "preemptions",
            "restarts",
        )
    )
    for i, row in enumerate(seen.request.tolist()):
        tpot = seen.tpot_s[i]
        writer.writerow(
            (
                row,
                f"{trace.arrival_s[row]:.6f}",
                trace.prompt_tokens[row],
                trace.output_tokens[row],
                f"{table.start_s[row] - table.arrival_s[row]:.6f}",
                f"{seen.ttft_s[i]:.6f}",
                "" if np.isnan(tpot) else f"{tpot:.6f}",
                f"{seen.itl_s[i]:.6f}",
                f"{seen.e2e_s[i]:.6f}",
                names[raw.pool_of[table.engine[row]]],
                table.engine[row],
                table.hit_tokens[row],
                table.preemptions[row],
                table.restarts[row],
            )
        )
    return text.getvalue()


def print_summary(answer: dict[str, Any], *, as_json: bool) -> None:
    """Print the answer: exactly the file format, or short tables for a person."""
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2, sort_keys=True, allow_nan=False) + "\n")
        return
    from planner.render import print_table

    if "goodput" in answer:
        found = answer["goodput"]
        rows = [(name, f"{value:.6g}" if value is not None else "none") for name, value in found.items()]
        print_table("Goodput", ("figure", "value"), rows)
        if found["span_s"] is not None and found["span_s"] < found["settling_s"]:
            wanted = math.ceil(found["settling_s"] * found["rate_per_s"])
            sys.stdout.write(
                f"note: too few requests for queues to settle, so this is an upper bound; {wanted} would do\n"
            )
        return
    points = ("mean", "p50", "p90", "p95", "p99", "max")
    rows_s = [
        (name, *(format_quantity(answer[name][p], "s") for p in points))
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s")
        if answer[name] is not None
    ]
    print_table(
        f"{answer['num_counted']} of {answer['num_requests']} requests counted", ("latency", *points), rows_s
    )
    if answer["slo"] is not None:
        _print_targets(answer["slo"])
    pool_rows = [
        (
            pool["name"],
            _engines(pool),
            str(pool["requests"]),
            f"{100 * pool['busy_frac']:.1f} %",
            f"{pool['mean_batch']:.1f}",
            f"{100 * pool['peak_kv_frac']:.1f} %",
            f"{pool['mean_waiting']:.2f}",
        )
        for pool in answer["pools"]
    ]
    print_table(
        "", ("pool", "engines", "requests", "busy", "mean batch", "peak cache", "mean queue"), pool_rows
    )
    if "replications" in answer:
        interval_rows = [
            (name, f"{e['mean']:.5g}", f"{e['low']:.5g}", f"{e['high']:.5g}")
            for name, e in answer["replications"].items()
            if isinstance(e, dict)
        ]
        title = f"{answer['replications']['num_replications']} made traces"
        print_table(title, ("figure", "mean", "95 % from", "to"), interval_rows)
    _print_totals(answer)


def _print_totals(answer: dict[str, Any]) -> None:
    from planner.render import print_table

    watts = "n/a" if answer["watts"] is None else format_quantity(answer["watts"], "W")
    totals = [
        ("throughput", f"{answer['throughput_tokens_per_s']:.1f} tokens/s"),
        (
            "requests",
            f"{answer['requests_per_s']:.3f} /s (no schedule passes {answer['rate_bound_per_s']:.3f})",
        ),
        ("arrivals", _arrivals(answer["arrivals_per_s"], answer["asked_arrivals_per_s"])),
        ("cost", f"{answer['cost_usd_per_hour']:.2f} USD/h"),
        ("power", watts),
        ("preemptions", str(answer["num_preemptions"])),
    ]
    if answer["num_restarts"]:
        totals.append(("restarts after failures", str(answer["num_restarts"])))
    if answer["prefix_hit_frac"]:
        totals.append(("prompt tokens cached", f"{100 * answer['prefix_hit_frac']:.1f} %"))
    moved = answer["kv_transfers"]
    if moved["count"]:
        totals.append(("cache transfers", f"{moved['count']}, {format_quantity(moved['mean_s'], 's')} each"))
    print_table("", ("total", "value"), totals)


def _arrivals(rate_per_s: float | None, asked_per_s: float | None) -> str:
    """Return the rate of arrivals, and what was asked where conversations did not build up to it."""
    if rate_per_s is None:
        return "all at once"
    text = f"{rate_per_s:.3f} /s"
    if asked_per_s is None or abs(rate_per_s / asked_per_s - 1.0) < _RATE_MISSED_FRAC:
        return text
    return f"{text} of {asked_per_s:g} /s asked: the trace ends before conversations build up to it"


def _engines(pool: dict[str, Any]) -> str:
    """Return the engines of a pool, and how many were on in the mean where that is not all of them."""
    on = pool["mean_engines_on"]
    return str(pool["engines"]) if on > pool["engines"] - 0.05 else f"{on:.1f} of {pool['engines']}"


def _print_targets(slo: dict[str, Any]) -> None:
    from planner.render import print_table

    word = "kept" if slo["met"] else "broken"
    rows = [
        (
            name,
            format_quantity(target, "s"),
            format_quantity(slo["at_percentile"][name], "s"),
            f"{100 * slo['attainment_frac_by_target'][name]:.2f} %",
        )
        for name, target in slo["targets"].items()
    ]
    title = f"Targets at p{slo['percentile']:g}: {word}; {slo['binding']} binds"
    print_table(title, ("target", "limit", "simulated", "requests within"), rows)
