"""What every real-time stage is: candidates of one compiled call in, the best of them out."""

import abc
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from aif_jax.features import pad_to

Progress = Callable[[int, int, str], None]
"""Called with the number of programs ready, the number of all, and the name of the last."""

Refuse = Callable[[np.ndarray], None]
"""Called with which candidates have a row, bool ``[n]``, if some have none; may raise."""

Meanwhile = Callable[[], None]
"""Called once when a program was dispatched, to do what need not wait for its results."""


class StagePart(NamedTuple):
    """What the stage made of one call's candidates.

    Attributes:
        order: positions of the best candidates among the call's, best first, int64 ``[k]``.
        scores: float32 ``[k]``.
        heads: float32 ``[k, n_heads]``.
        unscored: candidates whose score is not finite.
        missing: candidates without a row, whether or not the default row stood in for it.
        not_rankable: candidates with a row that may not be ranked.
        prepare_s: seconds until the program was dispatched: rows gathered or looked up, operands laid out.
        stage_s: seconds from there until the results were on the host.
    """

    order: np.ndarray
    scores: np.ndarray
    heads: np.ndarray
    unscored: int
    missing: int
    not_rankable: int
    prepare_s: float
    stage_s: float


class StageCall(NamedTuple):
    """One call of a stage, see `Stage.score_part`: pair features padded and among the operands.

    Attributes:
        operands: by path.
        keys: uint64 ``[n]``.
        size: the bucket.
        length: the long bucket.
        refuse: may raise for candidates without a row.
        meanwhile: is called when the program was dispatched.
        began_s: when the call came, on the clock of ``time.perf_counter``.
    """

    operands: Mapping[str, Any]
    keys: np.ndarray
    size: int
    length: int
    refuse: Refuse | None
    meanwhile: Meanwhile | None
    began_s: float


class Stage(abc.ABC):
    """The real-time stage of one bundle over item rows, wherever these are. Safe to use from any thread."""

    def score_part(
        self,
        shared: Mapping[str, Any],
        keys: np.ndarray,
        pair: Mapping[str, np.ndarray],
        size: int,
        length: int,
        *,
        refuse: Refuse | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> StagePart:
        """Score candidates in one call and take the best.

        Args:
            shared: operands by path that all candidates share: ``state/...``, as the user program gives them,
                on whatever device, and ``context/...``; others are ignored.
            keys: of the candidates, uint64 ``[n]``.
            pair: encoded pair features by name, and raw ones under ``raw_<name>``, ``[n, ...]``.
            size: the bucket, at least n.
            length: the long bucket of the user state.
            refuse: called with which candidates have a row, bool ``[n]``, if some have none; may raise.
            meanwhile: called when the program was dispatched.

        Raises:
            ConfigError: size and length are not compiled for.
            RequestError: there are more candidates than ``size``.
            ItemIndexError: the rows are on a device, and are closed or were lost.
        """
        began_s = time.perf_counter()
        self._check_size(size, length)
        padded = {f"pair/{name}": pad_to(column, size) for name, column in pair.items()}
        return self._score(StageCall({**shared, **padded}, keys, size, length, refuse, meanwhile, began_s))

    @property
    def device_bytes(self) -> int | None:
        """Bytes of rows on a device; ``None`` for rows on the host."""
        return None

    def close(self) -> None:  # noqa: B027, most have nothing to give back
        """Give back what the stage holds besides the host's memory; no request may be under way."""

    @abc.abstractmethod
    def _check_size(self, size: int, length: int) -> None:
        """Raise `ConfigError` for sizes that are not compiled for."""

    @abc.abstractmethod
    def _score(self, call: StageCall) -> StagePart:
        """Score the candidates of one call."""
