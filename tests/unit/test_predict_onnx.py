"""ONNX models cut into primitives, and their cost from a table."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from hwnas.cli import app
from hwnas.core.errors import InputError, MissingCostError
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.predict import predict_onnx
from hwnas.spaces import SearchSpace, get_space
from hwnas.spaces.onnx_cut import cut
from hwnas.spaces.onnx_steps import load_steps

SPECS = ("ofa-mbv3:width=0.5,resolution=64", "nasbench-macro", "nasbench201", "fbnet:variant=cifar")


def keys_of(space: SearchSpace, row: np.ndarray) -> list[str]:
    return sorted(node.primitive.key for node in space.graph(row).nodes)


def networks(space: SearchSpace) -> np.ndarray:
    """Two networks, all of whose operations differ and reach the output: exporters drop and merge others."""
    cells = [
        "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|",
        "|avg_pool_3x3~0|+|none~0|nor_conv_3x3~1|+|nor_conv_1x1~0|none~1|skip_connect~2|",
    ]
    return space.parse_many(cells) if space.name == "nasbench201" else space.sample(2, 1)


def table_of(space: SearchSpace) -> CostTable:
    costs = {p.key: {"latency_ms": Cost(0.02 + p.macs / 1e7, verdict="steady")} for p in space.primitives()}
    return CostTable(Target("toy", "torch"), costs)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def resnet(path: Path) -> Path:
    """A residual block of another family: 7x7 convolution, max pooling, two 3x3 convolutions beside a shortcut."""
    shapes = {"a": (16, 3, 7, 7), "b": (16, 16, 3, 3), "c": (16, 16, 3, 3)}
    weights = [numpy_helper.from_array(np.ones(shape, dtype=np.float32), name) for name, shape in shapes.items()]
    pad1 = {"kernel_shape": [3, 3], "pads": [1] * 4}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["v"], kernel_shape=[7, 7], strides=[2, 2], pads=[3] * 4),
        helper.make_node("MaxPool", ["v"], ["w"], strides=[2, 2], **pad1),
        helper.make_node("Conv", ["w", "b"], ["p"], **pad1),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "c"], ["r"], **pad1),
        helper.make_node("Add", ["r", "w"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 3, 32, 32]), ("y", None))]
    graph = helper.make_graph(nodes, "resnet", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.parametrize("spec", SPECS)
def test_own_networks_are_cut_into_their_primitives(spec: str, tmp_path: Path) -> None:
    space = get_space(spec)
    for batch, row in zip((1, None), networks(space), strict=True):
        path = written(tmp_path / "net.onnx", space.to_onnx(row, batch))
        found = cut(path, space.primitives())
        assert found.unknown == () and found.unknown_share == 0
        ours = {p.key: p for p in space.primitives()}
        wanted, got = keys_of(space, row), sorted(p.key for p in found.primitives)
        if spec == "nasbench201":  # sums of sums are one graph, however they were grouped
            wanted, got = ([key for key in keys if ":add" not in key] for keys in (wanted, got))
        assert got == wanted
        assert sum(ours[key].macs for key in got) == space.macs(row[None])[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spec", SPECS[:3])
@pytest.mark.parametrize(
    "options",
    [
        {"dynamo": False, "opset_version": 17},
        {"dynamo": False, "opset_version": 13, "do_constant_folding": False},
        {"dynamo": False, "opset_version": 17, "training": "TRAINING"},
        {"dynamo": True, "verbose": False},
    ],
    ids=["torchscript", "opset 13", "BatchNorm not folded", "dynamo"],
)
def test_what_pytorch_exports_is_cut_alike(spec: str, options: dict[str, object], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if options["dynamo"] and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("the exporter needs onnxscript")
    space = get_space(spec)
    row = networks(space)[0]
    ours = cut(written(tmp_path / "ours.onnx", space.to_onnx(row)), space.primitives())
    path = tmp_path / "net.onnx"
    if mode := options.get("training"):
        options = {**options, "training": getattr(torch.onnx.TrainingMode, str(mode))}
    network = space.build(row).eval()
    torch.onnx.export(network, tuple(torch.randn(1, *s) for s in space.graph(row).inputs), str(path), **options)
    theirs = cut(path, space.primitives())
    if mode:
        assert any(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    assert theirs.unknown == ()
    assert sorted(p.key for p in theirs.primitives) == sorted(p.key for p in ours.primitives)


def test_names_and_weights_do_not_matter(tmp_path: Path) -> None:
    space = get_space(SPECS[0])
    model = onnx.load_from_string(space.to_onnx(space.sample(1, 0)[0]))
    for node in model.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [name if name in ("input", "output") else f"v{abs(hash(name))}" for name in names]
        if node.op_type == "Add":
            node.input[:] = list(node.input)[::-1]
    for tensor in model.graph.initializer:
        tensor.name = f"v{abs(hash(tensor.name))}"
        if tensor.dims:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, dtype=np.float32), tensor.name))
    onnx.save(model, tmp_path / "net.onnx")
    found = cut(tmp_path / "net.onnx", space.primitives())
    assert found.unknown == () and sorted(p.key for p in found.primitives) == keys_of(space, space.sample(1, 0)[0])


def test_the_cost_is_the_sum_of_the_parts(tmp_path: Path) -> None:
    space = get_space(SPECS[1])
    row = space.sample(1, 0)[0]
    path, table = written(tmp_path / "net.onnx", space.to_onnx(row)), table_of(space)
    found = predict_onnx(table, path)
    costs = np.array([table.rows[p.key]["latency_ms"].value for p in space.primitives()])
    assert found.value == pytest.approx(space.total(costs, row[None])[0]) and found.unknown == ()
    failed = keys_of(space, row)[0]
    table.rows[failed]["latency_ms"] = Cost(float("nan"), verdict="failed")
    with pytest.raises(MissingCostError, match="no latency_ms for 1"):
        predict_onnx(table, path)


def test_the_whole_is_expected_as_it_was_of_the_networks_of_the_run(tmp_path: Path) -> None:
    """The parts of a network, measured one by one, take longer than the whole does."""
    space = get_space(SPECS[1])
    population, table = space.sample(20, 1), table_of(space)
    table.manifest["spaces"] = [space.spec]
    table.save(tmp_path / "table.csv")
    whole = space.total(table.vector(space, "latency_ms"), population) / 1.4
    archs = [space.format(row) for row in population]
    pq.write_table(pa.table({"arch": archs, "latency_ms": whole}), tmp_path / "networks.parquet")
    path = written(tmp_path / "net.onnx", space.to_onnx(population[0]))
    found = predict_onnx(tmp_path, path)
    assert (found.expected, found.networks) == (pytest.approx(whole[0]), 20) and found.value > found.expected
    assert predict_onnx(tmp_path / "table.csv", path).expected is None
    done = CliRunner().invoke(app, ["predict", str(tmp_path), "--onnx", str(path)])
    assert f"expect about {whole[0]:.6g} ms: the sum of parts is 1.400 of the whole" in done.stdout
    pq.write_table(pa.table({"arch": archs, "energy_mj": whole}), tmp_path / "networks.parquet")
    assert predict_onnx(tmp_path, path).expected is None


def test_a_foreign_network_is_refused_unless_asked_for(tmp_path: Path) -> None:
    space = get_space(SPECS[2])
    table_of(space).save(tmp_path / "table.csv")
    path = resnet(tmp_path / "resnet.onnx")
    with pytest.raises(InputError, match="knows none of its operations"):
        predict_onnx(table_of(space), path, allow_unknown=True)
    with pytest.raises(InputError, match=r"100.0 % of its multiply-accumulates: Conv 3x32x32 \(1x\)"):
        predict_onnx(table_of(space), path)
    own = onnx.load_from_string(space.to_onnx(space.sample(1, 0)[0]))
    own.graph.node[-1].output[0] = "logits"
    own.graph.node.append(helper.make_node("Softmax", ["logits"], ["output"]))
    onnx.save(own, tmp_path / "soft.onnx")

    def asked(*options: str) -> object:
        return CliRunner().invoke(app, ["predict", str(tmp_path / "table.csv"), *options])

    with pytest.raises(InputError, match=r"0.0 % of its multiply-accumulates: Softmax 10 \(1x\); profile"):
        predict_onnx(table_of(space), tmp_path / "soft.onnx")
    assert asked("--onnx", str(tmp_path / "soft.onnx")).exit_code != 0
    done = asked("--onnx", str(tmp_path / "soft.onnx"), "--allow-unknown", "--json")
    report = json.loads(done.stdout)
    assert report["unknown"] == [{"operation": "Softmax 10", "count": 1, "macs_share": 0.0}]
    assert report["predictions"][0]["prediction"] == report["value"] > 0 and report["unknown_macs"] == 0
    assert "Softmax 10" in asked("--onnx", str(tmp_path / "soft.onnx"), "--allow-unknown").stdout


def test_what_a_table_lacks_is_listed_with_its_share(tmp_path: Path) -> None:
    space = get_space(SPECS[0])
    row = space.sample(1, 0)[0]
    path = written(tmp_path / "net.onnx", space.to_onnx(row))
    lost = max((node.primitive for node in space.graph(row).nodes), key=lambda p: p.macs)
    table = table_of(space)
    del table.rows[lost.key]
    found = predict_onnx(table, path, allow_unknown=True)
    times = keys_of(space, row).count(lost.key)
    assert found.to_json()["unknown_macs"] == pytest.approx(times * lost.macs / space.macs(row[None])[0])
    assert found.primitives == len(keys_of(space, row)) - times
    with pytest.raises(InputError, match="--allow-unknown"):
        predict_onnx(table, path)


def test_a_value_that_a_node_reads_twice_is_read_twice(tmp_path: Path) -> None:
    space = get_space("nasbench201")
    row = space.parse("|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|")
    found = predict_onnx(table_of(space), written(tmp_path / "skip.onnx", space.to_onnx(row)))
    assert found.unknown == () and found.primitives > 5


def test_a_throughput_is_made_of_the_latencies_of_the_parts(tmp_path: Path) -> None:
    space = get_space(SPECS[1])
    row, table = space.sample(1, 0)[0], table_of(space)
    several = CostTable(Target("toy", "torch", batch=8), table.rows)
    path = written(tmp_path / "net.onnx", space.to_onnx(row, None))
    rate = predict_onnx(several, path, metric="throughput_ips")
    assert (rate.metric, rate.value) == ("throughput_ips", pytest.approx(8e3 / predict_onnx(several, path).value))


def test_a_model_of_another_batch_is_refused(tmp_path: Path) -> None:
    space = get_space(SPECS[1])
    row, table = space.sample(1, 0)[0], table_of(space)
    several = CostTable(Target("toy", "torch", batch=8), table.rows)
    paths = {b: written(tmp_path / f"batch-{b}.onnx", space.to_onnx(row, b)) for b in (None, 1, 8)}
    assert predict_onnx(table, paths[1]).value == predict_onnx(several, paths[8]).value
    assert predict_onnx(table, paths[None]).value == predict_onnx(several, paths[None]).value
    with pytest.raises(InputError, match=r"takes 8 images at a time, .* is of batch 1; export"):
        predict_onnx(table, paths[8])
    with pytest.raises(InputError, match=r"takes 1 images at a time, .* is of batch 8; export"):
        predict_onnx(several, paths[1])


def test_branches_are_no_constants_and_what_they_read_counts(tmp_path: Path) -> None:
    space = get_space(SPECS[1])
    row, table = space.sample(1, 0)[0], table_of(space)
    model = onnx.load_from_string(space.to_onnx(row))
    whole = helper.make_graph(
        list(model.graph.node), "whole", [], [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 10])]
    )
    constant = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    branch = helper.make_node("If", ["yes"], ["again"], then_branch=whole, else_branch=whole)
    again = helper.make_tensor_value_info("again", TensorProto.FLOAT, [1, 10])
    values = [*model.graph.initializer]
    twice = helper.make_graph([constant, branch], "branch", [*model.graph.input], [again], values)
    onnx.save(helper.make_model(twice, opset_imports=model.opset_import), tmp_path / "branch.onnx")
    with pytest.raises(InputError, match=r"does not know some of its multiply-accumulates: If \(1x\)"):
        predict_onnx(table, tmp_path / "branch.onnx")
    side = helper.make_node("Identity", ["output"], ["seen"])
    ends = [
        helper.make_graph([side], "side", [], [helper.make_tensor_value_info("seen", TensorProto.FLOAT, [1, 10])])
    ] * 2
    reads = helper.make_node("If", ["yes"], ["again"], then_branch=ends[0], else_branch=ends[1])
    graph = helper.make_graph([*model.graph.node, constant, reads], "reads", [*model.graph.input], [again], values)
    onnx.save(helper.make_model(graph, opset_imports=model.opset_import), tmp_path / "reads.onnx")
    found = predict_onnx(table, tmp_path / "reads.onnx", allow_unknown=True)
    assert found.value == pytest.approx(predict_onnx(table, written(tmp_path / "net.onnx", space.to_onnx(row))).value)
    assert [each.operation for each in found.unknown] == ["If"] and found.unknown_macs is None


def test_what_follows_from_a_shape_is_no_operation(tmp_path: Path) -> None:
    """As older exporters write the initial state of an LSTM: a scalar taken from the shape, made a shape again."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axes"], ["rows"]),
        helper.make_node("Concat", ["rows", "width"], ["wanted"], axis=0),
        helper.make_node("Expand", ["state", "wanted"], ["begin"]),
        helper.make_node("Add", ["x", "begin"], ["y"]),
    ]
    constants = {
        "zero": np.array(0),
        "axes": np.array([0]),
        "width": np.array([8]),
        "state": np.ones((1, 1), "float32"),
    }
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "state",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    onnx.save(model, tmp_path / "net.onnx")
    assert [step.what[0] for step in load_steps(tmp_path / "net.onnx").steps.values()] == ["Add"]


def test_transposed_convolutions_count_and_half_precision_is_told(tmp_path: Path) -> None:
    space = get_space(SPECS[1])
    row, table = space.sample(1, 0)[0], table_of(space)
    model = onnx.load_from_string(space.to_onnx(row))
    weight = numpy_helper.from_array(np.ones((3, 5, 4, 4), dtype=np.float32), "up")
    model.graph.initializer.append(weight)
    model.graph.node.append(helper.make_node("ConvTranspose", ["input", "up"], ["wide"], strides=[2, 2]))
    model.graph.output.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "up.onnx")
    extra, own = 3 * 32 * 32 * 5 * 16, space.macs(row[None])[0]
    found = predict_onnx(table, tmp_path / "up.onnx", allow_unknown=True)
    assert found.unknown_macs == pytest.approx(extra / (extra + own))
    half = onnx.load_from_string(space.to_onnx(row))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    halves = [
        numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name) for t in half.graph.initializer
    ]
    del half.graph.initializer[:]
    half.graph.initializer.extend(halves)
    onnx.save(half, tmp_path / "half.onnx")
    with pytest.raises(InputError, match=r"is in fp16, .* of fp32; give the model in fp32"):
        predict_onnx(table, tmp_path / "half.onnx")
    same = CostTable(Target("toy", "torch", precision="fp16"), table.rows)
    assert predict_onnx(same, tmp_path / "half.onnx").value > 0


def test_a_model_without_operations_has_no_cost(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "nothing.onnx")
    with pytest.raises(InputError, match="knows none of its operations"):
        predict_onnx(table_of(get_space(SPECS[1])), tmp_path / "nothing.onnx")


def test_options_for_architectures_are_refused_beside_a_model(tmp_path: Path) -> None:
    for option in (["--space", SPECS[1]], ["--extrapolate"]):
        found = CliRunner().invoke(app, ["predict", str(tmp_path), "--onnx", str(tmp_path / "net.onnx"), *option])
        assert isinstance(found.exception, InputError) and "for architectures" in str(found.exception)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    table = table_of(get_space(SPECS[1]))
    for data, message in ((b"no model", "not readable as an ONNX model"), (b"", "not readable as an ONNX model")):
        with pytest.raises(InputError, match=message):
            predict_onnx(table, written(tmp_path / "bad.onnx", data))
    with pytest.raises(InputError, match="no ONNX model"):
        predict_onnx(table, tmp_path / "none.onnx")
    model = onnx.load(resnet(tmp_path / "open.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(InputError, match="open; export the model with a fixed input size"):
        predict_onnx(table, tmp_path / "open.onnx")
