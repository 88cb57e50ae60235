"""The kernels, collectives and step that a training plan uses, as tasks to be measured."""

from costmodels.collectives.times import Collective
from costmodels.graph import Attention, Experts, Matmul, ModelGraph, Split
from costmodels.job import TrainingJob
from costmodels.parameters import rank_parameters
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.layer_costs import element_bytes
from hardware.errors import OutOfDomainError
from planner.emit.model_shape import model_shape
from planner.profiling.tasks import Task

__all__ = ["plan_tasks", "step_task"]


def plan_tasks(job: TrainingJob, strategy: Strategy) -> list[Task]:
    """Return one task per distinct shape that the plan runs, in no order that matters."""
    dtype = "fp32" if job.precision == "fp32" else "bf16"
    tokens = strategy.micro_batch * job.seq_len / strategy.cp
    found: dict[tuple[str, tuple[tuple[str, float], ...]], Task] = {}

    def add(task: Task) -> None:
        found.setdefault((task.kind, task.shape), task)

    for op in _operators(job.model):
        if isinstance(op, Matmul):
            wide = op.out_features / (strategy.tp if op.split is Split.COLUMN else 1)
            deep = op.in_features / (strategy.tp if op.split is Split.ROW else 1)
            rows = max(tokens * op.tokens_frac, 1.0)
            for m, n, k in ((rows, wide, deep), (rows, deep, wide), (deep, wide, rows)):
                add(Task.of("matmul", dtype, m=m, n=n, k=k))
        elif isinstance(op, Attention):
            heads = max(op.num_heads / strategy.tp, 1)
            shape = {
                "batch": strategy.micro_batch,
                "q_len": job.seq_len,
                "heads": heads,
                "kv_heads": max(op.num_kv_heads / strategy.tp, 1),
                "head_dim": op.head_dim,
            }
            add(Task.of("attention_forward", dtype, **shape))
            add(Task.of("attention_backward", dtype, **shape))
    for task in _collective_tasks(job, strategy, dtype, tokens):
        add(task)
    return list(found.values())


def _operators(model: ModelGraph) -> list[object]:
    operators = [op for block in model.blocks for op in block.operators] + list(model.outputs)
    if any(isinstance(op, Experts) for op in operators):
        message = f"{model.name} has routed experts; the kernels of experts cannot be run here yet"
        raise OutOfDomainError(message)
    return list(operators)


def _collective_tasks(job: TrainingJob, strategy: Strategy, dtype: str, tokens: float) -> list[Task]:
    tasks = []
    size = tokens * job.model.hidden * element_bytes(job.precision)
    if strategy.tp > 1:
        ops = (
            (Collective.REDUCE_SCATTER, Collective.ALL_GATHER)
            if strategy.sequence_parallel
            else (Collective.ALL_REDUCE,)
        )
        tasks += [Task.of(op.value, dtype, message_bytes=size, stride=1, degree=strategy.tp) for op in ops]
    if strategy.pp > 1:
        stride = strategy.tp * strategy.cp * strategy.dp
        tasks.append(Task.of("p2p", dtype, message_bytes=size, stride=stride, degree=2))
    if strategy.dp * strategy.cp > 1:
        table = ConfigTable.from_strategies([strategy])
        parameters = rank_parameters(job.model, table.tp, table.pp, table.ep, table.etp, table.vpp)
        dense = float(parameters.layers_max[0] * parameters.layer_dense[0])
        ends = float(max(parameters.first[0], parameters.last[0]))
        op = Collective.REDUCE_SCATTER if strategy.zero else Collective.ALL_REDUCE
        tasks.append(
            Task.of(
                op.value,
                "fp32",
                message_bytes=4.0 * (dense + ends),
                stride=strategy.tp,
                degree=strategy.dp * strategy.cp,
            )
        )
    return tasks


def step_task(job: TrainingJob, strategy: Strategy) -> Task:
    """Return the reference step that does what the plan does.

    Raises
    ------
    OutOfDomainError
        naming what of the model or the strategy the reference step cannot do.
    """
    shape = model_shape(job.model)
    cannot = [
        name
        for name, found in (
            ("routed experts", shape.num_experts),
            ("latent attention", shape.latent),
            ("gated feed-forward", shape.gated),
            ("RMS norms", shape.rms),
            ("grouped heads", shape.num_kv_heads != shape.num_heads),
            ("rotary positions", shape.rotary),
            ("windows", shape.window),
            ("context parallelism", strategy.cp > 1),
            ("interleaved stages", strategy.vpp > 1),
            ("sequence parallelism", strategy.sequence_parallel),
            ("sharded states", strategy.zero > 0),
            ("recomputation", strategy.recompute),
        )
        if found
    ]
    if cannot:
        message = f"the reference step cannot do {', '.join(cannot)}; kernels and collectives can be checked"
        raise OutOfDomainError(message)
    return Task.of(
        "step",
        "fp32" if job.precision == "fp32" else "bf16",
        hidden=shape.hidden,
        ffn_hidden=shape.ffn_hidden,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        vocab=shape.vocab,
        seq_len=job.seq_len,
        global_batch=job.global_batch,
        tp=strategy.tp,
        pp=strategy.pp,
        dp=strategy.dp,
        micro_batch=strategy.micro_batch,
    )
