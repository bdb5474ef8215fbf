"""One HTML page of everything that was measured, without anything that lies outside of it."""
