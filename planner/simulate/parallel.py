"""Where replications and sweeps run: this machine's cores, or a Dask or Ray cluster, through joblib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from hardware.errors import InputError, UnknownNameError

__all__ = ["BACKENDS", "workers"]

BACKENDS = ("loky", "threading", "multiprocessing", "dask", "ray")


@contextmanager
def workers(backend: str | None = None, *, num_jobs: int = -1, address: str | None = None) -> Iterator[None]:
    """Run every joblib call inside on a backend.

    Parameters
    ----------
    backend : one of `BACKENDS`; None keeps what is active.
    num_jobs : processes (or tasks at a time); -1 is all cores.
    address : of a Dask scheduler or Ray head; without one, a local one is started.

    Raises
    ------
    UnknownNameError, InputError
        if there is no such backend, or its package is not installed.
    """
    import joblib

    if num_jobs == 0:
        message = "jobs: 0 is no number of jobs; give 1 or more, or -1 for all cores"
        raise InputError(message)
    if backend is None:
        with joblib.parallel_config(n_jobs=num_jobs):
            yield
        return
    if backend not in BACKENDS:
        raise UnknownNameError("backend", backend, BACKENDS)
    if backend == "dask":
        with _package("distributed").Client(address), joblib.parallel_config("dask", n_jobs=num_jobs):
            yield
        return
    if backend == "ray":
        _package("ray").init(address=address, ignore_reinit_error=True)
        _package("ray.util.joblib").register_ray()
    with joblib.parallel_config(backend, n_jobs=num_jobs):
        yield


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        package = name.split(".")[0]
        message = f"the package {package} is not installed here; install it, or name another backend"
        raise InputError(message) from None
