"""Weights that stream through shared memory across tasks and waits; off."""
