"""The sequential way in ONNX Runtime: the graph of `stage.sequential`, with the same weights.

Specialised in its favour: the history is taken to be full and every item to have content, so that nothing is
masked; signatures lie in the catalogue as ±1 bytes, so that nothing is unpacked; the catalogue is bound to
the session once. SimTier is the product of ±1 for a block of candidates, then for each edge a hard sigmoid,
which is 0 or 1 at whole numbers, and a sum: of the ways tried (flags by comparison and cast, sums by product,
products of bytes, a lookup in steps of bytes, everything at once) the fastest.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import onnx
import onnxruntime as ort
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from aif_jax.models.folded_weights import path_name
from aif_jax.models.signature import edges_of
from stage.request import FIRST_CATEGORY, NO_CATEGORY, Case
from stage.sequential import SHARPNESS
from stage.timing import Contender, fastest, interleaved
from workload import Built

OPSET = 21
IR_VERSION = 10
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64

_NUMBERS = itertools.count()  # for all graphs: the body of a loop sees the names around it

BLOCKS = (64, 256, 1024)
"""Candidates at a time; of these and of all at once, the fastest is taken."""

_COLUMNS = ("item", "category", "price", "content", "has_content", "signs")

Arrays: TypeAlias = Mapping[str, np.ndarray]
Values: TypeAlias = Mapping[str, str]


class Graph:
    """A graph under construction. Values are the names of tensors.

    ``graph.MatMul(a, b)`` adds a node of that operator and returns its output; keyword arguments are its
    attributes. Operands that are arrays or numbers become initialisers.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if not operator[0].isupper():
            raise AttributeError(operator)
        return lambda *operands, **attributes: self.add(operator, operands, **attributes)

    def add(self, operator: str, operands: Sequence[Any], *, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return the name of its output, or a tuple of them."""
        names = [self.value(operand) for operand in operands]
        results = [self._name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, names, results, **attributes))
        return results[0] if outputs == 1 else tuple(results)

    def value(self, operand: Any) -> str:
        """Return the name of an operand, which is made an initialiser if it is no name yet."""
        if isinstance(operand, str):
            return operand
        name = self._name()
        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(operand), name))
        return name

    def input(self, name: str, array: np.ndarray) -> str:
        """Declare an input of an array's dtype and shape."""
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        return name

    def linear(self, x: str, weights: Mapping[str, np.ndarray], name: str) -> str:
        """Return ``x W + b`` of a linear layer, by the name of its weights."""
        operands = [x, weights[f"{name}.kernel"]]
        if (bias := weights.get(f"{name}.bias")) is not None:
            operands.append(bias)
        return self.add("Gemm", operands)

    def mlp(self, x: str, weights: Mapping[str, np.ndarray], name: str, depth: int) -> str:
        """Return linear layers ``name.layer_0`` to ``name.layer_<depth - 1>`` with ReLU between them."""
        for number in range(depth):
            x = self.linear(self.Relu(x) if number else x, weights, f"{name}.layer_{number}")
        return x

    def attend(self, queries: Any, keys: str, values: str, scale: float) -> str:
        """Return ``softmax(scale · Q Kᵀ) V``."""
        logits = self.Mul(self.MatMul(queries, self.Transpose(keys, perm=[1, 0])), np.float32(scale))
        return self.MatMul(self.Softmax(logits, axis=-1), values)

    def mean(self, x: str, axis: int) -> str:
        """Return the mean over one axis, which stays with size 1."""
        return self.ReduceMean(x, np.array([axis]), keepdims=1)

    def sum(self, x: str, axis: int, keep: bool = True) -> str:
        """Return the sum over one axis."""
        return self.ReduceSum(x, np.array([axis]), keepdims=int(keep))

    def body(self, inputs: Mapping[str, tuple[int, ...]], outputs: Mapping[str, tuple[int, ...]]) -> Any:
        """Return the graph as the body of a loop over float tensors."""
        return helper.make_graph(
            self.nodes,
            "body",
            [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
            self.initialisers,
        )

    def session(self, outputs: Mapping[str, int], threads: int) -> ort.InferenceSession:
        """Return the graph ready to run, optimised as far as ONNX Runtime goes.

        Args:
            outputs: element types by name.
            threads: threads within an operator.
        """
        results = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
        graph = helper.make_graph(self.nodes, "sequential", self.inputs, results, self.initialisers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Its threads spin for work while it runs, and not on into the turns of others.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _name(self) -> str:
        return f"t{next(_NUMBERS)}"


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

    def ranking(self, user: Values) -> None:
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
            **self._over_behaviours(items, user),
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

    def _over_behaviours(self, items: Values, user: Values) -> dict[str, str]:
        """Return attention over the long sequence and SimTier, for a block of candidates at a time."""
        g, case, body = self.graph, self.case, Graph()
        config = case.built.model.config
        size = self.block
        inputs = {
            "content_block": (size, config.content_width), "signs_block": (size, config.signature_bits),
        }  # fmt: skip
        outputs = {"attention_block": (size, config.value_width), "tiers_block": (size, config.tiers)}
        by_block = [
            g.Reshape(items["content"], np.array([-1, size, config.content_width])),
            g.Reshape(g.Cast(items["signs"], to=FLOAT), np.array([-1, size, config.signature_bits])),
        ]
        body.attend("content_block", user["content"], user["value"], SHARPNESS)
        body.nodes[-1].output[0] = "attention_block"
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
        attention, tiers = g.add(
            "Scan", by_block, outputs=2, body=body.body(inputs, outputs), num_scan_inputs=2
        )
        return {
            "long_attention": g.Reshape(attention, np.array([-1, config.value_width])),
            "simtier": g.Reshape(tiers, np.array([-1, config.tiers])),
        }


def fastest_block(case: Case, rounds: int) -> int:
    """Return how many candidates at a time are the fastest."""
    sizes = [size for size in BLOCKS if size < case.n and case.n % size == 0]
    contenders = [onnx_sequential(case, str(size), size) for size in (*sizes, case.n)]
    return int(fastest(interleaved(contenders, rounds)))


def onnx_sequential(case: Case, name: str, block: int) -> Contender:
    """Return the sequential way in ONNX Runtime, user side included.

    Args:
        case: the requests; every behaviour and candidate has content.
        name: what tables call it.
        block: candidates at a time where they meet the behaviours; ``n`` for all at once.
    """
    catalogue, graph = _catalogue(case.built), Graph()
    columns = {
        column: graph.input(
            f"catalogue_{column}",
            np.broadcast_to(value.numpy()[:1], (case.built.workload.items, *value.shape()[1:])),
        )
        for column, value in catalogue.items()
    }
    parts = _Parts(case, graph, _weights(case.built), columns, block)
    parts.ranking(parts.user_side())
    session = graph.session({"scores": FLOAT, "order": INT64}, len(os.sched_getaffinity(0)))
    arrays = {**user_inputs(case), "page": np.asarray(case.context["page"]).reshape(1)}
    shared = {
        **{f"catalogue_{column}": value for column, value in catalogue.items()},
        **{name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()},
    }
    wanted = [entry.name for entry in session.get_inputs()]

    def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
        request = {"positions": case.positions[turn], "retrieval_score": case.pair[turn]["retrieval_score"]}
        given = shared | {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in request.items()}
        order, scores = session.run_with_ort_values(
            ["order", "scores"], {name: given[name] for name in wanted}
        )
        return order.numpy(), scores.numpy()

    return Contender(name, run)


def user_inputs(case: Case) -> dict[str, np.ndarray]:
    """Return what the user side reads, by the names of the graph's inputs, without a leading axis of 1."""
    return {
        "country": case.user_inputs["country"],
        "age": case.user_inputs["age"],
        **{name: array[0] for name, array in case.sequences.items()},
    }


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
