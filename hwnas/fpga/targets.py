"""DPU targets: data files that say what a DPU can run and how wide its engines are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hwnas.core.config import Config, parse_config, read_yaml
from hwnas.core.errors import InputError, UnknownNameError
from hwnas.core.files import data_folder

LIMITS = (
    *("conv_kernel", "conv_stride", "conv_weights", "channels", "dilated_channels"),
    *("depthwise_kernel", "depthwise_stride", "depthwise_weights", "deconv_ratio"),
    *("pool_kernel", "pool_stride", "pad_before", "pad_after"),
)


class Limit(Config):
    """An inclusive range, and who says so; the maximum counts in multiples of the DPU's parameter `unit`, if named."""

    min: int = Field(ge=0)
    max: int = Field(ge=0)
    source: str
    unit: Literal["channel_parallel", "bank_depth"] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Limit:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, max only {self.max}")
        return self


class Known(Config):
    """A value and its source."""

    value: Annotated[float, Field(allow_inf_nan=False)] | list[int]
    source: str


class Names(Config):
    """Names of ONNX operations and their source."""

    value: list[str]
    source: str


class DpuTarget(Config):
    """One DPU as it is built on a board.

    Attributes:
        name: what it is called on the command line.
        device: the DPU's name as the hardware reports it, without the fingerprint.
        fingerprint: of `arch.json`; None where only the board itself can tell.
        pixel_parallel, channel_parallel: pixels and channels that the convolution engine works on in a cycle.
        bank_depth: lines of an on-chip memory bank.
    """

    name: str
    title: str
    family: str
    device: str
    clock_mhz: float = Field(gt=0, allow_inf_nan=False)
    pixel_parallel: int = Field(ge=1)
    channel_parallel: int = Field(ge=1)
    bank_depth: int = Field(ge=1)
    source: str
    limits: dict[str, Limit]
    leaky_relu_alpha: Known
    bilinear_scales: Known
    fused_activations: Names
    alu_activations: Names
    fingerprint: str | None = None

    @field_validator("limits")
    @classmethod
    def _every_limit(cls, limits: dict[str, Limit]) -> dict[str, Limit]:
        for name in limits:
            if name not in LIMITS:
                raise ValueError(str(UnknownNameError("limit", name, LIMITS)))
        if missing := [name for name in LIMITS if name not in limits]:
            raise ValueError(f"lacks {', '.join(missing)}; extends: dpuczdx8g gives them")
        return limits

    def bounds(self, limit: str) -> tuple[int, int]:
        """Least and greatest allowed value of `limit`."""
        entry = self.limits[limit]
        unit = {None: 1, "channel_parallel": self.channel_parallel, "bank_depth": self.bank_depth}[entry.unit]
        return entry.min, entry.max * unit

    @property
    def on_chip_bytes(self) -> int:
        """Feature memory: as many banks as pixels in parallel (8 in PG338's B4096), one byte a channel and line."""
        return self.pixel_parallel * self.channel_parallel * self.bank_depth

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "device": self.device,
            "fingerprint": self.fingerprint,
            "clock_mhz": self.clock_mhz,
            "pixel_parallel": self.pixel_parallel,
            "channel_parallel": self.channel_parallel,
        }


_ABSTRACT = ("dpuczdx8g", "template")


def target_names() -> list[str]:
    """The targets that ship with the project."""
    with data_folder("fpga") as folder:
        return sorted(path.stem for path in (folder / "targets").glob("*.yaml") if path.stem not in _ABSTRACT)


def get_target(name: str | Path) -> DpuTarget:
    """The target called `name`, or the one in the YAML file at that path.

    Raises `InputError` where there is none, or the file lacks a key or has one that nobody reads.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return parse_config({"name": path.stem, **_read(path)}, DpuTarget, str(path))
    if str(name) not in target_names():
        raise UnknownNameError("DPU target", str(name), target_names())
    with data_folder("fpga") as folder:
        shipped = folder / "targets" / f"{name}.yaml"
        return parse_config({"name": str(name), **_read(shipped)}, DpuTarget, str(shipped))


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """The file's keys over those of the file it extends, `limits` merged one by one."""
    values = read_yaml(path, "DPU target")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if depth > 8:
        raise InputError(f"{path}: `extends` goes round in a circle")
    with data_folder("fpga") as folder:
        beside, shipped = path.parent / f"{parent}.yaml", folder / "targets" / f"{parent}.yaml"
        base = _read(beside if beside.is_file() else shipped, depth + 1)
    own = values.get("limits", {})
    if not isinstance(own, dict):
        raise InputError(f"{path}: limits: a mapping of limits is expected")
    return {**base, **values, "limits": {**base.get("limits", {}), **own}}
