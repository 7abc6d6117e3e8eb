"""What every log reader shares: records, the reader's contract, the registry, and careful reading of text."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from hwnas.core.config import Config
from hwnas.core.errors import ParseError
from hwnas.core.registry import Registry
from hwnas.core.table import Cost
from hwnas.profile.stats import median_rank

HEAD_BYTES = 1 << 16
_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_COLOUR_BYTES = re.compile(_COLOUR.pattern.encode())


@dataclass(frozen=True)
class Part:
    """A node, layer or kernel of what ran: its name, its operation, its time in one inference, and of how many runs."""

    name: str
    kind: str
    latency_ms: float
    n: int = 0


@dataclass(frozen=True)
class Record:
    """What one log says of one subject.

    Attributes:
        subject: the name that the log gives to what ran: a folder, a model file, a primitive's key.
        source: the file that a doubt about it would lead to.
        costs: metric column (`latency_ms`, `energy_mj`, `throughput_ips`) -> `Cost`.
        device: what it ran on as the log names it; empty where it does not say.
        runtime: `vart`, `tensorrt` ...; empty where the log is of no runtime (a power log).
        runtime_version: major and minor; empty where unknown.
        precision, batch, threads, graphs: as in `Target`; None where the log does not say.
        details: further figures, units in their names.
        flags: what a reader of the figures should know, such as `outliers` or `no_idle_baseline`.
        md5: checksum of the model file that ran, where the log gives it.
        parts: what it is made of, where the log tells them apart: nodes, layers, kernels.
    """

    subject: str
    source: Path
    costs: Mapping[str, Cost]
    device: str = ""
    runtime: str = ""
    runtime_version: str = ""
    precision: str | None = None
    batch: int | None = None
    threads: int | None = None
    graphs: bool | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    md5: str = ""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What one log holds: its records, and what it tells of the machine.

    `devices` are the devices that the machine is said to hold: a record of another one is refused.
    """

    records: tuple[Record, ...]
    source: Path
    environment: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ()


class ColumnMapping(Config):
    """Which columns of a CSV file hold what, for logs that no reader knows.

    Attributes:
        time, rails: for power over time, the column of times and, by the name of each rail, its column of power.
        time_unit, power_unit: of these columns, where their own names do not say it, as `Time (ms)` does.
        start, end, inferences: the window of the log that holds so many inferences; all of it where absent.
        subject, metrics: for a cost a row, the column of what was measured and, by metric, its column.
        metric_units: of these columns where it is not the metric's own, and their names do not say it.
        device, runtime, precision, batch, threads: the target; what is left out is unknown.
        delimiter, decimal: what stands between cells, and before the decimals of a number.
    """

    delimiter: str = ","
    decimal: Literal[".", ","] = "."
    time: str | None = None
    time_unit: str | None = None
    rails: dict[str, str] = {}
    power_unit: str | None = None
    start: float | None = None
    end: float | None = None
    inferences: Annotated[int, Field(ge=1)] | None = None
    subject: str | None = None
    metrics: dict[str, str] = {}
    metric_units: dict[str, str] = {}
    device: str = ""
    runtime: str = "csv"
    precision: str | None = None
    batch: Annotated[int, Field(ge=1)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None


class Reader(ABC):
    """One log format.

    Attributes:
        folder: the files that were asked for beside the one to read, by the name that files of one run share.
    """

    folder: Mapping[str, tuple[Path, ...]] = {}

    @abstractmethod
    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file that begins with `head` (its first 64 KiB) is of this format."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """Every file of the log that `path` belongs to, `path` included; they are read as one."""
        return (path,)

    @abstractmethod
    def read(self, path: Path) -> Reading:
        """Read the file and those that belong to it; raises `ParseError` with file and line."""


parsers: Registry[type[Reader]] = Registry(
    "parser",
    tuple(
        f"hwnas.parse.{module}"
        for module in (
            *("vaitrace", "vaitrace_text", "xdputil", "rails"),
            *("ort", "tvm", "trtexec", "tflite", "openvino", "ofa_lookup", "device"),
        )
    ),
)


def read_lines(path: Path) -> list[str]:
    """The lines of a text log; raises `ParseError` where it is missing, empty, compressed, or no UTF-8 text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ParseError(path, f"cannot be read ({error.strerror or error})") from error
    refuse_binary(path, data[:HEAD_BYTES])
    if not data.strip():
        raise ParseError(path, "the file is empty; copy it from the board again")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParseError(path, "not UTF-8 text", data[: error.start].count(b"\n") + 1) from error
    text = _COLOUR.sub("", text)
    if "\0" in text:
        raise ParseError(path, "holds NUL characters, as a damaged file does", text[: text.index("\0")].count("\n") + 1)
    return text.replace("\r\n", "\n").split("\n")


def read_head(path: Path) -> bytes:
    """The first bytes of a file, by which readers know their formats, without byte-order mark and terminal colours.

    Raises `ParseError` where it cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return _COLOUR_BYTES.sub(b"", handle.read(HEAD_BYTES).removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise ParseError(path, f"cannot be read ({error.strerror or error})") from error


def refuse_binary(path: Path, head: bytes) -> None:
    """Raise `ParseError` for what is offered as a log but is no UTF-8 text."""
    if head[:2] == b"\x1f\x8b":
        raise ParseError(
            path,
            "a gzip file: not read; unpack it first (but what vaitrace --xat writes is a pickle inside, which can run "
            "code: of vaitrace give the folder of CSV files)",
        )
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        raise ParseError(path, "a pickle, which can run code: not read; give the tool's text or CSV output instead")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ParseError(
            path, "UTF-16 text, as PowerShell's `>` writes it: convert it to UTF-8 (`| Out-File -Encoding utf8`)"
        )


def median_cost(values: ArrayLike) -> Cost:
    """Median of repeated measurements with its distribution-free 95 % interval.

    Of fewer than six values the interval is from the least to the most, which holds the median less often.
    """
    ordered: NDArray[np.float64] = np.sort(np.asarray(values, dtype=np.float64))
    k = max(median_rank(len(ordered)), 1)
    return Cost(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[-k]), len(ordered), "imported")
