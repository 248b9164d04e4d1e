"""What config.json and generation_config.json say, checked field by field."""
