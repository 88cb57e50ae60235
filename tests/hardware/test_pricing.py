from dataclasses import replace

import pytest

from hardware.catalog import find_cluster, find_device
from hardware.device import Price
from hardware.errors import OutOfDomainError, UnknownNameError
from hardware.pricing import carbon_kg, cluster_usd_per_hour, device_price, find_carbon_intensity


def _price(**more: object) -> Price:
    given: dict[str, object] = {
        "provider": "acme",
        "product": "x1",
        "usd_per_hour": 2.0,
        "date": "2026-01",
        "ref": "list",
        "confidence": "read",
    }
    return Price(**(given | more))


def test_a_price_has_provider_and_date() -> None:
    price = device_price(find_device("a10g"))
    assert (price.provider, price.usd_per_hour) == ("aws", 1.006)
    assert price.date


def test_the_latest_then_the_cheapest_price_that_fits() -> None:
    prices = (
        _price(usd_per_hour=1.0, date="2025-01"),
        _price(usd_per_hour=3.0),
        _price(usd_per_hour=2.5, region="north"),
        _price(usd_per_hour=0.5, spot=True),
    )
    device = replace(find_device("l4"), prices=prices)
    assert device_price(device).usd_per_hour == 2.5
    assert device_price(device, region="south").usd_per_hour == 3.0
    assert device_price(device, spot=True).usd_per_hour == 0.5
    with pytest.raises(
        OutOfDomainError, match=r"no on-demand other price of l4 is known \(acme \(x1, 2025-01\)"
    ):
        device_price(device, provider="other")


def test_a_cluster_costs_what_its_devices_cost() -> None:
    assert cluster_usd_per_hour(find_cluster("dgx-h200", 2)) == pytest.approx(16 * 7.912)
    with pytest.raises(OutOfDomainError, match="no on-demand price of gb300 is known"):
        cluster_usd_per_hour(find_cluster("gb300-nvl72"))


def test_carbon_of_a_kilowatt_hour() -> None:
    assert carbon_kg(3.6e6, find_carbon_intensity("world")) == pytest.approx(0.48)
    assert carbon_kg(3.6e6, find_carbon_intensity("EU"), pue=1.5) == pytest.approx(0.36)
    with pytest.raises(UnknownNameError, match="atlantis"):
        find_carbon_intensity("atlantis")
    with pytest.raises(OutOfDomainError, match="at least 1"):
        carbon_kg(1.0, find_carbon_intensity("us"), pue=0.5)


def test_a_region_that_no_price_names_is_refused() -> None:
    device = replace(find_device("h100"), prices=(_price(usd_per_hour=3.0),))
    assert device_price(device).usd_per_hour == 3.0
    with pytest.raises(OutOfDomainError, match="names a region"):
        device_price(device, region="mars")
