"""Logs of several files: what one run of one model wrote, found by the name that the files share."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from hwnas.core.errors import ParseError
from hwnas.parse.base import Reader, Reading, parsers, read_head

_PART = re.compile(
    r"(^|[-_.])(times?|profile|profiling|layers|layer[-_]?info|ops|op[-_]profile|results?|samples|perf|perf[-_]test|"
    r"benchmark|benchmark[-_](app|model|report)|report|counters|(average|detailed|sorted)[-_]counters|"
    r"benchmark[-_](average_counters|detailed_counters|sorted)[-_]report|trtexec|tvm|timing|onnxruntime|"
    r"onnxruntime_profile_|log|out|stdout)$",
    re.IGNORECASE,
)
_DATE = re.compile(r"_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?$")


def base_name(path: Path) -> str:
    """What the files of one run have in common: `p00001` of `p00001.times.json`; empty where nothing is."""
    dated = _DATE.sub("", path.stem)
    return path.stem if dated == "onnxruntime_profile_" else _PART.sub("", dated)


def by_base(files: Iterable[Path]) -> dict[Path, dict[str, tuple[Path, ...]]]:
    """Files by folder and by base name."""
    found: dict[Path, dict[str, tuple[Path, ...]]] = {}
    for path in files:
        names = found.setdefault(path.parent, {})
        base = base_name(path)
        names[base] = (*names.get(base, ()), path)
    return found


def model_name(path: str) -> str:
    """The name of a model file without folder and suffix, whichever system wrote the path."""
    pure = PureWindowsPath(path) if "\\" in path else PurePosixPath(path)
    return pure.stem


class Family(Reader):
    """A reader of the files of one run. A subclass names what a file is (`part`) and reads them together (`combine`).

    Only files that were asked for are taken; a file alone is read alone.
    """

    @abstractmethod
    def part(self, head: bytes) -> str | None:
        """Which part of the log begins with `head`; None for a file of another kind."""

    @abstractmethod
    def combine(self, name: str, parts: Mapping[str, Path]) -> Reading:
        """Read the parts of the run `name`; raises `ParseError` where they contradict each other."""

    def matches(self, path: Path, head: bytes) -> bool:
        return self.part(head) is not None

    def files(self, path: Path) -> tuple[Path, ...]:
        family = (path, *(p for p in self.folder.get(base_name(path), ()) if p != path))
        return tuple(p for p in family if self.part(read_head(p)) is not None)

    def read(self, path: Path) -> Reading:
        if self.part(read_head(path)) is None:
            raise ParseError(path, "not a log of this format, or damaged in its first lines", 1)
        self._refuse_strangers(path)
        parts: dict[str, Path] = {}
        for file in self.files(path):
            part = self.part(read_head(file)) or ""
            if part in parts:
                raise ParseError(
                    file, f"is the {part} of a run as {parts[part].name} is: two runs of one name; parse one of them"
                )
            parts[part] = file
        return self.combine(base_name(path) or path.resolve().parent.name, parts)

    def _refuse_strangers(self, path: Path) -> None:
        """Refuse a run one of whose files, by their names, is so damaged that no reader knows it."""
        base = base_name(path)
        for file in self.folder.get(base, ()) if base else ():
            named = file.suffix in (".txt", ".log") or file.stem != base
            if named and not any(parsers.get(name)().matches(file, read_head(file)) for name in parsers):
                raise ParseError(
                    file,
                    f"is of the run of {path.name} by its name, but no reader knows it: damaged in its first lines",
                )
