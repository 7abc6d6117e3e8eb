"""True logs of other versions, options and systems than those of `runtimes`: read with the right numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from hwnas.core.errors import ParseError
from hwnas.parse import Record, parse

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


@pytest.mark.parametrize("text, reason", [
    (changed(IMPLICIT, ("has 192 queries", "has 190 queries")), "no multiple"),
    (changed(IMPLICIT, ("Batch: 8", "Batch: 0")), "at least 1"),
    (changed(TRTEXEC, ("dimensions 4x32", "dimensions 0x32")), "at least 1"),
    (changed(IMPLICIT, ("Throughput: 32000", "Throughput: 4000")), "throughput"),
])  # fmt: skip
def test_trtexec_counts_that_contradict_the_batch_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ParseError, match=reason):
        record(tmp_path, "a.txt", text)


def test_trtexec_does_not_know_the_precision_of_an_engine_it_loads(tmp_path: Path) -> None:
    loaded = changed(TRTEXEC, ("Model: /data/bundle/onnx/block.onnx", "Model:\n[I] Load engine: /data/block.engine"))
    assert record(tmp_path, "a.txt", loaded).precision == "fp16"
    silent = record(tmp_path, "a.txt", changed(loaded, ("FP32+FP16", "FP32")))
    assert (silent.subject, silent.precision) == ("block", None)


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


def test_trtexec_layers_without_times_have_none(tmp_path: Path) -> None:
    (tmp_path / "a.layers.json").write_text(json.dumps({"Layers": ["conv1", "relu1"], "Bindings": []}))
    report = parse([tmp_path], out=tmp_path / "t.csv")
    parts: list[dict[str, Any]] = json.loads(json.dumps(report.to_json(), allow_nan=False))["records"][0]["parts"]
    assert [part["latency_ms"] for part in parts] == [None, None]
    assert "nan" not in (tmp_path / "t.parts.csv").read_text()
