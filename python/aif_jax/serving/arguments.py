"""Checks of what a request is asked with."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.errors import RequestError
from aif_jax.features import Schema

_LONGEST_DEADLINE_MS = 1e9


def check_user(user: Any) -> None:
    """Check that it can be a user's id.

    Raises:
        RequestError: it cannot.
    """
    if isinstance(user, bool) or not isinstance(user, (int, str, np.integer)):
        raise RequestError(f"user: got {type(user).__name__} {user!r}, expected an integer or a string.")


def check_deadline(deadline_ms: float | None) -> None:
    """Check that a deadline lies in the future that clocks can count.

    Raises:
        RequestError: it does not.
    """
    if deadline_ms is not None and not 0 < deadline_ms <= _LONGEST_DEADLINE_MS:
        raise RequestError(
            f"deadline_ms: got {deadline_ms}, expected more than 0 and at most "
            f"{_LONGEST_DEADLINE_MS:g} (11 days), or None for no deadline."
        )


def check_context(context: Any, schema: Schema) -> None:
    """Check that a context has features of the schema only.

    Raises:
        RequestError: it has others, or is no mapping.
    """
    if not isinstance(context, Mapping):
        raise RequestError(f"context: got a {type(context).__name__}, expected features by name.")
    known = schema.names("context")
    if not context.keys() <= known:
        unknown = sorted(map(str, context.keys() - known))
        raise RequestError(
            f"context: features {unknown} are not in the schema, whose context features are "
            f"{sorted(known)}; leave them out, or train with a schema that names them."
        )


def checked_k(k: Any, default: int, k_max: int) -> int:
    """Return how many results are wanted.

    Raises:
        RequestError: it is no number from 1 to ``k_max``.
    """
    if k is None:
        return default
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= k_max:
        raise RequestError(
            f"k: got {k!r}, expected a whole number from 1 to {k_max}, the bundle's k_max; "
            "export the model with a larger k_max to get more results."
        )
    return int(k)
