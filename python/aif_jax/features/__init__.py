"""The schema: features of users, items, contexts and (user, item) pairs, and their encoding as arrays.

All raw data enters aif_jax here: `Schema.encode` for features, `item_keys` for ids,
`split_ids` for ids on their way into JAX, `bucket_for` and `pad_to` for shapes.
"""

from aif_jax.features.encoders import Encoder as Encoder
from aif_jax.features.encoders import Hashing as Hashing
from aif_jax.features.encoders import Vocabulary as Vocabulary
from aif_jax.features.filters import Filters as Filters
from aif_jax.features.ids import item_keys as item_keys
from aif_jax.features.ids import split_ids as split_ids
from aif_jax.features.kinds import Categorical as Categorical
from aif_jax.features.kinds import Feature as Feature
from aif_jax.features.kinds import MultiValued as MultiValued
from aif_jax.features.kinds import Numeric as Numeric
from aif_jax.features.padding import bucket_for as bucket_for
from aif_jax.features.padding import pad_to as pad_to
from aif_jax.features.report import EncodeReport as EncodeReport
from aif_jax.features.schema import GROUPS as GROUPS
from aif_jax.features.schema import Group as Group
from aif_jax.features.schema import Schema as Schema
from aif_jax.features.tokens import Ragged as Ragged
