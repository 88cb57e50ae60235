"""Fit the shipped power coefficients from measured tables and print the held-out error of each.

    python -m benchmarks.fit_power [--data ../shared/data] [--what caps,matmul,...] [--write]

Responses to caps: traces of five networks on four devices (Zeus, Apache-2.0), judged with one network left
out. Draw of matrix products: aiconfigurator tables (Apache-2.0), judged with all rows of a weight shape
(n, k) held out together; for long products one law of use besides, judged with a device left out. Draw of
serving engines: the ML.ENERGY leaderboard, judged with whole models held out; only coefficients are kept of
it. Nothing is written without `--write`.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.power_samples import (
    alike_readings,
    cap_samples,
    family_means,
    matmul_samples,
    serving_samples,
)
from costmodels.intervals import Z90
from costmodels.power.kernels import FORMATS, MatmulPower, PowerMachine, ShapeDraw, matmul_features
from costmodels.power.response import fit_cap_responses
from costmodels.power.serving import fit_serving_power
from costmodels.power.sustained import fit_sustained_draw, used_fracs
from costmodels.power.trees import fit_free_trees
from hardware.catalog import find_device

OUT = Path(__file__).parents[1] / "costmodels" / "data" / "coefficients" / "power"
MACHINES = {
    "h200-vllm": PowerMachine(flops_per_s=989e12, memory_bytes_per_s=4.8e12, num_sms=132, rated_w=700.0),
    "b200-trtllm": PowerMachine(flops_per_s=2250e12, memory_bytes_per_s=8e12, num_sms=148, rated_w=1000.0),
    "gb200-trtllm": PowerMachine(flops_per_s=2500e12, memory_bytes_per_s=8e12, num_sms=152, rated_w=1200.0),
}
STEADY_TREES = {"num_trees": 500, "num_leaves": 127, "min_rows_per_leaf": 2}
NOISY_TREES = {"num_trees": 300, "num_leaves": 31, "min_rows_per_leaf": 10, "smoothing": 0.05}
EACH_FORMAT = (("bf16",), ("fp8",), ("fp8-block",), ("nvfp4",))
DRAWS = {
    "h200-vllm": ((("bf16", "fp8-block"),), STEADY_TREES, 2),
    "b200-trtllm": (EACH_FORMAT, NOISY_TREES, 1),
    "gb200-trtllm": (EACH_FORMAT, NOISY_TREES, 1),
}
"""Groups of formats that share trees, their size and loss, and how many seeds are averaged. Readings of
microseconds-long loops scatter by 5 to 12 % at the same shape and latency and some halve, which large leaves
and the relative error bear; the H200's scatter less."""
STEADY_SOURCES = ("h200-vllm", "b200-vllm", "gb200-vllm")
"""Of the two frameworks that measured Blackwell, the one that reads large products at rated power."""
SETTLED_S = 1e-4
"""Products from here on were repeated for a second and more: the meter has settled."""


def _sha(paths):
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write(name, document):
    text = json.dumps(document, indent=1, sort_keys=True)
    (OUT / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"  written {name}.json ({len(text) / 1e6:.2f} MB)")


def held_out_caps(samples, apart):
    """Return predicted throughput of every sample by fits that saw no row with its value of `apart`."""
    predicted = np.zeros(len(samples.throughput_frac))
    for value in np.unique(apart):
        test = apart == value
        fitted = fit_caps_of(samples.take(~test))
        held = samples.take(test)
        predicted[test] = fitted.throughput_frac(held.device, held.cap_frac, held.natural_frac)
    return predicted


def fit_caps_of(samples):
    """Return the responses of every device, fitted to samples."""
    return fit_cap_responses(samples.device, samples.cap_frac, samples.natural_frac, samples.throughput_frac)


def held_out_devices(samples):
    """Return predicted throughput of every sample by one response fitted to the other devices together."""
    predicted = np.zeros(len(samples.throughput_frac))
    for device in np.unique(samples.device):
        test = samples.device == device
        fitted = fit_caps_of(one_device(samples.take(~test)))
        held = one_device(samples.take(test))
        predicted[test] = fitted.throughput_frac(held.device, held.cap_frac, held.natural_frac)
    return predicted


def one_device(samples):
    """Return the samples as if one device had made them."""
    return replace(samples, device=np.zeros(len(samples.device), dtype=np.int64))


def fit_caps(data, write):
    path = data / "power" / "zeus_powercap_time_power.csv.gz"
    samples = cap_samples(path)
    actual = samples.throughput_frac
    by_network, by_device = held_out_caps(samples, samples.network), held_out_devices(samples)
    error, other = (np.abs(p / actual - 1) for p in (by_network, by_device))
    print(
        f"caps -> throughput: {100 * error.mean():.2f} % MAPE with the network left out, "
        f"{100 * other.mean():.2f} % with the device left out, {len(error)} points"
    )
    fitted, every = fit_caps_of(samples), fit_caps_of(one_device(samples))

    def sigma(predicted, rows=slice(None)):
        return round(float(np.quantile(np.abs(np.log(predicted / actual))[rows], 0.9) / Z90), 4)

    rows = {}
    for i, name in enumerate(samples.device_names):
        mine = samples.device == i
        rows[name] = {
            "static_frac": round(float(fitted.static_frac[i]), 4),
            "voltage_floor": round(float(fitted.voltage_floor[i]), 4),
            "spread_frac": round(fitted.spread_frac, 4),
            "log_sigma": sigma(by_network, mine),
            "held_out_mape_frac": round(float(error[mine].mean()), 4),
            "num_samples": int(mine.sum()),
        }
    rows["any"] = {
        "static_frac": round(float(every.static_frac[0]), 4),
        "voltage_floor": round(float(every.voltage_floor[0]), 4),
        "spread_frac": round(every.spread_frac, 4),
        "log_sigma": sigma(by_device),
        "held_out_mape_frac": round(float(other.mean()), 4),
        "num_samples": len(error),
    }
    print(json.dumps(rows, indent=1))
    if write:
        _write(
            "cap_response",
            {
                "devices": rows,
                "held_out_mape_frac": round(float(error.mean()), 5),
                "held_out": "one network left out; for `any` one device",
                "fitted_range": {"cap_frac": [0.33, 1.0]},
                "source": "Zeus power-cap traces, ml-energy/zeus@75a8b93, Apache-2.0",
                "sample_sha256": _sha([path]),
            },
        )


def folds_of(samples, num_folds=5, seed=0):
    """Return a fold per row; all rows of a weight shape (n, k) share one."""
    _, group = np.unique(np.stack([samples.n, samples.k]), axis=1, return_inverse=True)
    group = group.ravel()
    return (np.random.default_rng(seed).permutation(group.max() + 1) % num_folds)[group]


def fit_draws(samples, rows, source):
    """Return the draw of every group of formats, fitted to the chosen rows."""
    groups, size, num_seeds = DRAWS[source]
    draws = []
    for formats in groups:
        _, features, log_share = _group(samples, rows, formats, source)
        trees = tuple(
            fit_free_trees(features, log_share, learning_rate=0.06, features_frac=0.25, seed=seed, **size)
            for seed in range(num_seeds)
        )
        draws.append(ShapeDraw(formats=formats, trees=trees))
    return tuple(draws)


def _group(samples, rows, formats, source):
    """Return which rows are in the formats, their features and ln(watts over rated power)."""
    machine, names = MACHINES[source], np.array(list(FORMATS))[samples.fmt.astype(int)]
    mine = rows & np.isin(names, formats)
    m, n, k, fmt = (getattr(samples, column)[mine] for column in ("m", "n", "k", "fmt"))
    return mine, matmul_features(m, n, k, fmt, machine), np.log(samples.power_w[mine] / machine.rated_w)


def held_out_matmul(samples, source):
    """Return the draw of every row predicted by trees that saw no row of its weight shape."""
    fold, watts = folds_of(samples), np.zeros(len(samples.power_w))
    for i in range(5):
        for draw in fit_draws(samples, fold != i, source):
            mine, features, _ = _group(samples, fold == i, draw.formats, source)
            watts[mine] = np.minimum(np.exp(draw.log_share(features)), 1.0) * MACHINES[source].rated_w
    return watts


def meter_noise(samples, error):
    """Return, by format, mean scatter of alike readings, mean error on the same rows and their number."""
    rows, away = alike_readings(samples)
    found = {}
    for i in np.unique(samples.fmt[rows].astype(int)):
        mine = samples.fmt[rows] == i
        found[list(FORMATS)[i]] = float(away[mine].mean()), float(error[rows][mine].mean()), int(mine.sum())
    found["all"] = float(away.mean()), float(error[rows].mean()), len(rows)
    return found


def fit_matmul(data, write):
    for source, machine in MACHINES.items():
        samples, paths = matmul_samples(data, source)
        predicted = held_out_matmul(samples, source)
        error = np.abs(predicted / samples.power_w - 1)
        long = samples.latency_s >= 1e-4
        print(
            f"matmul draw {source}, unseen (n, k): {100 * error.mean():.2f} % MAPE, "
            f"{100 * np.median(error):.2f} % median; >= 0.1 ms {100 * error[long].mean():.2f} %",
            flush=True,
        )
        for name, (scatter, ours, num) in meter_noise(samples, error).items():
            print(
                f"  {name}: {num} alike readings scatter by {100 * scatter:.1f} %, "
                f"error there {100 * ours:.1f} %"
            )
        if not write:
            continue
        log_error = np.abs(np.log(predicted / samples.power_w))
        fitted = MatmulPower(
            source=source,
            machine=machine,
            draws=fit_draws(samples, np.ones(len(error), dtype=bool), source),
            least_w=float(np.quantile(samples.power_w, 0.005)),
            log_sigma=float(np.quantile(log_error, 0.9) / Z90),
        )
        _write(
            f"matmul_{source}",
            {
                "draws": [d.to_json() for d in fitted.draws],
                "machine": {name: getattr(machine, name) for name in PowerMachine.__slots__},
                "least_w": round(fitted.least_w, 1),
                "log_sigma": round(fitted.log_sigma, 4),
                "held_out_mape_frac": round(float(error.mean()), 5),
                "held_out_median_frac": round(float(np.median(error)), 5),
                "held_out": "all rows of a weight shape (n, k), five folds",
                "num_samples": len(error),
                "fitted_range": {
                    axis: [float(getattr(samples, axis).min()), float(getattr(samples, axis).max())]
                    for axis in "mnk"
                },
                "source": "ai-dynamo/aiconfigurator@095f58a, Apache-2.0; NVML, 100 ms sampling",
                "sample_sha256": _sha(paths),
            },
        )


def fit_families(data, write):
    path = data / "power" / "aic_kernel_power_summary.csv"
    means = family_means(path)
    print(json.dumps(means, indent=1))
    if write:
        _write(
            "families",
            {
                "draw_frac": means,
                "source": "ai-dynamo/aiconfigurator@095f58a, Apache-2.0; NVML, 100 ms sampling",
                "what": "latency-weighted means over rated power",
                "sample_sha256": _sha([path]),
            },
        )


def sustained_samples(data):
    """Return, by device, how far each product of 0.1 ms and more uses it, and its draw over rated power."""
    found = {}
    for source in STEADY_SOURCES:
        samples, _ = matmul_samples(data, source)
        device, draws = find_device(source.split("-")[0]), []
        for i, name in enumerate(FORMATS):
            rows = (samples.fmt == i) & (samples.latency_s >= SETTLED_S)
            if rows.any():
                m, n, k, seconds = (getattr(samples, c)[rows] for c in ("m", "n", "k", "latency_s"))
                used = used_fracs(device, name, m, n, k, seconds)
                draws.append(np.stack([*used, samples.power_w[rows] / device.tdp_w]))
        found[device.name] = np.concatenate(draws, axis=1)
    return found


def fit_sustained(data, write):
    found = sustained_samples(data)
    for name, mine in found.items():
        others = np.concatenate([draws for other, draws in found.items() if other != name], axis=1)
        error = np.abs(fit_sustained_draw(*others).share(*mine[:2]) / mine[2] - 1)
        busy = mine[0] >= 0.45
        print(
            f"sustained draw, {name} left out: {100 * np.median(error):.1f} % median; products at 45 % "
            f"of peak and more {100 * np.median(error[busy]):.1f} % median, "
            f"{100 * error[busy].mean():.1f} % mean"
        )
    law = fit_sustained_draw(*np.concatenate(list(found.values()), axis=1))
    print(json.dumps(asdict(law)))
    if write:
        _write(
            "sustained",
            {
                **{name: round(value, 4) for name, value in asdict(law).items()},
                "devices": sorted(found),
                "num_samples": sum(draws.shape[1] for draws in found.values()),
                "source": "ai-dynamo/aiconfigurator@095f58a, Apache-2.0, vLLM products of 0.1 ms and more",
            },
        )


def held_out_serving(runs, watts, rate, apart):
    """Return watts per device and joules per token of every run by fits without its value of `apart`."""
    predicted_w, predicted_j = np.zeros(len(watts)), np.zeros(len(watts))
    for value in np.unique(apart):
        test = apart == value
        fitted = fit_serving_power(runs.take(~test), watts_per_device=watts[~test], tokens_per_s=rate[~test])
        predicted_w[test] = fitted.watts_per_device(runs.take(test))
        predicted_j[test] = fitted.joules_per_token(runs.take(test))
    return predicted_w, predicted_j


def model_folds(model, num_folds=10, seed=0):
    """Return a fold per run; all runs of a model share one."""
    names, index = np.unique(model, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % num_folds)[index]


def other_device(runs):
    """Return runs as if no device had been measured: the code of the first stands for all."""
    return replace(runs, device=np.zeros(len(runs.device)))


def fit_serving(data, write):
    path = data / "power" / "mlenergy_leaderboard_v3.csv.gz"
    runs, watts, rate, model = serving_samples(path)
    joules = watts * runs.num_devices / rate
    predicted_w, predicted_j = held_out_serving(runs, watts, rate, model_folds(model))
    other_w, _ = held_out_serving(other_device(runs), watts, rate, runs.device)
    error_w, error_j = np.abs(predicted_w / watts - 1), np.abs(predicted_j / joules - 1)
    other = np.abs(other_w / watts - 1)
    print(
        f"serving, whole models left out: watts {100 * error_w.mean():.1f} % mean, "
        f"{100 * np.median(error_w):.1f} % median; joules per token {100 * error_j.mean():.1f} % mean, "
        f"{100 * np.median(error_j):.1f} % median; watts with the device left out {100 * other.mean():.1f} %"
    )
    if not write:
        return
    fitted = fit_serving_power(runs, watts_per_device=watts, tokens_per_s=rate)

    def sigma(predicted):
        return round(float(np.quantile(np.abs(np.log(predicted / watts)), 0.9) / Z90), 4)

    _write(
        "serving",
        {
            "draw": fitted.draw.to_json(),
            "rate": fitted.rate.to_json(),
            "log_sigma": sigma(predicted_w),
            "other_log_sigma": sigma(other_w),
            "held_out": "whole models, ten folds; for devices not measured the other device",
            "held_out_mape_frac": round(float(error_w.mean()), 5),
            "other_held_out_mape_frac": round(float(other.mean()), 5),
            "held_out_joules_mape_frac": round(float(error_j.mean()), 5),
            "num_samples": len(watts),
            "num_models": len(np.unique(model)),
            "source": "fitted from the ML.ENERGY leaderboard v3 (ml-energy/leaderboard@0cd52da), vLLM",
            "sample_sha256": _sha([path]),
        },
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--what", default="caps,families,sustained,matmul,serving")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if not args.data.is_dir():
        sys.exit(f"{args.data}: the measured tables are not here; give --data")
    steps = {
        "caps": fit_caps,
        "matmul": fit_matmul,
        "families": fit_families,
        "sustained": fit_sustained,
        "serving": fit_serving,
    }
    for name in args.what.split(","):
        steps[name](args.data, args.write)


if __name__ == "__main__":
    main()
