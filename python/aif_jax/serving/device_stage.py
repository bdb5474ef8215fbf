"""The real-time stage over item rows in device memory: slots in, top-k out, one compiled program.

The program gathers the rows of its slots, masks the slots that have none and the items that may not be
ranked, and goes on with the bundle's own stage program, compiled into the same executable. Weights, table
and the user state are operands, so the executables of one architecture serve every bundle of it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.bundle.programs import Program, compiled_once
from aif_jax.errors import ConfigError, VersionMismatchError
from aif_jax.nearline.item_index import RANKABLE
from aif_jax.serving.device_packing import RowPacking
from aif_jax.serving.device_rows import DeviceRows
from aif_jax.serving.device_tables import TableLayout
from aif_jax.serving.stage import Progress, Stage, StageCall, StagePart


class DeviceStage(Stage):
    """The real-time stage of one bundle over `DeviceRows`.

    Everything is compiled while it is made, for the table's present capacity; a larger table comes into
    use when it is compiled for it.

    Args:
        rows: the rows, of the same bundle version.
        bundle: the model, with programs for the devices of the rows.
        buckets: candidate counts to compile for, multiples of 16, from the bundle's ``k_max`` upward.
        long_buckets: history lengths to compile for.
        default: whether candidates without a row are ranked as items of which nothing is known.
        progress: called after every program that is ready.

    Raises:
        VersionMismatchError: another bundle version computed the rows.
        ConfigError: the bundle's programs were not exported for the platform of the devices.
        BundleError: this jax cannot read the program.
    """

    def __init__(
        self,
        rows: DeviceRows,
        bundle: Bundle,
        buckets: Sequence[int],
        long_buckets: Sequence[int],
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
        self.bundle = bundle
        self._default = default
        self._program = bundle.program("stage")
        if not any(operand.path == "valid" for operand in self._program.signature.inputs):
            raise ConfigError(
                f"the bundle's {bundle.kind} stage program reads item rows from the host's cache; load the "
                "bundle with prefer='portable' to keep rows on a device."
            )
        platforms = {device.platform for device in rows.layout.devices}
        exported_for = self._program.exported.platforms
        # A device of either maker says "gpu".
        fitting = {"gpu": {"cuda", "rocm"}}
        if unfit := [p for p in platforms if not fitting.get(p, {p}) & set(exported_for)]:
            raise ConfigError(
                f"the bundle's {bundle.kind} stage program was exported for {', '.join(exported_for)}, but "
                f"the item rows are on {', '.join(unfit)}; load the bundle with prefer='portable'."
            )
        self._sizes = [(size, length) for length in long_buckets for size in buckets]
        self._weights = jax.device_put(
            tuple(bundle.weights[name] for name in self._program.signature.weights), rows.layout.whole
        )
        self._others = [
            operand
            for operand in self._program.signature.inputs
            if not operand.path.startswith("rows/") and operand.path != "valid"
        ]
        self._executables: dict[tuple[int, int, int], Any] = {}
        self._progress = progress
        rows.on_growth(self._compile)
        for number, (size, length) in enumerate(self._sizes, 1):
            self._run_on_zeros(size, length)
            if progress is not None:
                progress(number, len(self._sizes), f"device stage, history {length}, {size} candidates")

    def _check_size(self, size: int, length: int) -> None:
        if (size, length) not in self._sizes:
            raise ConfigError(
                f"device stage: got {size} candidates and a history of {length}, expected one of "
                f"{self._sizes}; name it when the stage is made."
            )

    def _score(self, call: StageCall) -> StagePart:
        keys, size, length = call.keys, call.size, call.length
        others = jax.device_put(
            tuple(call.operands[operand.path] for operand in self._others), self.rows.layout.whole
        )
        (results, found) = self.rows.dispatch(
            keys, size, self._calling(size, length, others), default=self._default, refuse=call.refuse
        )
        dispatched = time.perf_counter()
        if call.meanwhile is not None:
            call.meanwhile()
        order, scores, heads, unscored, not_rankable = jax.device_get(results)
        missing = len(keys) - int(np.count_nonzero(found))
        usable = len(keys) if self._default else len(keys) - missing
        ranked = usable - int(not_rankable) - int(unscored)
        return StagePart(
            order=order[:ranked].astype(np.int64),
            scores=scores[:ranked],
            heads=heads[:ranked],
            unscored=int(unscored),
            missing=missing,
            not_rankable=int(not_rankable),
            prepare_s=dispatched - call.began_s,
            stage_s=time.perf_counter() - dispatched,
        )

    @property
    def device_bytes(self) -> int | None:
        """Bytes of the table on the device."""
        return self.rows.stats()["device_bytes"]

    def close(self) -> None:
        """Give the rows' device memory back."""
        self.rows.close()

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
        others = jax.device_put(zeros, self.rows.layout.whole)
        results, _ = self.rows.dispatch(np.zeros(0, np.uint64), size, self._calling(size, length, others))
        jax.block_until_ready(results)

    def _compile(self, capacity: int) -> None:
        layout, packing = self.rows.layout, self.rows.packing
        weights = tuple(_spec(array, layout) for array in self._weights)
        for size, length in self._sizes:
            operands = (
                weights,
                self.rows.spec(capacity),
                self.rows.slots_spec(size),
                tuple(_spec(operand.at({"n": size, "l": length}), layout) for operand in self._others),
            )

            def compile_it(operands: tuple[Any, ...] = operands) -> Any:
                function = stage_over_table(self._program, layout, packing)
                return jax.jit(function, out_shardings=layout.whole).lower(*operands).compile()

            columns = str(packing.columns)
            key = self.rows.program_key("device_stage", capacity, self._program.digest, columns, size, length)
            self._executables[capacity, size, length] = compiled_once(key, compile_it)


def stage_over_table(program: Program, layout: TableLayout, packing: RowPacking) -> Callable[..., Any]:
    """Return the stage as a pure function of weights, table, slots int32 ``[n]`` and other inputs.

    Args:
        program: a bundle's stage.
        layout: of the table.
        packing: of its rows.

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
        rows = packing.unpack_traced(layout.read(table, slots))
        there = slots >= 0
        listed = rows[RANKABLE][:, 0] != 0
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


def _spec(array: Any, layout: TableLayout) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=layout.whole)
