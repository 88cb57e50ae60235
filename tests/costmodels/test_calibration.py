import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from costmodels.calibrated import current, using
from costmodels.calibration.device import undisturbed
from costmodels.calibration.file import calibrate, calibration_text, read_calibration
from costmodels.calibration.steps import fit_steps, step_table
from costmodels.collectives.times import Collective, collective_s
from costmodels.kernels.times import kernel_model
from costmodels.samples import KINDS, Sample
from costmodels.training.evaluate import training_inputs
from costmodels.training.step_time import step_parts
from hardware.cluster import Cluster
from hardware.device import Device
from hardware.errors import InputError, SpecError
from hardware.plain_cluster import homogeneous_cluster

BOX = Device(
    name="box",
    vendor="local",
    memory_bytes=8e9,
    memory_bytes_per_s=20e9,
    fp32_flops_per_s=1e11,
    bf16_flops_per_s=1e11,
    num_sms=1,
)


def cluster(devices: int = 2) -> Cluster:
    return homogeneous_cluster(
        device=BOX,
        num_nodes=1,
        devices_per_node=devices,
        intra_bytes_per_s=4e9,
        inter_bytes_per_s=1e9,
        intra_technology="local-process",
    )


def matmul(m: float, n: float, k: float, *, slower: float = 1.0) -> Sample:
    seconds = slower * (3e-6 + 2 * m * n * k / 8e10)
    return Sample(
        kind="matmul", shape=(("m", m), ("n", n), ("k", k)), seconds=seconds, best_s=seconds, device="box",
        num_ranks=2,
    )  # fmt: skip


def reduction(size: float) -> Sample:
    seconds = 2e-4 + size / 1e9
    shape = (("message_bytes", size), ("stride", 1.0), ("degree", 2.0))
    return Sample(kind="all_reduce", shape=shape, seconds=seconds, best_s=seconds, device="box", num_ranks=2)


def step(shape: dict[str, int], seconds: float) -> Sample:
    pairs = tuple((name, float(shape[name])) for name in KINDS["step"])
    return Sample(kind="step", shape=pairs, seconds=seconds, best_s=seconds, device="box", num_ranks=2)


SHAPES = [(float(m), float(n), float(k)) for m, n, k in product((128, 512), (256, 1024), (128, 512, 2048))]


def test_matmuls_and_links_are_learned(tmp_path: Path) -> None:
    samples = [matmul(*s) for s in SHAPES] + [reduction(2.0**p) for p in range(12, 26, 2)]
    document = calibrate(samples, cluster())
    assert document["report"]["matmul/fp32"]["held_out"]["median_ape_frac"] < 0.05
    path = tmp_path / "c.json"
    path.write_text(calibration_text(document), encoding="utf-8")
    calibration = read_calibration(path)
    before = float(kernel_model(BOX).matmul_s(256, 512, 512, dtype="fp32"))
    with using(calibration):
        assert current() is calibration
        model = kernel_model(BOX, as_benchmarked=True)
        assert model.measured
        after = float(model.matmul_s(256, 512, 512, dtype="fp32"))
        comm = collective_s(
            Collective.ALL_REDUCE, np.array([2.0**21]), np.array([1]), np.array([2]), cluster().levels
        )
    assert after == pytest.approx(3e-6 + 2 * 256 * 512 * 512 / 8e10, rel=0.15)
    assert comm[0] == pytest.approx(2e-4 + 2.0**21 / 1e9, rel=0.1)
    assert current() is None
    assert float(kernel_model(BOX).matmul_s(256, 512, 512, dtype="fp32")) == before


def test_another_device_keeps_the_shipped_coefficients() -> None:
    samples = [matmul(*s) for s in SHAPES]
    other = replace(BOX, name="other")
    before = float(kernel_model(other).matmul_s(256, 512, 512, dtype="fp32"))
    document = calibrate(samples, cluster())
    assert document["device"] == "box"
    assert float(kernel_model(other).matmul_s(256, 512, 512, dtype="fp32")) == before


def test_few_samples_of_a_similar_device_scale_its_surface(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(calibration_text(calibrate([matmul(*s) for s in SHAPES], cluster())), encoding="utf-8")
    near = read_calibration(path)
    few = [matmul(*s, slower=2.0) for s in SHAPES[:4]]
    document = calibrate(few, cluster(), like=near)
    assert document["report"]["matmul/fp32"]["like"] == pytest.approx(2.0, rel=0.1)


def test_what_was_not_measured_again_stays_as_a_similar_device_has_it(tmp_path: Path) -> None:
    first = [matmul(*s) for s in SHAPES] + [reduction(2.0**p) for p in range(12, 26, 2)]
    path = tmp_path / "c.json"
    path.write_text(calibration_text(calibrate(first, cluster())), encoding="utf-8")
    near = read_calibration(path)
    mended = calibrate([matmul(*SHAPES[0], slower=1.5)], cluster(), like=near)
    assert mended["report"]["matmul/fp32"]["like"] == pytest.approx(1.5, rel=0.03)
    assert set(mended["technologies"]) == {"local-process"}


def test_a_surface_of_a_machine_rated_otherwise_is_read_back_as_it_was_fitted(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(calibration_text(calibrate([matmul(*s) for s in SHAPES], cluster())), encoding="utf-8")
    near = read_calibration(path)
    half = replace(BOX, name="half", fp32_flops_per_s=4e10, bf16_flops_per_s=4e10)
    other = replace(
        cluster(), groups=(replace(cluster().groups[0], node=replace(cluster().groups[0].node, device=half)),)
    )
    few = [replace(matmul(*s, slower=2.0), device="half") for s in SHAPES[:5]]
    path.write_text(calibration_text(calibrate(few, other, like=near)), encoding="utf-8")
    with using(read_calibration(path)):
        told = float(kernel_model(half, as_benchmarked=True).matmul_s(*SHAPES[3], dtype="fp32"))
    assert told == pytest.approx(few[3].seconds, rel=0.1)


def test_samples_taken_while_others_used_the_machine_are_left_out() -> None:
    busy = [replace(matmul(*s, slower=1.5), others_frac=0.6) for s in SHAPES[:3]]
    kept, notes = undisturbed([*busy, *(matmul(*s) for s in SHAPES[3:])])
    assert len(kept) == len(SHAPES) - 3
    assert notes == ("3 samples were taken while others used the machine and are left out",)
    kept, notes = undisturbed(busy)
    assert len(kept) == 3
    assert "for want of better" in notes[0]


def test_overheads_of_a_step_are_recovered_from_steps_of_other_models() -> None:
    shapes = [
        {"hidden": h, "ffn_hidden": 4 * h, "num_layers": n, "num_heads": 4, "vocab": 512, "seq_len": 64,
         "global_batch": 8, "tp": tp, "pp": pp, "dp": 2 // (tp * pp), "micro_batch": b}
        for h, n in ((128, 4), (256, 4), (192, 8)) for tp, pp in ((1, 1), (2, 1), (1, 2)) for b in (1, 2)
    ]  # fmt: skip
    machine = cluster()
    believed, _, _ = fit_steps([step(shapes[0], 1.0)], machine, statistic="median")
    assert believed is not None
    true = replace(believed, vector=9.0, host_s_per_op=8e-5, sync_s_per_collective=4e-4)
    samples = []
    for shape in shapes:
        job, table = step_table(step(shape, 1.0))
        samples.append(step(shape, float(step_parts(training_inputs(job, machine, table), true).total_s[0])))
    stack, report, _ = fit_steps(samples, machine, statistic="median")
    assert stack is not None
    assert stack.host_s_per_op == pytest.approx(true.host_s_per_op, rel=0.1)
    assert stack.sync_s_per_collective == pytest.approx(true.sync_s_per_collective, rel=0.15)
    assert report["held_out"]["median_ape_frac"] < 0.02
    ahead, _, _ = fit_steps([replace(s, backend="cuda") for s in samples], machine, statistic="median")
    assert ahead is not None
    assert stack.synchronous
    assert not ahead.synchronous


def test_too_few_samples_leave_what_ships() -> None:
    document = calibrate([matmul(*SHAPES[0])], cluster())
    assert document["kernels"]["surfaces"] == {}
    assert "too few" in document["notes"][0]


def test_mixed_devices_are_refused() -> None:
    samples = [matmul(*SHAPES[0]), replace(matmul(*SHAPES[1]), device="other")]
    with pytest.raises(SpecError, match=r"several devices are mixed: 'box' \(1\), 'other' \(1\)"):
        calibrate(samples, cluster())


def test_contradicting_samples_are_refused() -> None:
    samples = [matmul(*s) for s in SHAPES] + [matmul(*s, slower=3.0) for s in SHAPES]
    with pytest.raises(SpecError, match="contradict each other: 12 of 12 shapes"):
        calibrate(samples, cluster())


def test_samples_of_another_device_than_the_cluster_are_refused() -> None:
    with pytest.raises(SpecError, match="was measured on 'else'"):
        calibrate([replace(matmul(*SHAPES[0]), device="else")], cluster())


def test_an_unknown_statistic_is_refused() -> None:
    with pytest.raises(InputError, match="none of median, best"):
        calibrate([matmul(*SHAPES[0])], cluster(), statistic="mode")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not a calibration file"),
        ("{}", "schema_version: missing"),
        (
            json.dumps(
                dict.fromkeys(("kind", "device", "rated", "kernels", "technologies", "stacks", "report"), 0)
                | {"schema_version": 99}
            ),
            "99 is none of 1 and 2",
        ),
    ],
)
def test_files_that_are_no_calibration_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_calibration(path)


def test_a_file_of_version_1_keeps_the_loss_that_it_was_fitted_with(tmp_path: Path) -> None:
    document = calibrate([matmul(*s) for s in SHAPES], cluster())
    older = {"fused_loss": False, "vector": 3.0, "adjust": []}
    path = tmp_path / "c.json"
    path.write_text(
        calibration_text(document | {"schema_version": 1, "stacks": {"mine": older}}), encoding="utf-8"
    )
    stack = read_calibration(path).stacks["mine"]
    assert (stack.vector, stack.loss_bytes_per_logit) == (3.0, 26.0)
