"""Iterations, memory, latency and throughput of a serving instance."""
