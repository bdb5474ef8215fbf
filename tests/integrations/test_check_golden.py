"""A model of PyTorch, trained on a log and served here by weights of the same names."""

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np
import pytest

import aif_jax as aif
from aif_jax.data import Dataset, load
from aif_jax.integrations.golden import check_golden
from aif_jax.serving import GoldenRequest

K, WIDTH, HISTORY = 32, 8, 16


class Log(NamedTuple):
    """A data set, and the names of the features and of the label that the model is about."""

    data: Dataset
    schema: aif.Schema
    item: str
    category: str
    segment: str
    activity: str
    pair: str
    head: str


MADE_UP = ("synthetic:small", ("item_id", "category", "segment", "activity", "retrieval_score", "ctr"))
LOGS = {"made up": MADE_UP}
if "AIF_JAX_DATA" in os.environ:
    # Only where the real sets are at hand: AIF_JAX_DATA names a folder with ml-1m, ml-100k and kuairand.
    names = ("movie_id", "year", "occupation", "age", "", "liked")
    LOGS["ml-100k"] = (f"movielens-100k:{os.environ['AIF_JAX_DATA']}/ml-100k", names)


def log_of(source: str, names: tuple[str, ...]) -> Log:
    data = load(source, content_width=0)
    return Log(data, data.fit_schema(), *names)


def pooled_rows(log: Log) -> dict[str, np.ndarray]:
    """Return arrays of training rows: user, item and pair features, behaviours, and the label."""
    data, schema = log.data, log.schema
    rows = np.flatnonzero(data.impressions.split == 0)
    seen = data.impressions
    history, _ = data.history(seen.user[rows], seen.history_end[rows], HISTORY)
    items, users = data.encode(schema, "item"), data.encode(schema, "user")
    return {
        "segment": users[log.segment][seen.user[rows]], "activity": users[log.activity][seen.user[rows]],
        "item": items[log.item][seen.item[rows]], "category": items[log.category][seen.item[rows]],
        "history": np.where(history >= 0, items[log.item][np.maximum(history, 0)], -1),
        "pair": data.encode(schema, "pair", rows).get(log.pair, np.zeros((len(rows), 0))),
        "label": seen.labels[log.head][rows].astype(np.float32),
    }  # fmt: skip


def sizes_of(log: Log) -> dict[str, int]:
    """Return the sizes of the model's embedding tables, and the width of its MLP, by their names in it."""
    size = {f.name: f.size for f in (*log.schema.item, *log.schema.user) if hasattr(f, "size")}
    tables = {"item_id": size[log.item], "category": size[log.category], "segment": size[log.segment]}
    return {**tables, "mlp": 3 * WIDTH + 2 * bool(log.pair)}


def dssm_of(torch: Any, log: Log) -> Any:
    """Return a DSSM with an MLP over both vectors, in PyTorch."""
    size, nn = sizes_of(log), torch.nn

    class Dssm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.item_id = nn.Embedding(size["item_id"], WIDTH)
            self.category = nn.Embedding(size["category"], WIDTH)
            self.segment = nn.Embedding(size["segment"], WIDTH)
            self.item_tower = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
            self.user_tower = nn.Sequential(
                nn.Linear(2 * WIDTH + 2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)
            )
            self.mlp = nn.Sequential(nn.Linear(size["mlp"], 16), nn.ReLU(), nn.Linear(16, 1))

        def forward(self, given: Any) -> Any:
            item = torch.cat([self.item_id(given["item"]), self.category(given["category"])], -1)
            item = self.item_tower(item)
            mask = (given["history"] >= 0)[..., None].float()
            behaviours = self.item_id(given["history"].clamp(min=0)) * mask
            pooled = behaviours.sum(1) / mask.sum(1).clamp(min=1)
            user = torch.cat([self.segment(given["segment"]), given["activity"], pooled], -1)
            user = self.user_tower(user)
            return self.mlp(torch.cat([user, item, user * item, given["pair"]], -1))[:, 0]

    return Dssm()


def twin_of(weights: dict[str, np.ndarray], log: Log) -> aif.Functions:
    """Return the same model as functions of its state_dict."""
    import jax
    import jax.numpy as jnp

    def layers(p: Any, name: str, x: Any) -> Any:
        hidden = jax.nn.relu(x @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"])
        return hidden @ p[f"{name}.2.weight"].T + p[f"{name}.2.bias"]

    def item(p: Any, features: Any) -> Any:
        parts = [p["item_id.weight"][features[log.item]], p["category.weight"][features[log.category]]]
        return {"vector": layers(p, "item_tower", jnp.concatenate(parts, axis=-1))}

    def behaviour(p: Any, features: Any) -> Any:
        return {"token": p["item_id.weight"][features[log.item]]}

    def user(p: Any, features: Any, histories: Any) -> Any:
        mask = histories["long"]["mask"][..., None].astype(jnp.float32)
        pooled = (histories["long"]["token"] * mask).sum(1) / jnp.maximum(mask.sum(1), 1.0)
        parts = [p["segment.weight"][features[log.segment]], features[log.activity], pooled]
        return {"vector": layers(p, "user_tower", jnp.concatenate(parts, axis=-1))}

    def interact(p: Any, state: Any, context: Any, rows: Any, pair: Any) -> Any:
        one = jnp.broadcast_to(state["vector"], rows["vector"].shape)
        x = [one, rows["vector"], one * rows["vector"], *([pair[log.pair]] if log.pair else [])]
        return {log.head: layers(p, "mlp", jnp.concatenate(x, axis=-1))[:, 0]}

    return aif.Functions(weights, item=item, behaviour=behaviour, user=user, interact=interact)


def records_of(log: Log) -> dict[str, Any]:
    """Return the items, without content, which this model does not read, and the source of users."""
    items = dataclasses.replace(log.data.item_records(8), content=None)
    return {"items": items, "users": lambda user: log.data.user_record(user, length=HISTORY)}


def requests_of(log: Log, n: int = 6) -> list[GoldenRequest]:
    rng, ids = np.random.default_rng(0), np.asarray(log.data.items["ids"])
    context = {"hour": 3, "device": "phone"} if log.schema.context else {}
    return [
        GoldenRequest(
            user=user, candidates=rng.permutation(ids)[:50], context=context,
            pair={log.pair: rng.normal(size=50)} if log.pair else {},
        )
        for user in range(n)
    ]  # fmt: skip


def encoded(log: Log, request: GoldenRequest) -> dict[str, np.ndarray]:
    """Return the inputs of the model of PyTorch for a request, prepared without the engine."""
    data, schema = log.data, log.schema
    place = {key: row for row, key in enumerate(np.asarray(data.items["ids"]).tolist())}
    user, n = request.user, len(request.candidates)
    rows = [place[key] for key in request.candidates.tolist()]
    items, users = data.encode(schema, "item"), data.encode(schema, "user")
    record = data.user_record(request.user, length=HISTORY)
    behaviours = items[log.item][[place[key] for key in record.items]]
    history = np.pad(behaviours, (0, HISTORY - len(behaviours)), constant_values=-1)
    return {
        "segment": np.repeat(users[log.segment][user], n),
        "activity": np.repeat(users[log.activity][user][None], n, axis=0),
        "item": items[log.item][rows], "category": items[log.category][rows],
        "history": np.repeat(history[None], n, axis=0),
        "pair": schema.encode("pair", request.pair, n).get(log.pair, np.zeros((n, 0))),
    }  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_check_golden_model_of_torch_serves_its_scores(name: str, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    log = log_of(*LOGS[name])

    def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        kinds = {key: np.int64 if a.dtype.kind == "i" else np.float32 for key, a in arrays.items()}
        return {key: torch.as_tensor(np.asarray(a, kinds[key])) for key, a in arrays.items()}

    model, given = dssm_of(torch, log), tensors(pooled_rows(log))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses, rng = [], np.random.default_rng(0)
    for _ in range(60):
        rows = torch.as_tensor(rng.integers(0, len(given["label"]), 2048))
        batch = {key: tensor[rows] for key, tensor in given.items()}
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    weights = {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}
    twin = twin_of(weights, log)
    bundle = aif.export(twin, log.schema, tmp_path / "dssm", k_max=K, long_length=HISTORY)
    requests = requests_of(log)
    with torch.no_grad():
        outputs = [{log.head: model(tensors(encoded(log, each))).numpy()} for each in requests]
    found = check_golden(bundle, requests, outputs, **records_of(log))
    print("largest difference:", found)
    assert found[log.head] < 1e-5


def test_check_golden_wrong_weight_shows(tmp_path: Any) -> None:
    rng, log = np.random.default_rng(0), log_of(*MADE_UP)
    size = sizes_of(log)
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (size[name], WIDTH) for name in ("item_id", "category", "segment")
    }
    sizes = {
        "item_tower": (2 * WIDTH, WIDTH),
        "user_tower": (2 * WIDTH + 2, WIDTH),
        "mlp": (size["mlp"], 16),
    }
    for name, (n_in, hidden) in sizes.items():
        n_out = 1 if name == "mlp" else WIDTH
        shapes |= {f"{name}.0.weight": (hidden, n_in), f"{name}.0.bias": (hidden,)}
        shapes |= {f"{name}.2.weight": (n_out, hidden), f"{name}.2.bias": (n_out,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    twin = twin_of(weights, log)
    bundle = aif.export(twin, log.schema, tmp_path / "twin", k_max=K, long_length=HISTORY)
    requests, given = requests_of(log, 2), records_of(log)

    def logits(model: aif.Functions, request: GoldenRequest) -> dict[str, np.ndarray]:
        inputs = encoded(log, request)
        rows = model.item({"item_id": inputs["item"], "category": inputs["category"]})
        history = inputs["history"][:1]
        long = {"token": weights["item_id.weight"][np.maximum(history, 0)], "mask": history >= 0}
        features = {"segment": inputs["segment"][:1], "activity": inputs["activity"][:1]}
        state = {n: leaf[0] for n, leaf in model.user(features, {"long": long}).items()}
        return {
            n: np.asarray(a)
            for n, a in model.interact(state, {}, rows, {"retrieval_score": inputs["pair"]}).items()
        }

    outputs = [logits(twin, request) for request in requests]
    assert check_golden(bundle, requests, outputs, **given)["ctr"] < 1e-5
    swapped = weights | {"mlp.0.weight": weights["mlp.0.weight"][::-1].copy()}
    wrong = [logits(twin_of(swapped, log), request) for request in requests]
    assert check_golden(bundle, requests, wrong, **given)["ctr"] > 0.01
    with pytest.raises(aif.AifError, match=r"expected the logits of head 'ctr' as an array of 50"):
        check_golden(bundle, requests, [{"ctr": [0.0]}] * 2, **given)
    with pytest.raises(aif.AifError, match=r"outputs: got 1 for 2 requests"):
        check_golden(bundle, requests, outputs[:1], **given)
