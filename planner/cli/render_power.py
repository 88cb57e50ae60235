"""Power plans for people: tables, and small pictures drawn in text."""

from collections.abc import Sequence

from hardware.units import format_quantity
from planner.plan import PlanFile
from planner.power.plan import PowerPlan, RowAnswer, ServingCaps, TrainingClocks
from planner.render import console, print_table
from planner.render_site import site_words

__all__ = ["curve_lines", "print_power_plan"]

_BARS = " ▁▂▃▄▅▆▇█"


def curve_lines(
    values: Sequence[float], *, low: float, high: float, height: int = 6, width: int = 72
) -> list[str]:
    """Return a curve as lines of text, top line first; each column shows the highest value it stands for."""
    size = max(1, len(values) // width)
    tops = [max(values[i : i + size]) for i in range(0, len(values), size)][:width]
    lines = []
    for row in reversed(range(height)):
        begin, end = (low + (high - low) * (row + x) / height for x in (0, 1))
        cells = (min(max((v - begin) / (end - begin), 0.0), 1.0) for v in tops)
        lines.append(f"{100 * end:5.0f} % |" + "".join(_BARS[round(c * 8)] for c in cells))
    return lines


def print_power_plan(plan: PlanFile[PowerPlan]) -> None:
    """Print every answer of a power plan, what was checked and what to know."""
    out, best = console(), plan.plans[0]
    if best.row is not None:
        _print_row(best.row)
    if best.training is not None:
        _print_training(best.training)
    if best.serving is not None:
        _print_serving(best.serving)
    for check in best.certificate:
        out.print(f"{'holds' if check.holds else 'FAILS'}: {check.name} ({check.detail})", soft_wrap=True)
    for note in plan.diagnostics:
        out.print(f"note: {note}", soft_wrap=True)


def _print_row(row: RowAnswer) -> None:
    out = console()
    out.print(
        f"row: {row.num_servers} servers under {format_quantity(row.budget_w, 'W')} "
        f"({100 * row.added_frac:+.1f} % over the {row.rated_servers} it was rated for)",
        soft_wrap=True,
    )
    if row.thresholds_frac:
        levels = [
            (f"{i + 1}", f"{100 * t:.1f} %", f"{low:.0f} MHz", f"{high:.0f} MHz")
            for i, (t, low, high) in enumerate(
                zip(row.thresholds_frac, row.low_clocks_mhz, row.high_clocks_mhz, strict=True)
            )
        ]
        print_table("", ["level", "above", "low class", "high class"], levels)
        out.print(
            f"spike allowed for: {100 * row.spike_frac:.1f} % of the budget within {row.delay_s:g} s; "
            f"a level ends {100 * row.hysteresis_frac:g} points lower"
        )
    print_table(
        "",
        [
            "servers",
            "safe",
            "peak",
            "brakes",
            "a year",
            "breach <",
            "high P50/P99",
            "low P50/P99",
        ],
        [
            (
                str(o.num_servers),
                "yes" if o.safe else "no",
                f"{100 * o.peak_frac:.1f} %",
                str(o.num_brakes),
                f"{o.brakes_per_year:.2g}",
                f"{o.breach_probability:.1g}",
                _slower(o.high_p50_frac, o.high_p99_frac),
                _slower(o.low_p50_frac, o.low_p99_frac),
            )
            for o in row.options
        ],
    )
    if row.site is not None:
        out.print(site_words(row.site), soft_wrap=True)
    if len(row.day_frac) > 1:
        out.print("\nrow power over budget, through the simulated day:")
        for line in curve_lines(row.day_frac, low=0.4, high=1.0):
            out.print(line, soft_wrap=True)


def _slower(p50_frac: float, p99_frac: float) -> str:
    """Return by how much the median and the slowest percent of answers are slower."""
    return f"{round(100 * p50_frac, 2):.3g}/{round(100 * p99_frac, 2):.3g} %"


def _clock_words(clocks_mhz: Sequence[tuple[int, int]]) -> str:
    """Return forward and backward clock of the first and the last stage."""
    return "; ".join(f"{forward}/{backward}" for forward, backward in (clocks_mhz[0], clocks_mhz[-1]))


def _print_training(training: TrainingClocks) -> None:
    out = console()
    out.print(
        f"clocks: {training.num_stages} stages x {training.num_microbatches} micro-batches, "
        f"{training.devices_per_stage} {training.device} per stage, fastest {training.fastest_s:.3f} s, "
        f"{training.fastest_energy_j:.4g} J",
        soft_wrap=True,
    )
    print_table(
        "",
        ["slower", "deadline", "energy", "saved", "rounded", "static", "first; last, MHz"],
        [
            (
                f"{100 * p.slowdown_frac:.1f} %",
                f"{p.deadline_s:.3f} s",
                f"{p.energy_j:.4g} J",
                f"{100 * p.saved_frac:.2f} %",
                f"{100 * p.rounded_saved_frac:.2f} %",
                f"{100 * p.static_saved_frac:.2f} %",
                _clock_words(p.static_clocks_mhz),
            )
            for p in training.points
        ],
    )
    if training.straggler_deadline_s is not None:
        out.print(f"beside the straggler: the clocks of deadline {training.straggler_deadline_s:.3f} s")
    if training.site is not None:
        out.print(site_words(training.site), soft_wrap=True)
    out.print("\nfrontier (energy saved against the fastest step):")
    most = max(max(p.saved_frac for p in training.points), 1e-9)
    for p in training.points:
        bar = "█" * max(0, round(48 * p.saved_frac / most))
        out.print(f"{100 * p.slowdown_frac:5.1f} % slower |{bar} {100 * p.saved_frac:.1f} %", soft_wrap=True)


def _print_serving(serving: ServingCaps) -> None:
    out = console()
    print_table(
        "caps",
        ["pool", "role", "devices", "natural", "cap", "or clock", "throughput", "draws", ""],
        [
            (
                p.pool,
                p.role,
                f"{p.num_devices} {p.device}",
                f"{p.natural_w:.0f} W",
                f"{p.cap_w:.0f} W",
                f"{100 * p.clock_frac:.0f} % of max",
                f"{100 * p.throughput_frac:.1f} %",
                f"{p.watts:.0f} W",
                "inert" if p.inert else "",
            )
            for p in serving.pools
        ],
    )
    joules = (
        "" if serving.joules_per_token is None else f", {serving.joules_per_token:.3g} J per output token"
    )
    out.print(
        f"fleet: {format_quantity(serving.watts, 'W')} of "
        f"{format_quantity(serving.natural_w, 'W')} natural{joules}"
    )
    if serving.site is not None:
        out.print(site_words(serving.site), soft_wrap=True)
