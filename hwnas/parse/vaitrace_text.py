"""The table that `vaitrace` prints on the terminal: one row a subgraph, times as means."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Reader, Reading, Record, parsers, read_lines
from hwnas.parse.where import Where

COLUMNS = ("DPU Id", "Bat", "DPU SubGraph", "WL", "SW_RT", "HW_RT", "Effic", "LdWB", "LdFM", "StFM", "AvgBw")
FIGURES = ("Bat", *COLUMNS[3:])
NEGLIGIBLE = "~0"


@parsers.register("vaitrace-text")
class VaitraceText(Reader):
    """The latency is the sum of the software times (SW_RT, milliseconds) of the model's subgraphs, which are means."""

    def matches(self, path: Path, head: bytes) -> bool:
        return b"DPU SubGraph" in head and b"SW_RT" in head and b"|" in head

    def read(self, path: Path) -> Reading:
        rows = read_table(path)
        latency = sum(row["SW_RT"] for row in rows)
        hardware = sum(row["HW_RT"] for row in rows)
        details: dict[str, Any] = {
            "dpu_subgraphs": len(rows),
            "workload_gop": sum(row["WL"] for row in rows),
            "ddr_mib": sum(row["LdWB"] + row["LdFM"] + row["StFM"] for row in rows),
            "hardware_ms": hardware,
            "dpu_efficiency_percent": sum(row["Effic"] * row["HW_RT"] for row in rows) / hardware,
        }
        record = Record(
            subject=path.stem,
            source=path,
            costs={"latency_ms": Cost(latency)},
            runtime="vart",
            precision="int8",
            batch=int(rows[0]["Bat"]),
            details=details,
            flags=("mean_only",),
        )
        return Reading((record,), path)


def read_table(path: Path) -> list[dict[str, float]]:
    """The rows of the table, one a subgraph, `~0` as 0, the mean of the DPU cores that ran it; raises `ParseError`."""
    lines = read_lines(path)
    heads = [n for n, line in enumerate(lines) if "DPU SubGraph" in line and "SW_RT" in line]
    if len(heads) != 1:
        raise ParseError(path, f"{len(heads)} tables of subgraphs; one run of one model is expected")
    if tuple(_cells(lines[heads[0]])) != COLUMNS:
        raise ParseError(path, f"the columns are not {' | '.join(COLUMNS)}", heads[0] + 1)
    rows: list[dict[str, Any]] = []
    for n, line in enumerate(lines[heads[0] + 1 :], heads[0] + 2):
        if "|" not in line:
            if rows and not set(line.strip()) <= set("-+="):
                break
            continue
        if line in lines[heads[0] + 1 : n - 1]:
            raise ParseError(path, "a subgraph stands twice", n)
        rows.append(_row(Where(path, n), line))
    rest = [line.strip() for line in lines[heads[0] + 1 + len(rows) :]]
    closed = any(line and (set(line) <= set("-+=") or line.startswith("Notes")) for line in rest)
    if not rows or not closed:
        raise ParseError(path, "the table has no rows, or no end (a rule, notes): it is cut short", len(lines))
    _check_peak(path, rows, heads[0] + 2)
    return _over_cores(rows)


def _over_cores(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One row a subgraph; those that one core ran may share a name, which is cut where it is long."""
    seen: Counter[tuple[Any, ...]] = Counter()
    subgraphs: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        subgraph = row["DPU SubGraph"], row["Bat"], row["WL"]
        subgraphs[*subgraph, seen[row["DPU Id"], *subgraph]].append(row)
        seen[row["DPU Id"], *subgraph] += 1
    return [{name: sum(row[name] for row in cores) / len(cores) for name in FIGURES} for cores in subgraphs.values()]


def _check_peak(path: Path, rows: list[dict[str, Any]], line: int) -> None:
    """Workload over time and efficiency give the DPU's peak, which is the same for every row."""
    peaks = [row["WL"] / row["HW_RT"] / row["Effic"] for row in rows if row["WL"] >= 0.05 and row["Effic"] >= 1]
    if peaks and max(peaks) > 1.1 * min(peaks):
        raise ParseError(path, "WL, HW_RT and Effic of the rows contradict each other", line)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _row(where: Where, line: str) -> dict[str, Any]:
    cells = where.cells(line.strip().strip("|"), "|", len(COLUMNS))
    texts = dict(zip(COLUMNS, (cell.strip() for cell in cells), strict=True))
    row: dict[str, Any] = texts | {"Bat": where.count(texts["Bat"], "Bat")}
    for name in FIGURES[1:]:
        text = texts[name].removesuffix("%").replace(",", "").strip()
        row[name] = 0.0 if text == NEGLIGIBLE else where.number(text, name)
    if not 0 < row["HW_RT"] <= row["SW_RT"] * 1.01:
        where.refuse(f"HW_RT {row['HW_RT']:g} ms and SW_RT {row['SW_RT']:g} ms contradict each other")
    if row["Effic"] > 100:
        where.refuse(f"a DPU efficiency of {row['Effic']:g} % is impossible")
    moved, bandwidth = row["LdWB"] + row["LdFM"] + row["StFM"], row["AvgBw"]
    if bandwidth > 1 and moved > 0.1 and abs(1000 * moved / row["HW_RT"] / bandwidth - 1) > 0.1:
        where.refuse(f"AvgBw {bandwidth:g} MB/s contradicts {moved:g} MB in {row['HW_RT']:g} ms")
    return row
