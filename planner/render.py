"""Plans and tables for people; the only place below which numbers get readable units."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from costmodels.strategy import Recompute, Strategy
from hardware.units import format_quantity
from planner.plan import PlanFile, PlannedSeats, TrainingPlan, TrainingPrediction
from planner.render_site import site_words

__all__ = ["console", "parts_text", "print_errors", "print_table", "print_training_plans", "strategy_words"]

_MAX_RULES = 12


def console() -> Console:
    """Return a console on stdout: as wide as the terminal, or wide enough for any table in a pipe."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; columns whose every cell starts like a number stand right."""
    cells = [list(map(str, row)) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        numeric = all(row[i][:1] in "0123456789-.+" or row[i] in ("", "n/a") for row in cells)
        table.add_column(
            name, justify="right" if numeric and cells else "left", overflow="fold", no_wrap=i == 0
        )
    for row in cells:
        table.add_row(*row)
    out = console()
    if title:
        out.print(title, soft_wrap=True)
    out.print(table)


def strategy_words(s: Strategy) -> dict[str, str]:
    """Return a strategy as short cells, by column title."""
    recompute = s.recompute.name.lower()
    if s.recompute is Recompute.FULL and s.recompute_layers:
        recompute = f"full x{s.recompute_layers}"
    shard = f"zero-{s.zero}" + (f" /{s.shard_group}" if s.shard_group else "")
    experts = f"{s.ep}x{s.etp}" if s.ep > 1 or s.etp > 1 else "-"
    switches = [n for n, on in (("sp", s.sequence_parallel), ("tp-overlap", s.overlap_tp)) if on]
    return {
        "tp": str(s.tp),
        "cp": str(s.cp),
        "pp": str(s.pp),
        "dp": str(s.dp),
        "ep x etp": experts,
        "vpp": str(s.vpp),
        "micro": str(s.micro_batch),
        "recompute": recompute,
        "sharding": shard,
        "with": " ".join(switches) or "-",
    }


def parts_text(parts: Mapping[str, float], unit: str, *, least_frac: float = 0.01) -> str:
    """Return parts largest first, those under `least_frac` of the sum left out of sight as "rest"."""
    total = sum(parts.values()) or 1.0
    shown = sorted(parts.items(), key=lambda p: (-abs(p[1]), p[0]))
    large = [(n, v) for n, v in shown if abs(v) >= least_frac * total]
    rest = sum(v for n, v in shown if abs(v) < least_frac * total)
    words = [f"{name} {format_quantity(value, unit)}" for name, value in large]
    return ", ".join(words + ([f"rest {format_quantity(rest, unit)}"] if rest else []))


def _prediction_words(p: TrainingPrediction) -> dict[str, str]:
    return {
        "step": f"{p.step_s:.3f} s",
        "90 % interval": f"{p.step_low_s:.3f} - {p.step_high_s:.3f} s",
        "tokens/s/GPU": f"{p.tokens_per_s_per_device:.0f}",
        "MFU": f"{100 * p.mfu_frac:.1f} %",
        "peak": format_quantity(p.peak_memory_bytes, "B"),
        "fits": f"{100 * p.fits_probability:.2f} %",
    }


def _figure(name: str, value: float | int | None) -> str:
    if value is None:
        return "n/a"
    if name.endswith("_frac"):
        return f"{100 * value:.2f} %"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_errors(rows: Sequence[tuple[str, Any]]) -> None:
    """Print errors of predictions, one line per label; each value knows its figures (`to_json`)."""
    figures = [(label, errors.to_json()) for label, errors in rows]
    names = [n for n in figures[0][1] if any(e[n] is not None for _, e in figures)]
    titles = ["", *(n.removesuffix("_frac").replace("_", " ") for n in names)]
    print_table("", titles, ([label, *(_figure(n, e[n]) for n in names)] for label, e in figures))


def print_training_plans(plan: PlanFile[TrainingPlan]) -> None:
    """Print the best configurations, where the best one's time and memory go, and what was searched."""
    out = console()
    request = plan.request
    batch = f"{request['global_batch']} sequences of {request['seq_len']} tokens"
    out.print(f"{request['model']} on {_world(plan)} ({batch}, {request['precision']}, {request['stack']})")
    rows = [
        {"#": str(i + 1)} | strategy_words(p.strategy) | _prediction_words(p.predicted)
        for i, p in enumerate(plan.plans)
    ]
    dull = {"ep x etp", "cp", "vpp"}
    idle = {c for c in dull if all(row[c] in ("-", "1") for row in rows)}
    columns = [c for c in rows[0] if c not in idle]
    print_table("", columns, ([row[c] for c in columns] for row in rows))
    best = plan.plans[0].predicted
    out.print(f"\ntime of #1:   {parts_text(best.time_parts_s, 's')}", soft_wrap=True)
    capacity = format_quantity(best.memory_capacity_bytes, "B")
    out.print(f"memory of #1: {parts_text(best.memory_parts_bytes, 'B')}; of {capacity}", soft_wrap=True)
    _print_power(best, out)
    first = plan.plans[0]
    for line in (*_stage_lines(first), *_island_lines(first), *_sharding_lines(first)):
        out.print(line, soft_wrap=True)
    _print_certificate(plan.plans[0], out)
    _print_search(plan, out)


def _print_power(best: TrainingPrediction, out: Console) -> None:
    if best.energy_j is None or best.watts_per_device is None or best.joules_per_token is None:
        return
    money = "" if best.cost_usd is None else f", {best.cost_usd:.3g} USD per step"
    out.print(
        f"power of #1:  {best.watts_per_device:.0f} W per device, {format_quantity(best.energy_j, 'J')} "
        f"per step, {best.joules_per_token:.3g} J per token{money}",
        soft_wrap=True,
    )
    if best.site is not None:
        out.print(f"              {site_words(best.site)}", soft_wrap=True)


def _stage_lines(plan: TrainingPlan) -> list[str]:
    """Return the stages of a pipeline over unlike groups, equal neighbours together."""
    words = []
    for stage in plan.stages:
        seats = stage.seats or (PlannedSeats(group=stage.group, tp=stage.tp, replicas=plan.strategy.dp),)
        held = " + ".join(f"{s.replicas} x tp {s.tp} on {s.group}" for s in seats)
        words.append(f"{stage.num_layers} layers on {held}")
    runs = [(text, len(list(same))) for text, same in groupby(words)]
    listed = " | ".join(f"{count} stages of {text}" if count > 1 else text for text, count in runs)
    return [f"stages of #1: {listed}"] if words else []


def _island_lines(plan: TrainingPlan) -> list[str]:
    """Return what each island of a plan with local updates does."""
    if plan.local_updates is None:
        return []
    updates = plan.local_updates
    lines = [
        f"local updates: models averaged every {updates.local_steps} steps, "
        f"other islands' updates {updates.staleness_steps} steps late"
    ]
    for island in updates.islands:
        words = ", ".join(
            f"{k} {v}" for k, v in strategy_words(island.strategy).items() if v not in ("1", "-")
        )
        lines.append(
            f"  {island.group}: {island.global_batch} sequences in {island.step_s:.3f} s alone ({words})"
        )
    return lines


def _sharding_lines(plan: TrainingPlan) -> list[str]:
    """Return over how many replicas each kind of state is divided, where they differ."""
    if plan.sharding is None:
        return []
    s = plan.sharding
    second = f", a second copy over {s.backward_ranks}" if s.backward_ranks < s.weight_ranks else ""
    packed = ", in 8 and 4 bits on the wire" if s.quantized else ""
    groups = f"weights over {s.weight_ranks} replicas{second}, gradients over {s.gradient_ranks}"
    return [f"sharding of #1: {groups}, optimizer over {s.optimizer_ranks}{packed}"]


def _print_certificate(plan: TrainingPlan, out: Console) -> None:
    """Print what was checked of the best plan: names of what holds, and every failure with its figures."""
    held = [check.name for check in plan.certificate if check.holds]
    out.print(f"certificate of #1: {len(held)} of {len(plan.certificate)} checks hold: {', '.join(held)}",
              soft_wrap=True)  # fmt: skip
    for check in plan.certificate:
        if not check.holds:
            out.print(f"  fails {check.name}: {check.detail}", soft_wrap=True)


def _world(plan: PlanFile[TrainingPlan]) -> str:
    ranks = plan.plans[0].placement.ranks
    hosts = len({r.host for r in ranks})
    nodes = plan.request.get("nodes") or hosts
    where = f"{nodes} node{'s' if nodes > 1 else ''}" + (f", {hosts} hosts" if hosts != nodes else "")
    return f"{plan.request['cluster']}: {len(ranks)} devices in {where}"


def _print_search(plan: PlanFile[Any], out: Console) -> None:
    search = plan.search
    out.print(
        f"\nsearched {search.num_configs:,} configuration{'s' if search.num_configs != 1 else ''} "
        f"in {search.wall_s:.2f} s, "
        f"{search.num_feasible:,} fit, the front of time against memory has {len(plan.pareto)}"
    )
    counted = sorted((e for e in search.excluded if e.count), key=lambda e: -e.count)
    if counted:
        out.print("excluded, by rule (partial configurations, each stands for all that would grow from it):")
    for e in counted[:_MAX_RULES]:
        out.print(f"  {e.count:>9,}  {e.rule}: {e.why}", soft_wrap=True)
    for e in search.excluded:
        if not e.count:
            out.print(f"  not tried  {e.rule}: {e.why}", soft_wrap=True)
    for note in plan.diagnostics:
        out.print(f"note: {note}", soft_wrap=True)
