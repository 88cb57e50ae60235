"""What `estimate serve` is asked: one model on one instance, and the clients that load it."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from costmodels.models import find_model
from costmodels.serving.config import ServingConfig
from costmodels.serving.degrees import degree_problems
from costmodels.serving.engine import find_engine
from costmodels.serving.machine import device_machine
from hardware.device import Device
from hardware.errors import OutOfDomainError, SpecError
from hardware.pricing import device_price
from planner.serving.estimate import ServingEstimate, estimate_serving
from planner.serving.fields import Count, Format, KvFormat, Natural, Positive
from planner.serving.offers import named_device
from planner.serving.request import draft_problems, generation_problem
from planner.serving.space import quant_of, quants_of

__all__ = ["EstimateRequest", "estimate_asked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """One configuration at one load; see the options of `meshwright estimate serve`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """Catalogue name, or path of a Hugging Face config.json."""
    gpu: str = "h100"
    engine: str = "vllm"
    prompt_tokens: Count = 1024
    output_tokens: Count = 256
    concurrency: Count = 32
    """Clients that wait for their answers."""
    tp: Count = 1
    pp: Count = 1
    dp: Count = 1
    """Attention groups."""
    ep: Count = 1
    format: Format = "bf16"
    """Of the weights."""
    kv_format: KvFormat = "bf16"
    lora_rank: Natural = 0
    num_adapters: Natural = 0
    draft_tokens: Natural = 0
    """Tokens drafted per step."""
    accepted_tokens: float = 0.0
    """Of them, accepted per step on average."""
    usd_per_hour: Positive | None = None
    """Price of one device; the catalogue's where left out."""
    catalog: tuple[str, ...] = ()


def estimate_asked(request: EstimateRequest) -> ServingEstimate:
    """Return what the instance does under the load.

    Raises
    ------
    UnknownNameError, SpecError
        if a name is not known, the model generates nothing, or the degrees do not fit it.
    InfeasibleError
        if the weights and one request exceed the device's memory.
    """
    model, stack = find_model(request.model), find_engine(request.engine)
    device, levels = named_device(request.gpu, request.catalog)
    degrees = {name: getattr(request, name) for name in ("tp", "pp", "dp", "ep")}
    problems = [f"model: {problem}"] if (problem := generation_problem(model)) else []
    problems += degree_problems(model, **degrees)
    if bool(request.lora_rank) != bool(request.num_adapters):
        problems.append(
            f"num_adapters: {request.num_adapters} with lora_rank {request.lora_rank}; give both, from 1"
        )
    problems += draft_problems(request.draft_tokens, request.accepted_tokens)
    if problems:
        raise SpecError("request", problems)
    config = ServingConfig(
        **degrees,
        **quants_of(request.format),
        kv=quant_of(request.kv_format),
        max_batch=stack.max_batch,
        token_budget=stack.token_budget,
        chunked=stack.chunked,
        lora_rank=request.lora_rank,
        num_adapters=request.num_adapters,
        draft_tokens=request.draft_tokens,
    )
    return estimate_serving(
        model,
        config,
        stack,
        device_machine(device, levels),
        usd_per_hour=_price(request, device),
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        concurrency=request.concurrency,
        tokens_per_step=1.0 + request.accepted_tokens,
    )


def _price(request: EstimateRequest, device: Device) -> float | None:
    """Return the price of one device per hour; None where nobody says."""
    if request.usd_per_hour is not None:
        return request.usd_per_hour
    try:
        return device_price(device).usd_per_hour
    except OutOfDomainError:
        return None
