"""The commands and options that people and scripts rely on, frozen, and the catalogue."""

import json
import re

import pytest

from planner.cli.main import GROUPS, VERBS
from tests.planner.conftest import Meshwright

REQUEST = {
    "--model",
    "--cluster",
    "--nodes",
    "--devices-per-node",
    "--seq-len",
    "--global-batch",
    "--precision",
    "--stack",
    "--optimizer",
}
OUTPUT = {"--json", "-o", "--output"}
STRATEGY = {
    "--tp", "--pp", "--dp", "--cp", "--ep", "--etp", "--vpp", "--micro-batch", "--sequence-parallel",
    "--recompute", "--recompute-layers", "--zero", "--shard-group", "--overlap-dp", "--no-overlap-dp",
    "--overlap-tp", "--no-overlap-tp", "--overlap-pp", "--no-overlap-pp",
}  # fmt: skip
SURFACE = {
    "plan train": REQUEST
    | OUTPUT
    | {"--compare-with", "--request", "--calibration", "--catalog", "--top", "--min-fits-probability"}
    | {"--objective", "--power-budget", "--power-budget-w", "--facility", "--attained", "--layer-profiles"}
    | {"--local-steps", "--local-overlap", "--no-local-overlap", "--quantized-sharding"}
    | {"--no-quantized-sharding"},
    "plan power": OUTPUT | {"--facility", "--plan", "--request", "--commands", "--catalog"},
    "estimate train": REQUEST | OUTPUT | STRATEGY | {"--request", "--calibration", "--catalog"},
    "backtest train": {"--by", "--calibration", "--json"},
    "backtest memory": {"--by", "--json"},
    "backtest kernels": {"--by", "--calibration", "--device", "--json", "--op"},
    "profile": {
        "-o",
        "--output",
        "--what",
        "--backend",
        "--ranks",
        "--threads",
        "--plan",
        "--minutes",
        "--device",
        "--repeats",
    },
    "calibrate": OUTPUT | {"--catalog", "--cluster", "--like", "--nodes", "--statistic", "--write-cluster"},
    "validate": OUTPUT | {"--backend", "--calibration", "--ranks", "--samples", "--statistic", "--what"},
    "tune": OUTPUT
    | {
        "--calibration",
        "--cluster",
        "--command",
        "--keep",
        "--max-runs",
        "--min-gain",
        "--request",
        "--statistic",
    },
    "explain": {"--json"},
    "compare": {"--json"},
    "catalog devices": {"--catalog", "--json"},
    "catalog nodes": {"--catalog", "--json"},
    "catalog clusters": {"--catalog", "--json", "--nodes"},
    "catalog models": {"--json"},
    "import": {"--catalog", "--device", "--name", "--node", "-o", "--output", "--ranks", "--samples"},
    "emit": {"--target", "--scheduler", "--hosts", "--strict", "--power-plan", "-o", "--output"},
    "verify": {"--python", "--parsers", "--no-parsers"},
    "schema": set(),
}


def _options(help_text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", help_text)) - {"--help"}


@pytest.mark.parametrize("verb", SURFACE)
def test_options_are_frozen(meshwright: Meshwright, verb: str) -> None:
    result = meshwright(*verb.split(), "--help")
    assert result.exit_code == 0
    options = result.stdout[result.stdout.index("Options:") :]
    assert _options(options) == SURFACE[verb]


def test_every_verb_of_this_issue_is_in_the_table() -> None:
    assert set(SURFACE) <= {" ".join(verb.words) for verb in VERBS}


def test_words_are_unique_and_every_verb_loads() -> None:
    assert len({verb.words for verb in VERBS}) == len(VERBS)
    for verb in VERBS:
        assert callable(verb.load())
        assert verb.help.endswith(".")
        assert len(verb.words) == 1 or verb.words[0] in GROUPS


def test_version(meshwright: Meshwright) -> None:
    assert re.match(r"\d+\.\d+\.\d+", meshwright("--version").stdout)


@pytest.mark.parametrize("kind", ["devices", "nodes", "clusters", "models"])
def test_catalogue_lists(meshwright: Meshwright, kind: str) -> None:
    result = meshwright("catalog", kind)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 20
    assert len(json.loads(meshwright("catalog", kind, "--json").stdout)) > 20


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("devices", "h100", "3.35 TB/s"),
        ("nodes", "dgx-h100", "nvlink4"),
        ("clusters", "frontier", "ring through all devices"),
        ("models", "mixtral-8x7b", "num_active_params"),
    ],
)
def test_catalogue_shows(meshwright: Meshwright, kind: str, name: str, said: str) -> None:
    result = meshwright("catalog", kind, "show", name)
    assert result.exit_code == 0, result.output
    assert said in result.stdout
    assert json.loads(meshwright("catalog", kind, "show", name, "--json").stdout)["name"] == name


def test_frontier_levels_and_figures(meshwright: Meshwright) -> None:
    document = json.loads(
        meshwright("catalog", "clusters", "show", "frontier", "--nodes", "384", "--json").stdout
    )
    assert document["num_devices"] == 3072
    assert [level["size"] for level in document["levels"]][:2] == [2, 8]
    figures = document["nodes"]["frontier"]
    assert figures["ring_bytes_per_s"] == pytest.approx(200e9)
    assert figures["bisection_bytes_per_s"] == pytest.approx(300e9)
    assert figures["all_to_all_bytes_per_s_per_device"] == pytest.approx(131.25e9)


@pytest.mark.parametrize("name", ["plan", "request", "cluster"])
def test_schemas_are_json_schemas(meshwright: Meshwright, name: str) -> None:
    schema = json.loads(meshwright("schema", name).stdout)
    assert schema.get("type") == "object" or "anyOf" in schema
