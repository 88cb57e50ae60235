"""A row of inference servers, second by second: arrivals, two classes, a power controller with delays.

Every server works one request at a time, first its prompt (hot), then its tokens (cooler); arrivals follow
the hour of the day. The controller sees the row's power late (telemetry), acts later still (out of band),
and as
a last resort brakes every device. Many rows run side by side as columns: other counts, seeds and policies.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.power.response import ClockResponse
from hardware.errors import InputError

__all__ = [
    "ControlDelays",
    "RowOutcome",
    "RowPolicy",
    "RowScenario",
    "RowWorkload",
    "ServerPower",
    "simulate_rows",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DAY_S = 86_400.0
_BRAKE_RELEASE_FRAC = 0.9
"""The brake is let go once the row draws less than this share of its budget (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPower:
    """What one server draws in each phase."""

    rated_w: float
    """What the row budget counts per server."""
    host_w: float
    """Everything but the devices."""
    num_devices: int
    device_rated_w: float
    idle_frac: float
    prompt_frac: float
    token_frac: float
    """Draw of a device over its rated power: waiting, in a prompt, in tokens."""

    def __post_init__(self) -> None:
        for name in ("idle_frac", "prompt_frac", "token_frac"):
            value = getattr(self, name)
            if not 0 < value <= 1.5:
                message = f"server.{name}: {value} is no share of rated power (0 to 1.5)"
                raise InputError(message)

    def draw_w(self, frac: Floats | float) -> Floats:
        """Return the draw of the server when its devices draw `frac` of their rated power."""
        watts: Floats = self.host_w + self.num_devices * self.device_rated_w * np.asarray(frac)
        return watts


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWorkload:
    """What every server of the row is asked to do."""

    prompt_s: float
    """Mean time of a prompt at the full clock; exponentially distributed."""
    token_s: float
    """Mean time of the tokens of a request; exponentially distributed."""
    peak_load: float
    """Share of the time that a server is busy at the busiest hour."""
    trough_load: float
    high_share: float
    """Share of the servers that serve the high class."""
    load_trace: tuple[float, ...] = ()
    """Load over the day in equal steps; empty for one cosine wave from trough to peak."""

    def __post_init__(self) -> None:
        if not 0 <= self.trough_load <= self.peak_load < 1:
            message = (
                f"workload: loads must satisfy 0 <= trough_load <= peak_load < 1, "
                f"not {self.trough_load} and {self.peak_load}"
            )
            raise InputError(message)
        if not 0 <= self.high_share <= 1:
            message = f"workload.high_share: {self.high_share} is no share (0 to 1)"
            raise InputError(message)

    def load(self, time_s: Floats) -> Floats:
        """Return the load at times of the day."""
        if self.load_trace:
            steps = (np.asarray(time_s) % DAY_S) / DAY_S * len(self.load_trace)
            traced: Floats = np.array(self.load_trace)[
                np.minimum(steps.astype(int), len(self.load_trace) - 1)
            ]
            return traced
        wave = 0.5 - 0.5 * np.cos(2 * np.pi * np.asarray(time_s) / DAY_S)
        load: Floats = self.trough_load + (self.peak_load - self.trough_load) * wave
        return load


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlDelays:
    """How late the controller sees and acts."""

    telemetry_s: float = 2.0
    out_of_band_s: float = 40.0
    brake_s: float = 5.0
    """Published for a production row: POLCA, ASPLOS 2024, table 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPolicy:
    """Clock of each class at each level, and the power at which each level begins."""

    thresholds: tuple[float, ...] = ()
    """Row power over budget above which level 1, 2 ... begins; empty for no control."""
    low_clocks: tuple[float, ...] = ()
    """Clock of the low class at level 1, 2 ..., over its maximum."""
    high_clocks: tuple[float, ...] = ()
    hysteresis: float = 0.05
    brake_clock: float = 0.2

    def __post_init__(self) -> None:
        sizes = {len(self.thresholds), len(self.low_clocks), len(self.high_clocks)}
        if len(sizes) != 1 or list(self.thresholds) != sorted(self.thresholds):
            message = "policy: as many low_clocks and high_clocks as thresholds, and those rising"
            raise InputError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScenario:
    """One row to simulate."""

    num_servers: int
    budget_w: float
    policy: RowPolicy
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowOutcome:
    """What one row did."""

    scenario: RowScenario
    power_frac: Floats
    """Mean draw of every step over the budget."""
    step_s: float
    num_brakes: int
    over_s: float
    """Time above the budget."""
    capped_frac: float
    """Share of the time at a level above 0."""
    latency_high_s: Floats
    latency_low_s: Floats
    """Time from arrival to the last token of every finished request, in order of server and arrival."""

    def quantiles(self, share: float) -> tuple[float, float]:
        """Return that quantile of latency for the high and the low class; nan for a class that is absent."""
        both = (self.latency_high_s, self.latency_low_s)
        high, low = (float(np.quantile(v, share)) if len(v) else float("nan") for v in both)
        return high, low


def _requests(
    scenario: RowScenario, workload: RowWorkload, duration_s: float, start_s: float
) -> tuple[list[Floats], list[Floats], list[Floats]]:
    """Return arrivals, prompt work and token work of every server, thinned from the busiest hour's rate.

    Server i draws from its own stream, so one more server leaves the others' requests as they are.
    """
    arrivals, prompts, tokens = [], [], []
    rate = workload.peak_load / (workload.prompt_s + workload.token_s)
    if workload.load_trace:
        rate = max(workload.load_trace) / (workload.prompt_s + workload.token_s)
    top = rate * (workload.prompt_s + workload.token_s)
    for server in range(scenario.num_servers):
        rng = np.random.default_rng([scenario.seed, server])
        count = rng.poisson(rate * duration_s)
        at = np.sort(rng.uniform(0.0, duration_s, count))
        keep = rng.uniform(size=count) * top < workload.load(at + start_s)
        at = at[keep]
        arrivals.append(at)
        prompts.append(rng.exponential(workload.prompt_s, len(at)))
        tokens.append(rng.exponential(workload.token_s, len(at)))
    return arrivals, prompts, tokens


def _padded(rows: list[list[Floats]], num_servers: int, fill: float) -> Floats:
    width = max((len(v) for row in rows for v in row), default=0) + 2
    table = np.full((len(rows), num_servers, width), fill)
    for i, row in enumerate(rows):
        for j, values in enumerate(row):
            table[i, j, : len(values)] = values
    return table


class _Rows:
    """All rows at one moment."""

    def __init__(
        self, scenarios: list[RowScenario], workload: RowWorkload, duration_s: float, start_s: float
    ) -> None:
        drawn = [_requests(s, workload, duration_s, start_s) for s in scenarios]
        width = max(s.num_servers for s in scenarios)
        self.arrival = _padded([d[0] for d in drawn], width, np.inf)
        self.prompt = _padded([d[1] for d in drawn], width, 0.0)
        self.token = _padded([d[2] for d in drawn], width, 0.0)
        self.done = np.full(self.arrival.shape, np.nan)
        shape = self.arrival.shape[:2]
        self.flat = np.arange(shape[0] * shape[1]).reshape(shape) * self.arrival.shape[2]
        self.head = np.zeros(shape, dtype=np.int64)
        self.next_s = self.arrival[:, :, 0].copy()
        self.prompt_left, self.token_left = self.prompt[:, :, 0].copy(), self.token[:, :, 0].copy()
        index = np.arange(width)
        self.present = index[None, :] < np.array([s.num_servers for s in scenarios])[:, None]
        high = np.array([round(workload.high_share * s.num_servers) for s in scenarios])
        self.high = index[None, :] < high[:, None]

    def step(
        self, now_s: float, step_s: float, prompt_speed: Floats, token_speed: Floats
    ) -> tuple[Floats, Floats]:
        """Work for one step; return the share of it spent in prompts and in tokens."""
        left = np.full(self.head.shape, step_s)
        hot, cool = np.zeros_like(left), np.zeros_like(left)
        for _ in range(2):  # what a request leaves of the step goes to the next one
            begun = np.minimum(left, np.maximum(0.0, now_s + step_s - self.next_s))
            in_prompt = np.minimum(begun, self.prompt_left / prompt_speed)
            self.prompt_left -= in_prompt * prompt_speed
            rest = begun - in_prompt
            in_tokens = np.minimum(rest, self.token_left / token_speed)
            self.token_left -= in_tokens * token_speed
            hot += in_prompt
            cool += in_tokens
            left = rest - in_tokens
            ended = (begun > 0) & (self.prompt_left <= 1e-12) & (self.token_left <= 1e-12)
            if not ended.any():
                break
            place = (self.flat + self.head)[ended]
            self.done.ravel()[place] = now_s + step_s - left[ended]
            self.head[ended] += 1
            self.next_s[ended] = self.arrival.ravel()[place + 1]
            self.prompt_left[ended] = self.prompt.ravel()[place + 1]
            self.token_left[ended] = self.token.ravel()[place + 1]
            left = np.where(ended, left, 0.0)
        return hot / step_s, cool / step_s

    def latencies(self, row: int) -> tuple[Floats, Floats]:
        """Return the latency of every finished request of a row: high class, low class."""
        both = []
        for members in (self.high[row], self.present[row] & ~self.high[row]):
            value = (self.done[row] - self.arrival[row])[members]
            both.append(value[np.isfinite(value)])
        return both[0], both[1]


class _Controller:
    """Levels and brakes of all rows; what it orders takes effect after its delay."""

    def __init__(
        self, scenarios: list[RowScenario], delays: ControlDelays, step_s: float, num_steps: int
    ) -> None:
        most = max(len(s.policy.thresholds) for s in scenarios)
        self.raise_at = np.full((len(scenarios), most + 1), np.inf)
        self.low, self.high = np.ones((2, len(scenarios), most + 1))
        for i, s in enumerate(scenarios):
            num = len(s.policy.thresholds)
            self.raise_at[i, :num] = s.policy.thresholds
            self.low[i, 1 : num + 1], self.high[i, 1 : num + 1] = s.policy.low_clocks, s.policy.high_clocks
        self.hysteresis = np.array([s.policy.hysteresis for s in scenarios])
        self.brake_clock = np.array([s.policy.brake_clock for s in scenarios])
        self.controlled = np.array([bool(s.policy.thresholds) for s in scenarios])
        self.see = max(1, round(delays.telemetry_s / step_s))
        self.act = max(1, round(delays.out_of_band_s / step_s))
        self.stop = max(1, round(delays.brake_s / step_s))
        self.ordered = np.zeros((num_steps + self.act + 1, len(scenarios)), dtype=np.int64)
        self.braking = np.zeros((num_steps + self.stop + 1, len(scenarios)), dtype=bool)
        self.waited = np.full(len(scenarios), self.act)
        self.num_brakes = np.zeros(len(scenarios), dtype=np.int64)
        self.rows = np.arange(len(scenarios))

    def clocks(self, step: int) -> tuple[Floats, Floats, Ints]:
        """Return the clock of each class in force at a step, and the level."""
        level = self.ordered[step]
        braked = self.braking[step]
        low = np.where(braked, self.brake_clock, self.low[self.rows, level])
        high = np.where(braked, self.brake_clock, self.high[self.rows, level])
        return low, high, level

    def watch(self, step: int, power_frac: Floats) -> None:
        """Decide from the power that telemetry shows at the end of a step."""
        level = self.ordered[step + self.act - 1] if step else np.zeros(len(self.rows), dtype=np.int64)
        self.waited += 1
        above = power_frac > self.raise_at[self.rows, level]
        up = above & (self.waited >= self.act)  # one level at a time: its effect must be seen first
        floor = np.where(
            level > 0, self.raise_at[self.rows, np.maximum(level - 1, 0)] - self.hysteresis, -1.0
        )
        down = (level > 0) & (power_frac < floor) & (self.waited >= self.act)
        self.waited[up | down] = 0
        self.ordered[step + self.act] = level + up - down
        was = self.braking[step + self.stop - 1] if step else np.zeros(len(self.rows), dtype=bool)
        begin = (power_frac > 1.0) & ~was & self.controlled
        self.num_brakes += begin
        self.braking[step + self.stop] = begin | (was & (power_frac > _BRAKE_RELEASE_FRAC))


def simulate_rows(
    scenarios: list[RowScenario],
    *,
    server: ServerPower,
    workload: RowWorkload,
    delays: ControlDelays,
    prompt_clock: ClockResponse,
    token_clock: ClockResponse,
    duration_s: float = DAY_S,
    start_s: float = 0.0,
    step_s: float = 2.0,
) -> list[RowOutcome]:
    """Return what every row does over the same stretch of the day.

    Parameters
    ----------
    start_s : time of the day at which the rows start, empty. [s]
    step_s : the controller and the meter see means over one step. [s]
    """
    num_steps = int(duration_s / step_s)
    rows = _Rows(scenarios, workload, duration_s, start_s)
    control = _Controller(scenarios, delays, step_s, num_steps)
    budget = np.array([s.budget_w for s in scenarios])
    power = np.zeros((num_steps, len(scenarios)))
    levels = np.zeros((num_steps, len(scenarios)), dtype=np.int8)
    for step in range(num_steps):
        low, high, levels[step] = control.clocks(step)
        clock = np.where(rows.high, high[:, None], low[:, None])
        hot, cool = rows.step(
            step * step_s, step_s, 1 / prompt_clock.time_frac(clock), 1 / token_clock.time_frac(clock)
        )
        frac = hot * server.prompt_frac * prompt_clock.power_frac(clock)
        frac += cool * server.token_frac * token_clock.power_frac(clock)
        frac += (1 - hot - cool) * server.idle_frac
        power[step] = (server.draw_w(frac) * rows.present).sum(axis=1) / budget
        seen = step - control.see + 1
        control.watch(step, power[seen] if seen >= 0 else np.zeros(len(scenarios)))
    outcomes = []
    for i, scenario in enumerate(scenarios):
        latency_high_s, latency_low_s = rows.latencies(i)
        outcomes.append(
            RowOutcome(
                scenario=scenario,
                power_frac=power[:, i],
                step_s=step_s,
                num_brakes=int(control.num_brakes[i]),
                over_s=float((power[:, i] > 1).sum() * step_s),
                capped_frac=float((levels[:, i] > 0).mean()),
                latency_high_s=latency_high_s,
                latency_low_s=latency_low_s,
            )
        )
    return outcomes
