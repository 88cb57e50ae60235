"""SGLang: `sglang.launch_server` for every pool; its own router where prefill and decode are split."""

from costmodels.serving.config import Quant
from planner.emit.emission import Caveat, Emission, header
from planner.emit.serving_files import EngineCommand, serving_emission
from planner.emit.serving_launch import Pool, ServingLaunch
from planner.emit.shell import FIRST_LINES, flag

__all__ = ["emit", "sglang_command"]


def emit(launch: ServingLaunch) -> Emission:
    """Return the files of an SGLang fleet."""
    emission = serving_emission(launch, lambda pool: sglang_command(launch, pool), engine="sglang")
    if not launch.is_split:
        return emission
    from dataclasses import replace

    what = "its router spreads requests over all prefill and all decode instances alike"
    caveat = Caveat(feature="routing by request size", instead=what)
    files = {k: v for k, v in emission.files.items() if k not in ("router.py", "router.json")}
    files["router.sh"] = _router(launch)
    return replace(
        emission,
        files=files,
        commands=emission.commands | {"router.sh"},
        caveats=(*emission.caveats, caveat),
    )


def _router(launch: ServingLaunch) -> str:
    return (
        FIRST_LINES
        + header(launch.origin)
        + "# Joins prefill and decode; hosts and ports stand in instances.tsv (edit its host column).\n"
        'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")"\n'
        "ARGS=(--pd-disaggregation)\n"
        "while IFS=$'\\t' read -r _ _ role host port; do\n"
        '  case "$role" in\n'
        '    prefill) ARGS+=(--prefill "http://$host:$port" 8998) ;;\n'
        '    decode) ARGS+=(--decode "http://$host:$port") ;;\n'
        "  esac\n"
        "done < <(tail -n +2 instances.tsv)\n"
        'exec python -m sglang_router.launch_router "${ARGS[@]}" --port "${PORT:-8080}"\n'
    )


def sglang_command(launch: ServingLaunch, pool: Pool) -> EngineCommand:
    """Return how one instance of the pool starts.

    SGLang's tensor degree counts all devices of a stage; attention groups divide it.
    """
    c = pool.config
    caveats: list[Caveat] = []
    lines = [flag("--tp-size", c.tp * c.dp), flag("--pp-size", c.pp)]
    if c.dp > 1:
        lines.append(flag("--attn-dp-size", c.dp))
    if c.ep > 1:
        lines.append(flag("--ep-size", c.ep))
    # Its limit counts the requests of all attention groups together.
    lines.append(flag("--max-running-requests", c.max_batch * c.dp))
    lines.append(flag("--max-prefill-tokens", c.token_budget))
    lines.append(flag("--chunked-prefill-size", c.token_budget if c.chunked else -1))
    lines += ["--enable-mixed-chunk"] if c.chunked and pool.role == "both" else []
    if launch.longest_tokens is not None:
        lines.append(flag("--context-length", launch.longest_tokens))
    lines += _formats(pool, caveats)
    if c.draft_tokens:
        lines += [
            "--speculative-algorithm NEXTN",
            flag("--speculative-num-steps", c.draft_tokens),
            "--speculative-eagle-topk 1",
            flag("--speculative-num-draft-tokens", c.draft_tokens + 1),
        ]
    if c.num_adapters:
        lines += ["--enable-lora", flag("--max-lora-rank", c.lora_rank)]
        lines.append(flag("--max-loras-per-batch", c.num_adapters))
    if pool.role in ("prefill", "decode"):
        lines += [flag("--disaggregation-mode", pool.role), "--disaggregation-transfer-backend nixl"]
        lines += ["--disaggregation-bootstrap-port 8998"] if pool.role == "prefill" else []
    return EngineCommand(
        words='python -m sglang.launch_server --model-path "$MODEL" --host 0.0.0.0',
        arguments=tuple(lines),
        multi_host=(
            flag("--nnodes", pool.num_hosts),
            '--node-rank "$NODE_RANK"',
            '--dist-init-addr "$LEADER:25000"',
        ),
        caveats=tuple(caveats),
    )


def _formats(pool: Pool, caveats: list[Caveat]) -> list[str]:
    c = pool.config
    lines = []
    if c.weights is Quant.FP8:
        lines.append("--quantization fp8")
    elif c.weights is not Quant.BF16:
        what = "MODEL must name a checkpoint in that format"
        caveats.append(Caveat(feature=f"{pool.name}: weights {c.weights.label}", instead=what))
    if c.kv is not Quant.BF16:
        lines.append("--kv-cache-dtype fp8_e4m3")
        if c.kv not in (Quant.FP8, Quant.FP8_BLOCK):
            caveats.append(Caveat(feature=f"{pool.name}: cache {c.kv.label}", instead="the cache is fp8"))
    return lines
