"""What a site adds to a plan, where it is asked for: hosts, cooling, the price of electricity, its carbon.

Options are written as a mapping in a request file or as one text on the command line, for example
``pue=1.3,usd_per_kwh=0.08,region=fr``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field

from costmodels.power.draw import HOST_FRAC, Facility
from hardware.pricing import find_carbon_intensity

__all__ = ["FacilityOption", "FacilityOptions", "SiteEnergy", "facility_note", "site_energy"]

_FILE = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_JOULES_PER_KWH = 3.6e6
_TOKENS = 1e6
"""Tokens that money and carbon are told for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FacilityOptions:
    """A site as a request describes it."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    pue: Annotated[float, Field(ge=1)] = 1.2
    """All power of the site over that of its servers (assumed where it is not given)."""
    host_w_per_device: Annotated[float, Field(ge=0)] | None = None
    """Share of the server beyond its devices; null for half of the devices' rated power (assumed)."""
    usd_per_kwh: Annotated[float, Field(ge=0)] | None = None
    kg_co2_per_kwh: Annotated[float, Field(ge=0)] | None = None
    region: str | None = None
    """Region whose mean carbon intensity applies where `kg_co2_per_kwh` is not given, for example `fr`."""

    def facility(self, rated_w: float) -> Facility:
        """Return the site for devices of a rated power.

        Raises
        ------
        UnknownNameError
            if the carbon intensity of the region is not known.
        """
        carbon = None if self.kg_co2_per_kwh is None else self.kg_co2_per_kwh / _JOULES_PER_KWH
        if carbon is None and self.region is not None:
            carbon = find_carbon_intensity(self.region).kg_per_j
        return Facility(
            host_w_per_device=HOST_FRAC * rated_w
            if self.host_w_per_device is None
            else self.host_w_per_device,
            pue=self.pue,
            usd_per_j=None if self.usd_per_kwh is None else self.usd_per_kwh / _JOULES_PER_KWH,
            kg_co2_per_j=carbon,
        )


def _parsed(value: Any) -> Any:
    """Return the mapping that a text `key=value,key=value` stands for; anything else unchanged."""
    if not isinstance(value, str):
        return value
    known = ", ".join(f.name for f in fields(FacilityOptions))
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in value.split(","))):
        key, equals, text = part.partition("=")
        if not equals:
            message = f"{part!r} is no option of a facility; write key=value with the keys {known}"
            raise ValueError(message)
        found[key.strip()] = text.strip()
    return found


FacilityOption = Annotated[FacilityOptions, BeforeValidator(_parsed)]
"""A facility in a request: a mapping, or the text that the command line takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEnergy:
    """What the whole site draws, pays and emits: devices, hosts and cooling."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    watts: float
    joules_per_token: float | None
    usd_per_hour: float | None
    """Of electricity; null where no price was given."""
    usd_per_million_tokens: float | None
    kg_co2_per_hour: float | None
    kg_co2_per_million_tokens: float | None


def site_energy(
    options: FacilityOptions | None,
    pools: Mapping[float, tuple[float, int]],
    tokens_per_s: float | None,
) -> SiteEnergy | None:
    """Return the site's figures for pools of devices; None where no facility was asked for.

    Parameters
    ----------
    pools : by rated power of a device, the mean draw of one and their number.
    tokens_per_s : of all devices; None where the plan makes none.
    """
    if options is None:
        return None
    sites = [(options.facility(rated), watts, count) for rated, (watts, count) in pools.items()]
    drawn = sum(float(site.site_w(watts, count)) for site, watts, count in sites)
    site = sites[0][0]
    per_token = drawn / tokens_per_s if tokens_per_s else None

    def rate(per_j: float | None) -> tuple[float | None, float | None]:
        if per_j is None:
            return None, None
        return drawn * 3600.0 * per_j, None if per_token is None else per_token * _TOKENS * per_j

    money, carbon = rate(site.usd_per_j), rate(site.kg_co2_per_j)
    return SiteEnergy(
        watts=drawn,
        joules_per_token=per_token,
        usd_per_hour=money[0],
        usd_per_million_tokens=money[1],
        kg_co2_per_hour=carbon[0],
        kg_co2_per_million_tokens=carbon[1],
    )


def facility_note(options: FacilityOptions) -> str:
    """Return what the site's figures rest on."""
    host = (
        "half of the devices' rated power (assumed)"
        if options.host_w_per_device is None
        else f"{options.host_w_per_device:g} W per device"
    )
    carbon = "unknown"
    if options.kg_co2_per_kwh is not None:
        carbon = f"{options.kg_co2_per_kwh:g} kg CO2 per kWh"
    elif options.region is not None:
        carbon = f"mean of {options.region}"
    money = "unknown" if options.usd_per_kwh is None else f"{options.usd_per_kwh:g} USD per kWh"
    return f"site: PUE {options.pue:g}, hosts {host}, electricity {money}, carbon {carbon}"
