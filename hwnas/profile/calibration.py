"""The machine's typical speed, remembered between campaigns.

A campaign that runs while the machine is slowed down from beginning to end takes that for typical; its latencies would
differ from those of a quieter hour by all that its subjects feel of it. So what the sentinel typically took is kept in
the user's cache folder, until a week has passed without a campaign. It is written into the record of each session, so
that what follows from a sample store follows from that store alone: a store keeps to the first that it was told.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.errors import InputError
from hwnas.core.files import write_json
from hwnas.profile.drift import CALM, typical_speed

KEPT_S = 7 * 86400.0
WITHIN = 1.2
"""A machine that is 20 % slower or faster was changed (on battery, another clock limit), not disturbed ..."""
REACHED = 0.05
"""... unless it still runs at the speed of before for a twentieth of the time."""
LEAST = 500
"""Fewer sentinels, of however many campaigns, say too little of what is typical."""
MOST = 20_000
"""What is remembered weighs no more than so many sentinels, so that it follows a machine that changes slowly."""


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwnas" / "sentinel.json"


def recall(cpu: str) -> float | None:
    """What the sentinel typically took on this machine in the last days, in ms; None where it is not known."""
    value, seen = _known(cpu)
    return value if seen >= LEAST else None


def remember(cpu: str, sentinel_ms: Sequence[float]) -> None:
    """Join what sentinels say with what is remembered, as a geometric mean; a cache that fails is no matter."""
    typical_ms, seen = typical_speed(sentinel_ms), min(len(sentinel_ms), MOST)
    if not math.isfinite(typical_ms):
        return
    known, weight = _known(cpu)
    if known is not None and settle(sentinel_ms, [known]) == known:
        typical_ms = typical_ms if _alike(typical_ms, known) else known
        typical_ms = math.exp((seen * math.log(typical_ms) + weight * math.log(known)) / (seen + weight))
        seen += weight
    try:
        entry = {"typical_ms": typical_ms, "seen": min(seen, MOST), "at": time.time()}
        write_json(cache_file(), {**_entries(), _key(cpu): entry})
    except InputError:
        return


def settle(sentinel_ms: Sequence[float], remembered: Iterable[float]) -> float:
    """The speed to refer to, from a store's sentinels and speeds remembered: the first that could be this machine's.

    That is one near its typical speed, or one at which it still runs now and then; any where none is timed yet.
    """
    own, seen = typical_speed(sentinel_ms), np.asarray(sentinel_ms, dtype=np.float64)

    def possible(value: float) -> bool:
        return _alike(own, value) or bool(np.sum(np.abs(seen / value - 1) <= CALM) >= REACHED * np.isfinite(seen).sum())

    return next((value for value in remembered if not len(seen) or (math.isfinite(own) and possible(value))), own)


def _alike(own: float, known: float) -> bool:
    return own / WITHIN <= known <= own * WITHIN


def _known(cpu: str) -> tuple[float | None, int]:
    """(typical time in ms, how many sentinels say so); (None, 0) where nothing usable is remembered."""
    entry = _entries().get(_key(cpu), {})
    value, seen, at = (entry.get(name) for name in ("typical_ms", "seen", "at"))
    if not isinstance(value, float) or not isinstance(seen, int) or not isinstance(at, float):
        return None, 0
    return (value, seen) if value > 0 and seen > 0 and time.time() - at <= KEPT_S else (None, 0)


def _key(cpu: str) -> str:
    return f"{socket.gethostname()} | {cpu} | numpy {version('numpy')}"


def _entries() -> dict[str, Any]:
    try:
        entries = json.loads(cache_file().read_text())
        return {key: value for key, value in entries.items() if isinstance(value, dict)}
    except (OSError, ValueError, AttributeError):
        return {}
