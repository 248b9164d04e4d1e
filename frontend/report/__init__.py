"""What is told about a model or a machine: pictures, traces, measurements, checks."""
