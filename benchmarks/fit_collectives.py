"""Fit the collective curves again: `python benchmarks/fit_collectives.py [SHARED_DATA]`.

Reads the measured tables in `kernels/*_nccl.csv.gz`, `kernels/*_custom_allreduce.csv.gz` and
`hardware/nccl_measured.csv` under SHARED_DATA (default ../shared/data) and rewrites
costmodels/data/coefficients/collectives/{nvlink3,nvlink4,nvlink5,pcie}.json. One curve per operation and
degree is fitted to all machines of a technology together.
"""

import csv
import gzip
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from costmodels.collectives.curves import fit_curve

OUT = Path(__file__).resolve().parents[1] / "costmodels" / "data" / "coefficients" / "collectives"
SYSTEMS = {
    "nvlink3": (300e9, ("a100_sxm",)),
    "nvlink4": (450e9, ("h100_sxm", "h200_sxm")),
    "nvlink5": (900e9, ("b200_sxm", "gb200")),
}
# ring over NVLS bandwidth at 8 ranks, 16 GiB: H200 367.6/482, B200 682/838 (stas00/ml-engineering@744d01e)
RING_OVER_NVLS = {"nvlink4": 367.6 / 482, "nvlink5": 682 / 838}
NAMES = {"alltoall": "all_to_all"}


def read(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as handle:
        return list(csv.DictReader(handle))


def samples(data, systems):
    """Return {(op, degree): [(bytes, seconds)]} of several machines, and the sha256 of their files."""
    found, sha = defaultdict(list), hashlib.sha256()
    for system in systems:
        for kind in ("nccl", "custom_allreduce"):
            path = data / "kernels" / f"{system}_{kind}.csv.gz"
            sha.update(path.read_bytes())
            for row in read(path):
                seconds = float(row["latency_ms"]) * 1e-3
                if kind == "nccl":
                    if row["nccl_dtype"] == "half":
                        op = NAMES.get(row["op_name"], row["op_name"])
                        found[op, int(row["num_gpus"])].append((float(row["bytes"]), seconds))
                elif row["kernel_source"] == "vLLM_custom_graph" and int(row["message_elems"]) * 2 < 8 << 20:
                    found["all_reduce_custom", int(row["num_gpus"])].append(
                        (float(row["message_elems"]) * 2, seconds)
                    )
    return found, sha.hexdigest()


def pcie_samples(data):
    """Return samples rebuilt from the summary (start-up time, busbw at six sizes) of a PCIe 5 host."""
    path = data / "hardware" / "nccl_measured.csv"
    found = defaultdict(list)
    for row in read(path):
        if row["system"] != "rtx_pro_6000_server":
            continue
        op, degree = NAMES.get(row["collective"], row["collective"]), int(row["n_gpus"])
        factor = (degree - 1) / degree * (2 if op == "all_reduce" else 1)
        found[op, degree].append((4096.0, float(row["alpha_us_le4KB"]) * 1e-6))
        for name, size in (("64KiB", 2**16), ("1MiB", 2**20), ("8MiB", 2**23), ("64MiB", 2**26),
                           ("256MiB", 2**28), ("512MiB", 2**29)):  # fmt: skip
            found[op, degree].append((float(size), size * factor / (float(row[f"busbw_{name}"]) * 1e9)))
    return found, hashlib.sha256(path.read_bytes()).hexdigest()


def curves(found):
    """Return the curve tables of all operations."""
    out = {}
    for op in sorted({op for op, _ in found}):
        columns = defaultdict(list)
        for degree in sorted(n for o, n in found if o == op):
            sizes, times = (np.array(v) for v in zip(*sorted(found[op, degree]), strict=True))
            alpha, extra, half, rate, sigma = fit_curve(op, degree, sizes, times)
            columns["degrees"].append(degree)
            columns["alpha_s"].append(float(f"{alpha:.4g}"))
            columns["extra_s"].append(float(f"{extra:.4g}"))
            columns["half_bytes"].append(float(f"{half:.4g}"))
            columns["bytes_per_s"].append(float(f"{rate:.4g}"))
            columns["log_sigma"].append(float(f"{sigma:.3g}"))
        out[op] = dict(columns)
    return out


def split_nvls(name, tables):
    """Move the measured 8-rank all-reduce, which ran in the switch, to a curve of its own."""
    ring = tables["all_reduce"]
    nvls = {key: [values[-1]] for key, values in ring.items()}
    ring["bytes_per_s"][-1] = float(f"{ring['bytes_per_s'][-1] * RING_OVER_NVLS[name]:.4g}")
    tables["all_reduce_nvls"] = nvls


def main():
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    if not (data / "kernels").is_dir():
        sys.exit(f"{data}/kernels is absent: nothing to fit from")
    jobs = {name: (rate, *samples(data, systems), systems) for name, (rate, systems) in SYSTEMS.items()}
    jobs["pcie"] = (63e9, *pcie_samples(data), ("rtx_pro_6000_server",))
    for name, (rate, found, sha, systems) in jobs.items():
        tables = curves(found)
        if name in RING_OVER_NVLS:
            split_nvls(name, tables)
        body = {
            "technology": name,
            "reference_bytes_per_s": rate,
            "curves": tables,
            "provenance": {
                "source": "ai-dynamo/aiconfigurator@095f58a51 (Apache-2.0): NCCL 2.27-2.29, vLLM kernels",
                "systems": list(systems),
                "num_samples": sum(len(v) for v in found.values()),
                "samples_sha256": sha,
                "range_bytes": [512, 536870912],
                "fitted_by": "benchmarks/fit_collectives.py",
                "date": "2026-11-21",
            },
        }
        (OUT / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        print(name, {op: table["bytes_per_s"] for op, table in tables.items()})


if __name__ == "__main__":
    main()
