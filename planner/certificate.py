"""What is checked of every finished plan, against the request and not against the search that made it."""

from math import isclose

from costmodels.job import TrainingJob
from costmodels.strategy import Recompute, Strategy
from hardware.cluster import Cluster
from planner.plan import Check, Placement, TrainingPrediction

__all__ = ["training_certificate"]


def training_certificate(
    strategy: Strategy,
    predicted: TrainingPrediction,
    placement: Placement,
    *,
    job: TrainingJob,
    cluster: Cluster,
    min_probability: float,
) -> tuple[Check, ...]:
    """Return every invariant of a training plan with its figures."""
    checks = [*_shape(strategy, job, cluster), *_sums(predicted, min_probability)]
    seats = {(r.host, r.device) for r in placement.ranks}
    numbers = [r.rank for r in placement.ranks]
    complete = numbers == list(range(strategy.world)) and len(seats) == strategy.world
    detail = f"{len(numbers)} ranks on {len(seats)} devices"
    return (*checks, Check(name="every-rank-has-its-own-device", holds=complete, detail=detail))


def _shape(strategy: Strategy, job: TrainingJob, cluster: Cluster) -> list[Check]:
    s = strategy
    layers = job.model.num_layers
    chunks = s.pp * s.vpp
    sizes = [layers // chunks + (1 if i < layers % chunks else 0) for i in range(chunks)]
    per_replica = s.dp * s.micro_batch
    experts = s.tp * s.cp * s.dp % (s.ep * s.etp) == 0
    partial = s.recompute is Recompute.FULL or s.recompute_layers == 0
    return [
        Check(
            name="degrees-multiply-to-the-world",
            holds=s.world == cluster.num_devices,
            detail=f"{s.tp} x {s.cp} x {s.dp} x {s.pp} = {s.world} of {cluster.num_devices} devices",
        ),
        Check(
            name="layers-sum-to-the-model",
            holds=sum(sizes) == layers and min(sizes) > 0,
            detail=f"{chunks} chunks of {min(sizes)} to {max(sizes)} layers, {sum(sizes)} of {layers}",
        ),
        Check(
            name="micro-batches-fill-the-global-batch",
            holds=job.global_batch % per_replica == 0,
            detail=f"{job.global_batch} = {s.dp} x {s.micro_batch} x {job.global_batch / per_replica:g}",
        ),
        Check(name="experts-fill-the-stage", holds=experts, detail=f"ep {s.ep} x etp {s.etp}"),
        Check(
            name="recomputed-layers-exist",
            holds=partial and s.recompute_layers <= -(-layers // s.pp),
            detail=f"{s.recompute_layers or 'all'} of {-(-layers // s.pp)} per rank"
            if s.recompute is Recompute.FULL
            else s.recompute.name.lower(),
        ),
    ]


def _sums(predicted: TrainingPrediction, min_probability: float) -> list[Check]:
    time_s = sum(predicted.time_parts_s.values())
    memory_bytes = sum(predicted.memory_parts_bytes.values())
    return [
        Check(
            name="time-parts-sum-to-the-step",
            holds=isclose(time_s, predicted.step_s, rel_tol=1e-9),
            detail=f"{time_s:.6g} s of {predicted.step_s:.6g} s",
        ),
        Check(
            name="memory-parts-sum-to-the-peak",
            holds=isclose(memory_bytes, predicted.peak_memory_bytes, rel_tol=1e-9),
            detail=f"{memory_bytes:.6g} bytes of {predicted.peak_memory_bytes:.6g} bytes",
        ),
        Check(
            name="interval-holds-the-step",
            holds=0 < predicted.step_low_s <= predicted.step_s <= predicted.step_high_s,
            detail=f"{predicted.step_low_s:.6g} to {predicted.step_high_s:.6g} s",
        ),
        Check(
            name="memory-fits",
            holds=predicted.fits_probability >= min_probability,
            detail=f"probability {predicted.fits_probability:.4f}, asked for {min_probability:g}",
        ),
    ]
