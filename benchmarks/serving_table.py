"""Serving accuracy and speed beside the peers' published figures.

Run: ``python -m benchmarks.serving_table [--quick]``. Reads ``../shared/data/serving``, says what is absent;
``--quick`` leaves out the backtest of all points (a minute). CPU seconds of one core, start-up excluded.
Held-out accuracy (whole models, whole systems): ``python -m benchmarks.fit_serving``.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.helix_instances import INSTANCES, read_instance
from benchmarks.serving_unstated import print_unstated
from costmodels.backtest.serving import backtest_serving
from costmodels.graph_import.transformer import transformer_graph
from costmodels.models import find_model
from costmodels.serving.bound import throughput_bound_tokens_per_s
from costmodels.serving.config import Quant, ServingConfig, ServingTable
from costmodels.serving.engine import find_engine
from costmodels.serving.iteration import iteration_cost
from costmodels.serving.machine import device_machine, serving_machine
from costmodels.serving.operators import IterationWork
from hardware.catalog import find_device, find_node
from planner.serving.flow import plan_serving
from planner.serving.request import read_serve_request
from solvers.gpu_mix import MixProblem, solve_mix
from solvers.serving_placement import solve_layer_flow

DATA = Path(__file__).parents[2] / "shared" / "data" / "serving"
MTP_ACCEPTED = 0.7
CLOUDMATRIX_BATCHES = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


def row(what: str, ours: str, peer: str) -> None:
    print(f"{what:<58} {ours:<44} {peer}")


def accuracy_rows() -> None:
    report = backtest_serving(DATA / "serving_runs.csv.gz", by="mode")
    share = 100 * len(report.predictions) / report.num_rows
    row("serving points predicted", f"{share:.1f} % of {report.num_rows}", "AIConfigurator: 2,774 of 5,221")
    for name, errors in ({"all": report.errors()} | report.groups()).items():
        for kind, peer in (("tpot", "28.8 / 17.2 %"), ("ttft", "55.6 / 49.8 %, bias -40 %")):
            e = errors[kind]
            figures = [
                100 * float(e[k] or 0.0) for k in ("mape_frac", "median_ape_frac", "signed_median_frac")
            ]
            text = f"{figures[0]:.1f} / {figures[1]:.1f} %, bias {figures[2]:+.1f} %"
            row(f"{kind.upper()} MAPE / median, {name}", text, peer)
    print_unstated(DATA / "serving_runs.csv.gz", report)


def mix_rows() -> None:
    tputs = np.array([[2, 1, 5, 2], [20, 20, 40, 20]], dtype=float)
    rate = np.array([0.2, 0.1, 0.5, 0.2]) * 30.0
    names = {"item_names": ("A10G", "A100-80GB"), "bucket_names": ("a", "b", "c", "d")}
    cost = np.array([1.01, 3.67])
    whole = solve_mix(MixProblem(**names, usd_per_hour=cost, load=rate / tputs, num_slices=1)).unwrap()
    free = solve_mix(MixProblem(**names, usd_per_hour=cost, load=rate / tputs)).unwrap()
    row("Mélange's example", f"{whole.count.tolist()} {whole.usd_per_hour:.2f} USD/h", "[3, 1] 6.70 USD/h")
    row("the same with free splits", f"{free.count.tolist()} {free.usd_per_hour:.2f} USD/h", "-")
    for path in sorted((DATA / "melange_instances").glob("*.json.gz")):
        instance = json.loads(gzip.decompress(path.read_bytes()))
        kinds = list(instance["gpu_info"])
        share = np.array(instance["workload_distribution"]).ravel() * instance["total_request_rate"]
        speed = np.array([np.array(instance["gpu_info"][k]["tputs"]).ravel() for k in kinds])[:, share > 0]
        share = share[share > 0]
        begin = time.process_time()
        found = solve_mix(
            MixProblem(
                item_names=tuple(kinds),
                bucket_names=tuple(f"b{i}" for i in range(len(share))),
                usd_per_hour=np.array([instance["gpu_info"][k]["cost"] for k in kinds]),
                load=share / speed,
            )
        )
        cpu_s = time.process_time() - begin
        text = f"{found.objective:.3f} USD/h, {found.status.value}, {cpu_s:.2f} CPU-s"
        row(f"mix {len(kinds)} types x {len(share)} buckets ({path.name})", text, "> 40 CPU-s, no answer")


def search_row() -> None:
    flags = {
        "model": "qwen3-32b", "gpus": ("h200",), "workload": "fixed:4000x500", "rate_per_s": 10.0,
        "slo_ttft_s": 1.0, "slo_tpot_s": 0.03, "formats": ("bf16", "fp8"), "kv_formats": ("bf16", "fp8"),
        "simulate": False,
    }  # fmt: skip
    begin = time.process_time()
    plan = plan_serving(read_serve_request(None, flags))
    text = f"{time.process_time() - begin:.2f} CPU-s, {plan.search.num_configs} configurations, both forms"
    row("configuration search, Qwen3-32B on H200", text, "AIConfigurator 7.8 to 39 CPU-s")


def helix_rows() -> None:
    for name, (_, published, wanted) in INSTANCES.items():
        problem = read_instance(DATA / "helix", name)
        begin = time.process_time()
        found = solve_layer_flow(problem, max_evaluations=20000)
        text = f"{found.objective:.0f} tokens/s, {time.process_time() - begin:.1f} CPU-s"
        row(
            f"Helix {name} (to reach {wanted:.0f})",
            text,
            f"{published:.0f} (Gurobi, 20 threads, 10 to 50 min)",
        )


def cloudmatrix_rows() -> None:
    device = find_device("ascend-910c-die")
    machine = device_machine(device, find_node("cloudmatrix384").levels)
    model, engine = find_model("deepseek-r1"), find_engine("mindie")
    eight = {name: Quant.INT8 for name in ("weights", "experts", "attention")}
    config = ServingTable.from_configs([ServingConfig(dp=320, ep=256, draft_tokens=1, **eight)])

    def tpot_s(batch: float, context: float) -> float:
        work = IterationWork.of(0, 0, batch / 2, batch / 2 * context)
        return float(iteration_cost(model, config, engine, machine, work).iteration_s[0]) / (1 + MTP_ACCEPTED)

    for batch, context, published in (
        (96, 4096, 49.4),
        (128, 1536, 46.8),
        (112, 2176, 47.4),
        (24, 4096, 24.6),
        (8, 4096, 14.9),
    ):
        found = tpot_s(batch, context)
        text = f"{found * 1e3:.1f} ms, {batch / found:.0f} tokens/s per package (fitted to these five)"
        row(f"CloudMatrix384 decode, batch {batch} at {context}", text, f"{published} ms")
    for limit_s, published in ((0.050, 96), (0.030, 24), (0.015, 8)):
        fitting = [i for i, batch in enumerate(CLOUDMATRIX_BATCHES) if tpot_s(batch, 4096) <= limit_s]
        text = "none"
        if fitting:
            steps = fitting[-1] - CLOUDMATRIX_BATCHES.index(published)
            text = f"{CLOUDMATRIX_BATCHES[fitting[-1]]} ({steps:+d} step of the batches tried)"
        row(f"CloudMatrix384, largest batch within {limit_s * 1e3:.0f} ms at 4096", text, str(published))
    row("batches tried", ", ".join(map(str, CLOUDMATRIX_BATCHES)), "")


def nanoflow_rows() -> None:
    kernels = serving_machine(find_device("a100-80gb")).kernels
    deepseek = transformer_graph(
        name="deepseek-67b", hidden=8192, ffn_hidden=22016, num_layers=95, num_heads=64, num_kv_heads=8,
        vocab=102400, gated=True, bias=False, rms=True, tied=False,
    )  # fmt: skip
    published = {
        "llama-2-70b": 1857,
        "llama-3-70b": 1850,
        "qwen2.5-72b": 1800,
        "mixtral-8x7b": 10305,
        "llama-3-8b": 16250,
    }
    models = [(find_model(name), value) for name, value in published.items()] + [(deepseek, 1941)]
    for model, value in models:
        bound = throughput_bound_tokens_per_s(model, kernels)
        row(
            f"NanoFlow bound, {model.name}",
            f"{bound:.0f} tokens/s ({100 * (bound / value - 1):+.1f} %)",
            str(value),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    row("figure", "here", "peer, published or measured")
    if DATA.exists():
        if not options.quick:
            accuracy_rows()
        mix_rows()
        helix_rows()
    else:
        print(f"{DATA} is absent: accuracy, mix instances and Helix clusters are left out")
    search_row()
    cloudmatrix_rows()
    nanoflow_rows()


if __name__ == "__main__":
    main()
