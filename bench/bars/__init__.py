"""The bars of speed and quality, and one run that measures all of them."""
