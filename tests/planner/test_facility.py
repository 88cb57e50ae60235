import json

import pytest

from hardware.errors import UnknownNameError
from planner.facility import FacilityOptions, site_energy
from tests.planner.conftest import Meshwright

TRAIN = ["plan", "train", "--model", "llama-3.1-8b", "--cluster", "dgx-h100"]
TRAIN += ["--nodes", "1", "--seq-len", "4096", "--global-batch", "64"]


def test_site_figures_by_hand():
    options = FacilityOptions(pue=1.5, host_w_per_device=100.0, usd_per_kwh=0.1, kg_co2_per_kwh=0.4)
    site = site_energy(options, {700.0: (500.0, 8)}, 1000.0)
    assert site is not None
    assert site.watts == pytest.approx(600 * 8 * 1.5)
    assert site.joules_per_token == pytest.approx(7.2)
    assert site.usd_per_hour == pytest.approx(7.2 * 0.1)
    assert site.usd_per_million_tokens == pytest.approx(7.2e6 / 3.6e6 * 0.1)
    assert site.kg_co2_per_hour == pytest.approx(7.2 * 0.4)


def test_hosts_draw_half_of_rated_power_where_nothing_is_said_and_nothing_is_added_unasked():
    site = site_energy(FacilityOptions(pue=1.0), {700.0: (500.0, 1), 72.0: (60.0, 2)}, None)
    assert site is not None
    assert site.watts == pytest.approx(500 + 350 + 2 * (60 + 36))
    assert site.usd_per_hour is None
    assert site.kg_co2_per_million_tokens is None
    assert site_energy(None, {700.0: (500.0, 1)}, None) is None


def test_an_unknown_region_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="fr"):
        FacilityOptions(region="atlantis").facility(700.0)


def test_a_training_plan_counts_its_site_when_asked(meshwright: Meshwright):
    asked = json.loads(
        meshwright(*TRAIN, "--facility", "pue=1.3,usd_per_kwh=0.08,region=fr", "--json").stdout
    )
    predicted = asked["plans"][0]["predicted"]
    devices = predicted["watts_per_device"] * 8
    assert predicted["site"]["watts"] == pytest.approx((devices + 8 * 350) * 1.3)
    assert asked["request"]["facility"]["region"] == "fr"
    plain = meshwright(*TRAIN)
    assert "J per token" in plain.stdout
    assert "site with hosts" not in plain.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pue", "write key=value"),
        ("pue=0.5", "facility"),
        ("colour=red", "colour"),
        ("region=atlantis", "fr"),
    ],
)
def test_a_wrong_facility_is_refused_by_key(meshwright: Meshwright, text: str, said: str):
    result = meshwright(*TRAIN, "--facility", text)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
