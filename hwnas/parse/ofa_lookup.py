"""Once-for-All's published latency tables (Cai et al., ICLR 2020): YAML, one file an image size, one entry a block.

The same block is measured again in the file of each size it occurs in, and no two of these figures are equal. Read
together, every size therefore has its column (`latency_r160_ms`), whose sums are those of Once-for-All, and
`latency_ms` is the mean over all measurements of the block, for networks of any size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hwnas.core.config import YAML_ERRORS
from hwnas.core.errors import InputError, ParseError
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.parse.base import Reader, Reading, Record, parsers, read_head, read_lines
from hwnas.parse.where import Where, line_of
from hwnas.spaces import Primitive
from hwnas.spaces.mobile import conv, div8, linear, mbconv, pool

NOTE10 = Target("Samsung Note 10", "once-for-all", origin="imported", threads=0)
METRIC = "latency_ms"
LARGEST = 1e12
_DEFAULTS: dict[str, Any] = {"mean": None, "std": 0.0, "count": 0}
SUFFIX = "_lookup_table.yaml"
_ENTRY = re.compile(
    rb"^(expanded_conv|Conv|Conv_1|AvgPool2D)-input:\d+x\d+x\d+-output:\d+x\d+x\d+\S*:\s*$", re.MULTILINE
)
_KEY = re.compile(
    r"(Conv|Conv_1|Conv_2|AvgPool2D|Logits|expanded_conv)-input:(\d+)x(\d+)x(\d+)-output:(?:(\d+)x(\d+)x)?(\d+)"
    r"(?:-expand:(\d+)-kernel:(\d+)-stride:(\d+)-idskip:[01]-se:([01])-hs:([01]))?"
)


@dataclass(frozen=True)
class Entry:
    """A block's latency: mean and standard deviation in ms over `count` measurements."""

    mean: float
    std: float
    count: int

    @property
    def cost(self) -> Cost:
        """The mean with its 95 % interval, that of the normal distribution."""
        half = 1.96 * self.std / math.sqrt(self.count) if self.count else math.nan
        return Cost(self.mean, max(self.mean - half, 0.0), self.mean + half, self.count)


@parsers.register("ofa-lookup")
class OfaLookup(Reader):
    """Reads all tables of a folder that were asked for; a table alone gives `latency_ms` alone."""

    def matches(self, path: Path, head: bytes) -> bool:
        return _ENTRY.search(head) is not None

    def files(self, path: Path) -> tuple[Path, ...]:
        others = (p for group in self.folder.values() for p in group if p != path and p.suffix == path.suffix)
        return tuple(sorted([path, *(p for p in others if self._is_table(p))]))

    def _is_table(self, path: Path) -> bool:
        return self.matches(path, read_head(path))

    def read(self, path: Path) -> Reading:
        tables: dict[int, tuple[Path, dict[str, Entry]]] = {}
        for file in self.files(path):
            entries = read_entries(file)
            resolution = _resolution(file, entries)
            if resolution in tables:
                raise ParseError(
                    file, f"is of image size {resolution} as {tables[resolution][0].name} is; leave one out"
                )
            tables[resolution] = (file, entries)
        keys = dict.fromkeys(key for _, entries in tables.values() for key in entries)
        return Reading(tuple(_record(key, dict(sorted(tables.items()))) for key in keys), path)


def _record(key: str, tables: Mapping[int, tuple[Path, dict[str, Entry]]]) -> Record:
    found = {resolution: (path, entries[key]) for resolution, (path, entries) in tables.items() if key in entries}
    path = next(path for path, _ in found.values())
    primitive = note10_primitive(key)
    if primitive is None:
        line_of(path, key).refuse(f"{key!r} describes no block that exists")
    costs = {METRIC: _pooled([entry for _, entry in found.values()]).cost}
    if len(tables) > 1:
        costs |= {f"latency_r{resolution}_ms": entry.cost for resolution, (_, entry) in found.items()}
    folder = path.resolve().parent.name
    device = NOTE10.device if folder == "note10" else folder
    target: dict[str, Any] = {
        "device": device,
        "runtime": NOTE10.runtime,
        "batch": NOTE10.batch,
        "threads": NOTE10.threads,
    }
    flags = ("several_image_sizes",) if len(found) > 1 else ()
    return Record(primitive.key, path, costs, precision=NOTE10.precision, flags=flags, **target)


def _pooled(entries: list[Entry]) -> Entry:
    """All measurements as one sample: its mean, and its variance as that within the files and between them."""
    if len(entries) == 1:
        return entries[0]
    n, mean, std = (np.array([getattr(e, name) for e in entries], dtype=float) for name in ("count", "mean", "std"))
    weights = n / n.sum() if n.sum() else np.full(len(n), 1 / len(n))
    pooled = float(weights @ mean)
    return Entry(pooled, math.sqrt(float(weights @ (std**2 + (mean - pooled) ** 2))), int(n.sum()))


def _resolution(path: Path, entries: Mapping[str, Entry]) -> int:
    """The image size: that of the first convolution's input, which must be that of the file's name."""
    sizes = {int(match[2]) for key in entries if (match := _KEY.fullmatch(key)) and match[1] == "Conv"}
    named = re.match(r"(\d+)" + re.escape(SUFFIX), path.name)
    if named:
        sizes.add(int(named[1]))
    if len(sizes) != 1:
        Where(path).refuse(f"is of the image sizes {sorted(sizes)} by its name and first convolutions; one is expected")
    return sizes.pop()


def read_entries(path: Path) -> dict[str, Entry]:
    """Every entry of a table by its published name; raises `ParseError`."""
    try:
        entries = yaml.load("\n".join(read_lines(path)), Loader=_Loader)
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or type(error).__name__
        raise ParseError(path, f"not readable as YAML ({reason})", mark and mark.line + 1) from error
    if not isinstance(entries, dict) or not entries:
        raise ParseError(path, "a mapping of blocks to their latencies is expected", 1)
    return {str(key): _entry(path, str(key), entry) for key, entry in entries.items()}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader that refuses a key that stands twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return mapping


def _entry(path: Path, key: str, value: object) -> Entry:
    entry = value if isinstance(value, dict) else {}
    mean, std, count = (_figure(path, key, name, entry.get(name, least)) for name, least in _DEFAULTS.items())
    if count != int(count):
        line_of(path, key).refuse(f"{key}: count is {count}, which is no number of measurements")
    return Entry(mean, std, int(count))


def _figure(path: Path, key: str, name: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST:
        return float(value)
    line_of(path, key).refuse(f"{key}: {name} is {str(value)[:40]}, which no measurement gives")


def read_note10(folder: str | Path, resolution: int, primitives: Iterable[Primitive]) -> CostTable:
    """The published table of one image size, as far as it speaks of `primitives`; raises `InputError`."""
    path = Path(folder) / f"{resolution}{SUFFIX}"
    if not path.exists():
        sizes = sorted(p.name.split("_")[0] for p in Path(folder).glob(f"*{SUFFIX}"))
        raise InputError(
            f"no latency table for resolution {resolution} in {folder}; "
            f"it has {', '.join(sizes) or 'none (expected 224_lookup_table.yaml and the like)'}"
        )
    entries = read_entries(path)
    keys = {primitive.key: note10_key(primitive) for primitive in primitives}
    rows = {name: {METRIC: entries[key].cost} for name, key in keys.items() if key is not None and key in entries}
    return CostTable(NOTE10, rows or {"": {METRIC: Cost(math.nan)}}, {"source": str(path)}, str(path))


def note10_key(primitive: Primitive) -> str | None:
    """How the published tables call a block; None for a kind that they do not hold."""
    channels, height, width = primitive.inputs[0]
    out, out_height, out_width = (*primitive.output, 1, 1)[:3]
    ends = f"input:{height}x{width}x{channels}-output:{out_height}x{out_width}x{out}"
    if primitive.kind == "mbconv":
        return (
            f"expanded_conv-{ends}-expand:{primitive.number('mid') or channels}-kernel:{primitive.number('kernel')}"
            f"-stride:{primitive.number('stride')}-idskip:{int(primitive.number('stride') == 1 and channels == out)}"
            f"-se:{int(primitive.number('se') > 0)}-hs:{int(primitive['act'] == 'h_swish')}"
        )
    if primitive.kind == "conv":
        return f"{'Conv' if channels == 3 else 'Conv_1' if primitive.number('bn') else 'Conv_2'}-{ends}"
    if primitive.kind == "linear":
        return f"Logits-input:{height}x{width}x{channels}-output:{out}"
    return f"AvgPool2D-{ends}" if primitive.kind == "global_pool" else None


def note10_primitive(key: str) -> Primitive | None:
    """The block that a published name means; None for a name that is none, or contradicts itself."""
    match = _KEY.fullmatch(key)
    if match is None or max(map(len, re.findall(r"\d+", key))) > 6:
        return None
    try:
        primitive = _build(match)
        return primitive if note10_key(primitive) == key else None
    except (InputError, ValueError, TypeError, ZeroDivisionError):
        return None


def _build(match: re.Match[str]) -> Primitive:
    height, width, channels, out = (int(match[i]) for i in (2, 3, 4, 7))
    shape = (channels, height, width)
    if match[1] == "expanded_conv":
        mid, kernel, stride = (int(match[i]) for i in (8, 9, 10))
        se = div8(mid / 4) if match[11] == "1" else 0
        act = "h_swish" if match[12] == "1" else "relu"
        return mbconv(shape, out, kernel, stride, 0 if mid == channels else mid, act, se)
    if match[1] == "Conv":
        return conv(shape, out, 3, max(1, round(height / int(match[5]))), "h_swish")
    if match[1] in ("Conv_1", "Conv_2"):
        return conv(shape, out, act="h_swish", bn=int(match[1] == "Conv_1"))
    return linear(shape, out) if match[1] == "Logits" else pool(shape)
