"""How long a simulation must last to show whether queues settle or grow.

A fleet that is too small answers well at first: requests are late only once the queue has grown.
"""

from costmodels.job import Slo

__all__ = ["settling_s"]

_REQUEST_TIMES = 5.0
"""Of a simulation, in times that a request takes within its targets; assumed."""
_QUEUE_TIMES = 30.0
"""Of a simulation, in targets of the time to first token: a thirtieth of overload then breaks the target."""
_ASSUMED_TPOT_S = 0.05
"""Where no target says how fast tokens come."""


def settling_s(slo: Slo, mean_output_tokens: float) -> float:
    """Return how long a simulation must last to show whether queues settle. [s]"""
    tpot_s = slo.tpot_s or _ASSUMED_TPOT_S
    request_s = (slo.ttft_s or 0.0) + mean_output_tokens * tpot_s
    if slo.e2e_s is not None:
        request_s = min(request_s, slo.e2e_s)
    return max(_REQUEST_TIMES * request_s, _QUEUE_TIMES * (slo.ttft_s or 0.0))
