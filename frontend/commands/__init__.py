"""The commands of `event-tensor`. Nothing heavy is imported before one runs."""
