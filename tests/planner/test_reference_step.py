import json
import sys
from pathlib import Path

import pytest

from planner.profiling.launch import run_ranks

pytest.importorskip("torch", reason="the reference step needs torch")

SHAPE = {
    "hidden": 32, "ffn_hidden": 64, "num_layers": 4, "num_heads": 4, "vocab": 64, "seq_len": 8,
    "global_batch": 8, "micro_batch": 2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cut", [{"tp": 2}, {"pp": 2}, {"dp": 2}, {"tp": 2, "pp": 2}, {"pp": 2, "dp": 2}])
def test_gradients_are_those_of_one_rank(cut: dict[str, int], tmp_path: Path) -> None:
    ranks = cut.get("tp", 1) * cut.get("pp", 1) * cut.get("dp", 1)
    out = tmp_path / "errors"
    run_ranks(
        [sys.executable, "-m", "tests.planner.reference_worker", json.dumps({**SHAPE, **cut}), str(out)],
        ranks,
        timeout_s=120,
    )
    for rank in range(ranks):
        errors = json.loads(out.with_suffix(f".{rank}").read_text(encoding="utf-8"))
        assert max(errors) < 1e-3
