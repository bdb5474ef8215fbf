"""A small model of the contract, over the schema of `support.served`, and its scores without any program."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.models.contract import Functions
from aif_jax.types import UserRecord
from support.served import SCHEMA, World

WIDTH, SHORT, LONG = 8, 5, 24
HEADS = ("ctr", "cvr")
SCORE = "ctr * (cvr + 0.1) * bid"


def parameters(seed: int = 0) -> dict[str, Any]:
    """Draw the parameters of `mean_pool`."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (0.5 * rng.normal(size=shape)).astype(np.float32)

    size = {
        f.name: f.size
        for f in (*SCHEMA.user, *SCHEMA.item, *SCHEMA.context, *SCHEMA.pair)
        if hasattr(f, "size")
    }
    return {
        "item": {"id": drawn(size["item"], WIDTH), "price": drawn(2, WIDTH), "content": drawn(8, WIDTH)},
        "user": {"country": drawn(size["country"], WIDTH), "kind": drawn(3, WIDTH)},
        "layers": [drawn(4 * WIDTH, 16), drawn(16, len(HEADS))],
        "hour": drawn(size["hour"], 16),
        "pair": drawn(2 + WIDTH, 16),
        "channel": drawn(size["channel"], WIDTH),
    }


def item(p: Any, features: Any) -> dict[str, jax.Array]:
    """Return a vector, and whether the item has a genre."""
    vector = p["item"]["id"][features["item"]] + features["price"] @ p["item"]["price"]
    vector += features["content"] @ p["item"]["content"]
    return {
        "vector": vector,
        "genres": jnp.sum(features["genres"] > 0, axis=-1, keepdims=True).astype(jnp.uint8),
    }


def behaviour(p: Any, features: Any) -> dict[str, jax.Array]:
    """Return what histories read of an item."""
    return {"token": item(p, features)["vector"]}


def user(p: Any, features: Any, histories: Any) -> dict[str, jax.Array]:
    """Return the profile with the mean of the last behaviours, and the long history itself."""
    pooled = {}
    for name, sequence in histories.items():
        mask = sequence["mask"][..., None].astype(jnp.float32)
        tokens = (sequence["token"] + p["user"]["kind"][sequence["type"]]) * mask
        pooled[name] = tokens.sum(1) / jnp.maximum(mask.sum(1), 1.0)
    long = histories["long"]
    return {
        "profile": p["user"]["country"][features["country"]] + pooled["short"],
        "pooled": pooled["long"],
        "tokens": long["token"] * long["mask"][..., None].astype(jnp.float32),
    }


def interact(p: Any, state: Any, context: Any, rows: Any, pair: Any) -> dict[str, jax.Array]:
    """Return the logits of attention over the history, and an MLP."""
    vector = rows["vector"]
    weights = jnp.tanh(vector @ state["tokens"].T)
    attended = weights @ state["tokens"] / 10.0
    alike = [jnp.broadcast_to(x, vector.shape) for x in (state["profile"], state["pooled"])]
    x = jnp.concatenate([vector, attended, *alike], axis=-1) @ p["layers"][0] + p["hour"][context["hour"]]
    x += jnp.concatenate([pair["bid"], p["channel"][pair["channel"]]], axis=-1) @ p["pair"]
    x *= 1.0 + 0.1 * rows["genres"].astype(jnp.float32)
    logits = jax.nn.relu(x) @ p["layers"][1]
    return {head: logits[:, place] for place, head in enumerate(HEADS)}


FUNCTIONS = {"item": item, "behaviour": behaviour, "user": user, "interact": interact}


def mean_pool(seed: int = 0, **changes: Any) -> Functions:
    """Return the model; ``changes`` replace its functions, or its ``parameters``."""
    given = {"parameters": parameters(seed), **FUNCTIONS, **changes}
    return Functions(given.pop("parameters"), **given)


def scores(
    world: World,
    record: UserRecord,
    ids: Any,
    pair: Mapping[str, Any],
    context: Mapping[str, Any],
    *,
    long: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score ``[N]`` and the probabilities ``[N, heads]``, by the functions one after the other."""
    position = {key: row for row, key in enumerate(world.ids.tolist())}

    def rows(items: Any) -> dict[str, np.ndarray]:
        places = np.asarray(items, np.int32)
        return {name: np.asarray(column)[places] for name, column in world.catalogue.items()}

    histories = {}
    for name, length in (("short", SHORT), ("long", LONG if long else 0)):
        known = [position[int(i)] for i in record.items[:length]]
        padding = (LONG if name == "long" else SHORT) - len(known)
        types = np.pad(np.asarray(record.types[: len(known)], np.int32), (0, padding))
        mask = np.arange(len(known) + padding) < len(known)
        histories[name] = {"items": rows(known + [0] * padding), "type": types[None], "mask": mask[None]}
    heads = _probabilities(
        parameters(), SCHEMA.encode("user", {name: [v] for name, v in record.features.items()}, 1), histories,
        SCHEMA.encode_one("context", context), rows([position[int(i)] for i in ids]),
        SCHEMA.encode("pair", pair, len(ids)),
    )  # fmt: skip
    heads = np.asarray(heads)
    bid = np.asarray(pair.get("bid", np.zeros(len(ids))), np.float32)
    return heads[:, 0] * (heads[:, 1] + 0.1) * bid, heads


@jax.jit
def _probabilities(
    p: Any, features: Any, histories: Any, context: Any, candidates: Any, pair: Any
) -> jax.Array:
    """Return the probabilities ``[N, heads]`` of the functions, one after the other."""
    with jax.default_matmul_precision("highest"):
        read = {}
        for name, sequence in histories.items():
            tokens = behaviour(p, sequence["items"])["token"]
            tokens *= sequence["mask"][0][:, None].astype(np.float32)
            read[name] = {"token": tokens[None], "type": sequence["type"], "mask": sequence["mask"]}
        state = {name: leaf[0] for name, leaf in user(p, features, read).items()}
        logits = interact(p, state, context, item(p, candidates), pair)
    return jax.nn.sigmoid(jnp.stack([logits[head] for head in HEADS], axis=-1))
