from dataclasses import replace

import numpy as np
import pytest

from costmodels.graph import Attention
from costmodels.kernels.times import kernel_model
from costmodels.training.ring_attention import ring_attention_s
from hardware.catalog import find_device

CAUSAL = Attention(name="core", num_heads=32, num_kv_heads=8, head_dim=128, value_dim=128, causal=True)


def seconds(op=CAUSAL, *, cp, seq_len, batch=1, backward=False):
    cp = np.atleast_1d(cp)
    ones = np.ones(len(cp))
    return ring_attention_s(
        op,
        kernel_model(find_device("h100")),
        cp=cp,
        batch=batch * ones,
        seq_len=seq_len * ones,
        heads=32 * ones,
        kv_heads=8 * ones,
        backward=backward,
    )


@pytest.mark.parametrize("backward", [False, True])
def test_a_ring_of_one_is_the_kernel_itself_among_others_too(backward):
    alone = seconds(cp=1, seq_len=8192, backward=backward)
    among = seconds(cp=np.array([1, 2, 4]), seq_len=8192, backward=backward)
    assert among[0] == pytest.approx(alone[0])
    assert np.all(np.diff(among) < 0)


@pytest.mark.parametrize("backward", [False, True])
def test_a_ring_saves_most_of_its_share_on_long_sequences_and_little_on_short_ones(backward):
    def gain(seq_len):
        whole, half = seconds(cp=np.array([1, 2]), seq_len=seq_len, backward=backward)
        return whole / half

    assert 1.7 < gain(65536) <= 2.0
    assert gain(1024) < gain(65536)


@pytest.mark.parametrize("backward", [False, True])
def test_dividing_the_batch_is_never_slower_than_dividing_the_sequence(backward):
    ring = seconds(cp=4, seq_len=4096, batch=4, backward=backward)
    assert seconds(cp=1, seq_len=4096, backward=backward) < ring


def test_a_window_is_divided_evenly():
    op = replace(CAUSAL, window=1024)
    whole, half = seconds(op, cp=np.array([1, 2]), seq_len=8192)
    assert half == pytest.approx(whole / 2)
