"""Each limit of the DPU at its boundary, on graphs of one or a few nodes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwnas.core.errors import InputError
from hwnas.fpga import check, check_primitive, get_target, runs_on, supported, target_names
from hwnas.spaces import get_space
from hwnas.spaces.mobile import conv

B4096 = get_target("zcu102-b4096")


class Net:
    """A small ONNX graph, one call a node."""

    def __init__(self, *shape: int) -> None:
        self.inputs = {"x": shape}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = "x"

    def weight(self, *shape: int, value: Any = None) -> str:
        name = f"w{len(self.weights)}"
        array = np.zeros(shape, np.float32) if value is None else np.array(value)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> "Net":
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs or (self.last,)), [name], name=name, **attributes))
        self.last = name
        return self

    def conv(self, out: int, kernel: int, channels: int, group: int = 1, **attributes: Any) -> "Net":
        return self.add(
            "Conv", self.last, self.weight(out, channels // group, kernel, kernel), group=group, **attributes
        )

    def model(self) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.inputs.items()]
        out = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", values, [out], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _conv(channels: int = 16, side: int = 32, out: int = 16, kernel: int = 3, **attributes: Any) -> Net:
    return Net(1, channels, side, side).conv(out, kernel, channels, **attributes)


def _dw(channels: int = 16, side: int = 32, kernel: int = 3, **attributes: Any) -> Net:
    return Net(1, channels, side, side).conv(channels, kernel, channels, group=channels, **attributes)


def _two(kind: str, left: tuple[int, ...], right: tuple[int, ...]) -> Net:
    net = Net(*left)
    net.inputs["y"] = right
    return net.add(kind, "x", "y")


def _scale(kind: str, channels: int) -> Net:
    net = Net(1, channels, 8, 8)
    return net.add(kind, "x", net.weight(1, channels, 1, 1))


def _resize(mode: str, channels: int, factor: float, transform: str = "asymmetric") -> Net:
    net = Net(1, channels, 8, 8)
    scales = net.weight(value=np.array([1, 1, factor, factor], np.float32))
    return net.add("Resize", "x", "", scales, mode=mode, coordinate_transformation_mode=transform)


def _reshape(shape: list[int]) -> Net:
    net = Net(2, 16, 4, 4)
    return net.add("Reshape", "x", net.weight(value=np.array(shape, np.int64)))


def _clip(low: float, high: float) -> Net:
    net = _conv()
    return net.add("Clip", net.last, net.weight(value=np.float32(low)), net.weight(value=np.float32(high)))


def _gemm(channels: int, side: int, out: int = 10, **attributes: Any) -> Net:
    net = Net(1, channels, side, side).add("Flatten")
    return net.add("Gemm", net.last, net.weight(out, channels * side * side), transB=1, **attributes)


def _concat(axis: int, tanh: bool) -> Net:
    net = Net(1, 16, 8, 8)
    first = net.add("Tanh").last if tanh else net.conv(16, 1, 16).last
    net.last = "x"
    second = net.conv(16, 1, 16).last
    return net.add("Concat", first, second, axis=axis)


CASES: dict[str, tuple[Net, str]] = {
    "conv kernel 16": (_conv(kernel=16), "conv"),
    "conv kernel 17": (_conv(kernel=17), "kernel 17 is outside 1 to 16"),
    "conv stride 8": (_conv(strides=[8, 8]), "conv"),
    "conv stride 9": (_conv(strides=[9, 9]), "stride 9 is outside 1 to 8"),
    "conv stride 9, kernel covers": (_conv(side=3, strides=[9, 9]), "conv"),
    "conv 4096 channels": (_conv(channels=4096, side=4, kernel=1), "conv"),
    "conv 4097 channels": (_conv(channels=4097, side=4, kernel=1), "input channels 4097"),
    "conv 4096 out": (_conv(out=4096, kernel=1), "conv"),
    "conv 4097 out": (_conv(out=4097, kernel=1), "output channels 4097"),
    "conv 8x8 of 512": (_conv(channels=512, kernel=8), "conv"),
    "conv 8x8 of 513": (_conv(channels=513, kernel=8), "2112 is outside 1 to 2048"),
    "conv dilation 8 of 512": (_conv(channels=512, dilations=[8, 8], side=64), "conv"),
    "conv dilation 9 of 512": (_conv(channels=512, dilations=[9, 9], side=64), "4608"),
    "conv pad 3": (_conv(pads=[3, 3, 3, 3]), "conv"),
    "conv pad 4": (_conv(pads=[4, 0, 0, 0]), "padding 4 is outside"),
    "conv pad 4 dilated": (_conv(pads=[4, 0, 0, 0], dilations=[2, 2]), "conv"),
    "conv 2 groups": (_conv(group=2), "grouped convolution"),
    "conv same padding": (_conv(auto_pad="SAME_UPPER"), "conv"),
    "conv 1-D": (Net(1, 16, 32).add("Conv", "x", "w0"), "over 1 dimensions"),
    "depthwise kernel 3": (_dw(), "depthwise"),
    "depthwise multiplier 2": (Net(1, 16, 8, 8).conv(32, 3, 16, group=16), "grouped convolution"),
    "depthwise stride 256": (_dw(side=64, strides=[256, 256]), "depthwise"),
    "depthwise stride 257": (_dw(side=64, strides=[257, 257]), "stride 257"),
    "depthwise 45x45": (_dw(side=64, kernel=45), "depthwise"),
    "depthwise 46x46": (_dw(side=64, kernel=46), "2116 is outside"),
    "depthwise pad before 15": (_dw(pads=[15, 15, 0, 0]), "depthwise"),
    "depthwise pad before 16": (_dw(pads=[16, 0, 0, 0]), "padding 16 is outside 0 to 15"),
    "depthwise pad after 255": (_dw(pads=[0, 0, 255, 255]), "depthwise"),
    "depthwise pad after 256": (_dw(pads=[0, 0, 0, 256]), "padding 256 is outside 0 to 255"),
    "depthwise 4097 channels": (_dw(channels=4097, side=4), "4097"),
    "deconv 4 by 2": (Net(1, 16, 8, 8).add("ConvTranspose", "x", "w0", strides=[2, 2]), "conv"),
    "deconv 4 by 5": (Net(1, 16, 8, 8).add("ConvTranspose", "x", "w0", strides=[5, 5]), "0.8"),
    "deconv output padding": (
        Net(1, 16, 8, 8).add("ConvTranspose", "x", "w0", strides=[2, 2], output_padding=[1, 1]),
        "output padding 1",
    ),
    "max pool 256": (Net(1, 16, 256, 256).add("MaxPool", kernel_shape=[256, 256]), "pool"),
    "max pool 257": (Net(1, 16, 300, 300).add("MaxPool", kernel_shape=[257, 257]), "kernel 257"),
    "average pool pad 16": (Net(1, 16, 64, 64).add("AveragePool", kernel_shape=[40, 40], pads=[16] * 4), "padding 16"),
    "global pool 256": (Net(1, 4, 256, 256).add("GlobalAveragePool"), "pool"),
    "global pool 257": (Net(1, 4, 257, 257).add("GlobalAveragePool"), "kernel 257"),
    "mean over image": (Net(1, 16, 8, 8).add("ReduceMean", axes=[2, 3]), "pool"),
    "mean over channels": (Net(1, 16, 8, 8).add("ReduceMean", axes=[1]), "mean over the axes"),
    "add": (_two("Add", (1, 16, 8, 8), (1, 16, 8, 8)), "eltwise"),
    "mul broadcast over the image": (_two("Mul", (1, 16, 8, 8), (1, 16, 1, 1)), "eltwise"),
    "mul broadcast over channels": (_two("Mul", (1, 16, 8, 8), (1, 1, 8, 8)), "operands of shapes"),
    "mul by a constant": (_scale("Mul", 16), "depthwise"),
    "mul by a constant, wide": (_scale("Mul", 4097), "channels 4097"),
    "sub": (_two("Sub", (1, 16, 8, 8), (1, 16, 8, 8)), "no engine"),
    "div": (_two("Div", (1, 16, 8, 8), (1, 16, 8, 8)), "no engine"),
    "neg": (Net(1, 16, 8, 8).add("Neg"), "no engine"),
    "exp": (Net(1, 16, 8, 8).add("Exp"), "no engine"),
    "relu after conv": (_conv().add("Relu"), "fused"),
    "relu after max pool": (Net(1, 4, 8, 8).add("MaxPool", kernel_shape=[2, 2]).add("Relu"), "follows no convolution"),
    "relu6": (_clip(0, 6), "fused"),
    "clip to 1": (_clip(0, 1), "only ReLU and ReLU6"),
    "leaky relu 26/256": (_conv().add("LeakyRelu", alpha=26 / 256), "fused"),
    "leaky relu 0.1": (_conv().add("LeakyRelu", alpha=0.1), "exactly 0.1015625"),
    "hard sigmoid": (_conv().add("HardSigmoid", alpha=1 / 6, beta=0.5), "alu"),
    "hard sigmoid 0.2": (_conv().add("HardSigmoid", alpha=0.2, beta=0.5), "alpha 0.2"),
    "hard swish": (_conv().add("HardSwish"), "alu"),
    "sigmoid": (_conv().add("Sigmoid"), "a sigmoid"),
    "tanh": (_conv().add("Tanh"), "no engine"),
    "transpose": (_conv().add("Transpose", perm=[0, 2, 3, 1]), "no engine"),
    "resize nearest": (_resize("nearest", 4096, 3), "memory"),
    "resize nearest wide": (_resize("nearest", 4097, 3), "channels 4097"),
    "resize nearest aligned": (_resize("nearest", 16, 2, "align_corners"), "aligned corners"),
    "resize bilinear 8": (_resize("linear", 16, 8), "depthwise"),
    "resize bilinear 3": (_resize("linear", 16, 3), "linear resizing by 3"),
    "concat of the DPU's": (_concat(2, tanh=False), "memory"),
    "concat of the CPU's, channels": (_concat(1, tanh=True), "memory"),
    "concat of the CPU's, rows": (_concat(2, tanh=True), "comes from the CPU"),
    "pad constant": (Net(1, 4, 8, 8).add("Pad", "x", "p0"), "memory"),
    "pad reflect": (Net(1, 4, 8, 8).add("Pad", "x", "p0", mode="reflect"), "padding mode reflect"),
    "reshape keeps batch": (_reshape([2, -1]), "memory"),
    "reshape folds batch": (_reshape([-1, 16]), "batch dimension"),
    "gemm 7x7x512": (_gemm(512, 7), "conv"),
    "gemm 16x16x128": (_gemm(128, 16), "conv"),
    "gemm 16x16x144": (_gemm(144, 16), "2304 is outside"),
    "gemm 17x17": (_gemm(16, 17), "kernel 17"),
    "gemm alpha": (_gemm(16, 4, alpha=0.5), "transA, alpha"),
    "matmul of two inputs": (_two("MatMul", (4, 8), (8, 4)), "two computed"),
    "batch norm after conv": (_conv().add("BatchNormalization", "n0", "b", "b", "b", "b"), "fused"),
}
EXTRA = {
    "conv 1-D": {"w0": np.zeros((16, 16, 3), np.float32)},
    "deconv": {"w0": np.zeros((16, 16, 4, 4), np.float32)},
    "pad": {"p0": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
    "batch norm": {"b": np.ones(16, np.float32)},
}


@pytest.mark.parametrize("name", CASES)
def test_the_ruling_at_each_boundary(name: str) -> None:
    net, expected = CASES[name]
    for prefix, arrays in EXTRA.items():
        if name.startswith(prefix):
            net.weights = [*net.weights, *(numpy_helper.from_array(a, n) for n, a in arrays.items())]
    node = check(net.model(), B4096).nodes[-1]
    if " " in expected or expected[0].isdigit():
        assert node.engine == "cpu"
        assert expected in node.reason
    else:
        assert (node.engine, node.reason) == (expected, "")


def test_silu_is_two_hand_overs_and_says_what_to_do() -> None:
    net = _conv()
    conv = net.last
    net.add("Sigmoid")
    net.add("Mul", conv, net.last)
    report = check(net.conv(8, 1, 16).model(), B4096)
    assert [s.device for s in report.subgraphs] == ["dpu", "cpu", "dpu"]
    assert report.to_json()["changes"] == ["replace SiLU by h-swish and fine-tune"]


def test_parallel_branches_do_not_make_a_circle() -> None:
    net = _conv()
    start = net.last
    left = net.add("Tanh").last
    net.last = start
    right = net.conv(16, 3, 16, pads=[1] * 4).last
    report = check(net.add("Add", left, right).model(), B4096)
    devices = [s.device for s in report.subgraphs]
    assert sorted(devices) == ["cpu", "dpu", "dpu"]
    assert report.nodes[-1].subgraph != report.nodes[0].subgraph


def test_a_smaller_dpu_has_fewer_channels() -> None:
    wide = _conv(channels=2048, side=4, kernel=1).model()
    assert check(wide, get_target("dpuczdx8g-b1024")).fits
    assert not check(_conv(channels=2049, side=4, kernel=1).model(), get_target("dpuczdx8g-b1024")).fits


@pytest.mark.parametrize("name", target_names())
def test_every_target_is_whole(name: str) -> None:
    target = get_target(name)
    assert target.pixel_parallel * target.channel_parallel**2 * 2 == int(target.device.rpartition("_B")[2])
    assert all(limit.source for limit in target.limits.values())


def test_a_target_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: dpuczdx8g-b512\ntitle: mine\nclock_mhz: 150\nsource: me\n")
    target = get_target(path)
    assert (target.name, target.clock_mhz, target.channel_parallel) == ("mine", 150, 8)
    path.write_text("extends: dpuczdx8g-b512\ntitle: mine\nclock: 150\nsource: me\n")
    with pytest.raises(InputError, match="did you mean 'clock_mhz'"):
        get_target(path)
    with pytest.raises(InputError, match="unknown DPU target 'zcu102'"):
        get_target("zcu102")


def test_spaces_are_filtered() -> None:
    fbnet = get_space("fbnet:variant=cifar")
    mask = supported(fbnet.primitives(), B4096)
    grouped = np.array([p.number("groups", 1) > 1 for p in fbnet.primitives()])
    np.testing.assert_array_equal(mask, ~grouped)
    population = fbnet.sample(50, 0)
    plain = [not any("_g2" in name for name in fbnet.format(row).split('"')) for row in population]
    np.testing.assert_array_equal(runs_on(fbnet, population, B4096), plain)
    assert not supported(get_space("mnasnet:act=swish").primitives(), B4096).all()


def test_a_block_and_its_network_get_the_same_ruling() -> None:
    space = get_space("ofa-mbv3:resolution=64,num_classes=10")
    row = space.sample(1, 0)[0]
    assert check(space.to_onnx(row), B4096).fits
    assert all(check_primitive(node.primitive, B4096).fits for node in space.graph(row).nodes)


def test_activations_are_those_of_the_target() -> None:
    fused, alu = B4096.fused_activations, B4096.alu_activations
    assert set(fused.value) == {"Relu", "Relu6", "LeakyRelu"} and set(alu.value) == {"HardSigmoid", "HardSwish"}
    poor = B4096.model_copy(
        update={
            "fused_activations": fused.model_copy(update={"value": ["Relu"]}),
            "alu_activations": alu.model_copy(update={"value": []}),
        }
    )
    for act, reason in (("relu", ""), ("relu6", "fuses Relu"), ("h_swish", "HardSwish, which this DPU has not")):
        block = conv((16, 8, 8), 16, 3, act=act)
        assert check_primitive(block, B4096).fits
        report = check_primitive(block, poor)
        assert report.fits == (not reason) and (not reason or any(reason in node.reason for node in report.nodes))


def test_an_unreadable_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not readable as an ONNX model"):
        check(tmp_path / "model.onnx", B4096)
    with pytest.raises(InputError, match="no ONNX model"):
        check(tmp_path / "none.onnx", B4096)
