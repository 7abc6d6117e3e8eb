"""Quantisation of a trained network: it keeps its classes, and every limit of the DPU holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from hwnas.core.errors import InputError
from hwnas.fpga import check, get_target
from hwnas.fpga.equalize import equalize
from hwnas.fpga.positions import best_position, node_rules, quantised, settle
from hwnas.fpga.quantize import channel_ranges, prepare, quantize
from hwnas.fpga.validate import validate
from hwnas.spaces.graph import Graph
from hwnas.spaces.mobile import conv, linear, mbconv, pool


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = ((data.images / 16 - 0.3) / 0.37).astype(np.float32)[order, None]
    return images, data.target[order]


@pytest.fixture(scope="module")
def trained(digits: tuple[Any, Any]) -> bytes:
    """A small network with squeeze-excite, h-swish and a shortcut, trained for some seconds."""
    import torch

    from hwnas.spaces.modules import Network

    torch.manual_seed(0)
    torch.set_num_threads(1)
    blocks = [
        conv((1, 8, 8), 16, 3, 1, "h_swish"),
        mbconv((16, 8, 8), 16, 3, 1, 32, "relu"),
        mbconv((16, 8, 8), 24, 3, 2, 48, "h_swish", 16),
        conv((24, 4, 4), 64, 1, 1, "h_swish"),
        pool((64, 4, 4)),
        linear((64, 1, 1), 10),
    ]
    network = Network(Graph.chain(blocks))
    x, y = torch.from_numpy(digits[0][:1200]), torch.from_numpy(digits[1][:1200])
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=8 * 24)
    for _ in range(8):
        for rows in torch.randperm(1200).split(50):
            loss = torch.nn.functional.cross_entropy(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval().to_onnx(None)


def test_a_trained_network_keeps_its_answers(trained: bytes, digits: tuple[Any, Any], tmp_path: Path) -> None:
    images, labels = digits[0][1200:], digits[1][1200:]
    report = quantize(trained, images, tmp_path / "int8.onnx", labels, held_out=0.8)
    assert report.snr_db >= 20
    assert report.top1_float is not None and report.top1_int8 is not None
    assert report.top1_float > 90
    assert report.top1_int8 >= report.top1_float - 1
    assert report.valid
    assert report.to_json()["rules_broken"] == []
    assert check(tmp_path / "int8.onnx", get_target("zcu102-b4096")).fits


def test_tuning_brings_images_not_seen_nearer(trained: bytes, digits: tuple[Any, Any], tmp_path: Path) -> None:
    plain, tuned = (quantize(trained, digits[0], tmp_path / f"{steps}.onnx", tune=steps) for steps in (0, 120))
    assert (plain.tuned, tuned.tuned) == (0, 120)
    assert tuned.snr_db > plain.snr_db + 1
    assert tuned.valid


def test_a_network_is_tuned_by_itself_where_rounding_alone_is_not_enough(
    trained: bytes, digits: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.fpga.quantize.TUNING_STEPS", 3)
    assert quantize(trained, digits[0][:600], tmp_path / "good.onnx").tuned == 0
    monkeypatch.setattr("hwnas.fpga.quantize.GOOD_DB", 60.0)
    monkeypatch.setattr("hwnas.fpga.tune.LR", 0.01)
    assert quantize(trained, digits[0][:600], tmp_path / "bad.onnx").tuned == 3
    assert quantize(trained, digits[0][:100], tmp_path / "few.onnx").tuned == 0


def test_tuning_that_makes_it_worse_is_left_out(
    trained: bytes, digits: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.fpga.tune.LR", 30.0)
    plain, spoilt = (quantize(trained, digits[0], tmp_path / f"{steps}.onnx", tune=steps) for steps in (0, 3))
    assert spoilt.tuned == 0
    assert spoilt.snr_db == pytest.approx(plain.snr_db)


def test_weights_may_lie_in_a_file_beside_the_model(trained: bytes, digits: tuple[Any, Any], tmp_path: Path) -> None:
    model, options = onnx.load_from_string(trained), {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(model, tmp_path / "net.onnx", location="net.onnx.data", **options)
    apart, whole = (
        quantize(source, digits[0][:32], tmp_path / "int8.onnx") for source in (tmp_path / "net.onnx", trained)
    )
    assert (tmp_path / "net.onnx.data").stat().st_size > 1000
    assert apart.snr_db == pytest.approx(whole.snr_db)


def test_a_graph_is_replayed_as_onnx_runtime_runs_it(digits: tuple[Any, Any]) -> None:
    import torch

    from hwnas.fpga.replay import Replay
    from hwnas.spaces import get_space

    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    for spec in ("nasbench-macro", "ofa-mbv3:width=0.5,resolution=32", "fbnet:variant=cifar"):
        space = get_space(spec)
        model = prepare(space.to_onnx(space.sample(1, 3)[0], batch=2))
        (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": images})
        with torch.no_grad():
            np.testing.assert_allclose(Replay(model)(torch.from_numpy(images)).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_everything_is_int8_with_power_of_two_scales(trained: bytes, digits: tuple[Any, Any], tmp_path: Path) -> None:
    quantize(trained, digits[0][1200:1232], tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert np.log2(constants[node.input[1]]) % 1 == 0
            assert constants[node.input[2]].dtype == np.int8
            assert constants[node.input[2]] == 0
        if node.op_type in ("Conv", "Gemm"):
            assert all(producers[name].op_type == "DequantizeLinear" for name in node.input)
            assert all(constants[producers[name].input[0]].dtype == np.int8 for name in node.input[1:])


def _scale(model: onnx.ModelProto, index: int, value: float) -> None:
    pair = [node for node in model.graph.node if node.op_type == "DequantizeLinear"][index]
    for tensor in model.graph.initializer:
        if tensor.name == pair.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), tensor.name))


def test_the_validator_names_what_is_broken(trained: bytes, digits: tuple[Any, Any], tmp_path: Path) -> None:
    quantize(trained, digits[0][1200:1232], tmp_path / "int8.onnx")
    for value, rule in ((0.3, "power-of-two scale"), (2.0**-40, "w + i - o"), (2.0**20, "w + i - o")):
        model = onnx.load(tmp_path / "int8.onnx")
        weights = [t.name for t in model.graph.initializer if t.name.endswith("weight_quantized")]
        pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        _scale(model, next(i for i, pair in enumerate(pairs) if pair.input[0] in weights), value)
        broken = [verdict.rule for verdict in validate(model) if not verdict.passed]
        assert any(rule in name for name in broken)
    with pytest.raises(InputError, match="not quantised"):
        validate(trained)


def test_bad_input_is_refused(trained: bytes, digits: tuple[Any, Any], tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    with pytest.raises(InputError, match="of shape"):
        quantize(trained, np.zeros((16, 3, 8, 8), np.float32), out)
    with pytest.raises(InputError, match="8 or more"):
        quantize(trained, digits[0][:4], out)
    with pytest.raises(InputError, match="not finite"):
        quantize(trained, np.full((16, 1, 8, 8), np.nan, np.float32), out)
    with pytest.raises(InputError, match="not readable"):
        quantize(b"nothing", digits[0][:16], out)
    assert not out.exists()
    quantize(trained, digits[0][:16], out)
    with pytest.raises(InputError, match="quantised already"):
        quantize(out, digits[0][:16], out)


def test_positions_hold_the_values() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 500.0):
        values = (scale * rng.standard_normal(1000)).astype(np.float32)
        position = best_position(values)
        error = np.sqrt(np.mean((quantised(values, position) - values) ** 2))
        assert error < 0.02 * scale


def test_equalisation_leaves_the_function_as_it_is(trained: bytes, digits: tuple[Any, Any]) -> None:
    model = prepare(trained)
    images = digits[0][:32]
    ranges = channel_ranges(model, images)
    even = equalize(model, ranges)
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"input": images})[0] for m in (model, even)
    )
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    spread = {name: np.log(values.max() / max(values.min(), 1e-6)) for name, values in ranges.items()}
    evened = channel_ranges(even, images)
    name = "b1.expand_act"
    assert np.log(evened[name].max() / max(evened[name].min(), 1e-6)) < spread[name]


@given(
    positions=st.lists(st.integers(-20, 30), min_size=4, max_size=4),
    kind=st.sampled_from(["Conv", "Add", "Mul", "HardSigmoid"]),
)
def test_settled_positions_keep_every_limit(positions: list[int], kind: str) -> None:
    names = {"Conv": ["x", "w", "b"], "Add": ["x", "w"], "Mul": ["x", "w"], "HardSigmoid": ["x"]}[kind]
    node = onnx.helper.make_node(kind, names, ["o"], "node")
    position = dict(zip([*names, "o"], positions, strict=False))
    settle([node], position)
    assert all(rule.passed for rule in node_rules(node, position))


def test_a_model_of_a_fixed_batch_is_quantised(trained: bytes, digits: tuple[Any, Any], tmp_path: Path) -> None:
    model = onnx.load_from_string(trained)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 16
    report = quantize(model.SerializeToString(), digits[0][:96], tmp_path / "int8.onnx", held_out=0.25)
    assert report.valid and (tmp_path / "int8.onnx").is_file()
    with pytest.raises(InputError, match="16 images at a time"):
        quantize(model.SerializeToString(), digits[0][:24], tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_weights_that_two_convolutions_share_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((4, 4, 1, 1)).astype(np.float32), "w")
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Conv", ["b", "w"], ["c"]),
        onnx.helper.make_node("Relu", ["c"], ["d"]),
        onnx.helper.make_node("Conv", ["d", "w"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 6, 6]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    images = rng.standard_normal((1, 4, 6, 6)).astype(np.float32)
    even = equalize(model, channel_ranges(model, images))
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": images})[0] for m in (model, even)
    )
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_images_are_normalised_as_the_model_was_trained(tmp_path: Path) -> None:
    """Whatever data it is calibrated on; other classes are refused."""
    from hwnas.cli.board import _images
    from hwnas.spaces import get_space

    space = get_space("ofa-mbv3:width=0.5,resolution=32,num_classes=10")
    model = onnx.load_from_string(space.to_onnx(space.sample(1, 0)[0]))
    told = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "classes": [str(digit) for digit in range(10)]}
    for key in (None, "mean"):
        properties = {f"hwnas.{name}": json.dumps(value) for name, value in told.items() if key}
        onnx.helper.set_model_props(model, properties)
        onnx.save(model, tmp_path / "net.onnx")
        pixels, labels = _images(tmp_path / "net.onnx", "digits", None, 64)
        assert pixels.shape == (64, 3, 32, 32) and set(labels) <= set(range(10))
        assert (pixels.min() >= 0 and pixels.max() <= 1) == (key is not None)
    onnx.helper.set_model_props(model, {"hwnas.classes": json.dumps(told["classes"][::-1])})
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(InputError, match="give the same classes"):
        _images(tmp_path / "net.onnx", "digits", None, 64)
