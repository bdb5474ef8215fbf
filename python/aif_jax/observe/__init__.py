"""Observers of a serving engine, for ``Engine(observers=...)``.

This package exports those that need nothing beyond the core install, and `RequestLog`, which needs pyarrow
when it is made. `aif_jax.observe.prometheus` needs the extra ``metrics``, `aif_jax.observe.opentelemetry` the
extra ``tracing``.
"""

from aif_jax.observe.perfetto import chrome_trace as chrome_trace
from aif_jax.observe.request_log import RequestLog as RequestLog
from aif_jax.observe.slow_requests import SlowRequests as SlowRequests
