"""The blocks of the model, one concept a file, and the registry over which everything else loops.

A new block is a file here, an entry in `REGISTRY`, and its name in `aif_jax.config.BLOCKS`. The registry's
order is that of sums in the first layer and of the rows of ``M``.
"""

from collections.abc import Sequence

from aif_jax.config import ModelConfig
from aif_jax.features import Schema
from aif_jax.models.blocks.base import Block
from aif_jax.models.blocks.bridge import Bridge
from aif_jax.models.blocks.encoder import Encoder
from aif_jax.models.blocks.long_attention import LongAttention
from aif_jax.models.blocks.profile_item import ProfileItem
from aif_jax.models.blocks.request_features import Context, Pair
from aif_jax.models.blocks.short_attention import ProfileAttention, SelfAttention
from aif_jax.models.blocks.sim_hard import SimHard
from aif_jax.models.blocks.simtier import SimTier

REGISTRY: tuple[type[Block], ...] = (
    SelfAttention,
    ProfileAttention,
    ProfileItem,
    Bridge,
    LongAttention,
    SimTier,
    SimHard,
    Encoder,
    Context,
    Pair,
)


def active_blocks(
    config: ModelConfig, schema: Schema, instead: Sequence[type[Block]] = ()
) -> tuple[Block, ...]:
    """Return the blocks that are switched on and whose features exist in the schema, in order.

    Args:
        config: switches.
        schema: features.
        instead: blocks that take the place of those of the same name.
    """
    replaced = {block.name: block for block in instead}
    found = (replaced.get(block.name, block) for block in REGISTRY if config.has(block.name))
    return tuple(block(config, schema) for block in found if block.exists(schema))
