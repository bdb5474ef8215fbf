"""Digests of arrays and data sets: short strings that differ when the data differs."""

import hashlib
import json
import re

import numpy as np

from aif_jax.data.dataset import Dataset
from aif_jax.features import GROUPS, Schema

_PREFIX = "2:"
"""Number of the method. Digests of the first, which left out dtypes and shapes, had no prefix."""


def digest_of_arrays(*arrays: np.ndarray) -> str:
    """Return a digest of the dtypes, shapes and contents of arrays, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return _PREFIX + digest.hexdigest()


def is_older_digest(text: object) -> bool:
    """Return whether a value is a digest by the method of an earlier release, never equal to one of today."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{32}", text) is not None


def digest_of_labels(dataset: Dataset) -> str:
    """Digest users, items, parts and labels of the impressions."""
    rows = dataset.impressions
    return digest_of_arrays(rows.user, rows.item, rows.split, *(rows.labels[h] for h in sorted(rows.labels)))


def digest_of_histories(dataset: Dataset, schema: Schema) -> str:
    """Digest the schema, the histories of users, and which items have content, in each fold.

    The values of derived content embeddings are left out: a decomposition has other last bits on another
    machine. Raw ones enter as they were given.

    Args:
        dataset: any.
        schema: fitted on it.
    """
    rows, events = dataset.impressions, dataset.events
    arrays = [rows.history_end, events.user, events.item, events.type]
    if dataset.content is not None:
        arrays += [np.array(dataset.content.vectors.shape), dataset.content.has]
        arrays += [fold.has for fold in dataset.content.folds]
        if dataset.content.raw is not None:
            arrays.append(dataset.content.raw)
    return digest_of_arrays(_written(schema), *arrays)


def digest_of_columns(dataset: Dataset, schema: Schema) -> str:
    """Digest the encoded features of users, items and impressions, label masks and requests.

    Args:
        dataset: any.
        schema: fitted on it.
    """
    rows = dataset.impressions
    encoded = [dataset.encode(schema, group) for group in GROUPS]
    arrays = [columns[name] for columns in encoded for name in sorted(columns)]
    masks = [rows.label_mask[head] for head in sorted(rows.label_mask)]
    return digest_of_arrays(rows.request, *masks, *arrays)


def _written(schema: Schema) -> np.ndarray:
    return np.frombuffer(json.dumps(schema.to_json(), sort_keys=True).encode(), np.uint8)
