"""Reads ONNX models, and assembles them from nodes, without PyTorch and in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwnas.core.errors import InputError

OPSET = 17
IR_VERSION = 8


def load_model(model: str | Path | bytes | onnx.ModelProto, external_data: bool = True) -> onnx.ModelProto:
    """An ONNX model from a file, its bytes, or as it is; raises `InputError` where it is unreadable or empty."""
    if isinstance(model, onnx.ModelProto):
        return model
    where = "the model" if isinstance(model, bytes) else str(model)
    try:
        if isinstance(model, bytes):
            proto = onnx.load_from_string(model)
        else:
            proto = onnx.load(model, load_external_data=external_data)
    except FileNotFoundError as error:
        missing = f"no ONNX model at {where}" if not Path(where).is_file() else f"{where}: a file it names is missing"
        raise InputError(missing) from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: not readable as an ONNX model ({reason})") from error
    if not proto.graph.node:
        raise InputError(f"{where}: not readable as an ONNX model (it has no operations)")
    return proto


def fixed_batch(model: onnx.ModelProto) -> int:
    """How many images the model's first input takes at a time; 0 where that is open."""
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in constants]
    return int(shapes[0][0].dim_value) if shapes and len(shapes[0]) else 0


class OnnxGraph:
    """Collects nodes and constants; `model` closes it."""

    def __init__(self, bn_eps: float) -> None:
        self.bn_eps = bn_eps
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def node(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; its only output is called `name`, which is returned."""
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add an initialiser; returns its name."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def scalar(self, name: str, value: float) -> str:
        """A float constant that all nodes share."""
        return self.constant(f"const.{name}", np.array(value, dtype=np.float32))

    def model(
        self, inputs: dict[str, tuple[int, ...]], output: str, shape: tuple[int, ...], batch: int | None
    ) -> bytes:
        """The serialised model; shapes are those of one image, `batch=None` leaves the first dimension open."""
        first: int | str = "N" if batch is None else batch
        last = next(node for node in self._nodes if node.output[0] == output)
        last.output[0] = "output"
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, *s]) for name, s in inputs.items()]
        result = helper.make_tensor_value_info("output", TensorProto.FLOAT, [first, *shape])
        graph = helper.make_graph(self._nodes, "hwnas", values, [result], list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="hwnas")
        model.ir_version = IR_VERSION
        return bytes(model.SerializeToString())
