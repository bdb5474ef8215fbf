"""The sequential way in ONNX Runtime: the graph of `stage.sequential`, with the same weights.

Specialised in its favour: the history is taken to be full and every item to have content, so that nothing is
masked; signatures lie in the catalogue as ±1 bytes, so that nothing is unpacked; the catalogue is bound to
the session once. SimTier is the product of ±1 for a block of candidates, then for each edge a hard sigmoid,
which is 0 or 1 at whole numbers, and a sum: of the ways tried (flags by comparison and cast, sums by product,
products of bytes, a lookup in steps of bytes, everything at once) the fastest.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
import onnxruntime as ort
from flax import nnx

from aif_jax.models.folded_weights import path_name
from aif_jax.models.signature import edges_of
from stage.onnx_graph import FLOAT, INT32, INT64, Graph
from stage.request import FIRST_CATEGORY, NO_CATEGORY, Case
from stage.sequential import SHARPNESS
from stage.timing import Contender, Timing, interleaved
from workload import Built

BLOCKS = (64, 256, 1024)
"""Candidates at a time; of these and of all at once, the fastest is taken."""

_COLUMNS = ("item", "category", "price", "content", "has_content", "signs")

Arrays: TypeAlias = Mapping[str, np.ndarray]
Values: TypeAlias = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Builds the parts of the graph of one case."""

    case: Case
    graph: Graph
    weights: Arrays
    catalogue: Values
    block: int

    def items(self, index: str) -> dict[str, str]:
        """Return catalogue columns by position, and ``dense``, what the item module reads."""
        g, weights = self.graph, self.weights
        rows = {name: g.Gather(column, index, axis=0) for name, column in self.catalogue.items()}
        shown = g.Cast(g.Not(g.Equal(rows["category"], np.int32(0))), to=FLOAT)
        categories = g.Gather(weights["item.embed.table_category"], rows["category"], axis=0)
        total = g.sum(g.Mul(categories, g.Unsqueeze(shown, np.array([2]))), 1, keep=False)
        mean = g.Div(total, g.Max(g.sum(shown, 1), np.float32(1)))
        item = g.Gather(weights["item.embed.table_item"], rows["item"], axis=0)
        dense = g.Concat(item, mean, rows["price"], rows["content"], rows["has_content"], axis=1)
        return {**rows, "dense": dense}

    def user_side(self) -> dict[str, str]:
        """Return what the interactions need of the user."""
        g, weights, case = self.graph, self.weights, self.case
        inputs = {name: g.input(name, array) for name, array in user_inputs(case).items()}
        short, long = self.items(inputs["short_item"]), self.items(inputs["long_item"])
        by_root = 1.0 / math.sqrt(case.built.model.config.width)
        country = g.Gather(weights["user.embed.table_country"], inputs["country"], axis=0)
        profile = g.linear(g.Concat(country, inputs["age"], axis=1), weights, "user.profile")
        tokens = g.Add(
            g.Add(g.linear(short["dense"], weights, "item.as_token"), weights["user.positions"]),
            g.Gather(weights["user.types"], inputs["short_type"], axis=0),
        )
        pooled = g.mean(g.mlp(g.attend(tokens, tokens, tokens, by_root), weights, "user.ffn", 2), 0)
        seen = g.attend(profile, tokens, tokens, by_root)
        value = g.Add(
            g.Mul(
                g.linear(long["dense"], weights, "item.as_value"),
                g.Gather(weights["values.gate"], inputs["long_type"], axis=0),
            ),
            g.Gather(weights["values.bias"], inputs["long_type"], axis=0),
        )
        keys = g.Concat(profile, tokens, g.linear(g.mean(value, 0), weights, "user.summary"), axis=0)
        return {
            "vector": g.mlp(g.Concat(profile, pooled, seen, axis=1), weights, "user.out", 2),
            "bridged": g.attend(weights["bridges.vectors"], keys, keys, by_root),
            "value": value,
            **self._slots(long["category"], value),
            "content": long["content"],
            "signs": g.Transpose(g.Cast(long["signs"], to=FLOAT), perm=[1, 0]),
        }

    def _slots(self, category: str, value: str) -> dict[str, str]:
        """Return SIM-hard: the most recent categories and the pooled behaviours of each."""
        g, slots = self.graph, self.case.built.model.config.sim_slots
        flat = g.Cast(g.Reshape(category, np.array([-1])), to=INT64)  # it has no Unique of int32
        values = g.Cast(g.add("Unique", [flat], outputs=4, sorted=0)[0], to=INT32)
        known = g.Compress(values, g.GreaterOrEqual(values, np.int32(FIRST_CATEGORY)), axis=0)
        padded = g.Concat(known, np.full(slots, NO_CATEGORY, np.int32), axis=0)
        chosen = g.Slice(padded, np.array([0]), np.array([slots]), np.array([0]))
        member = g.ReduceMax(self._in_slot(category, chosen), np.array([1]), keepdims=0)
        count = g.Transpose(g.sum(member, 0), perm=[1, 0])
        total = g.MatMul(g.Transpose(member, perm=[1, 0]), value)
        mean = g.Div(total, g.Max(count, np.float32(1)))
        share = g.Div(count, np.float32(self.case.length))
        pooled = g.Relu(g.linear(g.Concat(mean, share, axis=1), self.weights, "pool.linear"))
        there = g.Cast(g.Unsqueeze(g.GreaterOrEqual(chosen, np.int32(0)), np.array([1])), to=FLOAT)
        return {"category": chosen, "pooled": g.Mul(pooled, there)}

    def _in_slot(self, category: str, slots: str) -> str:
        # Missing and unknown categories are in no slot, since slots hold known ones and -1.
        g = self.graph
        return g.Cast(g.Equal(g.Unsqueeze(category, np.array([2])), slots), to=FLOAT)

    def ranking(self, user: Values, simtier: bool) -> None:
        """Add item tower, interactions, heads and the best; outputs ``scores`` and ``order``."""
        g, weights, case = self.graph, self.weights, self.case
        positions = g.input("positions", case.positions[0])
        pair = g.input("retrieval_score", case.pair[0]["retrieval_score"])
        page = g.input("page", np.asarray(case.context["page"]).reshape(1))
        items = self.items(positions)
        e = g.mlp(items["dense"], weights, "item.mlp", 2)
        by_root = 1.0 / math.sqrt(case.built.model.config.width)
        real = g.Cast(g.GreaterOrEqual(items["category"], np.int32(FIRST_CATEGORY)), to=FLOAT)
        hits = g.sum(self._in_slot(items["category"], user["category"]), 1, keep=False)
        blocks = {
            "item": e,
            "profile_item": g.Mul(e, user["vector"]),
            "bridge": g.attend(e, weights["bridges.vectors"], user["bridged"], by_root),
            **self._over_behaviours(items, user, simtier),
            "sim_hard": g.MatMul(g.Div(hits, g.Max(g.sum(real, 1), np.float32(1))), user["pooled"]),
            "pair": pair,
        }
        context = g.Gather(weights["first.embed_context.table_page"], page, axis=0)
        shared = g.Add(
            g.linear(user["vector"], weights, "first.user"), g.linear(context, weights, "first.context")
        )
        right = np.concatenate([weights[f"first.{name}.kernel"] for name in blocks])
        x = g.Relu(g.Gemm(g.Concat(*blocks.values(), axis=1), right, shared))
        x = g.Relu(g.linear(x, weights, "heads.layer_0"))
        scores = g.Reshape(g.Sigmoid(g.linear(x, weights, "heads.out")), np.array([-1]))
        g.add("TopK", [scores, np.array([case.k])], outputs=2)
        g.nodes[-1].output[:] = ["scores", "order"]

    def _over_behaviours(self, items: Values, user: Values, simtier: bool) -> dict[str, str]:
        """Return attention over the long sequence and SimTier, for a block of candidates at a time."""
        g, case, body = self.graph, self.case, Graph()
        config = case.built.model.config
        size = self.block
        inputs = {"content_block": (size, config.content_width)}
        outputs = {"attention_block": (size, config.value_width)}
        by_block = [g.Reshape(items["content"], np.array([-1, size, config.content_width]))]
        body.attend("content_block", user["content"], user["value"], SHARPNESS)
        body.nodes[-1].output[0] = "attention_block"
        if simtier:
            inputs["signs_block"] = (size, config.signature_bits)
            outputs["tiers_block"] = (size, config.tiers)
            signs = g.Cast(items["signs"], to=FLOAT)
            by_block.append(g.Reshape(signs, np.array([-1, size, config.signature_bits])))
            dots = body.MatMul("signs_block", user["signs"])
            reached: list[Any] = [np.full((size, 1), case.length, np.float32)]
            for edge in edges_of(config):
                # Dots are even numbers: half of one, less the edge and up by one, is cut to 0 or 1.
                limit = 2.0 * float(edge) - config.signature_bits
                reached.append(body.sum(body.HardSigmoid(dots, alpha=0.5, beta=1.0 - limit / 2.0), 1))
            at_least = body.Concat(*reached, axis=1)
            beyond = body.Concat(*reached[1:], np.zeros((size, 1), np.float32), axis=1)
            body.Div(body.Sub(at_least, beyond), np.float32(case.length))
            body.nodes[-1].output[0] = "tiers_block"
        results = g.add(
            "Scan", by_block, outputs=len(outputs), body=body.body(inputs, outputs),
            num_scan_inputs=len(inputs),
        )  # fmt: skip
        results = [results] if isinstance(results, str) else results
        names = ("long_attention", "simtier")[: len(outputs)]
        widths = [shape[1] for shape in outputs.values()]
        return {
            name: g.Reshape(result, np.array([-1, width]))
            for name, result, width in zip(names, results, widths, strict=True)
        }


def timed_blocks(case: Case, rounds: int) -> dict[int, Timing]:
    """Time the way with the user side done, for several numbers of candidates at a time."""
    sizes = [size for size in BLOCKS if size < case.n and case.n % size == 0]
    contenders = {
        size: onnx_sequential(case, str(size), user_side=False, simtier=True, block=size)
        for size in (*sizes, case.n)
    }
    times = interleaved(list(contenders.values()), rounds)
    return {size: times[str(size)] for size in contenders}


def onnx_sequential(case: Case, name: str, *, user_side: bool, simtier: bool, block: int) -> Contender:
    """Return the sequential way in ONNX Runtime.

    Args:
        case: the requests; every behaviour and candidate has content.
        name: what tables call it.
        user_side: whether the user side is part of each request, or done beforehand.
        simtier: whether SimTier is part of the model.
        block: candidates at a time where they meet the behaviours; ``n`` for all at once.
    """
    weights, catalogue = _weights(case.built), _catalogue(case.built)
    bound = {f"catalogue_{column}": value for column, value in catalogue.items()}

    def parts() -> _Parts:
        graph = Graph()
        arrays = {column: value.numpy()[:1] for column, value in catalogue.items()}
        rows = case.built.workload.items
        columns = {
            column: graph.input(f"catalogue_{column}", np.broadcast_to(array, (rows, *array.shape[1:])))
            for column, array in arrays.items()
        }
        return _Parts(case, graph, weights, columns, block)

    user = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in user_inputs(case).items()}
    whole = parts()
    if user_side:
        values = whole.user_side()
    else:
        alone = parts()
        made = alone.user_side()
        for value in made.values():
            alone.graph.Identity(value)
        names = [node.output[0] for node in alone.graph.nodes[-len(made) :]]
        kinds = {name: INT32 if key == "category" else FLOAT for key, name in zip(made, names, strict=True)}
        session = alone.graph.session(kinds, _threads())
        arrays = [value.numpy() for value in session.run_with_ort_values(names, _fed(session, bound | user))]
        values = {
            key: whole.graph.input(f"user_{key}", array) for key, array in zip(made, arrays, strict=True)
        }
        user = {
            f"user_{key}": ort.OrtValue.ortvalue_from_numpy(array)
            for key, array in zip(made, arrays, strict=True)
        }
    whole.ranking(values, simtier)
    session = whole.graph.session({"scores": FLOAT, "order": INT64}, _threads())
    shared = bound | user
    shared["page"] = ort.OrtValue.ortvalue_from_numpy(np.asarray(case.context["page"]).reshape(1))

    def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
        request = {"positions": case.positions[turn], "retrieval_score": case.pair[turn]["retrieval_score"]}
        given = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in request.items()}
        order, scores = session.run_with_ort_values(["order", "scores"], _fed(session, shared | given))
        return order.numpy(), scores.numpy()

    return Contender(name, run)


def user_inputs(case: Case) -> dict[str, np.ndarray]:
    """Return what the user side reads, by the names of the graph's inputs, without a leading axis of 1."""
    return {
        "country": case.user_inputs["country"],
        "age": case.user_inputs["age"],
        **{name: array[0] for name, array in case.sequences.items()},
    }


def _fed(session: ort.InferenceSession, values: Mapping[str, ort.OrtValue]) -> dict[str, ort.OrtValue]:
    return {entry.name: values[entry.name] for entry in session.get_inputs()}


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _weights(built: Built) -> dict[str, np.ndarray]:
    named, _ = jax.tree_util.tree_flatten_with_path(nnx.split(built.model)[1])
    return {path_name(path): np.asarray(leaf) for path, leaf in named}


_CATALOGUES: dict[int, dict[str, ort.OrtValue]] = {}


def _catalogue(built: Built) -> dict[str, ort.OrtValue]:
    """Return the catalogue's columns for a session, signatures as ±1 bytes, made once for each workload."""
    key = id(built.catalogue)
    if key not in _CATALOGUES:
        bits = np.unpackbits(built.catalogue["signature"], axis=1, bitorder="little")
        columns = {**built.catalogue, "signs": 2 * bits.view(np.int8) - np.int8(1)}
        _CATALOGUES[key] = {name: ort.OrtValue.ortvalue_from_numpy(columns[name]) for name in _COLUMNS}
    return _CATALOGUES[key]
