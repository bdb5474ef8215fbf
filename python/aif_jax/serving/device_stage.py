"""The real-time stage over item rows in device memory.

One compiled program takes slots and returns the top k: it gathers the rows of its slots, masks the slots
that have none and the items that may not be ranked, and calls the bundle's own stage program.
Weights, table and user state are operands, so one architecture's executables serve every bundle of it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.bundle.programs import Program, compiled_once
from aif_jax.errors import ConfigError, VersionMismatchError
from aif_jax.features import pad_to
from aif_jax.nearline.device_rows import DeviceRows, RowPacking, read_rows
from aif_jax.nearline.item_index import RANKABLE_COLUMN
from aif_jax.serving.stage import Progress, Scored, Shared, Stage, Work


class DeviceStage(Stage):
    """The real-time stage of one bundle over `DeviceRows`.

    Everything is compiled while it is made, for the table's present capacity; a larger table comes into
    use when it is compiled for it.

    Args:
        rows: the rows, of the same bundle version.
        bundle: the model, with programs for the device of the rows.
        buckets: candidate counts to compile for, multiples of 16, from the bundle's ``k_max`` upward.
        lengths: history lengths to compile for.
        default: candidates without a row are ranked as items of which nothing is known.
        progress: called after every program that is ready.

    Raises:
        VersionMismatchError: another bundle version computed the rows.
        ConfigError: the bundle's programs were not exported for the platform of the device.
        BundleError: this jax cannot read the program.
    """

    place = "device"

    def __init__(
        self,
        rows: DeviceRows,
        bundle: Bundle,
        buckets: Sequence[int],
        lengths: Sequence[int],
        *,
        default: bool = False,
        progress: Progress | None = None,
    ):
        if rows.index.version != bundle.version:
            raise VersionMismatchError(
                f"the device rows were computed by bundle version {rows.index.version}, but the bundle at "
                f"{bundle.path} is version {bundle.version}; make them from an item index of this bundle."
            )
        self.rows = rows
        self._default = default
        self._program = bundle.program("stage")
        if not any(operand.path == "valid" for operand in self._program.signature.inputs):
            raise ConfigError(
                f"the bundle's {bundle.kind} stage program reads item rows from the host's cache; load the "
                "bundle with prefer='portable' to keep rows on a device."
            )
        platform, exported_for = rows.device.platform, self._program.exported.platforms
        # A device of either maker says "gpu".
        if not {"gpu": {"cuda", "rocm"}}.get(platform, {platform}) & set(exported_for):
            raise ConfigError(
                f"the bundle's {bundle.kind} stage program was exported for {', '.join(exported_for)}, but "
                f"the item rows are on {platform}; load the bundle with prefer='portable'."
            )
        self.sizes = [(size, length) for length in lengths for size in buckets]
        self._weights = self._sent(tuple(bundle.weights[name] for name in self._program.signature.weights))
        self._others = [
            operand
            for operand in self._program.signature.inputs
            if not operand.path.startswith("rows/") and operand.path != "valid"
        ]
        self._executables: dict[tuple[int, int, int], Any] = {}
        rows.on_growth(self._compile)
        for number, (size, length) in enumerate(self.sizes, 1):
            self._run_on_zeros(size, length)
            if progress is not None:
                progress(number, len(self.sizes), f"device stage, history {length}, {size} candidates")

    def prepare(self, leaves: Mapping[str, Any], length: int, context: Mapping[str, np.ndarray]) -> Shared:
        """Send what all candidates of a request share to the device."""
        given = {**leaves, **{f"context/{name}": value for name, value in context.items()}}
        return Shared(length, self._sent(tuple(given.get(operand.path) for operand in self._others)))

    def _score(self, shared: Shared, work: Work) -> Scored:
        began_s, keys, size = time.perf_counter(), work.keys, work.size
        given = self._sent({name: pad_to(column, size) for name, column in work.pair.items()})
        others = tuple(
            given[operand.path.removeprefix("pair/")] if operand.path.startswith("pair/") else leaf
            for operand, leaf in zip(self._others, shared.operands, strict=True)
        )
        (results, found) = self.rows.dispatch(
            keys, size, self._calling(size, shared.length, others), default=self._default, refuse=work.refuse
        )
        dispatched_s = time.perf_counter()
        if work.meanwhile is not None:
            work.meanwhile()
        order, scores, heads, unscored, not_rankable = jax.device_get(results)
        missing = len(keys) - int(np.count_nonzero(found))
        ranked = len(keys) - (0 if self._default else missing) - int(not_rankable) - int(unscored)
        return Scored(
            order[:ranked].astype(np.int64), scores[:ranked], heads[:ranked], unscored=int(unscored),
            missing=missing, not_rankable=int(not_rankable), gather_s=dispatched_s - began_s,
            stage_s=time.perf_counter() - dispatched_s, bucket=size, calls=1,
        )  # fmt: skip

    @property
    def device_bytes(self) -> int | None:
        """Bytes of the table on the device."""
        return self.rows.stats()["device_bytes"]

    def close(self) -> None:
        """Give the rows' device memory back."""
        self.rows.close()

    def _sent(self, operands: Any) -> Any:
        return jax.device_put(operands, self.rows.sharding)

    def _calling(self, size: int, length: int, others: tuple[Any, ...]) -> Callable[..., Any]:
        def call(capacity: int, table: jax.Array, slots: jax.Array) -> Any:
            return self._executables[capacity, size, length](self._weights, table, slots, others)

        return call

    def _run_on_zeros(self, size: int, length: int) -> None:
        """Run a program once, so that its first request pays for nothing."""
        zeros = tuple(
            np.zeros((spec := operand.at({"n": size, "l": length})).shape, spec.dtype)
            for operand in self._others
        )
        call = self._calling(size, length, self._sent(zeros))
        results, _ = self.rows.dispatch(np.zeros(0, np.uint64), size, call)
        jax.block_until_ready(results)

    def _compile(self, capacity: int) -> None:
        rows, sharding = self.rows, self.rows.sharding
        function = stage_over_table(self._program, rows.packing)
        stage = jax.jit(function, in_shardings=sharding, out_shardings=sharding)
        program = (self._program.digest, str(rows.packing.columns))
        for size, length in self.sizes:
            others = tuple(operand.at({"n": size, "l": length}) for operand in self._others)

            def compile_it(size: int = size, others: Any = others) -> Any:
                operands = (self._weights, rows.table_spec(capacity), rows.spec(size), others)
                return stage.lower(*operands).compile()

            key = rows.program_key("device_stage", capacity, *program, size, length)
            self._executables[capacity, size, length] = compiled_once(key, compile_it, {})


def stage_over_table(program: Program, packing: RowPacking) -> Callable[..., Any]:
    """Return the stage as a pure function of weights, table, slots int32 ``[n]`` and other inputs.

    Args:
        program: a bundle's stage.
        packing: of the table's rows.

    Returns:
        A function that returns positions int32 ``[k]``, scores ``[k]``, heads ``[k, n_heads]``, and how many
        candidates have no finite score and how many may not be ranked, int32. Its third argument is negative
        where there is no candidate; the fourth has the program's inputs except rows and ``valid``, in order.
    """
    signature = program.signature
    call = program.exported.call
    results = [operand.path for operand in signature.outputs]

    def stage(
        weights: tuple[jax.Array, ...], table: jax.Array, slots: jax.Array, others: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        rows = packing.unpack_traced(read_rows(table, slots))
        there = slots >= 0
        listed = rows[RANKABLE_COLUMN][:, 0] != 0
        left = iter(others)
        inputs = []
        for operand in signature.inputs:
            group, _, name = operand.path.partition("/")
            if operand.path == "valid":
                inputs.append(there & listed)
            elif group != "rows":
                inputs.append(next(left))
            elif name in rows:
                inputs.append(rows[name])
            else:  # a column without bytes is not kept
                spec = operand.at({"n": slots.shape[0]})
                inputs.append(jnp.zeros(spec.shape, spec.dtype))
        given = dict(zip(results, call(weights, tuple(inputs)), strict=True))
        not_rankable = jnp.sum(there & ~listed, dtype=jnp.int32)
        return (*(given[path] for path in ("order", "score", "heads", "unscored")), not_rankable)

    return stage
