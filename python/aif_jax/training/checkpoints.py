"""Checkpoints of a training run, by orbax: all state that the next step depends on."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from aif_jax.errors import TrainingError

Arrays = Mapping[str, Any]
"""A dictionary of arrays, or of dictionaries of arrays."""

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
    errors.

    Args:
        directory: is created if it does not exist.
        kept: number of the newest checkpoints to keep; at least 1.
    """

    def __init__(self, directory: str | Path, *, kept: int = 2) -> None:
        self.directory = Path(directory).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, create=True, enable_async_checkpointing=True)
        # Named handlers, so that a fresh process can read the shapes of a checkpoint before the arrays.
        handlers = {"arrays": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()}
        self._manager: Any = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def save(self, step: int, arrays: Arrays, notes: Mapping[str, Any]) -> None:
        """Save under a step that has not been saved yet.

        Args:
            step: number of steps made.
            arrays: dictionary of arrays; the caller may donate or overwrite them as soon as this returns.
            notes: anything that JSON can hold.

        Raises:
            TrainingError: this step has been saved already.
        """
        if step in self._manager.all_steps():
            raise TrainingError(
                f"{self.directory} holds step {step} already; use another directory or resume."
            )
        # Taken to the host here: the background copy must not race with the donation of these buffers.
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(jax.device_get(dict(arrays))),
                notes=ocp.args.JsonSave(dict(notes)),
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
            Exception: the error of a write in the background.
        """
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        ".".join(str(getattr(key, "key", key)) for key in path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }
