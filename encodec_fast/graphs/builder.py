"""Collects the nodes of an ONNX graph; a value is its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# ReduceMean with its axes as an attribute, Pad without axes: what runtimes of the last four years read
OPSET = 17
# The first that has opset 17
IR_VERSION = 8
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
# Shapes: a name is a length that each call chooses
Shape = Sequence[int | str]


class GraphBuilder:
    """A graph that grows. Values are names; whole numbers and arrays become constants of it.

    scope: what the names of its values begin with, for a graph inside another one sees the values of that one.
    """

    def __init__(self, name: str, scope: str = "") -> None:
        self.name, self._scope = name, scope
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def input(self, name: str, dtype: int, shape: Shape) -> str:
        """Adds an input of the graph and returns it."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Shape) -> None:
        """Makes a value an output of the graph, under that name."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Returns a value that is the same in every call. Equal small ones are stored once."""
        array = np.array(value, dtype, order="C")
        small = array.size <= 16
        name = f"{array.dtype}{list(array.shape)}{array.ravel().tolist()}" if small else f"weight{len(self._constants)}"
        name = f"{self._scope}{name}".replace(" ", "")
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """Adds a node with one output and returns that.  inputs: values, whole numbers or lists of them; "" leaves one out."""
        return self.add_many(op, 1, *inputs, **attributes)[0]

    def add_many(self, op: str, count: int, *inputs: Any, **attributes: Any) -> list[str]:
        """Adds a node with so many outputs and returns them; else as `add`."""
        self._count += 1
        name = f"{self._scope}{op}_{self._count}"
        values = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        outputs = [name, *(f"{name}_{number}" for number in range(1, count))]
        self._nodes.append(helper.make_node(op, values, outputs, name=name, **attributes))
        return outputs

    def length(self, x: str, axis: int) -> str:
        """Returns the length of an axis, int64 [1]."""
        return self.add("Shape", x, start=axis, end=axis + 1)

    def concat(self, *parts: Any, axis: int = 0) -> str:
        """Returns the values joined along an axis."""
        return self.add("Concat", *parts, axis=axis)

    def loop(self, count: str, carried: str, body: GraphBuilder) -> str:
        """Runs the body so many times and returns its last output of each time, stacked.

        body: takes the number of the time, whether it goes on, and the carried value; returns the latter two and an output.
        """
        self._count += 1
        name = f"{self._scope}Loop_{self._count}"
        outputs = [f"{name}_carried", name]
        self._nodes.append(helper.make_node("Loop", [count, "", carried], outputs, name=name, body=body.graph()))
        return name

    def graph(self) -> onnx.GraphProto:
        """Returns the graph."""
        return helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, list(self._constants.values()))

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """Returns the graph as a file's content.  metadata: stored beside it."""
        model = helper.make_model(
            self.graph(), producer_name="encodec_fast", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
        )
        helper.set_model_props(model, metadata)
        return model
