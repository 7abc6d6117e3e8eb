"""ONNX Runtime: on the processor, and on NVIDIA GPUs through its CUDA and TensorRT providers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hwnas.profile.backends.base import Backend, Settings, backends
from hwnas.profile.backends.precision import convert
from hwnas.profile.subject import Subject
from hwnas.profile.timer import aligned, random_inputs

TYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass
class Bound:
    """A session with its inputs and outputs bound to fixed buffers on its device, which live as long as it does."""

    session: Any
    binding: Any
    buffers: list[Any]
    outputs: list[Any]


@backends.register("onnxruntime")
class OnnxRuntime(Backend):
    """The CPU provider, or CUDA's."""

    distributions = ("onnxruntime", "onnxruntime-gpu")
    devices: ClassVar[tuple[str, ...]] = ("cpu", "gpu")
    precisions = ("fp32", "fp16", "int8")
    providers: ClassVar[dict[str, str]] = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}

    @classmethod
    def unavailable(cls, settings: Settings) -> str | None:
        reason = super().unavailable(settings)
        if reason or settings.device == "cpu":
            return reason
        provider = cls.providers[settings.device]
        if provider == "CUDAExecutionProvider" and settings.precision == "int8":
            return "its CUDA provider has no int8 kernels; use --runtime onnxruntime-tensorrt"
        from onnxruntime import get_available_providers

        if provider not in get_available_providers():
            return f"the installed onnxruntime has no {provider}; install onnxruntime-gpu in place of onnxruntime"
        return None

    def compile(self, subject: Subject) -> Bound:
        session = self._session(
            convert(
                subject.to_onnx(self.settings.batch),
                self.settings.precision,
                self.settings.batch,
                symmetric=self.settings.device == "gpu",
            )
        )
        inputs = session.get_inputs()
        feeds = random_inputs([self._shape(value) for value in inputs], [TYPES[value.type] for value in inputs])
        names = [value.name for value in inputs]
        first = session.run(None, dict(zip(names, feeds, strict=True)))
        binding = session.io_binding()
        place = self._on_gpu if self.settings.device == "gpu" else self._here
        results = [
            (value.name, aligned(like.shape, like.dtype.type))
            for value, like in zip(session.get_outputs(), first, strict=True)
        ]
        buffers = [place(binding.bind_input, name, array) for name, array in zip(names, feeds, strict=True)]
        return Bound(session, binding, buffers, [place(binding.bind_output, *each) for each in results])

    def run(self, model: Bound) -> list[Any]:
        model.session.run_with_iobinding(model.binding)
        if self.settings.device == "gpu":
            model.binding.synchronize_outputs()
        return model.outputs

    def close(self, model: Bound) -> None:
        model.binding.clear_binding_inputs()
        model.binding.clear_binding_outputs()
        model.session = model.binding = None

    def _session(self, model: bytes) -> Any:
        """A session on the provider asked for; ONNX Runtime itself would quietly fall back to the processor."""
        import onnxruntime

        provider = self.providers[self.settings.device]
        if self.settings.device == "gpu" and hasattr(onnxruntime, "preload_dlls"):  # since 1.21
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model, options, providers=[(provider, self._provider_options())])
        if session.get_providers()[0] != provider:
            raise RuntimeError(f"{provider} does not start here: its CUDA, cuDNN or TensorRT libraries are missing")
        return session

    def _provider_options(self) -> dict[str, Any]:
        return {}

    @staticmethod
    def _here(bind: Any, name: str, array: Any) -> Any:
        bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return array

    @staticmethod
    def _on_gpu(bind: Any, name: str, array: Any) -> Any:
        from onnxruntime import OrtValue

        value = OrtValue.ortvalue_from_numpy(array, "cuda", 0)
        bind(name, "cuda", 0, array.dtype.type, array.shape, value.data_ptr())
        return value

    def _shape(self, value: Any) -> tuple[int, ...]:
        """The shape of a model's input, an open first axis being the batch."""
        if value.type not in TYPES:
            raise ValueError(f"input {value.name!r} is a {value.type}; only {' and '.join(TYPES)} can be fed")
        batch, *rest = value.shape
        if not all(isinstance(side, int) for side in rest):
            raise ValueError(f"input {value.name!r} has the open shape {value.shape}; give it fixed sides")
        return tuple(np.array([batch if isinstance(batch, int) else self.settings.batch, *rest]).tolist())


@backends.register("onnxruntime-tensorrt")
class OnnxRuntimeTensorRT(OnnxRuntime):
    """TensorRT's provider, which builds an engine for each model."""

    devices: ClassVar[tuple[str, ...]] = ("gpu",)
    tuned = True
    providers: ClassVar[dict[str, str]] = {"gpu": "TensorrtExecutionProvider"}

    def _provider_options(self) -> dict[str, Any]:
        return {
            "trt_fp16_enable": self.settings.precision == "fp16",
            "trt_int8_enable": self.settings.precision == "int8",
        }
