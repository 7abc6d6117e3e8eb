"""Each plot of a report holds its data."""

import html
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from hwnas.core.errors import InputError
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.predict import fit_predictor
from hwnas.report import figures, read_figures, write_report
from hwnas.search import Source, search
from hwnas.spaces import get_space

SPACE = get_space("nasbench-macro")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, measured networks, a predictor and a search over them, on a made-up foreign device."""
    folder = tmp_path_factory.mktemp("everything")
    rng = np.random.default_rng(0)
    population = SPACE.distinct(SPACE.sample(400, rng))
    latency = SPACE.macs(population) / 1e8 * rng.normal(1, 0.02, len(population))
    columns = {
        "arch": [SPACE.format(row) for row in population],
        "latency_ms": latency,
        "top1_acc": 20 + 4 * np.log(SPACE.parameters(population)),
    }
    parquet.write_table(pa.table(columns), folder / "networks.parquet")
    rows = {p.key: {"latency_ms": Cost(p.macs / 1e8 + 0.01, verdict="imported")} for p in SPACE.primitives()}
    rows[next(iter(rows))] = {"latency_ms": Cost(math.nan, verdict="failed")}
    CostTable(Target("board", "runtime", origin="imported"), rows).save(folder / "table.csv")
    fit_predictor(folder / "networks.parquet", SPACE, "latency_ms", model="ridge", test=50, out=folder / "ridge")
    accuracy = f"table:{folder / 'networks.parquet'}#top1_acc"
    for number, budget in enumerate((0.5, 0.8)):
        search(SPACE, accuracy, str(folder / "ridge"), max={"latency_ms": budget}, out=folder / f"budget-{number}")
    return folder


def test_page_shows_what_the_folder_holds(folder: Path) -> None:
    path = write_report(folder)
    drawn = read_figures(path)
    predicted = drawn["predicted-latency-ms"]["data"]
    assert [trace["name"] for trace in predicted] == ["ridge", "equal"]
    assert len(predicted[0]["x"]) == len(predicted[0]["y"]) == 50
    assert np.corrcoef(predicted[0]["x"], predicted[0]["y"])[0, 1] > 0.9
    assert drawn["errors-latency-ms"]["data"][0]["y"][0] > 0
    points, winners = drawn["front-latency-ms"]["data"]
    assert len(points["x"]) > 2 and len(winners["x"]) == 2
    assert all(cost <= budget for cost, budget in zip(winners["x"], (0.5, 0.8), strict=True))
    budgets = drawn["certificates-latency-ms"]["data"][0]
    assert dict(zip(budgets["x"], budgets["y"], strict=True)) == {"budget-0": 0.5, "budget-1": 0.8}
    text = html.unescape(path.read_text())
    assert "not measured" in text and winners["text"][0] in text


def test_page_needs_no_network(folder: Path) -> None:
    text = write_report(folder).read_text()
    assert "<script src=" not in text and "<link" not in text and "Plotly.newPlot" in text


def test_heat_map_has_a_cell_for_each_measured_primitive(folder: Path) -> None:
    table = CostTable.load(folder / "table.csv")
    trace = figures.table_heatmap(table, "latency_ms")["data"][0]
    shown = [value for row in trace["z"] for value in row if value is not None]
    assert len(shown) == len(table.rows) - 1
    assert sum(shown) == pytest.approx(
        sum(
            r["latency_ms"].value
            for r in table.rows.values()
            if r["latency_ms"].n == 0 and math.isfinite(r["latency_ms"].value)
        )
    )


def test_certificates_show_budget_prediction_and_interval() -> None:
    row = {"name": "a", "budget": 2.0, "predicted": 1.9, "measured": 1.95, "low": 1.9, "high": 2.05, "status": "passed"}
    budget, predicted, measured = figures.certificates([row], "ms")["data"]
    assert (budget["y"], predicted["y"], measured["y"]) == ([2.0], [1.9], [1.95])
    assert measured["error_y"]["array"] == pytest.approx([0.1])
    assert measured["error_y"]["arrayminus"] == pytest.approx([0.05])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished profiling run"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        write_report(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_front_of_what_is_better_when_larger(tmp_path: Path) -> None:
    accuracy = Source("accuracy", "accuracy", lambda population: population.sum(1) / 20)
    speed = Source("speed", "throughput_ips", lambda population: 1e3 / (1 + population.sum(1)))
    search(SPACE, accuracy, {"throughput_ips": speed}, min={"throughput_ips": 100}, front=True, out=tmp_path / "fast")
    points, winners = read_figures(write_report(tmp_path))["front-throughput-ips"]["data"]
    assert len(points["x"]) > 5 and np.all(np.diff(points["x"]) < 0) and np.all(np.diff(points["y"]) > 0)
    assert len(winners["x"]) == 1 and winners["x"][0] >= 100


def test_files_of_other_programs_are_left_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "all")
    (tmp_path / "all" / "web").mkdir()
    (tmp_path / "all" / "web" / "model.json").write_text('{"format": "layers-model"}')
    assert write_report(tmp_path / "all").is_file()
