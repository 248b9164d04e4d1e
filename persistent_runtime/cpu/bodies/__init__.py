"""Bodies of the device functions."""
