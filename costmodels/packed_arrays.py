"""Arrays as compressed text, for coefficient files."""

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["pack", "unpack"]


def pack(array: npt.NDArray[Any]) -> str:
    """Return an array as compressed text."""
    return base64.b85encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()


def unpack(text: str, dtype: str) -> npt.NDArray[Any]:
    """Return the array that `pack` wrote, flat."""
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype=dtype)
