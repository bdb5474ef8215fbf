"""A column encoded by one feature, with the report of it."""

from typing import Any

import numpy as np

from aif_jax.features import EncodeReport


def encode_column(feature: Any, column: Any, n: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the codes of a column, and what was counted; ``n`` rows are expected, by default all."""
    report = EncodeReport()
    return feature.encode(column, len(column) if n is None else n, report), report.as_dict()
