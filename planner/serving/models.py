"""Several models in one request: what each of them overrides, and the single-model requests it stands for."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import ConfigDict

from hardware.errors import SpecError
from planner.serving.fields import Count, Format, KvFormat, Natural, Percent, Positive, Share, StayForm

if TYPE_CHECKING:
    from planner.serving.request import ServeRequest

__all__ = ["ModelDemand", "model_requests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDemand:
    """One of several models of a fleet; what is left out is as the whole request has it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """Catalogue name, or path of a Hugging Face config.json."""
    workload: str | None = None
    rate_per_s: Positive | None = None
    slo_ttft_s: Positive | None = None
    slo_tpot_s: Positive | None = None
    slo_e2e_s: Positive | None = None
    percentile: Percent | None = None
    engine: str | None = None
    formats: tuple[Format, ...] | None = None
    kv_formats: tuple[KvFormat, ...] | None = None
    form: StayForm | None = None
    prefix_hit_frac: Share | None = None
    draft_tokens: Natural | None = None
    accepted_tokens: float | None = None
    lora_rank: Natural | None = None
    num_adapters: Natural | None = None
    max_devices_per_instance: Count | None = None


def model_requests(request: "ServeRequest") -> tuple["ServeRequest", ...]:
    """Return one request per model, each with its own traffic and targets and the limits of the whole.

    Raises
    ------
    SpecError
        if a model appears twice, or `model` is given as well.
    """
    if not request.models:
        return (request,)
    names = [demand.model for demand in request.models]
    problems = []
    if request.model is not None:
        problems.append(f"models: give either model ({request.model}) or models ({', '.join(names)})")
    if len(set(names)) < len(names):
        problems.append(f"models: a model appears twice in {', '.join(names)}")
    if problems:
        raise SpecError("request", problems)
    return tuple(
        replace(
            request,
            models=(),
            **{
                f.name: getattr(demand, f.name)
                for f in fields(ModelDemand)
                if getattr(demand, f.name) is not None
            },
        )
        for demand in request.models
    )
