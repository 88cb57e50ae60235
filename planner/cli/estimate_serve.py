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
    context: typer.Context,
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
    format: Annotated[str, typer.Option("--format", help="Weight format.")] = "bf16",
    kv_format: Annotated[str, typer.Option("--kv-format", help="Cache format: bf16 or fp8.")] = "bf16",
    lora_rank: Annotated[int, typer.Option("--lora-rank", help="Of adapters; 0 is none.", min=0)] = 0,
    num_adapters: Annotated[
        int, typer.Option("--num-adapters", help="Adapters kept in device memory.", min=0)
    ] = 0,
    draft_tokens: Annotated[
        int, typer.Option("--draft-tokens", help="Tokens drafted per step; 0 is none.", min=0)
    ] = 0,
    accepted_tokens: Annotated[
        float, typer.Option("--accepted-tokens", help="Of them, accepted per step on average.", min=0.0)
    ] = 0.0,
    usd_per_hour: Annotated[
        float | None, typer.Option("--usd-per-hour", help="Price of one device; else the catalogue's.")
    ] = None,
    catalog: CatalogOption = None,
    json: JsonOption = False,
) -> None:
    """Predict latencies, throughput, memory and cost of one engine configuration."""
    # Flags have the names of the record's fields; the context holds them as they were parsed.
    flags = {name: value for name, value in context.params.items() if value is not None and name != "json"}
    with readable_errors():
        from hardware.schema import validate
        from planner.serving.estimate_request import EstimateRequest, estimate_asked

        asked = validate(EstimateRequest, flags | {"catalog": tuple(catalog or ())}, "request")
        found = estimate_asked(asked)
        if json:
            typer.echo(json_module.dumps(found.to_json(), allow_nan=False))
            return
        from planner.cli.render_serving import print_serving_estimate

        print_serving_estimate(found)
