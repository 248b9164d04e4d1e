"""What this machine reads, computes and waits for: measured once, kept, given to scheduling."""
