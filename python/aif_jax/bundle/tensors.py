"""A reader of safetensors with bfloat16, which the library writes from NumPy and does not read back."""

import numpy as np
from safetensors import SafetensorError, deserialize

from aif_jax.types import named_dtype

_DTYPES = {
    "BOOL": "bool", "I8": "int8", "U8": "uint8", "I32": "int32", "U32": "uint32", "I64": "int64",
    "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip


def load_tensors(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name, read-only views of ``content``.

    Raises:
        SafetensorError: it is not such a file, or holds a dtype that bundles do not have.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, entry in deserialize(content):
        if entry["dtype"] not in _DTYPES:
            raise SafetensorError(
                f"{name} is of dtype {entry['dtype']}, expected one of {', '.join(_DTYPES)}"
            )
        dtype = named_dtype(_DTYPES[entry["dtype"]])
        arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return arrays
