"""What workers record of their tasks, and its timeline."""
