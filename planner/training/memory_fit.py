"""Peak memory of a table of strategies on a cluster, without their time."""

from collections.abc import Callable

from costmodels.job import TrainingJob
from costmodels.memory.feasibility import fits_probability
from costmodels.memory.peak import memory_coefficients, peak_memory, usable_bytes
from costmodels.stacks import device_stack
from costmodels.strategy import ConfigTable
from hardware.cluster import Cluster
from planner.training.search import Fit

__all__ = ["memory_of"]


def memory_of(job: TrainingJob, cluster: Cluster) -> Callable[[ConfigTable], Fit]:
    """Return the function that predicts peak memory, as `costmodels.training.evaluate.evaluate` does."""
    stack, usable = device_stack(job.stack, cluster.device), usable_bytes(cluster.device)
    sigma = memory_coefficients(stack.name).sigma

    def fit(configs: ConfigTable) -> Fit:
        peak_bytes = peak_memory(job, configs, stack).peak_bytes
        return Fit(
            peak_bytes=peak_bytes,
            fits_probability=fits_probability(peak_bytes, usable, sigma),
            capacity_bytes=usable,
        )

    return fit
