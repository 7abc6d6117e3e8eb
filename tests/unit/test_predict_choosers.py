"""Which networks a profiling run measures: until an aim is met, or for transfer from other devices."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hwnas.cli import app
from hwnas.core.errors import InputError
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.predict import ForTransfer, Progress, Until, choosers, pick_for_transfer
from hwnas.predict.choosers import AT_MOST, FIRST_NETWORKS, Aim, progress_in
from hwnas.profile import Chooser, Request, Run
from hwnas.spaces import get_space

SPACE = get_space("nasbench-macro")
COSTS = np.array([0.02 + p.macs / 1e7 for p in SPACE.primitives()])
QUICK = ["--goal", "0.5", "--time-limit", "0.005"]


def run_with(folder: Path, population: np.ndarray, failed: int = 0, noise: float = 0.0) -> Run:
    """A run folder in which `population` was measured, the first `failed` of them in vain."""
    rows = {p.key: {"latency_ms": Cost(c, verdict="steady")} for p, c in zip(SPACE.primitives(), COSTS, strict=True)}
    CostTable(Target("toy", "torch"), rows).save(folder / "table.csv")
    values = SPACE.total(COSTS, population) * np.random.default_rng(0).normal(1, noise, len(population))
    latency = [None] * failed + list(values[failed:])
    columns = {"space": [SPACE.spec] * len(population), "arch": [SPACE.format(row) for row in population]}
    columns |= {"latency_ms": latency, "latency_ms_verdict": ["failed"] * failed + ["steady"] * (len(latency) - failed)}
    pq.write_table(pa.table(columns), folder / "networks.parquet")
    return Run(folder, Target("toy", "torch"), (), folder / "samples.sqlite", 0.02)


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    population = SPACE.distinct(SPACE.sample(200, 1))
    columns: dict[str, object] = {"arch": [SPACE.format(row) for row in population]}
    for device in range(3):
        columns[f"d{device}_ms"] = SPACE.total(COSTS * rng.uniform(0.5, 2, len(COSTS)), population)
    path = tmp_path_factory.mktemp("devices") / "devices.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_until_asks_for_new_networks_and_stops_when_the_aim_is_surely_met(tmp_path: Path) -> None:
    population = SPACE.distinct(SPACE.sample(200, 0))
    choose = Until("within_10=0.95")
    hundred, three = (choose.request(SPACE, n) for n in (100, 3))
    (tmp_path / "empty").mkdir()
    empty = run_with(tmp_path / "empty", population[:0])
    first = choose.pick(empty, hundred)
    assert first.shape == (FIRST_NETWORKS, 8) and len(np.unique(first, axis=0)) == FIRST_NETWORKS
    assert (first == choose.pick(empty, hundred)).all() and len(choose.pick(empty, three)) == 3
    for name, noise, met in (("exact", 0.0, True), ("noisy", 0.2, False)):
        (tmp_path / name).mkdir()
        run = run_with(tmp_path / name, population[:60], failed=4, noise=noise)
        progress = progress_in(run, SPACE, choose.aim)
        assert progress is not None and progress.n == 56 and choose.aim.met_by(progress) is met
        more = choose.pick(run, hundred)
        assert (len(more) == 0) is met
        assert len(SPACE.distinct(np.concatenate([population[:60], more]))) == 60 + len(more)


def test_few_networks_are_no_proof(tmp_path: Path) -> None:
    aim = Aim.parse("within_10=0.5")
    assert progress_in(run_with(tmp_path, SPACE.sample(4, 0)), SPACE, aim) is None
    assert not aim.met_by(None)
    nothing = {"met": False, "value": None, "surely": None, "n": 4}
    assert aim.report(None, 4) == {"score": "within_10", "aim": 0.5, **nothing}


def test_aims_of_errors_are_upper_limits() -> None:
    assert Aim.parse("mape=2").met_by(Progress(1.0, 1.9, 50)) and not Aim.parse("mape=2").met_by(Progress(1.0, 2.1, 50))
    for text in ("within_10", "within_10=2", "mape=0", "mape=nan", "speed=3", "within_10=x"):
        with pytest.raises(InputError, match="--until"):
            Aim.parse(text)


def test_more_networks_for_transfer_begin_with_the_same_ones(tmp_path: Path, devices: Path) -> None:
    choose = ForTransfer([devices])
    whole, four = (choose.design(choose.request(SPACE, n)) for n in (10, 4))
    assert (whole[:4] == four).all() and len(np.unique(whole, axis=0)) == 10
    with pytest.raises(InputError, match="no run folder and no table"):
        ForTransfer([tmp_path / "none.parquet"]).design(choose.request(SPACE, 4))


def test_requests_say_who_chooses_and_how_many_at_most() -> None:
    assert Until("mape=2").request(SPACE.spec, 0) == Request(SPACE.spec, AT_MOST, "until mape=2")
    assert ForTransfer([]).request(SPACE, 7, seed=3) == Request(SPACE.spec, 7, "transfer", 3)


def test_a_registered_chooser_is_reached_from_the_command_line(
    tmp_path: Path, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Smallest(Chooser):
        def design(self, request: Request) -> np.ndarray:
            pool = SPACE.distinct(SPACE.sample(100, request.seed))
            return pool[SPACE.macs(pool).argsort()[: request.networks]]

    monkeypatch.setattr(choosers, "_members", {**choosers._members})
    choosers.register("smallest")(Smallest)
    command = ["profile", "--space", SPACE.spec, "--select", "smallest", "--networks", "3", "--json"]
    done = CliRunner().invoke(app, [*command, "--device", "file", "--emit", str(tmp_path / "bundle")])
    assert done.exit_code == 0, done.output
    models = json.loads((tmp_path / "bundle" / "hwnas_bundle.json").read_text())["models"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run"), *QUICK])
    assert done.exit_code == 0, done.output
    (request,) = Run.load(tmp_path / "run").requests
    assert request.select == "smallest" and len(request.chosen) == 3
    assert [entry["arch"] for entry in models.values() if "arch" in entry] == list(request.chosen)
    done = CliRunner().invoke(app, [*command, "--transfer-from", str(devices), "--out", str(tmp_path / "none")])
    assert "--select transfer and --transfer-from TABLE go together" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--select", "foo", "--networks", "5"], "known are random, transfer"),
        (["--until", "mape"], "write SCORE=VALUE"),
        (["--until", "within_10=7"], "within_10 is a number above 0 and at most 1"),
        (["--select", "transfer", "--networks", "5"], "go together"),
        (["--transfer-from", "x.parquet"], "go together"),
        (["--until", "mape=2", "--select", "transfer", "--transfer-from", "x.parquet"], "picks the networks itself"),
        (["--select", "transfer", "--transfer-from", "x.parquet"], "how many networks"),
        (["--select", "transfer", "--transfer-from", "x.parquet", "--networks", "5"], "no table at x.parquet"),
        (["--select", "until", "--networks", "5"], "--until SCORE=VALUE go together"),
        (["--device", "file", "--until", "mape=2", "--emit", "b"], "measures nothing here"),
    ],
)
def test_bad_requests_leave_nothing(tmp_path: Path, options: list[str], message: str) -> None:
    command = ["profile", "--space", SPACE.spec, "--out", str(tmp_path / "run"), *options]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, InputError) and message in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_a_bundle_takes_the_networks_for_transfer(tmp_path: Path, devices: Path) -> None:
    command = ["profile", "--space", SPACE.spec, "--device", "file", "--emit", str(tmp_path / "bundle"), "--json"]
    chosen = ["--select", "transfer", "--transfer-from", str(devices), "--networks", "4"]
    done = CliRunner().invoke(app, [*command, *chosen])
    assert done.exit_code == 0, done.output
    models = json.loads((tmp_path / "bundle" / "hwnas_bundle.json").read_text())["models"]
    wanted = [SPACE.format(row) for row in pick_for_transfer(SPACE, "latency_ms", 4, [devices])]
    assert [entry["arch"] for entry in models.values() if "arch" in entry] == wanted


def test_profile_until_and_for_transfer(tmp_path: Path, devices: Path) -> None:
    def profiled(*options: str) -> dict[str, object]:
        command = ["profile", "--space", SPACE.spec, "--out", str(tmp_path / "run"), *QUICK, "--json", *options]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["runs"][0]

    told = profiled("--select", "transfer", "--transfer-from", str(devices), "--networks", "4")
    assert told["networks"] == 4 and 0 < told["expected"]["mape"] < 100 and -1 <= told["expected"]["spearman"] <= 1
    capped = profiled("--until", "within_5=1", "--networks", "8")
    assert capped["networks"] <= 12 and capped["until"]["aim"] == 1 and capped["until"]["n"] == capped["networks"]
    requests = Run.load(tmp_path / "run").requests
    assert [request.select for request in requests] == ["transfer", "until within_5=1"]
    assert profiled("--until", "within_5=1", "--networks", "8")["networks"] == capped["networks"]
