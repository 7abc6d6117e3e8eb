"""Few measurements with the help of other devices."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwnas.core.errors import InputError
from hwnas.predict import fit_predictor, load_predictor, pick_for_transfer
from hwnas.predict.sources import read_sources
from hwnas.predict.transfer import greedy_variance
from hwnas.spaces import get_space

SPACE = get_space("nasbench-macro")


def device(population: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    primitives = SPACE.primitives()
    macs = np.array([p.macs / 1e7 for p in primitives])
    moved = np.array([p.bytes_moved / 4e6 for p in primitives])
    mixed = rng.uniform(0.5, 2) * macs + rng.uniform(0.5, 2) * moved + rng.uniform(0, 0.3)
    return SPACE.total(mixed * rng.normal(1, 0.1, len(mixed)), population) * rng.normal(1, 0.01, len(population))


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    sources, new = SPACE.distinct(SPACE.sample(300, 0)), SPACE.distinct(SPACE.sample(400, 1))
    columns = {f"device{i}_ms": device(sources, i) for i in range(5)}
    pq.write_table(pa.table({"arch": [SPACE.format(r) for r in sources], **columns}), tmp_path / "others.parquet")
    pq.write_table(
        pa.table({"arch": [SPACE.format(r) for r in new], "new_ms": device(new, 9)}), tmp_path / "new.parquet"
    )
    return tmp_path / "others.parquet", tmp_path / "new.parquet"


def test_ten_rows_and_other_devices_beat_ten_rows_alone(tables: tuple[Path, Path], tmp_path: Path) -> None:
    others, new = tables
    request = {"train": 10, "test": 200, "seed": 1}
    helped = fit_predictor(new, SPACE, "new_ms", transfer_from=[others], out=tmp_path / "m", **request)  # type: ignore[arg-type]
    alone = fit_predictor(new, SPACE, "new_ms", model="gp", **request)  # type: ignore[arg-type]
    assert (helped.n_train, helped.n_test, helped.model.name) == (10, 200, "transfer")
    assert helped.metrics["mape"] < alone.metrics["mape"]  # type: ignore[operator]
    assert helped.metrics["spearman"] > 0.9  # type: ignore[operator]
    assert helped.expected is not None and 0.8 < helped.expected["spearman"] <= 1
    assert helped.metrics["coverage_90"] > 0.6  # type: ignore[operator]
    opened, population = load_predictor(tmp_path / "m"), SPACE.sample(20, 3)
    expected = helped.model.predict(population, extrapolate=True)
    np.testing.assert_allclose(opened.predict(population, extrapolate=True), expected)


def test_parsed_logs_are_of_one_device(tmp_path: Path) -> None:
    population = SPACE.distinct(SPACE.sample(30, 0))
    archs, cost = [SPACE.format(row) for row in population], device(population, 1)
    rows = [f"net{i},,{arch},{ms},{ms + 0.02},{1e3 / ms}" for i, (arch, ms) in enumerate(zip(archs, cost, strict=True))]
    text = "\n".join(["subject,primitive,arch,latency_ms,h2d_ms,queries_per_s", *rows, "p1,1:k,,0.5,0.1,10"]) + "\n"
    (tmp_path / "a.records.csv").write_text(text)
    for name in ("a.csv", "a.records.csv"):
        (found,) = read_sources([tmp_path / name], SPACE, "latency_ms")
        assert found.devices == ("latency_ms",) and len(found.costs) == len(population)
        with pytest.raises(InputError, match="no column of latency_ms but latency_ms"):
            read_sources([tmp_path / name], SPACE, "latency_ms", target=tmp_path / "a.csv")


def test_greedy_variance_takes_what_is_least_certain() -> None:
    points = np.array([[1.0, 0], [0.99, 0], [0, 0.5], [0, 0.1]])
    assert greedy_variance(points @ points.T, 1e-3, 3).tolist() == [0, 2, 1]
    assert len(set(greedy_variance(np.ones((4, 4)), 1e-3, 4).tolist())) == 4


def test_tables_that_do_not_help_are_refused(tables: tuple[Path, Path], tmp_path: Path) -> None:
    _, new = tables
    with pytest.raises(InputError, match="needs the tables of other devices"):
        fit_predictor(new, SPACE, "new_ms", model="transfer")
    with pytest.raises(InputError, match="no column of latency_ms but new_ms"):
        fit_predictor(new, SPACE, "new_ms", transfer_from=[new], train=10)
    with pytest.raises(InputError, match="no run folder and no table"):
        fit_predictor(new, SPACE, "new_ms", transfer_from=[tmp_path / "nothing.parquet"], train=10)
    for cells, why in ((["a"] * 3, "no number"), ([1.0] * 3, "other_ms is the same for all networks")):
        archs = [SPACE.format(row) for row in SPACE.sample(3, 5)]
        pq.write_table(pa.table({"arch": archs, "other_ms": cells}), tmp_path / "other.parquet")
        with pytest.raises(InputError, match=why):
            fit_predictor(new, SPACE, "new_ms", transfer_from=[tmp_path / "other.parquet"], train=10)


def test_tables_too_small_to_practise_on_promise_nothing(tables: tuple[Path, Path], tmp_path: Path) -> None:
    small = tmp_path / "small.parquet"
    pq.write_table(pq.read_table(tables[0]).slice(0, 11), small)
    assert fit_predictor(tables[1], SPACE, "new_ms", transfer_from=[small], train=10).expected is None


def test_picks_distinct_networks_to_measure(tables: tuple[Path, Path]) -> None:
    picked = pick_for_transfer(SPACE, "new_ms", 10, [tables[0]], seed=2)
    assert picked.shape == (10, 8) and len(np.unique(picked, axis=0)) == 10
    np.testing.assert_array_equal(picked, pick_for_transfer(SPACE, "new_ms", 10, [tables[0]], seed=2))


def test_other_runs_name_their_column_as_this_one_does(tables: tuple[Path, Path], tmp_path: Path) -> None:
    """As all run folders of hwnas do."""
    _, new = tables
    table = pq.read_table(new)
    for seed in (3, 4):
        (tmp_path / f"run{seed}").mkdir()
        other = {"arch": table["arch"], "latency_ms": device(SPACE.parse_many(table["arch"].to_pylist()), seed)}
        pq.write_table(pa.table(other), tmp_path / f"run{seed}" / "networks.parquet")
    mine = tmp_path / "mine.parquet"
    pq.write_table(table.rename_columns(["arch", "latency_ms"]), mine)
    others = [tmp_path / "run3", tmp_path / "run4" / "networks.parquet"]
    helped = fit_predictor(mine, SPACE, "latency_ms", transfer_from=others, train=10, test=200)
    assert helped.model.name == "transfer" and helped.metrics["spearman"] > 0.8  # type: ignore[operator]
    with pytest.raises(InputError, match="no column of latency_ms but latency_ms"):
        fit_predictor(mine, SPACE, "latency_ms", transfer_from=[mine], train=10, test=200)
    run, networks = tmp_path / "run3", tmp_path / "run3" / "networks.parquet"
    for target, source in ((run, networks), (networks, run)):
        with pytest.raises(InputError, match="no column of latency_ms but latency_ms"):
            fit_predictor(target, SPACE, "latency_ms", transfer_from=[source], train=10, test=200)


def test_runs_of_several_spaces_give_the_networks_of_one(tables: tuple[Path, Path], tmp_path: Path) -> None:
    archs = pq.read_table(tables[1])["arch"].to_pylist()
    both = {
        "space": ["nasbench201"] * len(archs) + [SPACE.spec] * len(archs),
        "arch": ["|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"] * len(archs) + archs,
        "latency_ms": [5.0] * len(archs) + device(SPACE.parse_many(archs), 3).tolist(),
    }
    (tmp_path / "run").mkdir()
    pq.write_table(pa.table(both), tmp_path / "run" / "networks.parquet")
    (source,) = read_sources([tmp_path / "run"], SPACE, "latency_ms")
    assert source.devices == ("latency_ms",) and len(source.population) == len(archs)
    np.testing.assert_array_equal(np.sort(source.population, axis=0), np.sort(SPACE.parse_many(archs), axis=0))
