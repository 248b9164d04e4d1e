"""How bodies and worker become one kernel, with and without a GPU."""
