"""What stays on disk between processes, and what makes it found again."""
