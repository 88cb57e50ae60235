"""Which software stack a measured run used, from its source, kernel column and switches."""

import re

from costmodels.run_table import RunRow
from costmodels.stacks import stack_release

__all__ = ["knows_source", "release_of_run", "stack_of_run"]

_SOURCES = (
    (r"vtrain", "megatron-deepspeed-2021"),
    (r"bigscience|bloom", "megatron-deepspeed-2022"),
    (r"sc21-t2|mt-nlg|2020", "megatron-2021"),
    (r"sc21", "megatron-2021"),
    (r"korthikanti", "megatron-2022"),
    (r"mlperf", "nemo-mlperf"),
    (r"golden", "deterministic-megatron"),
    (r"bridge|dgxc|readme-h100|llama3-t4|llama-?3", "megatron-core"),
    (r"foundry|composer|mosaic", "composer-fsdp"),
    (r"torchtitan", "fsdp2"),
    (r"internevo|internlm", "internevo"),
    (r"frontier", "megatron-deepspeed-2023"),
)
"""Sources whose software is known; a source not listed is judged by its kernel column and switches."""


_MEGATRON_CORE = (
    ("26.05", "megatron-core"),
    ("26.03", "megatron-core-26.04"),
    ("25.12", "megatron-core-26.02"),
    ("25.08", "megatron-core-25.09"),
    ("25.02", "megatron-core-25.04"),
)
"""First container after which each Megatron-core stack applies, newest first; before all, the oldest."""


def _release(reference: str) -> str:
    """Return the container that a source names, such as ``26.04.01``; blank where it names none."""
    match = re.search(r"\bv?(2[3-9]\.(?:0[1-9]|1[0-2])(?:\.\d\d?)?)", reference)
    return match.group(1) if match else ""


def _megatron_core(reference: str) -> str:
    """Return the Megatron-core stack of the container or release that a source names."""
    year_month = _release(reference)[:5]
    return next((s for first, s in _MEGATRON_CORE if year_month > first), "megatron-core-24.11")


def release_of_run(row: RunRow) -> str:
    """Return the release of the software of one row; blank where it is not told or its stack has none."""
    return _release(row.text("source_ref")) if stack_release(stack_of_run(row)) else ""


_LAYER_NORM = ("gpt", "mpt", "nemotron", "bloom")
"""Architectures that normalise with layer norms."""


def _by_kernel(row: RunRow) -> str | None:
    """Return the stack that the kernel column names, None where it says too little.

    What tells the Megatron-like stacks of 2022 and 2023 apart is an RMS norm without a kernel of its own;
    layer norms were fused everywhere.
    """
    name = row.text("kernel").lower()
    layer_norm = row.text("arch", "gpt") in _LAYER_NORM
    if "rms" in name:
        return "megatron-flash2-rms"
    if re.search(r"flash.*2", name):
        return "megatron-flash2-rms" if layer_norm else "megatron-flash2"
    if "flash" in name:
        return "megatron-flash1"
    if "megatron" in name and "megascale" not in name:
        return None if layer_norm else "megatron-fused-softmax"
    if "torch" in name or "unfused" in name or "eager" in name:
        return "megatron-unfused"
    return None


def _by_switches(row: RunRow) -> str:
    """Return the stack that a run without a known source most likely used."""
    gpu = row.text("gpu").lower()
    zero = int(row.optional("zero") or 0)
    new = not re.search(r"v100|a100|a800|mi250", gpu)
    if zero == 3:
        return "fsdp2" if new else "composer-fsdp"
    if row.optional("flash_attn") == 1:
        return "megatron-core" if new else "megatron-flash2"
    return "megatron-2022" if row.optional("sp") == 1 else "megatron-2021"


def _by_source(source: str) -> str | None:
    """Return the stack of a source, None of one that is not known."""
    return next((stack for pattern, stack in _SOURCES if re.search(pattern, source)), None)


def knows_source(source: str) -> bool:
    """Return whether the software of a source is known rather than guessed from its columns."""
    name = source.lower()
    return "megascale" in name or _by_source(name) is not None


def stack_of_run(row: RunRow) -> str:
    """Return the name of the software stack of one row of a run table."""
    source, kernel = row.text("source").lower(), row.text("kernel")
    if "megascale" in source:
        return "megascale" if kernel == "MegaScale" else "megatron-2022"
    stack = _by_source(source)
    if stack is None:
        return _by_kernel(row) or _by_switches(row)
    if "sc21-t2" in source and row.optional("zero") == 3:
        return "deepspeed-zero3-2021"
    return _megatron_core(row.text("source_ref")) if stack == "megatron-core" else stack
