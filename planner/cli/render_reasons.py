"""Explanations and comparisons for people."""

from collections.abc import Mapping, Sequence

from hardware.units import format_quantity
from planner.render import console, parts_text, print_table, strategy_words
from planner.training.compare import Change, Comparison
from planner.training.explain import Explanation, Margin

__all__ = ["print_asked", "print_comparison", "print_explanation"]

_LEAST_SHOWN_FRAC = 0.002
"""A part that differs by less of the total is not worth a line."""


def _signed(change: Change, unit: str) -> str:
    return f"{'+' if change.difference >= 0 else ''}{format_quantity(change.difference, unit)}"


def _print_changes(title: str, total: Change, parts: Sequence[Change], unit: str) -> None:
    least = _LEAST_SHOWN_FRAC * max(abs(total.first), abs(total.second))
    shown = [total, *(c for c in parts if abs(c.difference) >= least)]
    rows = [
        [c.name, format_quantity(c.first, unit), format_quantity(c.second, unit), _signed(c, unit)]
        for c in shown
    ]
    print_table(title, ["", "first", "second", "difference"], rows)


def print_asked(asked: Mapping[str, tuple[str, str]]) -> None:
    """Print the keys in which two requests differ."""
    if asked:
        rows = [[name, first, second] for name, (first, second) in asked.items()]
        print_table("questions that differ", ["key", "first", "second"], rows)
        console().print()


def print_comparison(comparison: Comparison) -> None:
    """Print questions and decisions that differ, time and memory part by part, then the other figures."""
    out = console()
    print_asked(comparison.asked)
    rows = [[name, first, second] for name, (first, second) in comparison.decisions.items()]
    if rows:
        print_table("decisions that differ", ["decision", "first", "second"], rows)
    else:
        out.print("the strategies are the same")
    out.print()
    _print_changes("time of a step", comparison.step_s, comparison.time_parts_s, "s")
    out.print()
    _print_changes(
        "memory of the fullest device", comparison.peak_memory_bytes, comparison.memory_parts_bytes, "B"
    )
    rows = [[c.name, f"{c.first:.4g}", f"{c.second:.4g}", f"{c.difference:+.4g}"] for c in comparison.figures]
    print_table("\nother figures", ["figure", "first", "second", "difference"], rows)
    fits = comparison.fits_probability
    out.print(f"\nprobability that it fits: {100 * fits.first:.2f} % and {100 * fits.second:.2f} %")
    if comparison.intervals_overlap and comparison.step_s.difference:
        out.print("the steps differ by less than the prediction's spread; measure both before preferring one")


def _margin_row(margin: Margin) -> list[str]:
    if margin.step_s is None or margin.slower_frac is None:
        return [margin.decision, margin.chosen, margin.other, "nothing fits", ""]
    return [
        margin.decision,
        margin.chosen,
        margin.other,
        f"{margin.step_s:.3f} s",
        f"{100 * margin.slower_frac:+.2f} %",
    ]


def print_explanation(explanation: Explanation) -> None:
    """Print why the best plan won."""
    out = console()
    plan = explanation.plan
    words = ", ".join(f"{name} {word}" for name, word in strategy_words(plan.strategy).items() if word != "-")
    out.print(f"chosen: {words}")
    p = plan.predicted
    out.print(f"step {p.step_s:.3f} s (90 % interval {p.step_low_s:.3f} to {p.step_high_s:.3f} s):")
    out.print(f"  {parts_text(p.time_parts_s, 's')}")
    out.print(
        f"memory {format_quantity(p.peak_memory_bytes, 'B')}, fits with {100 * p.fits_probability:.2f} %:"
    )
    out.print(f"  {parts_text(p.memory_parts_bytes, 'B')}")
    if explanation.runner_up is not None:
        out.print("\nwhy the runner-up (second) lost to the chosen plan (first):")
        print_comparison(explanation.runner_up)
    out.print()
    rows = [_margin_row(m) for m in explanation.margins]
    columns = ["decision", "chosen", "instead", "best step", "against the best"]
    if rows:
        worth = "what each decision is worth: the best step with another value, all else free"
        print_table(worth, columns, rows)
    out.print("\nchecked:")
    for check in plan.certificate:
        out.print(f"  {'ok ' if check.holds else 'NOT'} {check.name}: {check.detail}", soft_wrap=True)
    out.print("\nto know before relying on it:")
    for note in explanation.assumptions:
        out.print(f"  {note}", soft_wrap=True)
