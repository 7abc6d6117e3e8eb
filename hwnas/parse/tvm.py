"""TVM: the time evaluator's result (JSON, its printed form, its summary) and the profiler's report as JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Part, Reading, Record, median_cost, parsers, read_lines
from hwnas.parse.family import Family
from hwnas.parse.where import Where, line_of, read_object

_PRINTED = re.compile(r"(?:BenchmarkResult|ProfileResult)\((.*)\)")
_VALUE = re.compile(r"(min|mean|median|max|std)=([^,\s()]+)")
_HEADER = re.compile(r"mean \(ms\)\s+(?:median \(ms\)\s+)?max \(ms\)\s+min \(ms\)\s+std \(ms\)")
_STATISTICS: dict[str, Callable[..., Any]] = {
    "min": np.min,
    "mean": np.mean,
    "median": np.median,
    "max": np.max,
    "std": np.std,
}


@parsers.register("tvm")
class Tvm(Family):
    """The latency is the median of the evaluator's results, which are seconds; else the profiler's device total."""

    def part(self, head: bytes) -> str | None:
        if head.lstrip()[:1] == b"{":
            if b'"calls"' in head and b'"Duration (us)"' in head:
                return "profile"
            return "timing" if b'"results"' in head and b'"mean"' in head else None
        printed = b"BenchmarkResult(" in head or b"ProfileResult(" in head
        return "timing" if printed or _HEADER.search(head.decode("latin-1")) else None

    def combine(self, name: str, parts: Mapping[str, Path]) -> Reading:
        flags: tuple[str, ...] = ()
        details: dict[str, Any] = {}
        calls: tuple[Part, ...] = ()
        costs: dict[str, Cost] = {}
        if "profile" in parts:
            calls, total_ms = _read_profile(parts["profile"])
            costs["latency_ms"] = Cost(total_ms, n=1)
            details = {"calls": len(calls), "calls_ms": sum(call.latency_ms for call in calls)}
            flags = ("single_run",)
        if "timing" in parts:
            costs["latency_ms"], flags = _read_timing(parts["timing"])
        source = parts.get("timing", parts.get("profile"))
        assert source is not None
        record = Record(name, source, costs, runtime="tvm", details=details, flags=flags, parts=calls)
        return Reading((record,), source)


def _read_timing(path: Path) -> tuple[Cost, tuple[str, ...]]:
    lines = read_lines(path)
    if lines[0].lstrip().startswith("{"):
        value = read_object(path)
        where = line_of(path, '"results"')
        results = [where.number(v, "result") for v in where.items(value.get("results"), "results")]
        _compare(where, value, np.array(results))
        return median_cost(np.array(results) * 1e3), ()
    found = [(n, m) for n, line in enumerate(lines, 1) if (m := _PRINTED.search(line))]
    if len(found) == 1:
        return _read_printed(Where(path, found[0][0]), found[0][1][1]), ()
    heads = [n for n, line in enumerate(lines) if _HEADER.search(line)]
    if found or len(heads) != 1:
        raise ParseError(path, f"{len(found) or len(heads)} results; one run a file, please", len(lines))
    return _read_table(path, lines, heads[0])


def _read_printed(where: Where, text: str) -> Cost:
    inner = re.search(r"results=[(\[]([^)\]]*)[)\]]", text + ")")
    if inner is None:
        where.refuse("has no results: cut short")
    results = np.array([where.number(value, "result") for value in inner[1].replace(",", " ").split()])
    if not len(results):
        where.refuse("has no results")
    stated = _VALUE.findall(text[: text.index("results=")])
    if len(dict(stated)) != len(stated) or "mean" not in dict(stated):
        where.refuse("states no mean, or a figure twice")
    _compare(where, dict(stated), results)
    return median_cost(results * 1e3)


def _read_table(path: Path, lines: list[str], head: int) -> tuple[Cost, tuple[str, ...]]:
    """The median of the table that TVM prints, the mean where an older version prints no median."""
    where = Where(path, head + 2)
    names = re.findall(r"(\w+) \(ms\)", lines[head])
    cells = lines[head + 1].split() if head + 1 < len(lines) else []
    if len(cells) != len(names):
        where.refuse(f"{len(names)} figures expected under the header, {len(cells)} found: cut short")
    found = {name: where.number(cell, name) for name, cell in zip(names, cells, strict=True)}
    where.rising("time", found["min"], found.get("median"), found["max"])
    where.rising("mean time", found["min"], found["mean"], found["max"])
    doubt = () if "median" in found else ("mean_only",)
    return Cost(found.get("median", found["mean"])), ("summary_only", *doubt)


def _compare(where: Where, stated: Mapping[str, Any], results: NDArray[np.float64]) -> None:
    """Refuse statistics that are not those of the results."""
    for name, function in _STATISTICS.items():
        if name in stated:
            least = 1e-4 * float(results.max()) if name == "std" else 0.0
            where.agree(name, where.number(stated[name], name), float(function(results)), absolute=least)


def _read_profile(path: Path) -> tuple[tuple[Part, ...], float]:
    """The calls of a report and the milliseconds of the busiest device."""
    report = read_object(path)
    where = line_of(path, '"calls"')
    calls = where.items(where.field(report, "calls"), "calls")
    devices = line_of(path, '"device_metrics"').field(report, "device_metrics")
    if not isinstance(devices, dict) or not devices:
        where.refuse("`device_metrics` holds no device: cut short")
    totals = {device: _duration(where, metrics) for device, metrics in devices.items()}
    spent = dict.fromkeys(totals, 0.0)
    parts = []
    overall = max(totals.values())
    for call in calls:
        microseconds = _duration(where, call)
        device = str(_metric(where, call, "Device", "string")) if "Device" in call else next(iter(totals))
        if device not in totals:
            where.refuse(f"a call on {device}, of which there is no total")
        spent[device] += microseconds
        if "Percent" in call:
            percent = where.number(_metric(where, call, "Percent", "percent"), "Percent")
            where.agree("Percent", percent, 100 * microseconds / overall if overall else 0.0, 1e-3, 1e-3)
        name = str(_metric(where, call, "Name", "string"))
        parts.append(Part(name, "", microseconds / 1e3, 1))
    for device, total in totals.items():
        if spent[device] > total * 1.001:
            where.refuse(f"the calls on {device} took {spent[device]:g} us, the total is {total:g} us")
    return tuple(parts), overall / 1e3


def _duration(where: Where, entry: Any) -> float:
    return where.number(_metric(where, entry, "Duration (us)", "microseconds"), "Duration (us)")


def _metric(where: Where, entry: Any, name: str, unit: str) -> Any:
    """The value of a metric: `{"microseconds": 12.5}`, or bare as some versions write it."""
    value = where.field(entry, name)
    return where.field(value, unit) if isinstance(value, dict) else value
