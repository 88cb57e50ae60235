import sys
from pathlib import Path

import pytest

from costmodels.samples import Sample, read_samples
from hardware.errors import InputError, OutOfDomainError, SpecError
from planner.profiling.backend import KernelFailedError
from planner.profiling.backends import make_backend
from planner.profiling.device_name import catalogue_device, filed_under
from planner.profiling.interference import Moment, others_frac
from planner.profiling.launch import run_ranks
from planner.profiling.numpy_backend import NumpyBackend
from planner.profiling.profile import ProfileRequest, requested_tasks
from planner.profiling.ranks import Ranks, ranks_of
from planner.profiling.reference_step import ReferenceJob
from planner.profiling.run import run_profile
from planner.profiling.sensors import parse_nvidia, parse_rocm
from planner.profiling.tasks import WHAT, Task, default_tasks, most_uncertain, wanted_kinds
from planner.profiling.timing import summarise
from tests.planner.conftest import Meshwright

COPIES = [Task.of("copy", num_bytes=2.0**p) for p in (10, 11, 12)]


class Quick(NumpyBackend):
    """A back end whose clock always says the same, and whose largest copy does not fit."""

    def __init__(self) -> None:
        super().__init__(Ranks())

    def prepare(self, kind: str, shape: object, dtype: str) -> object:
        if dict(shape) == {"num_bytes": 4096.0}:
            message = "out of memory"
            raise KernelFailedError(message)
        return lambda: None

    def timed(self, call: object, count: int) -> float:
        return 1e-3 * count


def test_interrupted_repeats_are_rejected_and_counted() -> None:
    found = summarise([1.0, 1.02, 0.98, 1.01, 7.0])
    assert (found.num_rejected, found.num_repeats, found.best_s) == (1, 4, 0.98)
    assert found.seconds == pytest.approx(1.005)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, Ranks()),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a"},
            Ranks(rank=1, num_ranks=2, local_rank=1, launcher="torchrun", meeting="a"),
        ),
        (
            {
                "SLURM_PROCID": "5",
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_NODELIST": "n[3-4]",
            },
            Ranks(rank=5, num_ranks=8, local_rank=1, launcher="srun", meeting="n3"),
        ),
        (
            {
                "OMPI_COMM_WORLD_RANK": "2",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "2",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
            },
            Ranks(rank=2, num_ranks=4, local_rank=2, launcher="mpirun", meeting="127.0.0.1"),
        ),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MASTER_ADDR": "h"},
            Ranks(rank=1, num_ranks=2, local_rank=0, launcher="mpiexec", meeting="h"),
        ),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Ranks(launcher="srun")),
    ],
)
def test_launchers_are_recognised(environment: dict[str, str], rank: Ranks) -> None:
    assert ranks_of(environment) == rank


def test_several_ranks_need_a_meeting_place() -> None:
    with pytest.raises(InputError, match="MASTER_ADDR"):
        ranks_of({"RANK": "0", "WORLD_SIZE": "2"})


def test_a_failed_kernel_is_kept_and_the_rest_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    found = run_profile(Quick(), COPIES, path, device="box")
    assert (found.num_measured, found.num_failed, found.num_left) == (2, 1, 0)
    assert read_samples(path).failed[0].error == "out of memory"


class Disturbed(Quick):
    """A back end that is four times as slow while somebody else computes, which ends after `busy` looks."""

    def __init__(self, busy: int) -> None:
        super().__init__()
        self.busy = busy

    def reference_s(self) -> float:
        self.busy -= 1
        return 4e-4 if self.busy >= 0 else 1e-4


@pytest.fixture
def no_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide how busy the machine really is, which no test may depend on."""
    monkeypatch.setattr("planner.profiling.interference._STAT", tmp_path / "none")


@pytest.mark.usefixtures("no_accounts")
def test_what_was_disturbed_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    found = run_profile(Disturbed(busy=8), COPIES[:2], path, device="box")
    assert (found.num_measured, found.num_retaken, found.num_disturbed) == (2, 1, 0)
    assert all(s.disturbance <= 1.0 for s in read_samples(path).samples)


@pytest.mark.usefixtures("no_accounts")
def test_a_machine_that_stays_busy_is_measured_all_the_same(tmp_path: Path) -> None:
    backend = Disturbed(busy=10**6)
    backend.reference_s = iter([1e-4] * 5 + [4e-4] * 10**4).__next__
    found = run_profile(backend, COPIES[:2] * 20, tmp_path / "s.csv", device="box")
    assert found.num_disturbed == found.num_measured
    assert found.num_retaken < 10


def test_a_clock_that_says_no_number_is_a_failure_not_a_time(tmp_path: Path) -> None:
    class Broken(Quick):
        def timed(self, call: object, count: int) -> float:
            return float("nan")

    path = tmp_path / "s.csv"
    found = run_profile(Broken(), COPIES[:1], path, device="box")
    assert (found.num_measured, found.num_failed) == (0, 1)
    assert "the clock said nan" in read_samples(path).failed[0].error


def test_use_of_the_machine_by_others_is_what_the_ranks_did_not_use() -> None:
    before = Moment(elapsed_s=10.0, own_s=1.0, busy_s=100.0)
    after = Moment(elapsed_s=12.0, own_s=2.5, busy_s=103.0)
    assert others_frac(before, after, 2.0, 2) == pytest.approx(0.25)
    assert others_frac(before, after, 3.5, 2) == 0.0


def test_a_second_run_resumes_after_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    run_profile(Quick(), COPIES[:2], path, device="box")
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    found = run_profile(Quick(), COPIES, path, device="box")
    assert (found.num_known, found.num_measured, found.num_failed) == (1, 1, 1)
    assert "cut off" in found.notes[0]
    assert len(read_samples(path).samples) == 2


def test_a_file_of_another_device_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    run_profile(Quick(), COPIES[:1], path, device="box")
    with pytest.raises(SpecError, match="samples of device 'box', this run would add device 'other'"):
        run_profile(Quick(), COPIES, path, device="other")


def test_time_that_is_over_leaves_tasks(tmp_path: Path) -> None:
    found = run_profile(Quick(), COPIES, tmp_path / "s.csv", device="box", minutes=0.0)
    assert (found.num_measured, found.num_left) == (0, 3)


def test_the_most_uncertain_shape_is_the_farthest_from_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    run_profile(Quick(), COPIES[:1], path, device="box")
    known = read_samples(path).samples
    tasks = [Task.of("copy", num_bytes=1100.0), Task.of("copy", num_bytes=2.0**20)]
    assert most_uncertain(tasks, known) == 1
    pair = Task.of("all_reduce", message_bytes=1e6, stride=1, degree=2)
    four = [Task.of("all_reduce", message_bytes=1e6 + i, stride=1, degree=d) for i, d in ((1, 2), (0, 4))]
    assert most_uncertain(four, [Sample(kind=pair.kind, shape=pair.shape)]) == 1
    unsure = [
        Task.of("copy", num_bytes=1e9),
        Task(kind="norm", shape=(("num_bytes", 1e6),), prior_log_sigma=9.0),
    ]
    assert most_uncertain(unsure, ()) == 1
    assert most_uncertain([], known) is None


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 8])
def test_default_tasks_fit_the_ranks(num_ranks: int, large: bool) -> None:
    kinds = [kind for kinds in WHAT.values() for kind in kinds]
    tasks = default_tasks(kinds, dtype="fp32", num_ranks=num_ranks, large=large)
    assert len({(t.kind, t.shape) for t in tasks}) == len(tasks)
    for task in tasks:
        at = dict(task.shape)
        assert at.get("stride", 1) * at.get("degree", 1) <= num_ranks
        if task.kind == "step":
            assert ReferenceJob.of(at).num_ranks == num_ranks


def test_kernels_of_a_catalogue_device_are_as_uncertain_as_the_cost_model_says(tmp_path: Path) -> None:
    asked = ProfileRequest(output=tmp_path / "s.csv", what=("kernels",), backend="cuda")

    def sigmas(device: str) -> dict[str, float]:
        tasks = requested_tasks(asked, kinds=None, dtype="bf16", num_ranks=1, device=device)
        return {t.kind: t.prior_log_sigma for t in tasks}

    known, unknown = sigmas("h100"), sigmas("never-heard-of")
    for kind in ("matmul", "attention_forward", "attention_backward"):
        assert 0.0 < known[kind] < 0.5 < unknown[kind]
    assert known["optimizer"] == unknown["optimizer"]


def test_a_gpu_gets_at_least_300_shapes() -> None:
    kinds = wanted_kinds(("kernels", "memory"))
    assert len(default_tasks(kinds, dtype="bf16", num_ranks=1, large=True)) >= 300


def test_a_step_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(OutOfDomainError, match=r"num_heads \(2\) to divide by 4"):
        ReferenceJob(
            hidden=64, ffn_hidden=64, num_layers=2, num_heads=2, vocab=64, seq_len=8, global_batch=4, tp=4
        )


def test_labels_of_drivers_name_catalogue_devices() -> None:
    assert catalogue_device("NVIDIA H100 80GB HBM3") == "h100"
    assert catalogue_device("Some CPU") is None
    assert filed_under("Some CPU", "cpu", 4) == "cpu-share-4"


def test_sensors_are_parsed() -> None:
    assert parse_nvidia("1980, 41, 312.5").clock_hz == 1.98e9
    head = "device,Temperature (Sensor edge) (C),Average Power (W),sclk clock speed:"
    text = f"{head}\ncard0,40.0,300.0,(1700Mhz)\n"
    assert (parse_rocm(text).power_w, parse_rocm(text).clock_hz) == (300.0, 1.7e9)


def test_a_rank_that_dies_is_named_and_the_others_are_ended() -> None:
    code = (
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1':\n    sys.stderr.write('no luck'); sys.exit(7)\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(OutOfDomainError, match=r"rank 1 of 2 died \(exit code 7\)(.|\n)*no luck"):
        run_ranks([sys.executable, "-c", code], 2)


def test_bad_input_of_a_rank_is_said_as_bad_input() -> None:
    code = "import sys\nsys.stderr.write('error: s.csv: is no samples file'); sys.exit(2)\n"
    with pytest.raises(InputError, match=r"^s.csv: is no samples file$"):
        run_ranks([sys.executable, "-c", code], 1)


def test_a_rank_that_never_ends_is_ended() -> None:
    with pytest.raises(OutOfDomainError, match="rank 0 of 1 died"):
        run_ranks([sys.executable, "-c", "import time; time.sleep(60)"], 1, timeout_s=0.2)


def test_numpy_measures_here(meshwright: Meshwright, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    result = meshwright("profile", "--what", "copy,launch", "--minutes", "0.02", "-o", str(path))
    assert result.exit_code == 0, result.output
    assert {s.kind for s in read_samples(path).samples} <= {"copy", "launch"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "tpu"), "no back end is called 'tpu'"),
        (("--what", "kernel"), "--what 'kernel' is not known"),
        (("--ranks", "2", "--backend", "cuda"), "needs --device"),
    ],
)
def test_wrong_requests_are_refused(
    meshwright: Meshwright, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    result = meshwright("profile", *words, "-o", str(tmp_path / "s.csv"))
    assert result.exit_code == 2
    assert said in result.output


def test_numpy_works_alone() -> None:
    with pytest.raises(InputError, match="one process"):
        make_backend("numpy", Ranks(num_ranks=2))
