"""Parameters that one rank holds, by tensor-, pipeline- and expert-parallel degree.

Experts are divided over ``ep * etp`` ranks and reduced over their own data-parallel group; norms, routers
and other replicated weights are whole on every tensor rank.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.graph import Experts, Matmul, ModelGraph, Operator, Split

__all__ = ["RankParameters", "rank_parameters"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RankParameters:
    """Parameter counts of one rank, a column per kind; one row per combination of degrees."""

    layer_dense: Floats
    """Of one layer (mean over layers), without routed experts."""
    layer_expert: Floats
    """Routed experts of one layer (mean over layers)."""
    first: Floats
    """Token and position embeddings."""
    last: Floats
    """Final norm and head; a tied head counts here when the stages differ."""
    tied: Floats
    """The head that the first and the last stage both hold; zero where it is not tied, or on one stage."""
    layers_max: Floats
    """Layers of the fullest stage."""
    layers_mean: Floats


def _dense_share(op: Operator, tp: Ints) -> Floats:
    if isinstance(op, Experts):
        return np.full(len(tp), float(op.num_router_params))
    split = getattr(op, "split", Split.NONE)
    if split is Split.NONE:
        return np.full(len(tp), float(op.num_params))
    if isinstance(op, Matmul) and split is Split.ROW and op.bias:
        weight = op.in_features * op.out_features
        return weight / tp + float(op.out_features)
    return op.num_params / tp


def rank_parameters(model: ModelGraph, tp: Ints, pp: Ints, ep: Ints, etp: Ints, vpp: Ints) -> RankParameters:
    """Return parameter counts of one rank. All columns have shape (rows,)."""
    counts = np.bincount(np.asarray(model.layers), minlength=len(model.blocks))
    dense = np.zeros(len(tp))
    expert = np.zeros(len(tp))
    for block, count in zip(model.blocks, counts, strict=True):
        share = float(count) / model.num_layers
        for op in block.operators:
            dense += share * _dense_share(op, tp)
            if isinstance(op, Experts):
                expert += share * op.num_experts * op.num_params_per_expert / (ep * etp)
    first = np.zeros(len(tp))
    for op in model.inputs:
        first += _dense_share(op, tp)
    last, tied = np.zeros(len(tp)), np.zeros(len(tp))
    for op in model.outputs:
        share_here = _dense_share(op, tp)
        tied_here = model.tied_head and isinstance(op, Matmul)
        last += np.where(tied_here & (pp == 1), 0.0, share_here)
        tied += np.where(tied_here & (pp > 1), share_here, 0.0)
    chunks = pp * vpp
    return RankParameters(
        layer_dense=dense,
        layer_expert=expert,
        first=first,
        last=last,
        tied=tied,
        layers_max=np.ceil(model.num_layers / chunks) * vpp,
        layers_mean=model.num_layers / pp.astype(np.float64),
    )
