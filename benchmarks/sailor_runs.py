"""Predict Sailor's measured runs on GH200 and mixed RTX hosts from its layer profiles and link curves.

Run ``python benchmarks/sailor_runs.py`` beside a checkout of the shared measurements (``../shared/data``).
Memory coefficients are fitted with the plan shape to be predicted left out (same model, stages, micro-batch).
Earlier systems on the same runs, time MAPE: Sailor 8.9 to 10.1 % homogeneous and 10.0 % mixed, Metis 27 %
mixed; memory MAPE: Sailor 5.9 to 7.4 % and 81 %.

One profile of the data set holds another model: ``GPT-Neo-2.7_GH-96.json`` repeats OPT-350M's 26 layers. The
layer times of GPT-Neo are therefore recovered from ``formula_ablation.csv``, whose sums were made with the
true profile.
"""

import csv
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costmodels.training.hetero import HeteroModel, HeteroPlan, HeteroStage, MemoryTerms, hetero_cost
from costmodels.training.layer_profiles import LayerProfile, LinkCurve, read_layer_profile, read_layer_table

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "placement" / "sailor"
MODELS = {"OPT-350": "OPT-350", "GPT-NEO": "GPT-Neo-2.7"}
DEVICES = ("GH-96", "RTX-2080", "RTX-3090", "Titan-RTX")
CAPACITY_BYTES = {"GH-96": 96e9, "RTX-2080": 11e9, "RTX-3090": 24e9, "Titan-RTX": 24e9}
"""Rated memory (the 2080 is a Ti: a run took 9.4 GB of one)."""
NO_MEMORY = MemoryTerms(bytes_per_param=0.0, residual_tensors=0.0, constant_bytes=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured run."""

    name: str
    cluster: str
    model: str
    plan: HeteroPlan
    step_s: float
    memory_bytes: float

    @property
    def shape(self):
        """What identifies the plan apart from its replicas."""
        return (self.cluster, self.model, len(self.plan.stages), self.plan.micro_batch)


def read_runs():
    """Return the measured runs; the run labelled GPT-Neo with 26 layers is OPT-350M's."""
    runs = []
    with (DATA / "sailor_measured_runs.csv").open() as file:
        for row in csv.DictReader(file):
            layers = [int(n) for n in row["layers_per_stage"].split("|")]
            devices = [s.split(",") for s in row["gpu_type_per_stage_replica"].split("|")]
            degrees = [[int(t) for t in s.split(",")] for s in row["tp_per_stage_replica"].split("|")]
            stages = tuple(
                HeteroStage(num_layers=n, replicas=tuple(zip(d, t, strict=True)))
                for n, d, t in zip(layers, devices, degrees, strict=True)
            )
            plan = HeteroPlan(
                stages=stages, micro_batch=int(row["micro_batch"]), global_batch=int(row["global_batch"])
            )
            model = "OPT-350" if sum(layers) == 26 else row["model"]
            runs.append(
                Run(
                    name=row["file"],
                    cluster=row["cluster"],
                    model=model,
                    plan=plan,
                    step_s=float(row["measured_iter_s"]),
                    memory_bytes=float(row["measured_max_mem_bytes"]),
                )
            )
    return runs


def neo_profile():
    """Return GPT-Neo's layers on GH200 at tp 4, solved from sums of stage times under the ideal formula."""
    ideal = {}
    with (DATA / "formula_ablation.csv").open() as file:
        for row in csv.DictReader(file):
            ideal[row["file"].split("/", 1)[1] if row["file"].startswith("GPT-NEO") else row["file"]] = float(
                row["ideal_noP2P"]
            )
    n16d4, n32d8 = ideal["N16/plan_config_N16_D4.json"], ideal["N32/plan_config_N32_D8.json"]
    n16d8, n8d4 = ideal["N16/plan_config_N16_D8.json"], ideal["N8/plan_config_N8_D4.json"]
    layer4 = (n16d4 - n32d8) / 32 / 9
    head4 = (n8d4 - n16d8) / 32 - 17 * layer4
    first4 = n16d4 - 63 * 9 * layer4 - 32 * layer4 - head4
    total1 = ideal["N2/plan_config_N2_D1.json"]
    layer1 = (ideal["N4/plan_config_N4_D1.json"] - total1) / 63 / 9
    head1 = (ideal["N4/plan_config_N4_D2.json"] - total1) / 31 - 17 * layer1
    first1 = total1 - 32 * layer1 - head1
    times = {
        (1, 4): np.array([first1, *[layer1] * 32, head1]),
        (4, 4): np.array([first4, *[layer4] * 32, head4]),
    }
    update = {key: np.full(34, 0.00088) for key in times}
    return LayerProfile(device="GH-96", layer_s=times, update_s=update)


def link_curves():
    """Return curves of one pair and of `tp` devices of a host; rings on GH200 attain half of them."""
    same = json.loads((DATA / "network" / "network_coeffs_all_homo.json").read_text())["inter"]
    mixed = json.loads((DATA / "network" / "multizone_bandwidths_het.json").read_text())["us-central1-a"]
    pair, host = {}, {}

    def curve(entry, device):
        share = 0.5 if device == "GH-96" else 1.0
        return LinkCurve(coefficients=tuple(entry[0]), peak_bytes_per_s=entry[1], collective_frac=share)

    for a in DEVICES:
        for b in DEVICES:
            for tp in (1, 2, 4, 8):
                table = (
                    same[a]
                    if a == b
                    else mixed.get(a, {}).get(str(tp), {}).get("us-central1-a", {}).get(b, {})
                )
                if str(tp) in table:
                    host[a, b, tp] = curve(table[str(tp)], a)
                    if tp == 1:
                        pair[a, b] = host[a, b, tp]
    return pair, host


def models():
    """Return what is known of each model, without memory coefficients."""
    pair, host = link_curves()
    result = {}
    for label, name in MODELS.items():
        profiles = {
            d: read_layer_profile(DATA / "layer_profiles" / f"{name}_{d}.json", d)
            for d in DEVICES
            if (DATA / "layer_profiles" / f"{name}_{d}.json").exists()
        }
        if label == "GPT-NEO":
            profiles["GH-96"] = neo_profile()
        table = read_layer_table(DATA / "llm_info.json", name)
        result[label] = HeteroModel(
            layers=table, profiles=profiles, pair_links=pair, host_links=host, memory=NO_MEMORY
        )
    return result


def fit_memory(runs, known):
    """Return the coefficients that fit the runs best in relative terms, by a grid that halves."""
    centre = np.array([22.0, 4.0, 3.5e9])
    width = np.array([4.0, 4.0, 3.5e9])

    def loss(values):
        terms = MemoryTerms(bytes_per_param=values[0], residual_tensors=values[1], constant_bytes=values[2])
        errors = [abs(np.log(memory(run, known, terms) / run.memory_bytes)) for run in runs]
        return float(np.mean(np.minimum(errors, 0.3)))

    best = loss(centre)
    while width[0] > 0.02:
        steps = [centre + width * np.array(d) for d in np.ndindex(3, 3, 3) for d in [np.subtract(d, 1)]]
        steps = [s for s in steps if 16.0 <= s[0] <= 26.0 and s[1] >= 0 and s[2] >= 0]
        losses = [loss(step) for step in steps]
        if min(losses) < best:
            best, centre = min(losses), steps[int(np.argmin(losses))]
        else:
            width = width / 2
    return MemoryTerms(bytes_per_param=centre[0], residual_tensors=centre[1], constant_bytes=centre[2])


def stage_memory(run, known, terms):
    """Return the predicted peak of every stage of a run."""
    return hetero_cost(run.plan, replace(known[run.model], memory=terms)).stage_bytes


def memory(run, known, terms):
    """Return the predicted peak of a run."""
    return max(stage_memory(run, known, terms))


def fits(run, known, terms):
    """Return whether every stage is predicted to fit its devices."""
    peaks = zip(run.plan.stages, stage_memory(run, known, terms), strict=True)
    return all(peak <= CAPACITY_BYTES[device] for stage, peak in peaks for device, _ in stage.replicas)


def contradictions(runs):
    """Return pairs of runs of which the first holds all that the second does, and more, in less memory.

    Same model, layers per stage, micro-batch and number of stages, so every rank of one does the work of
    every rank of the other; a smaller tensor degree leaves each rank more weights, states and activations.
    """
    pairs = []
    for more in runs:
        for less in runs:
            alike = more.model == less.model and more.shape[2:] == less.shape[2:]
            layers = [[s.num_layers for s in run.plan.stages] for run in (more, less)]
            tp = [max(t for s in run.plan.stages for _, t in s.replicas) for run in (more, less)]
            if alike and layers[0] == layers[1] and tp[0] < tp[1] and more.memory_bytes < less.memory_bytes:
                pairs.append((more, less))
    return pairs


def main():
    """Print the errors of time and memory by cluster."""
    if not DATA.exists():
        print(f"{DATA} is absent: this benchmark needs the shared measurements")
        return 1
    runs, known = read_runs(), models()
    time_error = {run.name: hetero_cost(run.plan, known[run.model]).step_s / run.step_s - 1 for run in runs}
    for label, cluster in (("homogeneous GH200", "clariden"), ("mixed RTX", "mit")):
        errors = [time_error[r.name] for r in runs if r.cluster == cluster]
        print(f"time   {label:18s} runs {len(errors):2d}  MAPE {100 * np.mean(np.abs(errors)):5.1f} %"
              f"  median {100 * np.median(np.abs(errors)):4.1f} %")  # fmt: skip
    memory_error, unfit = {}, []
    for cluster in ("clariden", "mit"):
        mine = [run for run in runs if run.cluster == cluster]
        for shape in sorted({run.shape for run in mine}):
            terms = fit_memory([r for r in mine if r.shape != shape], known)
            for run in (r for r in mine if r.shape == shape):
                memory_error[run.name] = memory(run, known, terms) / run.memory_bytes - 1
                unfit += [] if fits(run, known, terms) else [run.name]
    doubtful = [more for more, _ in contradictions(runs)]
    rows = (
        ("homogeneous GH200", [r for r in runs if r.cluster == "clariden"]),
        ("mixed RTX", [r for r in runs if r.cluster == "mit"]),
        ("mixed RTX, not contradictory", [r for r in runs if r.cluster == "mit" and r not in doubtful]),
    )
    for label, mine in rows:
        errors = [memory_error[r.name] for r in mine]
        print(f"memory {label:28s} runs {len(errors):2d}  MAPE {100 * np.mean(np.abs(errors)):5.1f} %"
              f"  (plan shape held out)")  # fmt: skip
    print(f"runs that ran but are predicted not to fit: {len(unfit)} of {len(runs)} {' '.join(unfit)}")
    for more, less in contradictions(runs):
        held = [f"{run.name} {run.memory_bytes / 1e9:.2f} GB" for run in (more, less)]
        print(f"  contradictory: {held[0]} at a smaller tensor degree, {held[1]} with the same layers")
    for run in runs:
        both = (100 * time_error[run.name], 100 * memory_error[run.name])
        print(f"  {run.name:52s} time {both[0]:+6.1f} %  memory {both[1]:+6.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
