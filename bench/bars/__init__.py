"""What is promised of speed and quality, and one run that measures all of it."""
