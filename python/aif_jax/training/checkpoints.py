"""Checkpoints of a training run, by orbax: all state that the next step depends on."""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from aif_jax.errors import TrainingError, WriteError
from aif_jax.files import refusals

Arrays = Mapping[str, Any]
"""A dictionary of arrays, or of dictionaries of arrays."""

_UNFINISHED = "*.orbax-checkpoint-tmp"
"""Names of directories that orbax has not renamed yet."""
_SHOWN = 6
"""Arrays that an error names at most."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """One checkpoint, read back.

    Attributes:
        step: number of steps made before it.
        arrays: as they were saved.
        notes: values that JSON can hold: position in the data, epoch, history, configs.
    """

    step: int
    arrays: dict[str, Any]
    notes: dict[str, Any]


class CheckpointStore:
    """The newest checkpoints of one run, in a directory.

    A checkpoint appears complete or not at all: orbax writes beside it and renames. `save` copies the arrays
    and returns; a thread writes them, and `close` (or leaving the ``with`` block) waits for it and raises its
    errors. What a failed write or a killed process left unfinished is removed, there and at the next start.

    Args:
        directory: is created if it does not exist. One process at a time writes there.
        kept: number of the newest checkpoints to keep; at least 1.

    Raises:
        TrainingError: the directory cannot be written.
    """

    def __init__(self, directory: str | Path, *, kept: int = 2) -> None:
        self.directory = Path(directory).resolve()
        self._bytes = 0
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, create=True, enable_async_checkpointing=True)
        # Named handlers, so that a fresh process can read the shapes of a checkpoint before the arrays.
        handlers = {"arrays": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()}
        with self._writes():
            self._remove_unfinished()
            self._manager: Any = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )

    def save(self, step: int, arrays: Arrays, notes: Mapping[str, Any]) -> None:
        """Save under a step that has not been saved yet.

        Args:
            step: number of steps made.
            arrays: dictionary of arrays; the caller may donate or overwrite them as soon as this returns.
            notes: anything that JSON can hold.

        Raises:
            TrainingError: this step has been saved already; an array is not finite, which is named; or the
                disk refused, now or when it wrote the checkpoint before. Those before that stay.
        """
        if step in self._manager.all_steps():
            raise TrainingError(
                f"{self.directory} holds step {step} already; use another directory or resume."
            )
        # Taken to the host here: the background copy must not race with the donation of these buffers.
        copied = jax.device_get(dict(arrays))
        self._check_finite(step, copied)
        with self._writes():
            self._manager.wait_until_finished()
            self._bytes = sum(array.nbytes for array in jax.tree.leaves(copied))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(copied), notes=ocp.args.JsonSave(dict(notes))
                ),
            )

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, or ``None`` if there is none."""
        return self._manager.latest_step()

    def notes(self) -> dict[str, Any] | None:
        """Return the notes of the newest checkpoint, or ``None`` if there is none."""
        self._manager.wait_until_finished()
        step = self.latest_step()
        if step is None:
            return None
        return self._manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())).notes

    def restore(self, like: Arrays) -> Restored | None:
        """Read the newest checkpoint.

        Args:
            like: arrays of the shapes, dtypes and names that are expected.

        Returns:
            The checkpoint, or ``None`` if there is none.

        Raises:
            TrainingError: the checkpoint holds other arrays than `like`, which are named.
        """
        self._manager.wait_until_finished()
        step = self.latest_step()
        if step is None:
            return None
        saved = self._manager.item_metadata(step).arrays
        expected, found = _shapes(like), _shapes(saved)
        wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        if wrong:
            shown = "; ".join(
                f"{name} is {found.get(name, 'absent')} there and {expected.get(name, 'absent')} here"
                for name in wrong[:_SHOWN]
            )
            more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise TrainingError(
                f"{self.directory}, step {step}: {len(wrong)} arrays differ from this run's: {shown}{more}. "
                "Resume with the model, data, optimiser and release that wrote it, or give another directory."
            )
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(like))
        read = self._manager.restore(
            step,
            args=ocp.args.Composite(arrays=ocp.args.StandardRestore(target), notes=ocp.args.JsonRestore()),
        )
        return Restored(step, read.arrays, read.notes)

    def close(self) -> None:
        """Wait until everything is on disk and release the directory.

        Raises:
            TrainingError: the disk refused a write in the background.
        """
        with contextlib.ExitStack() as last, self._writes():
            last.callback(self._manager.close)
            self._manager.wait_until_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_finite(self, step: int, arrays: Arrays) -> None:
        for path, array in jax.tree_util.tree_leaves_with_path(arrays):
            if jax.numpy.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
                raise TrainingError(
                    f"{self.directory}, step {step}: {_dotted(path)} holds values that are not finite; "
                    "nothing is saved, and the checkpoints before stay. Resume from them with a lower "
                    "learning rate."
                )

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        """Turn what the disk refuses in a block into a `TrainingError`, and remove what is unfinished."""
        try:
            with refusals(self.directory, self._bytes or None):
                try:
                    yield
                except ValueError as error:  # orbax's storage gives errors of the system as text
                    if (code := re.search(r"os_error_code='(\d+)'", str(error))) is None:
                        raise
                    raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        except WriteError as error:
            self._remove_unfinished()
            raise TrainingError(str(error)) from error

    def _remove_unfinished(self) -> None:
        for left in self.directory.glob(_UNFINISHED):
            shutil.rmtree(left, ignore_errors=True)


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_dotted(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _dotted(path: Any) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in path)
