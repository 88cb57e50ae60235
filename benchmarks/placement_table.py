"""Reprint the placement and mixed-cluster figures, earlier systems' figures beside them.

Run ``python -m benchmarks.placement_table [ROW ...]`` beside a checkout of the shared measurements; rows:
annealing, robust, scale, holmes, frontier, sailor, amp, fleets (all by default, a few minutes on one core).
"""

import csv
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from costmodels.graph_import.transformer import transformer_graph
from costmodels.in_force import standing_in
from costmodels.job import TrainingJob
from costmodels.model_flops import training_flops
from costmodels.models import find_model
from costmodels.sharding_levels import ShardLevels, level_costs
from costmodels.stacks import Stack, find_stack
from costmodels.strategy import ConfigTable, Recompute, Strategy
from costmodels.training.evaluate import evaluate
from hardware.catalog import find_cluster
from hardware.cluster import Cluster
from hardware.importers.mpigraph import import_mpigraph
from planner.training.mixed_plan import best_mixed_pipelines
from solvers.placement import solve_placement
from solvers.placement_links import believe_links, solve_robust_placement
from solvers.placement_problem import PlacementProblem, chain_term, ring_term

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "placement"
STAGES = (2, 4, 8, 16)
BEST_KNOWN_MS = {2: 235.3, 4: 116.9, 8: 72.8, 16: 78.44}
ANNEALING_KEEPS = {2: 0.03, 4: -0.27, 8: 0.29, 16: -0.30}


def snapshot(number):
    """Return the send rates of one snapshot of sixteen hosts."""
    return import_mpigraph([DATA / "pipette" / f"mpigraph_16node_time_{number}.json"]).bytes_per_s[0]


def annealing_problem(rates, num_stages):
    """Return the objective of Pipette's annealing: 64 layers of 3072, tp 8, micro-batch 4, fp32, 50304 words.

    The gradient ring of stage 0 only, and twice the activations down each pipeline of hosts.
    """
    links = np.where(np.isnan(rates), 0.0, 1.0 / rates)
    replicas = 16 // num_stages
    hosts = np.arange(16).reshape(replicas, num_stages)
    activations = 4 * 1024 * 3072 * 4
    gradients = (3072 * 50304 + 64 / num_stages * 16 * 3072**2) / 8 * 4
    terms = [chain_term("pipeline", hosts, 2.0 * activations, 0.0)]
    if replicas > 1:
        terms.append(ring_term("gradients", hosts[:, 0][None], 2 * (replicas - 1) / replicas * gradients))
    return PlacementProblem(num_units=16, seconds_per_byte=links[None], terms=tuple(terms))


def annealing():
    """Print what the tool's own objective reaches on snapshot 0."""
    print("placement under Pipette's own objective, snapshot 0 [ms]")
    rates = snapshot(0)
    for num_stages in STAGES:
        problem = annealing_problem(rates, num_stages)
        default = 1e3 * float(problem.cost_s(np.arange(16)[None])[0])
        outcome = solve_placement(problem, num_moves=250_000)
        found = f"found {1e3 * outcome.objective:7.2f} (best known {BEST_KNOWN_MS[num_stages]:6.2f})"
        print(f"  PP {num_stages:2d}: default {default:6.1f}, {found}")
        gap = f"at most {100 * outcome.gap_frac:.2f} % from the best"
        print(f"         {gap}, {outcome.solution.method}, {outcome.wall_s:.1f} s")


def robust():
    """Print what a placement made on snapshot 0 gains on snapshot 1."""
    print("placement made on snapshot 0, judged on snapshot 1")
    first, second = snapshot(0), snapshot(1)
    default = np.arange(16)
    for num_stages in STAGES:
        problem, judge = annealing_problem(first, num_stages), annealing_problem(second, num_stages)
        filled = np.where(np.isnan(first), 1e10, first)
        placed = solve_robust_placement(problem, believe_links(filled[None]), default, num_moves=60_000)
        before, after = judge.cost_s(np.stack([default, placed.site_of])) * 1e3
        tuned = 1e3 * float(problem.cost_s(default[None])[0]) - BEST_KNOWN_MS[num_stages]
        low, high = 100 * placed.gain_low_frac, 100 * placed.gain_high_frac
        kept = "default kept" if placed.is_default else "reordered"
        gain = f"{100 * placed.gain_frac:.1f} % ({low:.1f} to {high:.1f})"
        print(f"  PP {num_stages:2d}: {kept}; best found saves {gain}")
        share, rival = 100 * (before - after) / tuned, 100 * ANNEALING_KEEPS[num_stages]
        true = 100 * (before - after) / before
        print(f"         true gain {true:.1f} %: keeps {share:.0f} % (annealing {rival:.0f} %)")


def leafy_problem(num_hosts, num_stages, seed=0):
    """Return hosts of 8 ranks, scattered over leaves of 16, links 24 or 20 GB/s with 6 % spread."""
    rng = np.random.default_rng(seed)
    leaf = rng.permutation(num_hosts) // 16
    rates = np.where(leaf[:, None] == leaf, 24e9, 20e9) * np.exp(
        0.06 * rng.standard_normal((num_hosts, num_hosts))
    )
    replicas = num_hosts // num_stages
    hosts = np.arange(num_hosts).reshape(num_stages, replicas)
    terms = (
        ring_term("gradients", hosts, 2 * (replicas - 1) / replicas * 1.3e9),
        chain_term("pipeline", hosts.T, 4e8, 4e8),
    )
    return PlacementProblem(num_units=num_hosts, seconds_per_byte=1.0 / rates[None], terms=terms)


def scale():
    """Print cost, gap and time of large placements."""
    print("placement of many ranks (8 per host), limits 5 s and 30 s; earlier: 10 to 500 s per configuration")
    for num_hosts, num_stages, limit in ((128, 8, 5.0), (512, 16, 30.0)):
        problem = leafy_problem(num_hosts, num_stages)
        started = time.monotonic()
        outcome = solve_placement(problem, num_moves=10**8, time_limit_s=limit * 0.95)
        default = float(problem.cost_s(np.arange(num_hosts)[None])[0])
        costs = f"default {1e3 * default:.0f} ms, found {1e3 * outcome.objective:.0f} ms"
        limits = f"bound {1e3 * outcome.bound:.0f} ms, gap {100 * outcome.gap_frac:.1f} %"
        print(f"  {8 * num_hosts} ranks: {costs}, {limits}, {time.monotonic() - started:.1f} s")


def gpt(name, hidden, num_layers, num_heads):
    """Return a GPT with sequences of 2048 and 51,200 words."""
    return transformer_graph(
        name=name,
        hidden=hidden,
        ffn_hidden=4 * hidden,
        num_layers=num_layers,
        num_heads=num_heads,
        vocab=51200,
        max_seq_len=2048,
    )


HOLMES_STACK = "megascale"
"""Megatron-LM of 2023 with flash attention and overlapped gradients, as Holmes' own framework has them."""


HOLMES_GRADIENT_BYTES = 2.0
"""Its launch scripts train in fp16, where Megatron-LM keeps and reduces gradients in 16 bits unless asked."""


def holmes_published():
    """Return the published step of (nodes, batch, network). [s]"""
    with (DATA / "holmes_published.csv").open(encoding="utf-8") as rows:
        return {
            (int(row["nodes"]), int(row["global_batch"]), row["nic_env"]): float(row["global_batch"])
            / float(row["samples_per_s"])
            for row in csv.DictReader(rows)
            if row["provenance"] == "RECALLED_NOT_RETRIEVED"
        }


def island_alone_s(job, base, num_nodes, fabric):
    """Return the step on DGX A100 nodes that one fabric joins, pp 2."""
    group = replace(base.groups[0], count=num_nodes, fabrics=(fabric,))
    fabrics = tuple(f for f in base.fabrics if f.name == fabric)
    row = Strategy(pp=2, dp=4 * num_nodes, micro_batch=4, recompute=Recompute.FULL)
    one = Cluster(name=fabric, groups=(group,), fabrics=fabrics)
    return float(evaluate(job, one, ConfigTable.from_strategies([row])).step_s[0])


def two_stages(job, base, num_nodes, tp, attained):
    """Return the best pipeline of one stage per island, half of the nodes in each."""
    cluster = replace(base, groups=tuple(replace(g, count=num_nodes // 2) for g in base.groups))
    options = {"micro_batches": (4,), "recomputes": (Recompute.FULL,), "top": 10**6}
    found = best_mixed_pipelines(job, cluster, attained=attained, **options)
    return next(p for p in found if len(p.stages) == 2 and all(s.tp == tp for s in p.stages))


def split_text(pipeline):
    """Return the layers of the islands, IB first."""
    return ":".join(str(s.num_layers) for s in sorted(pipeline.stages, key=lambda s: s.group))


def holmes():
    """Print throughput ratios and layer splits of two NIC islands."""
    stack = replace(find_stack(HOLMES_STACK), main_grad_bytes=HOLMES_GRADIENT_BYTES)
    with standing_in({(Stack, HOLMES_STACK): stack}):
        holmes_ratios()
        holmes_splits()


HOLMES_SPEEDS = (("predicted", None), ("measured", {0: 197.0, 1: 160.0}))
"""Islands as fast as predicted, and as each was measured alone (TFLOP/s per GPU, same source)."""


def holmes_ratios():
    """Print how a pipeline over both islands compares with one island's network for all nodes."""
    print(
        "Holmes: GPT-3.6B, pp 2, micro-batch 4; published figures recalled, not verified; ranges asked for:"
    )
    print("  hybrid/IB 0.76 to 0.79, hybrid/Ethernet 1.12 to 1.35")
    print(f"  software {HOLMES_STACK}, 16-bit gradients as under fp16; islands as fast as predicted, and as")
    print("  each was measured alone (197 and 160 TFLOP/s per GPU, same source)")
    base, published = find_cluster("holmes-hybrid"), holmes_published()
    for num_nodes, batch in ((4, 768), (6, 768), (8, 768), (4, 1536), (6, 1536), (8, 1536)):
        job = TrainingJob(
            model=gpt("gpt-3.6b", 3072, 30, 32), seq_len=2048, global_batch=batch, stack=HOLMES_STACK
        )
        ib, ethernet = (island_alone_s(job, base, num_nodes, fabric) for fabric in ("ib", "ethernet"))
        words = []
        for label, attained in HOLMES_SPEEDS:
            hybrid = two_stages(job, base, num_nodes, 1, attained)
            ratios = f"{ib / hybrid.step_s:.3f} and {ethernet / hybrid.step_s:.2f}"
            words.append(f"{label} {ratios}, {split_text(hybrid)}")
        known_ib, known_ethernet, known = (
            published[num_nodes, batch, network] for network in ("InfiniBand", "Ethernet", "Hybrid(IB+RoCE)")
        )
        words.append(f"published {known_ib / known:.3f} and {known_ethernet / known:.2f}")
        print(f"  {num_nodes} nodes, batch {batch:4d}, hybrid/IB and hybrid/Ethernet: {'; '.join(words)}")


def holmes_splits():
    """Print how layers are dealt to the two islands."""
    base = find_cluster("holmes-hybrid")
    small, large = gpt("gpt-3.6b", 3072, 30, 32), gpt("gpt-39b", 8192, 48, 64)
    for model, num_nodes, batch, tp, published in ((small, 2, 512, 1, "16:14"), (large, 4, 1536, 8, "26:22")):
        job = TrainingJob(model=model, seq_len=2048, global_batch=batch, stack=HOLMES_STACK)
        for label, attained in HOLMES_SPEEDS:
            split = split_text(two_stages(job, base, num_nodes, tp, attained))
            print(f"  {model.name} split, speeds {label}: {split} (published {published})")


SHARDING_STACK = "deepspeed-zero3-2021"
SCHEMES = {
    "ZeRO-3": ShardLevels(weight_ranks=384, backward_ranks=384, gradient_ranks=384, optimizer_ranks=384),
    "ZeRO++": ShardLevels(
        weight_ranks=384, backward_ranks=8, gradient_ranks=384, optimizer_ranks=384, quantized=True
    ),
    "three-level": ShardLevels(
        weight_ranks=2, backward_ranks=2, gradient_ranks=8, optimizer_ranks=384, quantized=True
    ),
}


def frontier():
    """Print ratios of sharding schemes and throughput of the published recipes."""
    job = TrainingJob(
        model=gpt("gpt-20b", 6144, 44, 64), seq_len=2048, global_batch=384, stack=SHARDING_STACK
    )
    row = Strategy(dp=384, zero=3, recompute=Recompute.SELECTIVE)
    table = ConfigTable.from_strategies([row] * len(SCHEMES))
    steps = level_costs(job, find_cluster("frontier", 48), table, list(SCHEMES.values())).step_s
    ratios = " : ".join(f"{steps[0] / step:.2f}" for step in steps)
    print(f"Frontier, 20B on 384 dies, one sequence of 2048 per die, software {SHARDING_STACK}")
    print(f"  {' : '.join(SCHEMES)} = {ratios} (published 1 : 1.405 : 2.40)")
    small = transformer_graph(
        name="gpt-22b",
        hidden=6144,
        ffn_hidden=24576,
        num_layers=48,
        num_heads=64,
        vocab=51200,
        max_seq_len=2048,
    )
    recipes = (
        (small, 8, Strategy(tp=2, dp=32, recompute=Recompute.FULL), 1024, 73.5),
        (find_model("gpt3-175b"), 16, Strategy(tp=4, pp=16, dp=2, recompute=Recompute.FULL), 1280, 69.2),
        (find_model("gpt-1t"), 128, Strategy(tp=8, pp=64, dp=2, recompute=Recompute.FULL), 3200, 61.2),
    )
    for model, num_nodes, strategy, batch, published in recipes:
        job = TrainingJob(model=model, seq_len=2048, global_batch=batch)
        costs = evaluate(job, find_cluster("frontier", num_nodes), ConfigTable.from_strategies([strategy]))
        whole = training_flops(model, job.seq_len) * batch  # attention in full, as the paper counts
        rate = whole / float(costs.step_s[0]) / (8 * num_nodes) / 1e12
        off = 100 * (rate / published - 1)
        print(f"  {model.name}: {rate:.1f} TFLOP/s per die (published {published}), {off:+.0f} %")


def sailor():
    """Print the errors on Sailor's measured runs."""
    from benchmarks.sailor_runs import main as sailor_main

    sailor_main()


def amp():
    """Print rank correlations on AMP's trials."""
    from benchmarks.amp_trials import main as amp_main

    amp_main()


def fleets():
    """Print plans of mixed fleets."""
    from benchmarks.mixed_fleets import main as fleets_main

    fleets_main()


ROWS = {f.__name__: f for f in (annealing, robust, scale, holmes, frontier, sailor, amp, fleets)}


def main():
    """Print the rows asked for."""
    asked = sys.argv[1:] or list(ROWS)
    unknown = [name for name in asked if name not in ROWS]
    if unknown:
        print(f"no row is called {', '.join(unknown)}; rows: {', '.join(ROWS)}")
        return 2
    if not DATA.exists():
        print(f"{DATA} is absent: this benchmark needs the shared measurements")
        return 1
    for name in asked:
        ROWS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
