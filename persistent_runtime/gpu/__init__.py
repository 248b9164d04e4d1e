"""The GPU backend: one persistent Triton kernel that executes the rows the CPU workers execute."""
