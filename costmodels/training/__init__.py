"""Seconds of a training step: layers, communication, pipelines, software stacks and learned corrections."""
