"""The interval that predictions carry: 90 % of a normal distribution of logarithms."""

__all__ = ["Z90"]

Z90 = 1.645
"""Standard deviations on either side of the middle that hold 90 % of a normal distribution."""
