"""The additivity audit and active measurement."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwnas.core.errors import InputError, TargetMismatchError
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.predict import audit, next_to_measure, progress_of
from hwnas.predict.data import Measurements
from hwnas.predict.gp import GaussianProcess
from hwnas.predict.intervals import genotype_groups
from hwnas.predict.metrics import score
from hwnas.profile import Request, Run, Settings
from hwnas.spaces import get_space

SPACE = get_space("nasbench-macro")
COSTS = np.array([0.02 + p.macs / 1e7 for p in SPACE.primitives()])


def run_folder(folder: Path, whole: np.ndarray, population: np.ndarray) -> Path:
    rows = {p.key: {"latency_ms": Cost(c, verdict="steady")} for p, c in zip(SPACE.primitives(), COSTS, strict=True)}
    CostTable(Target("toy", "torch"), rows).save(folder / "table.csv")
    archs = [SPACE.format(row) for row in population]
    pq.write_table(pa.table({"arch": archs, "latency_ms": whole}), folder / "networks.parquet")
    return folder


@pytest.fixture
def population() -> np.ndarray:
    return SPACE.distinct(SPACE.sample(200, 0))[:120]


def test_finds_offset_and_slope(tmp_path: Path, population: np.ndarray) -> None:
    total = SPACE.total(COSTS, population)
    report = audit(run_folder(tmp_path, 0.8 * total + 3.0, population), SPACE)
    assert (report.offset, report.slope) == (pytest.approx(3.0), pytest.approx(0.8))
    assert report.per_block == pytest.approx(0, abs=1e-6)
    assert report.recommendation == "linear" and report.systematic > 0.99
    assert report.ratio[1] <= report.ratio[0] <= report.ratio[2] < 1.25
    assert report.steps[0].mape > 5 > report.steps[1].mape
    json.dumps(report.to_json(), allow_nan=False)


def test_finds_a_term_a_block(tmp_path: Path, population: np.ndarray) -> None:
    running = (SPACE.blocks(population)[:, SPACE.searchable] >= 0).sum(axis=1)
    report = audit(run_folder(tmp_path, SPACE.total(COSTS, population) + 0.5 * running, population), SPACE)
    assert report.per_block == pytest.approx(0.5)
    assert {step.name: step.mape for step in report.steps}["linear2"] < 1e-6


def test_recommends_the_table_or_a_learnt_model(tmp_path: Path, population: np.ndarray) -> None:
    total = SPACE.total(COSTS, population)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert audit(run_folder(tmp_path / "a", total, population), SPACE).recommendation == "table"
    odd = np.where(population[:, 0] == 2, 2.0, 1.0) * total
    assert audit(run_folder(tmp_path / "b", odd, population), SPACE).recommendation == "learned"


def test_audit_needs_a_table_and_networks(tmp_path: Path, population: np.ndarray) -> None:
    run_folder(tmp_path, np.arange(1.0, 3.0), population[:2])
    with pytest.raises(InputError, match="three or more"):
        audit(tmp_path, SPACE)
    table = CostTable.load(tmp_path / "table.csv")
    run_folder(tmp_path, np.arange(1.0, 9.0), population[:8])
    request = Request(SPACE.spec, 8, chosen=tuple(SPACE.format(row) for row in population[:8]))
    Run(tmp_path, table.target, (request,), tmp_path / "samples.sqlite", 0.02).save(Settings())
    CostTable(Target("another", "tvm", batch=32), table.rows).save(tmp_path / "other.csv")
    with pytest.raises(TargetMismatchError, match="other"):
        audit(tmp_path, SPACE, table=tmp_path / "other.csv")
    (tmp_path / "table.csv").unlink()
    with pytest.raises(InputError, match="no cost table to audit"):
        audit(tmp_path, SPACE)


def test_next_networks_are_new_and_teach_more_than_random_ones() -> None:
    space = get_space("mnasnet")
    rng = np.random.default_rng(0)
    costs = np.array([0.1 + p.macs / 1e7 for p in space.primitives()]) * rng.uniform(0.3, 3, len(space.primitives()))
    test = space.sample(300, 99)
    errors = {"chosen": [], "random": []}
    for seed in range(2):
        start = space.distinct(space.sample(60, seed))[:40]
        chosen = next_to_measure(space, "latency_ms", start, space.total(costs, start), 80, seed=seed)
        both = space.distinct(np.concatenate([start, chosen]))
        assert len(both) == 120
        more = np.concatenate([start, space.sample(80, seed + 50)])
        for name, rows in (("chosen", both), ("random", more)):
            model = GaussianProcess(space).fit(rows, space.total(costs, rows))
            errors[name].append(score("mape", space.total(costs, test), model.predict(test, extrapolate=True)))
    assert np.mean(errors["chosen"]) < np.mean(errors["random"])


def test_first_networks_are_random_and_distinct() -> None:
    first = next_to_measure(SPACE, "latency_ms", np.zeros((0, 8), dtype=np.int16), np.zeros(0), 12)
    assert first.shape == (12, 8) and len(np.unique(first, axis=0)) == 12


def test_progress_is_surer_with_more(population: np.ndarray) -> None:
    total = SPACE.total(COSTS, population) * np.random.default_rng(0).normal(1, 0.08, len(population))

    def at(n: int) -> Measurements:
        rows = population[:n]
        return Measurements(SPACE, "latency_ms", rows, total[:n], genotype_groups(rows))

    few, many = progress_of(at(20), "within_10"), progress_of(at(120), "within_10")
    assert few.surely < few.value and many.surely < many.value
    assert many.value - many.surely < few.value - few.surely
    assert many.n == 120 and 0.5 < many.value < 0.95


def test_audit_command(tmp_path: Path, population: np.ndarray) -> None:
    from typer.testing import CliRunner

    from hwnas.cli import app

    run_folder(tmp_path, 0.8 * SPACE.total(COSTS, population) + 3.0, population)
    done = CliRunner().invoke(app, ["audit", str(tmp_path), "--space", SPACE.spec, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["recommendation"] == "linear"
