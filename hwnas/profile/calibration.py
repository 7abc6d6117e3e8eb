"""The machine's reference speed, remembered between campaigns.

A campaign that runs while the machine is slowed down from beginning to end never sees it at full speed; its latencies
would differ from those of a quieter hour by the whole slow-down (11 % where it was studied, see `timer`). So the
fastest sentinel of the last days is kept in the user's cache folder. It is written into the record of each session, so
that what follows from a sample store follows from that store alone.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hwnas.core.errors import InputError
from hwnas.core.files import write_json

KEPT_S = 7 * 86400.0
WITHIN = 1.2
"""A machine more than 20 % slower than remembered was changed (on battery, another clock limit), not disturbed."""
LEAST = 500


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwnas" / "sentinel.json"


def recall(cpu: str) -> float | None:
    """The sentinel's fastest time on this machine in the last days, in ms; None where none is known."""
    entry = _entries().get(_key(cpu), {})
    value, at = entry.get("reference_ms"), entry.get("at")
    if not isinstance(value, float) or not isinstance(at, float) or time.time() - at > KEPT_S or not value > 0:
        return None
    return value


def remember(cpu: str, reference_ms: float, seen: int) -> None:
    """Keep a reference that `seen` sentinels support, unless a faster one is known; a cache that fails is no matter."""
    known = recall(cpu)
    if seen < LEAST or not math.isfinite(reference_ms) or settle(reference_ms, filter(None, [known])) == known:
        return
    try:
        write_json(cache_file(), {**_entries(), _key(cpu): {"reference_ms": reference_ms, "at": time.time()}})
    except InputError:
        return


def settle(own: float, remembered: Iterable[float]) -> float:
    """The reference speed, from a campaign's own and those remembered: the fastest that could be the same machine's."""
    return min((value for value in remembered if value <= own <= WITHIN * value), default=own)


def _key(cpu: str) -> str:
    return f"{socket.gethostname()} | {cpu} | numpy {version('numpy')}"


def _entries() -> dict[str, Any]:
    try:
        entries = json.loads(cache_file().read_text())
        return {key: value for key, value in entries.items() if isinstance(value, dict)}
    except (OSError, ValueError, AttributeError):
        return {}
