"""The behaviour table: rows of the items that appear in users' histories."""

from aif_jax.nearline.table import RowTable


class BehaviourTable(RowTable):
    """What the user side needs of items in histories, under one bundle version.

    It outlives the item index: deletions in an update stream are passed over (and counted), because an item
    that is no candidate any more still tells something of the users who chose it. `delete` removes a row for
    good.
    """

    kind = "behaviour_table"
    stage = "behaviour"
    keeps_deleted = True
