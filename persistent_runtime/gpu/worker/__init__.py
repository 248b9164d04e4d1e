"""The loop that each CTA runs."""
