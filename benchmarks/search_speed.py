"""Reprint how fast training strategies are searched and costed.

    python -m benchmarks.search_speed

For GPT-3 175B on 512 to 4,096 A100s: strategies in the whole canonical space, CPU time of the search, wall
time and peak memory of the whole command in a process of its own. Then the rate at which a large table of
dense strategies is costed, time and memory of every row, best of three. One core is used.
"""

import resource
import subprocess
import sys
from time import perf_counter, process_time

from costmodels.job import TrainingJob
from costmodels.stacks import find_stack
from costmodels.training.evaluate import evaluate
from hardware.cluster import Cluster
from planner.request import TrainRequest, resolve
from planner.training.memory_fit import memory_of
from planner.training.search import join, search_space
from planner.training.space import TrainingSpace, training_space

NODES = (64, 128, 256, 512)
RATE_NODES, RATE_BATCH, RATE_SEQ_LEN = 576, 9216, 4608
REPEATS = 3
PEERS = "peers, configurations per CPU second: Calculon 64 to 260, llm-analysis 2,400"


def _question(
    nodes: int, batch: int = 1536, seq_len: int = 2048
) -> tuple[TrainRequest, TrainingJob, Cluster, TrainingSpace]:
    request = TrainRequest(
        model="gpt3-175b", cluster="dgx-a100", nodes=nodes, seq_len=seq_len, global_batch=batch
    )
    job, cluster = resolve(request)
    flash = find_stack(job.stack).flash
    space = training_space(job, world=cluster.num_devices, levels=cluster.levels, flash_attention=flash)
    return request, job, cluster, space


def _search(nodes: int) -> tuple[int, float]:
    """Return the configurations costed and the CPU seconds that took."""
    request, job, cluster, space = _question(nodes)
    start = process_time()
    found = search_space(
        space,
        memory=memory_of(job, cluster),
        evaluate=lambda configs: evaluate(job, cluster, configs),
        top=request.top,
        min_probability=request.min_fits_probability,
    )
    return found.num_configs, process_time() - start


def _command(nodes: int) -> tuple[float, float]:
    """Return the wall seconds of the whole command and the largest peak memory of any so far, in bytes."""
    words = ["plan", "train", "--model", "gpt3-175b", "--cluster", "dgx-a100", "--nodes", str(nodes)]
    words += ["--seq-len", "2048", "--global-batch", "1536", "--json"]
    code = "import sys; from planner.cli.main import main; sys.argv[0] = 'meshwright'; main()"
    start = perf_counter()
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return perf_counter() - start, peak_bytes


def _rate() -> tuple[int, float]:
    """Return the rows of one large table and how many a CPU second costs, time and memory; best of three."""
    _, job, cluster, space = _question(RATE_NODES, RATE_BATCH, RATE_SEQ_LEN)
    table = join(list(space.chunks()))
    seconds = []
    for _ in range(REPEATS):
        start = process_time()
        evaluate(job, cluster, table)
        seconds.append(process_time() - start)
    return len(table), len(table) / min(seconds)


def main() -> None:
    titles = ("devices", "configurations", "search CPU", "per CPU s", "command", "peak")
    print("".join(f"{title:>16}" for title in titles))
    _search(NODES[0])
    for nodes in NODES:
        count, cpu_s = _search(nodes)
        wall_s, peak_bytes = _command(nodes)
        cells = (f"{8 * nodes:,}", f"{count:,}", f"{cpu_s:.2f} s", f"{count / cpu_s:,.0f}")
        print("".join(f"{c:>16}" for c in (*cells, f"{wall_s:.2f} s", f"{peak_bytes / 1e6:.0f} MB")))
    rows, per_s = _rate()
    print(f"time and memory of all {rows:,} strategies of one space: {per_s:,.0f} per CPU second")
    print(PEERS)


if __name__ == "__main__":
    main()
