"""The HTTP application around an engine; needs the extra ``server``."""

from aif_jax.server.app import create_app as create_app
