"""`device.json` of a bundle's run scripts: what the logs beside it do not say of the machine."""

from __future__ import annotations

from pathlib import Path

from hwnas.parse.base import Reader, Reading, parsers
from hwnas.parse.where import line_of, read_object

FORMAT = "hwnas-device"
FILE = "device.json"
FIELDS = ("device", "runtime", "runtime_version", "precision", "batch", "threads")


@parsers.register(FORMAT)
class Device(Reader):
    """An object with `format`, `version` 1 and any of the fields of a target."""

    def matches(self, path: Path, head: bytes) -> bool:
        return path.name == FILE or (head.lstrip()[:1] == b"{" and f'"{FORMAT}"'.encode() in head)

    def read(self, path: Path) -> Reading:
        value = read_object(path)
        where = line_of(path, FORMAT)
        if value.pop("format", None) != FORMAT or value.pop("version", None) != 1:
            where.refuse(f"not a {FORMAT} of version 1; give another tool's file another name than {FILE}")
        unknown = sorted(set(value) - set(FIELDS))
        if unknown:
            where.refuse(f"unknown fields: {', '.join(unknown)}; known are {', '.join(FIELDS)}")
        stated: dict[str, str | int] = {}
        for name, entry in value.items():
            if name in ("batch", "threads"):
                stated[name] = where.count(entry, name, 1 if name == "batch" else 0)
            elif not isinstance(entry, str):
                where.refuse(f"{name} is {entry!r}, expected a text")
            elif entry.strip():
                stated[name] = entry.strip()
        return Reading((), path, {"target": stated})
