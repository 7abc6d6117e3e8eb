"""ONNX Runtime: the profiling JSON of a session, and what `onnxruntime_perf_test` prints and writes as CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Part, Reading, Record, median_cost, parsers, read_lines
from hwnas.parse.family import Family
from hwnas.parse.where import Where, read_array

CLOCK_US = 2.0
NODE = "_kernel_time"
_ROW = re.compile(rb"^[^,\n]*,[0-9.eE+-]+(,[0-9.eE+-]+)?,\d+,\d+,0\r?\n")
_FIGURES = {
    "total": r"Total (?:inference )?time cost:\s*(\S+)(?: s\b|$)",
    "requests": r"Total (?:inference requests|iterations):\s*(\S+)",
    "average": r"Average (?:inference )?time cost(?: total)?:\s*(\S+) ms",
    "span": r"Total (?:inference )?run time:\s*(\S+) s\b",
    "rate": r"Number of inferences per second:\s*(\S+)",
    "threads": r"Setting intra_op_num_threads to (\d+)",
    "runs": r"^Runs:\s*(\S+)",
    "minimum": r"Min Latency(?: is|:)\s*(\S+) s",
    "maximum": r"Max Latency(?: is|:)\s*(\S+) s",
    **{f"p{p}": rf"P{p} Latency(?: is|:)\s*(\S+) s" for p in (50, 90, 95, 99, 999)},
}
_SHARES = {"minimum": 0.0, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999, "maximum": 1.0}


@dataclass(frozen=True)
class Profile:
    """A session's profile: seconds of each run, and of each node the times in those runs, the first run left out."""

    runs_ms: NDArray[np.float64]
    nodes: tuple[Part, ...]
    providers: tuple[str, ...]


@parsers.register("onnxruntime")
class OnnxRuntime(Family):
    """The latency is the median of the runs: of the CSV's samples, else as printed (P50), else of the profile.

    The first run of a profile, which allocates memory, is left out where there are others.
    """

    def part(self, head: bytes) -> str | None:
        if head.lstrip()[:1] == b"[" and b'"cat"' in head and (b'"Session"' in head or b"_kernel_time" in head):
            return "profile"
        if any(text in head for text in (b"inference time cost", b"Session creation time cost", b"Total time cost")):
            return "summary"
        return "samples" if _ROW.match(head) else None

    def combine(self, name: str, parts: Mapping[str, Path]) -> Reading:
        profile = read_profile(parts["profile"]) if "profile" in parts else None
        figures = _read_summary(parts["summary"]) if "summary" in parts else {}
        times = _read_samples(parts["samples"]) if "samples" in parts else None
        source = parts.get("samples", parts.get("summary", parts.get("profile")))
        assert source is not None
        if times is not None and figures:
            _compare(times, figures, dict.fromkeys(figures, Where(parts["samples"])))
        if profile is not None and (times is not None or figures):
            n = len(times) if times is not None else int(figures["requests"])
            if len(profile.runs_ms) not in (n, n + 1):
                Where(parts["profile"]).refuse(f"holds {len(profile.runs_ms)} runs, {source.name} {n}: other runs")
        cost, flags = _cost(times, figures, profile)
        record = Record(
            subject=name,
            source=source,
            costs={"latency_ms": cost},
            runtime=_runtime(profile),
            threads=int(figures["threads"]) if figures.get("threads") else None,
            details=_details(figures, profile),
            flags=(*flags, "concurrent") if _concurrent(figures) else flags,
            parts=profile.nodes if profile else (),
        )
        return Reading((record,), source)


def _cost(
    times: NDArray[np.float64] | None, figures: Mapping[str, float], profile: Profile | None
) -> tuple[Cost, tuple[str, ...]]:
    if times is not None:
        return median_cost(times * 1e3), ()
    if figures:
        n = int(figures["requests"])
        if "p50" in figures:
            return Cost(figures["p50"] * 1e3, n=n), ()
        return Cost(figures["average"], n=n), ("mean_only",)
    assert profile is not None
    steady = profile.runs_ms[1:] if len(profile.runs_ms) > 1 else profile.runs_ms
    return median_cost(steady), ("profiled", *(() if len(profile.runs_ms) > 1 else ("first_run_only",)))


def _runtime(profile: Profile | None) -> str:
    """`onnxruntime`, or such as `onnxruntime-cuda` where a provider that is not the processor's ran nodes."""
    names = {name.removesuffix("ExecutionProvider").lower() for name in profile.providers} if profile else set()
    return "-".join(("onnxruntime", *sorted(names - {"cpu"})))


def _concurrent(figures: Mapping[str, float]) -> bool:
    """Whether inferences ran beside each other, so that together they took longer than all of the run."""
    return "span" in figures and figures["total"] > 1.05 * figures["span"]


def _details(figures: Mapping[str, float], profile: Profile | None) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if figures:
        details["mean_ms"] = figures["average"]
    if profile is not None:
        details |= {
            "runs": len(profile.runs_ms),
            "nodes": len(profile.nodes),
            "nodes_ms": sum(part.latency_ms for part in profile.nodes),
            "providers": "+".join(profile.providers),
        }
    return details


def read_profile(path: Path) -> Profile:
    """The runs and the nodes of a profiling JSON; raises `ParseError` where events are missing or contradict."""
    events = [(where, event) for where, event in read_array(path) if where.field(event, "cat") in ("Session", "Node")]
    runs = [(where, event) for where, event in events if event.get("name") == "model_run"]
    if not runs:
        raise ParseError(path, "holds no `model_run`: nothing ran, or the profile is cut short")
    starts, lengths = _times(runs)
    if (np.diff(starts) < lengths[:-1] - CLOCK_US).any():
        row = int(np.argmax(np.diff(starts) < lengths[:-1] - CLOCK_US)) + 1
        runs[row][0].refuse("a run begins before the one before it ends: lines are doubled, or several threads ran")
    nodes = _outermost([(where, event) for where, event in events if _is_node(event)])
    parts = _nodes(nodes, starts, lengths) if nodes else ()
    sequential = sum(event.get("name") == "SequentialExecutor::Execute" for _, event in events)
    if sequential and sequential < len(runs):
        runs[-1][0].refuse(f"{len(runs)} runs, but {sequential} of the executor: lines are missing or doubled")
    named = [args.get("provider") for _, event in nodes if isinstance(args := event.get("args"), dict)]
    providers = {str(provider) for provider in named if provider}
    return Profile(lengths / 1e3, parts, tuple(sorted(providers)))


def _is_node(event: dict[str, Any]) -> bool:
    return event["cat"] == "Node" and str(event.get("name")).endswith(NODE)


def _outermost(events: list[tuple[Where, Any]]) -> list[tuple[Where, Any]]:
    """The nodes without those of an If's or a Loop's body, which lie within that node's own time in its thread."""
    starts, lengths = _times(events)
    order = np.lexsort((-np.arange(len(events)), -lengths, starts))
    around: dict[str, tuple[float, float, str]] = {}
    kept = []
    for i in order:
        node = (float(starts[i]), float(starts[i] + lengths[i]), str(events[i][1]["name"]))
        thread = str(events[i][1].get("tid"))
        outer = around.get(thread, node)
        if node == outer or node[0] >= outer[1] or node[1] > outer[1]:
            around[thread] = node
            kept.append(int(i))
    return [events[i] for i in sorted(kept)]


def _times(events: list[tuple[Where, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Starts and lengths in microseconds, each (n,)."""
    pairs = [(w.number(w.field(e, "ts"), "ts"), w.number(w.field(e, "dur"), "dur")) for w, e in events]
    starts, lengths = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return starts, lengths


def _nodes(
    events: list[tuple[Where, Any]], starts: NDArray[np.float64], lengths: NDArray[np.float64]
) -> tuple[Part, ...]:
    """Median time of each node over the runs.

    Every run must hold the same nodes, and be no shorter than what any thread took for its own.
    """
    began, took = _times(events)
    run = np.searchsorted(starts, began + CLOCK_US, "right") - 1
    outside = (run < 0) | (began + took > starts[run] + lengths[run] + CLOCK_US)
    if outside.any():
        events[int(np.argmax(outside))][0].refuse("a node outside every `model_run`: lines are missing")
    names = np.array([f"{event['name']}\n{_kind(event)}" for _, event in events])
    known, index = np.unique(names, return_inverse=True)
    counts = np.zeros((len(starts), len(known)), dtype=np.int64)
    np.add.at(counts, (run, index), 1)
    if (counts != counts[-1]).any():
        r, k = (int(i) for i in np.argwhere(counts != counts[-1])[0])
        message = (
            f"node {known[k].split(chr(10))[0]} ran {counts[r, k]} times in run {r + 1}, {counts[-1, k]} in the last"
        )
        _within(events, run, r).refuse(f"{message}: lines are missing or doubled")
    sums = np.zeros((len(starts), len(known)))
    np.add.at(sums, (run, index), took)
    _, thread = np.unique([str(event.get("tid")) for _, event in events], return_inverse=True)
    busy = np.zeros((len(starts), thread.max() + 1))
    np.add.at(busy, (run, thread), took)
    short = busy.max(1) > lengths + CLOCK_US * counts[-1].sum()
    if short.any():
        r = int(np.argmax(short))
        message = f"run {r + 1} took {lengths[r]:g} us, its nodes {busy[r].max():g} us"
        _within(events, run, r).refuse(message)
    steady = sums[1:] if len(sums) > 1 else sums
    order = np.argsort([int(np.argmax(index == k)) for k in range(len(known))])
    medians = np.median(steady, axis=0) / 1e3
    return tuple(
        Part(known[k].split("\n")[0].removesuffix(NODE), known[k].split("\n")[1], float(medians[k]), len(steady))
        for k in order
    )


def _within(events: list[tuple[Where, Any]], run: NDArray[np.int64], r: int) -> Where:
    """Where the first node of run `r`, or of one after it, stands."""
    return events[min(int(np.argmax(run >= r)), len(events) - 1)][0]


def _kind(event: dict[str, Any]) -> str:
    args = event.get("args")
    return str(args.get("op_name", "")) if isinstance(args, dict) else ""


def _figures(path: Path, lines: list[str]) -> tuple[dict[str, float], dict[str, Where]]:
    """The figures that the lines state, and where each stands."""
    figures: dict[str, float] = {}
    places: dict[str, Where] = {}
    for n, line in enumerate(lines, 1):
        for name, pattern in _FIGURES.items():
            if match := re.search(pattern, line):
                places[name] = Where(path, n)
                places[name].once(figures, name, places[name].number(match[1], name))
    return figures, places


def _read_summary(path: Path) -> dict[str, float]:
    """The printed figures by name; raises `ParseError` where one is missing or contradicts another."""
    lines = read_lines(path)
    figures, places = _figures(path, lines)
    if not {"total", "requests", "average", "span"} <= set(figures):
        raise ParseError(
            path, "the total, requests, average and run time of inferences are not all there: cut short", len(lines)
        )
    if set(_SHARES) & set(figures) and not set(_SHARES) <= set(figures):
        raise ParseError(path, "minimum, maximum and percentiles are not all there: cut short", len(lines))
    where = places["average"]
    n = places["requests"].count(figures["requests"], "requests")
    where.agree("average inference time", figures["average"], figures["total"] * 1e3 / n)
    if "runs" in figures:
        places["runs"].agree("runs", figures["runs"], n, 0)
    if figures["span"] and "rate" in figures:
        places["rate"].agree("inferences per second", figures["rate"], n / figures["span"])
    where.rising("latency", *(figures.get(name) for name in _SHARES))
    low, high = (figures[k] * 1e3 if k in figures else None for k in ("minimum", "maximum"))
    where.rising("average inference time", low, figures["average"], high)
    return figures


def _read_samples(path: Path) -> NDArray[np.float64]:
    """Seconds of each inference; raises `ParseError` where a row is missing, doubled, or contradicts what is below.

    A row is the model, seconds (twice in newer versions), memory, processor load, and the row's number.
    """
    lines = read_lines(path)
    times: list[float] = []
    for n, line in enumerate(lines, 1):
        where = Where(path, n)
        if not line.strip() or ("," not in line and ":" in line):
            continue
        cells = where.cells(line, ",", 5, 6)
        if where.count(cells[-1], "row", 0) != len(times):
            where.refuse(f"row {cells[-1].strip()} stands where {len(times)} belongs: lines are missing or doubled")
        times.append(where.number(cells[len(cells) - 4], "seconds"))
        where.number(cells[-3], "memory")
    if lines[-1].strip():
        raise ParseError(path, "the last line has no end: the file is cut short", len(lines))
    _compare(np.array(times), *_figures(path, lines))
    return np.array(times)


def _compare(times: NDArray[np.float64], figures: Mapping[str, float], places: Mapping[str, Where]) -> None:
    """Refuse figures that are not those of the times; a percentile may be of a neighbour in their order."""
    if "requests" in figures:
        places["requests"].agree("number of requests", figures["requests"], len(times), 0)
    if "average" in figures:
        places["average"].agree("average inference time", figures["average"], float(times.mean()) * 1e3, 1e-3)
    ordered, last = np.sort(times), len(times) - 1
    for name in figures.keys() & _SHARES.keys():
        value = figures[name]
        step = 0 if name in ("minimum", "maximum") else 1
        low, high = (ordered[min(max(int(_SHARES[name] * len(times)) + side, 0), last)] for side in (-step, step))
        digits = int(Decimal(repr(value)).as_tuple().exponent)
        places[name].agree(f"{name} latency (s)", value, float(np.clip(value, low, high)), absolute=10.0**digits)
