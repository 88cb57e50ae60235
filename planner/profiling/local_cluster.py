"""The machine that samples were taken on, as a cluster file: one device per rank, rated as measured."""

import os
from collections.abc import Sequence

import yaml

from costmodels.samples import Sample
from hardware.errors import OutOfDomainError

__all__ = ["LINK_TECHNOLOGY", "local_cluster_text"]

LINK_TECHNOLOGY = "local-process"
"""Technology of the links between processes of one machine; only a calibration knows its speed."""
_DEFAULT_LATENCY_S = 1e-4
_ASSUMED_BYTES_PER_S = 1e9
"""Between processes of one machine, where no large message was measured (assumed)."""
_LARGE_BYTES = 2.0**18


def _best(samples: Sequence[Sample], kinds: tuple[str, ...], column: str) -> float:
    found = [s.at[column] / s.best_s for s in samples if s.kind in kinds]
    if not found:
        message = (
            f"a local cluster needs samples of {' or '.join(kinds)}; profile --what kernels --what memory"
        )
        raise OutOfDomainError(message)
    return max(found)


def machine_memory_bytes() -> float:
    """Return the main memory of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE")) * float(os.sysconf("SC_PHYS_PAGES"))


def local_cluster_text(samples: Sequence[Sample], *, memory_bytes: float | None = None) -> str:
    """Return a cluster file of the ranks that took the samples, all on one machine.

    The peak is the best matmul rate that was measured, the bandwidth that of the best large copy: they are
    what calibrated times are relative to, no data sheet.
    """
    ranks = max(s.num_ranks for s in samples)
    name = samples[0].device
    flops = [2.0 * s.at["m"] * s.at["n"] * s.at["k"] / s.best_s for s in samples if s.kind == "matmul"]
    if not flops:
        message = "a local cluster needs matmul samples; profile with --what kernels"
        raise OutOfDomainError(message)
    rate = _best(samples, ("copy", "elementwise"), "num_bytes")
    whole = machine_memory_bytes() if memory_bytes is None else memory_bytes
    peak = f"{1.05 * max(flops) / 1e9:.4g} GFLOP/s"
    device = {
        "vendor": "local",
        "memory_bytes": f"{whole / ranks / 1e9:.4g} GB",
        "memory_bytes_per_s": f"{1.05 * rate / 1e9:.4g} GB/s",
        "fp32_flops_per_s": peak,
        "bf16_flops_per_s": peak,
        "num_sms": 1,
    }
    parts: list[dict[str, object]] = [{"id": "rank", "count": ranks, "kind": "accelerator"}]
    node: dict[str, object] = {"device": name, "parts": parts}
    if ranks > 1:
        parts.append({"id": "host", "kind": "switch"})
        node["links"] = [
            {
                "each": ["rank*", "host"],
                "technology": LINK_TECHNOLOGY,
                "bytes_per_s": f"{_link_rate(samples) / 1e9:.4g} GB/s",
                "latency_s": f"{_DEFAULT_LATENCY_S * 1e6:g} us",
            }
        ]
    document = {
        "name": f"{name}-x{ranks}",
        "groups": [{"node": f"{name}-host", "count": 1}],
        "devices": {name: device},
        "nodes": {f"{name}-host": node},
    }
    return (
        "# made by 'meshwright calibrate --write-cluster': rates are measured, not rated\n"
        + yaml.safe_dump(document, sort_keys=False, width=110)
    )


def _link_rate(samples: Sequence[Sample]) -> float:
    found = [
        s.at["message_bytes"] / s.best_s
        for s in samples
        if s.kind == "p2p" and s.at["message_bytes"] >= _LARGE_BYTES
    ]
    return max(found, default=_ASSUMED_BYTES_PER_S)
