"""OpenVINO's `benchmark_app`: its text, its report (CSV or JSON) and its counters of each layer (CSV or JSON)."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Part, Reading, Record, parsers, read_lines
from hwnas.parse.family import Family, model_name
from hwnas.parse.where import Where, line_of, read_object

_TEXT = {
    "count": r"Count:\s+(\S+) iterations",
    "duration": r"Duration:\s+(\S+) ms",
    "median": r"(?:Median|Latency):\s+(\S+) (ms|us)",
    "average": r"(?:Average|Avg|AVG):\s+(\S+) (ms|us)",
    "minimum": r"(?:Min|MIN):\s+(\S+) (ms|us)",
    "maximum": r"(?:Max|MAX):\s+(\S+) (ms|us)",
    "throughput": r"Throughput:\s+(\S+) FPS",
    "batch": r"(?:Model|Network) batch size:\s+(\d+)",
    "requests": r"asynchronously, (\d+) inference requests",
    "threads": r"INFERENCE_NUM_THREADS:\s*(\d+)",
    "first": r"First inference took (\S+) ms",
}
_HINT = re.compile(r"INFERENCE_PRECISION_HINT:\s*(?:<Type: ')?(\w+)")
_HALVES = {"f16": "fp16", "float16": "fp16", "bf16": "bf16", "bfloat16": "bf16"}
_LISTING = re.compile(r"(?:Model|Network) (inputs|outputs):")
_INPUT = re.compile(r" / \[([^\]]*)\] / \[(\d{1,6}),\d+,\d+,\d+\]")
_PLUGIN = re.compile(r"CPU|GPU|NPU|GNA|VPUX|MYRIAD|HDDL")
_NAMES = {
    "total number of iterations": "count",
    "iterations_num": "count",
    "total execution time (ms)": "duration",
    "execution_time": "duration",
    "latency (ms)": "median",
    "median latency (ms)": "median",
    "latency_median": "median",
    "avg latency": "average",
    "average latency (ms)": "average",
    "latency_avg": "average",
    "min latency": "minimum",
    "min latency (ms)": "minimum",
    "latency_min": "minimum",
    "max latency": "maximum",
    "max latency (ms)": "maximum",
    "latency_max": "maximum",
    "throughput": "throughput",
    "first inference time (ms)": "first",
    "first_inference_time": "first",
}
_COUNTERS = "layerName;execStatus;layerType;execType;realTime (ms);cpuTime (ms)"
_SECTIONS = {
    "Command line parameters": "cmd_options",
    "Configuration setup": "configuration_setup",
    "Execution results": "execution_results",
}
_SECTION = re.compile(rb"(Command line parameters|Configuration setup|Execution results);?\r?\n")
_GROUPS = "Group Latencies"
_NEEDED = frozenset(("count", "duration", "throughput"))
_STATUSES = frozenset(("EXECUTED", "OPTIMIZED_OUT", "NOT_RUN"))
_TWO_DIGITS = 5.1e-3
_NOTHING: Mapping[str, Any] = {}


@parsers.register("openvino")
class OpenVino(Family):
    """The latency is the stated median, else the mean over all iterations."""

    def part(self, head: bytes) -> str | None:
        if head.lstrip()[:1] == b"{":
            if b'"execution_results"' in head or b'"cmd_options"' in head or b'"configuration_setup"' in head:
                return "report"
            counters = (b'"report_type"', b'"avg_performance"', b'"detailed_performance"')
            return "counters" if any(name in head for name in counters) else None
        if head.startswith(_COUNTERS.encode()):
            return "counters"
        if _SECTION.match(head):
            return "report"
        return "log" if b"[Step 1/11]" in head or b"[Step 2/11]" in head or b"Execution Devices:" in head else None

    def combine(self, name: str, parts: Mapping[str, Path]) -> Reading:
        text, texts = _read_text(parts["log"]) if "log" in parts else ({}, {})
        stated, setup = _read_report(parts["report"]) if "report" in parts else ({}, {})
        for key in sorted(text.keys() & stated.keys()):
            what = f"{key} (in {parts['log'].name} and here)"
            Where(parts["report"]).agree(what, stated[key], text[key], absolute=_TWO_DIGITS)
        figures = {**text, **stated}
        setup_batch = _batch(setup, figures.get("batch"))
        images = int(texts["images"]) if "images" in texts and setup_batch in (None, 1, "1") else 1
        source = next(parts[part] for part in ("report", "log", "counters") if part in parts)
        layers = _read_counters(parts["counters"]) if "counters" in parts else ()
        costs, flags = _cost(figures, layers, images)
        batch = images if images > 1 else setup_batch
        model = setup.get("topology") or setup.get("m") or setup.get("path_to_model")
        record = Record(
            subject=name if not model or not isinstance(model, str) else model_name(model),
            source=source,
            costs=costs,
            runtime=_runtime(texts.get("device", ""), setup),
            runtime_version=texts.get("version", ""),
            precision=texts.get("precision"),
            batch=Where(source).count(batch, "batch size") if batch is not None else None,
            threads=int(figures["threads"]) if "threads" in figures else None,
            details=_details(figures, layers),
            flags=flags + _doubts(Where(source), figures, {**texts, **setup}),
            parts=layers,
        )
        return Reading((record,), source)


def _runtime(ran: str, setup: Mapping[str, Any]) -> str:
    """`openvino`, or such as `openvino-gpu` where other plugins than the processor's ran the model or were asked to.

    A plugin is not the device: which processor or board it was, `device.json` says. `openvino-auto` is one that chose.
    """
    asked = str(setup.get("target device") or setup.get("target_device", ""))
    names = set(_PLUGIN.findall((ran or asked).upper())) or {asked.upper().partition(":")[0] or "CPU"}
    return "-".join(("openvino", *sorted(map(str.lower, names)))) if names != {"CPU"} else "openvino"


def _batch(setup: Mapping[str, Any], default: float | None) -> Any:
    value = setup.get("batch size", setup.get("batch_size"))
    return default if value is None else str(value).strip("[]")


def _cost(
    figures: Mapping[str, float], layers: tuple[Part, ...], images: int
) -> tuple[dict[str, Cost], tuple[str, ...]]:
    """Costs and flags; `images` stand in each inference that the tool takes for one of a single image."""
    n = int(figures.get("count", 0))
    costs = {}
    if "throughput" in figures:
        costs["throughput_ips"] = Cost(images * figures["throughput"], n=n)
    if "median" in figures:
        return costs | {"latency_ms": Cost(figures["median"], n=n)}, ()
    if "average" in figures:
        return costs | {"latency_ms": Cost(figures["average"], n=n)}, ("mean_only",)
    if layers and not figures:
        return {"latency_ms": Cost(sum(layer.latency_ms for layer in layers))}, ("mean_only", "sum_of_layers")
    return costs, ("throughput_only",)


def _doubts(where: Where, figures: Mapping[str, float], setup: Mapping[str, Any]) -> tuple[str, ...]:
    """`concurrent`: several requests at a time, whose latencies grow with their number; `several_shapes` of inputs."""
    stated = (figures.get("requests"), setup.get("number of parallel infer requests"), setup.get("nireq"))
    requests = [where.number(value, "parallel requests") for value in stated if value is not None]
    return ("concurrent",) * (max(requests, default=1) > 1) + ("several_shapes",) * ("shapes" in setup)


def _details(figures: Mapping[str, float], layers: tuple[Part, ...]) -> dict[str, Any]:
    names = {"average": "mean_ms", "minimum": "min_ms", "maximum": "max_ms", "first": "first_ms"}
    details: dict[str, Any] = {name: figures[key] for key, name in names.items() if key in figures}
    if layers:
        details |= {"layers": len(layers), "layers_ms": sum(layer.latency_ms for layer in layers)}
    return details


def _check(where: Where, figures: Mapping[str, float], batch: float | None = 1.0) -> None:
    """Refuse figures out of order, and a rate that is neither count over time nor, as older versions, of the median.

    All latencies together are no longer than the run, as many times as there are requests.
    `batch` is None where inferences were of several shapes, so that their number of images is not known.
    """
    where.rising("latency", figures.get("minimum"), figures.get("median"), figures.get("maximum"))
    where.rising("average latency", figures.get("minimum"), figures.get("average"), figures.get("maximum"))
    shortest = max(figures.get("average", 0.0) - _TWO_DIGITS, 0.0)
    spent = shortest * figures["count"] / figures.get("requests", math.inf)
    if spent > 1.02 * figures["duration"]:
        where.refuse(f"its inferences took {spent:g} ms a request, the run {figures['duration']:g} ms")
    if batch and figures["duration"]:
        median = figures.get("median")
        inverse = 1e3 * batch / median if median else math.inf
        if not median or abs(figures["throughput"] / inverse - 1) > 1e-3 + _TWO_DIGITS / median:
            rate = 1e3 * batch * figures["count"] / figures["duration"]
            where.agree("throughput", figures["throughput"], rate, 1e-3, _TWO_DIGITS)


def _read_text(path: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Figures of the text (ms), and the device, version and half precision that it names."""
    lines = read_lines(path)
    figures: dict[str, float] = {}
    texts: dict[str, str] = {}
    for n, line in enumerate(lines, 1):
        where = Where(path, n)
        if "Latency for each data shape group" in line:
            texts["shapes"] = "several"
        for name, pattern in _TEXT.items():
            if ("shapes" not in texts or name == "throughput") and (match := re.search(pattern, line)):
                scale = 1e-3 if match.lastindex == 2 and match[2] == "us" else 1.0
                where.once(figures, name, scale * where.number(match[1], name))
        if match := re.search(r"Build ?\.+ (\d+\.\d+)", line):
            texts.setdefault("version", match[1])
        if (match := _HINT.search(line)) and match[1] in _HALVES:
            texts["precision"] = _HALVES[match[1]]
        if match := re.search(r"Execution Devices:\s*(\[.*\]|\S+)", line):
            texts["device"] = _device(match[1])
    if images := _unseen_images(lines):
        texts["images"] = images
    if not figures.keys() >= _NEEDED:
        raise ParseError(
            path, "has no count, duration and throughput: the log is cut short, or the run failed", len(lines)
        )
    _check(Where(path, len(lines)), figures, None if "shapes" in texts else figures.get("batch", 1.0))
    return figures, texts


def _unseen_images(lines: list[str]) -> str:
    """The first side of the input as it was last listed, where the model tells no layout; empty where it does.

    The tool then takes an inference for one of a single image, whatever that side is.
    """
    sides, listed = "", ""
    for line in lines:
        if match := _LISTING.search(line):
            listed = match[1]
            sides = "" if listed == "inputs" else sides
        elif listed == "inputs" and (match := _INPUT.search(line)) and not sides:
            sides = match[2] if match[1] == "..." else ""
    return sides


def _device(text: str) -> str:
    """`CPU` of `['CPU']`."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text.strip("[]'\" ")
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_report(path: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Execution results by name, and the setup."""
    lines = read_lines(path)
    where = Where(path, len(lines))
    report = read_object(path) if lines[0].lstrip().startswith("{") else _read_csv(path, lines)
    results = report.get("execution_results", {})
    setup: dict[str, Any] = {}
    for section in ("cmd_options", "configuration_setup"):
        setup |= report[section] if isinstance(report.get(section), dict) else {}
    if not isinstance(results, dict) or "error" in results:
        where.refuse(f"the run failed: {str(results)[:120]}")
    percentile = _percentile(path, results)
    figures: dict[str, float] = {}
    for label, value in results.items():
        name = _NAMES.get(label.lower())
        if name is None or (name == "median" and percentile != 50):
            continue
        place = line_of(path, label)
        place.once(figures, name, place.number(value, label))
    if not figures.keys() >= _NEEDED:
        where.refuse("has no iterations, time and throughput among its results: cut short, or the run failed")
    if set(report) - set(_SECTIONS.values()):
        setup["shapes"] = "several"
    _check(where, figures, None if "shapes" in setup else where.number(_batch(setup, 1), "batch size", 1))
    return figures, setup


def _percentile(path: Path, results: Mapping[str, Any]) -> float:
    """Of which percentile the stated `latency` is: 50, the median, where the report does not say."""
    name = next((name for name in ("percentile_boundary", "Percentile boundary") if name in results), None)
    if name is None:
        return 50.0
    place = line_of(path, name)
    value = place.number(results[name], name, 1)
    if value > 100:
        place.refuse(f"{name} is {value:g}, expected at most 100")
    return value


def _read_csv(path: Path, lines: list[str]) -> dict[str, Any]:
    """The sections of a report by name, each a table of texts; the C++ tool writes a `;` after the last cell too."""
    report: dict[str, dict[str, str]] = {}
    section = ""
    for n, line in enumerate(lines, 1):
        name = line.strip().removesuffix(";")
        if name == _GROUPS:
            report[_GROUPS] = {}
            break
        if name in _SECTIONS:
            section = _SECTIONS[name]
            if section in report:
                Where(path, n).refuse(f"`{name}` stands twice: one run a file, please")
            report[section] = {}
        elif name:
            key, separator, value = line.strip().partition(";")
            if not separator or key in report.get(section, _NOTHING):
                Where(path, n).refuse("a name and its value with `;` between are expected, each name once in a section")
            report.setdefault(section, {})[key] = value.removesuffix(";")
    return report


def _read_counters(path: Path) -> tuple[Part, ...]:
    """Layers that ran, with their mean real time; their sum must be the stated total."""
    lines = read_lines(path)
    if lines[0].lstrip().startswith("{"):
        return _read_counters_json(path)
    tables: list[list[Part]] = []
    closed = 0
    width = 1 + lines[0].rstrip(";").count(";")
    for n, line in enumerate(lines, 1):
        where = Where(path, n)
        if line.startswith(_COUNTERS):
            tables.append([])
        elif line.strip():
            name, status, kind, _, time, *_ = where.cells(line.strip().removesuffix(";"), ";", width)
            if name == "Total":
                closed += 1
                _check_total(where, where.number(time, "total"), tables[-1])
            else:
                tables[-1].append(_layer(where, name, kind, status, time))
    if closed != len(tables):
        raise ParseError(path, "a table of layers has no total: the file is cut short", len(lines))
    return _mean(tables)


def _check_total(where: Where, total: float, layers: list[Part]) -> None:
    """Refuse a total that is not the sum of its layers: all are whole microseconds."""
    where.agree("total real time", total, sum(p.latency_ms for p in layers), 0, 6e-4)


def _layer(where: Where, name: Any, kind: Any, status: Any, milliseconds: Any) -> Part:
    """A layer; `n` is 0 where it did not run."""
    state = str(status).split(".")[-1].upper()
    if state not in _STATUSES:
        where.refuse(f"the status of {str(name)[:60]} is {str(status)[:40]!r}, expected {', '.join(sorted(_STATUSES))}")
    return Part(str(name), str(kind), where.number(milliseconds, "real time"), int(state == "EXECUTED"))


def _mean(tables: list[list[Part]]) -> tuple[Part, ...]:
    """Each layer that ran, with its mean over the tables."""
    found: dict[str, list[Part]] = {}
    for layer in (layer for table in tables for layer in table if layer.n):
        found.setdefault(layer.name, []).append(layer)
    n = len(tables)
    return tuple(Part(k, v[0].kind, sum(p.latency_ms for p in v) / n, n) for k, v in found.items())


def _read_counters_json(path: Path) -> tuple[Part, ...]:
    report, where = read_object(path), line_of(path, '"nodes"')
    tables = []
    stated = report.get("detailed_performance", [report.get("avg_performance")])
    for table in where.items(stated, "the performance counters"):
        nodes = where.items(where.field(table, "nodes"), "nodes")
        keys = ("name", "node_type", "status", "real_time")
        tables.append([_layer(where, *(where.field(node, key) for key in keys)) for node in nodes])
        _check_total(where, where.number(where.field(table, "total_real_time"), "total_real_time"), tables[-1])
    return _mean(tables)
