"""The `meshwright` command: an explicit table of verbs, each loaded only when it is the one asked for."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer

__all__ = ["GROUPS", "VERBS", "Verb", "build_app", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One command: the words that name it, where its function lives, and its line in the help."""

    words: tuple[str, ...]
    module: str
    function: str
    help: str

    def load(self) -> Callable[..., Any]:
        """Return the command's function; this is what imports its module."""
        function: Callable[..., Any] = getattr(import_module(self.module), self.function)
        return function


def _verb(words: str, module: str, function: str, summary: str) -> Verb:
    return Verb(words=tuple(words.split()), module=f"planner.cli.{module}", function=function, help=summary)


GROUPS: dict[str, str] = {
    "plan": "Find the best way to run a model on a cluster.",
    "estimate": "Predict the cost of exactly one configuration, part by part.",
    "backtest": "Compare predictions with measured runs.",
    "catalog": "List what is known, or show one entry: devices, nodes, clusters, models.",
}

VERBS: tuple[Verb, ...] = (
    _verb("plan train", "plan_train", "plan_train", "Find the fastest training configuration that fits."),
    _verb("plan serve", "plan_serve", "plan_serve", "Find the cheapest fleet that keeps latency targets."),
    _verb("plan power", "plan_power", "plan_power_verb", "Find clocks, caps and how many servers fit a row."),
    _verb("estimate train", "estimate", "estimate_train", "Cost of one training configuration."),
    _verb("estimate serve", "estimate_serve", "estimate_serve", "Cost of one serving configuration."),
    _verb("backtest train", "backtest", "backtest_train", "Measured training runs against predictions."),
    _verb("backtest memory", "backtest", "backtest_memory", "Measured peak memory against predictions."),
    _verb("backtest serve", "backtest", "backtest_serve", "Measured serving points against predictions."),
    _verb("backtest kernels", "backtest", "backtest_kernels", "Measured kernels against predictions."),
    _verb("simulate", "simulate", "simulate", "Replay requests through a serving plan or a fleet."),
    _verb("emit", "emit", "emit", "Write the files that start a plan in a framework."),
    _verb("verify", "verify", "verify", "Check emitted files with the parsers at hand."),
    _verb("profile", "profile", "profile", "Measure this machine or, under a launcher, a cluster."),
    _verb("calibrate", "calibrate", "calibrate", "Fit the cost model to measured samples."),
    _verb(
        "validate",
        "validate",
        "validate",
        "Run a plan's kernels, collectives and step against its prediction.",
    ),
    _verb("tune", "tune", "tune", "Run the most informative configurations until a better one is unlikely."),
    _verb("explain", "explain", "explain", "Say why a plan was chosen and what it rests on."),
    _verb("compare", "compare", "compare", "Say how two plans differ and what the difference costs."),
    _verb("catalog devices", "catalog", "devices", "Accelerators, as their data sheets rate them."),
    _verb("catalog nodes", "catalog", "nodes", "Node templates."),
    _verb("catalog clusters", "catalog", "clusters", "Clusters, their levels and bandwidths."),
    _verb("catalog models", "catalog", "models", "Models and their shapes."),
    _verb("import", "import_", "import_files", "Turn the output of a measuring tool into a cluster file."),
    _verb("schema", "schema", "schema", "Print the JSON schema of a file format."),
)


def _later() -> None:
    """Stand in for a verb that was not asked for, so that help can list it without loading it."""
    raise NotImplementedError


def _app(summary: str) -> typer.Typer:
    return typer.Typer(
        help=summary,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def build_app(words: Sequence[str] | None = None) -> typer.Typer:
    """Return the command with the verb that `words` start with loaded; with None, all of them."""
    app = _app("Plan how a large model trains and serves on the machines you have.")
    app.callback()(_options)
    groups = {name: _app(summary) for name, summary in GROUPS.items()}
    for name, group in groups.items():
        app.add_typer(group, name=name)
    for verb in VERBS:
        wanted = words is None or tuple(words[: len(verb.words)]) == verb.words
        parent = groups[verb.words[0]] if len(verb.words) > 1 else app
        parent.command(verb.words[-1], help=verb.help)(verb.load() if wanted else _later)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("meshwright"))
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Plan how a large model trains and serves on the machines you have."""


def main() -> None:
    """Run the command line of this process."""
    build_app(sys.argv[1:])()
