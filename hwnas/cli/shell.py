"""What every command shares: the application, one path for errors, and how a result is shown."""

from __future__ import annotations

import errno
import json
import math
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any

import typer

from hwnas import __version__
from hwnas.core.errors import HwnasError, InputError, shortened
from hwnas.core.progress import is_first_process

INTERRUPTED = 130
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EROFS)

app = typer.Typer(
    name="hwnas",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")]
Space = Annotated[str, typer.Option("--space", help="search space, such as ofa-mbv3:width=1.2,resolution=160/176")]
MOST_SEED = 2**63 - 1
Seed = Annotated[int, typer.Option("--seed", min=0, max=MOST_SEED, help="seed of every random choice")]


def _say_version(asked: bool) -> None:
    if asked:
        print(f"hwnas {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    """Which network should run on this device? Measure, predict, search under a budget, confirm."""


def main() -> None:
    """Entry point of `hwnas`: exit code 0 done, 2 bad input, 3 a claim failed, 70 an error of ours, 130 interrupted."""
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.exit(run([argument for argument in arguments if argument != "--debug"], debug))


def _stop(number: int, frame: FrameType | None) -> None:
    """End as by Ctrl-C; the second time, at once."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def run(arguments: list[str], debug: bool = False) -> int:
    """Run one command; errors become one line on standard error and an exit code."""
    try:
        code = int(app(arguments or ["--help"], standalone_mode=False) or 0)
        sys.stdout.flush()
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exception(error)
        message, code = _explain(error)
        print(f"hwnas: {' '.join(message.split())}", file=sys.stderr)
        return code


def _explain(error: BaseException) -> tuple[str, int]:
    """One line and the exit code for whatever ended a command."""
    if isinstance(error, HwnasError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted; what was written so far is kept", INTERRUPTED
    if isinstance(error, OSError) and error.filename is not None and error.errno in NO_ACCESS:
        return f"cannot use {shortened(str(error.filename))}: {error.strerror}; choose another path", 2
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.strerror}: free some space, or name another place (--out, TMPDIR)", 2
    if hasattr(error, "format_message"):
        return _usage(error), 2
    return f"an error of ours: {type(error).__name__}: {error} (--debug shows where)", 70


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "hwnas"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; see {command} --help"


def show(report: Any, text: str, as_json: bool) -> None:
    """The result of a command: JSON for a program, or lines for a person; said by the first process alone."""
    if is_first_process():
        print(json.dumps(report, allow_nan=False, ensure_ascii=False) if as_json else text)


def columns(head: list[str], rows: list[list[str]]) -> str:
    """Aligned text columns; all but the first are right-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = (
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    )
    return "\n".join(line.rstrip() for line in lines)


def finite(value: float) -> float | None:
    """A number as JSON can say it: None for NaN and infinity."""
    return value if math.isfinite(value) else None


def bounds(pairs: list[str], option: str) -> dict[str, float]:
    """`QUANTITY=VALUE` pairs as a mapping; raises `InputError` for anything else."""
    result: dict[str, float] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not (name and equals and 0 < number < float("inf")):
            raise InputError(
                f"{option} {pair!r}: write {option} QUANTITY=VALUE with a positive value, such as latency_ms=20"
            )
        if name in result:
            raise InputError(f"{option} {name} is given twice")
        result[name] = number
    return result
