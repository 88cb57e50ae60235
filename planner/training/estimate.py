"""The cost of exactly one training configuration, as a plan file with one plan."""

from dataclasses import replace
from time import perf_counter

from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import evaluate
from hardware.errors import SpecError
from planner.plan import PlanFile, Search, TrainingPlan
from planner.plan_io import plan_document
from planner.request import TrainRequest, resolve
from planner.training.certificate import shape_checks
from planner.training.flow import training_plan_of
from planner.training.prediction import training_diagnostics
from planner.training.provenance import training_provenance

__all__ = ["estimate_training"]


def estimate_training(request: TrainRequest, strategy: Strategy) -> PlanFile[TrainingPlan]:
    """Return the predicted cost of `strategy`; dp = 0 means all devices that the other degrees leave.

    A strategy that does not fit is costed all the same; its certificate says that memory does not hold.

    Raises
    ------
    SpecError
        naming every rule that the strategy breaks.
    """
    start = perf_counter()
    job, cluster = resolve(request)
    if strategy.dp == 0:
        others = strategy.tp * strategy.pp * strategy.cp
        strategy = replace(strategy, dp=max(cluster.num_devices // others, 1))
    broken = [f"{c.name}: {c.detail}" for c in shape_checks(strategy, job, cluster) if not c.holds]
    if broken:
        raise SpecError("strategy", broken)
    costs = evaluate(job, cluster, ConfigTable.from_strategies([strategy]))
    plan = training_plan_of(strategy, costs, 0, request=request, job=job, cluster=cluster)
    fits = plan.predicted.fits_probability >= request.min_fits_probability
    search = Search(num_configs=1, num_feasible=int(fits), wall_s=perf_counter() - start)
    return PlanFile(
        kind="train",
        request=plan_document(request),
        plans=(plan,),
        search=search,
        diagnostics=training_diagnostics(job, cluster, strategy),
        provenance=training_provenance(job, cluster),
    )
