"""Seconds of operators on one device: the physics of each kind, its fits, and what was measured."""
