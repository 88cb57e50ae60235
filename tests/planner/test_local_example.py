"""The samples of examples/local say the same as long as calibrating them does."""

from pathlib import Path

import pytest

from costmodels.calibrated import using
from costmodels.calibration.file import read_calibration
from planner.calibration import calibrate_files
from planner.request import read_train_request
from planner.tune import candidates

FOLDER = Path(__file__).parents[2] / "examples" / "local"


@pytest.mark.parametrize("ranks", [1, 2])
def test_samples_are_fitted_on_shapes_and_models_held_out(ranks: int) -> None:
    document, _ = calibrate_files(
        [FOLDER / f"samples-{ranks}.csv"],
        cluster=str(FOLDER / f"cluster-{ranks}.yaml"),
        like=FOLDER / "calibration-1.json" if ranks > 1 else None,
    )
    held = {n: e["held_out"]["median_ape_frac"] for n, e in document["report"].items() if "held_out" in e}
    assert held["matmul/fp32"] < 0.1
    assert held["attention_forward/fp32"] < 0.05
    assert held["step"] < 0.15


def test_the_calibration_ranks_the_example_as_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas ran fastest; of two stages, one micro-batch that leaves one of them idle ran slowest."""
    monkeypatch.chdir(FOLDER.parents[1])
    with using(read_calibration(FOLDER / "calibration-2.json")):
        found = [c.strategy for c in candidates(read_train_request(str(FOLDER / "request-2.yaml"), {}))]
    assert (found[0].dp, found[0].micro_batch) == (2, 4)
    staged = [row.micro_batch for row in found if row.pp == 2]
    assert staged[-1] == 8
