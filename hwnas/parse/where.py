"""A place in a log: its figures read with care, compared where they are stated twice, every doubt with its line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hwnas.core.errors import ParseError
from hwnas.core.files import distinct
from hwnas.parse.base import read_lines

PRINTED = 1e-4
MAX_DIGITS = 18
T = TypeVar("T")
_DECODER_ERRORS = (ValueError, RecursionError)


@dataclass(frozen=True)
class Where:
    """A place in a log, which raises its own errors.

    `line` is None where the file as a whole is meant.
    """

    path: Path
    line: int | None = None

    def refuse(self, message: str) -> NoReturn:
        raise ParseError(self.path, message, self.line)

    def agree(self, what: str, stated: float, found: float, relative: float = PRINTED, absolute: float = 0.0) -> None:
        """Refuse `stated` where it is not `found` within the rounding of what was printed."""
        if abs(stated - found) > relative * max(abs(stated), abs(found)) + absolute:
            self.refuse(f"{what} is stated as {stated:g}, the other figures of the log make it {found:g}")

    def rising(self, what: str, *values: float | None) -> None:
        """Refuse `values` (min, median, ... max; None where the log leaves one out) that fall."""
        known = [value for value in values if value is not None]
        if any(b < a * (1 - PRINTED) for a, b in pairwise(known)):
            self.refuse(f"{what}: minimum, middle and maximum are not in order ({', '.join(f'{v:g}' for v in known)})")

    def number(self, value: Any, what: str, least: float = 0.0) -> float:
        """`value` (a number, or its text) as a finite number of at least `least`."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            self.refuse(f"{what} is {_short(value)}, expected a number")
        try:
            result = float(value)
        except (ValueError, OverflowError):
            self.refuse(f"{what} is {_short(value)}, expected a number")
        if not math.isfinite(result) or result < least:
            self.refuse(f"{what} is {result:g}, expected a finite number of at least {least:g}")
        return result

    def count(self, value: Any, what: str, least: int = 1) -> int:
        """`value` (an integer, or its text in digits) as an integer of at least `least`."""
        if isinstance(value, str):
            value = value.strip()
            if not value.isascii() or not value.isdigit() or len(value) > MAX_DIGITS:
                self.refuse(f"{what} is {_short(value)}, expected an integer of at least {least}")
        result = self.number(value, what, least)
        if result != int(result):
            self.refuse(f"{what} is {result:g}, expected an integer")
        return int(result)

    def cells(self, line: str, separator: str, *counts: int) -> list[str]:
        """The cells of a table's line, of which there must be one of the `counts`."""
        found = line.split(separator)
        if len(found) not in counts:
            self.refuse(f"{' or '.join(map(str, counts))} cells expected, {len(found)} found")
        return found

    def once(self, found: dict[str, T], name: str, value: T) -> None:
        """Put into `found` what is stated of `name`; refuse another value than the one before."""
        if found.setdefault(name, value) != value:
            now, before = (f"{v:g}" if isinstance(v, float) else str(v) for v in (value, found[name]))
            self.refuse(f"{name} is {now} here and {before} before: one run a file, please")

    def field(self, entry: Any, name: str) -> Any:
        """The value of `name` in a JSON object."""
        if not isinstance(entry, dict) or name not in entry:
            self.refuse(f"{_short(entry)} has no {name!r}: not written by this tool, or damaged")
        return entry[name]

    def items(self, value: Any, what: str) -> list[Any]:
        """`value` as a JSON list that is not empty."""
        if not isinstance(value, list) or not value:
            self.refuse(f"{what} is {_short(value)}, expected a list with entries")
        return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_array(path: Path) -> list[tuple[Where, Any]]:
    """The entries of a JSON list, each with the line that it begins on; raises `ParseError`."""
    text = "\n".join(read_lines(path))
    decoder = _decoder()
    position, line, entries = _skip(text, 0), 1, []
    if text[position : position + 1] != "[":
        raise ParseError(path, "a JSON list is expected", 1)
    counted, position = 0, _skip(text, position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", counted, position)
        counted = position
        where = Where(path, line)
        try:
            entry, position = decoder.raw_decode(text, position)
        except _DECODER_ERRORS as error:
            where.refuse(f"not readable as JSON ({_reason(error)}): damaged or cut short")
        entries.append((where, entry))
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            where.refuse("the list goes on without a comma, or has no end: damaged or cut short")
    if text[position + 1 :].strip():
        raise ParseError(path, "something follows the end of the list", text.count("\n", 0, position) + 1)
    return entries


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; raises `ParseError`."""
    text = "\n".join(read_lines(path))
    try:
        value = _decoder().decode(text)
    except _DECODER_ERRORS as error:
        raise ParseError(
            path, f"not readable as JSON ({_reason(error)}): damaged or cut short", getattr(error, "lineno", 1)
        ) from error
    if not isinstance(value, dict):
        raise ParseError(path, f"holds a {type(value).__name__} where an object was expected", 1)
    return value


def line_of(path: Path, text: str) -> Where:
    """The first line of `path` that holds `text`."""
    lines = read_lines(path)
    return Where(path, next((n for n, line in enumerate(lines, 1) if text in line), None))


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=distinct, parse_constant=_no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)[:80]


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
