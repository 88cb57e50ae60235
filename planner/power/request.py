"""What `plan power` is asked: a row, a training plan's clocks, a serving plan's caps, or several at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from costmodels.power.response import ClockResponse
from hardware.errors import InputError, SpecError
from hardware.schema import read_yaml, validate
from planner.facility import FacilityOption
from planner.power.rows import RowSettings
from planner.simulate.rows import ControlDelays, RowWorkload, ServerPower

__all__ = ["PowerRequest", "RowSection", "ServingSection", "TrainingSection", "read_power_request"]

_FILE = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
CLASSES = ("high", "low")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSection:
    """A row of servers behind one breaker; the defaults describe the published row of 40 DGX A100."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    servers: Annotated[int, Field(ge=1)] = 40
    """Servers that the budget was provisioned for."""
    budget_w: Positive | None = None
    """What the row may draw; null for the rated power of `servers`."""
    work: Literal["inference", "training"] = "inference"
    server_rated_w: Positive = 6500.0
    host_w: Positive = 3090.0
    """All but the devices; set so that 40 servers peak at the published 79 % of their budget."""
    devices_per_server: Annotated[int, Field(ge=1)] = 8
    device_rated_w: Positive = 400.0
    idle_frac: Share = 0.2
    prompt_frac: Annotated[float, Field(gt=0, le=1.5)] = 1.03
    """Draw in a prompt over rated power (splitwise-sim, BLOOM-176B, prompts of 2,048 tokens)."""
    token_frac: Annotated[float, Field(gt=0, le=1.5)] = 0.62
    """Mean draw in tokens (the same source)."""
    prompt_s: Positive = 0.7
    token_s: Positive = 14.0
    peak_load: Share = 0.8
    trough_load: Share = 0.45
    classes: Mapping[str, float] = field(default_factory=lambda: {"high": 0.5, "low": 0.5})
    """Share of the servers by priority."""
    trace: str | None = None
    """CSV with `time_s` and `load` over a day in equal steps, in place of the daily wave."""
    telemetry_s: Positive = 2.0
    out_of_band_s: Positive = 40.0
    brake_s: Positive = 5.0
    max_clock_mhz: Positive = 1410.0
    low_clocks_mhz: tuple[float, float] = (1275.0, 1110.0)
    high_clock_mhz: float = 1305.0
    seeds: Annotated[int, Field(ge=1)] = 5
    hours: Annotated[float, Field(gt=0, le=24)] = 24.0
    """How much of the day is simulated, around its busiest hour."""
    most_extra_frac: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Up to how many more servers are tried."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    valley_frac: Share = 0.2
    """Training: lowest draw of a step over rated power, for the ramp check."""
    ramp_limit_frac: Share = 0.4
    """Training: largest change of the row's draw within two seconds that the site allows."""

    def problems(self) -> list[str]:
        """Return what of the row contradicts itself: classes, budget and clocks, each with its key."""
        problems = [
            f"row.classes.{c}: unknown class; known: high, low" for c in self.classes if c not in CLASSES
        ]
        problems += [
            f"row.classes.{name}: {share:g} is not a share from 0 to 1"
            for name, share in self.classes.items()
            if not 0.0 <= share <= 1.0
        ]
        if not problems and abs(sum(self.classes.values()) - 1) > 1e-6:
            problems.append(f"row.classes: shares add up to {sum(self.classes.values()):g}, not 1")
        budget = self.row_budget_w
        idle = self.servers * (self.host_w + self.devices_per_server * self.device_rated_w * self.idle_frac)
        if budget < idle:
            problems.append(
                f"row.budget_w: {budget:g} W is below the idle draw of {self.servers} servers, {idle:g} W"
            )
        for name, clock in (
            ("low_clocks_mhz", self.low_clocks_mhz[0]),
            ("low_clocks_mhz", self.low_clocks_mhz[1]),
            ("high_clock_mhz", self.high_clock_mhz),
        ):
            if not 0 < clock <= self.max_clock_mhz:
                problems.append(
                    f"row.{name}: {clock:g} MHz is outside 0 to max_clock_mhz {self.max_clock_mhz:g}"
                )
        if self.low_clocks_mhz[1] > self.low_clocks_mhz[0]:
            first, second = self.low_clocks_mhz
            problems.append(
                f"row.low_clocks_mhz: {first:g}, {second:g} MHz rise; the deeper level comes second"
            )
        return problems

    @property
    def row_budget_w(self) -> float:
        """What the row may draw. [W]"""
        return self.budget_w if self.budget_w is not None else self.servers * self.server_rated_w

    def settings(self) -> RowSettings:
        """Return what the row is simulated with.

        Raises
        ------
        SpecError
            if the budget is below the idle draw, or a class or a clock is not accepted.
        """
        if problems := self.problems():
            raise SpecError("request", problems)
        top = self.max_clock_mhz
        return RowSettings(
            budget_w=self.row_budget_w,
            server=ServerPower(
                rated_w=self.server_rated_w,
                host_w=self.host_w,
                num_devices=self.devices_per_server,
                device_rated_w=self.device_rated_w,
                idle_frac=self.idle_frac,
                prompt_frac=self.prompt_frac,
                token_frac=self.token_frac,
            ),
            workload=RowWorkload(
                prompt_s=self.prompt_s,
                token_s=self.token_s,
                peak_load=self.peak_load,
                trough_load=self.trough_load,
                high_share=self.classes.get("high", 0.0),
                load_trace=read_load_trace(self.trace) if self.trace else (),
            ),
            delays=ControlDelays(
                telemetry_s=self.telemetry_s, out_of_band_s=self.out_of_band_s, brake_s=self.brake_s
            ),
            prompt_clock=PREFILL_CLOCK,
            token_clock=DECODE_CLOCK,
            low_clocks=(self.low_clocks_mhz[0] / top, self.low_clocks_mhz[1] / top),
            high_clock=self.high_clock_mhz / top,
            seeds=tuple(range(self.seeds)),
            hours=self.hours,
            epsilon=self.epsilon,
        )


PREFILL_CLOCK = ClockResponse(clock_share=0.9, static_frac=0.25)
DECODE_CLOCK = ClockResponse(clock_share=0.15, static_frac=0.3)
"""Assumed: prompts follow the clock, tokens hardly (published: 20 % less peak power for at most 7 %)."""
TRAINING_CLOCK = ClockResponse(clock_share=0.85, static_frac=0.25)


def read_load_trace(path: str) -> tuple[float, ...]:
    """Return the loads of a trace in equal steps over a day.

    Raises
    ------
    SpecError
        naming the line of the first gap, wrong value or step of another length.
    """
    import csv

    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise InputError(message) from None
    if not rows or not {"time_s", "load"} <= set(rows[0]):
        raise SpecError(path, ["a load trace needs the columns time_s and load"])
    times: list[float] = []
    loads: list[float] = []
    for number, row in enumerate(rows, start=2):
        try:
            times.append(float(row["time_s"]))
            loads.append(float(row["load"]))
        except (TypeError, ValueError):
            raise SpecError(path, [f"line {number}: time_s and load must be numbers, not {row}"]) from None
        if not 0 <= loads[-1] < 1:
            raise SpecError(path, [f"line {number}: load {loads[-1]} is outside 0 to 1 (1 excluded)"])
        step = times[1] - times[0] if len(times) > 1 else 0.0
        if len(times) > 1 and (step <= 0 or abs(times[-1] - times[-2] - step) > 1e-6 * step):
            problem = (
                f"line {number}: a gap: {times[-2]:g} s is followed by {times[-1]:g} s, steps are {step:g} s"
            )
            raise SpecError(path, [problem])
    covered = times[-1] - times[0] + (times[1] - times[0] if len(times) > 1 else 0.0)
    if abs(covered - 86_400.0) > 1.0:
        raise SpecError(path, [f"the trace covers {covered:g} s; a day has 86400 s"])
    return tuple(loads)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSection:
    """A training plan whose clocks are asked for."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    plan: str
    """Path of a training plan file; its best plan is taken."""
    max_clock_mhz: Positive | None = None
    """Null for the catalogue's figure, where one is known."""
    min_clock_mhz: Positive | None = None
    clock_step_mhz: Positive = 15.0
    slowdowns_frac: tuple[Annotated[float, Field(ge=0, le=2)], ...] = (0.0, 0.02, 0.05, 0.1)
    """Deadlines, as slowdowns of the fastest step."""
    straggler_s: Positive | None = None
    """Time of the slowest other pipeline for the same micro-batches; null where none is known."""
    device_cap_w: Positive | None = None
    stage_budget_w: Positive | None = None
    """Mean draw that all devices of one stage may have together (a rack)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSection:
    """A serving plan whose caps are asked for."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    plan: str
    max_slowdown_frac: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Throughput that a phase may lose."""
    power_budget_w: Positive | None = None
    """What all devices together may draw; null for as little as the slowdown allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRequest:
    """One or more questions about power."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    row: RowSection | None = None
    training: TrainingSection | None = None
    serving: ServingSection | None = None
    facility: FacilityOption | None = None
    """The site whose hosts, cooling, electricity and carbon are counted too; null for devices alone."""
    catalog: tuple[str, ...] = ()


def read_power_request(path: str | None, plan: str | None, flags: Mapping[str, Any]) -> PowerRequest:
    """Return the request of a file, or the one that asks about a plan file.

    Raises
    ------
    InputError
        if neither or both are given.
    """
    if (path is None) == (plan is None):
        message = "give either --request FILE or --plan FILE"
        raise InputError(message)
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    if path is not None:
        request: PowerRequest = validate(PowerRequest, read_yaml(Path(path)) | given, path)
        if request.row is None and request.training is None and request.serving is None:
            raise SpecError(path, ["one of row, training and serving is needed"])
        if request.row is not None and (problems := request.row.problems()):
            raise SpecError(path, problems)
        return request
    from planner.plan_io import read_plan

    kind = read_plan(str(plan)).kind
    section = {"train": "training", "serve": "serving"}.get(kind)
    if section is None:
        message = f"{plan}: a {kind} plan has no power question; train and serve plans have"
        raise InputError(message)
    asked: PowerRequest = validate(PowerRequest, {section: {"plan": plan}} | given, "request")
    return asked
