"""Operators from counts over a whole example: each count is divided by the example's tokens."""

from costmodels.graph import Elementwise, Generic

__all__ = ["vector_operator", "work_operator"]


def work_operator(
    name: str, *, flops: float, read: float, written: float, num_params: int, num_tokens: int
) -> Generic:
    """Return an operator that computes `flops` and keeps what it reads for backward."""
    return Generic(
        name=name,
        flops=flops / num_tokens,
        reads=read / num_tokens,
        writes=written / num_tokens,
        saved=read / num_tokens,
        num_params=num_params,
    )


def vector_operator(
    name: str, *, read: int, written: int, kept: int, mask: int, num_params: int, num_tokens: int
) -> Elementwise | Generic:
    """Return an operator without arithmetic to speak of; elementwise where every token has a whole share.

    Parameters
    ----------
    kept : elements kept for backward.
    mask : bytes of dropout masks; without a whole share they count as half a 16-bit element each.
    """
    if not any(count % num_tokens for count in (read, written, kept, mask)):
        return Elementwise(
            name=name,
            reads=read // num_tokens,
            writes=written // num_tokens,
            saved=kept // num_tokens,
            saved_mask=mask // num_tokens,
            num_params=num_params,
        )
    return Generic(
        name=name,
        flops=0.0,
        reads=read / num_tokens,
        writes=written / num_tokens,
        saved=(kept + mask / 2) / num_tokens,
        num_params=num_params,
    )
