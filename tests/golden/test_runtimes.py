"""Logs of the runtimes' own tools: what they say, and what makes them refused."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hwnas.core.errors import InputError, ParseError
from hwnas.core.table import CostTable
from hwnas.parse import ColumnMapping, Record, parse
from hwnas.parse.ofa_lookup import note10_key, note10_primitive, read_entries
from hwnas.spaces import get_space

LOGS = Path(__file__).parent / "runtimes"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    shutil.copytree(LOGS, tmp_path / "logs")
    return tmp_path / "logs"


def records(path: Path) -> dict[str, Record]:
    return {entry.record.subject: entry.record for entry in parse([path]).entries}


def latency(record: Record) -> float:
    return record.costs["latency_ms"].value


def test_onnxruntime_samples_are_read_with_the_figures_printed_of_them(logs: Path) -> None:
    record = records(logs / "onnxruntime")["block"]
    seconds = [float(line.split(",")[1]) for line in (LOGS / "onnxruntime" / "block.samples.csv").open()]
    assert latency(record) == pytest.approx(1e3 * np.median(seconds))
    assert (record.costs["latency_ms"].n, record.threads, record.runtime) == (20, 2, "onnxruntime")


def test_onnxruntime_profile_gives_the_whole_model_and_each_node(logs: Path, tmp_path: Path) -> None:
    report = parse([logs / "onnxruntime"], out=tmp_path / "table.csv")
    record = next(e.record for e in report.entries if e.record.subject == "small")
    assert latency(record) == pytest.approx(0.047)  # median of 59, 44, 50, 43 us; the first run, 217 us, left out
    nodes = {part.name: part for part in record.parts}
    assert nodes["b0.depthwise_act_nchwc"].kind == "Conv"
    assert nodes["b0.shortcut"].latency_ms == pytest.approx(0.0025)  # median of 5, 3, 2, 2 us
    assert record.details["nodes_ms"] <= latency(record)
    assert "b0.shortcut,Add,0.0025" in (tmp_path / "table.parts.csv").read_text()


def test_a_profile_written_here_and_now_is_read(tmp_path: Path) -> None:
    import onnxruntime as ort

    space = get_space("nasbench-macro")
    row = space.sample(1, np.random.default_rng(0))[0]
    options = ort.SessionOptions()
    options.enable_profiling, options.intra_op_num_threads = True, 1
    options.profile_file_prefix = str(tmp_path / "net")
    session = ort.InferenceSession(space.to_onnx(row, 1), options, providers=["CPUExecutionProvider"])
    feed = {i.name: np.zeros(i.shape, dtype=np.float32) for i in session.get_inputs()}
    for _ in range(6):
        session.run(None, feed)
    record = parse([session.end_profiling()]).entries[0].record
    assert record.costs["latency_ms"].n == 5
    assert 0 < record.details["nodes_ms"] <= record.details["runs"] * latency(record)
    assert {part.kind for part in record.parts} >= {"Conv"}


@pytest.mark.parametrize("name", ["block", "printed"])
def test_tvm_time_evaluator(logs: Path, name: str) -> None:
    results = json.loads((LOGS / "tvm" / "block.json").read_text())["results"]
    cost = records(logs / "tvm")[name].costs["latency_ms"]
    assert (cost.value, cost.n) == (pytest.approx(1e3 * np.median(results)), 9)


def test_tvm_summary_and_profiler(logs: Path) -> None:
    found = records(logs / "tvm")
    assert latency(found["summary"]) == pytest.approx(latency(found["block"]), abs=1e-4)
    assert latency(found["report"]) == 0.76
    assert [part.latency_ms for part in found["report"].parts] == [0.3105, 0.40225, 0.04]


def test_trtexec_reads_what_one_run_wrote_as_one(logs: Path) -> None:
    report = parse([logs / "trtexec"])
    (record,) = [entry.record for entry in report.entries]
    assert (record.costs["latency_ms"].value, record.costs["latency_ms"].n) == (pytest.approx(0.2125), 24)
    assert (record.device, record.runtime_version, record.precision, record.batch) == (
        "NVIDIA Test GPU",
        "10.3",
        "fp16",
        4,
    )
    assert record.details["host_latency_ms"] == pytest.approx(0.2285)
    assert (record.parts[0].name, record.parts[0].kind) == ("conv1 + relu1", "CaskConvolution")
    assert sum(part.latency_ms for part in record.parts) == pytest.approx(0.63)


@pytest.mark.parametrize(
    "name, flags",
    [("txt", ()), ("times.json", ("warm_up_included",)), ("profile.json", ("sum_of_layers", "mean_only"))],
)
def test_each_file_of_trtexec_is_read_alone(logs: Path, name: str, flags: tuple[str, ...]) -> None:
    record = parse([logs / "trtexec" / f"block.{name}"]).entries[0].record
    assert (record.subject, record.flags) == ("block", flags)
    assert latency(record) == pytest.approx(0.63 if name == "profile.json" else 0.2125, rel=0.01)


def test_tflite_text_and_operations(logs: Path) -> None:
    found = records(logs / "tflite")
    assert latency(found["block"]) == 0.1435 and found["block"].flags == ("mean_only",)
    assert latency(found["newer"]) == 0.142 and found["newer"].flags == ()
    assert latency(found["alone"]) == pytest.approx(0.14)
    for record in found.values():
        assert [part.kind for part in record.parts] == ["CONV_2D", "DEPTHWISE_CONV_2D", "ADD"]
        assert sum(part.latency_ms for part in record.parts) == pytest.approx(0.14)
    assert found["block"].threads == 4


def test_openvino_text_reports_and_counters(logs: Path) -> None:
    found = records(logs / "openvino")
    assert latency(found["net"]) == 2.48
    assert found["net"].costs["throughput_ips"].value == 399.68
    about = found["net"]
    assert (about.runtime, about.runtime_version, about.device, about.threads) == ("openvino", "2024.3", "", 2)
    assert [part.name for part in found["net"].parts] == ["conv1", "fc"]
    assert found["cpp"].batch == 2
    assert latency(found["alone"]) == pytest.approx(2.154)


def test_ofa_tables_together_have_a_column_a_size_and_the_mean_of_all(logs: Path) -> None:
    report = parse([logs / "ofa"])
    assert report.table is not None
    row = report.table.rows["1:mbconv[48x10x10] act=h_swish gate=h_sigmoid kernel=5 mid=144 out=48 se=40 stride=1"]
    assert row["latency_r160_ms"].value == 0.3 and row["latency_r176_ms"].value == 0.33
    assert row["latency_ms"].value == pytest.approx((400 * 0.3 + 100 * 0.33) / 500)
    assert row["latency_ms"].n == 500
    alone = parse([logs / "ofa" / "160_lookup_table.yaml"]).table
    assert alone is not None and alone.metrics == ("latency_ms",)


def test_published_tables_hold_every_block_of_the_space(reference_data: Path, tmp_path: Path) -> None:
    folder = reference_data / "ofa_imagenet" / "note10"
    sizes = range(160, 225, 4)
    space = get_space(f"ofa-mbv3:width=1.2,resolution={'/'.join(map(str, sizes))}")
    parse([folder], space=space, out=tmp_path / "note10.csv")
    table = CostTable.load(tmp_path / "note10.csv")
    assert set(table.rows) == {primitive.key for primitive in space.primitives()}
    for size in sizes:
        own = get_space(f"ofa-mbv3:width=1.2,resolution={size}")
        population = own.sample(20, np.random.default_rng(size))
        entries = read_entries(folder / f"{size}_lookup_table.yaml")
        cost = np.append(table.vector(own, f"latency_r{size}_ms"), 0.0)
        for row, total in zip(population, cost[own.blocks(population)].sum(1), strict=True):
            blocks = [node.primitive for node in own.graph(row).nodes]
            assert total == pytest.approx(sum(entries[note10_key(p) or ""].mean for p in blocks), abs=1e-9)


def test_published_names_and_blocks_are_each_others_inverse() -> None:
    for primitive in get_space("ofa-mbv3:width=1.2,resolution=160/172/224").primitives():
        assert note10_primitive(note10_key(primitive) or "") == primitive
    assert (
        note10_primitive("expanded_conv-input:9x9x8-output:9x9x8-expand:24-kernel:3-stride:2-idskip:0-se:0-hs:0")
        is None
    )


def test_device_description_completes_the_target(logs: Path) -> None:
    (logs / "device" / "hwnas_bundle.json").write_text(
        json.dumps({"kind": "hwnas_bundle", "models": {"block": {"primitive": "1:global_pool[1152x5x5]"}}})
    )
    table = parse([logs / "device"]).table
    assert table is not None
    target = table.target
    assert (target.device, target.runtime, target.runtime_version, target.threads) == (
        "Test board",
        "onnxruntime",
        "1.22",
        2,
    )


def test_a_mapped_column_has_its_unit(logs: Path) -> None:
    mapping = ColumnMapping(subject="block", metrics={"latency_ms": "time"}, metric_units={"latency_ms": "us"})
    entries = parse([logs / "csv" / "mine.csv"], mapping=mapping).entries
    assert [latency(entry.record) for entry in entries] == pytest.approx([0.000125, 0.0000625, 0.0005])
    with pytest.raises(
        InputError, match="metric_units: latency_ms in 'mJ' is unknown; known are latency_ms in s/ms/us/ns"
    ):
        parse([logs / "csv"], mapping=mapping.model_copy(update={"metric_units": {"latency_ms": "mJ"}}))


def replace(name: str, old: str, new: str, times: int = 1) -> Callable[[Path], Path]:
    def change(logs: Path) -> Path:
        text = (logs / name).read_text()
        assert old in text
        (logs / name).write_text(text.replace(old, new, times))
        return (logs / name).parent

    return change


def lines(name: str, first: int, last: int, times: int = 0) -> Callable[[Path], Path]:
    """Lines `first` to `last` dropped, or repeated."""

    def change(logs: Path) -> Path:
        text = (logs / name).read_text().splitlines(keepends=True)
        (logs / name).write_text("".join([*text[:first], *text[first:last] * times, *text[last:]]))
        return (logs / name).parent

    return change


PROFILE = "onnxruntime/small_profile_2026-01-02_03-04-05_678.json"
NET, COUNTERS = "openvino/net/benchmark_report.csv", "openvino/net/benchmark_average_counters_report.csv"
BROKEN = {
    "profile cut": (lines(PROFILE, 30, 999), "cut short"),
    "profile node dropped": (lines(PROFILE, 14, 15), "missing or doubled"),
    "profile node doubled": (lines(PROFILE, 14, 15, 2), "missing or doubled|its nodes"),
    "profile run dropped": (lines(PROFILE, 18, 19), "outside every|missing or doubled"),
    "profile run doubled": (lines(PROFILE, 18, 19, 2), "doubled"),
    "profile node longer than its run": (replace(PROFILE, '"dur" :57', '"dur" :900'), "outside every|took"),
    "samples row dropped": (lines("onnxruntime/block.samples.csv", 3, 4), "row 4 stands where 3"),
    "samples of another run": (lines("onnxruntime/block.samples.csv", 18, 20), "number of requests"),
    "samples changed": (replace("onnxruntime/block.samples.csv", ",0.001", ",0.002"), "average inference time"),
    "average": (
        replace("onnxruntime/block.txt", "Average inference time cost: 1", "Average inference time cost: 2"),
        "average",
    ),
    "requests": (replace("onnxruntime/block.txt", "requests: 20", "requests: 21"), "average|runs"),
    "summary cut": (lines("onnxruntime/block.txt", 3, 99), "cut short"),
    "tvm mean": (replace("tvm/block.json", '"mean": 0.0008', '"mean": 0.0009'), "mean is stated"),
    "tvm result dropped": (lines("tvm/block.json", 8, 9), "stated"),
    "tvm key twice": (lines("tvm/block.json", 2, 3, 2), "twice"),
    "tvm repr cut": (replace("tvm/printed.txt", "))", ""), "results"),
    "tvm share": (replace("tvm/report_profile.json", '"microseconds": 310.5', '"microseconds": 410.5'), "Percent"),
    "tvm total": (
        replace("tvm/report_profile.json", '"microseconds": 760.0', '"microseconds": 700.0'),
        "Percent|total",
    ),
    "trtexec cut": (lines("trtexec/block.txt", 20, 99), "cut short"),
    "trtexec failed": (replace("trtexec/block.txt", "&&&& PASSED", "&&&& FAILED"), "failed"),
    "trtexec throughput": (replace("trtexec/block.txt", "Throughput: 4000", "Throughput: 3000"), "throughput"),
    "trtexec total": (
        replace("trtexec/block.txt", "Total GPU Compute Time: 0.005", "Total GPU Compute Time: 0.006"),
        "total GPU",
    ),
    "trtexec copies": (replace("trtexec/block.txt", "mean = 0.011 ms", "mean = 0.019 ms"), "order|mean latency"),
    "trtexec in seconds": (replace("trtexec/block.txt", " ms", " s", -1), "summary|lacks"),
    "times dropped": (lines("trtexec/block.times.json", 5, 12), "lines are missing"),
    "times doubled": (lines("trtexec/block.times.json", 5, 6, 2), "doubled"),
    "times of another run": (
        replace("trtexec/block.times.json", '"computeMs" : 0.2', '"computeMs" : 0.3', 9),
        "computeMs",
    ),
    "layer average": (replace("trtexec/block.profile.json", '"averageMs" : 0.21', '"averageMs" : 0.31'), "averageMs"),
    "layer dropped": (lines("trtexec/block.profile.json", 2, 3), "percentage"),
    "layers of another engine": (replace("trtexec/block.layers.json", '"conv2"', '"conv3"'), "of another engine"),
    "tflite mean": (replace("tflite/block.txt", "Inference (avg): 143.5", "Inference (avg): 163.5"), "Inference"),
    "tflite cut": (lines("tflite/block.txt", 13, 99), "cut short"),
    "tflite order": (replace("tflite/newer.txt", "median=142", "median=242"), "not in order"),
    "operation dropped": (lines("tflite/alone.csv", 16, 17), "mean of the runs|share"),
    "operation doubled": (lines("tflite/alone.csv", 16, 17, 2), "mean of the runs|share"),
    "operations of another run": (replace("tflite/newer.ops.csv", "count=50", "count=60"), "60 runs profiled, 50"),
    "operation columns": (
        replace("tflite/alone.csv", "0.093, 66.4286%", "66.4286%, 0.093"),
        "columns are swapped",
    ),
    "openvino throughput": (replace(NET, "throughput;399", "throughput;499"), "throughput"),
    "openvino text and report": (replace(NET, "latency (ms);2.48", "latency (ms);2.58"), "median"),
    "openvino count": (replace(NET, "iterations;2000", "iterations;2100"), "throughput|count"),
    "openvino failed": (replace("openvino/cpp.json", '"execution_time"', '"error"'), "the run failed"),
    "counters total": (replace(COUNTERS, "Total;;;;2.154", "Total;;;;3.154"), "total real time"),
    "counters cut": (lines(COUNTERS, 4, 99), "no total"),
    "counters json": (replace("openvino/alone_counters.json", '"0.950"', '"1.950"', 1), "total real time"),
    "ofa cut": (replace("ofa/160_lookup_table.yaml", "  mean: 0.66\n", ""), "no measurement gives"),
    "ofa entry twice": (lines("ofa/160_lookup_table.yaml", 0, 4, 2), "twice"),
    "ofa of another size": (
        replace("ofa/160_lookup_table.yaml", "160x160x3-output:80x80", "164x164x3-output:82x82"),
        "image sizes",
    ),
    "ofa block that is none": (
        replace("ofa/160_lookup_table.yaml", "stride:1-idskip:1", "stride:2-idskip:1"),
        "describes no block",
    ),
    "device field": (replace("device/device.json", '"threads"', '"thread"'), "unknown fields"),
    "device contradicts": (replace("device/device.json", '"threads": 2', '"threads": "2x"'), "expected an integer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_log_that_contradicts_itself_is_refused_with_its_place(logs: Path, name: str) -> None:
    change, reason = BROKEN[name]
    folder = change(logs)
    with pytest.raises(ParseError, match=reason) as caught:
        parse([folder])
    assert str(folder) in caught.value.path
    assert "\n" not in str(caught.value)


def test_two_runs_of_one_name_are_refused(logs: Path) -> None:
    shutil.copy(logs / "trtexec" / "block.txt", logs / "trtexec" / "block.log")
    with pytest.raises(ParseError, match="two runs of one name"):
        parse([logs / "trtexec"])


def robustness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("robustness", ROOT / "benchmarks" / "parser_robustness.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROBUSTNESS = robustness()


@pytest.mark.parametrize("name", sorted(ROBUSTNESS.FORMATS))
def test_mutated_logs_give_a_table_or_a_parse_error(name: str) -> None:
    result = ROBUSTNESS.run(name, 50, seed=1)
    assert result["failures"] == []
    assert result["refused"] > 0
    assert result["refused"] + result["same"] + result["fewer"] + result["other"] == 50


def test_a_profile_whose_nodes_name_no_operation_is_read(logs: Path) -> None:
    path = logs / PROFILE
    path.write_text(path.read_text().replace('"op_name"', '"operation"'))
    record = parse([path]).entries[0].record
    assert {part.kind for part in record.parts} == {""} and len(record.parts) == 6
