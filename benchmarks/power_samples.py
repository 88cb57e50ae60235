"""Measured power tables as columns, for the fits and the table of power figures."""

import csv
import gzip
from dataclasses import dataclass, fields

import numpy as np

from benchmarks.alike import distance_from_alike
from costmodels.power.kernels import FORMATS
from costmodels.power.serving import MEASURED_DEVICES, ServingRuns
from hardware.errors import InputError

RATED_W = {"A40": 300.0, "P100": 250.0, "RTX6000": 260.0, "V100": 250.0}
CAP_NAMES = {"A40": "a40", "P100": "p100", "RTX6000": "rtx-6000", "V100": "v100"}
_FORMAT = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8-block", "nvfp4": "nvfp4"}
_TABLES = {
    "h200-vllm": ("h200_sxm", "vllm"),
    "b200-trtllm": ("b200_sxm", "trtllm"),
    "gb200-trtllm": ("gb200", "trtllm"),
    "b200-vllm": ("b200_sxm", "vllm"),
    "gb200-vllm": ("gb200", "vllm"),
}


def read_table(path):
    """Return the rows of a CSV file, gzipped or not, as dictionaries."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True, kw_only=True)
class CapSamples:
    """One training job under one cap per row; the highest cap of each job is its reference."""

    device: np.ndarray
    network: np.ndarray
    cap_frac: np.ndarray
    natural_frac: np.ndarray
    throughput_frac: np.ndarray
    device_names: tuple

    def take(self, rows):
        """Return the chosen rows."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "device_names"}
        return CapSamples(**{n: c[rows] for n, c in columns.items()}, device_names=self.device_names)


def cap_samples(path):
    """Return every row of the power-cap traces below the highest cap of its job."""
    rows = read_table(path)
    names = sorted(CAP_NAMES)
    best = {}
    for row in rows:
        key = tuple(row[c] for c in ("gpu", "dataset", "network", "batch_size", "optimizer"))
        if key not in best or float(row["power_limit"]) > float(best[key]["power_limit"]):
            best[key] = row
    out = []
    for row in rows:
        key = tuple(row[c] for c in ("gpu", "dataset", "network", "batch_size", "optimizer"))
        top, rated = best[key], RATED_W[row["gpu"]]
        if float(row["power_limit"]) < float(top["power_limit"]):
            slow = float(top["time_per_epoch"]) / float(row["time_per_epoch"])
            out.append(
                (
                    names.index(row["gpu"]),
                    row["network"],
                    float(row["power_limit"]) / rated,
                    float(top["average_power"]) / rated,
                    slow,
                )
            )
    device, network, cap, natural, slow = (np.array(c) for c in zip(*out, strict=True))
    return CapSamples(
        device=device,
        network=network,
        cap_frac=cap,
        natural_frac=natural,
        throughput_frac=slow,
        device_names=tuple(CAP_NAMES[n] for n in names),
    )


@dataclass(frozen=True, kw_only=True)
class MatmulSamples:
    """One matrix product per row."""

    m: np.ndarray
    n: np.ndarray
    k: np.ndarray
    fmt: np.ndarray
    latency_s: np.ndarray
    power_w: np.ndarray
    formats: tuple


def matmul_samples(data, source):
    """Return the products that a source measured, each shape once, and the files they come from."""
    system, backend = _TABLES[source]
    first = data / "power" / "aic_gemm_power_sample.csv.gz"
    second = data / "kernels" / f"{system}_gemm_power_{backend}.csv.gz"
    seen = {}
    for row in read_table(first):
        if (row["system"], row["backend"]) == (system, backend):
            key = (row["gemm_dtype"], int(row["m"]), int(row["n"]), int(row["k"]))
            seen.setdefault(key, (float(row["latency"]), float(row["power"])))
    for row in read_table(second):
        key = (row["gemm_dtype"], int(row["m"]), int(row["n"]), int(row["k"]))
        seen.setdefault(key, (float(row["latency_ms"]), float(row["power_w"])))
    names = list(FORMATS)
    fmt = np.array([names.index(_FORMAT[key[0]]) for key in seen], dtype=float)
    shape = np.array([key[1:] for key in seen], dtype=float)
    values = np.array(list(seen.values()))
    return (
        MatmulSamples(
            m=shape[:, 0],
            n=shape[:, 1],
            k=shape[:, 2],
            fmt=fmt,
            latency_s=values[:, 0] * 1e-3,
            power_w=values[:, 1],
            formats=tuple(names[i] for i in np.unique(fmt.astype(int))),
        ),
        (first, second),
    )


def alike_readings(samples):
    """Return rows that must be alike, by row counts as well, and how far each lies from the rest of its kind.

    Alike are three or more readings of one format and weight shape with neighbouring row counts, within a
    factor of two, whose latencies lie within 3 %.
    """
    order = np.lexsort((samples.m, samples.k, samples.n, samples.fmt))
    rows = []
    while len(order):
        first, near = order[0], samples.m[order] <= 2 * samples.m[order[0]]
        for column in (samples.fmt, samples.n, samples.k):
            near &= column[order] == column[first]
        near &= np.abs(samples.latency_s[order] / samples.latency_s[first] - 1) < 0.03
        num_near = len(order) if near.all() else int(np.argmin(near))
        if num_near >= 3:
            rows.append(order[:num_near])
        order = order[num_near:]
    kind = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    found = np.concatenate(rows)
    return found, distance_from_alike(samples.power_w[found], kind)


def family_means(path):
    """Return, per device and kind of operator, the latency-weighted mean draw over rated power.

    Where two frameworks measured the same kind, the higher mean counts: a meter that lags reads low. What the
    smallest matrix products draw is that of a device that waits for launches.
    """
    wanted = {
        "gemm": "launch-bound",
        "context_attention": "attention",
        "generation_attention": "decode-attention",
        "moe": "experts",
    }
    found = {}
    for row in read_table(path):
        if row["table"] not in wanted:
            continue
        limit, phase = float(row["power_limit_w"]), wanted[row["table"]]
        entry = found.setdefault(row["system"].removesuffix("_sxm"), {})
        if phase == "launch-bound":
            entry[phase] = min(round(float(row["p01_w"]) / limit, 4), entry.get(phase, 1.0))
        else:
            entry[phase] = max(round(float(row["latency_weighted_mean_w"]) / limit, 4), entry.get(phase, 0.0))
    return found


_SHAPES = {
    "Qwen3-14B": (40, 40 * 4096),
    "Qwen3-235B": (94, 94 * 2048),
    "Qwen3-VL-235B": (94, 94 * 2048),
    "Qwen3-30B": (48, 48 * 2048),
    "Qwen3-VL-30B": (48, 48 * 2048),
    "Qwen3-Coder-30B": (48, 48 * 2048),
    "Qwen3-Omni-30B": (48, 48 * 2048),
    "Qwen3-32B": (64, 64 * 4096),
    "Qwen3-VL-32B": (64, 64 * 4096),
    "Qwen3-8B": (36, 36 * 4096),
    "Qwen3-VL-8B": (36, 36 * 4096),
    "Qwen3-Coder-480B": (62, 62 * 4096),
    "DeepSeek": (61, 61 * 1152),
    "gemma-3-12b": (48, 8 * 8192),
    "gemma-3-27b": (62, 10 * 8192),
    "Llama-3.1-405B": (126, 126 * 4096),
    "Llama-3.1-70B": (80, 80 * 4096),
    "Llama-3.3-70B": (80, 80 * 4096),
    "Llama-3.1-8B": (32, 32 * 4096),
    "Llama-4-Maverick": (48, 12 * 4096),
    "Llama-4-Scout": (48, 12 * 4096),
    "NVIDIA-Nemotron-Nano-12B": (62, 6 * 4096),
    "NVIDIA-Nemotron-Nano-9B": (56, 4 * 4096),
    "gpt-oss-120b": (36, 18 * 2048),
    "gpt-oss-20b": (24, 12 * 2048),
}
"""Layers, and bytes per token in the caches of unwindowed layers (config.json of each model, 16 bits)."""


_PROMPT_TOKENS = {
    "lm-arena-chat": 100.0,
    "gpqa": 250.0,
    "sourcegraph-fim": 1500.0,
    "image-chat": 1500.0,
    "video-chat": 5000.0,
}
"""Tokens of a prompt by task (assumed: a question, an exam question, a source file, a picture, a clip)."""


def _shape(model_id):
    name = model_id.split("/")[-1]
    found = [shape for prefix, shape in _SHAPES.items() if name.startswith(prefix)]
    if len(found) != 1:
        message = f"{model_id}: layers and cache are not known; add it to the table of shapes"
        raise InputError(message)
    return found[0]


def serving_samples(path):
    """Return steady serving runs, watts per device, tokens per second and the model of each."""
    rows = [r for r in read_table(path) if r["energy_per_token_joules"]]
    rated = {"H100": (989e12, 3.35e12, 700.0), "B200": (2250e12, 8e12, 1000.0)}
    width = {"bfloat16": 2.0, "fp8": 1.0, "mxfp4": 0.56}
    shape = np.array([_shape(r["model_id"]) for r in rows], dtype=float)

    def column(name, scale=1.0):
        return np.array([float(r[name]) for r in rows]) * scale

    def flag(name, value):
        return np.array([float(r[name].startswith(value)) for r in rows])

    peaks = np.array([rated[r["gpu_model"]] for r in rows])
    runs = ServingRuns(
        active_params=column("activated_params_billions", 1e9),
        total_params=column("total_params_billions", 1e9),
        weight_bytes=np.array([width[r["weight_precision"]] for r in rows]),
        num_layers=shape[:, 0],
        cache_bytes_per_token=shape[:, 1],
        batch=column("avg_batch_size"),
        num_devices=column("num_gpus"),
        prompt_tokens=np.array([_PROMPT_TOKENS[r["task"]] for r in rows]),
        output_tokens=column("avg_output_len"),
        moe=flag("architecture", "MoE"),
        recurrent=flag("architecture", "Mamba"),
        image=flag("task", "image"),
        video=flag("task", "video"),
        device=np.array([MEASURED_DEVICES[r["gpu_model"].lower()] for r in rows]),
        flops_per_s=peaks[:, 0],
        memory_bytes_per_s=peaks[:, 1],
        rated_w=peaks[:, 2],
    )
    watts = column("avg_power_watts") / runs.num_devices
    return runs, watts, column("output_throughput_tokens_per_sec"), np.array([r["model_id"] for r in rows])
