"""The decoder's graph: operators, tile sizes, tables and the tensors that it needs."""
