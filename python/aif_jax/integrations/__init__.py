"""Integrations with other software, each behind an optional extra: Parquet, usearch, Redis, Ray."""
