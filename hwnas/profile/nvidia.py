"""What the NVIDIA driver says of a GPU: its name, clocks, power, temperature, throttling and energy.

Read through NVML (the package `nvidia-ml-py`, optional). `CUDA_VISIBLE_DEVICES` chooses the GPU, as it does for CUDA,
by the numbers that `nvidia-smi` shows: CUDA's own order, the fastest first, is another one where GPUs differ.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

THROTTLED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Reasons for a lowered clock (NVML's nvmlClocksEventReasons) that make a timing one of the cooling or the supply."""

NAME_BYTES = 256
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""The environment in which CUDA numbers GPUs as NVML does."""


class Gpu:
    """One GPU under `nvml`, the module `pynvml` or what stands in for it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    @property
    def name(self) -> str:
        name = self.nvml.nvmlDeviceGetName(self.handle)
        return name.decode() if isinstance(name, bytes) else str(name)

    def conditions(self) -> dict[str, Any]:
        """SM and memory clock in MHz, power in W, temperature in Celsius, and `throttled`: why the clock is lowered.

        What this GPU does not tell is left out.
        """
        nvml, handle = self.nvml, self.handle
        found = {
            "clock_mhz": self._ask("ClockInfo", handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self._ask("ClockInfo", handle, nvml.NVML_CLOCK_MEM),
            "power_w": self._ask("PowerUsage", handle),
            "temperature_c": self._ask("Temperature", handle, nvml.NVML_TEMPERATURE_GPU),
        }
        if found["power_w"] is not None:
            found["power_w"] /= 1e3
        reasons = self._ask("CurrentClocksEventReasons", handle)
        if reasons is None:  # as drivers before R535 call it
            reasons = self._ask("CurrentClocksThrottleReasons", handle) or 0
        why = ", ".join(text for bit, text in THROTTLED.items() if reasons & bit)
        return {name: value for name, value in found.items() if value is not None} | ({"throttled": why} if why else {})

    def joules(self) -> float | None:
        """Energy since the driver was loaded, in joules; None where the GPU counts none (before Volta)."""
        count = self._ask("TotalEnergyConsumption", self.handle)
        return None if count is None else count / 1e3

    def _ask(self, what: str, *arguments: Any) -> Any:
        """The answer of `nvmlDeviceGet...`; None where this GPU, or this version of NVML, has none."""
        try:
            return getattr(self.nvml, f"nvmlDeviceGet{what}")(*arguments)
        except (self.nvml.NVMLError, AttributeError):
            return None


@lru_cache(maxsize=1)
def gpu() -> Gpu | None:
    """The GPU in use; None without NVML or without a GPU."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:
        return None
    chosen = _chosen()
    try:
        if chosen.startswith(("GPU-", "MIG-")):
            return Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(chosen))
        return Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(int(chosen)))
    except (nvml.NVMLError, ValueError):
        return None


def _chosen() -> str:
    """The first device that `CUDA_VISIBLE_DEVICES` leaves to see: a number or a UUID, empty for none."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip().removeprefix("-1")


def available() -> bool:
    return gpu() is not None


def conditions() -> dict[str, Any]:
    """The conditions of the GPU in use; empty where nothing tells them."""
    found = gpu()
    return found.conditions() if found else {}


def names() -> list[str]:
    """The GPU in use, from NVML or CUDA, else those that the kernel driver lists; empty where there are none."""
    found = gpu()
    if found or not _chosen():
        return [found.name] if found else []
    if name := _cuda_name():
        return [name]
    listed = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        listed.append(lines.get("Model", "NVIDIA GPU").strip())
    return listed


def _cuda_name() -> str:
    """The first GPU by CUDA's driver library, which heeds `CUDA_VISIBLE_DEVICES`; empty without either."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    os.environ.update(ORDER)
    device, name = ctypes.c_int(), ctypes.create_string_buffer(NAME_BYTES)
    failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    failed = failed or cuda.cuDeviceGetName(name, NAME_BYTES, device)
    return "" if failed else name.value.decode()
