"""The three clusters of Helix (ASPLOS 2025) as layer-flow problems, from `../shared/data/serving/helix`.

A machine's throughput with k layers follows the authors' rule: the batch that its cache holds at 30 % use,
for requests of 750 prompt and 240 output tokens, times its measured time per layer (Thesys-lab/Helix-ASPLOS25
@148b733, Apache-2.0). Links count one activation of 16,384 bytes per token; the files write bytes as bits.
"""

import configparser
import csv
import re
from pathlib import Path

import numpy as np

from solvers.serving_placement import LayerFlowProblem

__all__ = ["INSTANCES", "read_instance"]

INSTANCES = {
    "single24": ("single_cluster24.ini", 1289.6, 1515.0),
    "distributed24": ("distributed_3cluster24.ini", 1212.2, 1476.0),
    "mixed42": ("het42_cluster.ini", 4137.5, 4892.0),
}
"""File, tokens per second of the published placement, and the figure to reach."""

_NUM_LAYERS, _PROMPT, _OUTPUT = 80, 750, 240
_CACHE_USE_FRAC, _BLOCK_TOKENS = 0.3, 16
_ACTIVATION_BYTES, _TOKEN_BYTES = 16384.0, 2.0
_BLOCKS = {
    "A100": (498326, 236107, 148700, 104997, 78775, 61294, 48807, 39442, 32158, 26331, 21564, 17591),
    "L4": (266146, 121017, 71296, 46944, 32333, 22592, 15634),
    "L4x2": (
        578630, 275491, 174956, 124689, 94529, 74422, 60060, 49288, 40910, 34208, 28724, 24155, 20288, 16974,
    ),
    "T4": (155320, 63484, 32872, 17566),
    "T4x2": (366898, 168665, 103099, 70316, 50646, 37533, 28167, 21142, 15678),
    "T4x4": (
        763104, 366320, 235082, 169464, 130092, 103845, 85097, 71036, 60099, 51350, 44192, 38226, 33179,
        28852, 25102, 21822, 18927, 16353,
    ),
    "V100": (172256, 71952, 38517, 21800),
}  # fmt: skip
"""Cache blocks of a machine that holds 1, 2, ... layers."""
_USUAL_LAYERS = {"A100": 8, "V100": 3, "L4": 4, "L4x2": 9, "T4": 3, "T4x2": 6, "T4x4": 12}
_FULL_LAYERS = {"A100": 12, "V100": 4, "L4": 7, "L4x2": 14, "T4": 4, "T4x2": 9, "T4x4": 18}
_FIRST_SPEED = {"A100": 80.0, "V100": 40.0, "L4": 20.0, "L4x2": 30.0, "T4": 12.5, "T4x2": 20.0, "T4x4": 30.0}
_RATES = {"gbps": 1e9, "mbps": 1e6, "kbps": 1e3}

Profile = dict[tuple[str, str], np.ndarray]


def _profiles(folder: Path) -> Profile:
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with (folder / "helix_layer_profiles.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["model"] == "llama2_70b":
                key = (row["gpu"], row["phase"])
                time_s = float(row["time_ms_per_layer"]) * 1e-3
                points.setdefault(key, []).append((float(row["batch_tokens"]), time_s))
    return {key: np.array(values) for key, values in points.items()}


def _layer_s(profiles: Profile, kind: str, phase: str, tokens: float) -> float:
    curve = profiles[kind.lower(), phase]
    return float(np.interp(tokens, curve[:, 0], curve[:, 1]))


def _tokens_per_s(
    profiles: Profile,
    kind: str,
    k: int,
    counts: dict[str, int],
    layers: dict[str, int],
    speed: dict[str, float],
) -> float:
    """Return what a machine of `kind` passes with k layers, its share of a round trip setting the batch."""
    mean = sum(n * layers[m] / speed[m] for m, n in counts.items())
    mean /= sum(n * layers[m] for m, n in counts.items())
    mine = k / speed[kind]
    held = int(_CACHE_USE_FRAC * _BLOCK_TOKENS * _BLOCKS[kind][k - 1])
    requests = held / (_PROMPT + _OUTPUT) * mine / ((_NUM_LAYERS - k) * mean + mine)
    prompts, decoding = requests / _OUTPUT, round(requests)
    prompt_tokens = round(prompts * _PROMPT)
    if prompts > 1:
        prompts, prompt_tokens, decoding = 1.0, _PROMPT, _OUTPUT
    scale = 1.0 / prompts
    prompt_s = _layer_s(profiles, kind, "prompt", int(prompt_tokens * scale))
    decode_s = scale * _layer_s(profiles, kind, "decode", decoding)
    return scale * (prompt_tokens + decoding) / (k * (prompt_s + decode_s))


def _throughputs(profiles: Profile, counts: dict[str, int]) -> dict[str, np.ndarray]:
    roomy = sum(n * _USUAL_LAYERS[m] for m, n in counts.items()) >= 1.2 * _NUM_LAYERS
    layers = {m: (_USUAL_LAYERS if roomy else _FULL_LAYERS)[m] for m in counts}
    speed = {m: _FIRST_SPEED[m] for m in counts}
    for _ in range(10):
        speed = {m: _tokens_per_s(profiles, m, layers[m], counts, layers, speed) * layers[m] for m in counts}
    return {
        m: np.array(
            [0.0]
            + [
                _tokens_per_s(profiles, m, k, counts, layers, speed)
                for k in range(1, len(_BLOCKS[m]) + 1)
            ]
        )
        for m in counts
    }  # fmt: skip


def _rate(text: str) -> float:
    value, unit = (part.strip() for part in text.split("*"))
    return float(value) * _RATES[unit]


def read_instance(folder: Path, name: str) -> LayerFlowProblem:
    """Return one of the three instances."""
    file = configparser.ConfigParser()
    file.read(folder / INSTANCES[name][0], encoding="utf-8")
    n = int(file["NodeNames"]["total_compute_nodes"])
    kinds = [file[f"ComputeNode-{i}"]["type"] for i in range(n)]
    speed = _throughputs(_profiles(folder), {m: kinds.count(m) for m in dict.fromkeys(kinds)})
    links, entry, leave = np.zeros((n, n)), np.full(n, 1e6), np.full(n, 1e6)
    for section in file.sections():
        found = re.match(r"Link-(\w+)-(\w+)$", section)
        if not found:
            continue
        a, b = found.groups()
        rate = _rate(file[section]["bandwidth"])
        if a == "source" and b != "sink":
            entry[int(b)] = rate / _TOKEN_BYTES
        elif b == "sink":
            leave[int(a)] = rate / _TOKEN_BYTES
        else:
            links[int(a), int(b)] = links[int(b), int(a)] = rate / _ACTIVATION_BYTES
    return LayerFlowProblem(
        num_layers=_NUM_LAYERS,
        tokens_per_s=tuple(speed[kind] for kind in kinds),
        link_tokens_per_s=links,
        entry_tokens_per_s=np.minimum(entry, 1e6),
        exit_tokens_per_s=np.minimum(leave, 1e6),
    )
