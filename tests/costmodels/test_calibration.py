import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from costmodels.calibrated import current, using
from costmodels.calibration_file import calibrate, calibration_text, read_calibration
from costmodels.collectives import Collective, collective_s
from costmodels.kernels import kernel_model
from costmodels.samples import Sample
from hardware.cluster import Cluster, homogeneous_cluster
from hardware.device import Device
from hardware.errors import InputError, SpecError

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
            "99 is not 1",
        ),
    ],
)
def test_files_that_are_no_calibration_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_calibration(path)
