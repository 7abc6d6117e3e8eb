"""OpenVINO on the processor (extra `openvino`), registered as a package of a third party registers its own backend:
through the entry-point group `hwnas.backends`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from hwnas.profile.backends.base import Backend, Settings
from hwnas.profile.backends.precision import convert
from hwnas.profile.subject import Subject
from hwnas.profile.timer import aligned, random_inputs

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""The type in which what is not quantised is computed; left alone, OpenVINO takes bfloat16 where it is faster."""


@dataclass
class Request:
    """A compiled model's inference request, and the arrays that it reads and writes in place."""

    request: Any
    inputs: list[NDArray[Any]]
    outputs: list[NDArray[Any]]


class OpenVino(Backend):
    distributions = ("openvino",)
    precisions = tuple(HINTS)

    @classmethod
    def unavailable(cls, settings: Settings) -> str | None:
        reason = super().unavailable(settings)
        if reason is None and settings.precision == "bf16":
            from openvino import Core

            if "BF16" not in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                return "this processor does not compute in bfloat16, and OpenVINO would quietly take float32"
        return reason

    def compile(self, subject: Subject) -> Request:
        from openvino import Core, Tensor

        settings = self.settings
        model = Core().read_model(convert(subject.to_onnx(settings.batch), settings.precision, settings.batch))
        if model.is_dynamic():
            model.reshape({port: [settings.batch, *list(port.partial_shape)[1:]] for port in model.inputs})
        compiled = Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": settings.threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": HINTS[settings.precision],
            },
        )
        request = compiled.create_infer_request()
        inputs = random_inputs([tuple(port.shape) for port in compiled.inputs])
        outputs = [aligned(tuple(port.shape)) for port in compiled.outputs]
        for index, array in enumerate(inputs):
            request.set_input_tensor(index, Tensor(array, shared_memory=True))
        for index, array in enumerate(outputs):
            request.set_output_tensor(index, Tensor(array, shared_memory=True))
        return Request(request, inputs, outputs)

    def run(self, model: Request) -> list[NDArray[Any]]:
        model.request.infer(share_outputs=True)
        return model.outputs

    def close(self, model: Request) -> None:
        model.request = None
