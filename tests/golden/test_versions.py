"""True logs of other versions, options and systems than those of `runtimes`: read with the right numbers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hwnas.core.errors import InputError, ParseError
from hwnas.parse import ColumnMapping, Record, parse, parsers

LOGS = Path(__file__).parent / "runtimes"


def record(folder: Path, name: str, text: str, **others: str) -> Record:
    """The one record of a log of that name, with further files of its run by their endings (`_` for `.`)."""
    base = name.split(".")[0]
    (folder / name).write_text(text)
    for ending, other in others.items():
        (folder / f"{base}.{ending.replace('_', '.')}").write_text(other)
    (entry,) = parse([folder]).entries
    return entry.record


def latency(of: Record) -> float:
    return of.costs["latency_ms"].value


def changed(text: str, *pairs: tuple[str, str]) -> str:
    """`text` with each first of a pair, which must be there, replaced by its second."""
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


TRTEXEC = (LOGS / "trtexec" / "block.txt").read_text()
TIMES = (LOGS / "trtexec" / "block.times.json").read_text()
IMPLICIT = changed(
    TRTEXEC,
    ("[TensorRT v100300]", "[TensorRT v8400]"),
    ("Batch: Explicit", "Batch: 8"),
    ("with dimensions 4x32x8x8", "with dimensions 32x8x8"),
    ("completed 3 queries", "completed 24 queries"),
    ("has 24 queries", "has 192 queries"),
    ("Throughput: 4000", "Throughput: 32000"),
)


def test_trtexec_explains_its_figures_in_verbose_logs(tmp_path: Path) -> None:
    explained = """[V] === Explanations of the performance metrics ===
[V] Total Host Walltime: the host walltime from the first query to the last one.
[V] GPU Compute Time: the GPU latency of a query.
[V] Total GPU Compute Time: the summation of the GPU Compute Time of all the queries.
[V] Throughput: the observed throughput.
&&&& PASSED"""
    assert latency(record(tmp_path, "a.txt", changed(TRTEXEC, ("&&&& PASSED", explained)))) == 0.2125


def test_trtexec_percentiles_below_the_median(tmp_path: Path) -> None:
    text = changed(TRTEXEC, ("percentile(90%) = 0.216", "percentile(10%) = 0.206"))
    assert latency(record(tmp_path, "a.txt", text)) == 0.2125
    with pytest.raises(ParseError, match="not in order"):
        record(tmp_path, "a.txt", changed(text, ("percentile(10%) = 0.206", "percentile(10%) = 0.216")))


def test_trtexec_counts_images_where_the_batch_is_implicit(tmp_path: Path) -> None:
    found = record(tmp_path, "block.txt", IMPLICIT, times_json=TIMES)
    assert (latency(found), found.costs["latency_ms"].n, found.batch) == (pytest.approx(0.2125), 24, 8)
    assert found.details["queries_per_s"] == pytest.approx(4000)


@pytest.mark.parametrize(
    "batch, dimensions, images",
    [("1", "3x64x64", 1), ("1", "1x3x48x96", 1), ("1", "2x3x48x96", 2), ("Explicit", "3x64x64", 3)],
)
def test_trtexec_batch_of_engines_with_and_without_that_dimension(
    tmp_path: Path, batch: str, dimensions: str, images: int
) -> None:
    stated = (("Batch: Explicit", f"Batch: {batch}"), ("dimensions 4x32x8x8", f"dimensions {dimensions}"))
    text = changed(TRTEXEC, *stated)
    assert record(tmp_path, "a.txt", text).batch == images


@pytest.mark.parametrize(
    "text, reason",
    [
        (changed(IMPLICIT, ("has 192 queries", "has 190 queries")), "no multiple"),
        (changed(IMPLICIT, ("Batch: 8", "Batch: 0")), "at least 1"),
        (changed(TRTEXEC, ("Timing trace", "Timing urace")), "no whole performance summary"),
        (changed(TRTEXEC, ("dimensions 4x32", "dimensions 0x32")), "at least 1"),
        (changed(IMPLICIT, ("Throughput: 32000", "Throughput: 4000")), "throughput"),
    ],
)
def test_trtexec_counts_that_contradict_the_batch_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ParseError, match=reason):
        record(tmp_path, "a.txt", text)


def test_trtexec_does_not_know_the_precision_of_an_engine_it_loads(tmp_path: Path) -> None:
    loaded = changed(TRTEXEC, ("Model: /data/bundle/onnx/block.onnx", "Model:\n[I] Load engine: /data/block.engine"))
    assert record(tmp_path, "a.txt", loaded).precision == "fp16"
    silent = record(tmp_path, "a.txt", changed(loaded, ("FP32+FP16", "FP32")))
    assert (silent.subject, silent.precision) == ("block", None)


def test_trtexec_cuda_graphs_are_a_target_of_their_own(tmp_path: Path) -> None:
    keyed = changed(TRTEXEC, ("/data/bundle/onnx/block.onnx", "1:global_pool[9x5x5]"))
    texts = {
        on: changed(keyed, ("[I] Streams: 1", f"[I] Streams: 1\n[I] CUDA Graph: {on}"))
        for on in ("Enabled", "Disabled")
    }
    for name, on in (("a", "Enabled"), ("b", "Disabled")):
        (tmp_path / f"{name}.txt").write_text(texts[on])
        table = parse([tmp_path / f"{name}.txt"]).table
        assert table is not None and table.target.graphs == (on == "Enabled")
    (tmp_path / "b.txt").write_text(changed(texts["Disabled"], ("9x5x5", "8x5x5")))
    with pytest.raises(ParseError, match="has graphs False, the logs before it True"):
        parse([tmp_path])


def test_trtexec_says_where_cuda_graphs_could_not_be_captured(tmp_path: Path) -> None:
    ignored = "[W] The specified --useCudaGraph flag has been ignored. The inference will be launched without it."
    text = changed(TRTEXEC, ("[I] Streams: 1", f"[I] Streams: 1\n[I] CUDA Graph: Enabled\n{ignored}"))
    assert record(tmp_path, "a.txt", text).graphs is False


def test_trtexec_on_a_dla_is_a_runtime_of_its_own(tmp_path: Path) -> None:
    for core, runtime in (("", "tensorrt"), ("0(With GPU fallback)", "tensorrt-dla"), ("1", "tensorrt-dla")):
        text = changed(TRTEXEC, ("[I] Streams: 1", f"[I] Streams: 1\n[I] DLACore: {core}"))
        assert record(tmp_path, "a.txt", text).runtime == runtime


def test_trtexec_doubts(tmp_path: Path) -> None:
    guessed = "[W] Dynamic dimensions required for input: x. Automatically overriding shape to: 1x3x1x1"
    text = changed(TRTEXEC, ("Streams: 1", f"Inference Streams: 4\n{guessed}"))
    assert record(tmp_path, "a.txt", text).flags == ("concurrent", "default_shape")


def entry(start: float, compute: float) -> dict[str, float]:
    """As trtexec prints a query: six digits, so that late times are coarse."""
    begin, end = (float(f"{t:.6g}") for t in (start, start + compute))
    return {"startComputeMs": begin, "endComputeMs": end, "computeMs": float(f"{compute:.6g}")}


def test_trtexec_times_after_ten_seconds_are_coarse(tmp_path: Path) -> None:
    queries = [entry(10100 + 0.03 * n, 0.012 + 1e-5 * (n % 7)) for n in range(40)]
    assert latency(record(tmp_path, "a.times.json", json.dumps(queries))) == pytest.approx(0.01203)
    early = [entry(100 + 0.03 * n, 0.012) for n in range(40)]
    with pytest.raises(ParseError, match="doubled"):
        record(tmp_path, "a.times.json", json.dumps([*early, early[-1]]))


def test_trtexec_queries_of_several_streams_overtake_each_other(tmp_path: Path) -> None:
    """They stand in the order of their transfers to the GPU; without these, in that of their computing."""
    queries = [{"startH2dMs": float(n), **entry(n + 1 + (n % 2) * -1.5 + 3, 0.5)} for n in range(10)]
    assert latency(record(tmp_path, "a.times.json", json.dumps(queries))) == pytest.approx(0.5)
    for query in queries:
        del query["startH2dMs"]
    with pytest.raises(ParseError, match="not in order"):
        record(tmp_path, "a.times.json", json.dumps(queries))


def test_trtexec_layers_without_times_have_none(tmp_path: Path) -> None:
    (tmp_path / "a.layers.json").write_text(json.dumps({"Layers": ["conv1", "relu1"], "Bindings": []}))
    report = parse([tmp_path], out=tmp_path / "t.csv")
    parts: list[dict[str, Any]] = json.loads(json.dumps(report.to_json(), allow_nan=False))["records"][0]["parts"]
    assert [part["latency_ms"] for part in parts] == [None, None]
    assert "nan" not in (tmp_path / "t.parts.csv").read_text()


TFLITE = """STARTING!
Num threads: [2]
Graph: [/data/net.tflite]
Loaded model /data/net.tflite
count=4 first=610 curr=590 min=580 max=610 avg=592.5 std=11

count=50 first=601 curr=599 min=590 max=640 avg=600.5 std=8

Inference timings in us: Init: 900, First inference: 610, Warmup (avg): 592.5, Inference (avg): 600.5
"""
RUN_ORDER = f"""Operator-wise Profiling Info for Regular Benchmark Runs:
{"=" * 30} Run Order {"=" * 30}
"""
SUMMED = f"""
{"=" * 30} Top by Computation Time {"=" * 30}
	[node type]	[first]	[avg ms]	[%]	[cdf%]	[mem KB]	[times called]	[Name]
	Add (ND, QS8)	9	9	9%	9%	0	1	of no interest

Number of nodes executed: 3
{"=" * 30} Summary by node type {"=" * 30}
	[Node type]	[count]	[avg ms]	[avg %]	[cdf %]	[mem KB]	[times called]

Timings (microseconds): count=50 first=510 curr=500 min=495 max=510 avg=500 std=3 p5=496 median=500 p95=505
Memory (bytes): count=0
3 nodes observed

"""
NEW_TEXT = (
    RUN_ORDER
    + """\
\t                   [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t  Convolution (NHWC, F32) IGEMM\t    0.101\t    0.100\t 60.000%\t 60.000%\t     0.000\t        3\tConv (NHWC, F32):0
\t                     QUANTIZE\t    0.150\t    0.150\t 30.000%\t 90.000%\t     0.000\t        1\t[q]:1
\t                 Add (ND, QS8)\t    0.050\t    0.050\t 10.000%\t100.000%\t     0.000\t        1\tAdd (ND, QS8):2
"""
    + SUMMED
)
NEW_CSV = (
    RUN_ORDER
    + """\
node type, first, avg_ms, %, cdf%, mem KB, times called, name
Convolution (NHWC, F32) IGEMM, 0.101, 0.1, 60%, 60%, 0, 3, Conv (NHWC\t F32):0
QUANTIZE, 0.15, 0.15, 30%, 90%, 0, 1, [q]:1
Add (ND, QS8), 0.05, 0.05, 10%, 100%, 0, 1, Add (ND\t QS8):2
"""
    + SUMMED
)
OLD_CSV = changed(
    NEW_CSV,
    ("type, first", "type, start, first"),
    (", 0.101,", ", 0, 0.101,"),
    (", 0.15, 0.15,", ", 0.3, 0.15, 0.15,"),
    (", 0.05, 0.05,", ", 0.45, 0.05, 0.05,"),
)
INSIDES = changed(NEW_TEXT, (RUN_ORDER, RUN_ORDER.split("\n")[1] + "\n"), ("avg=500 ", "avg=501 "))
BODY = changed(INSIDES, ("Timings", "Subgraph (index: 1, name: body) Timings"))
SUBGRAPHS = changed(NEW_TEXT, ("Runs:\n", "Runs:\nPrimary graph (name: main) profile:\n"))
SUBGRAPHS += f"Subgraph (index: 1, name: body) profile:\n{BODY}"
PROFILES = {
    "text": NEW_TEXT,
    "csv": NEW_CSV,
    "csv with starts": OLD_CSV,
    "tabs as spaces": NEW_TEXT.expandtabs(8),
    "delegate": f"{NEW_TEXT}Delegate internal: \n{INSIDES}",
    "subgraphs": SUBGRAPHS,
}


def logcat(text: str) -> str:
    return "".join(f"05-30 15:16:46.366  3380  3380 I tflite  : {line}\n" for line in text.splitlines())


@pytest.mark.parametrize("how", [str, logcat])
@pytest.mark.parametrize("name", PROFILES)
def test_tflite_profiles_of_all_versions(tmp_path: Path, name: str, how: Any) -> None:
    found = record(tmp_path, "net.txt", how(TFLITE + PROFILES[name]))
    assert latency(found) == 0.6005 and found.details["operations_ms"] == 0.5
    assert [part.kind for part in found.parts] == ["Convolution (NHWC, F32) IGEMM", "QUANTIZE", "Add (ND, QS8)"]
    assert [part.latency_ms for part in found.parts] == pytest.approx([0.3, 0.15, 0.05])
    assert (found.parts[1].name, found.parts[1].n) == ("[q]:1", 50)
    if "csv" in name:
        (tmp_path / "net.txt").unlink()
        assert latency(record(tmp_path, "net.csv", PROFILES[name])) == 0.5


@pytest.mark.parametrize(
    "text, reason",
    [
        (changed(NEW_TEXT, ("        3\t", "        2\t")), "mean of the runs|share"),
        (changed(NEW_TEXT, ("    0.100\t", "    0.110\t")), "mean of the runs|share"),
        (changed(NEW_TEXT, ("     0.000\t        3\t", "        3\t")), "columns are swapped"),
        (changed(SUBGRAPHS, (" 0.150\t 30.000%", " 0.150 30.000")), "not a row"),
        (NEW_TEXT[: NEW_TEXT.index("Timings")] + f"Delegate internal: \n{INSIDES}", "cut short"),
    ],
)
def test_tflite_profiles_that_contradict_themselves_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ParseError, match=reason):
        record(tmp_path, "net.txt", TFLITE + text)


WARM = "count=4 first=610 curr=590 min=580 max=610 avg=592.5 std=11"
TIMED = "count=50 first=601 curr=599 min=590 max=640 avg=600.5 std=8"
MEANS = "Warmup (avg): 592.5, Inference (avg): 600.5"


def test_tflite_series_of_one_run_and_of_equal_ones(tmp_path: Path) -> None:
    one = changed(TFLITE, (WARM, "count=1 curr=610 p5=610 median=610 p95=610"), ("(avg): 592.5", "(avg): 610"))
    assert latency(record(tmp_path, "a.txt", one)) == 0.6005
    same = "count=50 curr=14(all same) p5=14 median=14 p95=14"
    found = record(tmp_path, "a.txt", changed(TFLITE, (TIMED, same), ("Inference (avg): 600.5", "Inference (avg): 14")))
    assert (latency(found), found.costs["latency_ms"].n, found.flags) == (0.014, 50, ())


@pytest.mark.parametrize(
    "series",
    [
        "count=1 curr=610 p5=610 median=611 p95=610",
        "count=1 curr=610 p5=610 p95=610",
        "count=4 curr=610 p5=610 median=610 p95=610",
        "count=4 first=610 curr=590 min=580 max=610 avg=592.5 std=11 p-5=590",
    ],
)
def test_tflite_series_that_lack_figures_are_refused(tmp_path: Path, series: str) -> None:
    with pytest.raises(ParseError, match=r"order|missing|cannot be read"):
        record(tmp_path, "a.txt", changed(TFLITE, (WARM, series), ("(avg): 592.5", "(avg): 610")))


@pytest.mark.parametrize("last", ["no stats", "Inference"])
def test_tflite_summary_of_versions_before_1_15(tmp_path: Path, last: str) -> None:
    old = f"Average inference timings in us: Warmup: 592.5, Init: 900, {last}: 600.5"
    text = TFLITE[: TFLITE.index("Inference timings")] + old + "\n"
    found = record(tmp_path, "a.txt", text)
    assert (latency(found), found.details["first_ms"], found.flags) == (0.6005, 0.61, ("mean_only",))
    with pytest.raises(ParseError, match="cut short"):
        record(tmp_path, "a.txt", text.replace(f", {last}: 600.5", ""))


def test_tflite_accelerators_are_targets_of_their_own(tmp_path: Path) -> None:
    ran = "Use gpu: [1]\nExplicitly applied GPU delegate, and the model graph will be {} executed by the delegate."
    for how, flags in (("completely", ("mean_only",)), ("partially", ("partly_delegated", "mean_only"))):
        found = record(tmp_path, "p00001.txt", f"{TFLITE}{ran.format(how)}\n")
        assert (found.runtime, found.flags) == ("tflite-gpu", flags)
    (tmp_path / "p00001.txt").unlink()
    refused = "Use NNAPI: [1]\nThough NNAPI delegate is explicitly applied, the model graph will not be executed.\n"
    found = record(tmp_path, "p00002.txt", TFLITE + refused)
    assert (found.runtime, found.flags) == ("tflite", ("not_delegated", "mean_only"))
    for more in (
        "GPU acceleration is unsupported on this platform.\n",
        "Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the delegate.\n",
    ):
        found = record(tmp_path, "p00002.txt", f"{TFLITE}Use gpu: [1]\n{more}")
        assert (found.runtime, found.flags) == ("tflite", ("not_delegated", "mean_only"))


def test_litert_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParseError, match="LiteRT"):
        record(tmp_path, "a.txt", "INFO: Loaded model a.tflite\n========== BENCHMARK RESULTS ==========\n")


NET = LOGS / "openvino" / "net"
REPORT = (NET / "benchmark_report.csv").read_text()
COUNTERS = (NET / "benchmark_average_counters_report.csv").read_text()
APP = next(path for path in NET.iterdir() if path.suffix in (".txt", ".log")).read_text()


def delimited(text: str) -> str:
    """As the C++ tool writes its CSV: a `;` after every cell."""
    return "".join(f"{line};\n" if line else "\n" for line in text.splitlines())


CPP_LABEL = "Median latency (ms);2.481234;\nPercentile boundary;50;"
CPP_REPORT = changed(delimited(REPORT), ("latency (ms);2.48;", CPP_LABEL))


@pytest.mark.parametrize("text", [CPP_REPORT, REPORT.replace("\n", "\r\n"), delimited(REPORT).replace("\n", "\r\n")])
def test_openvino_reports_of_cpp_and_windows(tmp_path: Path, text: str) -> None:
    (tmp_path / "net_report.csv").write_bytes(text.encode())
    (found,) = parse([tmp_path]).entries
    assert latency(found.record) == pytest.approx(2.48, abs=2e-3) and found.record.subject == "net"
    (tmp_path / "net.txt").write_text(APP)
    (both,) = parse([tmp_path]).entries
    assert both.record.details["mean_ms"] == 2.49


@pytest.mark.parametrize("label", ["latency (90 percentile) (ms);2.9;", "latency (ms);2.9;\nPercentile boundary;90;"])
def test_openvino_percentiles_are_no_median(tmp_path: Path, label: str) -> None:
    found = record(tmp_path, "a_report.csv", changed(delimited(REPORT), ("latency (ms);2.48;", label)))
    assert (latency(found), found.flags) == (2.49, ("mean_only",))


def test_openvino_groups_of_shapes(tmp_path: Path) -> None:
    groups = "Group Latencies;\nData shape;Median;Average;Min;Max;\n;1. x : [1,3,32,32];1;1;1;1;\n;2. x;2;2;2;2;\n"
    assert record(tmp_path, "a_report.csv", delimited(REPORT) + groups).flags == ("several_shapes",)
    (tmp_path / "a_report.csv").unlink()
    printed = (
        "[ INFO ] Latency for each data shape group:\n[ INFO ] 1. x : [1,3,32,32]\n[ INFO ]    Median:     1.10 ms\n"
        "[ INFO ] 2. x : [2,3,32,32]\n[ INFO ]    Median:     9.90 ms\n[ INFO ] Throughput:   599.52 FPS"
    )
    found = record(tmp_path, "a.txt", changed(APP, ("[ INFO ] Throughput:   399.68 FPS", printed)))
    assert (latency(found), found.costs["throughput_ips"].value) == (2.48, 599.52)
    assert found.flags == ("several_shapes",)


def test_openvino_2021(tmp_path: Path) -> None:
    text = """[Step 2/11] Loading Inference Engine
         Build................... 2021.2.0-1877-176bdf51370-releases/2021/2
[ INFO ] Network batch size: 2
Count:      2000 iterations
Duration:   5004.00 ms
Latency:    2.48 ms
Throughput: 799.36 FPS
"""
    found = record(tmp_path, "a.txt", text)
    assert (latency(found), found.flags, found.batch, found.runtime_version) == (2.48, (), 2, "2021.2")
    other = record(tmp_path, "a.txt", changed(text, ("Latency:  ", "Latency (99 percentile):  ")))
    assert other.flags == ("throughput_only",)
    named = "Latency:\n    Median:  2.48 ms\n    Avg:  2.49 ms\n    Min:  2.40 ms\n    Max:  2.60 ms"
    assert record(tmp_path, "a.txt", changed(text, ("Latency:    2.48 ms", named))).details["mean_ms"] == 2.49


@pytest.mark.parametrize("old, new", [(" ms", " us"), ("399.68", "399.12"), ("5004.00 ms", "5004.00 s")])
def test_openvino_throughput_is_that_of_count_and_time(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(ParseError, match=r"throughput"):
        record(tmp_path, "a.txt", changed(APP, (old, new)))


def test_openvino_latency_under_load_is_flagged(tmp_path: Path) -> None:
    text = changed(APP, ("Start inference synchronously", "Start inference asynchronously, 6 inference requests"))
    assert record(tmp_path, "a.txt", text).flags == ("concurrent",)
    slow = changed(text, ("4.02 ms", "99.02 ms"), ("Average:       2.49", "Average:       62.49"))
    with pytest.raises(ParseError, match="a request"):
        record(tmp_path, "a.txt", slow)


def nodes(layers: int) -> dict[str, Any]:
    """A table of counters as the C++ tool writes it: keys sorted, numbers as numbers."""
    found = [
        {
            "cpu_time": 0.1,
            "exec_type": "jit",
            "name": f"layer {n} {'x' * 80}",
            "node_type": "Convolution",
            "real_time": 0.012,
            "status": "EXECUTED",
        }
        for n in range(layers)
    ]
    return {"nodes": found, "total_cpu_time": 0.1 * layers, "total_real_time": round(0.012 * layers, 3)}


@pytest.mark.parametrize(
    "report",
    [
        {"avg_performance": nodes(50), "report_type": "average"},
        {"detailed_performance": [nodes(50), nodes(50)], "report_type": "detailed"},
        {"detailed_performance": [nodes(50)]},
    ],
)
def test_openvino_counters_as_cpp_writes_them(tmp_path: Path, report: dict[str, Any]) -> None:
    assert latency(record(tmp_path, "a_counters.json", json.dumps(report, indent=4))) == pytest.approx(0.6)


SORTED = """layerName;execStatus;layerType;execType;realTime (ms);cpuTime (ms); %;
conv1;EXECUTED;Convolution;jit;1.204000;1.204000;53.345;
fc;EXECUTED;FullyConnected;brgemm;1.042000;1.042000;46.168;
add;EXECUTED;Eltwise;jit;0.011000;0.011000;0.487;
Total;;;;2.257;2.257;100.000;
"""


def test_openvino_sorted_counters(tmp_path: Path) -> None:
    found = record(tmp_path, "a_counters.csv", SORTED)
    assert latency(found) == pytest.approx(2.257) and [part.name for part in found.parts] == ["conv1", "fc", "add"]
    small = SORTED.splitlines(keepends=True)[3]
    for text in (SORTED.replace(small, ""), SORTED.replace(small, small * 2)):
        with pytest.raises(ParseError, match="total real time"):
            record(tmp_path, "a_counters.csv", text)
    with pytest.raises(ParseError, match="status of add"):
        record(tmp_path, "a_counters.csv", SORTED.replace("add;EXECUTED", "add;EXECUUED"))
    with pytest.raises(ParseError, match="7 cells"):
        record(tmp_path, "a_counters.csv", SORTED.replace("0.011000;0.487;", "0.487;"))


def test_a_latency_of_zero_is_below_what_is_printed(tmp_path: Path) -> None:
    zero = changed(APP, ("Median:        2.48", "Median:        0.00"), ("Min:           2.31", "Min:           0.00"))
    with pytest.raises(ParseError, match="latency_ms of a as 0, below what the tool prints"):
        record(tmp_path, "a.txt", zero)
    table = " mean (ms)   median (ms)    max (ms)     min (ms)     std (ms)\n" + "   0.0000   " * 5
    with pytest.raises(ParseError, match="below what the tool prints"):
        record(tmp_path, "a.txt", table)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.csv").write_text("block,ms\np00001,1.5\np00002,0\n")
    mapping = ColumnMapping(subject="block", metrics={"latency_ms": "ms"})
    with pytest.raises(ParseError, match="p00002"):
        parse([tmp_path / "a.csv"], mapping=mapping)


PERF = (LOGS / "onnxruntime" / "block.txt").read_text()
SAMPLES = (LOGS / "onnxruntime" / "block.samples.csv").read_text()
STATED = "\nMin Latency: 0.0011478 s\nMax Latency: 0.00138 s\nP50 Latency: 0.00124 s\nP99 Latency: 0.0013829 s\n"


def test_perf_test_samples_with_statistics_below(tmp_path: Path) -> None:
    assert record(tmp_path, "a.samples.csv", SAMPLES + STATED).costs["latency_ms"].n == 20
    wrong = ("0.00124 s", "0.124 s"), ("0.0011478", "0.0011578"), ("P99 Latency: 0.00138", "P99 Latency: 0.00118")
    for old, new in wrong:
        with pytest.raises(ParseError, match="latency"):
            record(tmp_path, "a.samples.csv", SAMPLES + changed(STATED, (old, new)))


@pytest.mark.parametrize("end", ["Total inference run time", "P50 Latency", "P999 Latency"])
def test_perf_test_text_that_is_cut_is_refused(tmp_path: Path, end: str) -> None:
    with pytest.raises(ParseError, match="cut short"):
        record(tmp_path, "a.txt", PERF[: PERF.index(end)])


def test_perf_test_before_1_2_and_after_many_warnings(tmp_path: Path) -> None:
    old = """Total time cost: 2.5
Total iterations: 100
Average time cost: 25 ms
Total run time: 2.51 s
Min Latency is 0.024 sec
Max Latency is 0.031 sec
P50 Latency is 0.0248 sec
P90 Latency is 0.027 sec
P95 Latency is 0.028 sec
P99 Latency is 0.03 sec
P999 Latency is 0.031 sec
"""
    assert latency(record(tmp_path, "a.txt", old)) == 24.8
    warning = "[W:onnxruntime:, graph.cc:2412 CleanUnusedInitializers] Removing initializer 'x'. It is not used.\n"
    assert latency(record(tmp_path, "a.txt", warning * 200 + PERF)) == pytest.approx(1.2405)


def test_perf_test_latency_under_load_is_flagged(tmp_path: Path) -> None:
    text = changed(PERF, ("run time: 0.0252941 s", "run time: 0.00632353 s"), ("second: 790.698", "second: 3162.79"))
    assert record(tmp_path, "a.txt", text).flags == ("concurrent",)


def event(name: str, start: int, length: int, provider: str = "CPU", op: str = "Conv") -> dict[str, Any]:
    node = {"args": {"provider": f"{provider}ExecutionProvider", "op_name": op}, "name": f"{name}_kernel_time"}
    whole = {"name": name} if name == "model_run" else node
    category = "Session" if name == "model_run" else "Node"
    return {"cat": category, "tid": 7, "ts": start, "dur": length, "ph": "X", **whole}


def test_onnxruntime_bodies_of_if_and_loop_are_within_their_nodes_time(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    for run in range(4):
        start = 1000 * run
        bodies = [event(f"then_{run % 2}", start + 110, 60), event("relu", start + 170, 40)]
        events += [event("conv", start + 10, 90), *bodies, event("if", start + 100, 120, op="If")]
        events += [event("none", start + 220, 0), event("model_run", start, 240)]
    found = record(tmp_path, "a_profile.json", json.dumps(events))
    assert {part.name: part.latency_ms for part in found.parts} == {"conv": 0.09, "if": 0.12, "none": 0.0}
    assert latency(found) == 0.24
    with pytest.raises(ParseError, match="doubled"):
        record(tmp_path, "a_profile.json", json.dumps([*events[:1], *events]))


def test_onnxruntime_nodes_run_side_by_side_in_several_threads(tmp_path: Path) -> None:
    """No thread takes longer than the run; all of them together may."""
    events: list[dict[str, Any]] = []
    for start in range(0, 3000, 1000):
        events += [event("model_run", start, 100), event("left", start + 10, 80), event("right", start + 15, 85)]
        events[-1]["tid"] = 8
    found = record(tmp_path, "a_profile.json", json.dumps(events))
    assert latency(found) == 0.1 and {part.latency_ms for part in found.parts} == {0.08, 0.085}
    with pytest.raises(ParseError, match="run 1 took 100 us, its nodes 165 us"):
        record(tmp_path, "a_profile.json", json.dumps([{**each, "tid": 7} for each in events]))


def test_onnxruntime_providers_are_targets_of_their_own(tmp_path: Path) -> None:
    bundle = {f"p0000{i}": {"primitive": f"1:global_pool[{8 + i}x5x5]"} for i in (1, 2)}
    (tmp_path / "hwnas_bundle.json").write_text(json.dumps({"kind": "hwnas_bundle", "models": bundle}))
    for name, provider in (("p00001", "CPU"), ("p00002", "CUDA")):
        runs = [event("conv", 1000 * n + 10, 90, provider) for n in range(3)]
        runs += [event("model_run", 1000 * n, 120) for n in range(3)]
        (tmp_path / f"{name}.json").write_text(json.dumps(sorted(runs, key=lambda e: int(e["ts"]))))
    with pytest.raises(ParseError, match="runtime onnxruntime-cuda, the logs before it onnxruntime: parse them apart"):
        parse([tmp_path])


def test_tvm_tables_without_a_median_and_results_without_commas(tmp_path: Path) -> None:
    table = " mean (ms)   max (ms)    min (ms)    std (ms)\n   20.45       20.95       20.15       0.11\n"
    found = record(tmp_path, "a.txt", "WARNING:autotvm: no config\n" * 500 + table)
    assert (latency(found), found.flags) == (20.45, ("summary_only", "mean_only"))
    with pytest.raises(ParseError, match="4 figures expected"):
        record(tmp_path, "a.txt", table.replace("0.11", ""))
    printed = "BenchmarkResult(min=0.02, mean=0.02025, median=0.02025, max=0.0205, std=0.00025, results=[0.02 0.0205])"
    assert latency(record(tmp_path, "a.txt", printed)) == 20.25


def test_what_is_no_log_does_not_hide_the_logs(tmp_path: Path) -> None:
    (tmp_path / "logs.gz").write_bytes(b"\x1f\x8b\x08\0 an archive of the logs")
    with pytest.raises(ParseError, match="gzip"):
        parse([tmp_path])
    (tmp_path / "a.txt").write_text(TFLITE)
    assert parse([tmp_path]).unread == (tmp_path / "logs.gz",)
    with pytest.raises(ParseError, match="gzip"):
        parse([tmp_path / "logs.gz"])
    (tmp_path / "a.txt").write_bytes(TFLITE.encode("utf-16"))
    with pytest.raises(ParseError, match="UTF-16"):
        parse([tmp_path])


def test_mappings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("block\tms\np00001\t1.5\n")
    mapping = ColumnMapping(subject="block", metrics={"latency_ms": "ms"}, delimiter="\t")
    assert latency(parse([tmp_path], mapping=mapping).entries[0].record) == 1.5
    for delimiter in (";;", "", "\n"):
        with pytest.raises(InputError, match="expected one character"):
            parse([tmp_path], mapping=mapping.model_copy(update={"delimiter": delimiter}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", list(parsers))
def test_a_log_of_another_format_is_refused_by_each_reader(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.txt").write_text("something else\n")
    (tmp_path / "a.json").write_text('{"calls": []}\n')
    for name in ("a.txt", "a.json"):
        with pytest.raises(ParseError):
            parse([tmp_path / name], format=form)


def test_a_primitive_of_which_only_a_throughput_is_known_is_listed(tmp_path: Path) -> None:
    bundle = {f"p0000{i}": {"primitive": f"1:global_pool[{8 + i}x5x5]"} for i in (1, 2)}
    (tmp_path / "hwnas_bundle.json").write_text(json.dumps({"kind": "hwnas_bundle", "models": bundle}))
    words = ("Median", "Average", "Min", "Max")
    silent = [line for line in APP.splitlines() if not any(word in line for word in words)]
    (tmp_path / "p00001.txt").write_text("\n".join(silent))
    (tmp_path / "p00002.txt").write_text(APP)
    report = parse([tmp_path])
    assert report.without_latency == ("1:global_pool[9x5x5]",)
    assert report.to_json()["without_latency"] == ["1:global_pool[9x5x5]"]


@pytest.mark.parametrize("path", ["trtexec", "onnxruntime", "openvino", "tvm", "tflite"])
def test_marks_and_colours_that_tools_and_editors_add(tmp_path: Path, path: str) -> None:
    plain = {e.record.subject: e.record.costs for e in parse([LOGS / path]).entries}
    shutil.copytree(LOGS / path, tmp_path / path)
    for file in (tmp_path / path).rglob("*.*"):
        if file.is_file():
            text = file.read_bytes()
            colour = b"" if text.lstrip()[:1] in b"[{" else b"\x1b[1;32m"
            file.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", colour + b"\n"))
    assert {e.record.subject: e.record.costs for e in parse([tmp_path / path]).entries} == plain


def test_openvino_runs_on_what_device_json_names(tmp_path: Path) -> None:
    shutil.copytree(NET, tmp_path / "net")
    described = {"format": "hwnas-device", "version": 1, "device": "Xeon X", "precision": "fp32", "threads": 2}
    (tmp_path / "net" / "device.json").write_text(json.dumps(described))
    report = parse([tmp_path / "net"])
    assert report.entries[0].record.device == "" and report.environment["target"]["device"] == "Xeon X"
    for asked, ran, runtime in (
        ("GPU.0", "['GPU.0']", "openvino-gpu"),
        ("AUTO", "['GPU.0']", "openvino-gpu"),
        ("AUTO:NPU,CPU", "['CPU']", "openvino"),
        ("MULTI:CPU,GPU", "['CPU', 'GPU.0']", "openvino-cpu-gpu"),
        ("AUTO", "", "openvino-auto"),
    ):
        for path in NET.glob("benchmark_*"):
            text = path.read_text().replace("target device;CPU", f"target device;{asked}")
            lines = (line for line in text.splitlines() if ran or "Execution Devices" not in line)
            changed = "\n".join(lines).replace("Execution Devices:['CPU']", f"Execution Devices:{ran}") + "\n"
            (tmp_path / "net" / path.name).write_text(changed)
        assert parse([tmp_path / "net"]).entries[0].record.runtime == runtime


@pytest.mark.parametrize("printed", ["<Type: 'bfloat16'>", "bf16"])
def test_openvino_says_where_it_rounds(tmp_path: Path, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(NET, tmp_path / "net")
    text = (NET / "benchmark_app.txt").read_text()
    hint = f"[ INFO ]   INFERENCE_PRECISION_HINT: {printed}\n"
    (tmp_path / "net" / "benchmark_app.txt").write_text(hint + text)
    assert parse([tmp_path / "net"]).entries[0].record.precision == "bf16"
    (tmp_path / "net" / "benchmark_app.txt").write_text(hint.replace(printed, "f32") + text)
    assert parse([tmp_path / "net"]).entries[0].record.precision is None


def test_settings_that_only_some_logs_state_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (LOGS / "onnxruntime" / "block.txt").read_text()
    samples = (LOGS / "onnxruntime" / "block.samples.csv").read_text()
    models = {f"p0000{i}": {"primitive": f"1:global_pool[{8 + i}x5x5]"} for i in (1, 2)}
    (tmp_path / "hwnas_bundle.json").write_text(json.dumps({"kind": "hwnas_bundle", "models": models}))
    silent = changed(text, ("Setting intra_op_num_threads to 2\n", ""))
    for name, written in (("p00001", text), ("p00002", silent)):
        (tmp_path / f"{name}.txt").write_text(written)
        (tmp_path / f"{name}.samples.csv").write_text(samples)
    table = parse([tmp_path]).table
    assert table is not None and table.target.threads == 2
    said = capsys.readouterr().err
    assert "1 of 2 logs" in said and "p00002" in said and "do not say the threads: taken to be 2" in said
    described = {"format": "hwnas-device", "version": 1, "threads": 2}
    (tmp_path / "device.json").write_text(json.dumps(described))
    parse([tmp_path])
    assert not capsys.readouterr().err


def test_device_json_is_itself_whatever_the_format_of_the_logs() -> None:
    folder = LOGS / "device"
    named = parse([folder], format="onnxruntime")
    assert named.environment == parse([folder]).environment and len(named.entries) == 1


def test_what_an_earlier_parse_left_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(changed(TRTEXEC, ("/data/bundle/onnx/block.onnx", "1:global_pool[9x5x5]")))
    (tmp_path / "a.profile.json").write_text((LOGS / "trtexec" / "block.profile.json").read_text())
    parse([tmp_path], out=tmp_path / "out" / "t.csv")
    assert (tmp_path / "out" / "t.parts.csv").exists()
    (tmp_path / "a.profile.json").unlink()
    parse([tmp_path / "a.txt"], out=tmp_path / "out" / "t.csv")
    assert not (tmp_path / "out" / "t.parts.csv").exists()
    (tmp_path / "a.txt").write_text(TRTEXEC)
    kept = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match="the table of other logs"):
        parse([tmp_path / "a.txt"], out=tmp_path / "out" / "t.csv")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == kept


def test_threads_that_a_log_states_twice(tmp_path: Path) -> None:
    runs = "count=1 curr=5\nInference timings in us: Init: 9, First inference: 5, Warmup (avg): 5, Inference (avg): 5\n"
    (tmp_path / "a.txt").write_text(f"Num threads: [1]\n#threads used for CPU inference: [4]\nSTARTING!\n{runs}")
    with pytest.raises(ParseError, match="threads is 4 here and 1 before"):
        parse([tmp_path / "a.txt"])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"time_unit": None}, "in which unit 'clock' is: time_unit"),
        ({"power_unit": None, "rails": {"core": "core"}}, "in which unit 'core' is: power_unit"),
        ({"power_unit": "mW"}, "power_unit is mW, but the column 'core (W)' says W"),
        ({"power_unit": "kW"}, "power_unit is 'kW', expected one of"),
    ],
)
def test_units_are_never_guessed(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    rows = [f"{i * 20},{1.5 if 10 <= i <= 30 else 1.0},1" for i in range(50)]
    (tmp_path / "a.csv").write_text("\n".join(["clock,core (W),core", *rows]) + "\n")
    window: dict[str, Any] = {"start": 200, "end": 600, "inferences": 40}
    asked: dict[str, Any] = {"time": "clock", "time_unit": "ms", "rails": {"core": "core (W)"}, **window}
    record = parse([tmp_path / "a.csv"], mapping=ColumnMapping(**asked)).entries[0].record
    assert record.costs["energy_mj"].value == pytest.approx(0.4 * 1500 / 40)
    assert (record.device, record.runtime, record.batch) == ("", "", None)
    target: dict[str, Any] = {"device": "Jetson", "runtime": "tensorrt", "precision": "fp16", "batch": 4}
    record = parse([tmp_path / "a.csv"], mapping=ColumnMapping(**asked, **target)).entries[0].record
    assert {name: getattr(record, name) for name in target} == target
    with pytest.raises(InputError, match=re.escape(why)):
        parse([tmp_path / "a.csv"], mapping=ColumnMapping(**{**asked, **changed}))


@pytest.mark.parametrize(("layout", "batch", "rate"), [("[...]", 8, 3197.44), ("[N,C,H,W]", 1, 399.68)])
def test_openvino_takes_a_batch_without_a_layout_for_one_image(
    tmp_path: Path, layout: str, batch: int, rate: float
) -> None:
    head, tail = (NET / "benchmark_app.txt").read_text().split("[Step 5/11]")
    listed = f"Model inputs:\n    input (node: input) : f32 / {layout} / [8,16,32,32]\nModel outputs:\n"
    output = "    boxes (node: boxes) : f32 / [...] / [100,81,28,28]\n"
    (tmp_path / "a.txt").write_text(f"{head}{listed}{output}[Step 5/11]{tail}")
    found = parse([tmp_path / "a.txt"]).entries[0].record
    assert (found.batch, latency(found)) == (batch, 2.48)
    assert found.costs["throughput_ips"].value == pytest.approx(rate)


@pytest.mark.parametrize(
    ("column", "milliseconds"),
    [
        *[("time (us)", 0.85), ("t_ns", 0.00085), ("ms", 850.0), ("t", 850.0), ("latency_sec", 850e3)],
        *[("lat_usec", 0.85), ("Latency (US)", 0.85), ("Zeit [µs]", 0.85), ("time seconds", 850e3)],
        *[("latency/us", 0.85), ("latencyUs", 0.85), ("time (us/inference)", 0.85), ("latency_us_mean", 0.85)],
        *[("latency_microseconds", 0.85), ("nanosec", 0.00085), ("millis", 850.0), ("p50us", 0.85)],
        *[("iPhone 6s", 850.0), ("jetson_nano", 850.0), ("second_run", 850.0)],
    ],
)
def test_a_column_of_costs_is_in_the_unit_that_its_name_says(tmp_path: Path, column: str, milliseconds: float) -> None:
    (tmp_path / "a.csv").write_text(f"block,{column}\nmine,850\n")
    mapping = ColumnMapping(subject="block", metrics={"latency_ms": column})
    record = parse([tmp_path / "a.csv"], mapping=mapping).entries[0].record
    assert latency(record) == pytest.approx(milliseconds) and record.device == ""
    if column == "time (us)":
        with pytest.raises(InputError, match="says us"):
            contrary = mapping.model_copy(update={"metric_units": {"latency_ms": "ms"}})
            parse([tmp_path / "a.csv"], mapping=contrary)


@pytest.mark.parametrize(
    ("column", "unit", "mebibytes"),
    [
        ("peak_KiB", None, 2.0),
        ("peakKiB", None, 2.0),
        ("mebibytes", None, 2048.0),
        ("peak", None, 2048.0),
        ("peak MB", None, 1953.125),
        ("variant_b", None, 2048.0),
        ("peak", "kB", 1.953125),
    ],
)
def test_memory_is_in_the_unit_that_its_column_says(
    tmp_path: Path, column: str, unit: str | None, mebibytes: float
) -> None:
    (tmp_path / "a.csv").write_text(f"block,{column}\nmine,2048\n")
    units = {"memory_mib": unit} if unit else {}
    mapping = ColumnMapping(subject="block", metrics={"memory_mib": column}, metric_units=units)
    (entry,) = parse([tmp_path / "a.csv"], mapping=mapping).entries
    assert entry.record.costs["memory_mib"].value == pytest.approx(mebibytes)


def test_a_bracket_that_may_be_a_unit_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("block,time (cycles)\nmine,850\n")
    mapping = ColumnMapping(subject="block", metrics={"latency_ms": "time (cycles)"})
    with pytest.raises(InputError, match=r"in which unit 'time \(cycles\)' is: metric_units"):
        parse([tmp_path / "a.csv"], mapping=mapping)
    with pytest.raises(InputError, match="is a memory_mib by its name"):
        parse([tmp_path / "a.csv"], mapping=mapping.model_copy(update={"metrics": {"latency_ms": "peak_MB"}}))
