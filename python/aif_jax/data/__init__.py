"""Data sets: one file a source, all of them giving the same `Dataset`.

`load` takes a short description such as ``"synthetic"`` or ``"movielens-1m:/data/ml-1m"``.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from aif_jax.data.batching import RequestBatcher as RequestBatcher
from aif_jax.data.batching import RequestSource as RequestSource
from aif_jax.data.batching import collate as collate
from aif_jax.data.content import Content as Content
from aif_jax.data.content import collaborative_content as collaborative_content
from aif_jax.data.content import fit_width as fit_width
from aif_jax.data.dataset import SHOWN as SHOWN
from aif_jax.data.dataset import Dataset as Dataset
from aif_jax.data.files import PUBLIC_SETS as PUBLIC_SETS
from aif_jax.data.files import PublicSet as PublicSet
from aif_jax.data.kuairand import kuairand as kuairand
from aif_jax.data.movielens import movielens_1m as movielens_1m
from aif_jax.data.movielens import movielens_100k as movielens_100k
from aif_jax.data.rows import Events as Events
from aif_jax.data.rows import Impressions as Impressions
from aif_jax.data.rows import Requests as Requests
from aif_jax.data.sampling import Negatives as Negatives
from aif_jax.data.splits import SPLITS as SPLITS
from aif_jax.data.splits import TEST as TEST
from aif_jax.data.splits import TRAIN as TRAIN
from aif_jax.data.splits import VALIDATION as VALIDATION
from aif_jax.data.splits import Split as Split
from aif_jax.data.splits import by_column as by_column
from aif_jax.data.splits import by_time as by_time
from aif_jax.data.splits import by_user as by_user
from aif_jax.data.splits import last_n as last_n
from aif_jax.data.synthetic import synthetic as synthetic
from aif_jax.data.synthetic import synthetic_small as synthetic_small
from aif_jax.errors import DataError

_FROM_PATH: dict[str, Callable[..., Dataset]] = {
    "movielens-1m": movielens_1m,
    "movielens-1m-new-users": partial(movielens_1m, new_users=True),
    "movielens-100k": movielens_100k,
    "kuairand": kuairand,
}
_MADE_UP = {"synthetic": synthetic, "synthetic:small": synthetic_small}


def load(spec: str, *, content_width: int = 64, seed: int = 0) -> Dataset:
    """Load a data set by a short description.

    Args:
        spec: ``synthetic``, ``synthetic:small``, ``movielens-1m:PATH``, ``movielens-1m-new-users:PATH``,
            ``movielens-100k:PATH`` or ``kuairand:PATH``, where PATH is the folder of the unpacked archive.
        content_width: width of the content embedding to derive; `Dataset.catalogue` can cut it, not widen it.
        seed: seed of made-up data; real data does not depend on it.

    Raises:
        DataError: the description is not one of these, or the folder lacks files; the message names what is
            missing, where to get it, and on what terms.
    """
    if spec in _MADE_UP:
        return _MADE_UP[spec](seed=seed, content_width=content_width)
    name, colon, path = spec.partition(":")
    if name not in _FROM_PATH or (colon and not path):
        known = [*_MADE_UP, *(f"{key}:PATH" for key in _FROM_PATH)]
        raise DataError(f"got data {spec!r}, expected one of {', '.join(known)}.")
    if not path:
        source = PUBLIC_SETS[name]
        raise DataError(f"got {spec!r} without a path, expected {spec}:PATH. {source.how_to_get}")
    return _FROM_PATH[name](Path(path), content_width=content_width)
