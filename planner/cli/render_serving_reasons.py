"""Explanations and comparisons of serving plans for people."""

from planner.cli.render_reasons import print_asked
from planner.render import console, print_table
from planner.serving.compare import ServingComparison
from planner.serving.explain import ServingExplanation

__all__ = ["print_serving_comparison", "print_serving_explanation"]


def print_serving_comparison(comparison: ServingComparison) -> None:
    """Print instances and devices that differ, then figure by figure."""
    out = console()
    print_asked(comparison.asked)
    for name, (first, second) in (("form", comparison.form), ("engine", comparison.engine)):
        if first != second:
            out.print(f"{name}: {first} and {second}", soft_wrap=True)
    for title, counts in (("instances", comparison.instances), ("devices", comparison.devices)):
        if counts:
            rows = [[name, str(a), str(b), f"{b - a:+d}"] for name, (a, b) in counts.items()]
            print_table(f"\n{title} that differ", [title, "first", "second", "difference"], rows)
    if not comparison.instances:
        out.print("the instances are the same")
    for title, changes in (("predicted", comparison.figures), ("replayed", comparison.simulated)):
        if changes:
            rows = [[c.name, f"{c.first:.4g}", f"{c.second:.4g}", f"{c.difference:+.4g}"] for c in changes]
            print_table(f"\n{title}", ["figure", "first", "second", "difference"], rows)


def print_serving_explanation(found: ServingExplanation) -> None:
    """Print why a fleet won, what changes of the question cost, and what was checked."""
    out = console()
    out.print(found.reason, soft_wrap=True)
    rows = [
        [
            m.change,
            "cannot be served" if m.usd_per_hour is None else f"{m.usd_per_hour:.2f} USD/h",
            "" if m.difference_usd_per_hour is None else f"{m.difference_usd_per_hour:+.2f}",
            "" if m.requests_per_s is None else f"{m.requests_per_s:.3g}",
            "" if m.watts is None else f"{m.watts:.0f}",
        ]
        for m in found.margins
    ]
    columns = ("change", "best fleet", "difference", "requests/s", "watts")
    print_table("\nif the question were another", columns, rows)
    for check in found.certificate:
        out.print(f"{'holds' if check.holds else 'FAILS'}: {check.name}: {check.detail}", soft_wrap=True)
    for note in found.assumptions:
        out.print(f"note: {note}", soft_wrap=True)
