"""Fit the shipped kernel coefficients from measured tables.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.fit_kernels [--samples ../shared/data/kernels] [DEVICE ...]``
from the root of the checkout. Writes ``costmodels/data/coefficients/kernels/<device>.json`` and prints the
held-out errors.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.alike import alike_products
from costmodels.intervals import Z90
from costmodels.kernels.attention import DECODE
from costmodels.kernels.borrowed import moved_softmax
from costmodels.kernels.data import MEASURED, SCHEMA_VERSION, load, rated_device, rated_numbers
from costmodels.kernels.fit import (
    Fitted,
    Sibling,
    TreeSettings,
    errors,
    fit_physics,
    fit_surface,
    rows_held_out,
)
from costmodels.kernels.machine import Machine, find_format, machine_of
from costmodels.kernels.samples import FAMILIES, KernelSamples, file_sha256, read_kernel_samples
from costmodels.kernels.surface import box_columns
from hardware.catalog import find_device

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
UNKNOWN_SIGMA = 0.5
"""Log error on other devices of what one device alone measured (assumed)."""
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
ROBUST = ("matmul", "experts")
"""Families whose tables hold stray slow rows."""


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


def settings_of(device: str, family: str) -> TreeSettings:
    """Return the trees of one table."""
    return SETTINGS.get((device, family), TreeSettings(robust=family in ROBUST))


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


def row_errors(
    family: str,
    shape: dict[str, npt.NDArray[np.float64]],
    seconds: npt.NDArray[np.float64],
    predicted_s: npt.NDArray[np.float64],
) -> dict[str, Any]:
    """Return the errors of shapes held out at random; of products also the scatter of alike ones, which no
    model of the shape predicts, and our error on those.
    """
    found: dict[str, Any] = {"rows_held_out": errors(predicted_s, seconds)}
    if family == "matmul":
        rows, away = alike_products(shape, seconds)
        found["alike"] = {
            "num_samples": len(rows),
            "scatter_frac": round(float(away.mean()), 5),
            "held_out": errors(predicted_s[rows], seconds[rows]),
        }
    return found


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
            others = siblings(samples, name, path, str(dtype))
            settings = settings_of(name, family.name)
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
                siblings=others,
                settings=settings,
            )
            by_row = rows_held_out(fitted.surface, shape, seconds, siblings=others, settings=settings)
            key = f"{family.name}/{fmt.name}"
            surfaces[key] = fitted.surface.to_json() | {
                "provenance": provenance(path, shape, fitted, fmt.name)
                | row_errors(family.name, shape, seconds, by_row)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lent:
    """One table of a device, to be predicted by others."""

    device: str
    machine: Machine
    bf16_flops_per_s_per_unit: float
    shape: dict[str, npt.NDArray[np.float64]]
    seconds: npt.NDArray[np.float64]
    file: str

    def is_kin(self, other: str) -> bool:
        """Return whether `other` has the same dies."""
        return other in (self.device, SIBLINGS.get(self.device))


def pooled(samples: Path) -> dict[str, Any]:
    """Return the generic file: coefficients as geometric means over devices, judged on held-out ones."""
    fits: dict[str, dict[str, dict[str, float]]] = {}
    rows: dict[str, list[_Lent]] = {}
    for name in MEASURED:
        data = json.loads((OUTPUT / f"{name}.json").read_text(encoding="utf-8"))
        for key, entry in data["surfaces"].items():
            fits.setdefault(key, {})[name] = entry["coefficients"]
        device = rated_device(name, data["rated"])
        bf16 = machine_of(device, find_format("bf16"))
        for path, table in tables(samples, name):
            for dtype in np.unique(table.dtype):
                shape, seconds = select(table, str(dtype))
                rows.setdefault(f"{table.family.name}/{dtype}", []).append(
                    _Lent(
                        device=name,
                        machine=machine_of(device, find_format(str(dtype))),
                        bf16_flops_per_s_per_unit=bf16.peak_flops_per_s / bf16.num_sms,
                        shape=shape,
                        seconds=seconds,
                        file=path.name,
                    )
                )
    return {
        "schema_version": SCHEMA_VERSION,
        "device": "generic",
        "rated": None,
        "surfaces": {key: _pool(key, fits[key], rows[key]) for key in sorted(fits)},
    }


def _held_out_devices(
    key: str, fits: dict[str, dict[str, float]], rows: list[_Lent]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return log measured over predicted by device, from coefficients of devices with other dies."""
    family, fmt = FAMILIES[key.split("/")[0]], find_format(key.split("/")[1])
    out = {}
    for row in rows:
        lenders = [r for r in rows if not row.is_kin(r.device)] or [r for r in rows if r is not row] or rows
        unit = np.exp(np.mean(np.log([r.bf16_flops_per_s_per_unit for r in lenders])))
        mean = moved_softmax(_mean([fits[r.device] for r in lenders]), float(unit), row.machine)
        out[row.device] = np.log(row.seconds / family.physics(row.shape, row.machine, fmt, mean))
    return out


def _sigma(logs: list[npt.NDArray[np.float64]]) -> float:
    """Return the sigma whose 90 % interval holds 90 % of the rows, every device counting the same."""
    sizes = np.concatenate([np.quantile(np.abs(x), np.linspace(0.0, 1.0, 201)) for x in logs])
    return float(np.quantile(sizes, 0.9) / Z90)


def _pool(key: str, fits: dict[str, dict[str, float]], rows: list[_Lent]) -> dict[str, Any]:
    logs = _held_out_devices(key, fits, rows)
    sigma = _sigma(list(logs.values())) if len(fits) > 1 else UNKNOWN_SIGMA
    held = {}
    for row in rows:
        size, far = np.abs(logs[row.device]), [x for n, x in logs.items() if not row.is_kin(n)]
        found = errors(np.exp(-logs[row.device]), np.ones(len(size)))
        inside = size <= Z90 * (_sigma(far) if far else sigma)
        held[row.device] = found | {"coverage_frac": round(float(inside.mean()), 4)}
    columns = np.concatenate([box_columns(FAMILIES[key.split("/")[0]], row.shape) for row in rows])
    return {
        "coefficients": {k: float(f"{v:.5g}") for k, v in _mean(list(fits.values())).items()},
        "physics_log_sigma": round(sigma, 4),
        "box_low": [round(float(v), 4) for v in columns.min(axis=0)],
        "box_high": [round(float(v), 4) for v in columns.max(axis=0)],
        "sigma_log_s": [0.0],
        "sigma": [round(sigma, 4)],
        "trees": None,
        "provenance": {
            "samples": sorted(row.file for row in rows),
            "pooled": "geometric mean of the devices' coefficients",
            "held_out_by": ["device and those with the same dies"],
            "held_out": held,
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
