"""Quantities and their units. A column's quantity is read from its suffix: `gold_6240_ms` is a `latency_ms`."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.core.errors import InputError


@dataclass(frozen=True)
class Quantity:
    """What a column measures: its name, the unit to print, whether less is better, whether it is a cost, and whether
    the costs of blocks add up to a network's (peaks and rates do not).
    """

    name: str
    unit: str
    lower_is_better: bool = True
    is_cost: bool = True
    adds: bool = True


LATENCY = Quantity("latency_ms", "ms")
ENERGY = Quantity("energy_mj", "mJ")
MEMORY = Quantity("memory_mib", "MiB", adds=False)
THROUGHPUT = Quantity("throughput_ips", "images/s", lower_is_better=False, adds=False)
MACS = Quantity("macs_m", "M")
PARAMS = Quantity("params_m", "M")
UNSUPPORTED = Quantity("unsupported_blocks", "blocks")
ACCURACY = Quantity("accuracy", "", lower_is_better=False, is_cost=False)

_BY_SUFFIX = {
    "_ms": LATENCY,
    "_mj": ENERGY,
    "_mib": MEMORY,
    "_ips": THROUGHPUT,
    "macs_m": MACS,
    "params_m": PARAMS,
    "unsupported_blocks": UNSUPPORTED,
    "_acc": ACCURACY,
    "accuracy": ACCURACY,
}


def may_be_zero(column: str) -> bool:
    """Whether 0 is a cost: counts and energy above that at rest may be none, what else is measured lost its digits."""
    return column.startswith("above_idle") or column.endswith((MACS.name, PARAMS.name, UNSUPPORTED.name))


def quantity_of(column: str) -> Quantity:
    """The quantity that `column` measures, read from its suffix; raises `InputError` where it names no unit."""
    for suffix, quantity in _BY_SUFFIX.items():
        if column.endswith(suffix):
            return quantity
    raise InputError(f"column {column!r} names no unit: its name must end in one of {', '.join(sorted(_BY_SUFFIX))}")
