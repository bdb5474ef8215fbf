"""Faults under load: callers, faults on purpose, and an account of every request."""
