"""The published logs: every one is read, and agrees with an independent reading of the same files."""

import os
from pathlib import Path

import numpy as np
import pytest

from hwnas.core.errors import ParseError
from hwnas.fpga import check_primitive, get_target
from hwnas.parse import parse
from hwnas.spaces import Primitive, get_space

DATA = Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no reference data at {DATA} (HWNAS_REFERENCE_DATA)")


def test_every_ultra96_folder_becomes_a_row() -> None:
    report = parse([DATA / "vaitrace_ultra96"], space=get_space("ofa-mbv3:width=1.2"))
    assert len(report.entries) == 49
    assert report.table is not None
    assert len(report.table.rows) == 46
    assert report.unread == ()
    assert len(report.unmatched) == 3
    for entry in report.entries:
        median, mean = entry.record.costs["latency_ms"].value, entry.record.details["mean_ms"]
        assert abs(median / mean - 1) < 0.02 or "outliers" in entry.record.flags


def test_the_checker_agrees_with_the_board() -> None:
    target = get_target("ultra96-b2304")
    report = parse([DATA / "vaitrace_ultra96"])
    for entry in report.entries:
        assert entry.record.details["dpu_subgraphs"] == 1
        assert check_primitive(Primitive.from_key(str(entry.primitive)), target).fits


@pytest.mark.parametrize("name", ["ARCH4096_CIFAR100_ResNet50", "ARCH1024_CIFAR10_vgg16", "arch4096_unet_cityscapes64"])
def test_energies_agree_with_the_raw_rails(name: str) -> None:
    base = DATA / "zcu102_power" / f"{name}.csv"
    amps, volts = (
        np.genfromtxt(f"{base}{suffix}", delimiter=";", skip_header=1) for suffix in (".raw_currents", ".raw_voltages")
    )
    power = (np.maximum(amps[:, 2:], 0) * volts[:, 2:]).sum(axis=1) / 1e3
    start, end = np.genfromtxt(f"{base}.time", delimiter=";", skip_header=1)
    inside = (amps[:, 1] >= start) & (amps[:, 1] <= end)
    expected = power[inside].mean() * (end - start)
    record = parse([base]).entries[0].record
    assert record.details["run_energy_mj"] == pytest.approx(expected, rel=0.02)


def test_logs_that_stop_before_the_run_are_refused() -> None:
    with pytest.raises(ParseError, match="do not cover"):
        parse([DATA / "zcu102_power" / "ARCH1024_CIFAR100_DenseNet-201.csv"])
    report = parse([DATA / "zcu102_power"], keep_going=True)
    assert len(report.entries) == 9
    assert len(report.refused) == 5
