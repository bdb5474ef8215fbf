"""Attachments to other software, each behind an optional extra: usearch, Redis, Ray."""
