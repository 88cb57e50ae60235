"""Rank AMP's measured DeepSpeed trials by a pipeline model over its profiled layer times.

Run ``python -m benchmarks.amp_trials`` beside a checkout of the shared measurements. AMP's own cost model
ranks the trials that ran with Spearman 0.935 / 0.394 / 0.853; its first choice is 10 / 15 / 0 % off the best.

A layer whose forward takes w at degree 1 and w_t at degree t in the profile (micro-batch 1) takes, for b
sequences, forward and backward,

    g max(3 f, 3 d b / t + 2 (w_t - d / t) (p + (1 - p) b)),

with f what the host needs to launch a transformer block (the quickest block on any device; 0 for other
layers) and d its time on the device: w where that is clearly more than f, u w where the device waits for its
host. The second part are the collectives. A stage adds k per micro-batch and its hops: b activations from
every replica of the host through the host's one NIC, and at t > 1 a fixed time q, because DeepSpeed then cuts
what it sends into parts and gathers them again behind the hop. After the last micro-batch come, with the
launch script's fp16 and fp32_allreduce, the ring of fp32 gradients and the reduction of the tied embedding's
fp16 gradients between first and last stage (tensor ranks and replicas of a host share its NIC; a ring inside
a host takes its own links), then the optimizer, whose passes over memory are counted. Seven coefficients (g,
u, p, k, q, one each for hops and rings) are fitted per cluster, and every shape (tensor degree, stages) is
predicted from coefficients fitted without it.

A trial counts as runnable if every stage holds a transformer block (what `plan train` demands of a stage) and
its fullest stage fits by the planner's rule: usable memory, runtime, allocator slack and a 99 % margin. Its
bytes: 16 per parameter, s b h (34 + 5 a s / h) / t per layer in flight (Korthikanti et al., arXiv 2205.05198)
and 10 per logit. TransGAN's sizes are not in the data: its blocks of the first resolution count as 1,024
wide, and what one of its last blocks keeps per image is read from which trials of other shapes ran.
"""

import csv
import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from costmodels.memory.peak import memory_coefficients, usable_bytes
from hardware.catalog import find_device

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "placement" / "amp"
EXPERIMENTS = {"homogeneous": 0.935, "het_cluster": 0.394, "het_model": 0.853}
SEQ, HIDDEN, HEADS, VOCAB, BLOCKS = 1024, 1024, 16, 52256, 24
HOSTS = {
    "homogeneous": ("G4",) * 4,
    "het_cluster": ("P3", "P3", "P3", "G4"),
    "het_model": ("P3",) * 4,
}
NETWORK = {"G4": 6.25e9, "P3": 1.25e9}
"""g4dn.12xlarge: 50 Gb/s, p3.8xlarge: 10 Gb/s (rated)."""
IN_HOST = {"G4": 7.9e9, "P3": 50e9}
"""PCIe 3.0 x8 of a T4, two NVLinks of a V100 (rated)."""
DEVICE = {"G4": "t4", "P3": "v100-16gb"}
HOST_BOUND = 1.2
"""A block that takes less than this many launch times keeps its device waiting."""
STEP_BYTES, CAST_BYTES = 56.0, 28.0
"""Read and written per parameter by fp16 Adam with fp32 masters (overflow check 2, copy 6, norm 4, clip 8,
Adam 28, new weights 6, zeroing 2) and by reducing fp16 gradients in fp32 (flatten 4, widen 6, scale 8, narrow
6, unflatten 4)."""
SAFE_DEVIATIONS = 2.326
FIRST_BLOCKS, LAST_BLOCKS = range(3, 15), range(41, 53)
"""TransGAN's layers that are transformer blocks, at the first and at the last resolution."""


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


def stage_hosts(trial, stage):
    """Return the kinds of host that hold a stage; every host has four devices."""
    per_stage = trial.dp * trial.tp
    first, last = stage * per_stage // 4, ((stage + 1) * per_stage - 1) // 4
    return HOSTS[trial.experiment][first : last + 1]


def network(kinds):
    """Return the rate of the slowest NIC among hosts."""
    return min(NETWORK[kind] for kind in kinds)


def hop_s(trial, stage, hop, parts):
    """Return the time behind a stage: all replicas of a host send through its NIC."""
    per_stage = trial.dp * trial.tp
    size = trial.micro_batch * SEQ * HIDDEN * 4 * hop
    ends = stage_hosts(trial, stage)[-1], stage_hosts(trial, stage + 1)[0]
    if per_stage >= 4 or (stage + 1) * per_stage % 4 == 0:
        moved = size * min(trial.dp, max(1, 4 // trial.tp)) / network(ends)
    else:
        moved = size / IN_HOST[ends[0]]
    return moved + (parts if trial.tp > 1 else 0.0)


def ring_s(trial, stage):
    """Return the gradient reduction of a stage; the rings of a host's tensor ranks share its NIC."""
    kinds = stage_hosts(trial, stage)
    rate = network(kinds) / trial.tp if len(kinds) > 1 else IN_HOST[kinds[0]]
    return 2 * (trial.dp - 1) / trial.dp * 4 * stage_params(trial, stage) / trial.tp / rate


def tied_s(trial, stage):
    """Return the reduction of the tied embedding between the ends; replicas of a host share its NIC."""
    ends = (0, trial.pp - 1)
    if trial.experiment == "het_model" or trial.pp == 1 or stage not in ends:
        return 0.0
    kinds = [kind for end in ends for kind in stage_hosts(trial, end)]
    return 2 * VOCAB * HIDDEN * min(trial.dp, 4 // trial.tp) / network(kinds)


def update_s(trial, stage):
    """Return the time of a stage's optimizer step: passes over memory at the rated rate."""
    per_param = STEP_BYTES + (CAST_BYTES if trial.dp > 1 else 0.0)
    rate = min(find_device(DEVICE[kind]).memory_bytes_per_s for kind in stage_hosts(trial, stage))
    return per_param * stage_params(trial, stage) / trial.tp / rate


def stage_params(trial, stage):
    """Return the parameters of a stage's blocks and ends."""
    low, high = trial.cuts[stage : stage + 2]
    if trial.experiment == "het_model":
        return 12 * HIDDEN**2 * sum(layer in FIRST_BLOCKS for layer in range(low, high))
    blocks = max(0, min(high, 2 + BLOCKS) - max(low, 2))
    return 12 * HIDDEN**2 * blocks + VOCAB * HIDDEN * (low == 0 or high == trial.cuts[-1])


def launch_floor_s(model, profiles):
    """Return what the host needs to launch a block: the quickest block on any device."""
    blocks = [*FIRST_BLOCKS, *LAST_BLOCKS] if model == "transgan" else range(2, 2 + BLOCKS)
    kinds = [times for (name, tp), times in profiles.items() if tp == 1 and name.startswith(model)]
    return min(float(times[list(blocks)].min()) for times in kinds)


def layer_s(trial, kind, profiles, busy_share, comm_share):
    """Return forward and backward seconds of every layer, per micro-batch of the trial."""
    model = "transgan" if trial.experiment == "het_model" else "gpt2"
    alone, split = profiles[f"{model}_{kind}", 1], profiles[f"{model}_{kind}", trial.tp]
    floor = launch_floor_s(model, profiles)
    launched = np.where(alone >= floor, floor, 0.0)
    device = np.where((launched > 0) & (alone < HOST_BOUND * floor), busy_share * alone, alone) / trial.tp
    comm = np.maximum(split - device, 0.0) * (trial.tp > 1)
    moved = comm * (comm_share + (1 - comm_share) * trial.micro_batch)
    return np.maximum(3 * launched, 3 * device * trial.micro_batch + 2 * moved)


def step_s(trial, coefficients, profiles):
    """Return the predicted step time."""
    scale, busy_share, comm_share, overhead, hop, ring, parts = np.exp(coefficients)
    times = {
        kind: scale * layer_s(trial, kind, profiles, min(busy_share, 1.0), min(comm_share, 0.99))
        for kind in set(HOSTS[trial.experiment])
    }
    slots = [
        max(times[kind][low:high].sum() for kind in set(stage_hosts(trial, i))) + overhead
        for i, (low, high) in enumerate(pairwise(trial.cuts))
    ]
    hops = [hop_s(trial, i, hop, parts) for i in range(trial.pp - 1)]
    busy = np.array(slots) + np.array([*hops, 0.0]) + np.array([0.0, *hops])
    flush = (trial.num_micro_batches - 1) * busy.max() + busy.sum()
    flush += max(update_s(trial, i) for i in range(trial.pp))
    return flush + ring * max(ring_s(trial, i) + tied_s(trial, i) for i in range(trial.pp))


def fit(trials, profiles):
    """Return the coefficients that fit the logarithms of the measured times, from two starts."""
    from scipy.optimize import least_squares

    def residuals(coefficients):
        return [np.log(step_s(trial, coefficients, profiles) / trial.measured_s) for trial in trials]

    starts = [np.log([0.9, 0.2, 0.4, 0.01, 1.0, 0.6, parts]) for parts in (0.001, 0.05)]
    found = [least_squares(residuals, start, loss="soft_l1", f_scale=0.1) for start in starts]
    return min(found, key=lambda fitted: fitted.cost).x


def limit_bytes(trial):
    """Return what fits with 99 % probability on the smaller device, runtime taken off."""
    constants = memory_coefficients("deepspeed")
    usable = min(usable_bytes(find_device(DEVICE[kind])) for kind in HOSTS[trial.experiment])
    return usable * np.exp(-SAFE_DEVIATIONS * constants.sigma) - constants.runtime_bytes


def gpt_bytes(trial):
    """Return the predicted peak of a GPT-2 trial's fullest stage, runtime left out."""
    slack = 1 + memory_coefficients("deepspeed").slack_frac
    most = 0.0
    for i, (low, high) in enumerate(pairwise(trial.cuts)):
        blocks = max(0, min(high, 2 + BLOCKS) - max(low, 2))
        states = 16 * stage_params(trial, i) / trial.tp
        in_flight = min(trial.num_micro_batches, trial.pp - i) * trial.micro_batch
        kept = SEQ * HIDDEN * (34 + 5 * HEADS * SEQ / HIDDEN) * blocks * in_flight / trial.tp
        logits = 10 * SEQ * VOCAB * trial.micro_batch / trial.tp if high == trial.cuts[-1] else 0.0
        most = max(most, states + slack * (kept + logits))
    return most


def gan_bytes(trial, block_bytes):
    """Return the peak of a TransGAN trial's fullest stage; windows of attention are not split by tp."""
    most = 0.0
    for i, cut in enumerate(pairwise(trial.cuts)):
        states = 16 * stage_params(trial, i) / trial.tp
        in_flight = min(trial.num_micro_batches, trial.pp - i) * trial.micro_batch
        last = sum(layer in LAST_BLOCKS for layer in range(*cut))
        most = max(most, states + block_bytes * in_flight * last)
    return most


def fitted_block_bytes(trials):
    """Return what one of TransGAN's last blocks keeps per image: the largest that sorts most trials right."""
    candidates = np.geomspace(1e8, 2e9, 120)
    ran = np.array([np.isfinite(trial.measured_s) for trial in trials])
    wrong = [
        np.count_nonzero(ran != [gan_bytes(trial, size) <= limit_bytes(trial) for trial in trials])
        for size in candidates
    ]
    return float(candidates[np.array(wrong) == min(wrong)].max())


def is_runnable(trial, others):
    """Return whether a trial should run; `others` are trials of other shapes with what became of them."""
    blocks = set(range(2, 2 + BLOCKS)) if trial.experiment != "het_model" else {*FIRST_BLOCKS, *LAST_BLOCKS}
    if not all(blocks & set(range(*cut)) for cut in pairwise(trial.cuts)):
        return False
    if trial.experiment == "het_model":
        return gan_bytes(trial, fitted_block_bytes(others)) <= limit_bytes(trial)
    return gpt_bytes(trial) <= limit_bytes(trial)


def predicted_s(trials, profiles):
    """Return the predicted step of every trial, coefficients fitted without its shape."""
    found = {}
    for shape in sorted({(trial.tp, trial.pp) for trial in trials}):
        known = [r for r in trials if (r.tp, r.pp) != shape and np.isfinite(r.measured_s)]
        coefficients = fit(known, profiles)
        found |= {m: step_s(m, coefficients, profiles) for m in trials if (m.tp, m.pp) == shape}
    return found


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
        predicted = predicted_s(mine, profiles)
        held_out = spearmanr([predicted[r] for r in ran], [r.measured_s for r in ran]).statistic
        seen = fit(ran, profiles)
        fitted = spearmanr([step_s(r, seen, profiles) for r in ran], [r.measured_s for r in ran]).statistic
        kept = [m for m in mine if is_runnable(m, [o for o in mine if (o.tp, o.pp) != (m.tp, m.pp)])]
        order = sorted(kept, key=predicted.__getitem__)
        best, first = min(r.measured_s for r in ran), order[0].measured_s
        failed = [sum(not np.isfinite(trial.measured_s) for trial in order[:n]) for n in (10, len(order))]
        print(f"{experiment}: {len(ran)} of {len(mine)} ran; Spearman {held_out:.3f}, shape held out,")
        print(f"  {fitted:.3f} fitted (AMP {earlier}); first choice {first:.2f} s, best {best:.2f} s")
        print(f"  ({100 * (first / best - 1):.0f} % off); failed runs in the top ten {failed[0]}, ")
        print(f"  in all {len(order)} that are called runnable {failed[1]}; "
              f"ran though called unfit {sum(r not in kept for r in ran)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
