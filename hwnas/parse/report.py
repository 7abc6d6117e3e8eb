"""`parse`: logs in, one cost table out, with a list of everything that is not in it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hwnas import __version__
from hwnas.core.bundle import MANIFEST
from hwnas.core.documents import records_file
from hwnas.core.errors import InputError, ParseError
from hwnas.core.files import write_text
from hwnas.core.progress import say
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.core.units import may_be_zero
from hwnas.parse.base import ColumnMapping, Reader, Reading, Record, parsers, read_head, refuse_binary
from hwnas.parse.device import FILE as DEVICE_FILE
from hwnas.parse.device import FORMAT as DEVICE_FORMAT
from hwnas.parse.family import by_base
from hwnas.parse.mapping import MappedColumns
from hwnas.parse.subjects import Subjects
from hwnas.spaces import SearchSpace

ARCHIVES = (".gz", ".tgz")
SETTINGS = {"precision", "batch", "threads", "graphs"}
STATED = ("device", "runtime", "runtime_version", *sorted(SETTINGS))
NOTHING: tuple[Any, ...] = (None, "", "unknown")
UNSTATED = {"threads": (*NOTHING, 0)}


@dataclass(frozen=True)
class Entry:
    """A record, and the primitive's key or the architecture that it is of; both None where it matches none."""

    record: Record
    primitive: str | None = None
    arch: str | None = None

    def to_json(self) -> dict[str, Any]:
        r = self.record
        row: dict[str, Any] = {"subject": r.subject, "primitive": self.primitive, "arch": self.arch}
        for metric, cost in r.costs.items():
            row |= {metric: cost.value, f"{metric}_low": cost.low, f"{metric}_high": cost.high, f"{metric}_n": cost.n}
        return _known(row) | dict(r.details) | {"device": r.device, "flags": " ".join(r.flags), "source": str(r.source)}


@dataclass(frozen=True)
class ParseReport:
    """What came of a parse.

    Attributes:
        table: costs of the primitives; None where no record is of one.
        entries: every record, matched or not.
        unread: files that no reader knows.
        refused: logs that cannot be trusted, with the reason; empty unless `keep_going` was asked for.
    """

    table: CostTable | None
    entries: tuple[Entry, ...]
    unread: tuple[Path, ...] = ()
    refused: tuple[ParseError, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def unmatched(self) -> tuple[Entry, ...]:
        """Records that are of no primitive of the space and of no network of a bundle."""
        return tuple(e for e in self.entries if e.primitive is None and e.arch is None)

    @property
    def without_latency(self) -> tuple[str, ...]:
        """Primitives and architectures of which only a throughput is known."""
        costs: dict[str, set[str]] = {}
        for entry in self.entries:
            costs.setdefault(entry.primitive or entry.arch or "", set()).update(entry.record.costs)
        found = (key for key, metrics in costs.items() if key and "throughput_ips" in metrics)
        return tuple(key for key in found if not any(metric.startswith("latency") for metric in costs[key]))

    def to_json(self) -> dict[str, Any]:
        return {
            "n_records": len(self.entries),
            "n_primitives": len(self.table.rows) if self.table else 0,
            "target": self.table.target.to_json() if self.table else None,
            "records": [
                entry.to_json() | ({"parts": _parts(entry.record)} if entry.record.parts else {})
                for entry in self.entries
            ],
            "unmatched": [entry.record.subject for entry in self.unmatched],
            "without_latency": list(self.without_latency),
            "unread": [str(path) for path in self.unread],
            "refused": [str(error) for error in self.refused],
        }

    def save(self, out: str | Path) -> list[Path]:
        """Write the cost table to `out` (.csv, with its manifest) and every record to `NAME.records.csv` beside it.

        Where logs tell nodes or layers apart, these go to `NAME.parts.csv`.
        """
        out = Path(out)
        if out.suffix != ".csv":
            raise InputError(f"{out}: the table is written as CSV; choose a name that ends in .csv")
        if self.table is None and out.exists():
            raise InputError(f"{out} is the table of other logs, and these give none; choose another --out")
        records = records_file(out)
        _write_rows(records, [entry.to_json() for entry in self.entries])
        written = [records]
        parts = [{"subject": e.record.subject, **part} for e in self.entries for part in _parts(e.record)]
        of_parts = out.with_name(f"{out.stem}.parts.csv")
        if parts:
            written.append(of_parts)
            _write_rows(of_parts, parts)
        else:
            of_parts.unlink(missing_ok=True)
        if self.table is None:
            return written
        self.table.save(out)
        return [out, out.with_suffix(".json"), *written]


def _parts(record: Record) -> list[dict[str, Any]]:
    return [_known(asdict(part)) for part in record.parts]


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with None for NaN, which neither JSON nor a cell of a CSV file can hold."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def parse(
    paths: Iterable[str | Path],
    format: str = "auto",
    space: SearchSpace | None = None,
    out: str | Path | None = None,
    mapping: ColumnMapping | None = None,
    keep_going: bool = False,
) -> ParseReport:
    """Read logs and write what they say as a cost table of origin `imported`.

    Args:
        paths: files and folders; folders are searched through.
        format: a registered format, or `auto`, which recognises each file from its content.
        space: the primitives that the table is to hold; every describable primitive where None.
        out: where to write the table (`ParseReport.save`); nothing is written where None.
        mapping: how to read CSV files that no reader knows.
        keep_going: list refused logs in the report instead of raising the first one's error.

    Raises `ParseError` (file and line) for logs that cannot be trusted or contradict each other, `InputError` for
    paths without logs.
    """
    paths = tuple(paths)
    files, manifests = _files(paths)
    named = frozenset(map(Path, paths))
    readings, unread, refused = _read_all(files, named, format, mapping)
    if refused and not keep_going:
        if len(refused) > 1:
            refused[0].args = (
                f"{refused[0]} (and {len(refused) - 1} more logs refused; --keep-going leaves them out)",
            )
        raise refused[0]
    if not readings:
        for path in unread:
            refuse_binary(path, read_head(path))
        names = ", ".join(map(str, paths))
        known = f"no log of the known formats ({', '.join(parsers)}), or damaged in its first lines"
        raise (
            refused[0]
            if refused
            else ParseError(names, f"{known}; other CSV files are read with a column mapping (--mapping)")
        )
    _check_devices(readings)
    subjects = Subjects(space, manifests)
    entries = []
    for record in (subjects.completed(record) for reading in readings for record in reading.records):
        primitive = subjects.find(record)
        entries.append(Entry(record, primitive.key if primitive else None, subjects.architecture(record)))
    _check_matched(entries, space)
    environment = _environment(readings)
    table = _table(entries, environment, space)
    report = ParseReport(table, tuple(entries), tuple(unread), tuple(refused), environment)
    if out is not None:
        report.save(out)
    return report


def _check_matched(entries: Sequence[Entry], space: SearchSpace | None) -> None:
    """Refuse logs of models none of which is of the space that the table is to be of."""
    timed = [entry.record for entry in entries if any(metric.startswith("latency") for metric in entry.record.costs)]
    if space is not None and timed and not any(entry.primitive or entry.arch for entry in entries):
        raise ParseError(
            timed[0].source,
            f"{timed[0].subject} is no primitive of {space.spec}, nor is any of the other {len(entries) - 1} records: "
            "leave logs inside their bundle, which says what its models are, and give the space that it was made for",
        )


def _files(paths: Iterable[str | Path]) -> tuple[list[Path], list[Path]]:
    """Every file to look at, named ones first, and the bundle manifests among them or above them."""
    files: list[Path] = []
    manifests: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"no log at {path}")
        found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files += [p for p in found if p.name != MANIFEST]
        manifests += [p for p in found if p.name == MANIFEST]
        manifests += [p / MANIFEST for p in path.resolve().parents[:3] if (p / MANIFEST).is_file()]
    return list(dict.fromkeys(files)), list(dict.fromkeys(manifests))


def _read_all(
    files: Sequence[Path], named: frozenset[Path], format: str, mapping: ColumnMapping | None
) -> tuple[list[Reading], list[Path], list[ParseError]]:
    """What the files hold, those that are no log, and why logs are refused; an archive beside the logs is no log."""
    readings: list[Reading] = []
    refused: list[ParseError] = []
    unread: list[Path] = []
    taken: set[Path] = set()
    folders = by_base(files)
    for path in files:
        if path in taken:
            continue
        try:
            archive = path.suffix in ARCHIVES and path not in named
            reader = None if archive else _reader(path, format, mapping)
            if reader is None:
                unread.append(path)
                continue
            reader.folder = folders[path.parent]
            taken.update(reader.files(path))
            reading = reader.read(path)
            _refuse_zero(reading)
            readings.append(reading)
        except ParseError as error:
            refused.append(error)
    return readings, [path for path in unread if path not in taken], refused


def _refuse_zero(reading: Reading) -> None:
    """A cost of 0 is what a tool prints of one that has no digit left; what is above idle may be none."""
    for record in reading.records:
        for metric, cost in record.costs.items():
            if cost.value == 0 and not may_be_zero(metric):
                raise ParseError(
                    record.source,
                    f"gives {metric} of {record.subject} as 0, below what the tool prints: "
                    "measure a larger batch or with more digits, or leave it out",
                )


def _reader(path: Path, format: str, mapping: ColumnMapping | None) -> Reader | None:
    if format != "auto":
        return parsers.get(DEVICE_FORMAT if path.name == DEVICE_FILE else format)()
    head = read_head(path)
    refuse_binary(path, head)
    known = [name for name in parsers if parsers.get(name)().matches(path, head)]
    if len(known) > 1:
        raise ParseError(path, f"may be of the formats {', '.join(known)}; name one with --format")
    if known:
        return parsers.get(known[0])()
    columns = MappedColumns(mapping) if mapping is not None else None
    return columns if columns is not None and columns.matches(path, head) else None


def _environment(readings: list[Reading]) -> dict[str, Any]:
    """What the logs tell of the machine, together; raises `ParseError` for descriptions of two targets."""
    stated = [reading for reading in readings if "target" in reading.environment]
    for reading in stated[1:]:
        if reading.environment["target"] != stated[0].environment["target"]:
            raise ParseError(reading.source, f"describes another target than {stated[0].source}: parse them apart")
    return {key: value for reading in readings for key, value in reading.environment.items()}


def _check_devices(readings: list[Reading]) -> None:
    """One table is of one device: refuse a log of another one among the others."""
    stated = {device: reading.source for reading in readings for device in reading.devices}
    records = [record for reading in readings for record in reading.records if record.device]
    for record in records:
        if record.device != records[0].device:
            raise ParseError(
                record.source,
                f"is of {record.device}, but {records[0].source} is of {records[0].device}: "
                "one table is of one board; parse them apart",
            )
        if stated and record.device not in stated:
            path = next(iter(stated.values()))
            raise ParseError(
                record.source, f"is of {record.device}, but {path} says the board holds {', '.join(stated)}"
            )


def _table(entries: list[Entry], environment: dict[str, Any], space: SearchSpace | None) -> CostTable | None:
    rows: dict[str, dict[str, Cost]] = {}
    sources: dict[tuple[str, str], Record] = {}
    for entry in entries:
        if entry.primitive is None:
            continue
        for metric, cost in entry.record.costs.items():
            first = sources.setdefault((entry.primitive, metric), entry.record)
            if first is not entry.record and not first.costs[metric].same(cost):
                of, other = entry.record.runtime, first.runtime
                why = "two measurements of one primitive; leave one out"
                raise ParseError(
                    entry.record.source,
                    f"gives {metric} of {entry.primitive} as {cost.value:g}, {first.source} as "
                    f"{first.costs[metric].value:g}: "
                    f"{why if of == other else f'one is of {of}, one of {other}; parse the two apart'}",
                )
            rows.setdefault(entry.primitive, {})[metric] = cost
    if not rows:
        return None
    used = [entry.record for entry in entries if entry.primitive is not None]
    manifest = {
        "parsed_by": f"hwnas {__version__}",
        "spaces": [space.spec] if space else [],
        "environment": environment,
        "sources": sorted({str(record.source) for record in used}),
        "flags": {record.subject: list(record.flags) for record in used if record.flags},
    }
    return CostTable(_target(used, environment), rows, manifest)


def _target(records: list[Record], environment: dict[str, Any]) -> Target:
    """The target that all records share.

    What neither a record nor the device's description says is `unknown`, 0 threads, and a batch of 1.
    """
    stated: dict[str, Any] = {}
    for record in records:
        for name in STATED:
            value = getattr(record, name)
            if value not in UNSTATED.get(name, NOTHING) and stated.setdefault(name, value) != value:
                raise ParseError(
                    record.source, f"has {name} {value}, the logs before it {stated[name]}: parse them apart"
                )
    described = environment.get("target", {})
    for name, value in described.items():
        own = stated.get(name, value)
        if own != value and not (name == "runtime" and value.startswith(f"{own}-")):  # a provider is told apart there
            raise ParseError(records[0].source, f"has {name} {own}, the device's description {value}: parse them apart")
    for name in SETTINGS - described.keys():
        silent = [record for record in records if record.runtime and getattr(record, name) is None]
        if name in stated and silent:
            what = f"{len(silent)} of {len(records)} logs, such as {silent[0].source}, do not say the {name}"
            say(f"{what}: taken to be {stated[name]}, as the others say")
    values = {**dict.fromkeys(("device", "runtime", "precision"), "unknown"), "threads": 0} | stated | described
    if environment.get("runtime_version"):
        values["runtime_version"] = environment["runtime_version"]
    return Target(**values, origin="imported")
