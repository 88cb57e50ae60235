import numpy as np
import pytest

from costmodels.training.step_time import _shared_bubble_frac


@pytest.mark.parametrize(
    ("pp", "micro", "shared", "left"),
    [
        (4, 8, 1.0, 1.0),  # a processor each: the whole bubble
        (2, 8, 2.0, 0.0),  # two stages on one processor always keep it busy
        (4, 8, 2.0, 0.5 / 3),  # 2 * (1/2 + 1/2 + 3/4) - 3 slots of 3
        (4, 1, 2.0, 1 / 3),  # four slots at double speed, less the one of work
        (4, 1, 4.0, 0.0),
    ],
)
def test_a_bubble_shrinks_when_others_use_the_processor(
    pp: float, micro: float, shared: float, left: float
) -> None:
    found = _shared_bubble_frac(np.array([float(pp)]), np.array([float(micro)]), shared)
    assert found[0] == pytest.approx(left)
