"""The behaviour table: rows of the items that appear in users' histories."""

from aif_jax.nearline.table import RowTable


class BehaviourTable(RowTable):
    """Rows that the user side reads for the items of histories, under one bundle version.

    A row outlives the item's row in the index: deletions in an update stream are ignored (and counted),
    because an item that is not a candidate any more still informs about the users who chose it. `delete`
    removes a row for good.
    """

    kind = "behaviour_table"
    stage = "behaviour"
    keeps_deleted = True
