"""vaitrace's CSV family: `profile_summary.csv`, `vart_trace.csv`, `vitis_ai_profile.csv`, `meta.json` in one folder.

The latency is the median over the trace's own events. The summary states the same runs again (their number, minimum,
mean and maximum), and so do other files of the folder; wherever two of them disagree the folder is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Reader, Reading, Record, median_cost, parsers, read_head, read_lines
from hwnas.parse.where import MAX_DIGITS, Where, read_object

SUMMARY, TRACE, PROFILE, META = "profile_summary.csv", "vart_trace.csv", "vitis_ai_profile.csv", "meta.json"
XRT, XRT_SUMMARY, CHECKSUM = "xrt.run_summary", "summary.csv", "md5sum.txt"
FAMILY = (SUMMARY, TRACE, PROFILE, META, XRT, XRT_SUMMARY, CHECKSUM)
COLUMNS = (
    "Kernel Name",
    "Number Of Runs",
    "CU Full Name",
    "Minimum Time (ms)",
    "Average Time (ms)",
    "Maximum Time (ms)",
    "Workload(GOP)",
    "DPU Performance(GOP/s)",
    "Mem IO(MB)",
    "Mem Bandwidth(MB/s)",
)
EVENT_CELLS = 15
ROUNDING_MS = 0.0011
OUTLIER = 0.02
_PORT = re.compile(r"DDRC_PORT_\w+_(Read|Write)")


@dataclass(frozen=True)
class Kernel:
    """One row of the summary; `line` is where it stands."""

    name: str
    line: int
    runs: int
    unit: str
    minimum_ms: float
    average_ms: float
    maximum_ms: float
    workload_gop: float
    efficiency_percent: float
    memory_mib: float
    bandwidth_mib_s: float

    @property
    def on_dpu(self) -> bool:
        return "DPU" in self.unit.upper()

    @property
    def batch(self) -> int:
        digits = self.unit.rpartition("batch-")[2]
        return int(digits) if digits.isdigit() and len(digits) <= MAX_DIGITS else 1


@dataclass(frozen=True)
class Trace:
    """The events of `vart_trace.csv`: durations in ms of each kernel's runs, in order, and the file's own header."""

    durations: Mapping[str, NDArray[np.float64]]
    gops: Mapping[str, float]
    threads: int
    header: Mapping[str, str]


@parsers.register("vaitrace")
class Vaitrace(Reader):
    """Reads the folder that a file of the family lies in."""

    def matches(self, path: Path, head: bytes) -> bool:
        summary = head.startswith(b"Profile Summary") and b"Msec since Epoch" not in head
        return summary or (head.startswith(b"HEADER") and b"VTF File Version" in head)

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path, *(path.with_name(name) for name in FAMILY if path.with_name(name).is_file()))

    def read(self, path: Path) -> Reading:
        folder = path.parent
        summary = _sibling(path, SUMMARY)
        trace_path = _sibling(path, TRACE)
        kernels = read_summary(summary) if summary else []
        if trace_path is None:
            raise ParseError(folder, f"{TRACE} is missing; copy the whole folder that vaitrace wrote")
        trace = read_trace(trace_path)
        meta = _read_json(folder / META)
        if summary:
            _compare(summary, kernels, trace, trace_path)
        _compare_meta(folder, meta, trace, trace_path)
        details, flags = _details(kernels, trace)
        details |= _bandwidth(folder / PROFILE)
        cost = _latency(kernels, trace, trace_path)
        if kernels and abs(cost.value / _mean(kernels) - 1) > OUTLIER:
            flags.append("outliers")
        record = Record(
            subject=folder.resolve().name,
            source=trace_path,
            costs={"latency_ms": cost},
            device=str(meta.get("target", "")),
            runtime="vart",
            precision="int8",
            batch=max((k.batch for k in kernels if k.on_dpu), default=None),
            threads=trace.threads,
            details=details | {"model": meta["filename"]} if "filename" in meta else details,
            flags=tuple(flags),
            md5=_checksum(folder / CHECKSUM),
        )
        return Reading((record,), trace_path)


def _sibling(path: Path, name: str) -> Path | None:
    """`path` itself where its content is that of `name`, else the file `name` beside it."""
    if (name == SUMMARY) == read_head(path).startswith(b"Profile Summary"):
        return path
    beside = path.with_name(name)
    return beside if beside.is_file() else None


def read_summary(path: Path) -> list[Kernel]:
    """The rows under `DPU Summary`; raises `ParseError`."""
    lines = read_lines(path)
    if lines[-1]:
        raise ParseError(path, "the last line has no end: the file is cut short", len(lines))
    if "DPU Summary" not in lines:
        raise ParseError(path, "has no `DPU Summary`: the run used no DPU, or the file is cut short", len(lines))
    start = lines.index("DPU Summary") + 1
    header = lines[start].rstrip(",").split(",") if start < len(lines) else []
    if tuple(header) != COLUMNS:
        raise ParseError(path, f"the columns are not those of a DPU summary ({', '.join(COLUMNS)})", start + 1)
    rows = [(n, line) for n, line in enumerate(lines[start + 1 :], start + 2) if line.strip()]
    kernels = [_kernel(Where(path, n), line) for n, line in rows]
    if not kernels:
        raise ParseError(path, "the DPU summary has no rows: the file is cut short, or nothing ran", start + 1)
    if len({(k.name, k.unit) for k in kernels}) != len(kernels):
        raise ParseError(path, "a kernel stands twice for one core", kernels[-1].line)
    return [_over_cores([k for k in kernels if k.name == name]) for name in dict.fromkeys(k.name for k in kernels)]


def _over_cores(rows: list[Kernel]) -> Kernel:
    """A kernel's rows of several DPU cores as one."""
    if len(rows) == 1:
        return rows[0]
    runs = sum(row.runs for row in rows)

    def mean(name: str) -> float:
        return sum(row.runs * float(getattr(row, name)) for row in rows) / runs

    return replace(
        rows[0],
        runs=runs,
        minimum_ms=min(row.minimum_ms for row in rows),
        average_ms=mean("average_ms"),
        maximum_ms=max(row.maximum_ms for row in rows),
        efficiency_percent=mean("efficiency_percent"),
        bandwidth_mib_s=mean("bandwidth_mib_s"),
    )


def _kernel(where: Where, line: str) -> Kernel:
    name, runs, unit, *cells, rest = where.cells(line, ",", len(COLUMNS) + 1)
    if rest.strip():
        where.refuse(f"{len(COLUMNS)} cells and a trailing comma expected")
    values = [where.number(cell, column) for cell, column in zip(cells, COLUMNS[3:], strict=True)]
    kernel = Kernel(name, where.line or 0, where.count(runs, COLUMNS[1]), unit, *values)
    if not kernel.minimum_ms <= kernel.average_ms <= kernel.maximum_ms:
        where.refuse("the minimum, average and maximum time are not in order")
    if kernel.efficiency_percent > 100:
        where.refuse(f"a DPU efficiency of {kernel.efficiency_percent} % is impossible")
    if kernel.bandwidth_mib_s and 1000 * kernel.memory_mib / kernel.bandwidth_mib_s > 1.01 * kernel.maximum_ms:
        where.refuse("Mem IO over Mem Bandwidth is longer than the longest run: they contradict the times")
    return kernel


def read_trace(path: Path) -> Trace:
    """Events of `vart_trace.csv` paired into runs; raises `ParseError`."""
    lines = read_lines(path)
    starts = {name: _section(path, lines, name) for name in ("HEADER", "MAPPING", "EVENTS")}
    if not starts["HEADER"] < starts["MAPPING"] < starts["EVENTS"]:
        raise ParseError(path, "the sections HEADER, MAPPING, EVENTS are not in order")
    header = {}
    for line in lines[starts["HEADER"] + 1 : starts["MAPPING"]]:
        key, comma, value = line.partition(",")
        if comma and not key.startswith(("Dynamic_Row", "Group")):
            header[key] = value
    if header.get("Resolution") != "ms":
        raise ParseError(path, f"times are in {header.get('Resolution')!r}, expected ms", starts["HEADER"] + 1)
    names: dict[str, str] = {}
    for n, line in enumerate(lines[starts["MAPPING"] + 1 : starts["EVENTS"]], starts["MAPPING"] + 2):
        key, comma, name = line.partition(",")
        if comma and key in names:
            raise ParseError(path, f"mapping {key} stands twice", n)
        names[key] = name
    if lines[-1]:
        raise ParseError(path, "the last line has no end: the file is cut short", len(lines))
    return _pair(path, lines, starts["EVENTS"] + 1, names, header)


def _section(path: Path, lines: list[str], name: str) -> int:
    if lines.count(name) != 1:
        raise ParseError(path, f"the section {name} is {'missing' if name not in lines else 'there twice'}")
    return lines.index(name)


def _pair(path: Path, lines: list[str], start: int, names: dict[str, str], header: dict[str, str]) -> Trace:
    open_events: dict[int, tuple[float, list[str]]] = {}
    durations: dict[str, list[float]] = {}
    gops: dict[str, float] = {}
    threads, previous, last = set(), 0, 0.0
    for n, line in enumerate(lines[start:-1], start + 1):
        where = Where(path, n)
        cells = where.cells(line, ",", EVENT_CELLS)
        event, begin = where.count(cells[0], "event"), where.count(cells[1], "start event", 0)
        if event != previous + 1:
            where.refuse(f"event {event} follows event {previous}: lines are missing, doubled or moved")
        time = where.number(cells[2], "time")
        if time < last:
            where.refuse(f"time runs backwards, from {last:g} to {time:g} ms")
        previous, last = event, time
        if begin == 0:
            open_events[event] = (time, cells[3:])
            continue
        if begin not in open_events:
            where.refuse(f"event {event} ends event {begin}, which is not running")
        began, cells_begin = open_events.pop(begin)
        if cells_begin != cells[3:]:
            where.refuse(f"event {event} ends event {begin}, but they describe different runs")
        kernel, gop = _run(where, cells, names, time - began)
        if gops.setdefault(kernel, gop) != gop:
            where.refuse(f"the workload of {kernel} changes from {gops[kernel]:g} to {gop:g} GOP")
        durations.setdefault(kernel, []).append(round(time - began, 6))
        threads.add(cells[6])
    if open_events or not durations:
        what = f"event {min(open_events)} never ends" if open_events else "there are no events"
        raise ParseError(path, f"{what}: the trace is cut short", len(lines) - 1)
    return Trace({k: np.array(v) for k, v in durations.items()}, gops, len(threads), header)


def _run(where: Where, cells: list[str], names: dict[str, str], duration: float) -> tuple[str, float]:
    """Kernel and workload of one run, its rate checked against its duration."""
    kernel = names.get(cells[5])
    if not kernel:
        where.refuse(f"kernel {cells[5]} is not in MAPPING")
    gop, rate = where.number(cells[8], "GOP"), where.number(cells[9], "GOP/s")
    if duration <= 0:
        where.refuse("a run of no duration")
    if gop and rate and abs(1000 * gop / duration / rate - 1) > 0.02:
        where.refuse(f"{gop:g} GOP in {duration:g} ms contradicts the stated {rate:g} GOP/s")
    return kernel, gop


def _compare(summary: Path, kernels: list[Kernel], trace: Trace, trace_path: Path) -> None:
    """Refuse a summary that says otherwise than the events."""
    dpu = {k.name: k for k in kernels if k.on_dpu}
    if set(dpu) != set(trace.durations):
        raise ParseError(
            trace_path,
            f"the events are of {', '.join(sorted(trace.durations))}, the summary's rows of "
            f"{', '.join(sorted(dpu)) or 'no DPU kernel'}: files of different runs",
        )
    for name, kernel in dpu.items():
        times = trace.durations[name]
        if len(times) != kernel.runs:
            raise ParseError(summary, f"{kernel.runs} runs stated, {len(times)} in {trace_path.name}", kernel.line)
        stated = (kernel.minimum_ms, kernel.average_ms, kernel.maximum_ms)
        for what, mine, theirs in zip(
            ("minimum", "average", "maximum"), (times.min(), times.mean(), times.max()), stated, strict=True
        ):
            if abs(mine - theirs) > ROUNDING_MS:
                raise ParseError(
                    summary, f"{what} {theirs:g} ms stated, {mine:.3f} ms in {trace_path.name}", kernel.line
                )
        if abs(trace.gops[name] - kernel.workload_gop) > 0.0056:
            raise ParseError(
                summary, f"{kernel.workload_gop:g} GOP stated, {trace.gops[name]:g} in {trace_path.name}", kernel.line
            )


def _compare_meta(folder: Path, meta: dict[str, Any], trace: Trace, trace_path: Path) -> None:
    kernels = meta.get("kernel", [])
    if kernels and not set(trace.durations) <= set(kernels):
        raise ParseError(folder / META, f"names the kernels {', '.join(map(str, kernels))}, which are not in the trace")
    pid = _read_json(folder / XRT).get("generation", {}).get("PID")
    if pid is not None and "PID" in trace.header and pid != trace.header["PID"]:
        raise ParseError(folder / XRT, f"is of process {pid}, {trace_path.name} of process {trace.header['PID']}")


def _latency(kernels: list[Kernel], trace: Trace, trace_path: Path) -> Cost:
    """An inference runs every subgraph once: the median of the sums over the DPU's, plus the CPU's averages."""
    sizes = {len(times) for times in trace.durations.values()}
    if len(sizes) > 1:
        raise ParseError(trace_path, f"subgraphs of one model ran {min(sizes)} to {max(sizes)} times: runs are missing")
    cost = median_cost(np.sum(list(trace.durations.values()), axis=0))
    cpu = sum(k.average_ms for k in kernels if not k.on_dpu)
    return Cost(cost.value + cpu, cost.low + cpu, cost.high + cpu, cost.n, cost.verdict)


def _mean(kernels: list[Kernel]) -> float:
    return sum(k.average_ms for k in kernels)


def _details(kernels: list[Kernel], trace: Trace) -> tuple[dict[str, Any], list[str]]:
    dpu = [k for k in kernels if k.on_dpu]
    flags = [] if kernels else ["no_summary"]
    details: dict[str, Any] = {"dpu_subgraphs": len(trace.durations), "cpu_subgraphs": len(kernels) - len(dpu)}
    if len(dpu) < len(kernels):
        flags.append("cpu_subgraphs")
    if dpu:
        hardware_ms = sum(1000 * k.memory_mib / k.bandwidth_mib_s for k in dpu if k.bandwidth_mib_s)
        details |= {
            "workload_gop": sum(k.workload_gop for k in dpu),
            "ddr_mib": sum(k.memory_mib for k in dpu),
            "hardware_ms": hardware_ms,
            "dpu_efficiency_percent": sum(k.efficiency_percent * k.average_ms for k in dpu) / _mean(dpu),
            "mean_ms": _mean(kernels),
        }
    return details, flags


def _bandwidth(path: Path) -> dict[str, float]:
    """DDR traffic of `vitis_ai_profile.csv` in MB/s, the median over the busier half of its samples."""
    if not path.is_file():
        return {}
    lines = read_lines(path)
    if lines[-1] or "DDR Bandwidth" not in lines:
        raise ParseError(path, "cut short: the section `DDR Bandwidth` is missing or its last line has no end")
    start = lines.index("DDR Bandwidth") + 1
    header = lines[start].rstrip(",").split(",") if start < len(lines) else []
    if header[:1] != ["timestamp"] or len(set(header)) != len(header) or not all(map(_PORT.fullmatch, header[1:])):
        raise ParseError(path, "the columns are not `timestamp` and the ports' reads and writes", start + 1)
    rows: list[list[float]] = []
    for n, line in enumerate(lines[start + 1 : -1], start + 2):
        if not line.strip():
            continue
        where = Where(path, n)
        cells = where.cells(line.rstrip(","), ",", len(header))
        rows.append([where.number(cell, name) for cell, name in zip(cells, header, strict=True)])
        if len(rows) > 1 and rows[-1][0] >= rows[-2][0]:
            where.refuse("samples run from the newest to the oldest; these two do not")
    if not rows:
        return {}
    samples = np.array(rows)
    result = {}
    for kind in ("Read", "Write"):
        total = samples[:, [name.endswith(kind) for name in header]].sum(axis=1)
        result[f"ddr_{kind.lower()}_mb_s"] = float(np.median(total[total >= np.median(total)]))
    return result


def _checksum(path: Path) -> str:
    if not path.is_file():
        return ""
    words = read_lines(path)[0].split()
    digest = words[0].lower() if words else ""
    if len(digest) != 32 or any(c not in "0123456789abcdef" for c in digest):
        raise ParseError(path, f"{digest!r} is no MD5 checksum", 1)
    return digest


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
