"""Fit the shipped power coefficients from measured tables and print the held-out error of each.

    python benchmarks/fit_power.py [--data ../shared/data] [--what caps,matmul,families] [--write]

Responses to caps: traces of five networks on four devices (Zeus, Apache-2.0), judged with one network left
out. Draw of matrix products: aiconfigurator tables (Apache-2.0), judged with all rows of a weight shape
(n, k) held out together. Nothing is written without `--write`.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.power_samples import cap_samples, family_means, matmul_samples
from costmodels.power_kernels import MatmulPower, PowerMachine, matmul_features
from costmodels.power_response import fit_cap_responses
from costmodels.power_trees import fit_free_trees

OUT = Path(__file__).parents[1] / "costmodels" / "data" / "coefficients" / "power"
MACHINES = {
    "h200-vllm": PowerMachine(flops_per_s=989e12, memory_bytes_per_s=4.8e12, num_sms=132, rated_w=700.0),
    "b200-trtllm": PowerMachine(flops_per_s=2250e12, memory_bytes_per_s=8e12, num_sms=148, rated_w=1000.0),
    "gb200-trtllm": PowerMachine(flops_per_s=2500e12, memory_bytes_per_s=8e12, num_sms=152, rated_w=1200.0),
}
TREES = {
    "num_trees": 500,
    "num_leaves": 127,
    "learning_rate": 0.06,
    "min_rows_per_leaf": 2,
    "features_frac": 0.25,
}
NUM_SEEDS = 2


def _sha(paths):
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write(name, document):
    text = json.dumps(document, indent=1, sort_keys=True)
    (OUT / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"  written {name}.json ({len(text) / 1e6:.2f} MB)")


def held_out_caps(samples):
    """Return predicted throughput of every sample by a fit that saw no row of its network."""
    predicted = np.zeros(len(samples.throughput_frac))
    for network in np.unique(samples.network):
        test = samples.network == network
        train = samples.take(~test)
        static, exponent, sharpness = fit_cap_responses(
            train.device, train.cap_frac, train.natural_frac, train.throughput_frac
        )
        held = samples.take(test)
        predicted[test] = predict_caps(held, static, exponent, sharpness)
    return predicted


def predict_caps(samples, static, exponent, sharpness):
    """Return the throughput that fitted responses predict."""
    from costmodels.power_response import _responses

    point = np.concatenate([static, exponent, [sharpness]])
    return _responses(point, samples.device, samples.cap_frac, samples.natural_frac)


def fit_caps(data, write):
    path = data / "power" / "zeus_powercap_time_power.csv.gz"
    samples = cap_samples(path)
    predicted = held_out_caps(samples)
    error = np.abs(predicted / samples.throughput_frac - 1)
    print(
        f"caps -> throughput, one network left out: {100 * error.mean():.2f} % MAPE over {len(error)} points"
    )
    static, exponent, sharpness = fit_cap_responses(
        samples.device, samples.cap_frac, samples.natural_frac, samples.throughput_frac
    )
    every = fit_cap_responses(
        np.zeros(len(error), dtype=np.int64), samples.cap_frac, samples.natural_frac, samples.throughput_frac
    )
    log_error = np.log(predicted / samples.throughput_frac)
    rows = {
        name: {
            "static_frac": round(float(static[i]), 4),
            "exponent": round(float(exponent[i]), 4),
            "log_sigma": round(float(np.quantile(np.abs(log_error[samples.device == i]), 0.9) / 1.645), 4),
            "held_out_mape_frac": round(float(error[samples.device == i].mean()), 4),
            "num_samples": int((samples.device == i).sum()),
        }
        for i, name in enumerate(samples.device_names)
    }
    rows["any"] = {
        "static_frac": round(float(every[0][0]), 4),
        "exponent": round(float(every[1][0]), 4),
        "log_sigma": round(float(np.quantile(np.abs(log_error), 0.9) / 1.645 + 0.03), 4),
        "num_samples": len(error),
    }
    print(json.dumps(rows, indent=1), "sharpness", round(sharpness, 2))
    if write:
        _write(
            "cap_response",
            {
                "sharpness": round(float(sharpness), 3),
                "devices": rows,
                "held_out_mape_frac": round(float(error.mean()), 5),
                "held_out": "one network left out",
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


def held_out_matmul(samples, machine):
    """Return the draw of every row predicted by trees that saw no row of its weight shape."""
    features = matmul_features(samples.m, samples.n, samples.k, samples.fmt, machine)
    target, fold = np.log(samples.power_w / machine.rated_w), folds_of(samples)
    share = np.zeros(len(target))
    for i in range(5):
        train = fold != i
        for seed in range(NUM_SEEDS):
            trees = fit_free_trees(features[train], target[train], seed=seed, **TREES)
            share[~train] += trees.predict(features[~train]) / NUM_SEEDS
    return np.minimum(np.exp(share), 1.0) * machine.rated_w


def fit_matmul(data, write):
    for source, machine in MACHINES.items():
        samples, paths = matmul_samples(data, source)
        predicted = held_out_matmul(samples, machine)
        error = np.abs(predicted / samples.power_w - 1)
        long = samples.latency_s >= 1e-4
        print(
            f"matmul draw {source}, unseen (n, k): {100 * error.mean():.2f} % MAPE, "
            f"{100 * np.median(error):.2f} % median; >= 0.1 ms {100 * error[long].mean():.2f} %",
            flush=True,
        )
        if not write:
            continue
        features = matmul_features(samples.m, samples.n, samples.k, samples.fmt, machine)
        target = np.log(samples.power_w / machine.rated_w)
        log_error = np.abs(np.log(predicted / samples.power_w))
        fitted = MatmulPower(
            source=source,
            formats=samples.formats,
            machine=machine,
            trees=tuple(fit_free_trees(features, target, seed=s, **TREES) for s in range(NUM_SEEDS)),
            least_w=float(np.quantile(samples.power_w, 0.005)),
            log_sigma=float(np.quantile(log_error, 0.9) / 1.645),
        )
        _write(
            f"matmul_{source}",
            {
                "formats": list(fitted.formats),
                "machine": {name: getattr(machine, name) for name in PowerMachine.__slots__},
                "trees": [t.to_json() for t in fitted.trees],
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--what", default="caps,families,matmul")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if not args.data.is_dir():
        sys.exit(f"{args.data}: the measured tables are not here; give --data")
    steps = {"caps": fit_caps, "matmul": fit_matmul, "families": fit_families}
    for name in args.what.split(","):
        steps[name](args.data, args.write)


if __name__ == "__main__":
    main()
