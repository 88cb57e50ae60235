"""Predictions against measured tables: training runs, memory, kernels, serving points."""
