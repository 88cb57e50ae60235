import itertools

import numpy as np
import pytest

from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from costmodels.layer_split import chunk_layers
from costmodels.strategy import ConfigTable
from costmodels.training.evaluate import evaluate
from tests.costmodels.cases import cluster


@pytest.mark.parametrize(("layers", "chunks"), [*itertools.product((1, 2, 7, 24, 126), (1, 2, 3, 7, 16))])
def test_chunks_sum_to_the_model_and_differ_by_one_layer_at_most(layers: int, chunks: int) -> None:
    sizes = chunk_layers(layers, chunks)
    assert len(sizes) == chunks
    assert sum(sizes) == layers
    assert max(sizes) - min(sizes) <= 1


def test_the_chunk_with_the_head_is_the_first_to_lack_a_layer() -> None:
    assert chunk_layers(7, 4) == (2, 2, 2, 1)
    assert chunk_layers(126, 64) == (1, *[2] * 62, 1)


def test_a_head_no_longer_than_the_layer_that_its_stage_lacks_costs_no_pace() -> None:
    # A small vocabulary: 31 layers on 4 stages take what 32 take, but for the end of the pipeline.
    def step(layers: int, vocab: int) -> float:
        model = transformer_graph(
            name="m", hidden=4096, ffn_hidden=16384, num_layers=layers, num_heads=32, vocab=vocab
        )
        job = TrainingJob(model=model, seq_len=2048, global_batch=64)
        table = ConfigTable.from_columns(pp=np.array([4]), tp=2, dp=1, sequence_parallel=1, overlap_tp=1)
        cost = evaluate(job, cluster(1), table)
        return float(cost.step_s[0])

    small, large = 1024, 128000
    assert step(31, small) < step(32, small)
    saved = step(32, large) - step(31, large)
    assert saved > 10 * (step(32, small) - step(31, small))
