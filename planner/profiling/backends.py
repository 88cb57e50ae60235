"""The back ends by name."""

from typing import Any

from hardware.errors import InputError
from planner.profiling.backend import BACKENDS, Backend
from planner.profiling.numpy_backend import NumpyBackend
from planner.profiling.ranks import Ranks
from planner.profiling.torch_backend import TorchBackend

__all__ = ["make_backend"]


def make_backend(name: str, ranks: Ranks, **options: Any) -> Backend:
    """Return the back end of that name on this rank.

    Raises
    ------
    InputError
        if there is none, or what it needs is not installed or not present.
    """
    if name not in BACKENDS:
        message = f"no back end is called {name!r}; accepted: {', '.join(BACKENDS)}"
        raise InputError(message)
    if name == "numpy":
        return NumpyBackend(ranks)
    return TorchBackend(name, ranks, **options)
