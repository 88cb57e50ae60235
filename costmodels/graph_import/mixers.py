"""Mixers that carry a state along the sequence, as operators: Mamba, Mamba-2, gated delta nets."""

from dataclasses import dataclass

from costmodels.graph import Elementwise, Matmul, Norm, Operator, Split, StateSpace

__all__ = ["DeltaNetSpec", "MambaSpec", "delta_net_operators", "mamba_operators"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaSpec:
    """A Mamba mixer; version 2 when `num_groups` is set."""

    hidden: int
    inner: int
    state: int
    conv: int
    dt_rank: int = 0
    num_groups: int | None = None
    """Mamba-2: groups that share B and C; None is Mamba-1."""
    num_heads: int = 1
    bias: bool = False
    conv_bias: bool = True
    inner_norms: bool = False
    """RMS norms of dt, B and C (Jamba)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNetSpec:
    """A gated delta net (arXiv:2412.06464): each value head holds a state of key width by value width."""

    hidden: int
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv: int


def mamba_operators(spec: MambaSpec) -> tuple[Operator, ...]:
    """Return the Mamba mixer (arXiv:2312.00752, section 3.4; version 2: arXiv:2405.21060, section 7)."""
    return _mamba1(spec) if spec.num_groups is None else _mamba2(spec, spec.num_groups)


def _mamba1(spec: MambaSpec) -> tuple[Operator, ...]:
    conv_params = spec.inner * (spec.conv + (1 if spec.conv_bias else 0))
    norms = (
        Norm(name="dt_norm", features=spec.dt_rank),
        Norm(name="b_norm", features=spec.state),
        Norm(name="c_norm", features=spec.state),
    )
    return (
        Matmul(
            name="in_proj",
            in_features=spec.hidden,
            out_features=2 * spec.inner,
            split=Split.COLUMN,
            bias=spec.bias,
        ),
        Matmul(
            name="x_proj",
            in_features=spec.inner,
            out_features=spec.dt_rank + 2 * spec.state,
            split=Split.ROW,
        ),
        *(norms if spec.inner_norms else ()),
        Matmul(
            name="dt_proj", in_features=spec.dt_rank, out_features=spec.inner, split=Split.COLUMN, bias=True
        ),
        StateSpace(
            name="scan",
            inner=spec.inner,
            state=spec.state,
            conv=spec.conv,
            num_params=conv_params + spec.inner * spec.state + spec.inner,
        ),
        Matmul(
            name="out_proj",
            in_features=spec.inner,
            out_features=spec.hidden,
            split=Split.ROW,
            bias=spec.bias,
        ),
    )


def _mamba2(spec: MambaSpec, num_groups: int) -> tuple[Operator, ...]:
    conv_width = spec.inner + 2 * num_groups * spec.state
    conv_params = conv_width * (spec.conv + (1 if spec.conv_bias else 0))
    return (
        Matmul(
            name="in_proj",
            in_features=spec.hidden,
            out_features=spec.inner + conv_width + spec.num_heads,
            split=Split.COLUMN,
            bias=spec.bias,
        ),
        StateSpace(
            name="scan",
            inner=spec.inner,
            state=spec.state,
            conv=spec.conv,
            num_heads=spec.num_heads,
            num_params=conv_params + 3 * spec.num_heads,
        ),
        Norm(name="gated_norm", features=spec.inner, over_heads=True),
        Matmul(
            name="out_proj",
            in_features=spec.inner,
            out_features=spec.hidden,
            split=Split.ROW,
            bias=spec.bias,
        ),
    )


def delta_net_operators(spec: DeltaNetSpec) -> tuple[Operator, ...]:
    """Return projections, short convolution and scan, gated norm and output projection."""
    keys, values = spec.num_key_heads * spec.key_dim, spec.num_value_heads * spec.value_dim
    return (
        Matmul(
            name="in_proj",
            in_features=spec.hidden,
            out_features=2 * keys + 2 * values + 2 * spec.num_value_heads,
            split=Split.COLUMN,
        ),
        StateSpace(
            name="scan",
            inner=values,
            state=spec.key_dim,
            conv=spec.conv,
            num_heads=spec.num_value_heads,
            num_params=(2 * keys + values) * spec.conv + 2 * spec.num_value_heads,
        ),
        Norm(name="gated_norm", features=spec.value_dim, over_heads=True, copies=spec.num_value_heads),
        Elementwise(
            name="output_gate", reads=2 * values, writes=values, saved=2 * values, split=Split.COLUMN
        ),
        Matmul(name="out_proj", in_features=values, out_features=spec.hidden, split=Split.ROW),
    )
