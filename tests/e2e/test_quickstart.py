"""The README's first command, for real: profile, fit, train, search, verify, report."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from hwnas.core.table import CostTable
from hwnas.report import read_figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    done = subprocess.run(
        [sys.executable, "-m", "hwnas", "quickstart", "--out", str(folder), "--json"],
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode in (0, 3), done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((folder / "quickstart.json").read_text())
    assert done.returncode == 3 * any(w["certificate"]["status"] == "failed" for w in report["winners"])
    return folder


@pytest.fixture
def report(folder: Path) -> dict:
    return json.loads((folder / "quickstart.json").read_text())


def test_every_primitive_and_a_hundred_networks_are_measured(folder: Path, report: dict) -> None:
    table = CostTable.load(folder / "profile" / "table.csv")
    assert len(table.rows) == report["run"]["primitives"] == 96
    assert report["run"]["networks"] >= 100 and report["run"]["failed"] == 0
    assert all(row["latency_ms"].value > 0 for row in table.rows.values())
    assert report["run"]["noise"]["pairs"] >= 10


def test_every_model_is_scored_beside_the_noise(report: dict) -> None:
    """By how much a model beats the sum depends on the machine's noise: the contract of predictors asks for it."""
    assert set(report["models"]) == {"sum", "linear1", "linear2", "mlp", "lstm"}
    for model in report["models"].values():
        assert 0 < model["metrics"]["mape"] < 100
        assert model["noise"]["mape"] > 0 and model["n_test"] >= 30


def test_three_winners_are_certified(folder: Path, report: dict) -> None:
    winners = report["winners"]
    assert len(winners) == 3
    budgets = [winner["certificate"]["budget"] for winner in winners]
    assert budgets == sorted(budgets) and budgets[2] > 1.3 * budgets[0]
    for number, winner in enumerate(winners, start=1):
        certificate, search = winner["certificate"], folder / "searches" / f"budget-{number}"
        assert certificate["status"] == ("passed" if certificate["measured"] <= certificate["budget"] else "failed")
        assert certificate["low"] <= certificate["measured"] <= certificate["high"]
        assert certificate["difference"] < 1e-3
        used = max(winner["costs"]["latency_ms"], certificate["measured"]) / certificate["budget"]
        assert used >= 0.8 or any(
            "budget" in note for note in json.loads((search / "search.json").read_text())["notes"]
        )
        session = onnxruntime.InferenceSession(search / "winner.onnx", providers=["CPUExecutionProvider"])
        assert session.get_outputs()[0].shape == [1, 10]
    assert max(winner["accuracy"] for winner in winners) > 0.5


def test_the_report_holds_all_of_it(folder: Path, report: dict) -> None:
    figures = read_figures(report["report"])
    assert len(figures["predicted-latency-ms"]["data"]) == 6
    assert len(figures["certificates-latency-ms"]["data"][0]["y"]) == 3
    assert len(figures["front-latency-ms"]["data"][1]["x"]) == 3
    cells = [cell for row in figures["table-profile-latency-ms"]["data"][0]["z"] for cell in row]
    assert sum(cell is not None for cell in cells) == 96
