"""One of several models of a request: what it overrides."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from planner.serving.fields import Count, Format, KvFormat, Natural, Percent, Positive, Share, StayForm

__all__ = ["ModelDemand"]


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
