"""Application of deliveries to a table: each item of an update is applied or set aside, whatever it holds."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from aif_jax.errors import (
    AifError,
    ArchiveError,
    ConfigError,
    DataError,
    ItemIndexError,
    ProcessError,
    RequestError,
    SchemaError,
)
from aif_jax.features import item_keys
from aif_jax.nearline.merging import Entry, checked, halves, joined, runs
from aif_jax.nearline.table import RowTable
from aif_jax.nearline.update_source import Delivery, own_error
from aif_jax.nearline.updates import Update, Upsert

_SURE = 4
"""Times `ContentSpace.telling_rows` from which rows that are centred nearly always show it."""

_NO_FAULT = (ArchiveError, ProcessError, KeyboardInterrupt, SystemExit)
"""Errors that are never those of an update."""


@dataclasses.dataclass(frozen=True, slots=True)
class SetAside:
    """An item of a delivery, or all of it, that could not be applied.

    Attributes:
        delivery: the delivery.
        ids: the item's id, or none if the update as a whole cannot be read.
        reason: the error.
    """

    delivery: Delivery
    ids: tuple[Any, ...]
    reason: AifError


def apply_deliveries(table: RowTable, deliveries: Sequence[Delivery]) -> tuple[Counter[str], list[SetAside]]:
    """Apply deliveries to a table in their order.

    Those that can be are applied together. What fails is halved until the items are found that fail by
    themselves, so that none of the others is lost. Many rows together show that content was centred
    elsewhere (`ContentSpace.telling_rows`): each delivery that has enough of them is then judged by itself,
    and the small ones of a run together.

    Returns:
        Numbers of items ``upserted``, ``deleted`` and ``ignored``, and those that were set aside.

    Raises:
        ArchiveError: the disk refuses.
        Exception: whatever it raises that is no fault of an update, such as a program that does not run. Some
            updates have been applied then, and can be applied again.
    """
    application = _Application(table)
    for run in runs([Entry(one, checked(one.update)) for one in deliveries]):
        application.apply_run(run)
    return application.done, application.aside


class _Application:
    def __init__(self, table: RowTable):
        self._table = table
        self.done: Counter[str] = Counter()
        self.aside: list[SetAside] = []

    def apply_run(self, run: Sequence[Entry]) -> None:
        if len(run) == 1:
            self._apply_one(*run[0])
            return
        try:
            self._apply(joined(run))
        except _NO_FAULT:
            raise
        except ConfigError as error:
            large = [self._is_telling(one.update) for one in run]
            small = [one for one, alone in zip(run, large, strict=True) if not alone]
            if not any(large):
                for one in small:
                    self._set_all_aside(one.delivery, one.update, error)
                return
            refused = self._refused(small)
            for one, alone in zip(run, large, strict=True):
                if alone or refused is None:
                    self._apply_one(*one)
                else:
                    self._set_all_aside(one.delivery, one.update, refused)
        except BaseException:
            middle = len(run) // 2
            self.apply_run(run[:middle])
            self.apply_run(run[middle:])

    def _apply_one(self, delivery: Delivery, update: Update | AifError) -> None:
        if isinstance(update, AifError):
            self.aside.append(SetAside(delivery, (), update))
            return
        try:
            self._apply(update)
        except _NO_FAULT:
            raise
        except ConfigError as error:
            self._set_all_aside(delivery, update, error)
        except BaseException as error:  # panics of native libraries included
            if len(update.ids) > 1:
                for half in halves(update):
                    self._apply_one(delivery, half)
                return
            self.aside.append(SetAside(delivery, tuple(update.ids), self._fault(update, error)))

    def _set_all_aside(self, delivery: Delivery, update: Any, error: ConfigError) -> None:
        """Set aside what together shows that it is of another content space: halves would not show it."""
        self.aside.append(SetAside(delivery, tuple(update.ids), error))

    def _is_telling(self, update: Any) -> bool:
        """Return whether an update with enough content, or without any, is judged by itself."""
        least = self._table.bundle.content_space.telling_rows
        content = update.content if isinstance(update, Upsert) else None
        if least is None or not isinstance(content, np.ndarray):
            return False
        rows = int(np.count_nonzero(np.any(np.nan_to_num(content), axis=1)))
        return rows == 0 or rows >= _SURE * least

    def _refused(self, run: Sequence[Entry]) -> ConfigError | None:
        """Return the error by which the content of a run is refused as one, or ``None``."""
        try:
            if run:
                self._table.bundle.content_space.apply(joined(run).content)
        except ConfigError as error:
            return error
        except AifError:
            pass  # the fault of some item, which is found when they are applied
        return None

    def _apply(self, update: Update) -> None:
        if isinstance(update, Upsert):
            self.done["upserted"] += self._table.apply(update) if len(update.ids) else 0
            return
        keys = item_keys(update.ids)
        removed = 0 if self._table.keeps_deleted else self._table.delete(keys)
        self.done["deleted"] += removed
        self.done["ignored"] += len(keys) - removed

    def _fault(self, update: Update, error: BaseException) -> AifError:
        """Return the error of an item whose fault it is; raise it again if the item can be read."""
        if isinstance(error, (DataError, ItemIndexError, RequestError, SchemaError)):
            return error
        try:
            self._table.check(update)
        except _NO_FAULT:
            raise
        except BaseException as found:
            return own_error(found, "stream")
        raise error
