"""Measure collectives against tables: `python benchmarks/collective_accuracy.py [SHARED_DATA]`.

1. Shipped curves against the tables that they were fitted to (per technology, operation, degree).
2. Held-out machine: the curve is fitted without the machine and scaled by rated link speed.
3. Held-out degree: the curve of 4 ranks is interpolated from 2 and 8.
4. Other people's machines and published single figures, none of them in the curves; the figures that set a
   constant in technologies.json are marked.
5. Expert dispatch and combine kernels.

Errors are |predicted / measured - 1|; the tables lie in SHARED_DATA (default ../shared/data).
"""

import json
import sys
from pathlib import Path

import numpy as np
from fit_collectives import NAMES, SYSTEMS, read, samples

from costmodels.collectives.curves import Curve, fit_curve, traffic_factor
from costmodels.collectives.expert_exchange import ExchangeKernel, moe_combine_s, moe_dispatch_s
from costmodels.collectives.times import SERVING, Collective, collective_s
from hardware.catalog import find_cluster
from hardware.levels import Level, LinkKind

OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "all_reduce_custom")
NODE = {"a100_sxm": 8, "h100_sxm": 8, "h200_sxm": 8, "b200_sxm": 8, "gb200": 4}


def node(technology, rate, size=8, **more):
    kind = more.pop("kind", LinkKind.SWITCH)
    reduce = technology in ("nvlink4", "nvlink5")
    return Level(name="node", size=size, bytes_per_s=rate, latency_s=1e-6, kind=kind, technology=technology,
                 in_network_reduce=more.pop("in_network_reduce", reduce), **more)  # fmt: skip


def rails(rate, technology="ib", latency_s=5e-6, size=4096):
    return Level(name="world", size=size, bytes_per_s=rate, latency_s=latency_s, kind=LinkKind.RAIL,
                 technology=technology)  # fmt: skip


def predict(op, sizes, degree, levels, stride=1):
    custom = op == "all_reduce_custom"
    rows = np.full(len(sizes), degree)
    name = Collective("all_reduce" if custom else op)
    allowed = {"allowed": SERVING} if custom else {}
    return collective_s(name, np.asarray(sizes, float), np.full(len(sizes), stride), rows, levels, **allowed)


def report(label, predicted, measured):
    error = np.abs(np.asarray(predicted) / np.asarray(measured) - 1)
    signed = float(np.median(np.asarray(predicted) / np.asarray(measured) - 1))
    print(f"  {label:<44} n {len(error):4d}  median {np.median(error):6.1%}  mean {np.mean(error):6.1%}"
          f"  p90 {np.quantile(error, 0.9):6.1%}  signed {signed:+6.1%}")  # fmt: skip


def shipped(data):
    print("1. shipped curves on their own tables (in sample)")
    for technology, (rate, systems) in SYSTEMS.items():
        for system in systems:
            found, _ = samples(data, (system,))
            for op in OPS:
                predicted, measured = [], []
                for (name, degree), points in found.items():
                    if name == op:
                        sizes, times = zip(*points, strict=True)
                        predicted += list(predict(op, sizes, degree, (node(technology, rate),)))
                        measured += times
                report(f"{system} {op}", predicted, measured)


def curve_of(found, op, degrees):
    columns = [fit_curve(op, d, *map(np.array, zip(*sorted(found[op, d]), strict=True))) for d in degrees]
    alpha, extra, half, rate, sigma = (tuple(column) for column in zip(*columns, strict=True))
    return Curve(degrees=tuple(degrees), alpha_s=alpha, extra_s=extra, half_bytes=half, bytes_per_s=rate,
                 log_sigma=sigma)  # fmt: skip


def curve_s(op, curve, sizes, degree, scale=1.0):
    alpha, extra, half, rate, _ = (float(v[0]) for v in curve.at(np.array([float(degree)])))
    sizes = np.asarray(sizes) / scale
    factor = float(traffic_factor(op, np.array([float(degree)]))[0])
    return alpha + extra * sizes / (sizes + half) + factor * sizes / rate


def held_out_machine(data):
    print("2. machine held out: fitted on the first, predicted for the second")
    pairs = (
        ("h100_sxm", "h200_sxm", 1.0),
        ("h200_sxm", "h100_sxm", 1.0),
        ("b200_sxm", "gb200", 1.0),
        ("gb200", "b200_sxm", 1.0),
        ("a100_sxm", "h100_sxm", 1.5),
        ("h100_sxm", "b200_sxm", 2.0),
    )
    for known, other, scale in pairs:
        train, _ = samples(data, (known,))
        test, _ = samples(data, (other,))
        for op in OPS[:4]:
            degrees = sorted(d for name, d in train if name == op)
            predicted, measured = [], []
            for d in sorted(d for name, d in test if name == op and d in degrees):
                sizes, times = zip(*test[op, d], strict=True)
                predicted += list(curve_s(op, curve_of(train, op, degrees), sizes, d, scale))
                measured += times
            report(f"{known} -> {other} {op}", predicted, measured)


def held_out_degree(data):
    print("3. degree held out: 4 ranks from 2 and 8")
    for system in ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm"):
        found, _ = samples(data, (system,))
        for op in OPS[:4]:
            sizes, times = zip(*found[op, 4], strict=True)
            report(f"{system} {op}", curve_s(op, curve_of(found, op, (2, 8)), sizes, 4), times)


def b300_rows(data):
    rate = 900e9
    for row in read(data / "hardware" / "nccl_measured.csv"):
        if row["system"] in ("b300_sxm", "gb300") and row["nccl_version"].startswith("2.29"):
            op, degree = NAMES.get(row["collective"], row["collective"]), int(row["n_gpus"])
            for name, size in (("64KiB", 2**16), ("1MiB", 2**20), ("8MiB", 2**23), ("64MiB", 2**26),
                               ("512MiB", 2**29)):  # fmt: skip
                factor = (degree - 1) / degree * (2 if op == "all_reduce" else 1)
                seconds = size * factor / float(row[f"busbw_{name}"]) / 1e9
                yield op, float(predict(op, [size], degree, (node("nvlink5", rate),))[0]), seconds


def galvatron_rows(data):
    path = data / "placement" / "galvatron" / "sp_time_1nodes_8gpus_per_node.json"
    for key, value in json.loads(path.read_text()).items():
        if key.startswith("allreduce"):
            _, _, degree, size, _ = key.split("_")
            size_bytes = int(size.removesuffix("MB")) * 2**20
            yield (size_bytes, float(predict("all_reduce", [size_bytes], int(degree),
                                             (node("nvlink3", 300e9),))[0]), value * 1e-3)  # fmt: skip


def mi200_rows(data):
    """Yield all-reduces; gathers and scatters of these samples also time copies of tensor lists."""
    for degree, pair in ((2, 200e9), (4, 50e9), (8, 50e9)):
        levels = (node("infinity-fabric", 200e9, 2, kind=LinkKind.MESH),
                  node("infinity-fabric", 125e9, 16, kind=LinkKind.MESH, pair_bytes_per_s=pair))  # fmt: skip
        path = data / "placement" / "nnscaler" / "mi200_comm" / f"intra_{degree}.json"
        sizes, times = json.loads(path.read_text())["all reduce"]
        for size, seconds in zip(sizes, times, strict=True):
            yield degree, size, float(predict("all_reduce", [size * 2**20], degree, levels)[0]), seconds


FIGURES = (
    ("H200 x8 NVLS all-reduce 16 GiB (constant)", "all_reduce", 2**34, 8, (node("nvlink4", 450e9),), 482),
    ("H200 x6 NVLS", "all_reduce", 2**34, 6, (node("nvlink4", 450e9),), 436),
    ("H200 x8 ring (constant)", "all_reduce", 2**34, 8,
     (node("nvlink4", 450e9, in_network_reduce=False),), 367.6),
    ("H200 x8 all-gather 16 GiB", "all_gather", 2**34, 8, (node("nvlink4", 450e9),), 361),
    ("H200 x8 reduce-scatter 16 GiB", "reduce_scatter", 2**34, 8, (node("nvlink4", 450e9),), 363),
    ("A100 x8 all-reduce 16 GiB", "all_reduce", 2**34, 8, (node("nvlink3", 300e9),), 234.9),
    ("B200 x8 all-reduce 16 GiB", "all_reduce", 2**34, 8, (node("nvlink5", 900e9),), 838),
    ("B200 x6 all-reduce 16 GiB", "all_reduce", 2**34, 6, (node("nvlink5", 900e9),), 778),
    ("NVL72 all-reduce, switch adds (constant)", "all_reduce", 2**34, 72, (node("nvlink5", 900e9, 72),), 850),
    ("NVL72 all-reduce, ring", "all_reduce", 2**34, 72,
     (node("nvlink5", 900e9, 72, in_network_reduce=False),), 680),
    ("B200 4 nodes over EFA (constant)", "all_reduce", 2**34, 32,
     (node("nvlink5", 900e9), rails(50e9, "efa", 15e-6)), 381.8),
    ("MI300X x8 4 GiB (constant)", "all_reduce", 2**32, 8,
     (node("xgmi", 448e9, kind=LinkKind.MESH, pair_bytes_per_s=64e9),), 312.9),
    ("MI300X x2 4 GiB", "all_reduce", 2**32, 2,
     (node("xgmi", 448e9, kind=LinkKind.MESH, pair_bytes_per_s=64e9),), 47.7),
)  # fmt: skip


def others(data):
    print("4. machines and figures outside the curves")
    for op in OPS[:4]:
        rows = [(p, m) for name, p, m in b300_rows(data) if name == op]
        report(f"B300, GB300 (unseen devices) {op}", *zip(*rows, strict=True))
    rows = list(galvatron_rows(data))
    for label, keep in (("below 64 MiB", lambda s: s < 2**26), ("from 64 MiB", lambda s: s >= 2**26)):
        report(f"Galvatron's A100 node, all-reduce {label}",
               *zip(*((p, m) for s, p, m in rows if keep(s)), strict=True))  # fmt: skip
    for degree, note in ((2, "constant"), (4, "constant"), (8, "held out")):
        rows = [(p, m) for d, size, p, m in mi200_rows(data) if d == degree and size >= 16]
        report(f"nnScaler's MI200, {degree} dies, all-reduce ({note})", *zip(*rows, strict=True))
    for label, op, size, degree, levels, measured in FIGURES:
        factor = (degree - 1) / degree * (2 if op == "all_reduce" else 1)
        busbw = size * factor / float(predict(op, [size], degree, levels)[0]) / 1e9
        print(f"  {label:<44} predicted {busbw:6.1f} measured {measured:6.1f} {busbw / measured - 1:+6.1%}")


def hosts(data):
    """Print PCIe hosts as the catalogue has them; their outer levels were rated by these samples."""
    for cluster, system in (("aws-g6e", "l40s"), ("rtx-pro-6000-server", "rtx_pro_6000_server")):
        levels = find_cluster(cluster).levels
        for row in read(data / "hardware" / "nccl_measured.csv"):
            if row["system"] != system:
                continue
            op, degree = NAMES.get(row["collective"], row["collective"]), int(row["n_gpus"])
            factor = (degree - 1) / degree * (2 if op == "all_reduce" else 1)
            busbw = 2**29 * factor / float(predict(op, [2**29], degree, levels)[0]) / 1e9
            measured = float(row["busbw_512MiB"])
            print(f"  {system} x{degree} {op:<15} predicted {busbw:5.1f} measured {measured:5.1f} GB/s")


def experts(data):
    print("5. expert dispatch and combine (constants read off these tables)")
    levels = (node("nvlink4", 450e9), rails(50e9))
    for kernel, suffix in ((ExchangeKernel.LOW_LATENCY, "ll"), (ExchangeKernel.NORMAL, "normal")):
        rows = read(data / "kernels" / f"h100_sxm_deepep_{suffix}.csv.gz")
        parts = ("avg_t_us",) if suffix == "ll" else ("transmit_us", "notify_us")
        for nodes in (1, 2, 4, 8):
            mine = [r for r in rows if int(r["node_num"]) == nodes and int(r.get("dispatch_sms", 20)) >= 20]
            tokens = np.array([float(row["num_token"]) for row in mine])
            top_k = np.array([int(row["num_topk"]) for row in mine])
            groups = (np.ones(len(mine), dtype=int), np.full(len(mine), 8 * nodes))
            for side, function, row_bytes in (
                ("dispatch", moe_dispatch_s, 7392.0),
                ("combine", moe_combine_s, 14336.0),
            ):
                measured = [sum(float(row[f"{side}_{part}"]) for part in parts) * 1e-6 for row in mine]
                predicted = function(kernel, tokens, np.full(len(mine), row_bytes), top_k, *groups, levels)
                report(f"H100 {suffix} {nodes} nodes {side}", predicted, measured)


def main():
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    if not (data / "kernels").is_dir():
        sys.exit(f"{data}/kernels is absent: the measured tables are needed")
    for part in (shipped, held_out_machine, held_out_degree, others, hosts, experts):
        part(data)


if __name__ == "__main__":
    main()
