"""How bodies and worker become machine code, and where that is kept."""
