"""Clock, temperature and power of the device while it is measured, where the machine lets them be read."""

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path

__all__ = ["Reading", "read_sensors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at the sensors; NaN for what cannot be read."""

    clock_hz: float = nan
    temperature_c: float = nan
    power_w: float = nan


_TOOLS: dict[str, tuple[str, ...]] = {
    "cuda": (
        "nvidia-smi", "--query-gpu=clocks.sm,temperature.gpu,power.draw", "--format=csv,noheader,nounits",
        "--id={index}",
    ),
    "rocm": ("rocm-smi", "--showclocks", "--showtemp", "--showpower", "--csv", "--device", "{index}"),
}  # fmt: skip


_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES"}


def tool_index(kind: str, index: int, environment: Mapping[str, str]) -> str:
    """Return what the vendor's tool calls the device that the process counts as `index`.

    Examples
    --------
    >>> tool_index("cuda", 1, {"CUDA_VISIBLE_DEVICES": "4,6"}), tool_index("cuda", 1, {})
    ('6', '1')
    """
    visible = [v.strip() for v in environment.get(_VISIBLE.get(kind, ""), "").split(",") if v.strip()]
    return visible[index] if index < len(visible) else str(index)


def _number(text: str) -> float:
    try:
        return float(text.strip().strip("(").removesuffix(")").removesuffix("Mhz"))
    except ValueError:
        return nan


def parse_nvidia(text: str) -> Reading:
    """Return what ``nvidia-smi --query-gpu=clocks.sm,temperature.gpu,power.draw`` printed.

    Examples
    --------
    >>> parse_nvidia("1980, 41, 312.5").power_w
    312.5
    """
    cells = [_number(cell) for cell in text.strip().splitlines()[0].split(",")] if text.strip() else []
    if len(cells) != 3:
        return Reading()
    return Reading(clock_hz=cells[0] * 1e6, temperature_c=cells[1], power_w=cells[2])


def parse_rocm(text: str) -> Reading:
    """Return what ``rocm-smi --showclocks --showtemp --showpower --csv`` printed for one device."""
    lines = [line.split(",") for line in text.strip().splitlines() if "," in line]
    if len(lines) < 2:
        return Reading()
    cells = dict(zip((name.lower() for name in lines[0]), lines[1], strict=False))

    def first(*words: str) -> float:
        name = next((n for n in cells if all(w in n for w in words)), None)
        return nan if name is None else _number(cells[name])

    return Reading(
        clock_hz=first("sclk", "speed") * 1e6, temperature_c=first("temperature"), power_w=first("power")
    )


_PARSERS: dict[str, Callable[[str], Reading]] = {"cuda": parse_nvidia, "rocm": parse_rocm}


def _cpu() -> Reading:
    clock, temperature = nan, nan
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if path.is_file():
        clock = _number(path.read_text(encoding="ascii")) * 1e3
    path = Path("/sys/class/thermal/thermal_zone0/temp")
    if path.is_file():
        temperature = _number(path.read_text(encoding="ascii")) / 1e3
    return Reading(clock_hz=clock, temperature_c=temperature)


def read_sensors(kind: str, index: int = 0) -> Reading:
    """Return the sensors of one device: kind is cpu, cuda, rocm or npu."""
    if kind == "cpu":
        return _cpu()
    command = _TOOLS.get(kind)
    if command is None:
        return Reading()
    try:
        words = [word.format(index=tool_index(kind, index, os.environ)) for word in command]
        found = subprocess.run(words, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Reading()
    return _PARSERS[kind](found.stdout)
