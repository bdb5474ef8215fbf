"""The `aif` command."""

from aif_jax.cli.app import main as main
