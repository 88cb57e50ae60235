"""Measure closed forms of schedules against the recurrence: `python benchmarks/schedule_exactness.py`.

Random pipelines (seed 0): 2 to 16 stages, backward 1.8 to 2.4 times forward, sends up to 3 % of a forward,
the first and last rank up to the given share heavier than the others (interleaved: in their first and last
chunk). Prints |closed / exact - 1| and both speeds.
"""

import time

import numpy as np

from costmodels.training.pipeline import Schedule, StageTimes, exact_step_s, flush_s

TRIALS = 200
SPREADS = (0.0, 0.1, 0.3, 1.0)


def stage_scale(pp, vpp, first, last):
    scale = np.full(pp * vpp, 1.0 / vpp)
    scale[0] += first
    scale[-1] += last
    return scale


def trial(random, vpp, spread, overlap):
    """Return closed form and exact length of one random pipeline."""
    pp = int(random.choice([2, 3, 4, 6, 8, 16]))
    m = pp * int(random.integers(1, 7)) if vpp > 1 else int(random.integers(1, 65))
    backward = random.uniform(1.8, 2.4)
    first, last = random.uniform(0, spread, 2)
    hop = random.uniform(0, 0.03)
    scale = stage_scale(pp, vpp, first, last)[None]
    hops = np.full((1, pp * vpp - 1), hop)
    schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    times = StageTimes(forward_s=scale, backward_s=backward * scale, forward_hop_s=hops, backward_hop_s=hops)
    exact = exact_step_s(schedule, times, pp=pp, num_micro_batches=m, vpp=vpp, overlap_p2p=overlap)[0]
    ranks = np.array([[1 + first], [1.0], [1 + last]])
    closed = flush_s(
        ranks,
        backward * ranks,
        pp=np.array([pp]),
        num_micro_batches=np.array([m]),
        vpp=np.array([vpp]),
        hop_s=np.array([hop]),
        overlap_p2p=np.array([overlap]),
    )[0]
    return closed, exact


def accuracy():
    random = np.random.default_rng(0)
    for vpp in (1, 2, 4):
        for overlap in (False, True):
            for spread in SPREADS:
                pairs = np.array([trial(random, vpp, spread, overlap) for _ in range(TRIALS)])
                ratio = pairs[:, 0] / pairs[:, 1] - 1
                error = np.abs(ratio)
                sends = "overlapped" if overlap else "blocking"
                print(
                    f"vpp {vpp} sends {sends:<10} uneven by up to {spread:4.0%}:"
                    f" median {np.median(error):6.2%}  p95 {np.quantile(error, 0.95):6.2%}"
                    f"  worst {np.max(error):6.2%}  mean signed {np.mean(ratio):+6.2%}"
                )


def speed():
    rows = 1_000_000
    random = np.random.default_rng(0)
    shape = {
        "pp": 2 ** random.integers(0, 5, rows),
        "num_micro_batches": 2 ** random.integers(0, 9, rows),
        "vpp": 2 ** random.integers(0, 3, rows),
        "hop_s": random.uniform(0, 1e-3, rows),
        "overlap_p2p": random.integers(0, 2, rows).astype(bool),
    }
    forward = random.uniform(0.01, 0.02, (3, rows))
    start = time.process_time()
    flush_s(forward, 2 * forward, **shape)
    spent = time.process_time() - start
    print(f"closed form: {rows / spent:,.0f} rows per CPU second")
    times = StageTimes(forward_s=np.ones((16, 32)), backward_s=np.ones((16, 32)) * 2)
    exact_step_s(Schedule.INTERLEAVED, times, pp=16, num_micro_batches=128, vpp=2)
    start = time.process_time()
    exact_step_s(Schedule.INTERLEAVED, times, pp=16, num_micro_batches=128, vpp=2)
    spent = time.process_time() - start
    print(f"recurrence, 16 configurations of pp 16, 128 micro-batches, vpp 2: {spent * 1e3:.0f} ms")


if __name__ == "__main__":
    accuracy()
    speed()
