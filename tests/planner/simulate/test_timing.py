import gzip
from pathlib import Path

import numpy as np
import pytest

from costmodels.graph_import.transformer import transformer_graph
from hardware.errors import InputError, SpecError
from planner.simulate.fleet_entries import EngineEntry, FleetFile, PoolEntry
from planner.simulate.fleet_file import fleet_from_file
from planner.simulate.layer_profile import read_layer_profile
from planner.simulate.profiled_engine import measured_timer
from planner.simulate.step_table import batch_exponent, step_table_timer
from planner.simulate.timing import GridTimer, Load, Skew


def smooth(prompt, context, num_seqs, kv):
    tokens = prompt + num_seqs
    return 5e-3 + 1e-5 * tokens + 2e-8 * kv + 1e-9 * prompt * (context + prompt / 2)


def test_grid_is_close_to_the_function_it_samples() -> None:
    timer = GridTimer(smooth)
    rng = np.random.default_rng(0)
    for _ in range(200):
        num_seqs, kv = int(rng.integers(1, 300)), float(rng.integers(16, 4000))
        exact = smooth(0.0, 0.0, num_seqs, num_seqs * kv)
        assert timer.decode_s(num_seqs, num_seqs * kv) == pytest.approx(exact, rel=1e-3)
        chunk, context = int(rng.integers(1, 2048)), float(rng.integers(0, 8000))
        load = Load(
            prefill_tokens=chunk,
            prefill_pairs=chunk * (context + 0.5 * (chunk + 1)),
            num_seqs=num_seqs,
            kv_tokens=num_seqs * kv,
        )
        exact = smooth(chunk, context, num_seqs, num_seqs * kv)
        assert timer.step_s(load) == pytest.approx(exact, rel=0.03)


def test_a_staircase_of_tiles_is_followed_whatever_decodes_beside() -> None:
    def seconds(prompt, context, num_seqs, kv_tokens):
        return 1e-3 * np.ceil((prompt + num_seqs) / 128) + 1e-9 * (prompt * context + kv_tokens)

    timer = GridTimer(seconds)
    for tokens in (70, 100, 700, 900, 1500, 1900):
        for num_seqs in (0, 1, 8, 45, 100):
            load = Load(
                prefill_tokens=tokens,
                prefill_pairs=tokens * (300 + 0.5 * (tokens + 1)),
                num_seqs=num_seqs,
                kv_tokens=700.0 * num_seqs,
            )
            exact = seconds(*(np.array([x], dtype=float) for x in (tokens, 300, num_seqs, 700 * num_seqs)))
            if (tokens + num_seqs) % 128 > 16:
                assert timer.step_s(load) == pytest.approx(float(exact[0]), rel=1e-3), (tokens, num_seqs)


def test_times_do_not_depend_on_what_was_asked_before() -> None:
    engine = EngineEntry(model="llama-3.1-8b", device="h100", tp=2)
    loads = [
        Load(prefill_tokens=n, prefill_pairs=float(n * n), num_seqs=b, kv_tokens=b * kv, longest_kv=2 * kv)
        for n, b, kv in ((100, 3, 90), (700, 40, 900), (2000, 30, 1500), (64, 200, 3000), (300, 0, 0))
    ]
    answers = []
    for order in (loads, loads[::-1]):
        spec = fleet_from_file(FleetFile(pools=(PoolEntry(name="a", engine=engine),))).pools[0].engine
        found = {id(load): spec.timer.step_s(load) for load in order}
        answers.append([found[id(load)] for load in loads])
    assert answers[0] == answers[1]


def test_unequal_lengths_lie_between_mean_and_longest() -> None:
    skew = Skew(num_sms=100, num_heads=32, num_kv_heads=8)
    timer = GridTimer(smooth, skew=skew)
    even = timer.decode_s(64, 64 * 1000.0)
    uneven = timer.decode_s(64, 64 * 1000.0, 4000.0)
    longest = timer.decode_s(64, 64 * 4000.0)
    assert even < uneven < longest
    # 64 x 8 blocks in rounds of 200: 0.105 / 2.56.
    assert (uneven - even) / (longest - even) == pytest.approx(0.105 / 2.56)


def write_profile(folder: Path) -> Path:
    tables = {
        "dense": ["layer,tokens,time_us"]
        + [f"{n},{t},{10 + 0.1 * t}" for n in ("qkv_proj", "o_proj", "layernorm") for t in (1, 64, 2048)],
        "per_sequence": ["layer,sequences,time_us", "lm_head,1,100", "lm_head,256,100"],
        "attention": ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"],
    }
    rows = tables["attention"]
    for c in (0, 16, 256):
        for h in (0, 1024) if c else (0,):
            for n in (0, 1, 64):
                for kv in (16, 1024) if n else (0,):
                    if c or n:
                        both = 1.5 if c and n else 1.0
                        rows.append(
                            f"{c},{h},{n},{kv},{both * (c * 0.1 + h * 0.01 + n * 0.5 + n * kv * 1e-3)}"
                        )
    for name, lines in tables.items():
        (folder / f"gpu_{name}.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder / "gpu"


def model():
    return transformer_graph(
        name="tiny", hidden=64, ffn_hidden=128, num_layers=10, num_heads=4, num_kv_heads=2, vocab=100
    )


def test_layer_tables_add_up_to_an_iteration(tmp_path: Path) -> None:
    timer = measured_timer(read_layer_profile(write_profile(tmp_path)), model())
    # 10 layers of qkv, o and two norms at 64 tokens, attention of 64 x 1024, and the head.
    layer = 4 * (10 + 6.4) + 64 * 0.5 + 64 * 1024 * 1e-3
    assert timer.decode_s(64, 64 * 1024.0) == pytest.approx((10 * layer + 100) * 1e-6, rel=1e-3)
    mixed = Load(prefill_tokens=256, prefill_pairs=256 * 128.5, num_seqs=64, kv_tokens=65536.0)
    layer = 4 * (10 + 32.0) + 1.5 * (25.6 + 32 + 65.536)
    assert timer.step_s(mixed) == pytest.approx((10 * layer + 100) * 1e-6, rel=0.02)


def test_profiles_on_several_devices_need_a_link(tmp_path: Path) -> None:
    profile = read_layer_profile(write_profile(tmp_path))
    with pytest.raises(SpecError, match="reduce_bytes_per_s"):
        measured_timer(profile, model(), tp=2)
    one = measured_timer(profile, model())
    two = measured_timer(profile, model(), tp=2, link_bytes_per_s=1e9, link_latency_s=1e-5)
    # Two reductions a layer: 10 us and 64 tokens x 64 x 2 B at 1 GB/s, over one link each way.
    extra = 10 * 2 * (1e-5 + 64 * 64 * 2 / 1e9)
    assert two.decode_s(64, 6400.0) - one.decode_s(64, 6400.0) == pytest.approx(extra, rel=1e-3)


def test_missing_and_broken_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gpu_attention"):
        read_layer_profile(tmp_path / "gpu")
    prefix = write_profile(tmp_path)
    (tmp_path / "gpu_dense.csv.gz").write_bytes(gzip.compress(b"layer,tokens\nqkv_proj,1\n"))
    with pytest.raises(SpecError, match="column time_us is missing"):
        read_layer_profile(prefix)


def test_step_table_is_reproduced_and_bad_batches_are_left_out() -> None:
    rows = [
        {
            "prompt_size": "512",
            "batch_size": str(b),
            "token_size": "0",
            "prompt_time": str(p),
            "token_time": str(t),
        }
        for b, p, t in ((1, 50, 20), (8, 400, 24), (64, 3200, 40), (128, 100, 10))
    ]
    rows.append(dict(rows[0], prompt_size="4096", prompt_time="450", token_time="25"))
    timer = step_table_timer(rows)
    for batch, time_ms in ((1, 20), (8, 24), (64, 40)):
        assert timer.decode_s(batch, batch * 512.0) == pytest.approx(time_ms * 1e-3, rel=0.01)
    assert timer.decode_s(1, 4096.0) == pytest.approx(0.025, rel=0.01)
    assert timer.decode_s(64, 64 * 4096.0) > 0.1


def test_batches_beyond_a_step_table_go_on_bending() -> None:
    def rows(batches: tuple[int, ...]) -> list[dict[str, str]]:
        values = [(b, 50 * b, 20 + 0.02 * b**1.5) for b in batches]
        names = ("batch_size", "prompt_time", "token_time")
        return [
            {"prompt_size": "512", "token_size": "0", **{n: str(v) for n, v in zip(names, row, strict=True)}}
            for row in values
        ]

    found = batch_exponent([rows((1, 8, 32, 64)), rows((1, 2, 4, 16))])
    assert found == pytest.approx(1.5, abs=0.005)
    timer = step_table_timer(rows((1, 8, 32)), batch_exponent=found)
    assert timer.decode_s(64, 64 * 512.0) == pytest.approx(0.02 + 0.02e-3 * 64**1.5, rel=1e-3)


def test_expert_layers_see_the_tokens_of_all_ranks(tmp_path: Path) -> None:
    prefix = write_profile(tmp_path)
    rows = ["tokens,activated_experts,time_us"]
    rows += [f"{t},{e},{t * 0.1 + e * 10}" for t in (1, 64, 2048) for e in (1, 8, 16)]
    (tmp_path / "gpu_moe.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    mixture = transformer_graph(
        name="tiny-moe",
        hidden=64,
        ffn_hidden=128,
        num_layers=10,
        num_heads=4,
        num_kv_heads=2,
        vocab=100,
        num_experts=16,
        top_k=2,
        expert_ffn_hidden=32,
    )
    profile = read_layer_profile(prefix)
    timer = measured_timer(profile, mixture, dp=2, ep=2, link_bytes_per_s=1e9, link_latency_s=1e-5)
    alone = Load(num_seqs=64, kv_tokens=6400.0)
    idle = Load()
    both = timer.lockstep_s([alone, alone])
    one = timer.lockstep_s([alone, idle])
    # 128 tokens reach all 8 local experts; each device computes half of all choices. Two exchanges a layer.
    experts = 64 * 0.1e-6 + 80e-6 + 2 * (1e-5 + 0.5 * 128 * 64 * 2 / 1e9)
    own = timer.decode_s(64, 6400.0) - 10 * (32 * 0.1e-6 + 80e-6 + 2 * (1e-5 + 0.5 * 64 * 64 * 2 / 1e9))
    assert both == pytest.approx(own + 10 * experts, rel=2e-3)
    assert one < both
