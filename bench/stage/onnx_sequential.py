"""The sequential way in ONNX Runtime: the graph of `stage.sequential`, with the same weights.

Specialised in its favour: the history is taken to be full and every item to have content, so that nothing is
masked; signatures lie in the catalogue as ±1 bytes, so that nothing is unpacked; the catalogue is bound to
the session once. SimTier is the product of ±1 for a block of candidates, then for each edge a hard sigmoid,
which is 0 or 1 at whole numbers, and a sum: of the ways tried (flags by comparison and cast, sums by product,
products of bytes, a lookup in steps of bytes, everything at once) the fastest.
"""

import itertools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime as ort
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from aif_jax.models.blocks.sim_hard import faded
from aif_jax.models.folded_weights import path_name
from aif_jax.models.signature import edges_of
from stage.request import FIRST_CATEGORY, NO_CATEGORY, Case
from stage.sequential import SHARPNESS
from stage.timing import Contender, fastest, interleaved
from workload import Built

OPSET, IR_VERSION = 21, 10
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64

_NUMBERS = itertools.count()  # for all graphs: the body of a loop sees the names around it

BLOCKS = (64, 256, 1024)
"""Candidates at a time; of these and of all at once, the fastest is taken."""

_COLUMNS = ("item", "category", "price", "content", "has_content", "signs")


class Graph:
    """A graph under construction. Values are the names of tensors.

    ``graph.MatMul(a, b)`` adds a node of that operator and returns its output, or with ``outputs`` their
    names; other keyword arguments are its attributes. Arrays and numbers become initialisers.
    """

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if not operator[0].isupper():
            raise AttributeError(operator)

        def add(*operands: Any, outputs: tuple[str, ...] = (), **attributes: Any) -> Any:
            names = [self._value(operand) for operand in operands]
            results = outputs or (f"t{next(_NUMBERS)}",)
            self.nodes.append(helper.make_node(operator, names, results, **attributes))
            return outputs or results[0]

        return add

    def _value(self, operand: Any) -> str:
        if isinstance(operand, str):
            return operand
        name = f"t{next(_NUMBERS)}"
        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(operand), name))
        return name

    def input(self, name: str, array: np.ndarray) -> str:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        return name

    def made(self, outputs: Mapping[str, tuple[int, Any]]) -> onnx.GraphProto:
        """Return the graph, given element types and shapes of its outputs."""
        results = [helper.make_tensor_value_info(name, *of) for name, of in outputs.items()]
        return helper.make_graph(self.nodes, "sequential", self.inputs, results, self.initialisers)

    def linear(self, x: str, name: str) -> str:
        """Return ``x W + b`` of a linear layer, by the name of its weights."""
        bias = self.weights.get(f"{name}.bias")
        return self.Gemm(x, self.weights[f"{name}.kernel"], *([] if bias is None else [bias]))

    def mlp(self, x: str, name: str) -> str:
        """Return two linear layers with ReLU between them."""
        return self.linear(self.Relu(self.linear(x, f"{name}.layer_0")), f"{name}.layer_1")

    def rows(self, name: str, index: str) -> str:
        return self.Gather(self.weights[name], index, axis=0)

    def attend(
        self, queries: Any, keys: str, values: str, scale: float, outputs: tuple[str, ...] = ()
    ) -> str:
        """Return ``softmax(scale · Q Kᵀ) V``."""
        logits = self.Mul(self.MatMul(queries, self.Transpose(keys, perm=[1, 0])), np.float32(scale))
        return self.MatMul(self.Softmax(logits, axis=-1), values, outputs=outputs)

    def sum(self, x: str, axis: int, keep: bool = True) -> str:
        return self.ReduceSum(x, np.array([axis]), keepdims=int(keep))

    def mean(self, total: str, count: str) -> str:
        """Return sums over counts, of which none is taken as one."""
        return self.Div(total, self.Max(count, np.float32(1)))


def _session(graph: onnx.GraphProto) -> ort.InferenceSession:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Its threads spin for work while it runs, and not on into the turns of others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _items(g: Graph, index: str) -> dict[str, str]:
    """Return catalogue columns by position, and ``dense``, what the item module reads."""
    rows = {name: g.Gather(f"catalogue_{name}", index, axis=0) for name in _COLUMNS}
    shown = g.Cast(g.Not(g.Equal(rows["category"], np.int32(0))), to=FLOAT)
    categories = g.rows("item.embed.table_category", rows["category"])
    total = g.sum(g.Mul(categories, g.Unsqueeze(shown, np.array([2]))), 1, keep=False)
    item = g.rows("item.embed.table_item", rows["item"])
    inputs = (item, g.mean(total, g.sum(shown, 1)), rows["price"], rows["content"], rows["has_content"])
    return {**rows, "dense": g.Concat(*inputs, axis=1)}


def _in_slot(g: Graph, category: str, slots: str) -> str:
    # Missing and unknown categories are in no slot, since slots hold known ones and -1.
    return g.Cast(g.Equal(g.Unsqueeze(category, np.array([2])), slots), to=FLOAT)


def _user_side(g: Graph, case: Case, by_root: float) -> dict[str, str]:
    """Return what the interactions need of the user."""
    inputs = {name: g.input(name, array) for name, array in _user_inputs(case).items()}
    short, long = _items(g, inputs["short_item"]), _items(g, inputs["long_item"])
    country = g.rows("user.embed.table_country", inputs["country"])
    profile = g.linear(g.Concat(country, inputs["age"], axis=1), "user.profile")
    tokens = g.Add(g.linear(short["dense"], "item.as_token"), g.weights["user.positions"])
    tokens = g.Add(tokens, g.rows("user.types", inputs["short_type"]))
    attended = g.mlp(g.attend(tokens, tokens, tokens, by_root), "user.ffn")
    pooled = g.ReduceMean(attended, np.array([0]), keepdims=1)
    seen = g.attend(profile, tokens, tokens, by_root)
    gated = g.Mul(g.linear(long["dense"], "item.as_value"), g.rows("values.gate", inputs["long_type"]))
    value = g.Add(gated, g.rows("values.bias", inputs["long_type"]))
    summary = g.linear(g.ReduceMean(value, np.array([0]), keepdims=1), "user.summary")
    keys = g.Concat(profile, tokens, summary, axis=0)
    return {
        "vector": g.mlp(g.Concat(profile, pooled, seen, axis=1), "user.out"),
        "bridged": g.attend(g.weights["bridges.vectors"], keys, keys, by_root),
        "value": value,
        **_slots(g, case, long["category"], value),
        "content": long["content"],
        "signs": g.Transpose(g.Cast(long["signs"], to=FLOAT), perm=[1, 0]),
    }


def _slots(g: Graph, case: Case, category: str, value: str) -> dict[str, str]:
    """Return SIM-hard: the most recent categories and the pooled behaviours of each."""
    slots = case.built.model.config.sim_slots
    flat = g.Cast(g.Reshape(category, np.array([-1])), to=INT64)  # it has no Unique of int32
    found, *_ = g.Unique(flat, outputs=("values", "first", "inverse", "counts"), sorted=0)
    values = g.Cast(found, to=INT32)
    known = g.Compress(values, g.GreaterOrEqual(values, np.int32(FIRST_CATEGORY)), axis=0)
    padded = g.Concat(known, np.full(slots, NO_CATEGORY, np.int32), axis=0)
    chosen = g.Slice(padded, np.array([0]), np.array([slots]), np.array([0]))
    member = g.ReduceMax(_in_slot(g, category, chosen), np.array([1]), keepdims=0)
    count = g.Transpose(g.sum(member, 0), perm=[1, 0])
    mean = g.mean(g.MatMul(g.Transpose(member, perm=[1, 0]), value), count)
    sums = g.MatMul(g.Transpose(member, perm=[1, 0]), np.asarray(faded(case.length)))
    counts = g.Log(g.Add(sums, np.float32(1.0))), g.Div(count, np.float32(case.length))
    pooled = g.Relu(g.linear(g.Concat(mean, *counts, axis=1), "pool.linear"))
    there = g.Cast(g.Unsqueeze(g.GreaterOrEqual(chosen, np.int32(0)), np.array([1])), to=FLOAT)
    return {"category": chosen, "pooled": g.Mul(pooled, there)}


def _graph(case: Case, weights: Mapping[str, np.ndarray], block: int) -> onnx.GraphProto:
    """Return user side, item tower, interactions, heads and the best; outputs ``scores`` and ``order``."""
    g, by_root = Graph(weights), 1.0 / math.sqrt(case.built.model.config.width)
    for name, column in _catalogue(case.built).items():
        shape = (case.built.workload.items, *column.shape()[1:])
        g.input(f"catalogue_{name}", np.broadcast_to(column.numpy()[:1], shape))
    user = _user_side(g, case, by_root)
    items = _items(g, g.input("positions", case.positions[0]))
    e = g.mlp(items["dense"], "item.mlp")
    real = g.Cast(g.GreaterOrEqual(items["category"], np.int32(FIRST_CATEGORY)), to=FLOAT)
    hits = g.sum(_in_slot(g, items["category"], user["category"]), 1, keep=False)
    blocks = {
        "item": e,
        "profile_item": g.Mul(e, user["vector"]),
        "bridge": g.attend(e, weights["bridges.vectors"], user["bridged"], by_root),
        **_over_behaviours(g, case, items, user, block),
        "sim_hard": g.MatMul(g.mean(hits, g.sum(real, 1)), user["pooled"]),
        "pair": g.input("retrieval_score", case.pair[0]["retrieval_score"]),
    }
    context = g.rows("first.embed_context.table_page", g.input("page", _page(case)))
    shared = g.Add(g.linear(user["vector"], "first.user"), g.linear(context, "first.context"))
    right = np.concatenate([weights[f"first.{name}.kernel"] for name in blocks])
    x = g.Relu(g.Gemm(g.Concat(*blocks.values(), axis=1), right, shared))
    x = g.Sigmoid(g.linear(g.Relu(g.linear(x, "heads.layer_0")), "heads.out"))
    g.TopK(g.Reshape(x, np.array([-1])), np.array([case.k]), outputs=("scores", "order"))
    return g.made({"scores": (FLOAT, None), "order": (INT64, None)})


def _over_behaviours(
    g: Graph, case: Case, items: Mapping[str, str], user: Mapping[str, str], size: int
) -> dict[str, str]:
    """Return attention over the long sequence and SimTier, for a block of candidates at a time."""
    body, config = Graph({}), case.built.model.config
    widths = {"content": config.content_width, "signs": config.signature_bits}
    content, signs = (
        body.input(f"{name}_block", np.empty((size, width), np.float32)) for name, width in widths.items()
    )
    body.attend(content, user["content"], user["value"], SHARPNESS, outputs=("attention_block",))
    dots = body.MatMul(signs, user["signs"])
    reached: list[Any] = [np.full((size, 1), case.length, np.float32)]
    for edge in edges_of(config):
        # Dots are even numbers: half of one, less the edge and up by one, is cut to 0 or 1.
        limit = 2.0 * float(edge) - config.signature_bits
        reached.append(body.sum(body.HardSigmoid(dots, alpha=0.5, beta=1.0 - limit / 2.0), 1))
    at_least = body.Concat(*reached, axis=1)
    beyond = body.Concat(*reached[1:], np.zeros((size, 1), np.float32), axis=1)
    body.Div(body.Sub(at_least, beyond), np.float32(case.length), outputs=("tiers_block",))
    loop = body.made(
        {"attention_block": (FLOAT, (size, config.value_width)), "tiers_block": (FLOAT, (size, config.tiers))}
    )
    rows = {"content": items["content"], "signs": g.Cast(items["signs"], to=FLOAT)}
    by_block = [g.Reshape(rows[name], np.array([-1, size, width])) for name, width in widths.items()]
    attention, tiers = g.Scan(*by_block, outputs=("attention", "tiers"), body=loop, num_scan_inputs=2)
    return {
        "long_attention": g.Reshape(attention, np.array([-1, config.value_width])),
        "simtier": g.Reshape(tiers, np.array([-1, config.tiers])),
    }


def fastest_block(case: Case, rounds: int) -> int:
    sizes = [size for size in BLOCKS if size < case.n and case.n % size == 0]
    contenders = [onnx_sequential(case, str(size), size) for size in (*sizes, case.n)]
    return int(fastest(interleaved(contenders, rounds)))


def onnx_sequential(case: Case, name: str, block: int) -> Contender:
    """Return the sequential way in ONNX Runtime, user side included, for a block of candidates at a time.

    Every behaviour and candidate must have content.
    """
    named, _ = jax.tree_util.tree_flatten_with_path(nnx.split(case.built.model)[1])
    session = _session(_graph(case, {path_name(path): np.asarray(leaf) for path, leaf in named}, block))
    of_array = ort.OrtValue.ortvalue_from_numpy
    shared = {f"catalogue_{column}": value for column, value in _catalogue(case.built).items()}
    shared |= {name: of_array(array) for name, array in (_user_inputs(case) | {"page": _page(case)}).items()}
    wanted = [entry.name for entry in session.get_inputs()]

    def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
        request = {"positions": case.positions[turn], "retrieval_score": case.pair[turn]["retrieval_score"]}
        given = shared | {name: of_array(array) for name, array in request.items()}
        found = session.run_with_ort_values(["order", "scores"], {name: given[name] for name in wanted})
        return found[0].numpy(), found[1].numpy()

    return Contender(name, run)


def _page(case: Case) -> np.ndarray:
    return np.asarray(case.context["page"]).reshape(1)


def _user_inputs(case: Case) -> dict[str, np.ndarray]:
    """Return what the user side reads, by the names of the graph's inputs, without a leading axis of 1."""
    return {
        "country": case.user_inputs["country"],
        "age": case.user_inputs["age"],
        **{name: array[0] for name, array in case.sequences.items()},
    }


_CATALOGUES: dict[int, dict[str, ort.OrtValue]] = {}


def _catalogue(built: Built) -> dict[str, ort.OrtValue]:
    """Return the catalogue's columns for a session, signatures as ±1 bytes, made once for each workload."""
    key = id(built.catalogue)
    if key not in _CATALOGUES:
        bits = np.unpackbits(built.catalogue["signature"], axis=1, bitorder="little")
        columns = {**built.catalogue, "signs": 2 * bits.view(np.int8) - np.int8(1)}
        _CATALOGUES[key] = {name: ort.OrtValue.ortvalue_from_numpy(columns[name]) for name in _COLUMNS}
    return _CATALOGUES[key]
