"""The HTTP application around an engine; needs the extra ``server``."""

from aif_jax.extras import needs

needs("starlette", what=__name__)

from aif_jax.server.app import create_app as create_app
