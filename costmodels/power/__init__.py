"""Watts and joules of kernels, phases, steps and sites, and what caps and clocks do to them."""
