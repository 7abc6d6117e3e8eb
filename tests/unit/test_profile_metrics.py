"""Metrics beyond latency: energy from counters and logs, peak memory, and what the device's conditions do."""

import gc
import io
import math
import sys
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwnas.core.errors import InputError, ParseError, UnknownNameError
from hwnas.core.table import CostTable
from hwnas.core.target import Target
from hwnas.profile import Effort, Settings, nvidia, profile, worker
from hwnas.profile.backends import backends
from hwnas.profile.backends import cuda as gpu_timing
from hwnas.profile.block import Block
from hwnas.profile.campaign import run_campaign
from hwnas.profile.drift import Reference
from hwnas.profile.history import History
from hwnas.profile.memory import peak_activation_mib
from hwnas.profile.meters import (
    ABOVE_IDLE,
    ENERGY,
    LEAST_RUNS,
    LONGEST_S,
    POWER_LOG,
    WINDOW,
    Metering,
    Rapl,
    Span,
    energy_readings,
    find_meter,
    meters,
    take_span,
)
from hwnas.profile.metrics import Plan, read_log
from hwnas.profile.power import MeterLog, integrate, uncovered
from hwnas.profile.process import worker_environment
from hwnas.profile.stats import measure, summarise
from hwnas.profile.store import Reading, Sample, Store
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Pace
from hwnas.spaces import get_space

FAKES = Path(__file__).parents[1] / "fakes"
TARGET = Target("simulated board", "fake", "1.0")
NOW = 1_795_000_000.0


@pytest.fixture
def fake(monkeypatch):
    """The backend and the meter `fake` here and, through their entry points, in the workers; 7 W."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    monkeypatch.setenv("HWNAS_FAKE_WATTS", "7")
    monkeypatch.setenv("HWNAS_FAKE_REAL_S", "0.0005")
    from hwnas_fake import Fake, FakeMeter

    for registry, member in ((backends, Fake), (meters, FakeMeter)):
        if "fake" not in registry:
            registry.register("fake")(member)


class Machine:
    """A simulated clock, an inference of 3.7 ms and a counter of so many watts that moves every `step_s`.

    It makes `more` inferences than it is asked for each time, as TVM's evaluator does.
    """

    def __init__(self, watts: float, step_s: float, run_s: float = 0.0037, more: int = 0) -> None:
        self.now, self.watts, self.step_s, self.run_s, self.more = 100.0, watts, step_s, run_s, more

    def clock(self) -> float:
        self.now += 1e-7
        return self.now

    def run(self, times: int) -> int:
        self.now += (times + self.more) * self.run_s
        return times + self.more

    def rest(self, seconds: float) -> None:
        self.now += seconds

    def joules(self) -> float:
        return self.watts * self.step_s * math.floor(self.now / self.step_s)


@pytest.mark.parametrize("watts", [0.8, 350.0])
@pytest.mark.parametrize("step_s", [0.001, 0.02, 0.1])
@pytest.mark.parametrize("run_s", [0.00002, 0.0037, 0.06])
@pytest.mark.parametrize("more", [0, 1])
def test_a_meter_of_known_power_is_integrated_to_a_hundredth(watts, step_s, run_s, more):
    machine = Machine(watts, step_s, run_s, more)
    windows = [take_span(machine.run, machine.joules, 1.0, machine.clock, machine.rest) for _ in range(6)]
    energies = [1e3 * window.joules / window.runs for window in windows]
    assert np.median(energies) == pytest.approx(1e3 * watts * run_s, rel=0.01)
    assert all(window.seconds >= 1.0 and window.runs >= 20 for window in windows)
    rest = take_span(None, machine.joules, 1.0, machine.clock, machine.rest)
    assert rest.joules / rest.seconds == pytest.approx(watts, rel=0.01) and rest.runs == 0


def test_a_counter_that_stands_still_is_an_error():
    machine = Machine(0.0, 0.1)
    with pytest.raises(RuntimeError, match="did not move for 10 s"):
        take_span(machine.run, machine.joules, 1.0, machine.clock)


def test_a_window_of_long_inferences_ends():
    machine = Machine(5.0, 0.1, run_s=2.5)
    window = take_span(machine.run, machine.joules, 1.0, machine.clock)
    assert LONGEST_S <= window.seconds < LONGEST_S + 3 * machine.run_s and 1 < window.runs < LEAST_RUNS
    assert window.joules / window.runs == pytest.approx(5.0 * machine.run_s, rel=0.01)


@pytest.mark.usefixtures("fake")
def test_the_rest_is_as_long_as_the_window_of_a_log(monkeypatch):
    """As many samples have to cover it."""
    asked = []
    monkeypatch.setattr(worker, "SETTLE_S", 0)
    monkeypatch.setattr(worker, "take_span", lambda run, counter, least_s: asked.append(least_s))
    for meter, window_s in ((POWER_LOG, 12.5), ("fake", 12.5)):
        worker.Worker(io.StringIO()).rest(meter, window_s)
    worker.Worker(io.StringIO()).rest(POWER_LOG, 0.1)
    assert asked == [12.5, worker.IDLE_S, worker.IDLE_S]


@pytest.mark.usefixtures("fake")
def test_a_meter_that_fails_costs_the_energy_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HWNAS_FAKE_WATTS", "broken")
    subjects, effort = [Subject("onnx", "ok 1"), Subject("onnx", "ok 2")], Effort(metering=Metering("fake", 0.2))
    with Store(tmp_path / "s") as store:
        run_campaign(store, TARGET, Settings(), subjects, effort=effort)
        history = History(store, TARGET)
        assert all(found.verdict == "steady" for found in history.measurements(subjects).values())
        energies = history.measurements(subjects, metric=ENERGY).values()
    assert {found.verdict for found in energies} == {"unmeasurable"}
    assert capsys.readouterr().err.count("no energy is read: ValueError: could not convert string to float") == 1


def test_power_at_rest_is_subtracted_and_recorded():
    total, above = energy_readings(Span(NOW, 2.0, 100, waited=0.5), 20.0, 4.0, "nvml")
    assert (total.metric, total.value) == (ENERGY, pytest.approx(10.0 * 15.0))
    assert (above.metric, above.value) == (ABOVE_IDLE, pytest.approx(6.0 * 15.0))
    assert total.details["idle_w"] == 4.0 and total.details["joules"] == 20.0 and total.details["meter"] == "nvml"


def test_rapl_adds_packages_and_memory_and_survives_a_counter_that_wraps(tmp_path, monkeypatch):
    for folder, name, value in (
        ("intel-rapl:0", "package-0", 990_000),
        ("intel-rapl:0:0", "core", 5),
        ("intel-rapl:0:1", "dram", 0),
        ("intel-rapl:1", "psys", 7),
    ):
        (tmp_path / folder).mkdir()
        for file, text in (("name", name), ("energy_uj", value), ("max_energy_range_uj", 999_999)):
            (tmp_path / folder / file).write_text(f"{text}\n")
    monkeypatch.setattr(Rapl, "root", tmp_path)
    meter = Rapl()
    assert Rapl.unavailable(Settings()) is None and meter.joules() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("90000")
    (tmp_path / "intel-rapl:0:1" / "energy_uj").write_text("250000")
    assert meter.joules() == pytest.approx(0.35)
    assert find_meter(Settings()).meter == "rapl"
    assert "boards" in Rapl.unavailable(Settings(remote="tracker:9190"))
    monkeypatch.setattr(Rapl, "root", tmp_path / "absent")
    assert "no RAPL counter" in Rapl.unavailable(Settings())


@pytest.mark.usefixtures("fake")
def test_energy_of_a_counter_goes_through_store_and_measurement(tmp_path):
    subjects = [Subject("onnx", "ok 1"), Subject("onnx", "ok 2")]
    effort = Effort(sessions=2, metering=Metering("fake", 0.2, windows=6))
    path = tmp_path / "s"
    with Store(path) as store:
        run_campaign(store, TARGET, Settings(), subjects, effort=effort)
        history = History(store, TARGET)
        latency = history.measurements(subjects)
        found = history.measurements(subjects, goal=0.9, metric=ENERGY)
        readings = [reading for *_, reading in store.readings(history.target)]
        before = len(readings)
        run_campaign(store, TARGET, Settings(), subjects, effort=effort)
        assert len(store.readings(history.target)) == before == 2 * 2 * 6, "energy was measured twice"
    for subject in subjects:
        assert latency[subject].verdict == "steady"
        assert found[subject].n == 6 and found[subject].low <= found[subject].median <= found[subject].high
    total = [reading for reading in readings if reading.metric == ENERGY]
    watts = [r.value / 1e3 * r.details["runs"] / (r.details["seconds"] - r.details["waited"]) for r in total]
    assert np.median(watts) == pytest.approx(7, rel=0.1), "a busy machine reads the counter late"
    assert np.median([r.details["idle_w"] for r in total]) == pytest.approx(7, rel=0.1)


@pytest.mark.usefixtures("fake")
def test_energy_of_an_external_log(tmp_path):
    """The log's power rises by 3 W a second; what each window took is known from its own two ends."""
    path, subject = tmp_path / "s", Subject("onnx", "ok 1")
    start = time.time()

    def watts(moment):
        return 5 + 3 * (moment - start)

    def write(until):
        moments = np.arange(start - 1, until, 0.004)
        lines = [f"{moment:.6f},{watts(moment):.9f}\n" for moment in moments]
        (tmp_path / "log.csv").write_text("time,watts\n" + "".join(lines))

    write(start)
    effort = Effort(sessions=1, metering=Metering(POWER_LOG, 0.05, windows=6))
    with Store(path) as store:
        run_campaign(store, TARGET, Settings(), [subject], effort=effort)
        history = History(store, TARGET)
        assert history.measurements([subject], metric=ENERGY)[subject].verdict == "unmeasurable"
        assert "do not cover" in read_log(store, TARGET, tmp_path / "log.csv")
        write(time.time() + 1)
        assert read_log(store, TARGET, tmp_path / "log.csv") == ""
        assert read_log(store, TARGET, tmp_path / "log.csv") == "", "integrated twice"
        readings = [reading for *_, reading in store.readings(history.target)]
        found = History(store, TARGET).measurements([subject], goal=0.9, metric=ENERGY)[subject]
    energies = [reading for reading in readings if reading.metric == ENERGY]
    assert len(energies) == found.n == 6 and [r.metric for r in readings].count(WINDOW) == 6
    for reading in energies:
        d = reading.details
        mean = watts(reading.started + d["seconds"] / 2)
        assert d["joules"] == pytest.approx(mean * d["seconds"], rel=1e-3)
        assert reading.value == pytest.approx(1e3 * mean * (d["seconds"] - d["waited"]) / d["runs"], rel=1e-3)
        assert 5 < d["idle_w"] < watts(reading.started)


def test_what_cannot_be_measured_is_in_the_table_as_unmeasurable(tmp_path, monkeypatch):
    monkeypatch.setattr(Rapl, "root", tmp_path / "absent")
    quick = Effort(sessions=1, goal=0.5, time_limit_s=0.01, pace=Pace(block_s=0.001, least=3))
    run = profile(
        "nasbench-macro", tmp_path / "run", networks=1, effort=quick, metrics=("latency_ms", "energy_mj", "memory_mib")
    )
    table = CostTable.load(tmp_path / "run")
    assert table.metrics == ("latency_ms", "energy_mj", "memory_mib")
    for row in table.rows.values():
        assert row["energy_mj"].verdict == "unmeasurable" and math.isnan(row["energy_mj"].value)
    reasons = run.summary()["unmeasurable"]
    assert set(reasons) == {"energy_mj", "above_idle_energy_mj", "measured_memory_mib"}
    reason = reasons["energy_mj"]
    assert "RAPL" in reason and "--power-log" in reason and "\n" not in reason
    networks = run.networks().to_pydict()
    assert networks["energy_mj"] == [None] and networks["energy_mj_verdict"] == ["unmeasurable"]
    assert networks["memory_mib"][0] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["latency"]}, "did you mean 'latency_ms'"),
        ({"power_log": "absent.csv"}, "no power log"),
    ],
)
def test_bad_metrics_are_refused_before_anything_is_measured(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        profile("nasbench-macro", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# the log of an external meter


def log(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    return MeterLog.load(tmp_path / "log.csv")


@pytest.mark.parametrize(
    "text",
    [
        f"{NOW},5\n{NOW + 1},6\n{NOW + 2},7",
        f"time,watts\n{NOW},5\n{NOW + 1},6\n",
        f"\ufeffWatts, Timestamp\n5,{NOW}\n6,{NOW + 1}\n",
        "time,watts\r\n2026-11-18T13:06:40+02:00,5\r\n2026-11-18T11:06:41Z,6\r\n",
        f"{NOW},5,on\n\n{NOW + 1},6,on\n{NOW + 2},",
    ],
)
def test_logs_that_are_read(tmp_path, text):
    read = log(tmp_path, text)
    assert read.watts.tolist() == [5, 6] and read.spacing_s == 1
    assert read.joules(read.times_s[0], read.times_s[1]) == pytest.approx(5.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,volts\n1,2\n", r"log\.csv:1: the header"),
        (f"{NOW},5\n{NOW},6\n", r"log\.csv:2: sample times do not increase"),
        (f"{NOW},5\n{NOW + 1}\n", r"log\.csv:2: .* is no sample"),
        (f"{NOW},-5\n", "no power that a meter shows"),
        (f"{NOW},nan\n", "no power that a meter shows"),
        (f"{NOW},much\n", "no number of watts"),
        ("2026-11-18T11:06:41,5\n", "offset"),
        ("1x,5\n", "no time"),
    ],
)
def test_logs_that_are_refused(tmp_path, text, message):
    with pytest.raises(ParseError, match=message):
        log(tmp_path, text)


def test_the_window_of_a_slow_meter_is_longer(tmp_path):
    lines = [f"{NOW + 0.5 * k},5\n" for k in range(9)]
    log(tmp_path, "".join(lines))
    plan = Plan.of(["latency_ms"], tmp_path / "log.csv", Settings(), Effort())
    assert plan.effort.metering == Metering(POWER_LOG, 12.5)
    log(tmp_path, f"{NOW},5\n{NOW + 10},5\n")
    with pytest.raises(InputError, match="too slow"):
        Plan.of(["latency_ms"], tmp_path / "log.csv", Settings(), Effort())
    with pytest.raises(UnknownNameError):
        Plan.of(["joules"], None, Settings(), Effort())


def test_a_window_is_covered_or_said_not_to_be():
    times = np.arange(0, 10, 0.01)
    assert integrate(times, 4 * times, 1.234, 5.678) == pytest.approx(2 * (5.678**2 - 1.234**2))
    assert uncovered(times, 1, 2, "it") == ""
    assert "0.010 s of its 1.000 s have none" in uncovered(times, 9, 10, "it")
    assert "at least 5" in uncovered(times, 1, 1.04, "it")
    holed = np.delete(times, np.arange(110, 120))
    assert "stop for 0.110 s" in uncovered(holed, 1, 2, "it") and uncovered(holed, 1, 2, "it", 0.2) == ""
    assert "have none" in uncovered(np.zeros(0), 1, 2, "it")


# readings and their statistics


def test_readings_are_summarised_like_latencies():
    values = [5.0, 5.1, 5.2, 5.1, 5.05, 5.15]
    found = summarise(values, 0.02)
    assert (found.median, found.low, found.high) == (pytest.approx(5.1), 5.0, 5.2) and found.verdict == "steady"
    assert summarise(values, 0.01).verdict == "noisy" and summarise(values[:3], 0.5).verdict == "noisy"
    assert summarise([], 0.02).verdict == summarise([3.0, 0.0], 0.02).verdict == "unmeasurable"
    alike = summarise([2.0], 0.02)
    assert (alike.low, alike.high, alike.verdict) == (2.0, 2.0, "steady")
    assert summarise([2.0], 0.02, computed=True) == summarise([2.0] * 3, 0.02, computed=True)


def test_a_store_of_version_1_is_read_and_upgraded(tmp_path):
    path = tmp_path / "samples.sqlite"
    with Store(path) as store:
        item = store.ask(store.target(TARGET), 0, ["a"])["a"]
        store.add(item, store.environment({}), Sample(0, 0, NOW, [5, 6], [9] * 14))
        store._db.execute("DROP TABLE reading")
        store._db.execute("ALTER TABLE block DROP COLUMN conditions")
        store._db.execute("PRAGMA user_version = 1")
    with Store(path, read_only=True) as store:
        assert store.samples(item) == [Sample(0, 0, NOW, [5, 6], [9] * 14)] and store.readings(1) == []
    with Store(path) as store:
        assert len(store.samples(item)) == 1
        store.read(item, 1, [Reading("memory_mib", 2.0, NOW, {"a": 1})])
    with Store(path, read_only=True) as store:
        ((_, of, _, reading),) = store.readings(1)
        assert of == item and reading == Reading("memory_mib", 2.0, NOW, {"a": 1})


# the device's conditions


@pytest.mark.usefixtures("fake")
def test_throttled_blocks_are_kept_but_not_used(tmp_path):
    subjects = [Subject("onnx", name) for name in ("throttle", "hot", "ok 1")]
    with Store(tmp_path / "s") as store:
        run_campaign(store, TARGET, Settings(), subjects, effort=Effort(sessions=1, time_limit_s=0.5))
        found = History(store, TARGET).measurements(subjects)
        items = store.items(1, 0)
        conditions = {s.name: [b.conditions for b in store.samples(items[s.id])] for s in subjects}
    held = [each for each in conditions["throttle"] if "throttled" in each]
    assert 0 < len(held) < len(conditions["throttle"]) and all(each["clock_mhz"] == 600 for each in held)
    assert found[subjects[0]].verdict == "steady"
    assert found[subjects[0]].high < 1.5 * found[subjects[0]].low, "a throttled block was used"
    assert found[subjects[1]].verdict == "failed" and "power cap" in found[subjects[1]].reason
    assert found[subjects[2]].median == pytest.approx(1, rel=0.005)
    assert all(each == {"clock_mhz": 1200} for each in conditions["ok 1"])


def test_a_measurement_without_its_throttled_blocks():
    blocks = [Block(0, 9, 1.0 + k / 1000, 1.0 + k / 1000, 0.01) for k in range(8)]
    slow = [Block(0, 9, 3.0, 3.0, 0.01, throttled="power cap") for _ in range(8)]
    assert measure(blocks + slow, Reference(math.nan, 1.0), 0.02) == measure(blocks, Reference(math.nan, 1.0), 0.02)
    assert measure(slow, Reference(math.nan, 1.0), 0.02).verdict == "failed"


class FakeDriver:
    """A device whose kernel takes 40 us and 25 us more with a flushed cache.

    To launch it takes 10 us more, 5 us as a graph, unless the device is still busy.
    """

    def __init__(self) -> None:
        self.now, self.cold, self.flushes, self.busy = 0, False, 0, False

    def mark(self) -> int:
        return self.now

    def stall(self) -> None:
        self.now, self.busy = self.now + 100_000, True

    def between_ns(self, start: int, end: int) -> int:
        return end - start

    def flush(self) -> None:
        self.now, self.cold, self.flushes = self.now + 500_000, True, self.flushes + 1

    def kernel(self, launch: int = 10_000) -> None:
        self.now += launch * (not self.busy) + 40_000 + 25_000 * self.cold
        self.cold = self.busy = False

    def capture(self, run):
        return lambda: self.kernel(5_000)


def test_cold_and_warm_runs_and_graphs_are_timed_apart():
    driver = FakeDriver()
    warm, cold = gpu_timing.stopwatch(driver, driver.kernel), gpu_timing.stopwatch(driver, driver.kernel, cold=True)
    assert [warm() for _ in range(3)] == [50_000] * 3 and driver.flushes == 0
    assert [cold() for _ in range(3)] == [75_000] * 3 and driver.flushes == 3, "flushing was timed, or left out"
    graph = driver.capture(driver.kernel)
    assert gpu_timing.stopwatch(driver, graph)() == 45_000
    assert gpu_timing.stopwatch(driver, graph, queued=True)() == 40_000
    assert gpu_timing.stopwatch(driver, graph, cold=True, queued=True)() == 65_000


class FakeCuda:
    """What `TorchDriver` uses of `torch.cuda`; notes what is done on which stream."""

    def __init__(self) -> None:
        self.said, self.stream_now = [], "main"

    def Stream(self):
        return SimpleNamespace(name="side", wait_stream=lambda other: self.said.append("side waits"))

    def current_stream(self):
        return SimpleNamespace(name="main", wait_stream=lambda other: self.said.append("main waits"))

    @contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream.name
        yield
        self.stream_now = before

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.said.append("replay"))

    @contextmanager
    def graph(self, graph, stream):
        self.said.append("capture")
        with self.stream(stream):
            yield
        self.said.append("captured")

    def Event(self, enable_timing):
        event = SimpleNamespace(record=lambda: self.said.append("event"), synchronize=lambda: self.said.append("wait"))
        event.elapsed_time = lambda end: 0.25
        return event

    def synchronize(self):
        self.said.append("wait for all")

    def _sleep(self, cycles):
        self.said.append("stall")


def test_graphs_are_captured_after_a_warm_up_on_the_same_stream():
    driver = object.__new__(gpu_timing.TorchDriver)
    driver.cuda = cuda = FakeCuda()
    driver.buffer = SimpleNamespace(zero_=lambda: cuda.said.append("overwrite"))

    def run():
        cuda.said.append(f"run on {cuda.stream_now}")
        return "output"

    replay = driver.capture(run)
    assert cuda.said == ["side waits", *["run on side"] * 3, "main waits", "capture", "run on side", "captured"]
    cuda.said.clear()
    once = gpu_timing.stopwatch(driver, replay, cold=True, queued=True)
    assert once() == 250_000 and replay() == "output"
    assert cuda.said == ["overwrite", "wait for all", "stall", "event", "replay", "event", "wait", "replay"]


def test_a_graph_keeps_what_it_reads_alive():
    driver = object.__new__(gpu_timing.TorchDriver)
    driver.cuda = FakeCuda()

    class Weights:
        def __call__(self):
            return "output"

    weights = Weights()
    alive = weakref.ref(weights)
    replay = driver.capture(weights)
    del weights
    gc.collect()
    assert alive() is not None and replay() == "output"
    del replay
    gc.collect()
    assert alive() is None


class FakeNvml:
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    reasons = 0

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetName(self, handle):
        return b"NVIDIA Fake"

    def nvmlDeviceGetClockInfo(self, handle, which):
        return {1: 1980, 2: 2619}[which]

    def nvmlDeviceGetPowerUsage(self, handle):
        return 123_400

    def nvmlDeviceGetTemperature(self, handle, sensor):
        raise self.NVMLError

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return self.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return 5_000_250


def test_the_driver_s_word_on_a_gpu():
    nvml = FakeNvml()
    gpu = nvidia.Gpu(nvml, object())
    assert gpu.name == "NVIDIA Fake" and gpu.joules() == pytest.approx(5000.25)
    assert gpu.conditions() == {"clock_mhz": 1980, "memory_clock_mhz": 2619, "power_w": 123.4}
    nvml.reasons = 0x01 | 0x10
    assert "throttled" not in gpu.conditions(), "an idle or synchronised clock is not held down"
    nvml.reasons = 0x04 | 0x40
    assert gpu.conditions()["throttled"] == "power cap, hardware thermal slowdown"
    nvml.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: nvml.nvmlDeviceGetTemperature(handle, 0)
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x80
    assert gpu.conditions()["throttled"] == "power brake", "as older drivers tell it"


class FakeLibrary:
    """CUDA's driver library: `cuInit` fails with `failure`."""

    def __init__(self, failure: int = 0) -> None:
        self.failure = failure

    def cuInit(self, flags):
        return self.failure

    def cuDeviceGet(self, device, number):
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = b"NVIDIA Fake"
        return 0


def test_a_gpu_is_found_by_cuda_alone(monkeypatch):
    """As in a container that has neither NVML's package nor the kernel driver's files."""
    monkeypatch.setattr(nvidia, "gpu", lambda: None)
    monkeypatch.setattr(nvidia, "Path", lambda path: Path("/nowhere"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for library, found in ((FakeLibrary(), ["NVIDIA Fake"]), (FakeLibrary(100), [])):
        monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name, library=library: library)
        assert nvidia.names() == found
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: FakeLibrary())
    monkeypatch.setattr(nvidia, "Path", Path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert nvidia.names() == ["NVIDIA Fake"] and worker_environment(1)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert nvidia.names() == []


def test_a_long_compilation_says_that_it_is_alive_but_not_for_ever(monkeypatch):
    from hwnas.profile.backends import torch as torch_backend

    monkeypatch.setattr(torch_backend, "BEAT_S", 0.01)
    beats = []
    with torch_backend.beating(lambda: beats.append(1), 0.05):
        time.sleep(0.5)
    assert 1 <= len(beats) <= 5


def test_a_gpu_runtime_that_is_not_there_is_one_line(monkeypatch):
    from hwnas.core.errors import UnavailableError
    from hwnas.profile.device import local_target

    monkeypatch.setattr("hwnas.profile.device.gpus", lambda: ["NVIDIA Fake"])
    wrong = [
        ("onnxruntime", Settings("gpu", "int8"), "int8"),
        ("onnxruntime-tensorrt", Settings(), "not on cpu"),
        ("onnxruntime", Settings(cache="cold"), "by torch or torch-compile on gpu only; leave --cache"),
        ("onnxruntime", Settings(cache="frozen"), "a cache is warm or cold, not frozen"),
        ("torch", Settings(graphs=True), "by torch or torch-compile on gpu only; leave --graphs"),
    ]
    if "CUDAExecutionProvider" not in pytest.importorskip("onnxruntime").get_available_providers():
        wrong.append(("onnxruntime", Settings("gpu"), "install onnxruntime-gpu"))
    for runtime, settings, message in wrong:
        with pytest.raises(UnavailableError, match=message) as error:
            local_target(runtime, settings)
        assert "\n" not in str(error.value)


# memory


def chain(*nodes, shape=("N", 4, 8, 8)):
    """A model of (operator, inputs, output) nodes over inputs `x` of one shape."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "out")]
    graph = helper.make_graph(
        [helper.make_node(op, list(ins), [out]) for op, ins, out in nodes], "g", values[:1], values[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return onnx.ModelProto.SerializeToString(model)


def test_peak_memory_is_that_of_the_tensors_alive_together():
    one = 4 * 4 * 8 * 8 / 2**20
    straight = chain(("Relu", ["x"], "a"), ("Relu", ["a"], "b"), ("Relu", ["b"], "out"))
    assert peak_activation_mib(straight) == pytest.approx(2 * one)
    skip = chain(("Relu", ["x"], "a"), ("Relu", ["a"], "b"), ("Relu", ["b"], "c"), ("Add", ["c", "a"], "out"))
    assert peak_activation_mib(skip) == pytest.approx(3 * one)
    assert peak_activation_mib(skip, "int8", 8) == pytest.approx(3 * one * 8 / 4)
    with pytest.raises(ValueError, match="open"):
        peak_activation_mib(chain(("Relu", ["x"], "out"), shape=("N", 4, "H", 8)))


@pytest.mark.skipif(sys.platform != "linux", reason="starts a worker")
def test_memory_is_added_to_what_is_measured_already(tmp_path):
    quick = Effort(sessions=1, goal=0.5, time_limit_s=0.01, pace=Pace(block_s=0.001, least=3))
    profile("nasbench-macro", tmp_path / "run", effort=quick, metrics=["latency_ms"])
    with Store(tmp_path / "run" / "samples.sqlite", read_only=True) as store:
        before = len(list(store.blocks(1)))
    run = profile("nasbench-macro", tmp_path / "run", effort=quick, metrics=["memory_mib"])
    with Store(tmp_path / "run" / "samples.sqlite", read_only=True) as store:
        assert len(list(store.blocks(1))) == before
    costs = run.table().vector(get_space("nasbench-macro"), "memory_mib")
    assert (costs > 0).all()
