import numpy as np
import pytest

from costmodels.kernels.attention import DECODE, score_area
from costmodels.kernels.data import MEASURED, load, surface
from costmodels.kernels.experts import active_experts
from costmodels.kernels.fit import TreeSettings, fit_physics, fit_surface, fit_trees, rows_held_out
from costmodels.kernels.machine import Machine, find_format
from costmodels.kernels.matmul import MATMUL, alignment_frac, matmul_bytes, matmul_physics_s
from costmodels.kernels.surface import Surface
from costmodels.kernels.trees import Trees

MACHINE = Machine(peak_flops_per_s=1e15, bytes_per_s=1e12, l2_bytes=0.0, num_sms=100.0)
WIDE = Machine(peak_flops_per_s=1e15, bytes_per_s=1e15, l2_bytes=0.0, num_sms=100.0)
IDEAL = {
    "compute_frac": 1.0, "tile_loss": 0.0, "tile_s": 0.0, "split_s": 0.0, "memory_frac": 1.0,
    "cache_share": 0.0, "cache_gain": 1.0, "sharpness": 8.0, "launch_s": 0.0, "host_s": 0.0,
}  # fmt: skip
BF16 = find_format("bf16")


def columns(**values: float) -> dict[str, np.ndarray]:
    return {name: np.array([value], dtype=float) for name, value in values.items()}


def test_one_full_wave_runs_at_peak() -> None:
    # 100 tiles of 256 x 128 on 100 units: 2 * 2560 * 1280 * 65536 FLOPs at 1e15 per second
    seconds = matmul_physics_s(columns(m=2560, n=1280, k=65536), WIDE, BF16, IDEAL)
    assert seconds[0] == pytest.approx(2 * 2560 * 1280 * 65536 / 1e15, rel=0.02)


def test_a_wave_with_one_tile_more_costs_more_than_its_share() -> None:
    options = IDEAL | {"tile_loss": 0.3}
    full, over = (
        matmul_physics_s(columns(m=m, n=1280, k=65536), WIDE, BF16, options)[0] for m in (2560, 2561)
    )
    assert over > 1.15 * full  # smaller tiles soften it


def test_memory_bound_matmul_moves_its_bytes() -> None:
    shape = columns(m=1, n=8192, k=8192)
    moved = matmul_bytes(shape, BF16)[0]
    assert moved == 2 * (8192 + 8192 * 8192 + 8192)
    assert matmul_physics_s(shape, MACHINE, BF16, IDEAL)[0] == pytest.approx(moved / 1e12, rel=0.05)


def test_alignment_grades() -> None:
    dims = np.array([4096.0, 1376.0, 1808.0, 1800.0, 1801.0])
    assert alignment_frac(dims).tolist() == [1.0, 0.95, 0.9, 0.8, 0.5]


def test_score_area_by_counting() -> None:
    for q_len, kv_len, window in ((5, 5, 0), (3, 7, 0), (6, 6, 2), (4, 9, 3), (1, 8, 5), (5, 9, 20)):
        count = 0
        for i in range(q_len):
            last = kv_len - q_len + i
            count += sum(1 for j in range(kv_len) if j <= last and (window == 0 or j > last - window))
        area = score_area(*(np.array([float(v)]) for v in (q_len, kv_len, 1, window)))
        assert area[0] == count


def test_a_window_that_keeps_heads_apart_walks_the_cache_once_per_query_head() -> None:
    shape = columns(batch=50, kv_len=4096, heads=8, kv_heads=2, head_dim=128, window=1024, kv_bytes=2)
    packs = dict.fromkeys(DECODE.start, 1e-15) | {"sharpness": 12.0, "cache_share": 0.0, "memory_frac": 1.0}
    packs["compute_frac"] = 1.0
    apart = packs | {"block_s": 1e-6}
    fast = Machine(peak_flops_per_s=1e20, bytes_per_s=1e20, l2_bytes=0.0, num_sms=100.0)
    # 400 pieces on 100 units: 4 rounds of 1024 / 128 blocks and half a block to begin
    assert DECODE.physics(shape, fast, BF16, apart)[0] == pytest.approx(4 * 8.5e-6, rel=1e-3)
    slow = Machine(peak_flops_per_s=1e20, bytes_per_s=1e9, l2_bytes=0.0, num_sms=100.0)
    # two of the four heads that share a key head run beside each other: its cache is read twice
    cache_s, vectors_s = (n / 1e9 for n in (50 * 1024 * 2 * 2 * 128 * 2, 4 * 50 * 8 * 128))
    assert DECODE.physics(shape, slow, BF16, packs)[0] == pytest.approx(cache_s + vectors_s, rel=1e-3)
    assert DECODE.physics(shape, slow, BF16, apart)[0] == pytest.approx(2 * cache_s + vectors_s, rel=1e-3)
    for other in (columns(window=0), columns(kv_bytes=1)):
        same = shape | other
        assert DECODE.physics(same, slow, BF16, apart) == DECODE.physics(same, slow, BF16, packs)


def test_active_experts_at_its_limits() -> None:
    few = active_experts(np.array([8.0]), np.array([256.0]), np.array([0.0]))
    many = active_experts(np.array([1e6]), np.array([256.0]), np.array([0.0]))
    skewed = active_experts(np.array([256.0]), np.array([256.0]), np.array([1.2]))
    even = active_experts(np.array([256.0]), np.array([256.0]), np.array([0.0]))
    assert few[0] == pytest.approx(8.0, rel=0.05)
    assert many[0] == pytest.approx(256.0)
    assert skewed[0] < even[0]


def test_exported_trees_repeat_scikit_learn() -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    rng = np.random.default_rng(3)
    features = rng.normal(size=(400, 5))
    target = features[:, 0] * features[:, 1] + np.sin(features[:, 2])
    options = TreeSettings(num_trees=20, depth=4)
    trees = fit_trees(features, target, options)
    model = HistGradientBoostingRegressor(
        max_iter=20, max_depth=4, max_leaf_nodes=16, learning_rate=options.learning_rate, random_state=0,
        min_samples_leaf=options.min_rows_per_leaf, l2_regularization=options.l2, early_stopping=False,
        max_features=options.features_frac,
    )  # fmt: skip
    expected = model.fit(features.astype(np.float32), target).predict(features.astype(np.float32))
    np.testing.assert_allclose(trees.predict(features), expected, atol=1e-9)
    back = Trees.from_json(trees.to_json())
    np.testing.assert_allclose(back.predict(features), expected, atol=5e-3)


def _synthetic(rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(5)
    shape = {c: 2.0 ** rng.integers(5, 14, rows) for c in ("m", "n", "k")}
    truth = IDEAL | {"compute_frac": 0.7, "memory_frac": 0.6, "launch_s": 4e-6, "tile_s": 1e-6}
    return shape, matmul_physics_s(shape, MACHINE, BF16, truth)


def test_deep_trees_of_few_leaves_for_the_relative_error_repeat_scikit_learn_too() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 4)).astype(np.float32).astype(np.float64)
    target = np.where(x[:, 0] > 1.0, x[:, 1], 0.0) + np.where(rng.random(600) < 0.05, 1.0, 0.0)
    settings = TreeSettings(num_trees=60, depth=7, num_leaves=12, smoothing=0.05, learning_rate=0.2)
    trees = fit_trees(x, target, settings)
    assert trees.value.shape == (60, 2**7)
    assert max(len(np.unique(leaves)) for leaves in trees.value) <= 12
    clean = np.where(x[:, 0] > 1.0, x[:, 1], 0.0)
    assert np.abs(trees.predict(x) - clean).mean() < 0.1


def test_a_fit_recovers_the_physics_that_made_the_samples() -> None:
    shape, seconds = _synthetic(300)
    found = fit_physics(MATMUL, shape, seconds, MACHINE, BF16)
    again = matmul_physics_s(shape, MACHINE, BF16, found)
    assert np.median(np.abs(again / seconds - 1)) < 0.03


def test_repeats_of_a_shape_are_held_out_together() -> None:
    shape, seconds = _synthetic(150)
    seconds = seconds * 1.5 ** np.random.default_rng(2).choice([-1.0, 1.0], 150)
    shape = {name: np.repeat(column, 2) for name, column in shape.items()}
    seconds, options = (
        np.repeat(seconds, 2),
        TreeSettings(num_trees=30, learning_rate=0.3, min_rows_per_leaf=1, l2=0.0),
    )
    groups = np.arange(300).astype(str)  # every row alone: repeats are seen
    fitted = fit_surface(MATMUL, shape, seconds, MACHINE, BF16, groups=groups, settings=options)
    held = rows_held_out(fitted.surface, shape, seconds, settings=options)
    assert fitted.held_out["median_ape_frac"] < 0.1 < np.median(np.abs(held / seconds - 1.0))


def test_a_surface_survives_its_file_and_fades_outside_its_box() -> None:
    shape, seconds = _synthetic(200)
    groups = np.array([f"{n:g}x{k:g}" for n, k in zip(shape["n"], shape["k"], strict=True)])
    options = TreeSettings(num_trees=10, depth=3)
    fitted = fit_surface(MATMUL, shape, seconds, MACHINE, BF16, groups=groups, settings=options)
    back = Surface.from_json(
        fitted.surface.to_json(), family=MATMUL, fmt=BF16, machine=MACHINE, measured=True
    )
    np.testing.assert_allclose(
        back.predict(shape, MACHINE, BF16).seconds,
        fitted.surface.predict(shape, MACHINE, BF16).seconds,
        rtol=0.01,
    )
    assert back.trust(shape).min() == pytest.approx(1.0, abs=1e-3)
    far = {name: column * 1e4 for name, column in shape.items()}
    assert back.trust(far).max() < 1e-4


@pytest.mark.parametrize("name", [*MEASURED, "generic"])
def test_every_surface_says_where_it_comes_from(name: str) -> None:
    data = load(name)
    for key, entry in data["surfaces"].items():
        family, dtype = key.split("/")
        found = surface(name, family, dtype)
        assert found is not None
        assert {"samples", "held_out_by"} <= set(entry["provenance"])
        if name != "generic":
            assert {"sha256", "date", "num_samples", "range", "held_out"} <= set(entry["provenance"])
