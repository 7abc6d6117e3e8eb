"""What a processor is called, in Python and in the scripts of a bundle."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hwnas.profile import processor
from hwnas.profile.processor import cpu_model, processor_name

COMMON = Path(__file__).resolve().parents[2] / "hwnas" / "profile" / "scripts" / "common.sh"
SECOND = "\nprocessor\t: 1\nmodel\t\t: 9\nmodel name\t: B 9\n"
X86 = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: {}\n" + SECOND


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (X86.format("AMD EPYC"), "AMD EPYC (family 25 model 1)"),
        (X86.format("AMD  EPYC 7763 64-Core Processor"), "AMD EPYC 7763 64-Core Processor"),
        ("processor: 0\nmodel name: Virtual CPU\n", "Virtual CPU"),
        ("processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4", "Raspberry Pi 4"),
        ("Hardware : Qualcomm", "Qualcomm"),
        ("model name :\nHardware : Qualcomm", "Qualcomm"),
        ("cpu family: 6\nmodel: 1", ""),
        ("", ""),
    ],
)
def test_a_name_that_generations_share_is_followed_by_family_and_model(text: str, name: str) -> None:
    assert processor_name(text) == name


def test_a_mac_is_asked_what_its_processor_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "CPU_INFO", str(tmp_path / "none"))
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert cpu_model() == "arm"
    sysctl = tmp_path / "sysctl"
    sysctl.write_text("#!/bin/sh\n[ \"$*\" = '-n machdep.cpu.brand_string' ] && echo 'Apple M1 Pro'\n")
    sysctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert cpu_model() == "Apple M1 Pro"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or Path("/proc/device-tree/model").exists(), reason="no cpuinfo")
@pytest.mark.skipif(shutil.which("getprop") is not None, reason="an Android device names itself")
def test_scripts_of_a_bundle_name_this_machine_as_profile_does() -> None:
    done = subprocess.run(
        ["bash", "-c", f"source {COMMON} && device_name"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.stdout == cpu_model(), done.stderr
