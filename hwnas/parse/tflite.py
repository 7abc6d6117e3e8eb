"""TensorFlow Lite's `benchmark_model`: its text, and the profile of operations within it or as a CSV file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Part, Reading, Record, parsers, read_lines
from hwnas.parse.family import Family, model_name
from hwnas.parse.where import Where

RUNS = "Operator-wise Profiling Info for Regular Benchmark Runs"
_LOGCAT = re.compile(r"^\d\d-\d\d \d\d:\d\d:\d\d\.\d+\s+\d+\s+\d+ [VDIWEF] \S+\s*: ?")
_STATISTICS = re.compile(r"(?<![\w(])count=(\d\S*)((?: \w+=[^\s(]+(?:\(all same\))?)+)")
_QUANTILES = frozenset(("p5", "median", "p95"))
_SUMMARY = re.compile(r"nference timings in us: (.+)")
_STATED = {
    "Init": "init",
    "First inference": "first",
    "Warmup (avg)": "warm",
    "Warmup": "warm",
    "Inference (avg)": "mean",
    "Inference": "mean",
    "no stats": "mean",
}
_SETTINGS = {
    "graph": r"Graph: \[(.+)\]",
    "threads": r"(?:Num threads|#threads used for CPU inference): \[(\d{1,6})\]",
}
_ASKED = re.compile(r"Use (gpu|nnapi|hexagon|coreml)\s*: \[1\]", re.IGNORECASE)
_APPLIED = re.compile(r"pplied (\S+) delegate, and the model graph will be (\w+) executed")
_NOT_APPLIED = re.compile(
    r"Though (\S+) delegate is explicitly applied, the model graph will not be executed"
    r"|(\w+) acceleration is unsupported on this platform"
)
PROCESSOR = "xnnpack"
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
        if b"STARTING!" in head or b"nference timings in us" in head or b"Loaded model" in head:
            return "log"
        return "operations" if b"node type, " in head or b"[node type]" in head else None

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
            cost, flags, details = _cost(log), log["flags"], details | _details(log)
        if log is not None and operations is not None and operations.runs != log["count"]:
            Where(parts.get("operations", source)).refuse(f"{operations.runs} runs profiled, {log['count']:g} timed")
        record = Record(
            subject=model_name(str(log["graph"])) if log and "graph" in log else name,
            source=source,
            costs={"latency_ms": cost},
            runtime=log["runtime"] if log else "tflite",
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


def _lines(path: Path) -> list[str]:
    """The lines without what Android's logcat puts before each."""
    return [_LOGCAT.sub("", line) for line in read_lines(path)]


def _read_log(path: Path) -> dict[str, Any]:
    """Figures of the timed runs in microseconds, the settings, the runtime with its accelerator, and flags."""
    lines = _lines(path)
    where, stated = _summary(path, lines)
    series = [
        (Where(path, n), _statistics(Where(path, n), match))
        for n, line in enumerate(lines[: where.line], 1)
        if (match := _STATISTICS.search(line))
    ]
    if not 1 <= len(series) <= 2:
        where.refuse(f"{len(series)} series of runs before it; a warm-up and the timed runs are expected")
    timed = series[-1][1]
    where.agree("Inference (avg)", stated["mean"], timed["avg"])
    if len(series) == 2:
        where.agree("Warmup (avg)", stated["warm"], series[0][1]["avg"])
        where.agree("First inference", stated.get("first", series[0][1]["first"]), series[0][1]["first"])
    runtime, flags = _accelerator("\n".join(lines))
    flags += () if "median" in timed else ("mean_only",)
    first = stated.get("first", series[0][1]["first"])
    return (
        timed
        | _settings(path, lines)
        | {"init": stated["init"], "first_inference": first, "runtime": runtime, "flags": flags}
    )


def _summary(path: Path, lines: list[str]) -> tuple[Where, dict[str, float]]:
    """Where the log sums up, and the microseconds that it states there: `init`, `first`, `warm`, `mean`."""
    found = [(Where(path, n), match[1]) for n, line in enumerate(lines, 1) if (match := _SUMMARY.search(line))]
    if not found and any("BENCHMARK RESULTS" in line for line in lines):
        raise ParseError(path, "written by LiteRT's benchmark_litert_model; only TFLite's benchmark_model is read")
    if not found:
        raise ParseError(path, "has no `Inference timings in us` after the runs: the log is cut short", len(lines))
    if len(found) > 1:
        found[1][0].refuse("a second summary: one run a file, please")
    where, text = found[0]
    stated: dict[str, float] = {}
    for label, _, value in (pair.partition(": ") for pair in text.split(", ")):
        if label not in _STATED or _STATED[label] in stated:
            where.refuse(f"{label!r} is no figure of a summary, or stands twice: damaged")
        stated[_STATED[label]] = where.number(value, label)
    if not {"init", "warm", "mean"} <= set(stated):
        where.refuse("the summary lacks Init, Warmup or Inference: cut short")
    return where, stated


def _settings(path: Path, lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for n, line in enumerate(lines, 1):
        for name, pattern in _SETTINGS.items():
            if match := re.search(pattern, line):
                Where(path, n).once(found, name, match[1])
    return found


def _accelerator(text: str) -> tuple[str, tuple[str, ...]]:
    """`tflite`, or such as `tflite-gpu` where a delegate that is not of the processor ran the model; and the doubts."""
    told = {name.lower(): how for name, how in _APPLIED.findall(text)}
    applied = {name: how for name, how in told.items() if name != PROCESSOR}
    asked = {name.lower() for name in _ASKED.findall(text)}
    refused = {name.lower() for names in _NOT_APPLIED.findall(text) for name in names if name} - {PROCESSOR}
    names = set(applied) or (set() if told else asked - refused)
    if not names and (asked or refused):
        return "tflite", ("not_delegated",)
    return "-".join(("tflite", *sorted(names))), ("partly_delegated",) if "partially" in applied.values() else ()


def _statistics(where: Where, match: re.Match[str]) -> dict[str, float]:
    """The figures of a series of runs in microseconds.

    `count=50 first=.. curr=.. min=.. max=.. avg=.. std=..`; of one run or of equal ones only `count=1 curr=..` or
    `curr=..(all same)`. Newer versions add `p5=.. median=.. p95=..` to each.
    """
    pairs = re.findall(r" (\w+)=([^\s(]+)", match[2])
    values = {key: where.number(text, key) for key, text in pairs} | {"count": where.count(match[1], "count")}
    if len(values) != len(pairs) + 1 or match.string[match.end() :].strip():
        where.refuse("a figure stands twice, or cannot be read")
    same = "avg" not in values and (values["count"] == 1 or "(all same)" in match[2])
    known = {"count", "curr"} | (set() if same else {"first", "min", "max", "avg", "std"})
    expected = known | (_QUANTILES if _QUANTILES & set(values) else set())
    if expected != set(values):
        where.refuse(f"{', '.join(sorted(expected ^ set(values)))} missing or unknown: damaged")
    if same:
        values = dict.fromkeys(("first", "min", "avg", "max", "median"), values["curr"]) | values
    where.rising("time", values["min"], values.get("p5"), values.get("median"), values.get("p95"), values["max"])
    for name in ("avg", "first", "curr"):
        where.rising(name, values["min"], values[name], values["max"])
    return values


class _Row(NamedTuple):
    """An operation: its time in one run, its share of the runs and that of all down to it (%), its calls in a run."""

    where: Where
    part: Part
    share: float
    running: float
    calls: int


def _read_operations(path: Path, required: bool) -> Operations | None:
    """The operations of the regular runs in the order they ran; None where there are none and none are `required`."""
    lines = _lines(path)
    starts = [n for n, line in enumerate(lines) if RUNS in line]
    if len(starts) > 1 or (required and not starts):
        raise ParseError(path, f"{len(starts)} profiles of regular runs; one is expected", len(lines))
    if not starts:
        return None
    start, end = starts[0], _end(lines, starts[0])
    rows = _rows(path, lines[:end], start + 1)
    timing = [
        (Where(path, n), match)
        for n, line in enumerate(lines[start:end], start + 1)
        if "Timings (microseconds)" in line and (match := _STATISTICS.search(line))
    ]
    if len(timing) != 1:
        raise ParseError(path, "the profile has not one line of `Timings`: it is cut short", end)
    where, values = timing[0][0], _statistics(*timing[0])
    whole = sum(row.part.latency_ms for row in rows)
    rounding = _ROUNDING_MS * (sum(row.calls for row in rows) + 2)
    where.agree("mean of the runs (ms)", values["avg"] / 1e3, whole, 1e-3, rounding)
    _check_percentages(rows, whole, rounding)
    for n, line in enumerate(lines[start:end], start + 1):
        if found := re.search(r"(\d+) nodes observed|Number of nodes executed: (\d+)", line):
            where = Where(path, n)
            where.agree("number of nodes", where.count(found[1] or found[2], "nodes", 0), len(rows), 0)
    runs = int(values["count"])
    return Operations(tuple(replace(row.part, n=runs) for row in rows), values["avg"] / 1e3, runs)


def _end(lines: list[str], start: int) -> int:
    """Where the profile of the model itself ends: its subgraphs' and its delegates' insides have their own below."""
    others = ("Subgraph (index:", "Delegate internal:")
    return next((n for n in range(start, len(lines)) if lines[n].startswith(others)), len(lines))


def _columns(line: str) -> list[str]:
    """The names of a profile's columns, as its CSV has them, where `line` is its header; else nothing."""
    names = re.findall(r"\[([^\]]+)\]", line) if "[node type]" in line else line.split(",")
    names = [name.strip().lower().replace("avg ms", "avg_ms") for name in names]
    return names if names[0] == "node type" and {"first", "avg_ms", "%", "cdf%", "name"} <= set(names) else []


def _rows(path: Path, lines: list[str], start: int) -> list[_Row]:
    """The rows under the first header after line `start`.

    Times are those of a call. Numbers stand between the type and the name, which both may hold spaces and commas.
    """
    heads = [n for n in range(start, min(start + 4, len(lines))) if _columns(lines[n])]
    if not heads:
        raise ParseError(path, "the profile has no header: columns are missing, or it is cut short", start + 1)
    columns, gap = _columns(lines[heads[0]]), r"\s*,\s*" if "node type," in lines[heads[0]] else r"\s+"
    cells = gap.join(r"(-?[\d.]+(?:e[-+]?\d+)?)" + "%" * name.endswith("%") for name in columns[1:-1])
    pattern = re.compile(rf"\s*(.*?){gap}{cells}(?:{gap}(.*))?")
    rows = []
    for n, line in enumerate(lines[heads[0] + 1 :], heads[0] + 2):
        if not line.strip() or line.startswith("="):
            break
        where, match = Where(path, n), pattern.fullmatch(line)
        if match is None:
            where.refuse(f"not a row of {', '.join(columns)}: columns are swapped, or it is damaged")
        kind, *texts, name = match.groups()
        cell = {key: where.number(text, key) for key, text in zip(columns[1:-1], texts, strict=True) if key != "mem kb"}
        calls = where.count(cell.get("times called", 1), "times called")
        rows.append(_Row(where, Part(name or "", kind, cell["avg_ms"] * calls), cell["%"], cell["cdf%"], calls))
    if not rows:
        raise ParseError(path, "the profile has no rows", heads[0] + 1)
    return rows


def _check_percentages(rows: list[_Row], whole: float, rounding: float) -> None:
    running = 0.0
    for row in rows:
        running += row.share
        slack = 0.02 + 100 * rounding / whole if whole else 100.0
        share = 100 * row.part.latency_ms / whole if whole else 0.0
        row.where.agree("share of an operation (%)", row.share, share, 1e-3, slack)
        row.where.agree("cumulative share (%)", row.running, running, 1e-3, 0.001 * len(rows))
    rows[-1].where.agree("last cumulative share (%)", rows[-1].running, 100.0, 1e-3)
