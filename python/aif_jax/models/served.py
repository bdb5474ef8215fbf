"""A model in the form that is served: four pure functions, and the shapes of what goes in and comes out.

The exporter of bundles knows models in this form only. `aif_jax.models.folding.Folded` is that of our own
model; `aif_jax.models.contracted.Contracted` makes it of any object with the functions of
`aif_jax.models.contract`.
"""

import abc
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from aif_jax.config import ModelSpec
from aif_jax.errors import RequestError
from aif_jax.features import Schema
from aif_jax.features.score import Score
from aif_jax.kernels import RANKABLE, top_k
from aif_jax.models.blocks.base import F4, I4, ColumnShapes
from aif_jax.models.layers import as_arrays
from aif_jax.types import Columns

Arrays: TypeAlias = Mapping[str, jax.Array]
Program = Literal["behaviour", "item", "user", "stage"]
Spec: TypeAlias = dict[str, jax.ShapeDtypeStruct]
Size: TypeAlias = Any
"""A length: an int, or a symbolic dimension of `jax.export`."""

_ROWS = 64
"""XLA multiplies fewer rows than this by other code, which adds in another order: pad to no fewer."""


class ServedShapes:
    """Inputs and outputs of a served model's functions.

    Attributes:
        spec: the description that tables and engine read.
        schema: its schema.
        score: the score expression; ``score.raw`` names the raw pair features that the stage wants.
        behaviour_columns: columns of the behaviour table.
        item_columns: columns of an item row that the stage reads, in the precision.
        kept_columns: columns that `ServedModel.extend` gives of each behaviour of a long sequence, and goes
            on from; empty for none. ``<name>_kept`` depends on ``<name>``, ``gap`` and type of the behaviour
            and of those before it in the sequence, and on nothing else.
    """

    spec: ModelSpec
    schema: Schema
    score: Score
    behaviour_columns: ColumnShapes
    item_columns: ColumnShapes
    kept_columns: ColumnShapes

    def item_inputs_spec(self, m: Size) -> Spec:
        """Return encoded items with content, ``[M, ...]``: the input of the behaviour and item programs."""
        content: ColumnShapes = {"content": ((self.spec.content_width,), F4), "has_content": ((1,), F4)}
        return spec_of({**self.schema.spec("item"), **content}, m)

    def behaviour_spec(self, m: Size) -> Spec:
        """Return behaviour rows ``[M, ...]``."""
        return spec_of(self.behaviour_columns, m)

    def rows_spec(self, n: Size) -> Spec:
        """Return what the stage reads of item rows, ``[N, ...]``."""
        return spec_of(self.item_columns, n)

    def user_inputs_spec(self, b: Size) -> Spec:
        """Return encoded user features ``[B, ...]``."""
        return spec_of(self.schema.spec("user"), b)

    def types_spec(self, b: Size, length: Size) -> jax.ShapeDtypeStruct:
        """Return behaviour types ``[B, length]``."""
        return jax.ShapeDtypeStruct((b, length), I4)

    def valid_spec(self, n: Size) -> jax.ShapeDtypeStruct:
        """Return the mask of candidates ``[N]``."""
        return jax.ShapeDtypeStruct((n,), np.dtype(np.bool_))

    def context_spec(self) -> Spec:
        """Return encoded context features of one request, without a leading axis."""
        return spec_of(self.schema.spec("context"))

    def pair_spec(self, n: Size) -> Spec:
        """Return encoded pair features ``[N, ...]`` and the raw ones that the score uses ``[N]``."""
        raw: ColumnShapes = {f"raw_{name}": ((), F4) for name in self.score.raw}
        return spec_of({**self.schema.spec("pair"), **raw}, n)


class ServedModel(ServedShapes, abc.ABC):
    """A served model. Its functions are pure and take the weights first, a flat dictionary.

    Attributes, besides those of `ServedShapes`:
        weights: arrays by name, sorted.
        source: values from which the functions can be made again without the model, JSON-serialisable; empty
            if they cannot.
    """

    weights: Mapping[str, np.ndarray]
    source: Mapping[str, Any]

    @abc.abstractmethod
    def weights_of(self, program: Program) -> dict[str, np.ndarray]:
        """Return the weights that one program reads, by name, sorted."""

    @abc.abstractmethod
    def histories_spec(self, b: Size, length: Size) -> dict[str, Any]:
        """Return what the user program reads of histories.

        Args:
            b: users.
            length: ``L``, of the long sequence.

        Returns:
            For each of the sequences ``short`` (``[B, S, ...]``) and ``long`` (``[B, L, ...]``), most recent
            first: its behaviour columns, and under ``<name>_type`` the types, int32; -1 where there is no
            behaviour, or the table does not know its item. A sequence that is not read is left out.
        """

    @abc.abstractmethod
    def state_spec(self, length: Size) -> Spec:
        """Return one user's state for a long sequence of length ``L``, without a leading axis."""

    @abc.abstractmethod
    def behaviour(self, weights: Columns, item_inputs: Columns) -> dict[str, jax.Array]:
        """Return behaviour rows ``[M, ...]``: what the user side needs of items that appear in histories.

        Args:
            weights: of the program ``behaviour``.
            item_inputs: encoded item features ``[M, ...]``, ``content`` ``[M, d_m]`` and ``has_content``
                ``[M, 1]``.
        """

    @abc.abstractmethod
    def item(self, weights: Columns, item_inputs: Columns) -> dict[str, jax.Array]:
        """Return item rows ``[M, ...]``.

        Args:
            weights: of the program ``item``.
            item_inputs: as for `behaviour`.

        Returns:
            The `item_columns`, and ``prior`` float32 ``[M, n_heads]`` if the spec has rung 3: the logits for
            a user of whom nothing is known, context and pair features missing.
        """

    @abc.abstractmethod
    def user(
        self,
        weights: Columns,
        user_inputs: Columns,
        short: Columns,
        short_type: Any,
        long: Columns,
        long_type: Any,
    ) -> dict[str, jax.Array]:
        """Return user states ``[B, ...]``.

        Args:
            weights: of the program ``user``.
            user_inputs: encoded user features ``[B, ...]``.
            short: behaviour columns ``[B, S, ...]``, as of `histories_spec`; empty if they are not read.
            short_type: int32 ``[B, S]``; ``None`` if the sequence is not read.
            long: behaviour columns ``[B, L, ...]``, as ``short``.
            long_type: int32 ``[B, L]``, as ``short_type``.
        """

    def extend(
        self,
        weights: Columns,
        user_inputs: Columns,
        short: Columns,
        short_type: Any,
        long: Columns,
        long_type: Any,
        new: jax.Array,
    ) -> dict[str, jax.Array]:
        """Return user states as `user` does, of the kept columns computing the most recent places alone.

        A model without `kept_columns` computes everything.

        Args:
            weights: of the program ``user``.
            user_inputs: as of `user`.
            short: as of `user`.
            short_type: as of `user`.
            long: as of `user`, and the `kept_columns` ``[B, L, ...]`` that this function returned for the
                same behaviours; those of the ``P`` most recent are not read.
            long_type: as of `user`.
            new: int32 ``[P]``, the numbers from 0 to ``P - 1``, at most ``L``: which places are computed.

        Returns:
            The state's entries, and the `kept_columns` ``[B, L, ...]``: those of ``P = L`` but for the order
            of floating-point sums.
        """
        return self.user(weights, user_inputs, short, short_type, long, long_type)

    @abc.abstractmethod
    def interact(
        self, weights: Columns, state: Columns, context: Columns, rows: Columns, pair: Columns
    ) -> jax.Array:
        """Return the logits ``[N, n_heads]`` of candidates whose rows are given, on any platform.

        Args:
            weights: of the program ``stage``.
            state: one user's state, without a leading axis.
            context: encoded context features ``[...]``, without a leading axis.
            rows: item rows ``[N, ...]``.
            pair: encoded pair features ``[N, ...]``.
        """

    @abc.abstractmethod
    def cached_interact(
        self, weights: Columns, state: Columns, context: Columns, cached: Columns, pair: Columns
    ) -> tuple[jax.Array, jax.Array]:
        """Return logits as `interact` does, of candidates whose rows are in an embedding cache; on a CPU.

        Args:
            weights: of the program ``stage``.
            state: as of `interact`.
            context: as of `interact`.
            cached: ``index``, ``missing``, ``ids`` and ``count``, see `aif_jax.kernels.cached_interaction`.
            pair: as of `interact`.

        Returns:
            Logits ``[N, n_heads]``, and each candidate's status uint8 ``[N]``.
        """

    def stage_scores(
        self,
        weights: Columns,
        state: Columns,
        rows: Columns,
        valid: jax.Array,
        context: Columns,
        pair: Columns,
    ) -> tuple[jax.Array, jax.Array]:
        """Score candidates whose rows are given, on any platform.

        A candidate's score of our own model is the same, bit for bit, whatever else is in the request, as
        long as ``N`` is a multiple of 16. (Tested on x86 with jax 0.10; jax 0.8 sums products of a few
        hundred rows with wide layers in an order that depends on ``N``, and the last bit may differ.)

        Args:
            weights: of the program ``stage``.
            state: one user's state, without a leading axis.
            rows: item rows ``[N, ...]``.
            valid: bool ``[N]``, which rows are candidates.
            context: encoded context features ``[...]``, without a leading axis.
            pair: encoded pair features ``[N, ...]``; and for each name in ``score.raw`` the values
                as given, ``raw_<name>`` ``[N]``, 0 where missing.

        Returns:
            Scores ``[N]``, -inf where not valid or where the score expression is not finite; and the
            calibrated logits ``[N, n_heads]``.
        """
        pairs, n = as_arrays(pair), valid.shape[0]
        padding = rows_to_pad(n)
        given = padded(as_arrays(rows), padding), padded(pairs, padding)
        logits = self.interact(weights, state, context, *given)[:n]
        return self._scores(logits, jnp.asarray(valid).astype(bool), pairs)

    def cached_scores(
        self,
        weights: Columns,
        state: Columns,
        cached: Columns,
        context: Columns,
        pair: Columns,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Score candidates by id, their rows read from an embedding cache inside the program; on a CPU.

        Equal to `stage_scores` but for the order of floating-point sums. A candidate's score of our own model
        is the same, bit for bit, in any company and any ``N``.

        Args:
            weights: of the program ``stage``.
            state: one user's state, without a leading axis.
            cached: as of `cached_interact`.
            context: as of `stage_scores`.
            pair: as of `stage_scores`.

        Returns:
            Scores and logits as of `stage_scores`, and each candidate's status uint8 ``[N]``.
        """
        logits, status = self.cached_interact(weights, state, context, cached, pair)
        # The highest bit that there is; one operation fewer, and XLA does not share the few microseconds of
        # this out to its threads, which takes it longer than doing them.
        rankable = status >= np.uint8(RANKABLE)
        scores, logits = self._scores(logits, rankable, as_arrays(pair))
        return scores, logits, status

    def stage(
        self,
        weights: Columns,
        state: Columns,
        rows: Columns,
        valid: jax.Array,
        context: Columns,
        pair: Columns,
        *,
        k: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Score candidates and return the best ``k``; arguments as of `stage_scores`.

        Returns:
            Positions int32 ``[k]`` in descending order of score (equal scores: the earlier position first),
            their scores ``[k]`` and their head probabilities ``[k, n_heads]``. What is not valid comes last,
            with score -inf.

        Raises:
            RequestError: ``k`` is not positive, or larger than ``N``.
        """
        n = valid.shape[0]
        if k < 1 or (isinstance(n, int) and k > n):
            raise RequestError(f"k: got {k}, expected 1 to {n}, the number of (padded) candidates.")
        score, logits = self.stage_scores(weights, state, rows, valid, context, pair)
        best, order = top_k(score, k)
        return order, best, jax.nn.sigmoid(jnp.take(logits, order, axis=0, mode="clip"))

    def _scores(self, logits: jax.Array, valid: jax.Array, pair: Arrays) -> tuple[jax.Array, jax.Array]:
        score = self.score(logits, {name: pair[f"raw_{name}"] for name in self.score.raw})
        return jnp.where(valid & jnp.isfinite(score), score, -jnp.inf), logits


def spec_of(columns: ColumnShapes, *lead: Size) -> Spec:
    """Return columns under leading axes, as shapes."""
    return {
        name: jax.ShapeDtypeStruct((*lead, *shape), dtype) for name, (shape, dtype) in sorted(columns.items())
    }


def zeros_of(spec: Spec) -> dict[str, jax.Array]:
    """Return encoded features of which every one is missing, or rows that are not there."""
    return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}


def rows_to_pad(n: Size) -> Any:
    """Return how many rows n candidates lack to as many as are computed at least."""
    return jax.core.max_dim(_ROWS - n, 0)


def padded(columns: Arrays, n: Any) -> dict[str, jax.Array]:
    """Append n rows of zeros to every column; n may be a symbolic dimension."""
    return {
        name: jnp.concatenate([values, jnp.zeros((n, *values.shape[1:]), values.dtype)])
        for name, values in columns.items()
    }
