"""What is checked of every finished plan, against the request and not against the search that made it."""

from math import isclose

from costmodels.job import TrainingJob
from costmodels.layer_split import MOST_STAND_INS, chunk_layers
from costmodels.strategy import Recompute, Strategy
from hardware.cluster import Cluster
from planner.plan import Check, Placement, TrainingPrediction
from planner.training.plan_checks import parts_check, seats_check
from planner.training.space_rules import ModelLimits, model_limits

__all__ = ["shape_checks", "training_certificate"]


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
    checks = [*shape_checks(strategy, job, cluster), *_sums(predicted, min_probability)]
    return (*checks, seats_check(placement, strategy.world))


def shape_checks(strategy: Strategy, job: TrainingJob, cluster: Cluster) -> list[Check]:
    """Return whether the degrees fill the cluster and divide what they must divide."""
    s = strategy
    return [
        Check(
            name="degrees-multiply-to-the-world",
            holds=s.world == cluster.num_devices,
            detail=f"tp {s.tp} x cp {s.cp} x dp {s.dp} x pp {s.pp} = {s.world} of {cluster.num_devices}",
        ),
        *_model_checks(s, model_limits(job.model)),
        *_batch_checks(s, job),
    ]


def _divides(name: str, degree: int, number: int, what: str) -> Check:
    return Check(name=name, holds=number % degree == 0, detail=f"{degree} in {number} {what}")


def _model_checks(s: Strategy, limits: ModelLimits) -> list[Check]:
    layers, chunks = limits.num_layers, s.pp * s.vpp
    sizes = chunk_layers(layers, chunks)
    even = max(sizes) * chunks - layers <= MOST_STAND_INS
    filled = sum(sizes) == layers and min(sizes) > 0 and (s.vpp == 1 or even)
    checks = [
        Check(
            name="layers-sum-to-the-model",
            holds=filled,
            detail=f"{chunks} chunks of {min(sizes)} to {max(sizes)} layers, {sum(sizes)} of {layers}",
        ),
        _divides("tp-divides-heads", s.tp, limits.heads, "heads"),
        _divides("tp-divides-features", s.tp, limits.features, "features"),
    ]
    for heads in limits.kv_heads:
        legal = heads % s.tp == 0 or s.tp % heads == 0
        detail = f"{s.tp} in {heads} key-value heads, or a multiple"
        checks.append(Check(name="tp-divides-kv-heads", holds=legal, detail=detail))
    if limits.experts:
        checks.append(_divides("ep-divides-experts", s.ep, limits.experts, "experts"))
        checks.append(_divides("etp-divides-expert-features", s.etp, limits.expert_features, "features"))
        ranks = s.tp * s.cp * s.dp
        checks.append(_divides("experts-divide-the-stage", s.ep * s.etp, ranks, "ranks of a stage"))
    elif s.ep * s.etp > 1:
        detail = f"ep {s.ep}, etp {s.etp} for a model without experts"
        checks.append(Check(name="ep-divides-experts", holds=False, detail=detail))
    per_rank = -(-layers // s.pp)
    if s.recompute_layers:
        detail = f"{s.recompute_layers} of {per_rank} layers per rank, recompute {s.recompute.name.lower()}"
        legal = s.recompute is Recompute.FULL and s.recompute_layers <= per_rank
        checks.append(Check(name="recomputed-layers-exist", holds=legal, detail=detail))
    return checks


def _batch_checks(s: Strategy, job: TrainingJob) -> list[Check]:
    per_round = s.dp * s.micro_batch
    rounds = job.global_batch // per_round
    checks = [
        _divides("global-batch-divisible", per_round, job.global_batch, "sequences of the global batch"),
        _divides("tokens-divide-tp", s.tp if s.sequence_parallel else 1, job.seq_len // s.cp, "tokens"),
    ]
    if s.cp > 1:
        checks.append(_divides("cp-splits-the-sequence", 2 * s.cp, job.seq_len, "tokens of a sequence"))
    if s.vpp > 1:
        name = "microbatches-multiple-of-pp-for-interleaving"
        checks.append(_divides(name, s.pp, rounds, "micro-batches"))
    if s.shard_group:
        replicas = s.dp * s.cp
        checks.append(_divides("shard-group-divides-replicas", s.shard_group, replicas, "replicas"))
    return checks


def _sums(predicted: TrainingPrediction, min_probability: float) -> list[Check]:
    memory_bytes = sum(predicted.memory_parts_bytes.values())
    return [
        parts_check(predicted),
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
