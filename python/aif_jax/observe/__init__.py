"""Observers of a serving engine, for ``Engine(observers=...)``.

This package exports those that need nothing beyond the core install. `aif_jax.observe.prometheus` needs the
extra ``metrics``, `aif_jax.observe.opentelemetry` the extra ``tracing``.
"""

from aif_jax.observe.perfetto import chrome_trace as chrome_trace
from aif_jax.observe.slow_requests import SlowRequests as SlowRequests
