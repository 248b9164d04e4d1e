"""Schedules as rows of integers, and the kernels that execute them in one launch."""
