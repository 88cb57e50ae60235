"""Small fleets and traces with iteration times that can be worked out by hand."""

import numpy as np

from costmodels.traces import Trace
from planner.simulate.fleet import EngineSpec, Fleet, Pool
from planner.simulate.settings import EngineSettings
from planner.simulate.timing import AffineTimer

# 10 ms + 0.1 ms per prompt token; 10 ms + 1 us per cached token + 0.1 ms per sequence.
TIMER = AffineTimer(
    prefill=(0.01, 1e-4, 0.0),
    decode_small=(0.01, 1e-6, 1e-4),
    decode_large=(0.01, 1e-6, 1e-4),
    large_batch=1 << 30,
)


def trace_of(rows: list[tuple[float, int, int]], **columns: list[int]) -> Trace:
    arrival, prompt, output = zip(*rows, strict=True)
    extra = {name: np.array(values) for name, values in columns.items()}
    return Trace(
        arrival_s=np.array(arrival, dtype=float),
        prompt_tokens=np.array(prompt),
        output_tokens=np.array(output),
        **extra,
    )


def random_trace(seed: int, count: int, rate: float, prompt: int = 400, output: int = 60) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        arrival_s=np.cumsum(rng.exponential(1.0 / rate, size=count)),
        prompt_tokens=rng.integers(1, prompt, size=count),
        output_tokens=rng.integers(1, output, size=count),
    )


def spec(**changes: object) -> EngineSpec:
    base: dict[str, object] = {"timer": TIMER, "kv_tokens": 100_000, "settings": EngineSettings()}
    return EngineSpec(**(base | changes))


def fleet_of(engine: EngineSpec, count: int = 1, **changes: object) -> Fleet:
    return Fleet(pools=(Pool(name="a", engine=engine, count=count),), **changes)
