"""Which software stack a measured run used, from its source, kernel column and switches."""

import re

from costmodels.run_table import RunRow

__all__ = ["stack_of_run"]

_SOURCES = (
    (r"vtrain|bigscience", "megatron-deepspeed-2021"),
    (r"sc21-t2|mt-nlg|2020", "megatron-2021"),
    (r"sc21", "megatron-2021"),
    (r"korthikanti", "megatron-2022"),
    (r"mlperf", "nemo-mlperf"),
    (r"bridge|dgxc|golden|readme-h100|llama3-t4|llama-?3", "megatron-core"),
    (r"foundry|composer|mosaic", "composer-fsdp"),
    (r"torchtitan", "fsdp2"),
    (r"internevo|internlm", "internevo"),
    (r"frontier", "megatron-deepspeed-2023"),
)
"""Sources whose software is known; a source not listed is judged by its kernel column and switches."""


def _container_year(text: str) -> int | None:
    """Return the year of an NGC container tag such as ``26.04``, where one is named."""
    match = re.search(r"\b(2[3-9])\.(\d\d)", text)
    return 2000 + int(match.group(1)) if match else None


def _by_kernel(kernel: str) -> str | None:
    name = kernel.lower()
    if "rms" in name:
        return "megatron-flash2-rms"
    if re.search(r"flash.*2", name):
        return "megatron-flash2"
    if "flash" in name:
        return "megatron-flash1"
    if "megatron" in name and "megascale" not in name:
        return "megatron-fused-softmax"
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


def stack_of_run(row: RunRow) -> str:
    """Return the name of the software stack of one row of a run table."""
    source, kernel = row.text("source").lower(), row.text("kernel")
    if "megascale" in source:
        return "megascale" if kernel == "MegaScale" else "megatron-2022"
    for pattern, stack in _SOURCES:
        if re.search(pattern, source):
            if "sc21-t2" in source and row.optional("zero") == 3:
                return "deepspeed-zero3-2021"
            year = _container_year(row.text("source_ref")) if "bridge" in source else None
            return "megatron-core-2025" if year == 2025 else stack
    return _by_kernel(kernel) or _by_switches(row)
