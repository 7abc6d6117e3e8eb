"""Every error that hwnas raises on purpose.

A message is one line that says what was asked, where, and what to do. The command line prints it and exits with the
class's `exit_code`; anything else that escapes is a defect of ours (exit code 70).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

SHOWN = 120


class HwnasError(Exception):
    """Base of all expected failures."""

    exit_code = 2


class InputError(HwnasError):
    """An option, a file or an architecture that cannot be used."""


class UnknownNameError(InputError):
    """A name that is in no registry; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known are {', '.join(names) or 'none'}")


class MissingCostError(InputError):
    """A cost table lacks primitives that a space needs. A missing cost is never zero."""

    def __init__(self, missing: list[str], metric: str, where: str) -> None:
        self.missing = missing
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        super().__init__(
            f"{where} has no {metric} for {len(missing)} of the primitives asked for: {shown}; "
            "profile the space on that device, or choose a table that covers it"
        )


class TargetMismatchError(InputError):
    """Costs of two targets that must not be mixed."""


class DomainError(InputError):
    """A question outside what a model was fitted on."""


class InfeasibleBudgetError(InputError):
    """A budget that no network of the space can meet; the message gives the reachable range."""


class UnavailableError(InputError):
    """A device or a library that this machine lacks."""


class StoreError(HwnasError):
    """The sample store cannot be read or written."""


class ParseError(InputError):
    """A log that cannot be trusted, with its file and line."""

    def __init__(self, path: str | Path, message: str, line: int | None = None) -> None:
        self.path, self.line = str(path), line
        super().__init__(f"{path}{f':{line}' if line is not None else ''}: {message}")


class ClaimFailedError(HwnasError):
    """A certificate or an aim that did not hold."""

    exit_code = 3


def shortened(text: str) -> str:
    """`text` as a message can show it."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
