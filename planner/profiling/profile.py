"""The flow of `meshwright profile`: which tasks, on which ranks, into which file."""

from dataclasses import dataclass, replace
from pathlib import Path

from hardware.catalog import find_device
from hardware.errors import InputError, UnknownNameError
from planner.profiling.backend import BACKENDS
from planner.profiling.backends import make_backend
from planner.profiling.device_name import filed_under
from planner.profiling.launch import measure_locally
from planner.profiling.ranks import ranks_of
from planner.profiling.run import Profile, run_profile, stderr_of
from planner.profiling.tasks import WHAT, Task, default_tasks, wanted_kinds

__all__ = ["ProfileRequest", "profile_here", "requested_tasks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What to measure, and how."""

    output: Path
    what: tuple[str, ...] = ()
    backend: str = "numpy"
    ranks: int | None = None
    threads: int = 1
    plan: Path | None = None
    minutes: float | None = None
    device: str | None = None
    repeats: int = 7


def requested_tasks(
    request: ProfileRequest, *, kinds: frozenset[str] | None, dtype: str, num_ranks: int, device: str
) -> list[Task]:
    """Return the tasks of a request that a back end can do (None: all), each with the model's uncertainty."""
    if request.plan is not None:
        from planner.plan_io import read_plan
        from planner.profiling.plan_tasks import plan_tasks
        from planner.profiling.validation import job_of

        file = read_plan(request.plan)
        job, _ = job_of(file, str(request.plan))
        tasks = plan_tasks(job, file.plans[0].strategy)
        tasks = [t for t in tasks if dict(t.shape).get("degree", 1) <= num_ranks]
    else:
        wanted = wanted_kinds(request.what)
        large = request.backend in ("cuda", "rocm", "npu")
        tasks = default_tasks(wanted, dtype=dtype, num_ranks=num_ranks, large=large)
    if kinds is not None:
        tasks = [t for t in tasks if t.kind in kinds]
    return [_with_sigma(t, device) for t in tasks]


def _with_sigma(task: Task, device: str) -> Task:
    """Return the task with the cost model's own uncertainty, where the catalogue knows the device."""
    from costmodels.kernels.times import kernel_model

    at = dict(task.shape)
    try:
        model = kernel_model(find_device(device))
    except UnknownNameError:
        return task
    if task.kind == "matmul":
        told = model.matmul(at["m"], at["n"], at["k"], dtype=task.dtype)
    elif task.kind.startswith("attention"):
        told = model.attention(
            batch=at["batch"], q_len=at["q_len"], kv_len=at["q_len"], heads=at["heads"],
            kv_heads=at["kv_heads"], head_dim=at["head_dim"],
        )  # fmt: skip
    else:
        return task
    return replace(task, prior_log_sigma=float(told.log_sigma))


def profile_here(request: ProfileRequest) -> Profile | None:
    """Measure what was asked; None on ranks that do not report.

    Raises
    ------
    InputError
        if the request cannot be carried out here.
    OutOfDomainError
        if a rank died.
    """
    if request.backend not in BACKENDS:
        message = f"no back end is called {request.backend!r}; accepted: {', '.join(BACKENDS)}"
        raise InputError(message)
    here = ranks_of()
    if request.ranks and request.ranks > 1:
        if here.num_ranks > 1:
            message = f"--ranks starts processes itself; {here.launcher} has started {here.num_ranks} already"
            raise InputError(message)
        return _local(request, request.ranks)
    options = {} if request.backend == "numpy" else {"threads": request.threads}
    backend = make_backend(request.backend, here, **options)
    name = request.device or filed_under(backend.device_label, request.backend, here.num_ranks)
    tasks = requested_tasks(
        request, kinds=backend.kinds, dtype=backend.dtypes[0], num_ranks=here.num_ranks, device=name
    )
    found = run_profile(
        backend,
        tasks,
        request.output,
        device=name,
        minutes=request.minutes,
        repeats=request.repeats,
        progress=stderr_of(here.rank),
    )
    backend.close()
    return found if here.rank == 0 else None


def _local(request: ProfileRequest, num_ranks: int) -> Profile:
    if request.backend != "cpu" and not request.device:
        message = "--ranks on accelerators needs --device: the name that the samples are filed under"
        raise InputError(message)
    name = request.device or filed_under("", request.backend, num_ranks)
    dtype = "fp32" if request.backend in ("cpu", "numpy") else "bf16"
    known = {kind for kinds in WHAT.values() for kind in kinds}
    tasks = requested_tasks(request, kinds=frozenset(known), dtype=dtype, num_ranks=num_ranks, device=name)
    answer = measure_locally(
        tasks,
        request.output,
        backend=request.backend,
        num_ranks=num_ranks,
        device=name,
        minutes=request.minutes,
        repeats=request.repeats,
        threads=request.threads,
    )
    return Profile(**{**answer, "notes": tuple(answer["notes"])})
