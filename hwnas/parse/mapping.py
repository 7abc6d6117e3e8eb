"""Any CSV file by a mapping: which of its columns hold power over time, or a cost a row, and in which units."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import InputError, ParseError
from hwnas.core.table import Cost
from hwnas.core.units import ENERGY, LATENCY, MEMORY, quantity_of
from hwnas.parse.base import ColumnMapping, Reader, Reading, Record, read_lines
from hwnas.parse.power import PowerLog, Window, increasing
from hwnas.parse.where import Where

TARGET = ("device", "runtime", "precision", "batch", "threads")
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
MILLIWATTS = {"W": 1e3, "mW": 1.0, "uW": 1e-3}
MILLIJOULES = {"J": 1e3, "mJ": 1.0, "uJ": 1e-3}
MEBIBYTES = {
    "B": 2**-20,
    "kB": 1e3 * 2**-20,
    "KiB": 2**-10,
    "MB": 1e6 * 2**-20,
    "MiB": 1.0,
    "GB": 1e9 * 2**-20,
    "GiB": 2**10,
}
PREFIXES = {"": "", "milli": "m", "micro": "u", "nano": "n", "kilo": "k", "mega": "M", "giga": "G"}
WORDS = {
    **{f"{long}{word}": f"{short}s" for long, short in PREFIXES.items() for word in ("sec", "second")},
    **{
        f"{long}{word}": f"{short}{word[0].upper()}"
        for long, short in PREFIXES.items()
        for word in ("joule", "watt", "byte")
    },
    **{f"{short}sec": f"{short}s" for short in "mun"},
    **{f"{long}s": f"{PREFIXES[long]}s" for long in ("milli", "micro", "nano")},
    **{f"{short}bibyte": f"{short[0].upper()}iB" for short in ("ki", "me", "gi")},
}
"""Other ways to write a unit, in lower case and the singular."""


def _scales(metric: str) -> dict[str, float]:
    """Units that a column of `metric` may be in, and the factor to the metric's own."""
    milliseconds = {unit: 1e3 * factor for unit, factor in SECONDS.items()}
    return {LATENCY: milliseconds, ENERGY: MILLIJOULES, MEMORY: MEBIBYTES}.get(quantity_of(metric), {})


def _quantity_told(column: str) -> str | None:
    """The quantity whose unit `column` ends in, such as `latency_ms` of `time (us)`; None where it ends in none."""
    return next((q.name for q in (LATENCY, ENERGY, MEMORY) if _own_unit(column, _scales(q.name))), None)


class MappedColumns(Reader):
    """Any CSV file, its columns named by a `ColumnMapping`: power over time, or a cost a row."""

    def __init__(self, mapping: ColumnMapping) -> None:
        self.mapping = mapping
        if len(mapping.delimiter) != 1 or mapping.delimiter in '\r\n"':
            raise InputError(f"a column mapping's delimiter is {mapping.delimiter!r}, expected one character")
        if mapping.delimiter == mapping.decimal:
            raise InputError(
                f"{mapping.delimiter!r} cannot be both the delimiter and the decimal sign; state the delimiter"
            )
        if bool(mapping.rails) == bool(mapping.metrics):
            raise InputError("a column mapping names either `rails` (with `time`) or `metrics` (with `subject`)")
        if mapping.rails and (mapping.time is None or (mapping.start is None) != (mapping.end is None)):
            raise InputError("a mapping of rails names the column `time`, and both `start` and `end` or neither")
        if mapping.metrics and (mapping.start, mapping.end, mapping.inferences) != (None, None, None):
            raise InputError("`start`, `end` and `inferences` are of a mapping of rails; each row of metrics is a cost")
        used = [*mapping.rails.values(), *mapping.metrics.values(), *filter(None, (mapping.time, mapping.subject))]
        for name in used:
            if used.count(name) > 1:
                raise InputError(f"a column mapping uses the column {name!r} {used.count(name)} times")
        self.time_scale = SECONDS[_unit(mapping.time, "time_unit", mapping.time_unit, SECONDS)] if mapping.time else 1.0
        self.power_scales = {
            rail: MILLIWATTS[_unit(name, "power_unit", mapping.power_unit, MILLIWATTS)]
            for rail, name in mapping.rails.items()
        }
        if mapping.metrics and mapping.subject is None:
            raise InputError("a mapping of metrics names the column `subject`")
        for metric, name in mapping.metrics.items():
            if not quantity_of(metric).is_cost:
                raise InputError(f"{metric} is no cost, and only costs are read from the logs of a device")
            told = _quantity_told(name)
            if told not in (None, quantity_of(metric).name):
                raise InputError(f"the column {name!r} is a {told} by its name, not a {quantity_of(metric).name}")
        for metric, unit in mapping.metric_units.items():
            if metric not in mapping.metrics or unit not in _scales(metric):
                known = ", ".join(f"{m} in {'/'.join(_scales(m))}" for m in mapping.metrics if _scales(m))
                raise InputError(f"metric_units: {metric} in {unit!r} is unknown; known are {known or 'none'}")
        self.metric_scales = {metric: _metric_scale(mapping, metric) for metric in mapping.metrics}

    def matches(self, path: Path, head: bytes) -> bool:
        return path.suffix in (".csv", ".tsv")

    def read(self, path: Path) -> Reading:
        rows = self._rows(path)
        records = self._power(path, rows) if self.mapping.rails else self._costs(path, rows)
        return Reading(records, path)

    def _rows(self, path: Path) -> list[dict[str, str]]:
        lines = read_lines(path)
        reader = csv.DictReader(lines, delimiter=self.mapping.delimiter, strict=True)
        m = self.mapping
        wanted = [*m.rails.values(), *m.metrics.values(), *(c for c in (m.time, m.subject) if c is not None)]
        try:
            for name in {name for name in wanted if (reader.fieldnames or []).count(name) > 1}:
                raise ParseError(path, f"has the column {name!r} twice", 1)
            missing = [name for name in wanted if name not in (reader.fieldnames or [])]
            if missing:
                there = ", ".join(map(repr, reader.fieldnames or []))
                hint = f"; with the mapping's delimiter {m.delimiter!r} it has {there}"
                raise ParseError(path, f"has no column {', '.join(map(repr, missing))}{hint}", 1)
            rows = list(reader)
        except csv.Error as error:
            raise ParseError(path, f"not readable as CSV ({error})", reader.line_num) from error
        for n, row in enumerate(rows, 2):
            if None in row or None in row.values():
                raise ParseError(path, f"{len(reader.fieldnames or [])} cells expected", n)
        if not rows:
            raise ParseError(path, "has no rows", 1)
        return rows

    def _power(self, path: Path, rows: list[dict[str, str]]) -> tuple[Record, ...]:
        m = self.mapping
        scale = self.time_scale
        times = scale * self._column(path, rows, str(m.time))
        rails = {rail: self.power_scales[rail] * self._column(path, rows, name) for rail, name in m.rails.items()}
        window = (
            (Window(path.stem, scale * m.start, scale * m.end, m.inferences),)
            if m.start is not None and m.end is not None
            else ()
        )
        records = PowerLog(path, increasing(path, list(times), 2), rails, window).records()
        named = {name: value for name in TARGET if name in m.model_fields_set and (value := getattr(m, name))}
        return tuple(replace(record, **named) for record in records)

    def _costs(self, path: Path, rows: list[dict[str, str]]) -> tuple[Record, ...]:
        m = self.mapping
        scales = self.metric_scales
        shared: dict[str, Any] = {
            "device": m.device,
            "runtime": m.runtime,
            "precision": m.precision,
            "batch": m.batch,
            "threads": m.threads,
        }
        costs = {metric: scales[metric] * self._column(path, rows, name) for metric, name in m.metrics.items()}
        return tuple(
            Record(row[str(m.subject)], path, {metric: Cost(float(costs[metric][n])) for metric in costs}, **shared)
            for n, row in enumerate(rows)
        )

    def _column(self, path: Path, rows: list[dict[str, str]], name: str) -> NDArray[np.float64]:
        """The numbers of a column, the first row on line 2."""
        return np.array([self._number(Where(path, n), row[name], name) for n, row in enumerate(rows, 2)])

    def _number(self, where: Where, text: str, name: str) -> float:
        if self.mapping.decimal == ",":
            if "." in text:
                where.refuse(f"{name} is {text!r}, with a point though the mapping's decimal sign is a comma")
            text = text.replace(",", ".")
        return where.number(text, name)


def _metric_scale(mapping: ColumnMapping, metric: str) -> float:
    """The factor from the unit of a metric's column to the metric's own, which it has where nothing says another."""
    scales, column = _scales(metric), mapping.metrics[metric]
    if not scales:
        return 1.0
    own = None if column.endswith((")", "]")) else quantity_of(metric).unit  # what stands in brackets may be a unit
    return scales[_unit(column, "metric_units", mapping.metric_units.get(metric), scales, own)]


def _own_unit(column: str, known: Iterable[str]) -> str | None:
    """The one of the units `known` that a column's name ends in, such as `ms` in `Time (ms)`, `us` in `lat_usec`.

    Where it ends in none, the last one that stands in it as a symbol of two letters or more, as in `us/inference`.
    """
    words = re.findall(r"(?<!\d)[^\W\d_]+|[^\W\d_]{2,}", re.sub("[µμ]", "u", column))  # no `s` in `iPhone 6s`
    if not words:
        return None
    ending = re.sub(r"^.*?[a-z](?=[A-Z][a-z]*[A-Z]?$)", "", words[-1])  # `Us` of `latencyUs`
    symbols = [unit for unit in words if len(unit) > 1 and unit in known]
    return _as_unit(words[-1], known) or _as_unit(ending, known) or (symbols[-1] if symbols else None)


def _as_unit(word: str, known: Iterable[str]) -> str | None:
    """The one of the units `known` that `word` is, in any case and in the plural; one letter only as it is written."""
    if word in known:
        return word
    lower = word.lower()
    unit = WORDS.get(lower) or WORDS.get(lower.removesuffix("s")) or (word if len(word) > 1 else "")
    return next((each for each in known if each.lower() == unit.lower()), None)


def _unit(column: str, key: str, stated: str | None, known: Mapping[str, float], default: str | None = None) -> str:
    """The unit of `column`: as the mapping's `key` states it, or as the column's name ends, or the `default`.

    Raises `InputError` where there is none of these, or the first two contradict each other.
    """
    if stated is not None and stated not in known:
        raise InputError(f"{key} is {stated!r}, expected one of {', '.join(known)}")
    own = _own_unit(column, known)
    unit = stated or own or default
    if unit is None:
        raise InputError(f"a column mapping says in which unit {column!r} is: {key} is one of {', '.join(known)}")
    if own not in (None, unit):
        raise InputError(f"{key} is {stated}, but the column {column!r} says {own}; correct one of them")
    return unit
