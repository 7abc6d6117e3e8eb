"""ONNX Runtime on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.profile.backends.base import Backend, backends
from hwnas.profile.subject import Subject
from hwnas.profile.timer import aligned, random_inputs

PROVIDERS = ["CPUExecutionProvider"]


@dataclass
class Bound:
    """A session with its inputs and outputs bound to fixed buffers, which live as long as it does."""

    session: Any
    binding: Any
    buffers: list[NDArray[Any]]
    outputs: list[NDArray[Any]]


@backends.register("onnxruntime")
class OnnxRuntime(Backend):
    distributions = ("onnxruntime", "onnxruntime-gpu")

    def compile(self, subject: Subject) -> Bound:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(subject.to_onnx(self.settings.batch), options, providers=PROVIDERS)
        names = [value.name for value in session.get_inputs()]
        feeds = random_inputs([self._shape(value) for value in session.get_inputs()])
        first = session.run(None, dict(zip(names, feeds, strict=True)))
        binding = session.io_binding()
        for name, array in zip(names, feeds, strict=True):
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        outputs = []
        for value, like in zip(session.get_outputs(), first, strict=True):
            array = aligned(like.shape, like.dtype.type)
            binding.bind_output(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            outputs.append(array)
        return Bound(session, binding, feeds, outputs)

    def run(self, model: Bound) -> list[NDArray[Any]]:
        model.session.run_with_iobinding(model.binding)
        return model.outputs

    def close(self, model: Bound) -> None:
        model.binding.clear_binding_inputs()
        model.binding.clear_binding_outputs()
        model.session = model.binding = None

    def _shape(self, value: Any) -> tuple[int, ...]:
        """The shape of a model's input, an open first axis being the batch."""
        if value.type != "tensor(float)":
            raise ValueError(f"input {value.name!r} is a {value.type}; only tensor(float) can be fed")
        batch, *rest = value.shape
        if not all(isinstance(side, int) for side in rest):
            raise ValueError(f"input {value.name!r} has the open shape {value.shape}; give it fixed sides")
        return tuple(np.array([batch if isinstance(batch, int) else self.settings.batch, *rest]).tolist())
