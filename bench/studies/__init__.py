"""Studies of this repository's model: variants, seeds, retention against the exact model."""
