"""Model directories, decoder graphs, the decode loop, the command line."""
