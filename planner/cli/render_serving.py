"""Serving plans for people."""

from collections.abc import Mapping

from planner.plan import PlanFile
from planner.render import console, parts_text, print_table
from planner.render_site import site_words
from planner.serving.estimate import ServingEstimate
from planner.serving.plan import MixEntry, PlanLevel, ServingPlan, ServingPrediction, SimulatedCheck

__all__ = ["print_serving_estimate", "print_serving_plans"]

_SHARES_SHOWN = 1e-3


def _power_words(p: ServingPrediction) -> str:
    between = ""
    if p.watts_low is not None and p.watts_high is not None:
        between = f" ({p.watts_low:.0f} - {p.watts_high:.0f} W)"
    mean = "" if p.mean_watts is None else f", {p.mean_watts:.0f} W at this rate"
    return f"{p.watts:.0f} W busy{between}{mean}, {p.joules_per_token:.3g} J per output token"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 10 else f"{value:.1f} s"


def _limit(value: int | None) -> str:
    return "more" if value is None else str(value)


def print_serving_plans(file: PlanFile[ServingPlan]) -> None:
    """Print each fleet with its figures, the router's split of the best one, and what was searched."""
    out = console()
    request = file.request
    for one in request.get("models") or [request]:
        asked = {**request, **{k: v for k, v in one.items() if v is not None}}
        out.print(f"{asked['model']}, {asked['workload']}, engine {asked['engine']}")
    for number, plan in enumerate(file.plans, start=1):
        p = plan.predicted
        out.print(
            f"\n#{number} {plan.strategy.form}: {p.cost_usd_per_hour:.2f} USD/h, {p.num_devices} devices, "
            f"p{request['percentile']:g} TTFT {_seconds(p.ttft_s)}, TPOT {_seconds(p.tpot_s)}, "
            f"{p.requests_per_s:.3g} requests/s, {p.cost_usd_per_million_tokens:.3f} USD per million tokens",
            soft_wrap=True,
        )
        if p.watts is not None and p.joules_per_token is not None:
            out.print(f"   {_power_words(p)}", soft_wrap=True)
            if p.site is not None:
                out.print(f"   {site_words(p.site)}", soft_wrap=True)
        if p.simulated is not None:
            out.print(f"   {_replay_words(p.simulated, p.headroom_frac)}", soft_wrap=True)
        for check in plan.certificate:
            if not check.holds:
                out.print(f"   does NOT hold: {check.name}: {check.detail}", soft_wrap=True)
        _print_models(p)
        print_table(
            "", ("instances", "count", "role", "devices each", "USD/h each", "load"), map(_row, plan.mix)
        )
        _print_purchases(plan)
        out.print(f"   {plan.reason}", soft_wrap=True)
    best = file.plans[0]
    rows = [
        [
            _limit(r.prompt_tokens_up_to),
            _limit(r.output_tokens_up_to),
            f"{r.rate_per_s:.3g}",
            ", ".join(f"{n} {100 * s:.0f} %" for n, s in r.shares.items() if s > _SHARES_SHOWN),
        ]
        for r in best.routing
    ]
    if best.layers:
        spans = [
            [
                str(s.machine),
                f"{s.num_devices} x {s.device}",
                f"{s.first_layer} to {s.first_layer + s.num_layers - 1}",
                f"{s.tokens_per_s:.0f}",
            ]
            for s in best.layers
        ]
        print_table("\nlayers of #1", ("machine", "devices", "layers", "tokens/s"), spans)
    if len(best.mix) > 1 and rows:
        print_table("\nrouting of #1", ("prompt up to", "output up to", "requests/s", "goes to"), rows)
    out.print(
        f"\n{file.search.num_configs} engine configurations, {file.search.num_feasible} fit", soft_wrap=True
    )
    for note in file.diagnostics:
        out.print(f"note: {note}", soft_wrap=True)


def _print_models(p: ServingPrediction) -> None:
    """Print the part of each model of a fleet of several."""
    out = console()
    for m in p.by_model:
        out.print(
            f"   {m.model}: {m.cost_usd_per_hour:.2f} USD/h, {m.form}, TTFT {_seconds(m.ttft_s)}, "
            f"TPOT {_seconds(m.tpot_s)}, {m.requests_per_s:.3g} requests/s",
            soft_wrap=True,
        )
        if m.simulated is not None:
            out.print(f"      {_replay_words(m.simulated, m.headroom_frac)}", soft_wrap=True)


def _print_purchases(plan: ServingPlan) -> None:
    """Print what is bought on each offer, and what serves each part of the day."""
    if plan.purchases:
        rows = [
            [
                p.offer,
                p.kind if p.commitment_months is None else f"{p.kind}, {p.commitment_months} months",
                str(p.num_devices),
                f"{p.usd_per_hour:.2f}",
                f"{p.mean_usd_per_hour:.2f}",
                f"{p.upfront_usd:,.0f}" if p.upfront_usd else "",
            ]
            for p in plan.purchases
        ]
        columns = ("offer", "kind", "devices", "USD/h each", "USD/h of the bill", "USD in advance")
        print_table("", columns, rows)
    if len(plan.levels) > 1:
        rows = [
            [
                f"{100 * level.rate_frac:g} %",
                f"{level.hours_per_day:g}",
                f"{level.usd_per_hour:.2f}",
                ", ".join(f"{m.count} x {m.name}" for m in level.mix),
                ", ".join(f"{n} {name}" for name, n in level.offers.items()),
                _levels_words(level),
            ]
            for level in plan.levels
        ]
        columns = ("load", "hours a day", "USD/h", "instances", "devices by offer", "replayed")
        print_table("", columns, rows)


def _levels_words(level: PlanLevel) -> str:
    if not level.simulated:
        return ""
    return "holds" if all(check.holds for check in level.simulated) else "does NOT hold"


def _replay_words(s: SimulatedCheck, headroom_frac: float) -> str:
    verdict = "targets hold" if s.holds else "targets do NOT hold"
    sure = "" if s.confidence_frac is None else f" with {100 * s.confidence_frac:g} % confidence"
    return (
        f"replayed {s.num_requests} requests: {verdict}{sure}, TTFT {_seconds(s.ttft_s)}, "
        f"TPOT {_seconds(s.tpot_s)}, headroom {100 * headroom_frac:.0f} %"
    )


def _row(m: MixEntry) -> list[str]:
    return [
        m.name,
        str(m.count),
        m.role,
        str(m.devices_per_instance),
        f"{m.usd_per_hour:.2f}",
        f"{100 * m.load_frac:.0f} %",
    ]


def _times(parts: Mapping[str, float]) -> str:
    return parts_text({name.removesuffix("_s"): value for name, value in parts.items()}, "s")


def _price_words(found: ServingEstimate) -> str:
    if found.cost_usd_per_hour is None or found.cost_usd_per_million_output_tokens is None:
        return f"no price of {found.device} is known (--usd-per-hour)"
    return (
        f"{found.cost_usd_per_hour:.2f} USD/h, "
        f"{found.cost_usd_per_million_output_tokens:.3f} USD per million output tokens"
    )


def print_serving_estimate(found: ServingEstimate) -> None:
    """Print what one instance does, where time and memory go."""
    out = console()
    out.print(
        f"{found.model} on {found.num_devices} x {found.device}, {found.engine}, "
        f"{found.concurrency} clients: TTFT {_seconds(found.ttft_s)}, TPOT {found.tpot_s * 1e3:.2f} ms, "
        f"{found.throughput_tokens_per_s:.0f} tokens/s, {_price_words(found)}",
        soft_wrap=True,
    )
    out.print(f"decode iteration: {_times(found.decode_parts_s)}", soft_wrap=True)
    prompt = f"{found.prefill_tokens} prompt tokens:"
    out.print(f"{prompt:17s} {_times(found.prefill_parts_s)}", soft_wrap=True)
    out.print(
        f"memory:           {parts_text(found.memory_parts_bytes, 'B')}; {found.max_requests} requests",
        soft_wrap=True,
    )
