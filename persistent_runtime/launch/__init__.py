"""What launches of all backends share."""
