"""The loop that each thread runs."""
