"""Decisions: from a request to a plan that can be trusted and started."""
