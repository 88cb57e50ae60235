"""Seconds of collectives: algorithms, measured curves, and the groups of ranks that run them."""
