"""What a training writes down: `log.jsonl`, one object a line, and TensorBoard's files where asked for."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from hwnas.core.errors import InputError, UnavailableError
from hwnas.core.files import write_text

EVERY = 10


class Log:
    """Appends to `folder/log.jsonl`; what an interrupted run logged beyond step `done` is dropped first.

    With `active` False (every process but the first) nothing is written.
    """

    def __init__(self, folder: Path, done: int, tensorboard: bool, active: bool) -> None:
        self._active = active
        self._board: Any = _board(folder) if tensorboard and active else None
        if not active:
            return
        path = folder / "log.jsonl"
        kept = _up_to(path, done)
        write_text(path, "".join(kept))
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error

    def step(self, step: int, phase: str, lr: float, losses: dict[str, float]) -> None:
        """Log the losses of one step in ten."""
        if step % EVERY == 0:
            self._write({"step": step, "phase": phase, "learning_rate": lr, "losses": losses})

    def report(self, step: int, phase: str, values: dict[str, float]) -> None:
        """Log what was found at the end of a phase that ended before `step`."""
        if values:
            self._write({"step": step - 1, "phase": phase, "report": values})

    def _write(self, entry: dict[str, Any]) -> None:
        if not self._active:
            return
        try:
            self._file.write(json.dumps({**entry, "time": round(time.time(), 3)}) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self._file.name}: {error.strerror}; free some space") from error
        if self._board is not None:
            for name, value in {**entry.get("losses", {}), **entry.get("report", {})}.items():
                self._board.add_scalar(name, value, entry["step"])

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._active:
            with suppress(OSError):
                self._file.close()
        if self._board is not None:
            self._board.close()


def _up_to(path: Path, done: int) -> list[str]:
    if not path.exists() or done == 0:
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] < done:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break
    return kept


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UnavailableError("tensorboard: true needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"))
