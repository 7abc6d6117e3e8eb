"""Readers of power logs: the multi_dpu family, hwnas's own sampler, and Kria's platformstats."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import ParseError
from hwnas.parse.base import Reader, Reading, Record, parsers, read_lines
from hwnas.parse.power import PowerLog, Window, increasing
from hwnas.parse.where import Where

GROUPS = {
    "PS mW": ("VCCPSINTFP", "VCCPSINTLP", "VCCPSAUX", "VCCPSPLL", "VCCPSDDR", "VCCPSDDRPLL"),
    "PL mW": ("VCCINT", "VCCBRAM", "VCCAUX", "VCC1V2", "VCC3V3"),
    "MGT mW": ("MGTRAVCC", "MGTRAVTT", "MGTAVCC", "MGTAVTT"),
}
CURRENTS, VOLTAGES, TIME = ".raw_currents", ".raw_voltages", ".time"


@parsers.register("multi-dpu-power")
class MultiDpuPower(Reader):
    """Four files: `NAME.csv` (totals), `.raw_currents`, `.raw_voltages` (the rails), `.time` (the run; absent if idle).

    Power is summed from the raw rails, each once: the totals count VCC3V3 twice, under PL and under MGT. A rail whose
    current never rises above zero (VCCOPS reads a constant offset) carries nothing.
    """

    def matches(self, path: Path, head: bytes) -> bool:
        return head.startswith(b"Sample;Timestamp;") or head.startswith(b"Start(sec);End(sec)")

    def files(self, path: Path) -> tuple[Path, ...]:
        base = _base(path)
        family = (base, *(base.with_name(base.name + suffix) for suffix in (CURRENTS, VOLTAGES, TIME)))
        return tuple(file for file in family if file.is_file())

    def read(self, path: Path) -> Reading:
        base = _base(path)
        currents, voltages = (base.with_name(base.name + suffix) for suffix in (CURRENTS, VOLTAGES))
        for file in (base, currents, voltages):
            if not file.is_file():
                raise ParseError(path, f"{file.name} is missing beside it; a run is NAME.csv with its raw rails")
        totals = _semicolons(base)
        amps, volts = _semicolons(currents), _semicolons(voltages)
        for file, columns in ((currents, amps), (voltages, volts)):
            if not np.array_equal(columns["Timestamp"], totals["Timestamp"]):
                raise ParseError(
                    file, f"its samples are not those of {base.name}: files of different runs, or cut short"
                )
        rails = _rails(currents, amps, volts)
        _check_totals(base, totals, rails)
        log = PowerLog(base, increasing(base, list(totals["Timestamp"]), 2), rails, _window(base))
        return Reading(log.records(), base)


def _base(path: Path) -> Path:
    for suffix in (CURRENTS, VOLTAGES, TIME):
        if path.name.endswith(suffix):
            return path.with_name(path.name.removesuffix(suffix))
    return path


def _semicolons(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of a semicolon-separated file of numbers; raises `ParseError`."""
    lines = read_lines(path)
    header = lines[0].split(";")
    if header[:2] != ["Sample", "Timestamp"] or len(set(header)) != len(header) or len(header) < 3:
        raise ParseError(path, "the header is not `Sample;Timestamp;...` with distinct columns", 1)
    if lines[-1]:
        raise ParseError(path, "the last line has no end: the file is cut short", len(lines))
    rows = []
    for n, line in enumerate(lines[1:-1], 2):
        where = Where(path, n)
        cells = where.cells(line, ";", len(header))
        rows.append([where.number(cell, name, -1e12) for cell, name in zip(cells, header, strict=True)])
        if rows[-1][0] != n - 2:
            where.refuse(f"sample {rows[-1][0]:g} stands where {n - 2} belongs: lines are missing")
    columns = np.array(rows).reshape(len(rows), len(header)).T
    return dict(zip(header, columns, strict=True))


def _rails(path: Path, amps: dict[str, NDArray[np.float64]], volts: dict[str, NDArray[np.float64]]) -> Any:
    rails = {}
    for column, milliamps in amps.items():
        name, _, unit = column.rpartition(" ")
        if unit == "mA":
            if f"{name} mV" not in volts:
                raise ParseError(path, f"rail {name} has a current but no voltage", 1)
            if milliamps.max() > 0:
                rails[name] = np.maximum(milliamps, 0) * volts[f"{name} mV"] / 1e3
    if not rails:
        raise ParseError(path, "no rail carries a current", 1)
    return rails


def _check_totals(path: Path, totals: dict[str, NDArray[np.float64]], rails: dict[str, NDArray[np.float64]]) -> None:
    """Refuse totals that are not the sums of their rails (MGT's own, or with VCC3V3 counted again)."""
    for column, names in GROUPS.items():
        if column not in totals or not set(names) & set(rails):
            continue
        total = sum(rails[name] for name in names if name in rails)
        again = total + rails.get("VCC3V3", 0) if column == "MGT mW" else total
        off = np.minimum(abs(totals[column] - total), abs(totals[column] - again))
        worst = int(np.argmax(off))
        if off[worst] > 0.01 * totals[column][worst] + 2:
            raise ParseError(
                path,
                f"{column} is {totals[column][worst]:g}, its rails sum to {np.asarray(total)[worst]:.3f}",
                worst + 2,
            )
    parts = [totals[column] for column in GROUPS if column in totals]
    if "Total mW" in totals and len(parts) == len(GROUPS):
        off = abs(totals["Total mW"] - np.sum(parts, axis=0))
        if off.max() > 1:
            raise ParseError(path, "Total mW is not the sum of PS, PL and MGT", int(np.argmax(off)) + 2)


def _window(base: Path) -> tuple[Window, ...]:
    path = base.with_name(base.name + TIME)
    if not path.is_file():
        return ()
    lines = read_lines(path)
    cells = lines[1].split(";") if len(lines) > 1 else []
    if lines[0] != "Start(sec);End(sec)" or len(cells) != 2:
        raise ParseError(path, "expected the header `Start(sec);End(sec)` and one line of two times", len(lines))
    start, end = (Where(path, 2).number(cell, what) for cell, what in zip(cells, ("start", "end"), strict=True))
    if len({len(cell.strip().partition(".")[2]) for cell in cells}) > 1:
        raise ParseError(path, "start and end are not written alike: one of them is cut short", 2)
    return (Window(base.stem, start, end),)


@parsers.register("hwnas-power")
class HwnasPower(Reader):
    """JSON lines of the sampler in a bundle: a header, samples of power by rail, start and stop marks, an end."""

    def matches(self, path: Path, head: bytes) -> bool:
        return head.startswith(b'{"format": "hwnas-power"')

    def read(self, path: Path) -> Reading:
        entries = [(n, _object(path, n, line)) for n, line in enumerate(read_lines(path), 1) if line]
        rails = entries[0][1].get("rails")
        if entries[0][1].get("version") != 1 or not isinstance(rails, list) or not rails:
            raise ParseError(path, "not a power log of version 1 with a list of rails", 1)
        samples = [(n, e) for n, e in entries if "mw" in e]
        if entries[-1][1].get("end") != len(samples):
            raise ParseError(path, "no end mark with the number of samples: the log is cut short", entries[-1][0])
        times, values = [], []
        for n, entry in samples:
            where, row = Where(path, n), entry["mw"]
            if not isinstance(row, list) or len(row) != len(rails):
                where.refuse(f"{len(rails)} rails expected in a sample")
            times.append(where.number(entry.get("t"), "t"))
            values.append([where.number(cell, str(rail)) for cell, rail in zip(row, rails, strict=True)])
        columns = np.array(values).reshape(len(values), len(rails)).T
        marks = [(n, e) for n, e in entries if "mark" in e]
        log = PowerLog(
            path, increasing(path, times, 2), dict(zip(map(str, rails), columns, strict=True)), _marks(path, marks)
        )
        return Reading(log.records(), path)


def _object(path: Path, n: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ParseError(path, f"not a line of JSON ({error})", n) from error
    if not isinstance(value, dict):
        raise ParseError(path, "a JSON object is expected on each line", n)
    return value


def _marks(path: Path, marks: list[tuple[int, dict[str, Any]]]) -> tuple[Window, ...]:
    windows = []
    running: dict[str, float] = {}
    for n, mark in marks:
        model, time = str(mark.get("model")), Where(path, n).number(mark.get("t"), "t")
        if mark["mark"] == "start":
            if running:
                raise ParseError(path, f"{model} starts while {', '.join(running)} is running", n)
            running[model] = time
        elif mark["mark"] == "stop" and model in running:
            inferences = mark.get("inferences")
            if inferences is not None and (not isinstance(inferences, int) or inferences < 1):
                raise ParseError(path, f"inferences is {inferences!r}", n)
            windows.append(Window(model, running.pop(model), time, inferences, str(mark.get("md5") or "")))
        else:
            raise ParseError(path, f"the mark {mark['mark']!r} of {model} has no start before it", n)
    if running:
        raise ParseError(path, f"{', '.join(running)} never stops: the log is cut short", marks[-1][0])
    return tuple(windows)


@parsers.register("kria-platformstats")
class KriaPlatformstats(Reader):
    """Answers of `xmutil xlnx_platformstats -p`, one after another, each after a line of seconds (`date +%s.%N`)."""

    _POWER = re.compile(r"SOM total (power|current|voltage)\s*:\s*(\d+)\s*(mW|mA|mV)\s*$")

    def matches(self, path: Path, head: bytes) -> bool:
        return b"SOM total power" in head

    def read(self, path: Path) -> Reading:
        times: list[float] = []
        answers: list[dict[str, float]] = []
        for n, line in enumerate(read_lines(path), 1):
            if re.fullmatch(r"\d+(\.\d+)?", line.strip()):
                times.append(Where(path, n).number(line, "time"))
            elif match := self._POWER.search(line):
                if match[1] == "power":
                    answers.append({})
                if not answers or match[1] in answers[-1]:
                    raise ParseError(path, f"SOM total {match[1]} stands outside an answer", n)
                answers[-1][match[1]] = Where(path, n).number(match[2], match[1])
                _check_answer(path, n, answers[-1])
            elif "SOM total" in line:
                raise ParseError(path, f"not readable: {line.strip()!r}", n)
        if any(set(answer) != set(answers[0]) for answer in answers):
            raise ParseError(path, "an answer lacks power, current or voltage: the log is cut short")
        if not answers:
            raise ParseError(path, "holds no answer of xlnx_platformstats", 1)
        power = np.array([answer["power"] for answer in answers])
        if not times:
            details = {"mean_power_mw": float(power.mean()), "samples": len(power)}
            return Reading((Record(path.stem, path, {}, details=details, flags=("no_timestamps",)),), path)
        if len(times) != len(power):
            raise ParseError(path, f"{len(times)} times and {len(power)} powers: the log is cut short")
        return Reading(PowerLog(path, increasing(path, times, 1), {"SOM": power}).records(), path)


def _check_answer(path: Path, n: int, answer: dict[str, float]) -> None:
    if len(answer) == 3:
        product = answer["current"] * answer["voltage"] / 1e3
        if abs(product - answer["power"]) > 0.1 * product + 50:
            raise ParseError(path, f"{answer['power']:g} mW contradicts current times voltage, {product:.0f} mW", n)
