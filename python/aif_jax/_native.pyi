"""The native half of aif_jax: embedding cache, scheduler and CPU kernels, written in Rust.

Import these names from `aif_jax`, not from here.
"""

import numpy as np
import numpy.typing as npt

__version__: str

# Kernels: for aif_jax.kernels and its tests.

def ffi_targets() -> dict[str, object]: ...
def cpu_features() -> dict[str, bool]: ...
def chosen_kernels() -> dict[str, str]: ...
def simtier(
    cand: npt.NDArray[np.uint8],
    seq: npt.NDArray[np.uint8],
    channel: npt.NDArray[np.int32],
    edges: npt.NDArray[np.int32],
    *,
    channels: int,
    kind: str,
    implementation: str,
) -> npt.NDArray[np.int32]: ...
def table_sum(
    table: npt.NDArray[np.float32], sig: npt.NDArray[np.uint8], *, bits: int, implementation: str
) -> npt.NDArray[np.float32]: ...
