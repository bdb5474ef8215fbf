"""The gate of all input: ids, columns, tables, content, flags and numbers of any library become NumPy.

Everything that a caller gives is read here, by position: as contiguous arrays of this machine's byte order,
or an error that names the argument, the row and the value. The rest of the package reads nothing else.
"""

from aif_jax.inputs.columns import Ragged as Ragged
from aif_jax.inputs.columns import read_column as read_column
from aif_jax.inputs.columns import read_flat as read_flat
from aif_jax.inputs.columns import take_rows as take_rows
from aif_jax.inputs.ids import Ids as Ids
from aif_jax.inputs.ids import is_user_id as is_user_id
from aif_jax.inputs.ids import item_keys as item_keys
from aif_jax.inputs.ids import read_ids as read_ids
from aif_jax.inputs.ids import read_user_ids as read_user_ids
from aif_jax.inputs.tables import read_table as read_table
from aif_jax.inputs.tables import table_columns as table_columns
from aif_jax.inputs.values import read_content as read_content
from aif_jax.inputs.values import read_flag as read_flag
from aif_jax.inputs.values import read_flags as read_flags
from aif_jax.inputs.values import read_matrix as read_matrix
from aif_jax.inputs.values import read_number as read_number
from aif_jax.inputs.values import read_numbers as read_numbers
