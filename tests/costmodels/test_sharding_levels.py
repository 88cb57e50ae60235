"""Full sharding at several borders: bytes by hand, limits, and what Frontier makes of it."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.collectives.times import Collective, collective_s
from costmodels.job import TrainingJob
from costmodels.models import find_model
from costmodels.sharding_levels import ShardLevels, level_costs
from costmodels.strategy import ConfigTable, Recompute, Strategy
from hardware.catalog import find_cluster

CLUSTER = find_cluster("frontier", 48)
JOB = TrainingJob(
    model=find_model("llama-2-13b"), seq_len=2048, global_batch=384, stack="deepspeed-zero3-2021"
)
TABLE = ConfigTable.from_strategies([Strategy(dp=384, zero=3, recompute=Recompute.FULL)])
WORLD = ShardLevels(weight_ranks=384, backward_ranks=384, gradient_ranks=384, optimizer_ranks=384)
THREE = ShardLevels(weight_ranks=2, backward_ranks=2, gradient_ranks=8, optimizer_ranks=384)


def test_states_are_divided_where_the_levels_say():
    params = JOB.model.num_params
    memory = level_costs(JOB, CLUSTER, TABLE, [THREE]).memory
    assert memory.weights_bytes[0] == pytest.approx(2.0 * params / 2)
    assert memory.optimizer_bytes[0] == pytest.approx(12.0 * params / 384)
    assert memory.gradients_bytes[0] * 8 / params in (2.0, 4.0)


def test_a_second_copy_is_held_and_saves_the_backward_gather():
    copied = replace(WORLD, backward_ranks=8)
    plain, second = (level_costs(JOB, CLUSTER, TABLE, [levels]) for levels in (WORLD, copied))
    extra = second.memory.weights_bytes[0] - plain.memory.weights_bytes[0]
    assert extra == pytest.approx(2.0 * JOB.model.num_params / 8)
    assert second.dp_comm_s[0] < plain.dp_comm_s[0]


def test_three_levels_beat_the_world_and_packed_bytes_beat_both():
    world, three = (float(level_costs(JOB, CLUSTER, TABLE, [x]).step_s[0]) for x in (WORLD, THREE))
    packed = float(level_costs(JOB, CLUSTER, TABLE, [replace(THREE, quantized=True)]).step_s[0])
    assert packed < three < world


def test_packing_is_paid_in_passes_over_memory():
    """Inside one package packed and plain differ by the wire and by the passes, both by hand."""
    from costmodels.kernels.times import kernel_model
    from costmodels.stacks import find_stack

    pair = ShardLevels(weight_ranks=2, backward_ranks=2, gradient_ranks=2, optimizer_ranks=2)
    cluster, stack = find_cluster("frontier", 1), find_stack(JOB.stack)
    table = ConfigTable.from_strategies([Strategy(dp=2, zero=3, recompute=Recompute.FULL, overlap_dp=False)])
    job = replace(JOB, global_batch=2)
    plain, packed = (level_costs(job, cluster, table, [x]) for x in (pair, replace(pair, quantized=True)))
    layer = 12.7e9 / 40
    moved = layer * (2 * 3.0 * 1.5 + 2.0 * 1.5 + 1.0)
    passes = 40 * kernel_model(cluster.device).memory_s(moved) * stack.vector
    two, one = np.array([2]), np.array([1])
    saved = (
        40
        * stack.dp_comm
        * sum(
            times * collective_s(op, np.array([layer * size]), one, two, cluster.levels)[0]
            for op, times, size in (
                (Collective.ALL_GATHER, 2, 2.0),
                (Collective.ALL_GATHER, -2, 1.0),
                (Collective.REDUCE_SCATTER, 1, 2.0),
                (Collective.REDUCE_SCATTER, -1, 0.5),
            )
        )
    )
    found = float(packed.dp_comm_s[0] - plain.dp_comm_s[0])
    assert found == pytest.approx(float(passes) - saved, rel=0.05)


def test_one_level_of_one_rank_moves_nothing_within_a_step():
    """Nothing sharded but the optimizer: one reduction and one gather per step, by hand."""
    levels = ShardLevels(weight_ranks=1, backward_ranks=1, gradient_ranks=1, optimizer_ranks=384)
    from costmodels.stacks import find_stack

    params = float(JOB.model.num_params)
    degree, stride = np.array([384]), np.array([1])
    expected = sum(
        collective_s(op, np.array([2.0 * params]), stride, degree, CLUSTER.levels)[0]
        for op in (Collective.REDUCE_SCATTER, Collective.ALL_GATHER)
    )
    found = level_costs(JOB, CLUSTER, TABLE, [levels]).dp_comm_s[0]
    assert found == pytest.approx(expected * find_stack(JOB.stack).dp_comm)


def test_rows_do_not_depend_on_their_order():
    rows = [
        Strategy(dp=384, zero=3, micro_batch=1, recompute=recompute)
        for recompute in (Recompute.NONE, Recompute.FULL)
    ]
    forward = level_costs(JOB, CLUSTER, ConfigTable.from_strategies(rows), [THREE, THREE]).step_s
    back = level_costs(JOB, CLUSTER, ConfigTable.from_strategies(rows[::-1]), [THREE, THREE]).step_s
    assert forward.tolist() == back[::-1].tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_ranks": 8, "backward_ranks": 3},
        {"weight_ranks": 16, "optimizer_ranks": 8},
        {"gradient_ranks": 5},
        {"weight_ranks": 0},
    ],
)
def test_groups_that_do_not_nest_are_refused(wrong):
    with pytest.raises(ValueError, match="inside each other"):
        replace(THREE, **wrong)
