"""The answers of a power plan with what their site adds."""

from dataclasses import replace

from hardware.catalog import find_device
from planner.facility import FacilityOptions, SiteEnergy, site_energy
from planner.power.plan import RowAnswer, ServingCaps, TrainingClocks

__all__ = ["with_site"]


def with_site(
    options: FacilityOptions,
    row: RowAnswer | None,
    training: TrainingClocks | None,
    serving: ServingCaps | None,
) -> tuple[RowAnswer | None, TrainingClocks | None, ServingCaps | None]:
    """Return the answers with the site's watts, money and carbon.

    Raises
    ------
    UnknownNameError
        if the carbon intensity of the facility's region is not known.
    """
    if row is not None and row.mean_w is not None:
        inside = replace(options, host_w_per_device=0.0)
        row = replace(row, site=site_energy(inside, {0.0: (row.mean_w, 1)}, None))
    if training is not None:
        devices = training.num_stages * training.devices_per_stage
        watts = training.fastest_energy_j / training.fastest_s / devices
        training = replace(
            training, site=site_energy(options, {_rated_w(training.device): (watts, devices)}, None)
        )
    if serving is not None:
        serving = replace(serving, site=_serving_site(options, serving))
    return row, training, serving


def _rated_w(name: str) -> float:
    rated = find_device(name).tdp_w
    return 0.0 if rated is None else rated


def _serving_site(options: FacilityOptions, serving: ServingCaps) -> SiteEnergy | None:
    pools: dict[float, tuple[float, int]] = {}
    for pool in serving.pools:
        mean, have = pools.get(_rated_w(pool.device), (0.0, 0))
        total = have + pool.num_devices
        pools[_rated_w(pool.device)] = (
            (mean * have + pool.watts * pool.num_devices) / total,
            total,
        )
    tokens = serving.watts / serving.joules_per_token if serving.joules_per_token else None
    return site_energy(options, pools, tokens)
