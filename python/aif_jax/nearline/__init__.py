"""The item side, computed before any request: item index, behaviour table, their snapshots and updates."""

from aif_jax.nearline.archive import Archive as Archive
from aif_jax.nearline.behaviour_table import BehaviourTable as BehaviourTable
from aif_jax.nearline.build import BuildProgress as BuildProgress
from aif_jax.nearline.build import BuildReport as BuildReport
from aif_jax.nearline.build import build_snapshot as build_snapshot
from aif_jax.nearline.coverage import Coverage as Coverage
from aif_jax.nearline.dead_letters import DeadLetter as DeadLetter
from aif_jax.nearline.dead_letters import read_dead_letters as read_dead_letters
from aif_jax.nearline.follower import BadItem as BadItem
from aif_jax.nearline.follower import Follower as Follower
from aif_jax.nearline.item_index import ItemIndex as ItemIndex
from aif_jax.nearline.replica import Replica as Replica
from aif_jax.nearline.table import RowTable as RowTable
from aif_jax.nearline.tables import Tables as Tables
from aif_jax.nearline.tables import build_tables as build_tables
from aif_jax.nearline.update_source import Delivery as Delivery
from aif_jax.nearline.update_source import IterableUpdates as IterableUpdates
from aif_jax.nearline.update_source import UpdateSource as UpdateSource
from aif_jax.nearline.update_source import decoded as decoded
from aif_jax.nearline.updates import Delete as Delete
from aif_jax.nearline.updates import Update as Update
from aif_jax.nearline.updates import Upsert as Upsert
