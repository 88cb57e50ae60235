"""Offers of devices in a price file: on demand, spot, or reserved for a term, each with its price and stock.

A price file is YAML: a list ``offers``, and beside it ``provider`` and ``region`` for offers that name none.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from hardware.errors import SpecError
from hardware.schema import read_yaml, validate
from hardware.units import Seconds, UsdPerHour

__all__ = ["OFFER_KINDS", "OfferKind", "PriceOffer", "offers_of", "read_price_file"]

OfferKind = Literal["on-demand", "spot", "reserved"]
OFFER_KINDS: tuple[OfferKind, ...] = ("on-demand", "spot", "reserved")

HOURS_PER_MONTH = 730.0
"""A year of 8,760 hours over twelve."""

_FILE = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOffer:
    """One way to have devices of one type."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    device: str
    """Catalogue name."""
    kind: OfferKind
    usd_per_hour: UsdPerHour
    """Of one device. Of a reserved one averaged over the term, what is paid in advance included."""
    name: str = ""
    """Unique in the file; made from the other keys where left out."""
    provider: str | None = None
    region: str | None = None
    commitment_months: Annotated[int, Field(ge=1)] | None = None
    """Needed for reserved offers, which are paid for the whole term, used or not."""
    upfront_frac: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the term's price that is due on the first day; reserved offers only."""
    min_devices: Annotated[int, Field(ge=0)] = 0
    """Bought at least (already committed, or the smallest order)."""
    max_devices: Annotated[int, Field(ge=1)] | None = None
    """Stock or quota of this offer; null is without end."""
    interruptions_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Expected of one spot instance; needed for spot offers."""
    replacement_s: Seconds = 600.0
    """From an interruption until another instance serves in its place."""
    date: str | None = None
    ref: str | None = None

    def __post_init__(self) -> None:
        problems = [words for wrong, words in self._rules() if wrong]
        if problems:
            raise ValueError("; ".join(problems))

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        reserved, spot = self.kind == "reserved", self.kind == "spot"
        months, most = self.commitment_months, self.max_devices
        return (
            (self.usd_per_hour <= 0, f"usd_per_hour: {self.usd_per_hour:g} is not positive"),
            (reserved and months is None, "commitment_months: is missing (a reserved offer needs its term)"),
            (
                not reserved and months is not None,
                f"commitment_months: {months} on an offer that is {self.kind}",
            ),
            (
                not reserved and self.upfront_frac > 0,
                f"upfront_frac: {self.upfront_frac:g} on an offer that is {self.kind}",
            ),
            (
                spot and self.interruptions_per_hour is None,
                "interruptions_per_hour: is missing (a spot offer needs it; 0 where none are expected)",
            ),
            (
                not spot and self.interruptions_per_hour is not None,
                f"interruptions_per_hour: {self.interruptions_per_hour} on an offer that is {self.kind}",
            ),
            (
                most is not None and most < self.min_devices,
                f"max_devices: {most} is below min_devices, {self.min_devices}",
            ),
        )

    @property
    def away_frac(self) -> float:
        """Share of time that an instance is interrupted and not yet replaced."""
        rate = self.interruptions_per_hour or 0.0
        away_h = rate * self.replacement_s / 3600.0
        return away_h / (1.0 + away_h)

    @property
    def term_usd(self) -> float:
        """What one device costs over the whole term; 0 without one. [USD]"""
        return self.usd_per_hour * HOURS_PER_MONTH * (self.commitment_months or 0)

    def named(self) -> "PriceOffer":
        """Return the offer with a name made of what tells it from others."""
        term = None if self.commitment_months is None else f"{self.commitment_months}mo"
        parts = (self.device, self.provider, self.region, self.kind, term)
        return replace(self, name=self.name or "-".join(part for part in parts if part))


@dataclass(frozen=True, slots=True, kw_only=True)
class _PriceFile:
    """The file as it is written."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    offers: Annotated[tuple[PriceOffer, ...], Field(min_length=1)]
    provider: str | None = None
    region: str | None = None


def read_price_file(path: str | Path) -> tuple[PriceOffer, ...]:
    """Return the offers of a price file, each with a name, provider and region as far as they are known.

    Raises
    ------
    SpecError
        naming every wrong key with its place; offers that cannot be told apart too.
    """
    file = validate(_PriceFile, read_yaml(Path(path)), str(path))
    offers = tuple(
        replace(offer, provider=offer.provider or file.provider, region=offer.region or file.region).named()
        for offer in file.offers
    )
    names = [offer.name for offer in offers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(str(path), [f"offers: {name!r} appears twice; give each a name" for name in twice])
    return offers


def offers_of(
    offers: Iterable[PriceOffer],
    device: str,
    *,
    kinds: Iterable[OfferKind] = OFFER_KINDS,
    provider: str | None = None,
    region: str | None = None,
) -> tuple[PriceOffer, ...]:
    """Return the offers of one device, of the kinds wanted; one without provider or region holds for all."""
    wanted = frozenset(kinds)
    return tuple(
        offer
        for offer in offers
        if offer.device == device
        and offer.kind in wanted
        and (provider is None or offer.provider is None or offer.provider.lower() == provider.lower())
        and (region is None or offer.region in (None, region))
    )
