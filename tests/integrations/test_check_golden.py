"""A model of PyTorch, trained on a log and served here by weights of the same names."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import aif_jax as aif
from aif_jax.data import Dataset, load
from aif_jax.integrations.golden import check_golden
from aif_jax.serving import GoldenRequest

K, WIDTH, HISTORY = 32, 8, 16


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("synthetic:small", content_width=8)


def pooled_rows(data: Dataset, schema: aif.Schema) -> dict[str, np.ndarray]:
    """Return arrays of training rows: user, item and pair features, behaviours, and the label."""
    rows = np.flatnonzero(data.impressions.split == 0)
    seen = data.impressions
    history, _ = data.history(seen.user[rows], seen.history_end[rows], HISTORY)
    items, users = data.encode(schema, "item"), data.encode(schema, "user")
    return {
        "segment": users["segment"][seen.user[rows]], "activity": users["activity"][seen.user[rows]],
        "item": items["item_id"][seen.item[rows]], "category": items["category"][seen.item[rows]],
        "history": np.where(history >= 0, items["item_id"][np.maximum(history, 0)], -1),
        "pair": data.encode(schema, "pair", rows)["retrieval_score"],
        "label": seen.labels["ctr"][rows].astype(np.float32),
    }  # fmt: skip


def dssm_of(torch: Any, schema: aif.Schema) -> Any:
    """Return a DSSM with an MLP over both vectors, in PyTorch."""
    size = {f.name: f.size for f in (*schema.item, *schema.user) if hasattr(f, "size")}
    nn = torch.nn

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
            self.mlp = nn.Sequential(nn.Linear(3 * WIDTH + 2, 16), nn.ReLU(), nn.Linear(16, 1))

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


def twin_of(weights: dict[str, np.ndarray]) -> aif.Functions:
    """Return the same model as functions of its state_dict."""
    import jax
    import jax.numpy as jnp

    def layers(p: Any, name: str, x: Any) -> Any:
        hidden = jax.nn.relu(x @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"])
        return hidden @ p[f"{name}.2.weight"].T + p[f"{name}.2.bias"]

    def item(p: Any, features: Any) -> Any:
        parts = [p["item_id.weight"][features["item_id"]], p["category.weight"][features["category"]]]
        return {"vector": layers(p, "item_tower", jnp.concatenate(parts, axis=-1))}

    def behaviour(p: Any, features: Any) -> Any:
        return {"token": p["item_id.weight"][features["item_id"]]}

    def user(p: Any, features: Any, histories: Any) -> Any:
        mask = histories["long"]["mask"][..., None].astype(jnp.float32)
        pooled = (histories["long"]["token"] * mask).sum(1) / jnp.maximum(mask.sum(1), 1.0)
        parts = [p["segment.weight"][features["segment"]], features["activity"], pooled]
        return {"vector": layers(p, "user_tower", jnp.concatenate(parts, axis=-1))}

    def interact(p: Any, state: Any, context: Any, rows: Any, pair: Any) -> Any:
        one = jnp.broadcast_to(state["vector"], rows["vector"].shape)
        x = [one, rows["vector"], one * rows["vector"], pair["retrieval_score"]]
        return {"ctr": layers(p, "mlp", jnp.concatenate(x, axis=-1))[:, 0]}

    return aif.Functions(weights, item=item, behaviour=behaviour, user=user, interact=interact)


def items_of(data: Dataset) -> aif.ItemRecords:
    """Return the items without content, which this model does not read."""
    return dataclasses.replace(data.item_records(8), content=None)


def users_of(data: Dataset) -> Callable[[Any], aif.UserRecord]:
    return lambda user: data.user_record(user, length=HISTORY)


def requests_of(data: Dataset, n: int = 6) -> list[GoldenRequest]:
    rng, ids = np.random.default_rng(0), np.asarray(data.items["ids"])
    context = {"hour": 3, "device": "phone"}
    return [
        GoldenRequest(
            user=user, candidates=rng.permutation(ids)[:50], pair={"retrieval_score": rng.normal(size=50)},
            context=context,
        )
        for user in range(n)
    ]  # fmt: skip


def encoded(data: Dataset, schema: aif.Schema, request: GoldenRequest) -> dict[str, np.ndarray]:
    """Return the inputs of the model of PyTorch for a request, prepared without the engine."""
    ids = np.asarray(data.items["ids"])
    rows, n = np.searchsorted(ids, request.candidates), len(request.candidates)
    items, users = data.encode(schema, "item"), data.encode(schema, "user")
    record = data.user_record(request.user, length=HISTORY)
    behaviours = items["item_id"][np.searchsorted(ids, record.items)]
    history = np.pad(behaviours, (0, HISTORY - len(behaviours)), constant_values=-1)
    return {
        "segment": np.repeat(users["segment"][request.user], n),
        "activity": np.repeat(users["activity"][request.user][None], n, axis=0),
        "item": items["item_id"][rows], "category": items["category"][rows],
        "history": np.repeat(history[None], n, axis=0),
        "pair": schema.encode("pair", request.pair, n)["retrieval_score"],
    }  # fmt: skip


def test_check_golden_model_of_torch_serves_its_scores(data: Dataset, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    schema = data.fit_schema()
    model, rows = dssm_of(torch, schema), pooled_rows(data, schema)
    given = {
        name: torch.as_tensor(np.asarray(a, np.int64 if a.dtype.kind == "i" else np.float32))
        for name, a in rows.items()
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(given), given["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    bundle = aif.export(twin_of(weights), schema, tmp_path / "dssm", k_max=K, long_length=HISTORY)
    requests, outputs = requests_of(data), []
    for request in requests:
        inputs = encoded(data, schema, request)
        tensors = {
            n: torch.as_tensor(np.asarray(a, np.int64 if a.dtype.kind == "i" else np.float32))
            for n, a in inputs.items()
        }
        with torch.no_grad():
            outputs.append({"ctr": model(tensors).numpy()})
    found = check_golden(bundle, requests, outputs, items=items_of(data), users=users_of(data))
    print("largest difference:", found)
    assert found["ctr"] < 1e-5


def test_check_golden_wrong_weight_shows(data: Dataset, tmp_path: Any) -> None:
    schema = data.fit_schema()
    rng = np.random.default_rng(0)
    size = {f.name: f.size for f in (*schema.item, *schema.user) if hasattr(f, "size")}
    shapes = {f"{name}.weight": (size[name], WIDTH) for name in ("item_id", "category", "segment")}
    sizes = {
        "item_tower": (2 * WIDTH, WIDTH),
        "user_tower": (2 * WIDTH + 2, WIDTH),
        "mlp": (3 * WIDTH + 2, 16),
    }
    for name, (n_in, hidden) in sizes.items():
        n_out = 1 if name == "mlp" else WIDTH
        shapes |= {f"{name}.0.weight": (hidden, n_in), f"{name}.0.bias": (hidden,)}
        shapes |= {f"{name}.2.weight": (n_out, hidden), f"{name}.2.bias": (n_out,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    twin = twin_of(weights)
    bundle = aif.export(twin, schema, tmp_path / "twin", k_max=K, long_length=HISTORY)
    requests = requests_of(data, 2)
    given = {"items": items_of(data), "users": users_of(data)}

    def logits(model: aif.Functions, request: GoldenRequest) -> dict[str, np.ndarray]:
        inputs = encoded(data, schema, request)
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
    wrong = [logits(twin_of(swapped), request) for request in requests]
    assert check_golden(bundle, requests, wrong, **given)["ctr"] > 0.01
    with pytest.raises(aif.AifError, match=r"expected the logits of head 'ctr' as an array of 50"):
        check_golden(bundle, requests, [{"ctr": [0.0]}] * 2, **given)
    with pytest.raises(aif.AifError, match=r"outputs: got 1 for 2 requests"):
        check_golden(bundle, requests, outputs[:1], **given)
