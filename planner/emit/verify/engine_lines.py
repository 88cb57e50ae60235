"""The options that every instance of an emitted fleet starts its engine with, whichever file says them."""

from dataclasses import dataclass

import yaml

from planner.emit.serving_launch import dns_name
from planner.emit.verify.emitted import Emitted
from planner.emit.verify.scripts import array_words

__all__ = ["EngineLine", "engine_lines", "engine_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLine:
    """One pool's command line."""

    shown: str
    """File, or file and part of it, for messages."""
    file: str
    device: str
    words: tuple[str, ...]


def engine_of(emitted: Emitted) -> str:
    """Return whose options the lines hold: vllm, sglang or tensorrt-llm."""
    if emitted.target == "llm-d":
        return "vllm"
    return str(emitted.best.strategy.engine) if emitted.target == "dynamo" else emitted.target


def engine_lines(emitted: Emitted) -> tuple[EngineLine, ...]:
    """Return the line of every pool, in the plan's order."""
    found = (_line(emitted, dns_name(entry.name), entry.device, entry.role) for entry in emitted.best.mix)
    return tuple(line for line in found if line is not None)


def _line(emitted: Emitted, pool: str, device: str, role: str) -> EngineLine | None:
    if emitted.target == "dynamo":
        return _dynamo_line(emitted, pool, device)
    if emitted.target == "llm-d":
        return _llm_d_line(emitted, "decode" if role == "both" else role, device)
    name = f"serve-{pool}.sh"
    if name not in emitted.files:
        return None
    words = tuple(array_words(emitted.files[name], "ARGS"))
    return EngineLine(shown=name, file=name, device=device, words=words)


def _dynamo_line(emitted: Emitted, pool: str, device: str) -> EngineLine | None:
    file = "deployment.yaml"
    document = yaml.safe_load(emitted.files.get(file, "")) or {}
    wanted = "".join(part.capitalize() for part in pool.split("-"))
    for part in document.get("spec", {}).get("components", []):
        if part.get("name") == wanted:
            words = part["podTemplate"]["spec"]["containers"][0].get("args", [])
            return EngineLine(shown=wanted, file=file, device=device, words=tuple(map(str, words)))
    return None


def _llm_d_line(emitted: Emitted, role: str, device: str) -> EngineLine | None:
    file = "values.yaml"
    part = (yaml.safe_load(emitted.files.get(file, "")) or {}).get(role, {})
    if not part.get("create"):
        return None
    sizes = part["parallelism"]
    own = ("--tensor-parallel-size", sizes["tensor"], "--data-parallel-size", sizes["data"])
    words = tuple(map(str, (*own, *part["containers"][0]["args"])))
    return EngineLine(shown=role, file=file, device=device, words=words)
