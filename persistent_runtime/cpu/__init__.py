"""The CPU backend: worker and device functions in numba, one thread per worker."""
