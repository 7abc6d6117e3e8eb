"""The metrics of a run beyond latency: what is asked for, what can be measured here, and the files that result.

Every such metric takes one way: a worker (or an external meter's log) gives readings, the store keeps them, their
median and interval are the measurement, and that is a group of columns in the table and in the networks' file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hwnas.core.errors import InputError, UnavailableError, UnknownNameError
from hwnas.core.files import replacing
from hwnas.core.progress import say
from hwnas.core.table import Cost
from hwnas.core.target import Target
from hwnas.core.units import ENERGY as ENERGY_MJ
from hwnas.core.units import LATENCY
from hwnas.profile.backends import Settings
from hwnas.profile.history import Effort, History
from hwnas.profile.memory import MEASURED_MEMORY, MEMORY
from hwnas.profile.meters import ABOVE_IDLE, ENERGY, POWER_LOG, WINDOW, Metering, Span, energy_readings, find_meter
from hwnas.profile.power import MeterLog, uncovered
from hwnas.profile.stats import Measurement
from hwnas.profile.store import Store
from hwnas.profile.subject import Subject

COLUMNS = {LATENCY.name: (LATENCY.name,), ENERGY_MJ.name: (ENERGY, ABOVE_IDLE), MEMORY: (MEMORY, MEASURED_MEMORY)}
"""Metrics that can be asked for, and the columns of each: the first is always there, others where they have a value."""
WITHOUT = {
    ABOVE_IDLE: "no power above that at rest was read",
    MEASURED_MEMORY: "the runtime does not count memory on this device",
}
OF_COLUMN = {column: metric for metric, columns in COLUMNS.items() for column in columns}
"""The metric that has to be asked for to get each column."""
DEFAULT = (LATENCY.name, MEMORY)
LOG_WINDOW_S = 1.0
LONGEST_WINDOW_S = 60.0
SAMPLES_A_WINDOW = 25
GAP_SHARE = 0.1
STALE_S = 60.0
LATE_S = 3.0
LATE_STEP_S = 0.25

Found = Mapping[str, Mapping[Subject, Measurement]]
"""Measurements by column and subject."""


@dataclass(frozen=True)
class Plan:
    """What a campaign measures: metrics, effort, the external meter's log, and why a metric cannot be measured."""

    metrics: tuple[str, ...]
    effort: Effort
    log: Path | None = None
    unmeasurable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, metrics: Sequence[str], power_log: str | Path | None, settings: Settings, effort: Effort) -> Plan:
        """Raises `InputError` for an unknown metric, and where the log is not there or cannot be read."""
        for name in metrics:
            if name not in COLUMNS:
                raise UnknownNameError("metric", name, COLUMNS)
        effort = replace(effort, memory=MEMORY in metrics)
        if power_log is not None:
            log = MeterLog.load(power_log)
            if len(log.times_s) and abs(behind := time.time() - log.times_s[-1]) > STALE_S:
                when = f"{abs(behind):.0f} s {'ago' if behind > 0 else 'ahead'}"
                say(
                    f"{power_log}: its newest sample is of {when}; what is measured now gets an energy only if the log "
                    "grows meanwhile, on this machine's clock"
                )
            spacing = log.spacing_s
            window_s = LOG_WINDOW_S if math.isnan(spacing) else max(LOG_WINDOW_S, SAMPLES_A_WINDOW * spacing)
            if window_s > LONGEST_WINDOW_S:
                raise InputError(
                    f"{power_log}: {spacing:.3g} s from one sample to the next is too slow: a window of "
                    f"{SAMPLES_A_WINDOW} samples may last {LONGEST_WINDOW_S:g} s at most"
                )
            asked = (*metrics, ENERGY_MJ.name)
            return cls(asked, replace(effort, metering=Metering(POWER_LOG, window_s)), Path(power_log))
        asked = tuple(metrics)
        if settings.remote and ENERGY_MJ.name in asked:
            return cls(
                asked,
                effort,
                unmeasurable={ENERGY_MJ.name: "a board's energy is read by an external meter; give its --power-log"},
            )
        if ENERGY_MJ.name not in asked:
            return cls(asked, effort)
        try:
            return cls(asked, replace(effort, metering=find_meter(settings)))
        except UnavailableError as error:
            return cls(asked, effort, unmeasurable={ENERGY_MJ.name: str(error)})

    def settle(self, store: Store, target: Target) -> dict[str, str]:
        """Read what the log has by now; returns why a metric is not measured, by metric."""
        late = read_log(store, target, self.log) if self.log else ""
        return self.unmeasurable | ({ENERGY_MJ.name: late} if late else {})


def read_log(store: Store, target: Target, path: Path) -> str:
    """Integrate a meter's log over the windows that wait for it; returns why some still do, empty where none does.

    Power at rest is that of the log while the worker rested before its windows; a window is left to wait, and measured
    again by the next call, where the samples do not cover it and its rest.
    """
    number = store.target(target)
    readings = store.readings(number)
    known = {(item, reading.started) for _, item, _, reading in readings if reading.metric == ENERGY}
    waiting = [
        (item, environment, reading)
        for _, item, environment, reading in readings
        if reading.metric == WINDOW and (item, reading.started) not in known
    ]
    if not waiting:
        return ""
    log = _latest(path, max(reading.started + reading.value for *_, reading in waiting))
    reason = ""
    for item, environment, reading in waiting:
        details, end = reading.details, reading.started + reading.value
        idle_from, idle_to = details["idle_started"], details["idle_started"] + details["idle_s"]
        why = uncovered(log.times_s, reading.started, end, "a window of inferences", GAP_SHARE) or uncovered(
            log.times_s, idle_from, idle_to, "the rest before the windows", GAP_SHARE
        )
        if why:
            reason = f"{path}: {why}"
            continue
        idle_w = log.joules(idle_from, idle_to) / details["idle_s"]
        window = Span(reading.started, reading.value, details["runs"], details["waited"])
        store.read(item, environment, energy_readings(window, log.joules(reading.started, end), idle_w, POWER_LOG))
    return reason


def _latest(path: Path, until: float) -> MeterLog:
    """The log once it reaches `until`, or has not for a while: a meter writes in pieces."""
    patience = time.monotonic() + LATE_S
    while True:
        log = MeterLog.load(path)
        if (len(log.times_s) and log.times_s[-1] >= until) or time.monotonic() > patience:
            return log
        time.sleep(LATE_STEP_S)


def collect(history: History, subjects: Iterable[Subject], metrics: Sequence[str], series: int, goal: float) -> Found:
    """Measurements of `subjects` by column; secondary columns without a single value are left out."""
    subjects, found = list(subjects), {}
    for metric in metrics:
        for column in COLUMNS[metric]:
            measured = history.measurements(subjects, series=series, goal=goal, metric=column)
            if column == metric or any(math.isfinite(each.median) for each in measured.values()):
                found[column] = measured
    return found


def left_out(found: Found, metrics: Sequence[str]) -> dict[str, str]:
    """Why columns of `metrics` are not in `found`."""
    return {column: WITHOUT[column] for metric in metrics for column in COLUMNS[metric] if column not in found}


def cost_rows(found: Found) -> dict[str, dict[str, Cost]]:
    """The rows of a cost table."""
    rows: dict[str, dict[str, Cost]] = {}
    for column, measured in found.items():
        for subject, m in measured.items():
            rows.setdefault(subject.name, {})[column] = Cost(m.median, m.low, m.high, m.n, m.verdict)
    return rows


def write_networks(path: Path, first: Found, again: Found) -> None:
    """The Parquet file of measured networks: of each column the value, interval, n, verdict and a second measurement.

    `latency_ms_observed` is the latency as it was seen, not corrected for drift.
    """
    import pyarrow
    from pyarrow import parquet

    subjects = list(first[LATENCY.name])
    columns: dict[str, list[Any]] = {"space": [s.space for s in subjects], "arch": [s.name for s in subjects]}
    types: dict[str, Any] = {}
    for name, measured in first.items():
        columns[name] = [measured[s].median for s in subjects]
        for part in ("low", "high", "n", "verdict", *(("observed",) if name == LATENCY.name else ())):
            columns[f"{name}_{part}"] = [getattr(measured[s], part) for s in subjects]
        columns[f"{name}_repeat"] = [again[name][s].median if name in again else math.nan for s in subjects]
        types |= dict.fromkeys((name, f"{name}_repeat"), pyarrow.float64())
    nothing = {name: [None if value != value else value for value in values] for name, values in columns.items()}
    arrays = {name: pyarrow.array(values, type=types.get(name)) for name, values in nothing.items()}
    with replacing(path) as temporary:
        parquet.write_table(pyarrow.table(arrays), temporary)
