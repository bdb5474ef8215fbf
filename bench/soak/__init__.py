"""The soak: an engine under load for hours, while all around it changes and fails."""
