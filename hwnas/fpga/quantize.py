"""ONNX to the INT8 form that a DPU takes: QDQ, power-of-two scales, zero point 0, 8-bit biases, shifts in range.

ONNX Runtime's quantiser places the QDQ pairs; the scales are given to it (`TensorQuantOverrides`). Channels are
equalised first; a position is chosen for each tensor by least squared error on calibration images, then moved where a
shift of the DPU would leave its range. Where rounding alone leaves too much noise, weights are tuned for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from hwnas.core.errors import InputError
from hwnas.core.files import scratch, write_bytes
from hwnas.fpga.equalize import equalize
from hwnas.fpga.positions import CONVOLUTIONS, HIGH, LOW, Rule, best_position, settle
from hwnas.fpga.validate import validate
from hwnas.spaces.onnx_graph import fixed_batch, load_model

BATCH = 8
KEPT = 200_000
LEAST_IMAGES = 8
GOOD_DB = 20.0
ENOUGH_TO_TUNE = 256
TUNING_STEPS = 2000
QUANTISED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "HardSigmoid", "Relu", "Clip", "LeakyRelu"),
    *("GlobalAveragePool", "AveragePool", "MaxPool", "GlobalMaxPool", "ReduceMean"),
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Concat", "Resize", "Pad"),
)


@dataclass(frozen=True)
class QuantReport:
    """What quantisation did to a model.

    Attributes:
        snr_db: signal-to-noise of the outputs against the float model on images that calibration did not see.
        agreement: fraction of those images on which both models choose the same class.
        top1_float, top1_int8: percent, where labels were given.
        tuned: steps of fine-tuning; 0 also where it did not bring the outputs nearer.
        rules: every limit of the DPU and its verdict.
    """

    snr_db: float
    agreement: float
    images: int
    rules: tuple[Rule, ...]
    top1_float: float | None = None
    top1_int8: float | None = None
    tuned: int = 0

    @property
    def valid(self) -> bool:
        return all(rule.passed for rule in self.rules)

    def to_json(self) -> dict[str, Any]:
        broken = [rule.to_json() for rule in self.rules if not rule.passed]
        values = {key: value for key, value in self.__dict__.items() if key != "rules"}
        return {**values, "valid": self.valid, "rules_checked": len(self.rules), "rules_broken": broken}


def quantize(
    model: str | Path | bytes,
    images: ArrayLike,
    out: str | Path,
    labels: ArrayLike | None = None,
    held_out: float = 0.25,
    tune: int | None = None,
) -> QuantReport:
    """Quantise an ONNX model for a DPU and write it to `out`.

    Args:
        model: a path or the bytes of a float model with one image input.
        images: (n, C, H, W) float32, preprocessed as for the model; real images, not noise.
        labels: (n,) classes, for the accuracy before and after.
        held_out: fraction of the images kept out of calibration and tuning and used for the report.
        tune: steps of fine-tuning (`hwnas.fpga.tune`); None: two thousand where the outputs on calibration images are
            below 20 dB without, else none.

    Raises `InputError` where the model is already quantised or the images do not fit its input.
    """
    x = np.asarray(images, dtype=np.float32)
    given = prepare(model)
    _check_images(given, x)
    split = max(1, round(len(x) * held_out))
    test, calibration = x[:split], x[split:]
    if min(len(test), len(calibration)) < (batch := fixed_batch(given)):
        raise InputError(
            f"the model takes {batch} images at a time, and of {len(x)} images {len(calibration)} are left to "
            f"calibrate on and {len(test)} to test on; give more images, or export the model with a dynamic batch"
        )
    prepared = equalize(given, channel_ranges(given, calibration))
    positions = choose_positions(prepared, calibration)
    data, steps = _int8(prepared, positions, calibration), 0
    asked = _steps(prepared, data, calibration) if tune is None else tune
    if asked:
        from hwnas.fpga.tune import tune as tuned

        other = _int8(tuned(prepared, positions, calibration, asked), positions, calibration)
        if _snr_db(prepared, other, calibration) > _snr_db(prepared, data, calibration):
            data, steps = other, asked
    report = _report(given.SerializeToString(), data, test, None if labels is None else np.asarray(labels)[:split])
    write_bytes(out, data)
    return replace(report, tuned=steps)


def _int8(model: onnx.ModelProto, positions: dict[str, int], images: NDArray[np.float32]) -> bytes:
    data: bytes = _with_int8_biases(_insert_qdq(model, positions, images), positions).SerializeToString()
    return data


def _steps(model: onnx.ModelProto, quantised: bytes, images: NDArray[np.float32]) -> int:
    """How long to tune: not at all where the outputs are good, images are few, or operations cannot be tuned."""
    if len(images) < ENOUGH_TO_TUNE:
        return 0
    if _snr_db(model, quantised, images) >= GOOD_DB:
        return 0
    from hwnas.fpga.replay import unknown_operations

    return 0 if unknown_operations(model) else TUNING_STEPS


def prepare(model: str | Path | bytes) -> onnx.ModelProto:
    """The float model with BatchNorm folded, constants computed and h-swish in its parts, every node named."""
    import onnxruntime

    with scratch() as folder:
        path = folder / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        source = load_model(model).SerializeToString()
        try:
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            where = "the model" if isinstance(model, bytes) else model
            raise InputError(f"{where}: ONNX Runtime cannot read it ({str(error).splitlines()[0]})") from error
        proto = onnx.load(str(path))
    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in proto.graph.node):
        raise InputError("the model is quantised already; give the float model")
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
        nodes += _parts_of_h_swish(node) if node.op_type == "HardSwish" else [node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _parts_of_h_swish(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    gate = f"{node.output[0]}.gate"
    return [
        helper.make_node("HardSigmoid", [node.input[0]], [gate], f"{node.name}.gate", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", [node.input[0], gate], list(node.output), node.name),
    ]


def _check_images(model: onnx.ModelProto, images: NDArray[np.float32]) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise InputError(f"the model has {len(inputs)} inputs; one image input is expected")
    dims = [d.dim_value or None for d in inputs[0].type.tensor_type.shape.dim]
    fits = images.ndim == len(dims) and all(d in (None, s) for d, s in zip(dims[1:], images.shape[1:], strict=True))
    if not fits or len(images) < LEAST_IMAGES:
        raise InputError(
            f"the images are of shape {images.shape}; the model takes {dims}, and {LEAST_IMAGES} or more are needed"
        )
    if not np.isfinite(images).all():
        raise InputError("the images hold values that are not finite")


def _run(model: bytes, images: NDArray[np.float32]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """All outputs by name, batch after batch; what does not fill a fixed batch is left out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    source, names = session.get_inputs()[0], [output.name for output in session.get_outputs()]
    fixed = source.shape[0] if isinstance(source.shape[0], int) else 0
    whole = len(images) - len(images) % fixed if fixed else len(images)
    step = fixed or BATCH
    for start in range(0, whole, step):
        try:
            found = session.run(None, {source.name: images[start : start + step]})
        except Exception as error:  # ONNX Runtime's own kinds of errors have no common ancestor
            raise InputError(f"the model does not run: {str(error).splitlines()[0]}") from error
        yield dict(zip(names, found, strict=True))


def choose_positions(model: onnx.ModelProto, images: NDArray[np.float32]) -> dict[str, int]:
    """A position for the input, every weight, every bias and every activation, shift limits kept."""
    nodes = [node for node in model.graph.node if node.op_type in QUANTISED]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tensors = (name for node in nodes for name in (*node.input, *node.output) if name and name not in constants)
    names = dict.fromkeys(tensors)
    samples = _activations(model, list(names), images)
    position = {name: best_position(values) for name, values in samples.items()}
    for node in nodes:
        for index in (1, 2) if node.op_type in CONVOLUTIONS else (1,) if node.op_type in ("Add", "Mul") else ():
            if len(node.input) > index and node.input[index] in constants:
                position[node.input[index]] = best_position(constants[node.input[index]].astype(np.float32))
    for _ in range(3):
        settle(nodes, position)
    return position


def _activations(
    model: onnx.ModelProto, names: list[str], images: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """A sample of the values of each tensor over the images."""
    inputs = {value.name for value in model.graph.input}
    watched = _watched(model, names)
    kept: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    share = max(1, KEPT // max(1, len(images)))
    for outputs in _run(watched.SerializeToString(), images):
        for name, values in outputs.items():
            if name in kept:
                flat = values.ravel()
                kept[name].append(flat[:: max(1, flat.size // (share * len(values)))])
    samples = {name: np.concatenate(parts) for name, parts in kept.items() if parts}
    return samples | {name: images.ravel() for name in names if name in inputs}


def channel_ranges(model: onnx.ModelProto, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Largest magnitude of each channel of each image-like tensor over the images, shape (C,)."""
    ranges: dict[str, NDArray[np.float32]] = {}
    names = [name for node in model.graph.node for name in node.output]
    for outputs in _run(_watched(model, names).SerializeToString(), images):
        for name, values in outputs.items():
            if values.ndim == 4:
                largest = np.abs(values).max(axis=(0, 2, 3))
                ranges[name] = np.maximum(ranges.get(name, largest), largest)
    return ranges


def _watched(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The model with `names` among its outputs."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    own = {value.name for value in (*model.graph.output, *model.graph.input)}
    extra = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in own]
    watched.graph.output.extend(extra)
    return watched


def _insert_qdq(model: onnx.ModelProto, positions: dict[str, int], images: NDArray[np.float32]) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter([{model.graph.input[0].name: images[: fixed_batch(model) or 1]}])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._batches, None)

    overrides = {
        name: [
            {"scale": np.array(2.0**-p, np.float32), "zero_point": np.array(0, np.int8), "quant_type": QuantType.QInt8}
        ]
        for name, p in positions.items()
    }
    with scratch() as folder:
        source, path = folder / "float.onnx", folder / "qdq.onnx"
        onnx.save(model, str(source))
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)
        try:
            quantize_static(
                str(source),
                str(path),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*QUANTISED],
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "QDQKeepRemovableActivations": True,
                    "TensorQuantOverrides": overrides,
                },
            )
        finally:
            logging.getLogger().setLevel(level)
        return onnx.load(str(path))


def _with_int8_biases(model: onnx.ModelProto, positions: dict[str, int]) -> onnx.ModelProto:
    """Each convolution's float bias as int8 behind a DequantizeLinear of its own position."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    done: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS and len(node.input) > 2 and node.input[2] in constants:
            bias = node.input[2]
            if bias not in done:
                nodes.append(_quantise_bias(model, constants[bias], positions[bias]))
                done[bias] = nodes[-1].output[0]
            node.input[2] = done[bias]
        nodes.append(node)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in done]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _quantise_bias(model: onnx.ModelProto, tensor: onnx.TensorProto, position: int) -> onnx.NodeProto:
    values = numpy_helper.to_array(tensor)
    integers = np.clip(np.round(values * 2.0**position), LOW, HIGH).astype(np.int8)
    parts = {
        "quantized": integers,
        "scale": np.array(2.0**-position, dtype=np.float32),
        "zero_point": np.array(0, dtype=np.int8),
    }
    names = [f"{tensor.name}_{part}" for part in parts]
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in zip(names, parts.values(), strict=True))
    return helper.make_node("DequantizeLinear", names, [f"{tensor.name}_dequantized"], f"{tensor.name}_dequantize")


def _outputs(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first output of all images."""
    return np.concatenate([next(iter(outputs.values())) for outputs in _run(model, images)])


def _snr_db(model: onnx.ModelProto, quantised: bytes, images: NDArray[np.float32]) -> float:
    """Signal-to-noise of the quantised model's outputs against the float model's, on some of the images."""
    some = images[:ENOUGH_TO_TUNE]
    return _decibel(_outputs(model.SerializeToString(), some), _outputs(quantised, some))


def _decibel(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    noise = float(np.square(after - before).sum())
    return float(10 * np.log10(np.square(before).sum() / max(noise, 1e-30)))


def _report(
    float_model: bytes, int8_model: bytes, images: NDArray[np.float32], labels: NDArray[Any] | None
) -> QuantReport:
    before, after = _outputs(float_model, images), _outputs(int8_model, images)
    flat = [outputs.reshape(len(outputs), -1).argmax(axis=1) for outputs in (before, after)]
    top1 = [None if labels is None else 100 * float(np.mean(f == labels[: len(f)])) for f in flat]
    rules = tuple(validate(int8_model))
    agreement = float(np.mean(flat[0] == flat[1]))
    return QuantReport(_decibel(before, after), agreement, len(before), rules, top1[0], top1[1])
