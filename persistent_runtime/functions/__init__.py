"""Declarations of device functions; bodies live in each backend."""
