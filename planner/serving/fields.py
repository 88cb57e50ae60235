"""Types of the fields that serving requests share."""

from typing import Annotated, Literal

from pydantic import Field

__all__ = [
    "Count",
    "Format",
    "KvFormat",
    "Natural",
    "Percent",
    "Positive",
    "Share",
    "StayForm",
    "WholeShare",
]

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=1, lt=100)]
"""In percent: 99, not 0.99."""
Share = Annotated[float, Field(ge=0, lt=1)]
WholeShare = Annotated[float, Field(ge=0, le=1)]
Format = Literal["bf16", "fp8", "fp8-block", "int8", "int4", "nvfp4", "mxfp4"]
KvFormat = Literal["bf16", "fp8"]
StayForm = Literal["auto", "joint", "split"]
