import pytest

from hardware.errors import SpecError
from hardware.price_file import offers_of, read_price_file

RESERVED = "{device: h100, kind: reserved, usd_per_hour: 2 USD/h, commitment_months: 12, upfront_frac: 0.5}"


def written(tmp_path, *offers, head=""):
    path = tmp_path / "prices.yaml"
    path.write_text(head + "offers:\n" + "".join(f"  - {offer}\n" for offer in offers), encoding="utf-8")
    return path


def test_offers_take_provider_and_region_of_the_file_and_a_name(tmp_path):
    spot = "{device: l4, kind: spot, usd_per_hour: 0.3 USD/h, interruptions_per_hour: 0.3, region: south}"
    first, second = read_price_file(written(tmp_path, RESERVED, spot, head="provider: acme\nregion: north\n"))
    assert first.name == "h100-acme-north-reserved-12mo"
    assert (second.provider, second.region) == ("acme", "south")
    assert first.term_usd == pytest.approx(2.0 * 8760)
    # 0.3 per hour, ten minutes each: away for 0.05 hours per hour in service.
    assert second.away_frac == pytest.approx(0.05 / 1.05)


def test_offers_of_a_device_by_kind_provider_and_region(tmp_path):
    hourly = "{device: h100, kind: on-demand, usd_per_hour: 5 USD/h, provider: other, region: east}"
    anywhere = "{device: h100, kind: on-demand, usd_per_hour: 6 USD/h, name: anywhere}"
    offers = read_price_file(written(tmp_path, RESERVED, hourly, anywhere))
    assert len(offers_of(offers, "h100")) == 3
    assert [o.name for o in offers_of(offers, "h100", kinds=["on-demand"], region="west")] == ["anywhere"]
    assert len(offers_of(offers, "h100", provider="Other", region="east")) == 3
    assert offers_of(offers, "l4") == ()


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        ("{device: h100, kind: leased, usd_per_hour: 2 USD/h}", r"offers.0.kind: 'leased'.*'reserved'"),
        ("{device: h100, kind: on-demand, usd_per_hour: 0 USD/h}", r"offers.0: usd_per_hour: 0 is not pos"),
        ("{device: h100, kind: on-demand, usd_per_hour: -1 USD/h}", r"offers.0.usd_per_hour"),
        ("{device: h100, kind: reserved, usd_per_hour: 2 USD/h}", r"offers.0: commitment_months: is missing"),
        (
            "{device: h100, kind: on-demand, usd_per_hour: 2 USD/h, commitment_months: 12}",
            "commitment_months: 12 on an offer that is on-demand",
        ),
        ("{device: h100, kind: on-demand, usd_per_hour: 2 USD/h, upfront_frac: 0.2}", "upfront_frac: 0.2"),
        ("{device: h100, kind: spot, usd_per_hour: 2 USD/h}", "interruptions_per_hour: is missing"),
        (
            "{device: h100, kind: on-demand, usd_per_hour: 2 USD/h, interruptions_per_hour: 1}",
            "interruptions_per_hour: 1.0 on an offer that is on-demand",
        ),
        (
            "{device: h100, kind: on-demand, usd_per_hour: 2 USD/h, min_devices: 8, max_devices: 4}",
            "max_devices: 4 is below min_devices, 8",
        ),
        ("{device: h100, kind: on-demand, usd_per_hour: 2 USD/h, quota: 4}", r"offers.0.quota: unexpected"),
        ("{device: h100, kind: on-demand, usd_per_hour: 2 EUR/h}", r"offers.0.usd_per_hour"),
    ],
)
def test_a_wrong_offer_is_named_with_its_place(tmp_path, offer, words):
    with pytest.raises(SpecError, match=words):
        read_price_file(written(tmp_path, offer))


def test_an_empty_file_and_twins_are_refused(tmp_path):
    (tmp_path / "none.yaml").write_text("offers: []\n", encoding="utf-8")
    with pytest.raises(SpecError, match="offers"):
        read_price_file(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="'h100-reserved-12mo' appears twice; give each a name"):
        read_price_file(written(tmp_path, RESERVED, RESERVED))
    with pytest.raises(SpecError, match="cannot be read"):
        read_price_file(tmp_path / "absent.yaml")
