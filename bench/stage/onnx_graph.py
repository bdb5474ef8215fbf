"""A small way to write ONNX graphs: operators as methods, weights and constants as initialisers."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64

_NUMBERS = itertools.count()  # for all graphs: the body of a loop sees the names around it


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
