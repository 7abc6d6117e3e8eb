"""Measuring what a search found on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwnas.core.errors import InputError, TargetMismatchError, UnavailableError
from hwnas.core.target import Target
from hwnas.profile import Effort, Measurement, Settings, Subject, backends, measure_onnx, measure_subjects
from hwnas.profile.backends.base import TRIALS
from hwnas.profile.device import environment, local_target
from hwnas.profile.stats import MIN_BLOCKS

__all__ = ["environment", "local_settings", "measure"]

EFFORT = Effort(sessions=MIN_BLOCKS)
"""As many worker processes as an interval between them needs: a certificate has to hold in the next campaign too."""


def local_settings(target: Target | None) -> Settings:
    """How to measure on `target` here; raises `UnavailableError` where it is not a runtime of this machine."""
    if target is None:
        raise UnavailableError("the cost is of no device")
    if target.origin != "measured" or target.runtime not in backends:
        raise UnavailableError(f"{target} is no target that this machine can measure")
    mismatches, reasons = [], []
    for device in backends.get(target.runtime).devices:
        backend = backends.get(target.runtime)
        trials = TRIALS if target.tuned and backend.can_tune else 0
        settings = Settings(device, target.precision, target.batch, target.threads, target.cache, target.graphs, trials)
        try:
            local_target(target.runtime, settings).require_same(target, "the cost")
        except TargetMismatchError as error:
            mismatches.append(str(error))
        except InputError as error:
            reasons.append(str(error))
        else:
            return settings
    raise UnavailableError((mismatches or reasons)[-1])


def measure(
    models: Mapping[str, bytes],
    networks: Mapping[str, tuple[str, str]],
    target: Target,
    settings: Settings,
    metric: str,
    store: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Values of `metric` (`latency_ms`, `energy_mj`, `memory_mib`) by name, measured interleaved in one campaign.

    `store` keeps the samples.

    Measured are the ONNX models, or, where the runtime does not read ONNX, the same `networks` (space, architecture).
    """
    how: dict[str, Any] = {"runtime": target.runtime, "settings": settings, "effort": EFFORT, "store": store}
    how |= {"metric": metric, "seed": seed}
    if backends.get(target.runtime).reads_onnx:
        return measure_onnx(models, **how)
    return measure_subjects({name: Subject("network", arch, space) for name, (space, arch) in networks.items()}, **how)
