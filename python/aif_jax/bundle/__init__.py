"""Bundles: models exported to a directory that serves without the model's code."""

from aif_jax.bundle.bundle import Bundle as Bundle
from aif_jax.bundle.exporting import export as export
from aif_jax.bundle.exporting import export_bundle as export_bundle
from aif_jax.bundle.programs import compilations as compilations
from aif_jax.bundle.programs import loads as loads
