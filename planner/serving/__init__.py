"""Serving plans: workloads, engine configurations, the mix of devices, and its check by simulation."""
