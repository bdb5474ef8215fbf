"""Data sets: one file a source, all of them giving the same `Dataset`.

`load` takes a description such as ``"synthetic"``, ``"movielens-1m:/data/ml-1m"`` or ``"config.toml"``.
"""

from aif_jax.data.batching import RequestBatcher as RequestBatcher
from aif_jax.data.batching import RequestSource as RequestSource
from aif_jax.data.batching import collate as collate
from aif_jax.data.content import Content as Content
from aif_jax.data.content import collaborative_content as collaborative_content
from aif_jax.data.content import fit_width as fit_width
from aif_jax.data.dataset import SHOWN as SHOWN
from aif_jax.data.dataset import Dataset as Dataset
from aif_jax.data.described import Described as Described
from aif_jax.data.described import describe as describe
from aif_jax.data.described import load as load
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
