"""The contract of a model of your own: three functions of arrays, with parameters that a tree holds.

``B`` is users, ``M`` items, ``N`` candidates of one request, ``L`` behaviours of a history. Features come
encoded, by name:

==========================  ===========================================  =====================================
a feature that is           array                                        a value that is missing or unknown
==========================  ===========================================  =====================================
`Categorical`               int32 ``[...]``, below ``feature.size``      0; 1 if unknown to its vocabulary
`MultiValued`               int32 ``[..., max_values]``, filled from     0 in the places without a value
                            the left
`Numeric`                   float32 ``[..., 2]``: the standardised       0, 0
                            value, and 1
content of an item          ``content`` float32 ``[M, d_m]``,            zeros, 0
                            ``has_content`` float32 ``[M, 1]``
==========================  ===========================================  =====================================

A sequence of a history is a dictionary of arrays ``[B, L, ...]``, most recent behaviour first: the columns
that ``behaviour`` gives of its items, ``type`` int32 ``[B, L]`` and ``mask`` bool ``[B, L]``. Where ``mask``
is false there is no behaviour, and columns and type are zeros. With ``gaps`` the sequence ``long`` has
``gap`` int32 ``[B, L]`` too: the step of the time since the behaviour before, see
`aif_jax.features.gaps.gap_steps`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from aif_jax.checks import typed
from aif_jax.types import Columns

Logits = Mapping[str, jax.Array] | jax.Array
"""Logits ``[N]`` by head; or ``[N, n_heads]``, whose heads are named to `aif_jax.export`."""


@runtime_checkable
class PreRanker(Protocol):
    """A model that `aif_jax.export` takes: a Flax NNX module, an equinox module, `Functions`, or any pytree.

    A fourth method is optional: ``behaviour(features)``, as `item`, gives the columns ``[M, ...]`` that
    histories read of an item. So is an attribute ``blocks``, names of the model's parts.
    """

    def item(self, features: Columns, /) -> Columns:
        """Return the columns of item rows ``[M, ...]``, computed nearline.

        Args:
            features: encoded item features ``[M, ...]``, with content if there is any.
        """
        ...

    def user(self, features: Columns, histories: Mapping[str, Columns], /) -> Columns:
        """Return the columns of user states ``[B, ...]``, computed while retrieval runs.

        Args:
            features: encoded user features ``[B, ...]``.
            histories: sequences under the names ``long`` and ``short``, those that the export gave a length.
        """
        ...

    def interact(self, state: Columns, context: Columns, rows: Columns, pair: Columns, /) -> Logits:
        """Return the logits of a request's candidates, computed after retrieval.

        A candidate's logit must not depend on the other candidates.

        Args:
            state: columns of one user's state ``[...]``, without a leading axis.
            context: encoded context features ``[...]`` of the request, without a leading axis.
            rows: columns of the candidates' rows ``[N, ...]``.
            pair: encoded pair features ``[N, ...]``.
        """
        ...


class Functions:
    """A model of plain functions: each takes the parameters, then what the method of `PreRanker` takes.

    Args:
        parameters: a tree of arrays: dictionaries, lists and tuples.
        item: see `PreRanker.item`.
        user: see `PreRanker.user`.
        interact: see `PreRanker.interact`.
        behaviour: as ``item``, for the rows that histories read.

    >>> import numpy as np
    >>> model = Functions(
    ...     {"towns": np.ones((4, 2), np.float32), "items": np.ones((9, 2), np.float32)},
    ...     item=lambda p, features: {"vector": p["items"][features["item"]]},
    ...     user=lambda p, features, histories: {"vector": p["towns"][features["town"]]},
    ...     interact=lambda p, state, context, rows, pair: {"click": rows["vector"] @ state["vector"]},
    ... )
    >>> model.item({"item": np.array([3, 4])})["vector"].shape
    (2, 2)
    """

    @typed
    def __init__(
        self,
        parameters: Any,
        *,
        item: Callable[..., Columns],
        user: Callable[..., Columns],
        interact: Callable[..., Logits],
        behaviour: Callable[..., Columns] | None = None,
    ) -> None:
        self.parameters = parameters
        self._functions = {"item": item, "user": user, "interact": interact, "behaviour": behaviour}
        self.item = functools.partial(item, parameters)
        self.user = functools.partial(user, parameters)
        self.interact = functools.partial(interact, parameters)
        self.behaviour = None if behaviour is None else functools.partial(behaviour, parameters)


def _flatten(model: Functions) -> tuple[Any, Any]:
    return ((jax.tree_util.GetAttrKey("parameters"), model.parameters),), tuple(model._functions.items())


def _unflatten(functions: Any, children: Any) -> Functions:
    (parameters,) = children
    return Functions(parameters, **dict(functions))


jax.tree_util.register_pytree_with_keys(Functions, _flatten, _unflatten)
