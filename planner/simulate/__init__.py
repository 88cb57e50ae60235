"""Simulators that check plans: requests through a serving fleet."""
