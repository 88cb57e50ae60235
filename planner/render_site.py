"""What a site draws, pays and emits, in words."""

from hardware.units import format_quantity
from planner.facility import SiteEnergy

__all__ = ["site_words"]


def site_words(site: SiteEnergy) -> str:
    """Return one line: watts, joules per token, money and carbon as far as they are known."""
    words = [f"site with hosts and cooling: {format_quantity(site.watts, 'W')}"]
    if site.joules_per_token is not None:
        words.append(f"{site.joules_per_token:.3g} J per token")
    for hour, tokens, unit in (
        (site.usd_per_hour, site.usd_per_million_tokens, "USD"),
        (site.kg_co2_per_hour, site.kg_co2_per_million_tokens, "kg CO2"),
    ):
        if hour is not None:
            words.append(
                f"{hour:.3g} {unit} per hour"
                + ("" if tokens is None else f" ({tokens:.3g} per million tokens)")
            )
    return ", ".join(words)
