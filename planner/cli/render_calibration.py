"""Calibrations, validations and tunings as tables for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_calibration", "print_tuning", "print_validation"]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _show(table: Table) -> None:
    Console(width=110, soft_wrap=False).print(table)


def print_calibration(document: Mapping[str, Any]) -> None:
    """Print how every part did on held-out shapes, against the shipped coefficients."""
    title = f"{document['device']}, {document['num_ranks']} ranks, {document['num_samples']} samples"
    table = Table(title=title, title_justify="left")
    for column in ("part", "samples", "held out, median", "held out, p90", "shipped, median"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, said in document["report"].items():
        held, shipped = said.get("held_out", {}), said.get("shipped", {})
        table.add_row(
            part,
            str(said["num_samples"]),
            _percent(held.get("median_ape_frac", said.get("median_ape_frac"))),
            _percent(held.get("p90_ape_frac")),
            _percent(shipped.get("median_ape_frac")),
        )
    _show(table)


def print_validation(document: Mapping[str, Any]) -> None:
    """Print predicted against measured, and the verdict."""
    table = Table(title="predicted against measured", title_justify="left")
    for column in ("what", "shape", "predicted", "measured", "error"):
        table.add_column(column, justify="left" if column in ("what", "shape") else "right")
    for row in document["rows"]:
        if row["measured_s"] is None:
            table.add_row(row["kind"], row["shape"], f"{row['predicted_s'] * 1e3:.3f} ms", row["error"], "")
            continue
        table.add_row(
            row["kind"],
            row["shape"],
            f"{row['predicted_s'] * 1e3:.3f} ms",
            f"{row['measured_s'] * 1e3:.3f} ms",
            f"{100 * (row['predicted_s'] / row['measured_s'] - 1):+.0f} %",
        )
    _show(table)
    for name, value in document["summary"].items():
        print_line(f"{name}: median error {_percent(value['median_ape_frac'])} of {value['num_rows']}")
    print_line(f"verdict: {document['verdict']}")


def print_tuning(document: Mapping[str, Any]) -> None:
    """Print every run, and what was chosen."""
    table = Table(title=f"{document['num_runs']} runs of {document['num_candidates']}", title_justify="left")
    for column in ("run", "strategy", "predicted", "measured"):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for number, row in enumerate(document["runs"], 1):
        measured = "failed" if row["measured_s"] is None else f"{row['measured_s'] * 1e3:.1f} ms"
        table.add_row(str(number), row["strategy"], f"{row['predicted_s'] * 1e3:.1f} ms", measured)
    _show(table)
    print_line(
        f"best: {document['best']['strategy']}, {document['best']['measured_s'] * 1e3:.1f} ms measured"
    )
    print_line(f"stopped: {document['stopped']}")


def print_line(text: str) -> None:
    """Print one line on stdout."""
    Console(width=110, soft_wrap=True, highlight=False, markup=False).print(text)
