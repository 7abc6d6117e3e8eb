"""The typical speed that is remembered between campaigns."""

import math
import time

import numpy as np
import pytest

from hwnas.core.target import Target
from hwnas.profile import calibration
from hwnas.profile.calibration import LEAST, MOST, recall, remember, settle
from hwnas.profile.drift import EXPECTED
from hwnas.profile.history import History
from hwnas.profile.store import Sample, Store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_what_is_typical_is_remembered_for_each_processor():
    assert recall("cpu") is None
    remember("cpu", [0.010] * LEAST)
    assert recall("cpu") == 0.010
    remember("cpu", [0.011] * (3 * LEAST))
    assert recall("cpu") == pytest.approx(0.010**0.25 * 0.011**0.75)
    assert recall("another cpu") is None


def test_one_odd_campaign_changes_little_of_what_many_have_said():
    for _ in range(100):
        remember("cpu", [0.010] * 2000)
    remember("cpu", [0.0115] * 2000)
    assert recall("cpu") == pytest.approx(0.010, rel=0.02)
    for _ in range(100):
        remember("cpu", [0.0115] * 2000)
    assert recall("cpu") == pytest.approx(0.0115, rel=0.01)


def test_too_little_evidence_is_not_recalled_until_there_is_more():
    remember("cpu", [math.nan] * LEAST)
    remember("cpu", [0.01] * (LEAST - 1))
    assert recall("cpu") is None
    remember("cpu", [0.01] * 1)
    assert recall("cpu") == pytest.approx(0.01)


def test_one_long_campaign_weighs_no_more_than_its_share():
    remember("cpu", [0.0100] * (100 * MOST))
    remember("cpu", [0.0115] * (100 * MOST))
    assert recall("cpu") == pytest.approx(0.0100**0.5 * 0.0115**0.5)


@pytest.mark.parametrize("changed", [0.005, 0.020])
def test_a_machine_that_was_changed_is_learnt_anew(changed):
    remember("cpu", [0.010] * (9 * LEAST))
    remember("cpu", [changed] * LEAST)
    assert recall("cpu") == changed


def test_it_is_forgotten(monkeypatch):
    remember("cpu", [0.010] * LEAST)
    later = time.time() + calibration.KEPT_S + 1
    monkeypatch.setattr(calibration.time, "time", lambda: later)
    assert recall("cpu") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "nonsense",
        '{"x": 1}',
        '{"KEY": {"typical_ms": "fast"}}',
        '{"KEY": {"typical_ms": 0.02, "seen": 0, "at": 9e9}}',
        '{"KEY": {"typical_ms": -1.0, "seen": 900, "at": 9e9}}',
    ],
)
def test_a_broken_cache_is_no_matter(content):
    calibration.cache_file().parent.mkdir(parents=True)
    calibration.cache_file().write_text(content.replace("KEY", calibration._key("cpu")))
    assert recall("cpu") is None
    remember("cpu", [0.01] * LEAST)
    assert recall("cpu") == 0.01


def test_a_cache_that_cannot_be_written_is_no_matter(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/hwnas")
    remember("cpu", [0.01] * LEAST)
    assert recall("cpu") is None


def test_what_could_be_the_same_machine():
    assert settle([0.011], [0.010]) == 0.010
    assert settle([0.0099], [0.010]) == 0.010
    assert settle([0.013], [0.010]) == 0.013
    assert settle([0.0125], [0.010, 0.012, 0.0125]) == 0.012
    assert settle([0.011], []) == 0.011
    assert math.isnan(settle([math.nan], [0.01]))
    assert settle([], [0.01]) == 0.01 and math.isnan(settle([], []))


def test_a_machine_that_still_runs_as_it_did_is_disturbed_not_changed():
    assert settle([0.0100] * 6 + [0.0140] * 94, [0.0102]) == 0.0102
    assert settle([0.0100] * 4 + [0.0140] * 96, [0.0102]) == 0.0140
    assert settle([math.nan] * 99 + [0.0100, 0.0140], [0.0102]) == 0.0102
    remember("cpu", [0.010] * LEAST)
    remember("cpu", [0.010] * LEAST + [0.014] * (9 * LEAST))
    assert recall("cpu") == pytest.approx(0.010)


def test_a_campaign_on_a_slowed_machine_refers_to_the_remembered_speed(tmp_path):
    target = Target("board", "onnxruntime", "1.0")
    with Store(tmp_path / "s") as store:
        item = store.ask(store.target(target), 0, ["a"])["a"]
        environment = store.environment({"typical_ms": 0.010})
        for number in range(6):
            store.add(item, environment, Sample(0, number, 0.0, [1_110_000] * 3, [11_100] * 14))
        history = History(store, target)
    assert history.typical_ms == history.awaited_ms == 0.010
    assert history._measurement(item, 0.02).median == pytest.approx(1.11 ** (1 - EXPECTED["network"]))
    assert history._measurement(item, 0.02).observed == pytest.approx(1.11)


def test_what_primitives_and_networks_feel_is_learnt_from_the_store(tmp_path):
    target, other = Target("board", "onnxruntime", "1.0"), Target("card", "torch", "2.0")
    rng, felt = np.random.default_rng(0), {"primitive": 1.0, "network": 0.3}
    with Store(tmp_path / "s") as store:
        environment = store.environment({})
        elsewhere = store.environment({"typical_ms": 0.0105})
        names = [f"primitive {n}" for n in range(60)] + [f"network s {n}" for n in range(60)]
        items = store.ask(store.target(target), 0, names)
        for name in names:
            for number, speed in enumerate(rng.uniform(0.9, 1.1, 12)):
                took = round(1e6 * speed ** felt[name.split()[0]] * rng.normal(1, 0.002))
                store.add(items[name], environment, Sample(0, number, 0.0, [took] * 3, [round(1e4 * speed)] * 14))
        store.add(store.ask(store.target(other), 0, ["x"])["x"], elsewhere, Sample(0, 0, 0.0, [9] * 3, [9] * 14))
        history = History(store, target)
        assert history.typical_ms == pytest.approx(0.010, rel=0.01), "of this target's sessions, not of another's"
        assert math.isnan(history.awaited_ms), "what was not known before is found without a choice of when to look"
        for name in names:
            measured = history._measurement(items[name], 0.02)
            assert measured.median == pytest.approx(1.0, rel=0.01) and measured.verdict == "steady"
        assert history.felt == pytest.approx(felt, abs=0.05)
