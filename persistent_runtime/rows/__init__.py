"""The binary interface: schedules and arguments as integers."""
