"""Reprint what the request-level simulator reaches, measured anchors beside it.

Run from the repository's root::

    python benchmarks/simulator_table.py [--shared ../shared] [--logs DIR] [--only speed,logs,...]

Parts: ``speed`` (full Azure conversation trace, one engine), ``logs`` (measured vLLM runs, from the layer
tables of their GPUs), ``catalogue`` (the same runs from catalogue data alone), ``splitwise`` (decode at 64
sequences), ``distserve`` (goodput of OPT-13B with its own coefficients) and ``plans`` (100 fleets, 3 rates,
20,000 requests). They read traces and measurements from ``--shared``/data, which is not shipped; where it is
absent, they say so. Logs are found by name, ``vllm_measured_<gpu>_<model>.csv.gz``.
"""

import argparse
import csv
import gzip
import itertools
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from costmodels.job import Slo
from costmodels.models import find_model
from costmodels.traces import Trace, read_trace
from planner.simulate.core import simulate
from planner.simulate.fleet import EngineSpec, Fleet, Pool
from planner.simulate.fleet_entries import EngineEntry, FleetFile, PoolEntry
from planner.simulate.fleet_file import fleet_from_file
from planner.simulate.goodput import EngineCount, fewest_engines, find_goodput
from planner.simulate.layer_profile import read_layer_profile
from planner.simulate.outcome import latencies
from planner.simulate.profiled_engine import measured_timer
from planner.simulate.settings import Batching, EngineSettings, Role, engine_settings
from planner.simulate.step_table import batch_exponent, step_table_timer
from planner.simulate.timing import AffineTimer

# How the logged engines ran (README of the data): devices, cache, sequences. Links between the two RTX PRO
# 6000 of one host are PCIe without NVLink: 16 GB/s and 20 us per collective, LLMServingSim's own setting.
RUNS = {
    "RTX4090_Llama-3.1-8B": {"model": "llama-3.1-8b", "device": "rtx-4090", "kv": 41_408, "seqs": 256},
    "RTXPRO6000_Llama-3.1-8B": {
        "model": "llama-3.1-8b",
        "device": "rtx-pro-6000",
        "kv": 480_000,
        "seqs": 128,
    },
    "RTXPRO6000_Qwen3-32B": {
        "model": "qwen3-32b",
        "device": "rtx-pro-6000",
        "kv": 457_824,
        "seqs": 128,
        "tp": 2,
    },
    "RTXPRO6000_Qwen3-30B-A3B-Instruct-2507": {
        "model": "qwen3-30b-a3b",
        "device": "rtx-pro-6000",
        "kv": 300_000,
        "seqs": 128,
        "dp": 2,
        "ep": 2,
    },
}
LINK_BYTES_PER_S, LINK_LATENCY_S = 16e9, 20e-6
# The logs lack contents. Their workload's block-hash hits are known in all, 19,520 of 257,239 prompt tokens,
# not by request; the second line of each log spreads them evenly.
PREFIX_TOKENS = 66


def report(name: str, ours: str, anchor: str, target: str) -> None:
    print(f"  {name:<58} {ours:>34}   anchor {anchor:<34} to reach {target}")


def h100_fleet() -> Fleet:
    engine = EngineEntry(model="llama-3.1-8b", device="h100", token_budget=2048, max_seqs=256)
    return fleet_from_file(FleetFile(pools=(PoolEntry(name="h100", engine=engine),)))


def speed(shared: Path, _: Path) -> None:
    trace = read_trace(shared / "data/traces/azure_conv_2023.csv.gz")
    start = time.process_time()
    fleet = h100_fleet()
    simulate(fleet, trace.head(2000))
    cold = time.process_time() - start
    start = time.process_time()
    simulate(fleet, trace.head(2000))
    start_up = cold - (time.process_time() - start)
    best = np.inf
    for _run in range(3):
        start = time.process_time()
        raw = simulate(fleet, trace)
        best = min(best, time.process_time() - start)
    rows = np.array(raw.engines[0].logs[0]).reshape(-1, 9)
    steps = np.maximum(rows[:, 2], 1).sum()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    report(
        "requests per CPU-second", f"{len(trace) / best:,.0f}", "7,966 (prototype), 521 (Vidur)", ">= 15,000"
    )
    report("iterations per CPU-second", f"{steps / best:,.0f}", "76,800, 5,300", ">= 120,000")
    report("start-up of a new model, CPU-s", f"{start_up:.2f}", "91 to 3,400", "< 1")
    report("peak memory, MB", f"{memory:.0f}", "805 to 960", "< 150")


def measured_columns(path: Path) -> dict[str, np.ndarray]:
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key]) for row in rows]) for key in ("ttft_s", "tpot_s", "e2e_s")}


def print_errors(label: str, raw: object, path: Path, target: str) -> None:
    seen, real = latencies(raw), measured_columns(path)
    errors = {n: 100 * (np.nanmean(getattr(seen, n)) / np.nanmean(real[n]) - 1) for n in real}
    text = f"{errors['tpot_s']:+.1f} / {errors['e2e_s']:+.1f} / {errors['ttft_s']:+.1f} %"
    report(f"{label} (TPOT / E2E / TTFT)", text, "-1.7..+0.8 / -2.2..+1.0 / -13.6..+1.3", target)


def logs(shared: Path, folder: Path) -> None:
    tables = shared / "data/serving/vllm_logs"
    for path in sorted(folder.glob("vllm_measured_*.csv.gz")):
        name = path.name.removeprefix("vllm_measured_").removesuffix(".csv.gz")
        run = RUNS.get(name)
        if run is None:
            print(f"  {name}: no engine settings are known for this log")
            continue
        tp, dp, ep = run.get("tp", 1), run.get("dp", 1), run.get("ep", 1)
        model = find_model(run["model"])
        timer = measured_timer(
            read_layer_profile(tables / f"profile_{name}_tp{tp}"),
            model,
            tp=tp,
            dp=dp,
            ep=ep,
            link_bytes_per_s=LINK_BYTES_PER_S,
            link_latency_s=LINK_LATENCY_S,
            num_sms=188 if "PRO6000" in name else 128,
        )
        settings = engine_settings("vllm", max_seqs=run["seqs"])
        spec = EngineSpec(timer=timer, kv_tokens=run["kv"], settings=settings, num_ranks=dp)
        fleet, trace = Fleet(pools=(Pool(name="all", engine=spec, count=1),), router="vllm"), read_trace(path)
        print_errors(name, simulate(fleet, trace), path, "3 / 3 / 8 %")
        shared_prefix = replace(trace, prefix_tokens=np.full(len(trace), PREFIX_TOKENS))
        print_errors("  with the workload's prefix hits", simulate(fleet, shared_prefix), path, "3 / 3 / 8 %")


def catalogue(shared: Path, folder: Path) -> None:
    del shared
    for path in sorted(folder.glob("vllm_measured_*.csv.gz")):
        run = RUNS.get(path.name.removeprefix("vllm_measured_").removesuffix(".csv.gz"))
        if run is None:
            continue
        engine = EngineEntry(
            model=run["model"],
            device=run["device"],
            tp=run.get("tp", 1),
            dp=run.get("dp", 1),
            ep=run.get("ep", 1),
            max_seqs=run["seqs"],
            token_budget=2048,
            kv_tokens=run["kv"],
        )
        fleet = fleet_from_file(FleetFile(pools=(PoolEntry(name="all", engine=engine),), router="vllm"))
        print_errors(path.name, simulate(fleet, read_trace(path)), path, "15 / 15 / 25 %")


def splitwise(shared: Path, _: Path) -> None:
    with gzip.open(shared / "data/serving/splitwise/perf_model.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    cases = [("llama2-70b", "h100-80gb", 8), ("llama2-70b", "a100-80gb", 8), ("bloom-176b", "h100-80gb", 8)]
    cases += [("bloom-176b", "a100-80gb", 8), ("llama2-70b", "h100-80gb", 4), ("llama2-70b", "a100-80gb", 4)]
    table = {
        case: [r for r in rows if (r["model"], r["hardware"], int(r["tensor_parallel"])) == case]
        for case in cases
    }
    for model, device, tp in cases:
        mine = table[model, device, tp]
        real = np.median(
            [float(r["token_time"]) for r in mine if r["batch_size"] == "64" and r["prompt_size"] == "512"]
        )
        token = int(next(r["token_size"] for r in mine if r["batch_size"] == "64"))
        settings = EngineSettings(batching=Batching.PREFILL_FIRST, token_budget=1 << 20, prefix_caching=False)
        small = [r for r in mine if r["batch_size"] != "64"]
        others = {
            "table": [t for case, t in table.items() if case != (model, device, tp)],
            "model": [t for (name, _, _), t in table.items() if name != model],
            "device": [t for (_, name, _), t in table.items() if name != device],
        }
        timers = {key: step_table_timer(small, batch_exponent=batch_exponent(t)) for key, t in others.items()}
        timers["all"] = step_table_timer(mine)
        trace = Trace(
            arrival_s=np.zeros(64), prompt_tokens=np.full(64, 512), output_tokens=np.full(64, token)
        )
        found = {}
        for label, timer in timers.items():
            spec = EngineSpec(timer=timer, kv_tokens=200_000, settings=settings)
            raw = simulate(Fleet(pools=(Pool(name="all", engine=spec, count=1),)), trace)
            found[label] = latencies(raw).tpot_s.mean() * 1e3
        text = f"{found['all']:.1f} ms, {100 * (found['all'] / real - 1):+.1f} %"
        report(f"decode of 64, {model} {device} TP{tp}: measured {real:.1f} ms", text, "-39 to -51 %", "10 %")
        held_out = ", ".join(f"{100 * (found[key] / real - 1):+.1f} % ({key})" for key in others)
        print(f"      without its rows of 64, and without those of the same ...: {held_out}")


def distserve_fleet(
    rows: list[dict[str, str]], capacity: dict, prefill: tuple, decode: tuple, counts=(1, 1)
) -> Fleet:
    def coefficients(tp: int, phase: str) -> tuple[float, float, float]:
        row = next(r for r in rows if int(r["tp"]) == tp and r["phase"] == phase)
        return tuple(float(row[key]) * 1e-3 for key in ("a_ms", "b", "c"))

    def engine(role: Role, tp: int, pp: int) -> EngineSpec:
        a, b, c = coefficients(tp, "prefill")
        timer = AffineTimer(
            prefill=(a + pp * pp * 1e-3, b, c),
            decode_small=coefficients(tp, "decoding_smallbs"),
            decode_large=coefficients(tp, "decoding_largebs"),
            large_batch=95,
            overhead_s=2e-3,
            overhead_per_token_s=1e-7,
        )
        settings = EngineSettings(
            batching=Batching.PREFILL_FIRST, token_budget=8192, max_seqs=1024 * pp, prefix_caching=False
        )
        kv = capacity[tp, pp]
        return EngineSpec(
            timer=timer, kv_tokens=kv, settings=settings, role=role, num_lanes=pp, num_devices=tp * pp
        )

    return Fleet(
        pools=(
            Pool(name="prefill", engine=engine(Role.PREFILL, *prefill), count=counts[0]),
            Pool(name="decode", engine=engine(Role.DECODE, *decode), count=counts[1]),
        ),
        decode_router="least-outstanding",
    )


def distserve(shared: Path, _: Path) -> None:
    folder = shared / "data/serving/distserve"
    with (folder / "latency_coefficients_a100.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["engine"] == "distserve" and r["model"].endswith("13b")]
    with (folder / "kv_capacity_max_num_tokens.csv").open() as file:
        caps = [r for r in csv.DictReader(file) if r["model"].endswith("13b")]
    capacity = {(int(r["tp"]), int(r["pp"])): int(r["max_num_tokens"]) for r in caps}
    azure = read_trace(shared / "data/traces/azure_conv_2023.csv.gz")
    short = np.flatnonzero(azure.prompt_tokens + azure.output_tokens < 2048)
    rng = np.random.default_rng(0)
    pick, gaps = rng.choice(short, 3000), rng.exponential(1.0, 3000)
    trace = Trace(
        arrival_s=np.cumsum(gaps),
        prompt_tokens=azure.prompt_tokens[pick],
        output_tokens=azure.output_tokens[pick],
    )
    slo = Slo(ttft_s=0.2, tpot_s=0.1, percentile=90)
    shapes = [(1, 1), (2, 1), (1, 2)]

    def goodput(prefill: tuple, decode: tuple, counts: tuple = (1, 1), num: int = 3000) -> float:
        fleet = distserve_fleet(rows, capacity, prefill, decode, counts)
        found = find_goodput(fleet, trace.head(num), slo, warm_up_frac=0.0)
        return found.rate_per_s / fleet.num_devices

    start = time.process_time()
    for prefill, decode in itertools.product(shapes, shapes):
        goodput(prefill, decode, num=300)
    search = time.process_time() - start
    rates = {(p, d): goodput(p, d) for p, d in itertools.product(shapes, shapes)}
    best = max(rates, key=lambda k: rates[k])
    text = f"{rates[best]:.2f} with prefill TP,PP {best[0]}, decode {best[1]}"
    report("goodput, requests/s/GPU, best of its 1:1 shapes", text, "1.56, TP2 and 2 GPUs", "1.56 +- 0.1")
    report("search over 9 shapes, 300 requests a probe, CPU-s", f"{search:.2f}", "34.9", "< 3")
    ratios = {
        (p, d, n): goodput(p, d, n, 1500)
        for p, d in itertools.product([(1, 1), (2, 1)], shapes)
        for n in itertools.product((1, 2, 3), (1, 2))
        if n[0] * p[0] * p[1] + n[1] * d[0] * d[1] <= 8 and n != (1, 1)
    }
    top = max(ratios, key=lambda k: ratios[k])
    text = f"{ratios[top]:.2f}: {top[2][0]} x {top[0]} + {top[2][1]} x {top[1]}"
    report("goodput when prefill : decode ratios are free (8 GPUs)", text, "not searched", "better")


def plans(shared: Path, _: Path) -> None:
    path = shared / "data/traces/azure_conv_2023.csv.gz"
    trace = read_trace(path)
    start_wall = time.perf_counter()
    slo = Slo(ttft_s=1.0, tpot_s=0.05)
    bases = [
        fleet_from_file(
            FleetFile(
                pools=(
                    PoolEntry(
                        name=device,
                        engine=EngineEntry(
                            model="llama-3.1-8b", device=device, tp=tp, token_budget=budget, max_seqs=256
                        ),
                    ),
                )
            )
        ).pools[0]
        for device, tp, budget in itertools.product(
            ("l40s", "a100-80gb", "h100", "h200"), (1, 2), (512, 2048)
        )
    ][:15]
    counts, rates = (1, 2, 3, 4, 6, 8, 12), (8.0, 30.0, 80.0)
    per_pool = Parallel(n_jobs=2)(delayed(smallest_counts)(pool, counts, rates, trace, slo) for pool in bases)
    found = [answer for answers in per_pool for answer in answers]
    wall = time.perf_counter() - start_wall
    pruned, ran = sum(f.num_pruned for f, _ in found), sum(f.num_simulated for f, _ in found)
    total = len(bases) * len(rates) * len(counts)
    report(
        f"{len(bases) * len(counts)} fleets x 3 rates x {len(trace)} requests, 2 processes",
        f"{sum(cpu_s for _, cpu_s in found):.0f} CPU-s, {wall:.0f} s wall",
        "hours",
        "< 60 s on 2 cores",
    )
    rest = total - pruned - ran
    print(f"      {pruned} pruned by the bound, {rest} by a smaller fleet that holds, {ran} simulated")


def smallest_counts(
    pool: Pool, counts: tuple[int, ...], rates: tuple[float, ...], trace: Trace, slo: Slo
) -> list[tuple[EngineCount, float]]:
    """Return the fewest engines at each rate and the CPU time; one process keeps a pool's iteration times."""
    found = []
    for rate in rates:
        start = time.process_time()
        found.append((fewest_engines(pool, counts, trace.scaled(rate), slo), time.process_time() - start))
    return found


PARTS = {
    "speed": speed,
    "logs": logs,
    "catalogue": catalogue,
    "splitwise": splitwise,
    "distserve": distserve,
    "plans": plans,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--logs", type=Path, help="folder of vllm_measured_*.csv.gz")
    parser.add_argument("--only", default=",".join(PARTS))
    given = parser.parse_args()
    folder = given.logs or given.shared / "data/serving/vllm_logs"
    for name in given.only.split(","):
        print(name)
        if not (given.shared / "data").is_dir():
            print(f"  skipped: {given.shared}/data is absent")
            continue
        PARTS[name](given.shared, folder)


if __name__ == "__main__":
    main()
