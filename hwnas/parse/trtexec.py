"""TensorRT's `trtexec`: its text, and the JSON of --exportTimes, --exportProfile and --exportLayerInfo."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Part, Reading, Record, median_cost, parsers, read_lines
from hwnas.parse.family import Family, model_name
from hwnas.parse.where import Where, line_of, read_array, read_object

_METRICS = ("Latency", "End-to-End Host Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")
_METRIC = re.compile(rf"(?:^|\] )({'|'.join(_METRICS)}): (min = .*)")
_STATISTIC = re.compile(r"(min|max|mean|median|percentile\(\d+(?:\.\d+)?%\)) = (\S+) ms")
_FIGURES = {
    "throughput": r"Throughput: (\S+) qps\b",
    "warmups": r"Warmup completed (\S+) queries",
    "queries": r"Timing trace has (\S+) queries",
    "trace_s": r"Timing trace has \S+ queries over (\S+) s\b",
    "wall_s": r"Total Host Walltime: (\S+) s\b",
    "compute_s": r"Total GPU Compute Time: (\S+) s\b",
}
_TEXTS = {
    "model": r"\] Model: (\S.*)",
    "loaded": r"\] Load engine: (\S.*)",
    "saved": r"\] Save engine: (\S.*)",
    "batch": r"\] Batch: (\S+)",
    "default_shape": r"Automatically overriding shape to: (\S+)",
    "device": r"Selected Device: (.+)",
    "precision": r"\] Precision: (.+)",
    "dimensions": r"[Ii]nput binding for .* with dimensions (\d{1,9}(?:x\d{1,9})*)",
    "graphs": r"\] CUDA Graph: (Enabled|Disabled)",
    "no_graphs": r"(--useCudaGraph flag has been ignored)",
    "dla": r"\] DLACore: (\d.*)",
    "streams": r"\] (?:Inference )?Streams: (\d{1,6})",
}
_NEEDED = frozenset(("throughput", "queries", "wall_s", "compute_s"))
_PRECISIONS = ("fp4", "int4", "int8", "fp8", "fp16", "bf16")
_TIME_KEYS = ("h2d", "compute", "d2h")


@dataclass
class Log:
    """What the text says: figures, statistics of each metric in ms, and the settings."""

    path: Path
    line: int = 1
    version: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> Where:
        return Where(self.path, self.line)

    @property
    def images(self) -> int:
        """What --batch states: `queries`, `warmups` and `throughput` count so many for each inference."""
        batch = self.texts.get("batch", "Explicit")
        return 1 if batch == "Explicit" else self.where.count(batch, "Batch")

    @property
    def queries(self) -> int:
        """Timed inferences; 0 where the log does not say."""
        return int(self.figures.get("queries", 0)) // self.images

    @property
    def batch(self) -> int | None:
        """Images in one inference: of --batch for engines without that dimension, else the input's first side."""
        sides = self.texts.get("dimensions", "").split("x")
        if self.images > 1 or (self.texts.get("batch", "Explicit") != "Explicit" and len(sides) == 3):
            return self.images
        return self.where.count(sides[0], "the first dimension") if len(sides) > 1 else None

    @property
    def precision(self) -> str | None:
        """What was asked of the builder; of an engine that was loaded only flags that go beyond the default say it."""
        stated = re.split(r"[+ (]", self.texts.get("precision", "").lower())
        built = "fp32" if "fp32" in stated and "loaded" not in self.texts else None
        return next((p for p in _PRECISIONS if p in stated), built)

    @property
    def graphs(self) -> bool | None:
        """Whether CUDA graphs were launched: asked for, and captured."""
        return self.texts["graphs"] == "Enabled" and "no_graphs" not in self.texts if "graphs" in self.texts else None


@parsers.register("trtexec")
class Trtexec(Family):
    """The latency is the GPU compute time of a query: copies between host and device are in the details.

    It is the median of the exported times, else as printed, else the sum of the profile's layers.
    """

    def part(self, head: bytes) -> str | None:
        if re.match(rb"\s*\[\s*[{\]]", head):
            if b'"startComputeMs"' in head or b'"computeMs"' in head:
                return "times"
            return "profile" if b'"count"' in head and b'"timeMs"' in head else None
        if head.lstrip()[:1] == b"{":
            return "layers" if b'"Layers"' in head else None
        return "log" if b"TensorRT.trtexec" in head or b"] === Model Options ===" in head else None

    def combine(self, name: str, parts: Mapping[str, Path]) -> Reading:
        log = read_log(parts["log"]) if "log" in parts else None
        times = read_times(parts["times"]) if "times" in parts else None
        layers, runs = _read_profile(parts["profile"]) if "profile" in parts else ((), 0)
        if "layers" in parts:
            layers = _with_kinds(parts["layers"], layers)
        if log is not None and times is not None:
            times = _compare(log, times, parts["times"])
        source = next(parts[part] for part in ("times", "log", "profile", "layers") if part in parts)
        cost, flags = _cost(log, times, layers, runs)
        record = Record(
            subject=_subject(log) or name,
            source=source,
            costs={"latency_ms": cost} if cost else {},
            runtime="tensorrt-dla" if log is not None and "dla" in log.texts else "tensorrt",
            details=_details(log, layers, runs),
            flags=(*flags, *_doubts(log)),
            parts=layers,
            **_settings(log),
        )
        return Reading((record,), source)


def _cost(
    log: Log | None, times: NDArray[np.float64] | None, layers: tuple[Part, ...], runs: int
) -> tuple[Cost | None, tuple[str, ...]]:
    if times is not None:
        return median_cost(times), () if log else ("warm_up_included",)
    if log is not None:
        return Cost(log.metrics["GPU Compute Time"]["median"], n=log.queries), ()
    if runs:
        return Cost(sum(layer.latency_ms for layer in layers), n=runs), ("sum_of_layers", "mean_only")
    return None, ("no_times",)


def _doubts(log: Log | None) -> tuple[str, ...]:
    """Several inferences at a time (`concurrent`); 1 taken for sizes that the model leaves open (`default_shape`)."""
    texts = log.texts if log else {}
    streams = ("concurrent",) if texts.get("streams", "1") != "1" else ()
    return (*streams, "default_shape") if "default_shape" in texts else streams


def _subject(log: Log | None) -> str:
    found = (log.texts[name] for name in ("model", "loaded", "saved") if name in log.texts) if log else ()
    return model_name(next(iter(found), ""))


def _details(log: Log | None, layers: tuple[Part, ...], runs: int) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if log is not None:
        names = {"Latency": "host_latency_ms", "Enqueue Time": "enqueue_ms", "H2D Latency": "h2d_ms"}
        names["D2H Latency"] = "d2h_ms"
        details = {name: log.metrics[m]["median"] for m, name in names.items() if m in log.metrics}
        details["mean_ms"] = log.metrics["GPU Compute Time"]["mean"]
        details["queries_per_s"] = log.figures["throughput"] / log.images
        details |= {"streams": int(log.texts["streams"])} if log.texts.get("streams", "1") != "1" else {}
    if layers:
        details["layers"] = len(layers)
    if runs:
        details["layers_ms"] = sum(layer.latency_ms for layer in layers)
    return details


def _settings(log: Log | None) -> dict[str, Any]:
    if log is None:
        return {}
    return {
        "device": log.texts.get("device", ""),
        "runtime_version": log.version,
        "precision": log.precision,
        "batch": log.batch,
        "threads": 0,
        "graphs": log.graphs,
    }


def read_log(path: Path) -> Log:
    """The text of one run; raises `ParseError` where it is cut short, failed, or contradicts itself."""
    lines = read_lines(path)
    log = Log(path)
    for n, line in enumerate(lines, 1):
        if "&&&& FAILED" in line:
            Where(path, n).refuse("trtexec failed: nothing was measured")
        _read_line(log, Where(path, n), line)
    started = any("&&&& RUNNING" in line for line in lines)
    if started and not any("&&&& PASSED" in line for line in lines):
        raise ParseError(path, "does not end in `&&&& PASSED`: the log is cut short", len(lines))
    if "GPU Compute Time" not in log.metrics or not log.figures.keys() >= _NEEDED:
        raise ParseError(
            path, "has no whole performance summary (of TensorRT 8.2 or newer): cut short, or nothing ran", len(lines)
        )
    _check(log)
    return log


def _read_line(log: Log, where: Where, line: str) -> None:
    if match := _METRIC.search(line):
        statistics = _STATISTIC.findall(match[2])
        values = {key: where.number(value, f"{match[1]} {key}") for key, value in statistics}
        if (
            match[1] in log.metrics
            or len(values) < len(statistics)
            or not {"min", "max", "mean", "median"} <= set(values)
        ):
            where.refuse(f"{match[1]} stands twice, or lacks its minimum, maximum, mean or median")
        log.metrics[match[1]] = values
        log.line = where.line or 1
        shares = {float(key[11:-2]): value for key, value in values.items() if key.startswith("percentile")}
        middle = sorted(({50.0: values["median"]} | shares).items())
        where.rising(match[1], values["min"], *(value for _, value in middle), values["max"])
        where.rising(f"mean {match[1]}", values["min"], values["mean"], values["max"])
    for name, pattern in _FIGURES.items():
        if match := re.search(pattern, line):
            where.once(log.figures, name, where.number(match[1], name))
    for name, pattern in _TEXTS.items():
        if match := re.search(pattern, line):
            log.texts.setdefault(name, match[1].strip())
    if match := re.search(r"TensorRT\.trtexec \[TensorRT v(\d{2,9}(?:\.\d{1,9})*)\]", line):
        log.version = _version(match[1])


def _version(text: str) -> str:
    """Major and minor of `8205` (8.2.5), `100300` (10.3.0) or `11.1.0.106`."""
    if "." in text:
        return ".".join(text.split(".")[:2])
    return f"{int(text[:-4])}.{int(text[-4:-2])}" if len(text) > 4 else f"{text[0]}.{text[1:2] or 0}"


def _check(log: Log) -> None:
    """Refuse a total that is not its parts, a rate that is not its count over its time."""
    f, m, where = log.figures, log.metrics, log.where
    if f.get("queries", 0) % log.images:
        where.refuse(f"{f['queries']:g} queries are no multiple of the batch of {log.images}")
    if f.get("queries") and f.get("wall_s"):
        where.agree("throughput", f["throughput"], f["queries"] / f["wall_s"], 1e-3)
    if f.get("trace_s") and f.get("wall_s"):
        where.agree("wall time", f["wall_s"], f["trace_s"])
    parts = ("H2D Latency", "GPU Compute Time", "D2H Latency")
    if "Latency" in m and all(part in m for part in parts):
        where.agree("mean latency", m["Latency"]["mean"], sum(m[part]["mean"] for part in parts), 1e-3)
    if f.get("queries") and "compute_s" in f:
        where.agree("total GPU compute time", f["compute_s"], m["GPU Compute Time"]["mean"] * log.queries / 1e3, 1e-3)


def read_times(path: Path) -> NDArray[np.float64]:
    """GPU milliseconds of each query of --exportTimes; raises `ParseError` where an entry contradicts itself.

    Queries stand in the order in which they began, with a transfer where there is one: those of several streams
    overtake each other on the way to the GPU.
    """
    computes: list[float] = []
    before = begun_before = -np.inf
    for where, entry in read_array(path):
        start, end = (
            where.number(where.field(entry, f"{side}ComputeMs"), f"{side}ComputeMs") for side in ("start", "end")
        )
        rounding = 2e-5 * end + 1e-6
        begun = where.number(entry["startH2dMs"], "startH2dMs") if "startH2dMs" in entry else start
        if end < start or begun < begun_before - rounding:
            where.refuse("a query ends before it starts, or starts before the one before it: not in order, or doubled")
        taken = where.number(entry["computeMs"], "computeMs") if "computeMs" in entry else end - start
        where.agree("computeMs", taken, end - start, absolute=rounding)
        if "latencyMs" in entry and all(f"{key}Ms" in entry for key in _TIME_KEYS):
            total = sum(where.number(entry[f"{key}Ms"], f"{key}Ms") for key in _TIME_KEYS)
            where.agree("latencyMs", where.number(entry["latencyMs"], "latencyMs"), total)
        if start == before and computes[-1] > _printed_step(start):
            where.refuse("two queries start at one time: lines are doubled")
        before, begun_before = start, begun
        computes.append(taken)
    if not computes:
        raise ParseError(path, "holds no query", 1)
    return np.array(computes)


def _printed_step(milliseconds: float) -> float:
    """By how much two printed times differ at least: they have six digits, so that late ones are coarse."""
    return float(10.0 ** (np.floor(np.log10(milliseconds)) - 5)) if milliseconds > 0 else 0.0


def _compare(log: Log, times: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """The times after the warm-up, as many as the log says; refuse times of another run."""
    n = log.queries if "queries" in log.figures else len(times)
    where = Where(path)
    warm = int(log.figures.get("warmups", 0)) // log.images
    if n < 1 or len(times) not in (n, n + warm):
        found = f"holds {len(times)} queries, {log.path.name} states {n} after a warm-up of {warm}"
        where.refuse(f"{found}: lines are missing or doubled")
    timed = times[len(times) - n :]
    stated = log.metrics["GPU Compute Time"]
    for name, value in (
        ("mean", timed.mean()),
        ("median", np.median(timed)),
        ("min", timed.min()),
        ("max", timed.max()),
    ):
        where.agree(f"{name} GPU compute time", stated[name], float(value), 1e-3, 1e-3)
    return timed


def _read_profile(path: Path) -> tuple[tuple[Part, ...], int]:
    """Layers of --exportProfile with their mean times, and the number of runs."""
    (first, head), *rows = read_array(path) or [(Where(path, 1), {})]
    runs = first.count(first.field(head, "count"), "count")
    layers = []
    totals = []
    for where, entry in rows:
        total = where.number(where.field(entry, "timeMs"), "timeMs")
        mean = where.number(where.field(entry, "averageMs"), "averageMs")
        where.agree("averageMs", mean, total / runs, absolute=1e-9)
        totals.append((where, total, entry.get("percentage")))
        layers.append(Part(str(where.field(entry, "name")), "", mean, runs))
    whole = sum(total for _, total, _ in totals)
    for where, total, percentage in totals:
        if percentage is not None:
            where.agree("percentage", where.number(percentage, "percentage"), 100 * total / whole if whole else 0, 1e-3)
    if not layers:
        raise ParseError(path, "holds no layer", first.line)
    return tuple(layers), runs


def _with_kinds(path: Path, layers: tuple[Part, ...]) -> tuple[Part, ...]:
    """`layers` with the kinds that --exportLayerInfo gives; the layers of the file itself where there are none."""
    where = line_of(path, '"Layers"')
    kinds: dict[str, str] = {}
    for entry in where.items(where.field(read_object(path), "Layers"), "Layers"):
        name = entry if isinstance(entry, str) else str(where.field(entry, "Name"))
        kinds[name] = str(entry.get("LayerType", "")) if isinstance(entry, dict) else ""
    unknown = [layer.name for layer in layers if layer.name not in kinds]
    if unknown:
        where.refuse(
            f"has no layer {unknown[0][:80]!r}, which the profile has: of another engine, or lines are missing"
        )
    if not layers:
        return tuple(Part(name, kind, float("nan")) for name, kind in kinds.items())
    return tuple(Part(p.name, kinds[p.name], p.latency_ms, p.n) for p in layers)
