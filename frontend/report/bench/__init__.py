"""Speed, bandwidth and correctness, beside other engines in the same rounds."""
