"""Campaigns over a backend with a simulated clock: they end alike whatever happens to their processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hwnas.core.errors import UnavailableError, UnknownNameError
from hwnas.core.target import Target
from hwnas.profile.backends import Settings, backends
from hwnas.profile.campaign import run_campaign
from hwnas.profile.history import Effort, History
from hwnas.profile.process import Limits
from hwnas.profile.store import Store
from hwnas.profile.subject import Subject

FAKES = Path(__file__).parents[1] / "fakes"
TARGET = Target("simulated board", "fake", "1.0")
EFFORT = Effort(chunk=4)

RUN = """
import sys
from hwnas.core.target import Target
from hwnas.profile.backends import Settings
from hwnas.profile.campaign import run_campaign
from hwnas.profile.history import Effort
from hwnas.profile.store import Store
from hwnas.profile.subject import Subject
target = Target("simulated board", "fake", "1.0")
subjects = [Subject("onnx", f"ok {n / 10}") for n in range(1, 13)]
with Store(sys.argv[1]) as store:
    run_campaign(store, target, Settings(), subjects, effort=Effort(chunk=4), seed=int(sys.argv[2]))
"""
TWELVE = [Subject("onnx", f"ok {n / 10}") for n in range(1, 13)]


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """The backend `fake` for this process and, through its entry point, for the workers."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    if "fake" not in backends:
        from hwnas_fake import Fake

        backends.register("fake")(Fake)


def campaign(path, *names: str, effort: Effort = EFFORT, series: int = 0, seed: int = 0):
    """Measure subjects called `names`; returns their measurements by name, and the store's blocks by name."""
    subjects = [Subject("onnx", name) for name in names]
    with Store(path) as store:
        run_campaign(store, TARGET, Settings(), subjects, effort=effort, series=series, seed=seed)
        return results(store, subjects, series)


def results(store, subjects, series=0):
    history = History(store, TARGET)
    items = store.items(history.target, series)
    return (
        {subject.name: m for subject, m in history.measurements(subjects, series=series).items()},
        {subject.name: store.samples(items[subject.id]) for subject in subjects},
    )


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_every_subject_is_measured_in_two_processes(tmp_path):
    found, samples = campaign(tmp_path / "s", *(f"ok {n}" for n in range(1, 8)))
    for n in range(1, 8):
        measured = found[f"ok {n}"]
        assert measured.median == pytest.approx(n, rel=0.005) and measured.verdict == "steady"
        assert sorted(s.session for s in samples[f"ok {n}"]) == [0] * 5 + [1] * 5
        assert all(len(s.sentinel_ns) == 14 and len(s.times_ns) >= EFFORT.pace.least for s in samples[f"ok {n}"])
    assert not children()


def test_rounds_are_interleaved(tmp_path):
    _, samples = campaign(tmp_path / "s", "ok 1", "ok 2", "ok 3", seed=3)
    rounds = sorted((s.session, s.round, s.started, name) for name, many in samples.items() for s in many)
    assert [(session, number) for session, number, *_ in rounds] == [
        (session, number) for session in (0, 1) for number in range(5) for _ in range(3)
    ]
    assert len({tuple(r[3] for r in rounds[i : i + 3]) for i in range(0, len(rounds), 3)}) > 1


def test_what_is_claimed_is_renewed_while_subjects_load(tmp_path, monkeypatch):
    """A chunk of kernels that are tuned loads for longer than a lease lasts."""
    done = []
    for name in ("renew", "compiled"):
        before = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda *a, name=name, before=before: (done.append(name), before(*a)))
    campaign(tmp_path / "s", "ok 1", "ok 2")
    assert done[: done.index("compiled")].count("renew") >= 1


def test_the_circumstances_are_recorded(tmp_path):
    campaign(tmp_path / "s", "ok 1")
    with Store(tmp_path / "s") as store:
        first, *_ = store.environments(store.target(TARGET))
    assert first["settings"]["threads"] == 1 and "hwnas" in first["versions"]
    assert len(first["pinned_to"]) == 1 or sys.platform != "linux"


@pytest.mark.parametrize(
    ("culprit", "reason"),
    [
        ("crash", "SIGABRT"),
        ("crash-run", "SIGABRT"),
        ("exit", "exit code 3"),
        ("raise", "ValueError: cannot be compiled:"),
        ("raise-run", "ValueError"),
        ("hang", "hung"),
        ("hang-run", "hung"),
        ("eat", "Memory"),
    ],
)
def test_a_subject_that_kills_its_worker_fails_alone(tmp_path, culprit, reason):
    effort = Effort(chunk=4, limits=Limits(timeout_s=2.0 if "hang" in culprit else 60.0, memory_share=0.05))
    found, samples = campaign(tmp_path / "s", "ok 1", "ok 2", culprit, "ok 3", effort=effort)
    assert found[culprit].verdict == "failed" and reason in found[culprit].reason, found[culprit].reason
    assert "\n" not in found[culprit].reason
    for n in (1, 2, 3):
        assert found[f"ok {n}"].median == pytest.approx(n, rel=0.005) and found[f"ok {n}"].verdict == "steady"
        assert len(samples[f"ok {n}"]) == 10
    assert not children()
    before = len(samples["ok 1"])
    found, samples = campaign(tmp_path / "s", "ok 1", "ok 2", culprit, "ok 3", effort=effort)
    assert found[culprit].verdict == "failed" and len(samples["ok 1"]) == before


def test_a_subject_that_only_fails_in_company_is_measured_alone(tmp_path):
    found, _ = campaign(tmp_path / "s", "ok 1", "later", "ok 2")
    assert {name: m.verdict for name, m in found.items()} == dict.fromkeys(["ok 1", "later", "ok 2"], "steady")


def test_a_backend_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HWNAS_FAKE_BROKEN", "1")
    with pytest.raises(UnavailableError) as error:
        campaign(tmp_path / "s", "ok 1")
    assert "libfake.so" in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_backend_is_one_line(tmp_path):
    with Store(tmp_path / "s") as store, pytest.raises(UnknownNameError, match="nonesuch"):
        run_campaign(store, Target("board", "nonesuch", "1"), Settings(), [Subject("onnx", "ok 1")])


def test_series_are_independent(tmp_path):
    campaign(tmp_path / "s", "ok 1", "ok 2")
    _, again = campaign(tmp_path / "s", "ok 1", series=1)
    with Store(tmp_path / "s") as store:
        _, first = results(store, [Subject("onnx", "ok 1")])
    assert len(again["ok 1"]) == len(first["ok 1"]) == 10
    assert {s.started for s in again["ok 1"]}.isdisjoint(s.started for s in first["ok 1"])


def start(path, seed: int, real_s: float = 0.0005) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(FAKES), str(FAKES.parents[1])]),
        "HWNAS_FAKE_REAL_S": str(real_s),
    }
    return subprocess.Popen([sys.executable, "-c", RUN, str(path), str(seed)], env=environment, stderr=subprocess.PIPE)


def blocks_in(path) -> int:
    if not Path(path).exists():
        return 0
    try:
        with Store(path, read_only=True) as store:
            return len(list(store.blocks(1)))
    except Exception:
        return 0


def wait_for(path, blocks: int, process: subprocess.Popen[bytes]) -> None:
    while blocks_in(path) < blocks:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        time.sleep(0.02)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_campaign_that_was_killed_ends_as_one_that_was_not(tmp_path, blow):
    path = tmp_path / "killed"
    for stage in (7, 70):
        process = start(path, 0)
        wait_for(path, stage, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(blow)
        process.wait(30)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive, "a worker outlived its campaign"
    kept = blocks_in(path)
    final = start(path, 0, 0.0)
    assert final.wait(60) == 0
    final.stderr.close()
    straight, _ = campaign(tmp_path / "straight", *(s.name for s in TWELVE))
    with Store(path) as store:
        resumed, samples = results(store, TWELVE)
    assert resumed == straight
    assert kept >= 70 and sum(map(len, samples.values())) == 120


def test_a_worker_that_is_killed_loses_one_block(tmp_path):
    path = tmp_path / "s"
    process = start(path, 0)
    killed = 0
    while process.poll() is None and killed < 3:
        wait_for(path, 20 * (killed + 1), process)
        for worker in psutil.Process(process.pid).children():
            worker.kill()
            killed += 1
    assert process.wait(60) == 0 and killed == 3
    process.stderr.close()
    with Store(path) as store:
        found, samples = results(store, TWELVE)
    assert all(m.verdict == "steady" for m in found.values())
    assert {len(many) for many in samples.values()} == {10}


def test_two_processes_share_one_store(tmp_path):
    path = tmp_path / "s"
    both = [start(path, seed) for seed in (0, 1)]
    assert [process.wait(90) for process in both] == [0, 0]
    for process in both:
        process.stderr.close()
    with Store(path) as store:
        found, samples = results(store, TWELVE)
    assert all(m.verdict == "steady" for m in found.values())
    assert {len(many) for many in samples.values()} == {10}, "a subject was measured twice"


def test_two_processes_over_one_killed_take_its_share(tmp_path):
    path = tmp_path / "s"
    first, second = start(path, 0), start(path, 1)
    wait_for(path, 20, first)
    first.kill()
    first.wait(10)
    assert second.wait(90) == 0
    with Store(path) as store:
        _, samples = results(store, TWELVE)
    assert {len(many) for many in samples.values()} == {10}
