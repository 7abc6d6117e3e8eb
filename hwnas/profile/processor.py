"""What a processor is called."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from pathlib import Path

CPU_INFO = "/proc/cpuinfo"
NAMES = ("model name", "Model", "Hardware")
ASK_S = 5.0


def cpu_model() -> str:
    """What this machine's processor is called."""
    with suppress(OSError):
        if name := processor_name(Path(CPU_INFO).read_text(errors="replace")):
            return name
    if platform.system() == "Darwin":
        # Python's own answer is "arm" for all of Apple's.
        with suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_S).stdout
            if name := told.strip():
                return name
    return platform.processor() or platform.machine()


def processor_name(cpuinfo: str) -> str:
    """The processor's name by the text of Linux's /proc/cpuinfo; empty where that has none.

    A virtual machine may hide the number ("AMD EPYC"); as the name of several generations it is followed by the family
    and the model then.
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        field, _, value = line.partition(":")
        fields.setdefault(field.strip(), " ".join(value.split()))
    name = next((fields[field] for field in NAMES if fields.get(field)), "")
    family, model = fields.get("cpu family"), fields.get("model")
    if not name or any(map(str.isdigit, name)) or not (family and model):
        return name
    return f"{name} (family {family} model {model})"
