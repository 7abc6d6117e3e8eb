"""Fitting from files, evaluation and saved models."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import ArrayLike, NDArray

from hwnas.core.errors import DomainError, InputError, MissingCostError, UnknownNameError
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.predict import audit, fit_predictor, load_predictor, predict, predict_file, read_measurements
from hwnas.predict.base import Predictor, predictors
from hwnas.predict.evaluation import noise_floor, split
from hwnas.predict.intervals import Calibration, folds_of, left_to_learn
from hwnas.spaces import SearchSpace, get_space

METRICS = {
    "rmse",
    "mape",
    "medape",
    "within_5",
    "within_10",
    "spearman",
    "kendall",
    "coverage_90",
    "interval_score_90",
}


def table_of(space: SearchSpace) -> CostTable:
    rows = {p.key: {"latency_ms": Cost(0.02 + p.macs / 1e7, verdict="steady")} for p in space.primitives()}
    return CostTable(Target("toy", "torch"), rows, {"spaces": [space.spec]})


def write(path: Path, space: SearchSpace, n: int = 120, **columns: object) -> Path:
    population = space.sample(n, 0)
    latency = space.total(table_of(space).vector(space, "latency_ms"), population)
    noisy = latency * np.random.default_rng(0).normal(1, 0.01, n)
    archs = [space.format(row) for row in population]
    pq.write_table(pa.table({"arch": archs, "phone_ms": noisy, "what": ["x"] * n, **columns}), path)
    return path


@pytest.fixture
def space() -> SearchSpace:
    return get_space("nasbench-macro")


@pytest.fixture
def source(space: SearchSpace, tmp_path: Path) -> Path:
    return write(tmp_path / "measured.parquet", space)


def test_report_has_the_promised_fields(source: Path, space: SearchSpace) -> None:
    report = fit_predictor(source, space, "phone_ms", model="ridge", table=table_of(space), train=80, test=30).to_json()
    assert (report["n_train"], report["n_test"], report["scored_on"]) == (80, 30, "test")
    assert set(report["metrics"]) == METRICS
    assert set(report["baselines"]) == {"flops", "ridge", "sum"}
    assert all(set(metrics) == METRICS for metrics in report["baselines"].values())
    assert report["metrics"] == report["baselines"]["ridge"]
    assert 0.5 < report["metrics"]["mape"] < 3
    json.dumps(report, allow_nan=False)


def test_without_test_rows_scores_are_cross_validated(source: Path, space: SearchSpace) -> None:
    report = fit_predictor(source, space, "phone_ms", model="ridge").to_json()
    assert (report["n_train"], report["n_test"], report["scored_on"]) == (120, 0, "cross-validation")
    assert report["metrics"]["mape"] > 0.5


def test_architectures_never_stand_on_both_sides(tmp_path: Path, space: SearchSpace) -> None:
    path = write(tmp_path / "t.parquet", space, unique_index=[i // 4 for i in range(120)], index=[0] * 120)
    data = read_measurements(path, space, "phone_ms")
    assert len(np.unique(data.groups)) <= 30
    for seed in range(5):
        train, test = split(data, 60, 30, seed)
        assert test is not None and (len(train), len(test)) == (60, 30)
        assert not set(train.groups) & set(test.groups)
        keys = [{tuple(row) for row in part.population.tolist()} for part in (train, test)]
        assert not keys[0] & keys[1]


def test_noise_of_repeats_is_found(tmp_path: Path, space: SearchSpace) -> None:
    population = np.repeat(space.distinct(space.sample(300, 0))[:200], 2, axis=0)
    values = 10 * np.random.default_rng(0).normal(1, 0.02, len(population))
    archs = [space.format(row) for row in population]
    pq.write_table(pa.table({"arch": archs, "phone_ms": values}), tmp_path / "t.parquet")
    noise = noise_floor(read_measurements(tmp_path / "t.parquet", space, "phone_ms"))
    assert noise is not None and (noise.pairs, noise.source) == (200, "repeats")
    assert noise.mape == pytest.approx(100 * 0.02 * np.sqrt(2 / np.pi), rel=0.2)


def test_copies_of_one_measurement_are_left_out(tmp_path: Path, space: SearchSpace) -> None:
    population = space.distinct(space.sample(200, 0))[:90]
    unique = np.arange(90) // 3 * 3 + 1
    values = np.where(np.arange(90) == 5, 99.0, unique)
    columns = {"phone_ms": values.astype(float), "unique_index": unique, "index": np.arange(90)}
    pq.write_table(pa.table({"arch": [space.format(row) for row in population], **columns}), tmp_path / "t.parquet")
    data = read_measurements(tmp_path / "t.parquet", space, "phone_ms")
    assert (len(data), data.copies) == (31, 59)
    np.testing.assert_array_equal(data.population[0], population[1])
    assert data.groups[1] == data.groups[2] and data.values[2] == 99
    assert noise_floor(data) is None


def test_swapped_middle_nodes_cost_the_same() -> None:
    space = get_space("nasbench201")
    cells = space.parse_many(
        [
            "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|",
            "|skip_connect~0|+|nor_conv_3x3~0|none~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|",
            "|skip_connect~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|",
        ]
    )
    same = space.equal_cost(cells)
    assert (same[0] == same[1]).all() and (same[2] == cells[2]).all()
    everything = space.equal_cost(np.stack(np.meshgrid(*[range(5)] * 6), -1).reshape(-1, 6))
    assert len(np.unique(everything, axis=0)) == 5**6 - 1500
    blocks = np.sort(space.blocks(cells), axis=1)
    assert (blocks[0] == blocks[1]).all()


def test_rows_without_a_value_are_left_out_and_counted(tmp_path: Path, space: SearchSpace) -> None:
    accuracy = [float("nan") if i % 10 == 0 else 60 + i % 7 for i in range(120)]
    verdict = ["failed" if i == 1 else "steady" for i in range(120)]
    path = write(tmp_path / "t.parquet", space, top_acc=accuracy, top_acc_verdict=verdict)
    report = fit_predictor(path, space, "top_acc", model="ridge")
    assert (report.left_out, report.n_train, report.score) == (13, 107, "kendall")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "phone_mj"}, "unknown column 'phone_mj': did you mean 'phone_ms'"),
        ({"metric": "what"}, "names no unit"),
        ({"model": "rigde"}, "did you mean 'ridge'"),
        ({"score": "mse"}, "unknown score"),
        ({"train": 0}, "--train is 0"),
        ({"train": 100, "test": 100}, "ask for fewer"),
        ({"model": "linear1"}, "needs a cost table"),
        ({"space": "fbnet"}, "row 0: not an architecture of fbnet"),
        ({"source": "nowhere.parquet"}, "no run folder and no table"),
    ],
)
def test_bad_requests(source: Path, change: dict[str, object], message: str) -> None:
    options = {"source": source, "space": "nasbench-macro", "metric": "phone_ms", "model": "ridge", **change}
    with pytest.raises(InputError, match=message):
        fit_predictor(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("inf"), -2.0])
def test_bad_values_are_named(tmp_path: Path, space: SearchSpace, bad: float) -> None:
    path = write(tmp_path / "t.parquet", space, other_ms=[bad if i == 7 else 1.0 + i for i in range(120)])
    with pytest.raises(InputError, match="other_ms of row 7"):
        fit_predictor(path, space, "other_ms", model="ridge")


def test_constant_target_and_text(tmp_path: Path, space: SearchSpace) -> None:
    path = write(tmp_path / "t.parquet", space, flat_ms=[1.0] * 120, text_ms=["a"] * 120, none_ms=[float("nan")] * 120)
    for metric, message in (("flat_ms", "nothing to learn"), ("text_ms", "no number"), ("none_ms", "no value")):
        with pytest.raises(InputError, match=message):
            fit_predictor(path, space, metric, model="ridge")


def test_csv_and_broken_files(tmp_path: Path, source: Path, space: SearchSpace) -> None:
    rows = pq.read_table(source).to_pylist()
    text = "\n".join(["arch,phone_ms", *(f"{row['arch']},{row['phone_ms']!r}" for row in rows)])
    (tmp_path / "t.csv").write_text(text)
    from_csv = read_measurements(tmp_path / "t.csv", space, "phone_ms")
    np.testing.assert_array_equal(from_csv.population, read_measurements(source, space, "phone_ms").population)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match="not readable as Parquet"):
        read_measurements(tmp_path / "broken.parquet", space, "phone_ms")


def test_saved_model_predicts_files_without_torch(tmp_path: Path, source: Path, space: SearchSpace) -> None:
    fit_predictor(source, space, "phone_ms", model="ridge", out=tmp_path / "model", seed=3)
    result = predict_file(tmp_path / "model", source, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == ["arch", "phone_ms", "what", "prediction", "lower_90", "upper_90"]
    np.testing.assert_array_equal(table["prediction"], result.value)
    assert (result.lower < result.value).all() and (result.value < result.upper).all()
    document = json.loads((tmp_path / "model" / "model.json").read_text())
    shutil.copytree(tmp_path / "model", tmp_path / "old")
    (tmp_path / "old" / "model.json").write_text(json.dumps(document | {"space": "ofa-mbv3:resolution=192/160"}))
    with pytest.raises(InputError, match="which is ofa-mbv3:resolution=160/192 now; fit it again"):
        load_predictor(tmp_path / "old")
    with pytest.raises(InputError, match=r"choose a name in \.parquet or \.csv"):
        predict_file(tmp_path / "model", source, tmp_path / "out.tsv")
    arch = pq.read_table(source)["arch"][0].as_py().encode()
    for content, why in (
        (b"arch,\xff\n" + arch + b",1\n", "not readable as CSV"),
        (b"arch,what\n" + arch + b",\xff\n", "a column of it cannot be written"),
    ):
        (tmp_path / "latin.csv").write_bytes(content)
        with pytest.raises(InputError, match=rf"latin\.csv: {why}"):
            predict_file(tmp_path / "model", tmp_path / "latin.csv", tmp_path / "out.csv")
        assert not (tmp_path / "out.csv").exists()
    code = (
        "import sys; from hwnas.predict import predict; "
        f"print(predict({str(tmp_path / 'model')!r}, ['01201201']).value[0]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(predict(tmp_path / "model", ["01201201"]).value[0])


def test_a_cost_table_is_a_model(tmp_path: Path, space: SearchSpace) -> None:
    table_of(space).save(tmp_path / "table.csv")
    result = predict(tmp_path / "table.csv", ["00000000", "22222222"])
    expected = space.total(table_of(space).vector(space, "latency_ms"), space.parse_many(["00000000", "22222222"]))
    np.testing.assert_allclose(result.value, expected)
    assert np.isnan(result.lower).all()


@pytest.mark.parametrize("metric", ["phone_ms", "phone_mj", "phone_mib", "phone_ips"])
def test_a_cost_of_nothing_is_no_measurement(tmp_path: Path, space: SearchSpace, metric: str) -> None:
    archs = [space.format(row) for row in space.distinct(space.sample(30, 0))]
    pq.write_table(pa.table({"arch": archs, metric: [0.0, *range(1, len(archs))]}), tmp_path / "nets.parquet")
    with pytest.raises(InputError, match=f"{metric} of row 0 is 0, which no measurement gives"):
        read_measurements(tmp_path / "nets.parquet", space, metric)


def test_counts_may_be_none(tmp_path: Path, space: SearchSpace) -> None:
    archs = [space.format(row) for row in space.distinct(space.sample(30, 0))]
    pq.write_table(pa.table({"arch": archs, "macs_m": [0.0] * len(archs)}), tmp_path / "nets.parquet")
    assert not read_measurements(tmp_path / "nets.parquet", space, "macs_m").values.any()


def test_damaged_models_are_refused(tmp_path: Path, source: Path, space: SearchSpace) -> None:
    folder = tmp_path / "model"
    fit_predictor(source, space, "phone_ms", model="ridge", out=folder)
    (arrays,) = folder.glob("*.safetensors")
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(InputError, match="not readable as safetensors"):
        load_predictor(folder)
    document = json.loads((folder / "model.json").read_text())
    for change, message in (
        ({"schema": 99}, "schema 1"),
        ({"space": "nowhere"}, "unknown space"),
        ({"predictor": "os.system"}, "unknown predictor"),
    ):
        (folder / "model.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(InputError, match=message):
            load_predictor(folder)
    with pytest.raises(InputError, match="no saved predictor at"):
        load_predictor(tmp_path / "nothing")


def test_a_folder_that_is_no_model_is_not_overwritten(tmp_path: Path, source: Path, space: SearchSpace) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("a")
    with pytest.raises(InputError, match="is no saved predictor"):
        fit_predictor(source, space, "phone_ms", model="ridge", out=tmp_path / "photos")
    assert (tmp_path / "photos" / "a.jpg").exists()
    fit_predictor(source, space, "phone_ms", model="ridge", out=tmp_path / "model")
    fit_predictor(source, space, "phone_ms", model="flops", out=tmp_path / "model")
    assert load_predictor(tmp_path / "model").name == "flops"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measured.parquet", "model", "photos"]


@pytest.mark.parametrize("moment", ["arrays", "model.json"])
def test_a_model_survives_a_failed_replacement(
    tmp_path: Path, source: Path, space: SearchSpace, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fit_predictor(source, space, "phone_ms", model="flops", out=tmp_path / "m")
    before = predict(tmp_path / "m", ["01201201"]).value
    rename = Path.replace

    def failing(path: Path, target: Path) -> Path:
        if target.name.startswith(moment):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left"):
        patch.setattr(Path, "replace", failing)
        fit_predictor(source, space, "phone_ms", model="ridge", out=tmp_path / "m")
    np.testing.assert_array_equal(predict(tmp_path / "m", ["01201201"]).value, before)
    assert load_predictor(tmp_path / "m").name == "flops"
    fit_predictor(source, space, "phone_ms", model="ridge", out=tmp_path / "m")
    assert load_predictor(tmp_path / "m").name == "ridge"
    assert len(list((tmp_path / "m").iterdir())) == 2


def test_a_model_of_the_first_layout_opens(tmp_path: Path, source: Path, space: SearchSpace) -> None:
    fit_predictor(source, space, "phone_ms", model="ridge", out=tmp_path / "m")
    expected = predict(tmp_path / "m", ["01201201"]).value
    (arrays,) = (tmp_path / "m").glob("*.safetensors")
    arrays.rename(tmp_path / "m" / "arrays.safetensors")
    document = json.loads((tmp_path / "m" / "model.json").read_text())
    del document["arrays"]
    (tmp_path / "m" / "model.json").write_text(json.dumps(document))
    np.testing.assert_array_equal(predict(tmp_path / "m", ["01201201"]).value, expected)


def test_a_model_is_saved_where_saving_was_cut_off(tmp_path: Path, source: Path, space: SearchSpace) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "arrays-0123456789ab.safetensors").write_bytes(b"whole")
    (tmp_path / "m" / ".model.json.x7").write_bytes(b"{")
    fit_predictor(source, space, "phone_ms", model="ridge", out=tmp_path / "m")
    assert load_predictor(tmp_path / "m").name == "ridge"
    assert [path.name for path in (tmp_path / "m").glob("*.safetensors")] != ["arrays-0123456789ab.safetensors"]


def test_intervals_are_constant_unless_another_width_is_surely_better() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(1, 10, 400)
    even, growing = predicted + rng.normal(0, 0.5, 400), predicted * rng.normal(1, 0.1, 400)
    assert Calibration.of(even, predicted).power == 0
    assert Calibration.of(growing, predicted).power > 0
    assert Calibration.of(growing, predicted, powers=()).power == 0
    assert Calibration.of(growing[:5], predicted[:5]).width(0.9) > np.abs(growing - predicted)[:5].max()


class Learns:
    """Errs by a noise times a power of the share of rows that it learnt from."""

    def __init__(self, power: float) -> None:
        self.power, self.noise = power, np.random.default_rng(0).normal(size=400)

    def cross_predict(self, genotypes: ArrayLike, y: ArrayLike, fold: NDArray[np.int64]) -> NDArray[np.float64]:
        share = 1 - 1 / len(np.unique(fold))
        return np.asarray(y) + self.noise * share**-self.power


@pytest.mark.parametrize(("power", "expected"), [(0.0, 1.0), (0.4, 0.8**0.4)])
def test_errors_of_all_rows_are_expected_below_those_of_the_folds_where_the_curve_is_steep(
    power: float, expected: float
) -> None:
    model, groups, values = cast(Predictor, Learns(power)), np.arange(400), np.full(400, 5.0)
    fold, population = folds_of(groups, 5), np.zeros((400, 1), dtype=np.int16)
    predicted = model.cross_predict(population, values, fold)
    left = left_to_learn(model, population, values, groups, fold, predicted)
    assert expected <= left < expected + 0.02
    made = Calibration.of(values, predicted)
    np.testing.assert_allclose(made.scaled(left).width(0.9), left * made.width(0.9))


def test_table_of_another_target_is_refused(tmp_path: Path, source: Path, space: SearchSpace) -> None:
    run = tmp_path / "run"
    run.mkdir()
    source.rename(run / "networks.parquet")
    (run / "run.json").write_text(json.dumps({"target": Target("other", "torch").to_json()}))
    with pytest.raises(InputError, match="device 'other' against 'toy'"):
        fit_predictor(run, space, "phone_ms", model="linear1", table=table_of(space))
    table = table_of(space)
    CostTable(Target("other", "torch"), table.rows).save(run / "table.csv")
    report = fit_predictor(run, space, "phone_ms", model="linear1", out=tmp_path / "model")
    assert report.metrics["mape"] is not None and report.metrics["mape"] < 2
    document = json.loads((tmp_path / "model" / "model.json").read_text())
    assert document["target"]["device"] == "other"


def test_outside_the_domain(tmp_path: Path) -> None:
    space = get_space("nasbench-macro")
    archs = [space.format(row) for row in space.sample(200, 0) if row[0] == 1]
    values = np.arange(1.0, len(archs) + 1)
    pq.write_table(pa.table({"arch": archs, "a_ms": values}), tmp_path / "t.parquet")
    fit_predictor(tmp_path / "t.parquet", space, "a_ms", model="ridge", out=tmp_path / "model")
    with pytest.raises(DomainError, match=r"layer\[0\] was mb3_k3"):
        predict(tmp_path / "model", ["01111111"])
    assert predict(tmp_path / "model", ["01111111"], extrapolate=True).value.shape == (1,)


def test_unknown_names_are_unknown_names(source: Path) -> None:
    with pytest.raises(UnknownNameError):
        fit_predictor(source, "nasbench-macro", "phone_ms", model="nothing")


def test_auto_compares_and_beats_flops(source: Path, space: SearchSpace, tmp_path: Path) -> None:
    report = fit_predictor(source, space, "phone_ms", table=table_of(space), train=60, test=50, out=tmp_path / "m")
    compared = [row["model"] for row in report.compared]
    assert {"sum", "linear1", "ridge", "physical", "gp", "flops"} <= set(compared)
    assert sum(row["weight"] for row in report.compared) == pytest.approx(1, abs=1e-3)
    assert report.compared == sorted(report.compared, key=lambda row: row["mape"])
    assert report.metrics["mape"] < report.baselines["flops"]["mape"]  # type: ignore[operator]
    opened = load_predictor(tmp_path / "m")
    population = space.sample(10, 5)
    np.testing.assert_allclose(opened.predict(population), report.model.predict(population), rtol=1e-9)


def test_auto_takes_a_robust_loss_where_outliers_are_many(tmp_path: Path) -> None:
    space = get_space("nasbench-macro")
    population = space.distinct(space.sample(900, 1))[:500]
    rng = np.random.default_rng(0)
    latency = space.total(table_of(space).vector(space, "latency_ms"), population)
    slow = np.where(rng.random(len(latency)) < 0.2, rng.uniform(1.5, 4, len(latency)), 1.0)
    archs = [space.format(row) for row in population]
    pq.write_table(pa.table({"arch": archs, "a_ms": latency * slow * rng.normal(1, 0.01, 500)}), tmp_path / "t.parquet")
    report = fit_predictor(tmp_path / "t.parquet", space, "a_ms", score="medape", train=300, test=200)
    best = max(report.compared, key=lambda row: row["weight"])
    assert "loss=" in best["model"]
    assert report.metrics["medape"] is not None and report.metrics["medape"] < 2.5


def test_learning_curve_and_its_advice(source: Path, space: SearchSpace) -> None:
    curve = fit_predictor(source, space, "phone_ms", model="physical", curve=True).to_json()["curve"]
    sizes = [point["n"] for point in curve["points"]]
    assert sizes == sorted(sizes) and sizes[0] == 10 and sizes[-1] <= 90
    assert curve["points"][-1]["mape"] < curve["points"][0]["mape"]
    assert curve["advice"]["then"] <= curve["advice"]["now"]
    assert "120 more measurements" in curve["advice"]["text"]


@pytest.mark.parametrize("rows", [5, 7])
def test_few_rows_are_judged_honestly(tmp_path: Path, space: SearchSpace, rows: int) -> None:
    archs = [space.format(row) for row in space.distinct(space.sample(50, 0))[:rows]]
    values = np.random.default_rng(rows).permutation(np.linspace(1, 2, rows))
    pq.write_table(pa.table({"arch": archs, "a_ms": values}), tmp_path / "t.parquet")
    report = fit_predictor(tmp_path / "t.parquet", space, "a_ms")
    assert report.metrics["mape"] > 10  # type: ignore[operator]
    lower, upper = report.model.interval(space.sample(5, 1), extrapolate=True)
    assert (upper - lower > np.ptp(values) / 2).all()


@pytest.mark.parametrize("model", ["auto", "ridge", "flops"])
def test_fewer_networks_than_folds_are_refused(tmp_path: Path, space: SearchSpace, model: str) -> None:
    archs = [space.format(row) for row in space.distinct(space.sample(50, 0))[:4]]
    table = pa.table({"arch": [*archs, archs[0]], "a_ms": [1.0, 2.0, 3.0, 4.0, 1.1]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="4 measured architectures are fewer than the 5 folds"):
        fit_predictor(tmp_path / "t.parquet", space, "a_ms", model=model)


def test_the_command_mentions_rows_left_out(tmp_path: Path, space: SearchSpace) -> None:
    from typer.testing import CliRunner

    from hwnas.cli import app

    path = write(tmp_path / "t.parquet", space, a_ms=[float("nan") if i < 3 else 1.0 + i for i in range(120)])
    command = ["fit-predictor", str(path), "--space", space.spec, "--metric", "a_ms", "--model", "flops"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "m")])
    assert done.exit_code == 0 and "rows left out: 3 without a value" in done.stdout


def test_one_architecture_is_too_few(tmp_path: Path, space: SearchSpace) -> None:
    pq.write_table(pa.table({"arch": ["01201201"] * 5, "a_ms": [1.0, 2, 3, 4, 5]}), tmp_path / "t.parquet")
    for model in ("auto", "gp"):
        with pytest.raises(InputError, match="measure one architecture"):
            fit_predictor(tmp_path / "t.parquet", space, "a_ms", model=model)


def test_a_throughput_is_the_sum_of_fast_blocks(space: SearchSpace) -> None:
    """Of tens of thousands of images a second, for which nothing was learnt."""
    rows = {p.key: {"latency_ms": Cost(1e-3 + p.macs / 1e11)} for p in space.primitives()}
    table = CostTable(Target("gpu", "torch", batch=1), rows, {"spaces": [space.spec]})
    population = space.sample(20, 0)
    truth = 1e3 / space.total(table.vector(space, "latency_ms"), population)
    found = predictors.get("sum")(space, table, metric="throughput_ips").predict(population)
    np.testing.assert_allclose(found, truth)
    assert truth.min() > 20_000


def test_tiny_costs_are_no_constants(space: SearchSpace) -> None:
    """The inputs of `mlp` for a throughput are seconds an image."""
    rows = {p.key: {"latency_ms": Cost(0.02 + p.macs / 1e7)} for p in space.primitives()}
    population, found = space.sample(60, 0), []
    for batch in (1, 128):
        table = CostTable(Target("gpu", "torch", batch=batch), rows, {"spaces": [space.spec]})
        seconds = space.total(table.vector(space, "latency_ms"), population) / 1e3 / batch
        model = predictors.get("mlp")(space, table, metric="throughput_ips")
        found.append(model.fit(population, 1 / seconds).predict(population) * seconds)
    assert np.isfinite(model.spread).any()  # type: ignore[attr-defined]
    np.testing.assert_allclose(found[0], found[1], rtol=0.05)


def test_models_that_need_no_costs_are_fitted_beside_a_table_with_gaps(
    source: Path, space: SearchSpace, tmp_path: Path
) -> None:
    table = table_of(space)
    rows = dict(table.rows)
    rows[space.primitives()[3].key] = {"latency_ms": Cost(math.nan, verdict="failed")}
    gap = CostTable(table.target, rows, table.manifest)
    for model in ("ridge", "physical", "auto"):
        report = fit_predictor(source, space, "phone_ms", model=model, table=gap, out=tmp_path / model)
        assert set(report.baselines) == {"flops", "ridge"}
        assert "sum" not in {each["model"] for each in report.compared}
        assert load_predictor(tmp_path / model).predict(space.sample(5, 1), extrapolate=True).min() > 0
    with pytest.raises(MissingCostError):
        fit_predictor(source, space, "phone_ms", model="linear1", table=gap)
    with_gap, without = (predictors.get("physical")(space, t, metric="phone_ms") for t in (gap, None))
    population, values = space.sample(60, 2), np.random.default_rng(0).uniform(1, 2, 60)
    expected = without.fit(population, values).predict(population)
    np.testing.assert_allclose(with_gap.fit(population, values).predict(population), expected)


def test_the_networks_of_logs_are_a_source(tmp_path: Path, space: SearchSpace) -> None:
    """`hwnas parse` writes them among the records of the primitives, beside their cost table."""
    table, population = table_of(space), space.sample(60, 3)
    latency = 1.3 * space.total(table.vector(space, "latency_ms"), population) + 0.1
    table.save(tmp_path / "board.csv")
    lines = [f'p{n},"{key}",,{row["latency_ms"].value}' for n, (key, row) in enumerate(table.rows.items())]
    primitives = ["subject,primitive,arch,latency_ms", *lines]
    (tmp_path / "board.records.csv").write_text("\n".join(primitives) + "\n")
    with pytest.raises(InputError, match=r"board.records.csv holds no network, only primitives"):
        read_measurements(tmp_path / "board.csv", space, "latency_ms")
    networks = [f"n{n},,{space.format(row)},{ms}" for n, (row, ms) in enumerate(zip(population, latency, strict=True))]
    (tmp_path / "board.records.csv").write_text("\n".join([*primitives, *networks]) + "\n")
    for name in ("board.csv", "board.records.csv"):
        data = read_measurements(tmp_path / name, space, "latency_ms")
        np.testing.assert_allclose(data.values, latency)
        report = fit_predictor(tmp_path / name, space, "latency_ms", model="linear1", out=tmp_path / "model")
        assert report.metrics["mape"] < 0.1 and report.n_train == len(data)
        assert json.loads((tmp_path / "model" / "model.json").read_text())["target"] == table.target.to_json()
    assert audit(tmp_path / "board.csv", space).slope == pytest.approx(1.3)


def test_the_seed_reaches_model_and_folds(source: Path, space: SearchSpace) -> None:
    reports = [fit_predictor(source, space, "phone_ms", model="boosting", seed=seed) for seed in (0, 1, 0)]
    assert [report.model.options["seed"] for report in reports] == [0, 1, 0]
    assert np.array_equal(reports[0].predicted, reports[2].predicted)
    assert not np.array_equal(reports[0].predicted, reports[1].predicted)


def test_a_group_without_a_name_is_one_line(space: SearchSpace, tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", space, 20, unique_index=[*range(19), None])
    with pytest.raises(InputError, match="unique_index has no value in row 20"):
        read_measurements(path, space, "phone_ms")


def test_uneven_folds_leave_no_interval_of_nothing() -> None:
    space = get_space("nasbench201")
    for seed in range(6):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(5), [60, 20, 10, 5, 5])
        population, values = space.sample(5, seed)[groups], rng.uniform(1, 2, 5)[groups] * rng.normal(1, 0.1, 100)
        fold = folds_of(groups, 5, seed)
        model = predictors.get("flops")(space, metric="latency_ms")
        predicted = model.cross_predict(population, values, fold)
        assert 0.5 < left_to_learn(model, population, values, groups, fold, predicted) <= 1
