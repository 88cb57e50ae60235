"""Fit the shipped kernel coefficients from measured tables.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.fit_kernels [--samples ../shared/data/kernels] [DEVICE ...]``
from the root of the checkout. Writes ``costmodels/data/coefficients/kernels/<device>.json`` and prints the
held-out errors.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.intervals import Z90
from costmodels.kernels.attention import DECODE
from costmodels.kernels.data import MEASURED, SCHEMA_VERSION, load, rated_device, rated_numbers
from costmodels.kernels.fit import Fitted, Sibling, TreeSettings, fit_physics, fit_surface
from costmodels.kernels.machine import find_format, machine_of
from costmodels.kernels.samples import KernelSamples, file_sha256, read_kernel_samples
from hardware.catalog import find_device
from hardware.device import Device

SAMPLES = Path("../shared/data/kernels")
OUTPUT = Path("costmodels/data/coefficients/kernels")
MEASURED_ON = "2026-08-21"
"""Date of the published tables (their repository's commit)."""
PREFIXES = {
    "a100-80gb": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "l40s": "l40s",
    "b200": "b200_sxm",
    "gb200": "gb200",
}
TABLES = (
    "gemm_bf16", "gemm_fp8", "gemm_fp8block", "gemm_nvfp4", "gemm_int8_w8a8", "context_attention",
    "generation_attention", "context_mla", "generation_mla", "moe",
)  # fmt: skip
GROUPS = {
    "matmul": ("n", "k"),
    "context": ("heads", "kv_heads"),
    "decode": ("heads", "kv_heads"),
    "context_mla": ("batch", "q_len"),
    "decode_mla": ("batch", "kv_len"),
    "experts": ("hidden", "ffn_hidden", "top_k", "num_experts"),
}
"""Columns whose combinations are held out whole."""
SIBLINGS = {"h100": "h200", "h200": "h100", "b200": "gb200", "gb200": "b200"}
"""The same dies with another memory or another power limit."""
SIBLING_TABLES = ("gemm", "context_attention", "generation_attention")
ROBUST = ("matmul", "experts")
"""Families whose tables hold stray slow rows."""
STARTS = {("l40s", "decode"): {**DECODE.start, "block_s": 2e-6}}
"""Where the physics starts that has a coefficient more than its family: FlashAttention-2 serves the L40S."""
FINE = TreeSettings(num_trees=500, learning_rate=0.05, min_rows_per_leaf=5, features_frac=0.5)
DEEP = TreeSettings(
    depth=7,
    num_leaves=48,
    learning_rate=0.1,
    min_rows_per_leaf=8,
    smoothing=0.1,
)
MANY = replace(DEEP, num_trees=400, min_rows_per_leaf=4, features_frac=0.5)
SETTINGS = {
    ("a100-80gb", "decode_mla"): replace(FINE, robust=True),
    ("h200", "context_mla"): replace(FINE, robust=True),
    ("gb200", "context"): FINE,
    ("l40s", "matmul"): DEEP,
    ("l40s", "experts"): replace(DEEP, min_rows_per_leaf=15, smoothing=0.05),
    ("l40s", "context"): MANY,
    ("l40s", "decode"): MANY,
    ("l40s", "decode_mla"): replace(MANY, min_rows_per_leaf=10, smoothing=0.05),
    ("h100", "decode_mla"): replace(FINE, robust=True),
    ("h200", "decode_mla"): replace(FINE, robust=True),
}
"""Tables that the usual trees leave furthest from the aim, or whose strays (up to a hundredfold) mislead
them; chosen by the error on held-out groups."""


def tables(samples: Path, device: str) -> Iterator[tuple[Path, KernelSamples]]:
    """Yield the tables of `device` that exist."""
    for table in TABLES:
        path = samples / f"{PREFIXES[device]}_{table}.csv.gz"
        if path.exists():
            yield path, read_kernel_samples(path)


def select(
    samples: KernelSamples, dtype: str
) -> tuple[dict[str, npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Return shape columns and seconds of one number format."""
    rows = samples.dtype == dtype
    return {name: column[rows] for name, column in samples.shape.items()}, samples.seconds[rows]


def group_names(family: str, shape: dict[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.str_]:
    """Return the held-out group of every row."""
    columns = [shape[c] for c in GROUPS[family]]
    return np.array(["x".join(f"{v:g}" for v in row) for row in zip(*columns, strict=True)])


def provenance(
    path: Path, shape: dict[str, npt.NDArray[np.float64]], fitted: Fitted, dtype: str
) -> dict[str, Any]:
    """Return where the samples came from, what they span and how well unseen groups were predicted."""
    family = fitted.surface.family
    return {
        "samples": f"{path.name}, aiconfigurator@095f58a51 (Apache-2.0, NVIDIA)",
        "sha256": file_sha256(path),
        "date": MEASURED_ON,
        "dtype": dtype,
        "num_samples": len(next(iter(shape.values()))),
        "range": {c: [float(shape[c].min()), float(shape[c].max())] for c in family.columns},
        "held_out_by": list(GROUPS[family.name]),
        "held_out": fitted.held_out,
        "physics_in_sample": fitted.physics_held_out,
    }


def siblings(samples: Path, name: str, path: Path, dtype: str) -> tuple[Sibling, ...]:
    """Return the same table of the device with the same dies, where there is one."""
    other = SIBLINGS.get(name)
    table = path.name.removeprefix(PREFIXES[name] + "_")
    if other is None or not table.startswith(SIBLING_TABLES):
        return ()
    place = samples / f"{PREFIXES[other]}_{table}"
    data = read_kernel_samples(place)
    shape, seconds = select(data, dtype)
    device = rated_device(other, rated_numbers(find_device(other)))
    groups = group_names(data.family.name, shape)
    return (
        Sibling(shape=shape, seconds=seconds, machine=machine_of(device, find_format(dtype)), groups=groups),
    )


def report(name: str, key: str, num_rows: int, fitted: Fitted) -> None:
    """Print the held-out errors of one surface."""
    held, physics = fitted.held_out, fitted.physics_held_out
    print(
        f"{name:10s} {key:18s} {num_rows:6d} rows  held out: MAPE {100 * held['mape_frac']:5.2f} %  "
        f"median {100 * held['median_ape_frac']:5.2f} %  physics alone {100 * physics['mape_frac']:5.2f} %",
        flush=True,
    )


def fit_device(samples: Path, name: str, families: Sequence[str]) -> dict[str, Any]:
    """Return the coefficient file of one device; families that are not fitted are kept as they are."""
    device = rated_device(name, rated_numbers(find_device(name)))
    kept = load(name)["surfaces"] if set(families) != set(GROUPS) else {}
    surfaces: dict[str, Any] = dict(kept)
    for path, table in tables(samples, name):
        if table.family.name not in families:
            continue
        for dtype in np.unique(table.dtype):
            shape, seconds = select(table, str(dtype))
            fmt = find_format(str(dtype))
            family, machine = table.family, machine_of(device, fmt)
            fitted = fit_surface(
                family,
                shape,
                seconds,
                machine,
                fmt,
                coefficients=fit_physics(
                    family, shape, seconds, machine, fmt, start=STARTS.get((name, family.name))
                ),
                groups=group_names(family.name, shape),
                siblings=siblings(samples, name, path, str(dtype)),
                settings=SETTINGS.get((name, family.name), TreeSettings(robust=family.name in ROBUST)),
            )
            key = f"{family.name}/{fmt.name}"
            surfaces[key] = fitted.surface.to_json() | {
                "provenance": provenance(path, shape, fitted, fmt.name)
            }
            report(name, key, len(seconds), fitted)
    return {
        "schema_version": SCHEMA_VERSION,
        "device": name,
        "rated": rated_numbers(device),
        "surfaces": surfaces,
    }


def write(name: str, data: dict[str, Any]) -> None:
    """Write one coefficient file, whole or not at all."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    temporary = OUTPUT / f"{name}.json.tmp"
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(OUTPUT / f"{name}.json")


def pooled(samples: Path) -> dict[str, Any]:
    """Return the generic file: coefficients as geometric means over devices, judged on held-out devices."""
    fits: dict[str, dict[str, dict[str, float]]] = {}
    rows: dict[
        str, list[tuple[Device, dict[str, npt.NDArray[np.float64]], npt.NDArray[np.float64], str]]
    ] = {}
    for name in MEASURED:
        data = json.loads((OUTPUT / f"{name}.json").read_text(encoding="utf-8"))
        for key, entry in data["surfaces"].items():
            fits.setdefault(key, {})[name] = entry["coefficients"]
        device = rated_device(name, data["rated"])
        for path, table in tables(samples, name):
            for dtype in np.unique(table.dtype):
                shape, seconds = select(table, str(dtype))
                rows.setdefault(f"{table.family.name}/{dtype}", []).append(
                    (device, shape, seconds, path.name)
                )
    return {
        "schema_version": SCHEMA_VERSION,
        "device": "generic",
        "rated": None,
        "surfaces": {key: _pool(key, fits[key], rows[key]) for key in sorted(fits)},
    }


def _pool(
    key: str,
    fits: dict[str, dict[str, float]],
    rows: list[tuple[Device, dict[str, npt.NDArray[np.float64]], npt.NDArray[np.float64], str]],
) -> dict[str, Any]:
    from costmodels.kernels.samples import FAMILIES
    from costmodels.kernels.surface import box_columns

    family, fmt = FAMILIES[key.split("/")[0]], find_format(key.split("/")[1])
    logs = []
    for device, shape, seconds, _ in rows:
        others = [c for n, c in fits.items() if n != device.name] or list(fits.values())
        mean = _mean(others)
        logs.append(np.log(seconds / family.physics(shape, machine_of(device, fmt), fmt, mean)))
    sigma = float(np.median([np.quantile(np.abs(x), 0.9) for x in logs]) / Z90) if len(fits) > 1 else 0.5
    error = {
        d.name: round(float(np.median(np.abs(np.expm1(-x)))), 4)
        for (d, *_), x in zip(rows, logs, strict=True)
    }
    columns = np.concatenate([box_columns(family, shape) for _, shape, _, _ in rows])
    print(f"generic    {key:18s} held-out devices, median error: {error}, log sigma {sigma:.2f}", flush=True)
    return {
        "coefficients": {k: float(f"{v:.5g}") for k, v in _mean(list(fits.values())).items()},
        "physics_log_sigma": round(sigma, 4),
        "box_low": [round(float(v), 4) for v in columns.min(axis=0)],
        "box_high": [round(float(v), 4) for v in columns.max(axis=0)],
        "sigma_log_s": [0.0],
        "sigma": [round(sigma, 4)],
        "trees": None,
        "provenance": {
            "samples": sorted(p for _, _, _, p in rows),
            "pooled": "geometric mean of the devices' coefficients",
            "held_out_by": ["device"],
            "held_out_median_ape_frac": error,
        },
    }


def _mean(fits: list[dict[str, float]]) -> dict[str, float]:
    return {k: float(np.exp(np.mean([np.log(f[k]) for f in fits]))) for k in fits[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=Path, default=SAMPLES)
    parser.add_argument("--families", nargs="+", choices=sorted(GROUPS), default=sorted(GROUPS))
    parser.add_argument(
        "devices", nargs="*", help="devices to fit; all, and the generic surface, when none is named"
    )
    options = parser.parse_args()
    if not options.samples.is_dir():
        message = f"no kernel tables at {options.samples}; pass --samples"
        raise SystemExit(message)
    for name in options.devices or MEASURED:
        write(name, fit_device(options.samples, name, options.families))
    write("generic", pooled(options.samples))


if __name__ == "__main__":
    main()
