"""Helpers of tests in several folders: a served model, blocked engines, model cases, logs."""
