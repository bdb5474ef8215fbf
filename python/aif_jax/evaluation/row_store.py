"""The finished rows of a study, a small file each: to go on from, to share, and to make the table of."""

from collections.abc import Iterator
from pathlib import Path

from aif_jax.errors import DataError
from aif_jax.evaluation.facts_file import read_facts, write_facts
from aif_jax.evaluation.row import Row

FORMAT = 1


class RowStore:
    """A folder of rows, ``VARIANT-SEED.npz``: the facts as JSON text, and integers for each user.

    A row appears whole or not at all, so a run that is killed leaves nothing half written. Files may be
    copied from one folder to another; whether rows belong together is for `aif_jax.evaluation.Study` to say.

    Args:
        folder: is made with the first row.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows, by the names of their files."""
        for path in sorted(self.folder.glob("*.npz")):
            yield _read(path)

    def get(self, variant: str, seed: int) -> Row | None:
        """Return a row, or ``None`` if it is not there.

        Raises:
            DataError: its file is broken, or of another release.
        """
        path = self.folder / f"{variant}-{seed}.npz"
        return _read(path) if path.exists() else None

    def put(self, row: Row) -> None:
        """Keep a row, in place of what has its name, and wait until the disk has it."""
        facts = {"format": FORMAT, **row.facts()}
        write_facts(self.folder / f"{row.name}.npz", facts, row.arrays())


def _read(path: Path) -> Row:
    facts, arrays = read_facts(path)
    written = facts.pop("format", None)
    if written != FORMAT:
        raise DataError(
            f"{path}: is a row of format {written}, expected {FORMAT}; read it with the release that wrote "
            "it, or remove it and it is trained again."
        )
    try:
        return Row.from_parts(facts, arrays)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is no whole row ({error}); copy it again, or remove it and it is trained again."
        ) from error
