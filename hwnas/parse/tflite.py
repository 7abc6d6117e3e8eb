"""TensorFlow Lite's `benchmark_model`: its text, and the profile of operations within it or as a CSV file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Part, Reading, Record, parsers, read_lines
from hwnas.parse.family import Family, model_name
from hwnas.parse.figures import Where

RUNS = "Operator-wise Profiling Info for Regular Benchmark Runs"
_STATISTICS = re.compile(r"(?<![\w(])count=(\d\S*)((?: \w+=\S+)+)")
_SUMMARY = re.compile(
    r"Inference timings in us: Init: (\S+), First inference: (\S+), Warmup \(avg\): (\S+), Inference \(avg\): (\S+)"
)
_SETTINGS = {"graph": r"Graph: \[(.+)\]", "threads": r"Num threads: \[(\d{1,6})\]"}
_CSV = "node type, start, first, avg_ms, %, cdf%, mem KB, times called, name"
_ROUNDING_MS = 5.1e-4


@dataclass(frozen=True)
class Operations:
    """The profile of operations in their order, and the mean of their sum over the runs."""

    parts: tuple[Part, ...]
    mean_ms: float
    runs: int


@parsers.register("tflite")
class Tflite(Family):
    """The latency is the median where the version prints one, else the mean over the timed runs (not the warm-up)."""

    def part(self, head: bytes) -> str | None:
        if b"STARTING!" in head or b"Inference timings in us" in head or b"Loaded model" in head:
            return "log"
        return "operations" if _CSV.encode() in head or b"[node type]" in head else None

    def combine(self, name: str, parts: Mapping[str, Path]) -> Reading:
        source = parts.get("log", parts.get("operations"))
        assert source is not None
        log = _read_log(parts["log"]) if "log" in parts else None
        operations = _read_operations(source, required=log is None)
        if "operations" in parts and log is not None:
            operations = _read_operations(parts["operations"], required=True)
        details: dict[str, Any] = {}
        flags: tuple[str, ...] = ("mean_only", "sum_of_operations")
        if operations is not None:
            details = {"operations": len(operations.parts), "operations_ms": operations.mean_ms}
        if log is None:
            assert operations is not None
            cost = Cost(operations.mean_ms, n=operations.runs)
        else:
            cost, flags, details = _cost(log), () if "median" in log else ("mean_only",), details | _details(log)
        if log is not None and operations is not None and operations.runs != log["count"]:
            Where(parts.get("operations", source)).refuse(f"{operations.runs} runs profiled, {log['count']:g} timed")
        record = Record(
            subject=model_name(str(log["graph"])) if log and "graph" in log else name,
            source=source,
            costs={"latency_ms": cost},
            runtime="tflite",
            threads=int(log["threads"]) if log and "threads" in log else None,
            details=details,
            flags=flags,
            parts=operations.parts if operations else (),
        )
        return Reading((record,), source)


def _cost(log: Mapping[str, Any]) -> Cost:
    return Cost(log.get("median", log["avg"]) / 1e3, n=int(log["count"]))


def _details(log: Mapping[str, Any]) -> dict[str, Any]:
    details = {"mean_ms": log["avg"] / 1e3, "first_ms": log["first_inference"] / 1e3, "init_ms": log["init"] / 1e3}
    return details | ({"std_ms": log["std"] / 1e3} if "std" in log else {})


def _read_log(path: Path) -> dict[str, Any]:
    """Figures of the timed runs in microseconds, and the settings."""
    lines = read_lines(path)
    series: list[tuple[Where, dict[str, float]]] = []
    log: dict[str, Any] = {}
    summary: tuple[Where, list[float]] | None = None
    for n, line in enumerate(lines, 1):
        where = Where(path, n)
        for name, pattern in _SETTINGS.items():
            if (match := re.search(pattern, line)) and log.setdefault(name, match[1]) != match[1]:
                where.refuse(f"{name} is {match[1]} here and {log[name]} before: one run a file, please")
        if summary is None and (match := _STATISTICS.search(line)):
            series.append((where, _statistics(where, match)))
        if match := _SUMMARY.search(line):
            if summary is not None:
                where.refuse("a second summary: one run a file, please")
            names = ("Init", "First inference", "Warmup (avg)", "Inference (avg)")
            values = [where.number(v, k) for v, k in zip(match.groups(), names, strict=True)]
            summary = (where, values)
    if summary is None or not series:
        raise ParseError(path, "has no `Inference timings in us` after the runs: the log is cut short", len(lines))
    where, (init, first, warm, mean) = summary
    if len(series) > 2:
        where.refuse(f"{len(series)} series of runs before it; a warm-up and the timed runs are expected")
    where.agree("Inference (avg)", mean, series[-1][1]["avg"])
    if len(series) == 2:
        where.agree("Warmup (avg)", warm, series[0][1]["avg"])
        where.agree("First inference", first, series[0][1]["first"])
    return log | series[-1][1] | {"init": init, "first_inference": first}


def _statistics(where: Where, match: re.Match[str]) -> dict[str, float]:
    """`count=50 first=.. curr=.. min=.. max=.. avg=.. std=..`, or `count=1 curr=..`, or `curr=..(all same)`."""
    pairs = [pair.split("=", 1) for pair in match[2].split()]
    values = {key: where.number(text.removesuffix("(all").strip(), key) for key, text in pairs}
    values["count"] = where.count(match[1], "count")
    if len(values) != len(pairs) + 1:
        where.refuse("a figure stands twice")
    if "avg" not in values:
        if "curr" not in values or len(values) > 2:
            where.refuse("lacks the figures of a series of runs: damaged")
        values |= {"avg": values["curr"], "first": values["curr"]}
        return values
    quantiles = {"p5", "median", "p95"}
    expected = {"count", "first", "curr", "min", "max", "avg", "std"} | (
        quantiles if quantiles & set(values) else set()
    )
    if expected != set(values):
        where.refuse(f"{', '.join(sorted(expected ^ set(values)))} missing or unknown: damaged")
    where.rising("time", values["min"], values.get("p5"), values.get("median"), values.get("p95"), values["max"])
    for name in ("avg", "first", "curr"):
        where.rising(name, values["min"], values[name], values["max"])
    return values


def _read_operations(path: Path, required: bool) -> Operations | None:
    """The operations of the regular runs in the order they ran; None where there are none and none are `required`."""
    lines = read_lines(path)
    starts = [n for n, line in enumerate(lines) if RUNS in line]
    if len(starts) > 1 or (required and not starts):
        raise ParseError(path, f"{len(starts)} profiles of regular runs; one is expected", len(lines))
    if not starts:
        return None
    rows = _rows(path, lines, starts[0] + 1)
    timing = [
        (Where(path, n), match)
        for n, line in enumerate(lines[starts[0] :], starts[0] + 1)
        if "Timings (microseconds)" in line and (match := _STATISTICS.search(line))
    ]
    if len(timing) != 1:
        raise ParseError(path, "the profile has not one line of `Timings`: it is cut short", len(lines))
    where, match = timing[0]
    values = _statistics(where, match)
    parts = tuple(part for _, part, _ in rows)
    whole = sum(part.latency_ms for part in parts)
    rounding = _ROUNDING_MS * (len(parts) + 2)
    where.agree("mean of the runs (ms)", values["avg"] / 1e3, whole, 1e-3, rounding)
    _check_percentages(rows, whole)
    for n, line in enumerate(lines[starts[0] :], starts[0] + 1):
        if found := re.search(r"(\d+) nodes observed|Number of nodes executed: (\d+)", line):
            where = Where(path, n)
            where.agree("number of nodes", where.count(found[1] or found[2], "nodes", 0), len(parts), 0)
    return Operations(parts, values["avg"] / 1e3, int(values["count"]))


def _rows(path: Path, lines: list[str], start: int) -> list[tuple[Where, Part, tuple[float, float]]]:
    """Rows under the first header after line `start`: the operation, and its share and running share in percent."""
    heads = [n for n in range(start, min(start + 4, len(lines))) if _CSV in lines[n] or "[node type]" in lines[n]]
    if not heads:
        raise ParseError(path, "the profile has no header: columns are missing, or it is cut short", start + 1)
    separator = "," if _CSV in lines[heads[0]] else "\t"
    rows = []
    for n, line in enumerate(lines[heads[0] + 1 :], heads[0] + 2):
        if not line.strip() or line.startswith("="):
            break
        where = Where(path, n)
        cells = [cell.strip() for cell in line.strip("\n").lstrip("\t").split(separator)]
        if len(cells) < 9:
            where.refuse(f"9 cells expected, {len(cells)} found")
        first, mean = (where.number(cells[i], what) for i, what in ((2, "first"), (3, "avg ms")))
        shares = tuple(where.number(cells[i].removesuffix("%"), what) for i, what in ((4, "%"), (5, "cdf%")))
        if not all(cells[i].endswith("%") for i in (4, 5)) or first < 0:
            where.refuse("the 5th and 6th cell are percentages: columns are swapped")
        where.number(cells[1], "start")
        calls = where.number(cells[7], "times called")
        rows.append((where, Part(separator.join(cells[8:]), cells[0], mean, int(calls)), (shares[0], shares[1])))
    if not rows:
        raise ParseError(path, "the profile has no rows", heads[0] + 1)
    return rows


def _check_percentages(rows: list[tuple[Where, Part, tuple[float, float]]], whole: float) -> None:
    running = 0.0
    for where, part, (share, cumulative) in rows:
        running += share
        slack = 0.02 + 100 * _ROUNDING_MS * (len(rows) + 2) / whole if whole else 100.0
        where.agree("share of an operation (%)", share, 100 * part.latency_ms / whole if whole else 0.0, 1e-3, slack)
        where.agree("cumulative share (%)", cumulative, running, 1e-3, 0.001 * len(rows))
    rows[-1][0].agree("last cumulative share (%)", rows[-1][2][1], 100.0, 1e-3)
