"""Values as error messages quote them."""

from typing import Any

import numpy as np

from aif_jax.strict_json import MAX_SHOWN

_LONG = 10**40


def shown(value: Any) -> str:
    """Return a value as text of at most 200 characters, whatever it is.

    >>> shown("x" * 300)[-20:]
    'xxxxxxxxxxxxxxxxx...'
    >>> shown(10**400)
    'an integer of 1,329 bits'
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, int) and not -_LONG < value < _LONG:
        return f"an integer of {value.bit_length():,} bits"
    try:
        # The text of a whole column would be made only to be cut.
        text = f"a long {type(value).__name__}" if _is_long(value) else repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _is_long(value: Any) -> bool:
    return not isinstance(value, (str, bytes)) and hasattr(value, "__len__") and len(value) > 100


def names_of(kinds: set[type]) -> str:
    """Return the names of types, in order."""
    return ", ".join(sorted(kind.__name__ for kind in kinds))
