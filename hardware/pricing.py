"""What devices cost per hour, by provider and date, and the carbon of the electricity they draw.

Prices sit in the device files, each with provider, product, date and confidence; they age, so every answer
carries its date, and a caller's own price always wins. Carbon needs an intensity in kilograms of CO2 per
joule: the caller's, or one of the assumed regional means below.
"""

from dataclasses import dataclass

from hardware.cluster import Cluster
from hardware.device import Device, Price
from hardware.errors import OutOfDomainError, UnknownNameError

__all__ = [
    "CARBON_KG_PER_J",
    "CarbonIntensity",
    "carbon_kg",
    "cluster_usd_per_hour",
    "device_price",
    "find_carbon_intensity",
]


def device_price(
    device: Device, *, provider: str | None = None, region: str | None = None, spot: bool = False
) -> Price:
    """Return the price of one device per hour; of several that match, the cheapest of the latest date.

    Parameters
    ----------
    provider, region : only prices of that provider or region; a price without a region holds for all.
    spot : whether interruptible prices are wanted instead of on-demand ones.

    Raises
    ------
    OutOfDomainError
        if the catalogue knows no such price; the message says which it knows. A region that none of the
        device's prices names would change nothing, and is refused.
    """
    if region is not None and device.prices and all(price.region is None for price in device.prices):
        message = f"no price of {device.name} names a region, {region!r} changes nothing; give your own"
        raise OutOfDomainError(message)
    fitting = [
        price
        for price in device.prices
        if price.spot == spot
        and (provider is None or price.provider == provider.lower())
        and (region is None or price.region in (None, region))
    ]
    if not fitting:
        known = ", ".join(f"{price.provider} ({price.product}, {price.date})" for price in device.prices)
        wanted = " ".join(filter(None, ["spot" if spot else "on-demand", provider, region]))
        message = f"no {wanted} price of {device.name} is known ({known or 'none at all'}); give your own"
        raise OutOfDomainError(message)
    latest = max(price.date for price in fitting)
    return min((price for price in fitting if price.date == latest), key=lambda price: price.usd_per_hour)


def cluster_usd_per_hour(
    cluster: Cluster, *, provider: str | None = None, region: str | None = None
) -> float:
    """Return the price per hour of all devices of a cluster.

    Raises
    ------
    OutOfDomainError
        if the price of one of its devices is not known.
    """
    return sum(
        group.num_devices * device_price(group.node.device, provider=provider, region=region).usd_per_hour
        for group in cluster.groups
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CarbonIntensity:
    """How much CO2 the electricity of a region causes, as a yearly mean."""

    kg_per_j: float
    ref: str
    date: str
    """Year of the mean."""


_G_PER_KWH = 1e-3 / 3.6e6
"""One gram per kilowatt-hour, in kilograms per joule."""

CARBON_KG_PER_J = {
    region: CarbonIntensity(
        kg_per_j=grams * _G_PER_KWH, ref="Ember, yearly electricity data (recalled, rounded)", date="2023"
    )
    for region, grams in {
        "world": 480.0,
        "us": 370.0,
        "eu": 240.0,
        "cn": 580.0,
        "in": 710.0,
        "jp": 485.0,
        "gb": 240.0,
        "de": 380.0,
        "fr": 56.0,
        "no": 30.0,
        "se": 40.0,
    }.items()
}
"""Assumed lifecycle means per region; a measured hourly figure of the site is better."""


def find_carbon_intensity(region: str) -> CarbonIntensity:
    """Return the mean carbon intensity of a region.

    Raises
    ------
    UnknownNameError
        with the regions that are known.
    """
    intensity = CARBON_KG_PER_J.get(region.lower())
    if intensity is None:
        raise UnknownNameError("region with a carbon intensity", region, CARBON_KG_PER_J)
    return intensity


def carbon_kg(energy_j: float, intensity: CarbonIntensity, *, pue: float = 1.0) -> float:
    """Return the carbon of `energy_j` drawn by devices, in kilograms of CO2.

    Parameters
    ----------
    pue : power usage effectiveness of the site: all power over computing power. At least 1.

    Examples
    --------
    >>> round(carbon_kg(3.6e6, CARBON_KG_PER_J["fr"]), 3)
    0.056
    """
    if pue < 1:
        message = f"pue is all power over computing power, so at least 1, not {pue}"
        raise OutOfDomainError(message)
    return energy_j * pue * intensity.kg_per_j
