"""Short names of what a data set holds, by which a training or a table knows that it is still the same."""

import hashlib
import json

import numpy as np

from aif_jax.data.dataset import Dataset
from aif_jax.features import GROUPS, Schema


def digest_of_arrays(*arrays: np.ndarray) -> str:
    """Return a hash of the bytes of arrays, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def digest_of_schema(schema: Schema) -> str:
    """Digest how features are encoded."""
    return digest_of_arrays(_written(schema))


def digest_of_labels(dataset: Dataset) -> str:
    """Digest who was shown what, in which part, and what came of it."""
    rows = dataset.impressions
    return digest_of_arrays(rows.user, rows.item, rows.split, *(rows.labels[h] for h in sorted(rows.labels)))


def digest_of_histories(dataset: Dataset, schema: Schema) -> str:
    """Digest how features are encoded, what users did, and which items have content.

    The numbers of content embeddings are left out: a decomposition has other last bits on another machine.

    Args:
        dataset: any.
        schema: fitted on it.
    """
    rows, events = dataset.impressions, dataset.events
    arrays = [rows.history_end, events.user, events.item, events.type]
    if dataset.content is not None:
        arrays += [np.array(dataset.content.vectors.shape), dataset.content.has]
    return digest_of_arrays(_written(schema), *arrays)


def digest_of_columns(dataset: Dataset, schema: Schema) -> str:
    """Digest what models are given of users, items and impressions, which labels are known, and requests.

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
