"""Devices that this machine is not: bundles, logs that come back, the DPU's checker, quantiser and simulator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hwnas.core.table import CostTable
from hwnas.spaces import get_space

SPACE = "nasbench-macro"
FPGA = ("profile", "--device", "fpga", "--target", "zcu102-b4096", "--space", SPACE)


def hwnas(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hwnas", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_a_simulated_run_is_fitted_and_searched(tmp_path: Path) -> None:
    run, model, found = tmp_path / "run", tmp_path / "model", tmp_path / "found"
    simulated = f"profile --device fpga --runtime dpu-sim --target zcu102-b4096 --space {SPACE} --networks 60"
    done = hwnas(*simulated.split(), "--out", run, "--json")
    assert done.returncode == 0, done.stderr
    table = CostTable.load(run)
    assert table.target.origin == "simulated" and table.vector(get_space(SPACE), "latency_ms").min() > 0
    fit = hwnas("fit-predictor", run, "--space", SPACE, "--metric", "latency_ms", "--model", "linear2", "--out", model)
    assert fit.returncode == 0, fit.stderr
    budget = float(CostTable.load(run).vector(get_space(SPACE), "latency_ms").sum() / 4)
    accuracy, bound = f"table:{_accuracies(tmp_path)}#top1_acc", f"latency_ms={budget}"
    sought = "--space", SPACE, "--accuracy", accuracy, "--cost", model, "--max", bound
    done = hwnas("search", *sought, "--out", found, "--json")
    assert done.returncode == 0, done.stderr
    best = json.loads(done.stdout)["best"]
    assert best["costs"]["latency_ms"] <= budget and best["certificate"]["status"] == "not_measured"
    done = hwnas("report", tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert f"{len(get_space(SPACE).primitives())} simulated" in page and "at 287 MHz" in page


def _accuracies(folder: Path) -> Path:
    space = get_space(SPACE)
    rows = space.distinct(space.sample(500, 0))
    lines = [f"{space.format(row)},{value:.4f}" for row, value in zip(rows, space.macs(rows) / 1e7, strict=True)]
    path = folder / "accuracies.csv"
    path.write_text("\n".join(["arch,top1_acc", *lines]) + "\n")
    return path


def test_bundles_hold_every_primitive(tmp_path: Path) -> None:
    primitives = len(get_space(SPACE).primitives())
    files = hwnas("profile", "--device", "file", "--space", SPACE, "--emit", tmp_path / "files", "--json")
    assert json.loads(files.stdout)["primitives"] == primitives, files.stderr
    assert len(list((tmp_path / "files" / "onnx").glob("*.onnx"))) == primitives


def test_an_exported_network_is_checked_for_a_dpu(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    assert hwnas("export", "01201220", "--space", SPACE, "--out", model).returncode == 0
    report = json.loads(hwnas("fpga", "check", model, "--target", "zcu102-b4096", "--json").stdout)
    assert report["fits"] and report["dpu_subgraphs"] == 1
    quantised = hwnas(
        "fpga", "quantize", model, "--data", "digits", "--out", tmp_path / "int8.onnx", "--images", 32, "--json"
    )
    assert quantised.returncode == 0, quantised.stderr
    assert json.loads(quantised.stdout)["valid"] and (tmp_path / "int8.onnx").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ("profile", "--device", "fpga", "--space", SPACE, "--out", "nothing"),
        ("profile", "--device", "fpga", "--target", "zcu103", "--space", SPACE, "--emit", "nothing"),
        ("profile", "--device", "file", "--space", SPACE, "--out", "nothing"),
        ("profile", "--device", "cpu", "--space", SPACE, "--emit", "nothing"),
        ("profile", "--device", "file", "--space", SPACE, "--emit", "nothing", "--precision", "fp16"),
        ("profile", "--device", "file", "--space", SPACE, "--emit", "nothing", "--networks", "-3"),
        (*FPGA, "--emit", "nothing", "--batch", "8"),
        (*FPGA, "--emit", "nothing", "--networks", "100000"),
        ("parse", "nowhere", "--out", "nothing.csv"),
        ("fpga", "check", "pyproject.toml", "--target", "zcu102-b4096"),
        ("search", "--space", SPACE, "--accuracy", "nowhere", "--out", "nothing"),
        ("search", "--space", SPACE, "--accuracy", "nowhere", "--max", "latency_ms", "--out", "nothing"),
        ("export", "0120122", "--space", SPACE, "--out", "nothing"),
        ("verify", "nowhere"),
        ("report", "nowhere"),
        ("train-supernet", "nowhere.yaml", "--out", "nothing"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments: tuple[str, ...]) -> None:
    done = hwnas(*arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("hwnas: ")
    assert not Path("nothing").exists() and not Path("nothing.csv").exists()
