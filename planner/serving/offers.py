"""Devices as a serving request may have them: where they stand, what they cost, how many there are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from costmodels.serving.machine import serving_machine
from hardware.catalog import find_cluster, find_device, find_node
from hardware.device import Device
from hardware.errors import OutOfDomainError, PlannerError, SpecError, UnknownNameError
from hardware.levels import Level
from hardware.price_file import OfferKind, PriceOffer, offers_of, read_price_file
from hardware.pricing import device_price
from planner.serving.day import LoadHours

__all__ = ["DeviceOffer", "device_offers", "named_device"]


class _Wishes(Protocol):
    """What of a request says which devices can be had."""

    @property
    def gpus(self) -> tuple[str, ...]: ...
    @property
    def cluster(self) -> str | None: ...
    @property
    def nodes(self) -> int | None: ...
    @property
    def usd_per_hour(self) -> Mapping[str, float]: ...
    @property
    def provider(self) -> str | None: ...
    @property
    def region(self) -> str | None: ...
    @property
    def spot(self) -> bool: ...
    @property
    def prices(self) -> str | None: ...
    @property
    def offer_kinds(self) -> tuple[OfferKind, ...]: ...
    @property
    def load_levels(self) -> tuple[LoadHours, ...]: ...
    @property
    def max_devices(self) -> Mapping[str, int]: ...
    @property
    def min_devices(self) -> Mapping[str, int]: ...
    @property
    def catalog(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOffer:
    """One device type as it can be had."""

    device: Device
    levels: tuple[Level, ...]
    usd_per_hour: float
    """Of the cheapest offer."""
    max_devices: float = math.inf
    min_devices: int = 0
    purchases: tuple[PriceOffer, ...] = ()
    """Ways to have it, where more than one price all day is to be chosen from."""

    @property
    def largest_instance(self) -> float:
        """Devices that one instance may have: all of one offer."""
        return min(
            self.max_devices, max((o.max_devices or math.inf for o in self.purchases), default=math.inf)
        )


def device_offers(request: _Wishes) -> tuple[DeviceOffer, ...]:
    """Return the devices of a request: those named, or all of a cluster.

    Raises
    ------
    SpecError
        naming every unknown device and missing price.
    """
    problems: list[str] = []
    offers: list[DeviceOffer] = []
    if bool(request.gpus) == (request.cluster is not None):
        raise SpecError("request", ["gpus: give devices (h100, a100-80gb ...) or a cluster, one of the two"])
    listed = _listed(request)
    if request.cluster is not None:
        return _of_cluster(request, request.cluster, listed)
    for name in request.gpus:
        try:
            device, levels = named_device(name, request.catalog)
            offers.append(_offer(request, device, levels, math.inf, listed))
        except PlannerError as error:
            problems.append(f"gpus: {error}")
    if problems:
        raise SpecError("request", problems)
    return tuple(offers)


def named_device(name: str, catalogs: tuple[str, ...]) -> tuple[Device, tuple[Level, ...]]:
    """Return a device in its usual node, or the device of a node template inside that node.

    Raises
    ------
    UnknownNameError
        if neither a device nor a node has that name.
    """
    try:
        device = find_device(name, catalogs=catalogs)
    except UnknownNameError as unknown:
        try:
            node = find_node(name, catalogs=catalogs)
        except UnknownNameError:
            raise unknown from None
        return node.device, node.levels or serving_machine(node.device).levels
    return device, serving_machine(device).levels


def _listed(request: _Wishes) -> tuple[PriceOffer, ...]:
    """Return the offers of the price file, devices by their catalogue names."""
    if request.prices is None:
        return ()
    problems: list[str] = []
    offers: list[PriceOffer] = []
    try:
        for number, offer in enumerate(read_price_file(request.prices)):
            try:
                device = find_device(offer.device, catalogs=request.catalog)
            except UnknownNameError as error:
                problems.append(f"offers.{number}.device: {error}")
            else:
                offers.append(replace(offer, device=device.name))
    except SpecError as error:
        problems += error.problems
    if problems:
        raise SpecError("request", [f"prices: {request.prices}: {problem}" for problem in problems])
    return tuple(offers)


def _of_cluster(request: _Wishes, name: str, listed: tuple[PriceOffer, ...]) -> tuple[DeviceOffer, ...]:
    """Return one offer per type of device; types in several groups stand in the nodes of the largest."""
    try:
        cluster = find_cluster(name, request.nodes, catalogs=request.catalog)
    except PlannerError as error:
        raise SpecError("request", [f"cluster: {error}"]) from None
    offers = []
    for device in dict.fromkeys(group.node.device for group in cluster.groups):
        groups = [group for group in cluster.groups if group.node.device == device]
        largest = max(groups, key=lambda group: group.num_devices)
        usual = serving_machine(device).levels
        levels = (*largest.node.levels, usual[-1]) if largest.node.levels else usual[-1:]
        try:
            num_devices = float(sum(g.num_devices for g in groups))
            offers.append(_offer(request, device, levels, num_devices, listed))
        except PlannerError as error:
            raise SpecError("request", [f"cluster: {error}"]) from None
    return tuple(offers)


def _offer(
    request: _Wishes,
    device: Device,
    levels: tuple[Level, ...],
    most: float,
    listed: tuple[PriceOffer, ...],
) -> DeviceOffer:
    purchases = _purchases(request, device, listed)
    price = min(p.usd_per_hour for p in purchases) if purchases else _single_price(request, device)
    stock = sum(math.inf if p.max_devices is None else p.max_devices for p in purchases)
    return DeviceOffer(
        device=device,
        levels=levels,
        usd_per_hour=price,
        max_devices=min(
            most, request.max_devices.get(device.name, math.inf), stock if purchases else math.inf
        ),
        min_devices=request.min_devices.get(device.name, 0),
        purchases=purchases,
    )


def _purchases(request: _Wishes, device: Device, listed: tuple[PriceOffer, ...]) -> tuple[PriceOffer, ...]:
    """Return the offers of a device: of the price file, or its one price where hours are told apart."""
    given = device.name in request.usd_per_hour
    if request.prices is None or given:
        if request.prices is None and not request.load_levels:
            return ()
        price = _single_price(request, device)
        return (PriceOffer(device=device.name, kind="on-demand", usd_per_hour=price).named(),)
    found = offers_of(
        listed, device.name, kinds=request.offer_kinds, provider=request.provider, region=request.region
    )
    if not found:
        known = ", ".join(offer.name for offer in listed if offer.device == device.name)
        wanted = " ".join(
            part for part in ("/".join(request.offer_kinds), request.provider, request.region) if part
        )
        message = f"{request.prices}: no {wanted} offer of {device.name} (it has: {known or 'none at all'})"
        raise OutOfDomainError(message)
    return found


def _single_price(request: _Wishes, device: Device) -> float:
    price = request.usd_per_hour.get(device.name)
    if price is None:
        price = _catalogue_price(request, device)
    if price <= 0:
        message = f"{device.name}: a price of {price:g} USD/h is not positive"
        raise OutOfDomainError(message)
    return price


def _catalogue_price(request: _Wishes, device: Device) -> float:
    try:
        found = device_price(device, provider=request.provider, region=request.region, spot=request.spot)
    except OutOfDomainError as error:
        message = f"{error} as usd_per_hour (--usd-per-hour {device.name}=PRICE)"
        raise OutOfDomainError(message) from None
    return found.usd_per_hour
