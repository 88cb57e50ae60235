"""Command files that put a power plan into force: nvidia-smi, DCGM, rocm-smi, amd-smi, Slurm, Redfish.

Pure text from a plan. Every script prints what it would run and runs it only with ``--apply`` as its first
argument; beside each stands a rollback of the same form. Which devices a script touches is said by the
environment (``DEVICES``, ``BMC``), because a plan does not know a site's names.
"""

import json
import re
from dataclasses import dataclass

from planner.emit.emission import Caveat, Emission
from planner.power.plan import PowerPlan, RowAnswer, ServingCaps, TrainingClocks

__all__ = ["Setting", "power_emission", "settings_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the devices of one target are set to."""

    target: str
    vendor: str
    cap_w: int | None = None
    clock_mhz: int | None = None
    default_cap_w: int | None = None


_HEAD = """#!/usr/bin/env bash
# {title}
# Prints the commands; runs them with --apply (root). DEVICES: indices, for example "0 1 2 3".
set -euo pipefail
apply=0; [ "${{1:-}}" = "--apply" ] && apply=1
run() {{ if [ "$apply" = 1 ]; then "$@"; else printf '%q ' "$@"; echo; fi; }}
"""
_EACH = """DEVICES="${{DEVICES:?indices of the devices, separated by spaces}}"
for d in $DEVICES; do
{body}
done
"""


def _each(lines: list[str]) -> str:
    return _EACH.format(body="\n".join(f"  {line}" for line in lines))


def _nvidia_smi(s: Setting) -> tuple[str, str] | None:
    if s.vendor != "nvidia":
        return None
    apply, undo = ['run nvidia-smi -i "$d" -pm 1'], []
    if s.cap_w is not None:
        apply.append(f'run nvidia-smi -i "$d" -pl {s.cap_w}')
        undo += [
            'w=$(nvidia-smi -i "$d" --query-gpu=power.default_limit --format=csv,noheader,nounits '
            "2>/dev/null || echo DEFAULT_LIMIT)",
            'run nvidia-smi -i "$d" -pl "${w%.*}"',
        ]
    if s.clock_mhz is not None:
        apply.append(f'run nvidia-smi -i "$d" -lgc 0,{s.clock_mhz}')
        undo.append('run nvidia-smi -i "$d" -rgc')
    return _each(apply), _each(undo)


def _dcgm(s: Setting) -> tuple[str, str] | None:
    if s.vendor != "nvidia" or (s.cap_w is None and s.clock_mhz is None):
        return None
    head = 'GROUP="${GROUP:?number of a DCGM group: dcgmi group -c NAME; dcgmi group -g N -a 0,1,2,3}"\n'
    apply, undo = [], []
    if s.cap_w is not None:
        apply.append(f'run dcgmi config -g "$GROUP" --set -P {s.cap_w}')
        undo.append(
            'run dcgmi config -g "$GROUP" --set -P "${DEFAULT_W:?default limit: nvidia-smi -q -d POWER}"'
        )
    if s.clock_mhz is not None:
        memory = '"${MEMORY_MHZ:?memory clock: nvidia-smi -q -d SUPPORTED_CLOCKS}'
        apply.append(f'run dcgmi config -g "$GROUP" --set -a {memory},{s.clock_mhz}"')
        undo.append(f'run dcgmi config -g "$GROUP" --set -a {memory},${{DEFAULT_MHZ:?default clock}}"')
    check = 'run dcgmi config -g "$GROUP" --get'
    return head + "\n".join([*apply, check, ""]), head + "\n".join([*undo, check, ""])


def _amd(s: Setting, cap: tuple[str, str], clock: tuple[str, str]) -> tuple[str, str] | None:
    """Return what sets and resets AMD devices, from the command pair of a cap and that of a clock."""
    if s.vendor != "amd":
        return None
    wanted = [pair for pair, value in ((cap, s.cap_w), (clock, s.clock_mhz)) if value is not None]
    return _each([do for do, _ in wanted]), _each([undo for _, undo in wanted])


def _rocm_smi(s: Setting) -> tuple[str, str] | None:
    tool = 'run rocm-smi -d "$d"'
    return _amd(
        s,
        cap=(f"{tool} --setpoweroverdrive {s.cap_w}", f"{tool} --resetpoweroverdrive"),
        clock=(f"{tool} --setperfdeterminism {s.clock_mhz}", f"{tool} --resetperfdeterminism"),
    )


def _amd_smi(s: Setting) -> tuple[str, str] | None:
    apply, undo = (f'run amd-smi {verb} -g "$d"' for verb in ("set", "reset"))
    return _amd(
        s,
        cap=(f"{apply} --power-cap {s.cap_w}", f"{undo} --power-cap"),
        clock=(f"{apply} --perf-determinism {s.clock_mhz}", f"{undo} --perf-determinism"),
    )


def _slurm(s: Setting) -> tuple[str, str] | None:
    if s.clock_mhz is None:
        return None
    target = 'JOB="${JOB:?job script to submit}"\n'
    return (
        target + f'run sbatch --gpu-freq={s.clock_mhz} "$JOB"\n',
        target + 'run sbatch "$JOB"  # clocks go back by themselves when the step ends\n',
    )


def _redfish(s: Setting) -> tuple[str, str] | None:
    if s.cap_w is None:
        return None
    head = (
        'BMC="${BMC:?address of the management controller}"\n'
        "# one path per device; B200: GPU_1 in place of GPU_SXM_1\n"
        'PATHS="${PATHS:?/redfish/v1/Systems/HGX_Baseboard_0/Processors/GPU_SXM_1/EnvironmentMetrics ...}"\n'
    )

    def patch(watts: str) -> str:
        body = '{\\"PowerLimitWatts\\":{\\"SetPoint\\":' + watts + "}}"
        curl = "run curl --fail --silent --show-error --netrc -X PATCH"
        kind = "-H 'Content-Type: application/json'"
        return f'for p in $PATHS; do\n  {curl} {kind} -d "{body}" "https://$BMC$p"\ndone\n'

    undo = str(s.default_cap_w) if s.default_cap_w else "${DEFAULT_W:?default limit}"
    return head + patch(str(s.cap_w)), head + patch(undo)


_TOOLS = {
    "nvidia-smi": _nvidia_smi,
    "dcgm": _dcgm,
    "rocm-smi": _rocm_smi,
    "amd-smi": _amd_smi,
    "slurm": _slurm,
    "redfish": _redfish,
}


def _vendor(device: str) -> str:
    return "amd" if re.match(r"mi\d", device) else "nvidia"


def _row_settings(row: RowAnswer) -> list[Setting]:
    found = []
    for level, (low, high) in enumerate(zip(row.low_clocks_mhz, row.high_clocks_mhz, strict=True), start=1):
        for name, clock in (("low", low), ("high", high)):
            found.append(
                Setting(target=f"row-level-{level}-{name}-class", vendor="nvidia", clock_mhz=round(clock))
            )
    return found


def _training_settings(training: TrainingClocks) -> list[Setting]:
    """Return the clocks of the first deadline that a static plan saves anything at."""
    useful = [p for p in training.points if p.static_saved_frac > 1e-6] or list(training.points[-1:])
    return [
        Setting(target=f"stage-{s}", vendor=_vendor(training.device), clock_mhz=max(pair))
        for s, pair in enumerate(useful[0].static_clocks_mhz)
    ]


def _serving_settings(serving: ServingCaps) -> list[Setting]:
    return [
        Setting(target=f"pool-{p.pool}", vendor=_vendor(p.device), cap_w=round(p.cap_w))
        for p in serving.pools
    ]


def settings_of(plan: PowerPlan) -> list[Setting]:
    """Return every setting of a plan, in the order of its answers."""
    found: list[Setting] = []
    if plan.row is not None:
        found += _row_settings(plan.row)
    if plan.training is not None:
        found += _training_settings(plan.training)
    if plan.serving is not None:
        found += _serving_settings(plan.serving)
    return found


def power_emission(plan: PowerPlan) -> Emission:
    """Return the command files of a plan, a rollback beside each, and what they leave out."""
    files: dict[str, str] = {}
    for setting in settings_of(plan):
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", setting.target)
        for tool, text in _TOOLS.items():
            made = text(setting)
            if made is None:
                continue
            files[f"{tool}/{name}.sh"] = _HEAD.format(title=f"{setting.target}: apply") + made[0]
            files[f"{tool}/{name}.rollback.sh"] = _HEAD.format(title=f"{setting.target}: undo") + made[1]
    commands = frozenset(files)
    if plan.training is not None:
        table = [
            {"deadline_s": p.deadline_s, "clocks_mhz": [list(stage) for stage in p.operation_clocks_mhz]}
            for p in plan.training.points
        ]
        files["operation_clocks.json"] = json.dumps(table, indent=1) + "\n"
    return Emission(files=files, commands=commands, caveats=_caveats(plan))


def _caveats(plan: PowerPlan) -> tuple[Caveat, ...]:
    found = []
    if plan.row is not None:
        found.append(
            Caveat(
                feature="row thresholds",
                instead="one script per level and class; the row's controller calls them at the thresholds",
            )
        )
    if plan.training is not None:
        found.append(
            Caveat(
                feature="clocks of single operations",
                instead="operation_clocks.json, for hooks in the loop; scripts set one clock per stage",
            )
        )
    return tuple(found)
