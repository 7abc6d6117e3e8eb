"""ONNX models in another precision, made by ONNX Runtime's own tools."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.files import scratch

CALIBRATION_BATCHES = 4
CALIBRATION_SEED = 0


def convert(model: bytes, precision: str, batch: int, symmetric: bool = False) -> bytes:
    """A float32 ONNX model in `precision`.

    `fp16`: weights, activations, inputs and outputs in half precision. `int8`: static post-training quantisation in the
    QDQ form, 8-bit signed weights by channel and unsigned activations (the pair that x86 processors multiply fastest;
    where `symmetric`, signed ones about zero, the only kind that TensorRT takes), the ranges those of
    `CALIBRATION_BATCHES` batches of standard normal inputs of seed `CALIBRATION_SEED`; inputs and outputs stay float32.
    `batch` fills an open first dimension.
    """
    if precision == "fp16":
        return _to_half(model)
    return _quantized(model, batch, symmetric) if precision == "int8" else model


def _to_half(model: bytes) -> bytes:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return bytes(convert_float_to_float16(onnx.load_from_string(model)).SerializeToString())


def _quantized(model: bytes, batch: int, symmetric: bool) -> bytes:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    loaded = onnx.load_from_string(model)
    logging.getLogger().setLevel(logging.ERROR)
    with scratch() as folder:
        path = folder / "int8.onnx"
        quantize_static(
            loaded,
            path,
            RandomBatches(loaded, batch),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": symmetric},
        )
        return path.read_bytes()


class RandomBatches:
    """Random batches for every input of an ONNX model, as the quantiser reads them: one `get_next` each, then None."""

    def __init__(self, model: Any, batch: int) -> None:
        self.shapes = {
            value.name: [side.dim_value or batch for side in value.type.tensor_type.shape.dim]
            for value in model.graph.input
        }
        self.rng = np.random.default_rng(CALIBRATION_SEED)
        self.left = CALIBRATION_BATCHES

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        if not self.left:
            return None
        self.left -= 1
        return {name: self.rng.standard_normal(shape, dtype=np.float32) for name, shape in self.shapes.items()}
