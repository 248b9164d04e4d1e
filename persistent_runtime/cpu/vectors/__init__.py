"""Arithmetic: what numba lacks, vectors, products, norms."""
