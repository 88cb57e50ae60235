"""Which catalogue device a driver's label means."""

import re

from hardware.catalog import device_names

__all__ = ["catalogue_device", "filed_under"]


def catalogue_device(label: str) -> str | None:
    """Return the catalogue's device whose name's words all appear in a driver's label, the longest such.

    Examples
    --------
    >>> catalogue_device("NVIDIA H100 80GB HBM3")
    'h100'
    """
    words = set(re.findall(r"[a-z]+\d*[a-z]*|\d+[a-z]*", label.lower()))
    found = [name for name in device_names() if set(name.split("-")) <= words]
    return max(found, key=len, default=None)


def filed_under(label: str, backend: str, num_ranks: int) -> str:
    """Return the name that samples are filed under where none was given.

    A processor is shared by its ranks, so one rank's share is the device: ``cpu-share-2`` is half of it.
    """
    if backend in ("cpu", "numpy"):
        return f"cpu-share-{num_ranks}"
    return catalogue_device(label) or re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
