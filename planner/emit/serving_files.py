"""Files that every serving target shares: one script per pool, the table of instances, the router."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from planner.emit.emission import Caveat, Emission, header
from planner.emit.serving_launch import Pool, ServingLaunch, dns_name
from planner.emit.shell import FIRST_LINES, array, exports

__all__ = ["EngineCommand", "pool_names", "router_document", "serving_emission"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCommand:
    """How one instance of a pool is started."""

    words: str
    """The command, as bash: ``vllm serve "$MODEL"``."""
    arguments: tuple[str, ...]
    """One line each, as bash words; the port is added by the script."""
    port_flag: str = "--port"
    environment: Mapping[str, str] = field(default_factory=dict)
    multi_host: tuple[str, ...] = ()
    """Arguments that several machines need; may use NODE_RANK and LEADER."""
    follower_arguments: str = ""
    """Arguments of the machines other than the first, as bash words."""
    files: Mapping[str, str] = field(default_factory=dict)
    caveats: tuple[Caveat, ...] = ()


def pool_names(launch: ServingLaunch) -> tuple[str, ...]:
    """Return the names of the pools in the plan's order."""
    return tuple(pool.name for pool in launch.pools)


def serving_emission(
    launch: ServingLaunch,
    command_of: Callable[[Pool], EngineCommand],
    *,
    engine: str,
    router: str = "generic",
) -> Emission:
    """Return the scripts of all pools, the instances, and the router with its configuration.

    Parameters
    ----------
    engine : name of the engine in serving plans; a plan for another one is a caveat.
    router : how prefill and decode are joined: ``vllm`` or ``sglang``; anything else joins none.
    """
    commands = {pool.name: command_of(pool) for pool in launch.pools}
    caveats = [c for command in commands.values() for c in command.caveats]
    if launch.planned_engine != engine:
        what = f"costs were predicted for {launch.planned_engine}; plan with --engine {engine} to be sure"
        caveats.append(Caveat(feature=f"engine {launch.planned_engine}", instead=what))
    if launch.num_levels > 1:
        what = "the peak's instances are started; at other hours scale to the plan's levels"
        caveats.append(Caveat(feature="load_levels", instead=what))
    unique = tuple(dict.fromkeys(caveats))
    texts: dict[str, str] = {}
    for pool in launch.pools:
        command = commands[pool.name]
        texts[f"serve-{pool.name}.sh"] = (
            FIRST_LINES + header(launch.origin, unique) + _script(launch, pool, command)
        )
        texts |= command.files
    texts["instances.tsv"] = _instances(launch)
    texts["router.json"] = json.dumps(router_document(launch, join=router), indent=2) + "\n"
    program = files("planner.emit").joinpath("programs", "router.py.txt").read_text(encoding="utf-8")
    texts["router.py"] = header(launch.origin) + program
    scripts = frozenset(name for name in texts if name.endswith(".sh"))
    facts: dict[str, object] = {
        "model": launch.model,
        "engine": engine,
        "pools": {pool.name: _facts(pool) for pool in launch.pools},
    }
    return Emission(files=texts, commands=scripts, caveats=unique, facts=facts)


def _facts(pool: Pool) -> dict[str, object]:
    c = pool.config
    return {
        "role": pool.role,
        "count": pool.count,
        "devices": c.num_devices,
        "num_hosts": pool.num_hosts,
        "tp": c.tp,
        "pp": c.pp,
        "dp": c.dp,
        "ep": c.ep,
    }


def _script(launch: ServingLaunch, pool: Pool, command: EngineCommand) -> str:
    text = (
        f"# Starts one of {pool.count} instances on {pool.config.num_devices} x {pool.device}"
        f"{'' if pool.role == 'both' else f', role {pool.role}'}.\n"
        f"# Usage: serve-{pool.name}.sh [INSTANCE]"
        + (
            " with NODE_RANK and LEADER (host of rank 0) set on every machine.\n"
            if pool.num_hosts > 1
            else "\n"
        )
        + "set -euo pipefail\n"
        'cd "$(dirname "${BASH_SOURCE[0]}")"\n'
        "INSTANCE=${1:-0}\n"
        f'[ "$INSTANCE" -lt {pool.count} ] || {{ echo "there are {pool.count} instances" >&2; exit 2; }}\n'
        f"MODEL=${{MODEL:-{launch.model}}}\n"
        f"PORT=${{PORT:-$(({pool.first_port} + INSTANCE))}}\n"
    )
    text += exports(command.environment)
    lines = list(command.arguments)
    if pool.num_hosts > 1:
        text += (
            "NODE_RANK=${NODE_RANK:?set NODE_RANK to 0, 1, ...}\n"
            "LEADER=${LEADER:?set LEADER to the host of rank 0}\n"
        )
        lines += command.multi_host
    text += array("ARGS", lines)
    if pool.num_hosts > 1 and command.follower_arguments:
        text += f'[ "$NODE_RANK" = 0 ] || ARGS+=({command.follower_arguments})\n'
    return text + f'exec {command.words} "${{ARGS[@]}}" {command.port_flag} "$PORT"\n'


def _instances(launch: ServingLaunch) -> str:
    text = "pool\tinstance\trole\thost\tport\n"
    for pool in launch.pools:
        for i in range(pool.count):
            text += f"{pool.name}\t{i}\t{pool.role}\t{pool.name}-{i}\t{pool.first_port + i}\n"
    return text


def router_document(launch: ServingLaunch, *, join: str = "generic") -> dict[str, Any]:
    """Return the router's configuration: which share of each request size goes to which pool."""
    routes = [
        {
            "role": route.role,
            "prompt_tokens_up_to": route.prompt_tokens_up_to,
            "output_tokens_up_to": route.output_tokens_up_to,
            "weights": {dns_name(name): share for name, share in sorted(route.shares.items()) if share > 0},
        }
        for route in launch.routes
    ]
    return {
        "plan_sha256": launch.origin.plan_sha256,
        "join": join if launch.is_split else None,
        "characters_per_token": 4,
        "routes": routes,
    }
