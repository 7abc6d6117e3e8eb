"""Searches that train: the exact last step, targets kept, and what cannot be asked."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml

from hwnas.cli.shell import run as hwnas
from hwnas.core.errors import InfeasibleBudgetError, InputError
from hwnas.predict.base import predictors
from hwnas.report import write_report
from hwnas.search import Result, Source, export, one_shot_search, verify
from hwnas.search.probable import Limit, most_probable
from hwnas.search.reach import reachable
from hwnas.search.sources import count
from hwnas.spaces import get_space
from hwnas.train import OneShotConfig

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = "nasbench-macro:resolution=8"
SPACE = get_space(SPEC)
ALL = np.array(list(product(range(3), repeat=8)), dtype=np.int16)
CONFIG = {
    "space": SPEC,
    "data": {"name": "digits", "train_limit": 80, "val_fraction": 0.05},
    "epochs": 1,
    "batch": 8,
    "arch_learning_rate": 0.1,
    "calibration_images": 16,
    "checkpoint_s": 0,
    "threads": 1,
}


def config(**changes: object) -> OneShotConfig:
    return OneShotConfig.model_validate({**CONFIG, **changes})


def chances(seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(8, 3))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def logs(p: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.log(p[np.arange(8), rows]).sum(axis=1)


# the exact step


@pytest.mark.parametrize("seed", range(4))
def test_the_most_probable_within_a_band_are_found_exactly(seed: int) -> None:
    p, high = chances(seed), float(np.quantile(SPACE.macs(ALL), 0.2 + 0.2 * seed))
    found = most_probable(SPACE, p, [Limit(SPACE.macs, 0.97 * high, high)], 5)
    costs = SPACE.macs(ALL)
    within = ALL[(costs <= high) & (costs >= 0.97 * high)]
    np.testing.assert_allclose(logs(p, found), np.sort(logs(p, within))[::-1][:5])
    assert (SPACE.macs(found) <= high).all() and (SPACE.macs(found) >= 0.97 * high).all()


def test_several_limits_and_none() -> None:
    p = chances(9)
    limits = [Limit(SPACE.macs, high=5e6), Limit(SPACE.parameters, low=3e5)]
    found = most_probable(SPACE, p, limits, 3)
    within = ALL[(SPACE.macs(ALL) <= 5e6) & (SPACE.parameters(ALL) >= 3e5)]
    np.testing.assert_allclose(logs(p, found), np.sort(logs(p, within))[::-1][:3])
    np.testing.assert_array_equal(most_probable(SPACE, p, [], 1)[0], p.argmax(axis=1))
    assert not len(most_probable(SPACE, p, [Limit(SPACE.macs, 1.0, 2.0)], 3))


def test_a_cost_that_is_no_sum_is_searched_by_evolution() -> None:
    p = chances(2)

    def bent(population: np.ndarray) -> np.ndarray:
        return (SPACE.macs(population) / 1e6) ** 1.5

    high = float(np.median(bent(ALL)))
    found = most_probable(SPACE, p, [Limit(bent, 0.97 * high, high)], 3)
    within = ALL[(bent(ALL) <= high) & (bent(ALL) >= 0.97 * high)]
    np.testing.assert_allclose(logs(p, found[:1]), logs(p, within).max())
    assert not len(most_probable(SPACE, p, [Limit(bent, 1e9)], 3))


# the whole search


@pytest.mark.parametrize("share", [0.15, 0.8])
def test_the_target_is_kept_and_used(tmp_path: Path, share: float) -> None:
    least, most = reachable(count("macs_m", SPACE), SPACE)
    budget = least + share * (most - least)
    result = one_shot_search(config(seed=3), max={"macs_m": budget}, out=tmp_path)
    assert 0.97 * budget <= result.best.costs["macs_m"] <= budget
    assert result.best.certificate is not None and result.best.certificate["status"] == "passed"
    assert result.algorithm == "fbnet" and result.seed == 3
    assert len(result.accuracy_model["entropy"]) == 8
    again = json.loads((tmp_path / "search.json").read_text())
    assert again["best"]["arch"] == result.best.arch and again["supernet"] == "."
    assert again["best"]["certificate"]["supernet"] == "."
    assert Result.load(tmp_path).problem["supernet"] == str(tmp_path)


def fitted(name: str, **options: object) -> Source:
    table = None
    model = predictors.get(name)(SPACE, table, metric="latency_ms", **options)
    rows = SPACE.sample(150, 0)
    model.fit(rows, 1 + SPACE.macs(rows) / 1e7 + 0.1 * np.sqrt(SPACE.parameters(rows) / 1e5))
    return Source(name, "latency_ms", model.predict, model.interval)


@pytest.mark.parametrize(("name", "options"), [("ridge", {}), ("mlp", {"steps": 300}), ("lstm", {"steps": 100})])
def test_any_cost_model_takes_the_tables_place(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    source = fitted(name, **options)
    budget = float(np.quantile(source.predict(ALL[::37]), 0.4))
    result = one_shot_search(config(), {"latency_ms": source}, max={"latency_ms": budget}, out=tmp_path)
    assert 0.97 * budget <= result.best.costs["latency_ms"] <= budget
    assert result.best.certificate is not None and result.best.certificate["status"] == "not_measured"


def test_several_bounds_at_once_a_lower_one_and_a_confidence(tmp_path: Path) -> None:
    source = fitted("ridge")
    budget = float(np.median(source.predict(ALL[::37])))
    result = one_shot_search(
        config(),
        {"latency_ms": source},
        max={"latency_ms": budget},
        min={"params_m": 0.2},
        confidence=0.9,
        out=tmp_path,
    )
    row = SPACE.parse(result.best.arch)[None]
    assert source.interval is not None and source.interval(row, 0.8)[1][0] <= budget
    assert result.best.costs["params_m"] >= 0.2


def test_without_a_target_the_published_loss_is_used(tmp_path: Path) -> None:
    result = one_shot_search(config(), {"latency_ms": count("macs_m", SPACE)}, out=tmp_path)
    assert result.problem["constraints"] == [] and result.best.certificate is None
    with pytest.raises(InputError, match="fbnet needs a cost"):
        one_shot_search(config(), out=tmp_path / "none")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max": {"macs_m": 0.001}}, r"macs_m reaches from .* to .*; set --max macs_m in that range"),
        ({"max": {"macs_m": 2.0}, "min": {"params_m": 1.9}}, "at once"),
    ],
)
def test_what_cannot_be_reached_fails_before_training(
    tmp_path: Path, asked: dict[str, dict[str, float]], message: str
) -> None:
    settings = config(data={"name": "folder", "path": str(tmp_path / "absent")})
    with pytest.raises(InfeasibleBudgetError, match=message):
        one_shot_search(settings, out=tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


def test_a_table_of_measured_networks_is_no_cost_of_all_networks(tmp_path: Path) -> None:
    path = tmp_path / "measured.csv"
    path.write_text("arch,cpu_ms\n00000000,1\n11111111,2\n22222222,3\n")
    with pytest.raises(InputError, match="fit a predictor"):
        one_shot_search(config(), [f"table:{path}#cpu_ms"], max={"latency_ms": 2.5}, out=tmp_path / "run")


def test_choices_at_chance_are_not_sold_as_learnt(tmp_path: Path) -> None:
    result = one_shot_search(config(arch_learning_rate=1e-6), max={"macs_m": 3.0}, out=tmp_path)
    assert any(note.startswith("8 of 8 choices stayed near chance") for note in result.notes)
    assert min(result.accuracy_model["entropy"].values()) > 0.99


# the commands


def settings_file(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "fbnet.yaml"
    path.write_text(yaml.safe_dump({"algorithm": "fbnet", **CONFIG, **changes}))
    return path


def test_the_folder_of_a_search_serves_every_other_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = settings_file(tmp_path), tmp_path / "run"
    command = ["search", "--config", str(path), "--algorithm", "fbnet", "--max", "macs_m=4", "--seed", "2"]
    assert hwnas([*command, "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    best = report["best"]
    assert report["seed"] == 2 and 3.88 <= best["costs"]["macs_m"] <= 4
    assert verify(out)[0].status == "passed"
    assert export(best["arch"], SPEC, tmp_path / "net.onnx", supernet=out).difference < 1e-3
    assert "near chance" in write_report(tmp_path).read_text() or not report["notes"]
    assert hwnas([*command, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["arch"] == best["arch"]
    assert hwnas(["search", "--config", str(path), "--max", "macs_m=3", "--seed", "2", "--out", str(out)]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_what_a_mixed_network_cannot_do_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = settings_file(tmp_path, compile=True)
    assert hwnas(["search", "--config", str(path), "--max", "macs_m=4", "--out", str(tmp_path / "run")]) == 2
    assert "compile is for networks of fixed shape" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config", "CONFIG", "--accuracy", "x"], "leave out --accuracy"),
        (["--config", "CONFIG", "--front"], "leave out --front"),
        (["--config", "CONFIG", "--space", "fbnet"], "leave --space out"),
        (["--config", "CONFIG", "--algorithm", "fbnett"], "did you mean 'fbnet'"),
        (["--space", SPEC], "needs --space and --accuracy, or the --config"),
        (["--space", SPEC, "--accuracy", "macs_m", "--algorithm", "fbnet"], "gives macs_m, not one accuracy"),
    ],
)
def test_commands_that_make_no_sense_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    path = str(settings_file(tmp_path))
    given = [path if part == "CONFIG" else part for part in more]
    assert hwnas(["search", *given, "--max", "macs_m=4", "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_a_search_that_is_killed_goes_on_where_it_stood(tmp_path: Path) -> None:
    path, out, whole = settings_file(tmp_path), tmp_path / "killed", tmp_path / "whole"
    command = ["search", "--config", str(path), "--max", "macs_m=4", "--json", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hwnas", *command, str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    about = out / "supernet.json"
    while process.poll() is None and (not about.exists() or json.loads(about.read_text())["step"] < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "search.json").exists()
    for folder in (out, whole):
        assert hwnas([*command, str(folder)]) == 0
    first, second = (json.loads((folder / "search.json").read_text()) for folder in (out, whole))
    assert first["best"]["arch"] == second["best"]["arch"]
    assert first["best"]["accuracy"] == second["best"]["accuracy"]
    assert first["accuracy_model"] == second["accuracy_model"]


def test_two_processes_train_and_the_first_one_writes(tmp_path: Path) -> None:
    path = settings_file(tmp_path, batch=4)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    search = ["-m", "--", "hwnas", "search", "--config", str(path), "--max", "macs_m=4", "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *search], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "search.json").read_text())["best"]
    assert found["costs"]["macs_m"] <= 4
    assert done.stdout.count(found["arch"]) == 1
