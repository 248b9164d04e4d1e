"""Where start-up time goes."""
