"""`meshwright estimate serve`: what exactly one instance does at a given load."""

import json as json_module
from typing import Annotated, Any

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import CatalogOption, JsonOption, ModelOption

__all__ = ["estimate_serve"]


def _degree(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, min=1)


def estimate_serve(
    model: ModelOption = None,
    gpu: Annotated[str, typer.Option("--gpu", help="Device.")] = "h100",
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang, trtllm or mindie.")] = "vllm",
    prompt_tokens: Annotated[int, _degree("--prompt-tokens", "Of every request.")] = 1024,
    output_tokens: Annotated[int, _degree("--output-tokens", "Of every request.")] = 256,
    concurrency: Annotated[int, _degree("--concurrency", "Clients that wait for their answers.")] = 32,
    tp: Annotated[int, _degree("--tp", "Tensor-parallel degree.")] = 1,
    pp: Annotated[int, _degree("--pp", "Pipeline stages.")] = 1,
    dp: Annotated[int, _degree("--dp", "Attention groups.")] = 1,
    ep: Annotated[int, _degree("--ep", "Expert-parallel degree.")] = 1,
    weights: Annotated[str, typer.Option("--format", help="Weight format.")] = "bf16",
    kv: Annotated[str, typer.Option("--kv-format", help="Cache format: bf16 or fp8.")] = "bf16",
    lora_rank: Annotated[int, typer.Option("--lora-rank", help="Of adapters; 0 is none.", min=0)] = 0,
    num_adapters: Annotated[
        int, typer.Option("--num-adapters", help="Adapters kept in device memory.", min=0)
    ] = 0,
    usd_per_hour: Annotated[
        float | None, typer.Option("--usd-per-hour", help="Price of one device; else the catalogue's.")
    ] = None,
    catalog: CatalogOption = None,
    json: JsonOption = False,
) -> None:
    """Predict latencies, throughput, memory and cost of one engine configuration."""
    with readable_errors():
        from costmodels.serving.config import ServingConfig
        from hardware.errors import SpecError
        from planner.serving.estimate import estimate_serving
        from planner.serving.request import ServeRequest, read_serve_request, resolve_serving
        from planner.serving.space import quant_of

        if model is None:
            raise SpecError("request", ["model: is needed: a catalogue name or a path"])
        request: ServeRequest = read_serve_request(
            None,
            {
                "model": model, "gpus": (gpu,), "engine": engine, "formats": (weights,), "kv_formats": (kv,),
                "workload": f"fixed:{prompt_tokens}x{output_tokens}", "slo_tpot_s": 1e9,
                "usd_per_hour": {gpu: usd_per_hour} if usd_per_hour is not None else None,
                "lora_rank": lora_rank, "num_adapters": num_adapters, "catalog": tuple(catalog or ()),
            },
        )  # fmt: skip
        graph, stack, offers = resolve_serving(request)
        code = quant_of(weights)
        config = ServingConfig(
            tp=tp, pp=pp, dp=dp, ep=ep, weights=code, experts=code, attention=code, kv=quant_of(kv),
            max_batch=stack.max_batch, token_budget=stack.token_budget, chunked=stack.chunked,
            lora_rank=lora_rank, num_adapters=num_adapters,
        )  # fmt: skip
        found = estimate_serving(
            graph, config, stack, offers[0],
            prompt_tokens=prompt_tokens, output_tokens=output_tokens, concurrency=concurrency,
        )  # fmt: skip
        if json:
            typer.echo(json_module.dumps(found.to_json(), allow_nan=False))
            return
        from planner.cli.render_serving import print_serving_estimate

        print_serving_estimate(found)
