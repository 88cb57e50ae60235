"""Rank AMP's measured DeepSpeed trials by a pipeline model over its profiled layer times.

Run ``python benchmarks/amp_trials.py`` beside a checkout of the shared measurements. AMP's own cost model
ranks the trials that ran with Spearman 0.935 / 0.394 / 0.853; its first choice is 10 / 15 / 0 % off the best.

A stage takes, per micro-batch of b sequences at tensor degree t, with w its profiled forward time at degree 1
and c what its profile at degree t has beyond w / t (the collectives),

    3 g w / t (o + (1 - o) b) + 2 g c (p + (1 - p) b) + k,

plus what crosses its cuts; the flush and the gradient ring follow. Six coefficients are fitted per cluster,
and every shape (tensor degree, stages) is predicted from coefficients fitted without it. Whether a GPT-2
trial fits 16 GB comes from its sizes: 16 bytes per parameter, s b h (34 + 5 a s / h) / t per layer in flight
(Korthikanti et al., arXiv 2205.05198) and 10 bytes per logit; TransGAN's sizes are not in the data.
"""

import csv
import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "placement" / "amp"
EXPERIMENTS = {"homogeneous": 0.935, "het_cluster": 0.394, "het_model": 0.853}
SEQ, HIDDEN, HEADS, VOCAB, BLOCKS = 1024, 1024, 16, 52256, 24
FAST_NETWORK, SLOW_NETWORK, IN_HOST = 6.25e9, 1.25e9, 8e9
LIMIT_BYTES = 15e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration that was tried."""

    experiment: str
    micro_batch: int
    tp: int
    dp: int
    pp: int
    global_batch: int
    cuts: tuple[int, ...]
    measured_s: float

    @property
    def num_micro_batches(self):
        """Micro-batches per pipeline."""
        return max(1, self.global_batch // (self.micro_batch * self.dp))


def read_trials():
    """Return all trials; infinite time where the run failed."""
    with (DATA / "amp_measured_trials.csv").open() as file:
        return [
            Trial(
                experiment=row["experiment"],
                micro_batch=int(row["micro_batch_size"]),
                tp=int(row["mp_deg"]),
                dp=int(row["dp_deg"]),
                pp=int(row["pp_deg"]),
                global_batch=int(row["global_batch_size"]),
                cuts=tuple(int(n) for n in re.findall(r"\d+", row["ds_layer_partition"])),
                measured_s=float(row["measured_iter_time_s"]),
            )
            for row in csv.DictReader(file)
        ]


def read_profiles():
    """Return forward seconds per layer by (model and host, tensor degree)."""
    return {
        (path.stem.rsplit("_", 1)[0], int(path.stem.rsplit("_", 1)[1])): np.loadtxt(path)
        for path in (DATA / "known_cost").glob("*.csv")
    }


def step_s(trial, coefficients, profiles):
    """Return the predicted step time."""
    scale, fixed_share, comm_share, overhead, hop, ring = np.exp(coefficients)
    fixed_share, comm_share = min(fixed_share, 0.99), min(comm_share, 0.99)
    b, t = trial.micro_batch, trial.tp
    network = FAST_NETWORK if trial.experiment == "homogeneous" else SLOW_NETWORK
    per_stage = trial.dp * t
    slots = []
    for i, (low, high) in enumerate(pairwise(trial.cuts)):
        name = "transgan_P3" if trial.experiment == "het_model" else host_profile(trial, i, per_stage)
        alone = profiles[name, 1][low:high].sum()
        comm = max(profiles[name, t][low:high].sum() - alone / t, 0.0)
        compute = 3 * scale * alone / t * (fixed_share + (1 - fixed_share) * b)
        slots.append(compute + 2 * scale * comm * (comm_share + (1 - comm_share) * b) + overhead)
    ends = [(i + 1) * per_stage % 4 == 0 or per_stage >= 4 for i in range(trial.pp - 1)]
    hops = [b * SEQ * HIDDEN * 4 * hop / (network if out else IN_HOST) for out in ends]
    busy = np.array(slots) + np.array([*hops, 0.0]) + np.array([0.0, *hops])
    flush = (trial.num_micro_batches - 1) * busy.max() + busy.sum()
    gradients = 4 * 406e6 / (t * trial.pp)
    rate = network if per_stage > 4 else IN_HOST
    return flush + ring * 2 * (trial.dp - 1) / trial.dp * gradients / rate


def host_profile(trial, stage, per_stage):
    """Return the slowest host of a stage: all T4, or T4 in the first of four hosts and V100 in the others."""
    first = stage * per_stage // 4
    return "gpt2_G4" if trial.experiment == "homogeneous" or first == 0 else "gpt2_P3"


def fit(trials, profiles):
    """Return the coefficients that fit the logarithms of the measured times."""
    from scipy.optimize import least_squares

    def residuals(coefficients):
        return [np.log(step_s(trial, coefficients, profiles) / trial.measured_s) for trial in trials]

    start = np.log([0.9, 0.2, 0.4, 0.01, 1.0, 0.6])
    return least_squares(residuals, start, loss="soft_l1", f_scale=0.1).x


def memory_bytes(trial):
    """Return the predicted peak of a GPT-2 trial's fullest stage."""
    most = 0.0
    for i, (low, high) in enumerate(pairwise(trial.cuts)):
        blocks = max(0, min(high, 2 + BLOCKS) - max(low, 2))
        ends = VOCAB * HIDDEN * ((low == 0) + (high == trial.cuts[-1]))
        states = 16 * (12 * HIDDEN**2 * blocks + ends) / trial.tp
        in_flight = min(trial.num_micro_batches, trial.pp - i) * trial.micro_batch
        kept = SEQ * HIDDEN * (34 + 5 * HEADS * SEQ / HIDDEN) * blocks * in_flight / trial.tp
        logits = 10 * SEQ * VOCAB * trial.micro_batch / trial.tp if high == trial.cuts[-1] else 0.0
        most = max(most, states + kept + logits)
    return most


def main():
    """Print rank correlation, first choice and failures in the top ten of each experiment."""
    if not DATA.exists():
        print(f"{DATA} is absent: this benchmark needs the shared measurements")
        return 1
    from scipy.stats import spearmanr

    profiles, trials = read_profiles(), read_trials()
    for experiment, earlier in EXPERIMENTS.items():
        mine = [trial for trial in trials if trial.experiment == experiment]
        ran = [trial for trial in mine if np.isfinite(trial.measured_s)]
        predicted = {}
        for shape in sorted({(trial.tp, trial.pp) for trial in mine}):
            coefficients = fit([r for r in ran if (r.tp, r.pp) != shape], profiles)
            predicted |= {m: step_s(m, coefficients, profiles) for m in mine if (m.tp, m.pp) == shape}
        held_out = spearmanr([predicted[r] for r in ran], [r.measured_s for r in ran]).statistic
        seen = fit(ran, profiles)
        again = [step_s(r, seen, profiles) for r in ran]
        fitted = spearmanr(again, [r.measured_s for r in ran]).statistic
        kept = mine if experiment == "het_model" else [m for m in mine if memory_bytes(m) <= LIMIT_BYTES]
        order = sorted(kept, key=predicted.__getitem__)
        best = min(r.measured_s for r in ran)
        failed = sum(not np.isfinite(trial.measured_s) for trial in order[:10])
        print(f"{experiment}: {len(ran)} of {len(mine)} ran; Spearman {held_out:.3f}, shape held out,")
        first = order[0].measured_s
        print(f"  {fitted:.3f} fitted (AMP {earlier}); first choice {first:.2f} s, best {best:.2f} s;")
        print(f"  failed runs in the top ten: {failed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
