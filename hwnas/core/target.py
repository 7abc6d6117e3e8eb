"""What must agree for two costs to be compared (`Target`), and what is recorded beside them (`Environment`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from hwnas.core.errors import InputError, TargetMismatchError

Origin = Literal["measured", "imported", "simulated"]
CACHES = ("warm", "cold")

Environment = dict[str, Any]
"""Library versions, driver, clocks, governor, load, temperature, host: recorded and warned about, blocks nothing."""


@dataclass(frozen=True)
class Target:
    """A device as it was used. Costs of two different targets never mix.

    Attributes:
        device: the model's name, as the hardware reports it.
        runtime: `onnxruntime`, `torch`, `tvm`, `dpu-sim` or the name that a log gives.
        runtime_version: major and minor, such as `1.30`.
        precision: `fp32`, `fp16`, `int8` ...
        batch: images in one inference; a latency is that of the whole batch.
        threads: processor threads of one inference; 0 where that is not known, or the notion does not apply.
        tuned: whether kernels were tuned for the shapes.
        graphs: whether an inference is one replayed CUDA graph, without the cost of launching its kernels one by one.
        cache: `warm` where an inference follows another of its own kind, `cold` where caches were flushed before it.
        origin: measured by hwnas, imported from somebody's log, or simulated.
    """

    device: str
    runtime: str
    runtime_version: str = ""
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1
    tuned: bool = False
    graphs: bool = False
    cache: str = "warm"
    origin: Origin = "measured"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str = "target") -> Target:
        """Rebuild a target; raises `InputError` where a key is unknown or missing, or its value not one it can have."""
        if not isinstance(values, dict):
            raise InputError(f"{where}: not a target: {values!r}")
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"{where}: unknown keys of a target: {', '.join(unknown)}")
        try:
            target = cls(**values)
        except TypeError as error:
            raise InputError(f"{where}: not a target: {error}") from error
        for name, default in asdict(cls("", "")).items():
            if type(getattr(target, name)) is not type(default):
                raise InputError(
                    f"{where}: target.{name} is {getattr(target, name)!r}, expected a {type(default).__name__}"
                )
        if target.batch < 1 or target.threads < 0 or not target.precision:
            raise InputError(
                f"{where}: no device runs batch {target.batch} on {target.threads} threads in precision "
                f"{target.precision!r}"
            )
        if target.cache not in CACHES or target.origin not in get_args(Origin):
            raise InputError(
                f"{where}: target.cache is one of {', '.join(CACHES)} and target.origin one of "
                f"{', '.join(get_args(Origin))}, not {target.cache!r} and {target.origin!r}"
            )
        return target

    def __str__(self) -> str:
        parts = [self.device, f"{self.runtime} {self.runtime_version}".strip(), self.precision, f"batch {self.batch}"]
        if self.threads:
            parts.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        parts += ["tuned"] * self.tuned + ["CUDA graphs"] * self.graphs
        parts += [self.cache] * (self.cache != "warm") + [self.origin] * (self.origin != "measured")
        return ", ".join(parts)

    def require_same(self, other: Target, what: str) -> None:
        """Raise `TargetMismatchError` naming the fields in which `other` differs."""
        if self != other:
            differing = [
                f"{name} {value!r} against {getattr(other, name)!r}"
                for name, value in asdict(self).items()
                if value != getattr(other, name)
            ]
            raise TargetMismatchError(
                f"{what} is of another target ({', '.join(differing)}); "
                "measure it on the same target, or keep the two apart"
            )
