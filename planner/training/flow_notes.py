"""What the routing of a fabric costs a plan: the same strategy with its flows hashed, planned and split."""

from dataclasses import replace

from costmodels.job import TrainingJob
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import evaluate
from hardware.cluster import Cluster
from hardware.fabric import Routing

__all__ = ["flow_notes"]


def flow_notes(strategy: Strategy, job: TrainingJob, cluster: Cluster) -> tuple[str, ...]:
    """Return one sentence where a fabric of the cluster states how flows are routed, nothing otherwise."""
    stated = [fabric for fabric in cluster.fabrics if fabric.routing is not None]
    if not stated:
        return ()
    table = ConfigTable.from_strategies([strategy])
    steps = {routing: float(evaluate(job, _routed(cluster, routing), table).step_s[0]) for routing in Routing}
    found = ", ".join(f"{routing} {step_s:.3g} s" for routing, step_s in steps.items())
    loads = ", ".join(
        f"{fabric.name} ({fabric.routing}) gives flows {100 * fabric.even_frac:.0f} % of an even share"
        for fabric in stated
    )
    return (f"flow load: the fullest uplink of {loads}; #1 would take {found}",)


def _routed(cluster: Cluster, routing: Routing) -> Cluster:
    fabrics = tuple(f if f.routing is None else replace(f, routing=routing) for f in cluster.fabrics)
    return replace(cluster, fabrics=fabrics)
