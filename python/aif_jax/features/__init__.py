"""The schema: features of users, items, contexts and (user, item) pairs, and their encoding as arrays.

`Schema.encode` makes features of raw columns, which `aif_jax.inputs` has read; `bucket_for` and
`pad_to` make shapes.
"""

from aif_jax.features.content_space import ContentSpace as ContentSpace
from aif_jax.features.encoders import Encoder as Encoder
from aif_jax.features.encoders import Hashing as Hashing
from aif_jax.features.encoders import Vocabulary as Vocabulary
from aif_jax.features.filters import Filters as Filters
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
from aif_jax.inputs import Ragged as Ragged
from aif_jax.inputs import item_keys as item_keys
