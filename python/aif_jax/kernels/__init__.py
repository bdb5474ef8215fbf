"""Operators over signatures and rows: what they mean in pure JAX, and the choice of an implementation."""

from aif_jax.kernels.choice import Implementation as Implementation
from aif_jax.kernels.choice import use as use
from aif_jax.kernels.ffi import CUSTOM_CALLS as CUSTOM_CALLS
from aif_jax.kernels.ffi import register as register
from aif_jax.kernels.gather_rows import gather_rows as gather_rows
from aif_jax.kernels.gather_rows import handle_operand as handle_operand
from aif_jax.kernels.report import implementations as implementations
from aif_jax.kernels.self_check import self_check as self_check
from aif_jax.kernels.signatures import hyperplanes as hyperplanes
from aif_jax.kernels.signatures import pack_signs as pack_signs
from aif_jax.kernels.signatures import quantize_int8 as quantize_int8
from aif_jax.kernels.signatures import simhash as simhash
from aif_jax.kernels.simtier import integer_edges as integer_edges
from aif_jax.kernels.simtier import simtier as simtier
from aif_jax.kernels.table_sum import group_codes as group_codes
from aif_jax.kernels.table_sum import table_sum as table_sum
