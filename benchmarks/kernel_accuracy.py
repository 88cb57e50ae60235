"""Print how well kernel times are predicted on shapes that the fit did not see, with baselines beside.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.kernel_accuracy [DEVICE ...] [--samples
../shared/data/kernels]`` from the root of the checkout. Columns, each as MAPE and median in percent of the
measured time:

* roofline: launch floor plus ``max(FLOPs / peak, bytes / bandwidth)``, both scaled by one constant;
* trees: gradient-boosted trees on the logarithm of measured over roofline, shape columns as inputs;
* physics: the fitted physics alone, on the rows of its fit;
* shipped: physics and correction, as recorded by ``python -m benchmarks.fit_kernels``;
* by row: the same with single shapes held out at random, others of their groups seen.

Trees and shipped hold groups out whole: (n, k) for matmul, (heads, kv heads) for attention, (batch, length)
for latent attention, and (hidden, inner, top-k, experts) for routed experts. Below come matrix products that
must be alike, and ``--cross-device`` adds the generic surface on devices left out.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.fit_kernels import SAMPLES, group_names, select, tables
from costmodels.kernels.data import MEASURED, load, rated_device, rated_numbers
from costmodels.kernels.fit import errors
from costmodels.kernels.machine import Family, Format, Machine, find_format, machine_of
from hardware.catalog import find_device

Floats = npt.NDArray[np.float64]
Shape = dict[str, Floats]
NUM_FOLDS = 4


def roofline_s(family: Family, shape: Shape, seconds: Floats, machine: Machine, fmt: Format) -> Floats:
    """Return launch plus roofline: the family's physics without tiles, waves, caches and host."""
    plain = {name: 1e-12 if name.endswith("_s") else value for name, value in family.start.items()} | {
        "compute_frac": 1.0,
        "memory_frac": 1.0,
    }
    for name, value in {
        "tile_loss": 0.0,
        "cache_share": 0.0,
        "softmax_flops": 0.0,
        "tail": 0.0,
        "sharpness": 12.0,
    }.items():
        if name in plain:
            plain[name] = value
    ideal = family.physics(shape, machine, fmt, plain)
    floor = float(np.quantile(seconds, 0.01))
    busy = seconds > 4.0 * floor
    scale = float(np.median(seconds[busy] / ideal[busy])) if busy.any() else 1.0
    return floor + ideal * scale


def trees_s(columns: list[Floats], base: Floats, seconds: Floats, groups: npt.NDArray[np.str_]) -> Floats:
    """Return held-out predictions of trees on the roofline's residual."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import GroupKFold

    features, target = np.log1p(np.stack(columns, axis=1)), np.log(seconds / base)
    held = np.zeros(len(seconds))
    for train, test in GroupKFold(min(NUM_FOLDS, len(np.unique(groups)))).split(features, target, groups):
        model = HistGradientBoostingRegressor(
            max_iter=300, learning_rate=0.06, early_stopping=False, random_state=0
        )
        held[test] = model.fit(features[train], target[train]).predict(features[test])
    return base * np.exp(held)


def line(name: str, values: dict[str, dict[str, float]]) -> str:
    """Return one printed row."""
    cells = (f"{100 * e['mape_frac']:6.2f} {100 * e['median_ape_frac']:6.2f}" for e in values.values())
    return f"{name:32s}" + "   ".join(cells)


def compare(samples: Path, device_name: str) -> None:
    """Print the rows of one device."""
    device = rated_device(device_name, rated_numbers(find_device(device_name)))
    surfaces = load(device_name)["surfaces"]
    for _, table in tables(samples, device_name):
        for dtype in np.unique(table.dtype):
            shape, seconds = select(table, str(dtype))
            family, fmt = table.family, find_format(str(dtype))
            machine = machine_of(device, fmt)
            base = roofline_s(family, shape, seconds, machine, fmt)
            groups = group_names(family.name, shape)
            trees = trees_s([shape[c] for c in family.columns], base, seconds, groups)
            recorded = surfaces[f"{family.name}/{fmt.name}"]["provenance"]
            values = {
                "roofline": errors(base, seconds),
                "trees": errors(trees, seconds),
                "physics": recorded["physics_in_sample"],
                "shipped": recorded["held_out"],
                "by row": recorded["rows_held_out"],
            }
            print(line(f"{device_name} {family.name} {fmt.name}", values), flush=True)


def cross_device() -> None:
    """Print the errors of pooled coefficients on each device when its generation is left out of the pool."""
    print("\ngeneric surface, a device left out with its dies: MAPE and median, %; share inside the interval")
    for key, entry in load("generic")["surfaces"].items():
        for name, e in entry["provenance"]["held_out"].items():
            print(line(f"{name} {key}", {"": e}) + f"   {e['coverage_frac']:5.2f}")


def noise() -> None:
    """Print how far products that must be alike lie apart, and our error on those rows."""
    print("\nproducts of one weight that fill one tile of rows: scatter, our error there and elsewhere, %")
    for name in MEASURED:
        for key, entry in load(name)["surfaces"].items():
            if (alike := entry["provenance"].get("alike")) is None:
                continue
            everywhere, there = entry["provenance"]["rows_held_out"], alike["held_out"]
            share = alike["num_samples"] / entry["provenance"]["num_samples"]
            rest = (everywhere["mape_frac"] - share * there["mape_frac"]) / (1.0 - share)
            figures = (alike["scatter_frac"], there["mape_frac"], rest)
            print(f"{name + ' ' + key:32s}" + "".join(f"{100 * v:7.2f}" for v in figures))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=Path, default=SAMPLES)
    parser.add_argument("--cross-device", action="store_true")
    parser.add_argument("devices", nargs="*")
    options = parser.parse_args()
    if not options.samples.is_dir():
        message = f"no kernel tables at {options.samples}; pass --samples"
        raise SystemExit(message)
    titles = ("roofline", "trees", "physics", "shipped", "by row")
    print(f"{'MAPE and median, %':32s}" + "   ".join(f"{t:>13s}" for t in titles))
    for name in options.devices or MEASURED:
        compare(options.samples, name)
    noise()
    if options.cross_device:
        cross_device()


if __name__ == "__main__":
    main()
