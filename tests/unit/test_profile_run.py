"""The run folder: what `profile` leaves, how it resumes, what it refuses."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from hwnas.cli.shell import run as hwnas
from hwnas.core.errors import InputError, StoreError, TargetMismatchError, UnavailableError, UnknownNameError
from hwnas.core.table import CostTable
from hwnas.core.target import Target
from hwnas.profile import Chooser, Effort, Request, Run, Settings, doctor, measure_onnx, profile, profile_batches
from hwnas.profile.backends import Backend, backends
from hwnas.profile.choosers import random_networks
from hwnas.profile.device import environment, local_target, usable_cores
from hwnas.profile.process import worker_environment
from hwnas.profile.store import Store
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Pace
from hwnas.spaces import Primitive, get_space

SPACE = "nasbench-macro"
QUICK = Effort(sessions=1, goal=0.5, time_limit_s=0.01, pace=Pace(block_s=0.001, least=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "run"
    profile(SPACE, out, networks=3, repeats=2, effort=QUICK)
    return out


def test_the_folder_holds_table_networks_and_samples(folder):
    run, space = Run.load(folder), get_space(SPACE)
    table = run.table()
    costs = table.vector(space, "latency_ms")
    assert len(costs) == len(space.primitives()) and (costs > 0).all()
    assert table.target == run.target == local_target("onnxruntime", Settings())
    assert table.manifest["spaces"] == [space.spec] and table.manifest["environment"]["cpu"]
    networks = run.networks().to_pydict()
    assert networks["space"] == [space.spec] * 3
    assert networks["arch"] == [space.format(row) for row in random_networks(space, 3, 0)]
    assert all(
        low <= value <= high
        for low, value, high in zip(
            networks["latency_ms_low"], networks["latency_ms"], networks["latency_ms_high"], strict=True
        )
    )
    assert sum(value is not None for value in networks["latency_ms_repeat"]) == 2
    assert run.noise().pairs == 2
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "samples.sqlite",
        "table.csv",
        "table.json",
        "networks.parquet",
    }


def test_the_same_command_measures_nothing_twice(folder, tmp_path):
    before = blocks(folder / "samples.sqlite")
    table = (folder / "table.csv").read_bytes()
    profile(SPACE, folder, networks=3, repeats=2, effort=QUICK)
    assert blocks(folder / "samples.sqlite") == before
    assert (folder / "table.csv").read_bytes() == table


def test_what_an_earlier_request_was_cut_off_before_has_not_failed(folder, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(folder, out)
    content = json.loads((out / "run.json").read_text())
    more = [get_space(SPACE).format(row) for row in random_networks(get_space(SPACE), 5, 0)]
    content["requests"].append({**content["requests"][0], "networks": 5, "repeats": 0, "chosen": more})
    (out / "run.json").write_text(json.dumps(content))
    run = profile(SPACE, out, networks=3, repeats=2, effort=QUICK)
    assert len(run.requests) == 2 and run.networks().num_rows == 3
    assert run.failures() == {} and run.summary()["failed"] == 0
    assert profile(SPACE, out, networks=5, effort=QUICK).networks().num_rows == 5


def test_another_space_is_added_and_what_they_share_is_measured_once(folder, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(folder, out)
    before = blocks(out / "samples.sqlite")
    run = profile("nasbench201", out, effort=QUICK)
    assert [request.space for request in run.requests] == [SPACE, "nasbench201"]
    table = Run.load(out).table()
    for space in (SPACE, "nasbench201"):
        assert len(table.vector(get_space(space), "latency_ms"))
    assert len(run.networks()) == 3
    with Store(out / "samples.sqlite", read_only=True) as store:
        items = store.items(1, 0)
    shared = set(get_space(SPACE).primitives()) & set(get_space("nasbench201").primitives())
    for primitive in shared:
        assert (
            blocks(out / "samples.sqlite")[items[Subject.primitive(primitive).id]]
            == before[items[Subject.primitive(primitive).id]]
        )


def test_another_target_in_the_same_folder_is_refused(folder):
    with pytest.raises(TargetMismatchError, match="batch 1 against 2"):
        profile(SPACE, folder, settings=Settings(batch=2), effort=QUICK)


def test_batches_share_one_store(tmp_path):
    runs = profile_batches(SPACE, tmp_path, [1, 2], effort=QUICK)
    assert [run.folder.name for run in runs] == ["batch_1", "batch_2"]
    assert {run.store for run in runs} == {tmp_path / "samples.sqlite"}
    one, two = (run.table().vector(get_space(SPACE), "latency_ms") for run in runs)
    assert np.median(two / one) > 1.2
    assert Run.load(tmp_path / "batch_2").table().target.batch == 2


def test_a_shared_store_is_remembered(tmp_path):
    run = profile(SPACE, tmp_path / "run", store=tmp_path / "shared.sqlite", effort=QUICK)
    assert Run.load(run.folder).store == tmp_path / "shared.sqlite"
    assert not (run.folder / "samples.sqlite").exists()


def test_models_are_measured_interleaved_and_anew(tmp_path):
    small = Primitive.of("conv", (3, 16, 16), act="relu", bn=1, kernel=3, out=8, stride=1)
    large = Primitive.of("conv", (3, 128, 128), act="relu", bn=1, kernel=3, out=32, stride=1)
    path = tmp_path / "large.onnx"
    path.write_bytes(large.to_onnx())
    models = {"small": small.to_onnx(), "large": path}
    found = measure_onnx(models, effort=QUICK, store=tmp_path / "store.sqlite")
    assert found["large"].median > 5 * found["small"].median > 0
    measure_onnx(models, effort=QUICK, store=tmp_path / "store.sqlite")
    with Store(tmp_path / "store.sqlite", read_only=True) as store:
        assert [len(store.items(1, series)) for series in (0, 1, 2)] == [2, 2, 0]


def test_a_model_that_is_none_fails_with_a_reason():
    found = measure_onnx({"broken": b"no model"}, effort=QUICK)
    assert found["broken"].verdict == "failed" and found["broken"].reason


def test_what_failed_says_why_and_is_tried_again_when_asked(folder, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(folder, out)
    subject = Subject.primitive(get_space(SPACE).primitives()[0])
    with Store(out / "samples.sqlite") as store:
        number = store.target(Run.load(out).target)
        store.fail(store.items(number, 0)[subject.id], "out of memory")
    command = ["profile", "--space", SPACE, "--out", str(out), "--goal", "0.5", "--time-limit", "0.01"]
    assert hwnas(command) == 0
    printed = capsys.readouterr().out
    assert f"failed: {subject.name}: out of memory" in printed and "--retry" in printed
    assert Run.load(out).failures() == {subject.name: "out of memory"}
    assert hwnas([*command, "--retry"]) == 0
    assert "failed:" not in capsys.readouterr().out
    assert Run.load(out).failures() == {} and Run.load(out).table().rows[subject.name]["latency_ms"].value > 0


def test_a_run_in_which_everything_failed_is_no_success(folder, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    with Store(out / "samples.sqlite") as store:
        number = store.target(Run.load(folder).target)
        primitives = [Subject.primitive(primitive).id for primitive in get_space(SPACE).primitives()]
        for item in store.ask(number, 0, primitives).values():
            store.fail(item, "out of memory")
    assert hwnas(["profile", "--space", SPACE, "--out", str(out), "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["runs"][0]["failed"] == len(primitives)
    assert "nothing could be measured with onnxruntime" in printed.err


def test_repeats_are_of_networks():
    with pytest.raises(InputError, match="say how many"):
        Chooser().request(SPACE, 0, repeats=2)
    assert Chooser().request(SPACE, 3, repeats=2).repeats == 2


def test_random_networks_are_distinct_and_a_larger_sample_begins_alike():
    space = get_space("ofa-mbv3")
    many = random_networks(space, 300, 7)
    assert len(np.unique(many, axis=0)) == 300
    assert (random_networks(space, 40, 7) == many[:40]).all()
    assert (random_networks(space, 40, 8) != many[:40]).any()


def test_a_space_smaller_than_the_sample_is_refused():
    with pytest.raises(InputError, match="has only 6561"):
        random_networks(get_space(SPACE), 7000, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"settings": Settings(device="gpu")}, UnavailableError, "GPU"),
        ({"settings": Settings(device="tpu")}, UnavailableError, "tpu"),
        ({"settings": Settings(precision="fp3")}, UnavailableError, "fp3"),
        ({"settings": Settings(batch=0)}, InputError, "batch"),
        ({"settings": Settings(threads=10_000)}, InputError, "threads"),
        ({"runtime": "onnxruntim"}, UnknownNameError, "onnxruntime"),
        ({"networks": 7000}, InputError, "has only 6561"),
        ({"networks": -1}, InputError, "counts"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(tmp_path, options, error, message, monkeypatch):
    monkeypatch.setattr("hwnas.profile.device.gpus", lambda: [])
    with pytest.raises(error) as raised:
        profile(SPACE, tmp_path / "run", effort=QUICK, **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_what_a_backend_cannot_do_names_those_that_can(monkeypatch):
    known = {name: backends.get(name) for name in backends if name != "fake"}
    monkeypatch.setattr(backends, "_members", {**known, "mine": type("Mine", (Backend,), {"can_tune": True})})
    reason = backends.get("onnxruntime").unavailable(Settings(trials=8))
    assert reason == "its kernels are not tuned; leave --trials away, or use --runtime mine or tvm"


def test_a_folder_that_cannot_be_made():
    with pytest.raises((InputError, StoreError)) as raised:
        profile(SPACE, "/proc/self/hwnas", effort=QUICK)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"kind": "profile_run", "schema": 1}',
        '{"kind": "profile_run", "schema": 1, "requests": 3, "target": {}, "store": "s", "goal": 1}',
        '{"kind": "profile_run", "schema": 1, "requests": [], "target": {}, "store": "s", "goal": 1, "metrics": null}',
        '{"kind": "profile_run", "schema": 1, "requests": [{"space": 3, "chosen": []}], "target": 0, "store": 0}',
    ],
)
def test_a_run_that_is_none(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json"):
        Run.load(tmp_path)


def test_an_unfinished_run_says_so(folder, tmp_path):
    shutil.copy(folder / "run.json", tmp_path)
    run = Run.load(tmp_path)
    with pytest.raises(InputError, match="no cost table yet"):
        run.table()
    with pytest.raises(InputError, match="no measured networks"):
        run.networks()


def test_the_environment_is_json():
    record = json.loads(json.dumps(environment(Settings(), [0]), allow_nan=False))
    assert {"cpu", "governor", "load", "versions", "host", "date", "settings", "pinned_to"} <= set(record)


def test_doctor_finds_this_machine(monkeypatch):
    monkeypatch.setattr("hwnas.profile.doctor.SENTINEL_S", 0.05)
    monkeypatch.setattr("hwnas.profile.doctor.versions", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "2"})
    findings = doctor.diagnose()
    topics = {finding.topic for finding in findings}
    assert {"cpu", "gpu", "runtime onnxruntime", "runtime torch", "libraries", "governor", "steadiness"} <= topics
    (clash,) = [f for f in findings if f.topic == "libraries" and f.level == "warning"]
    assert "overwrite" in clash.found and clash.advice


def test_doctor_tries_the_neighbours(monkeypatch):
    if not hasattr(os, "sched_setaffinity") or len(usable_cores()) < 2:
        pytest.skip("one core, or none that can be pinned to")
    monkeypatch.setattr("hwnas.profile.doctor.core_loads", lambda: dict.fromkeys(usable_cores(), 0.0))
    monkeypatch.setattr("hwnas.profile.doctor.GLIMPSE_S", 0.005)
    (tried,) = doctor._neighbours()
    assert tried.topic == "neighbours" and tried.level in ("ok", "warning") and "core" in tried.found
    monkeypatch.setattr("hwnas.profile.doctor._slowdowns", lambda own, others: [(others[0], 1.8)])
    (slowed,) = doctor._neighbours()
    assert slowed.level == "warning" and "1.8 times as long while core" in slowed.found
    monkeypatch.setattr("hwnas.profile.doctor.core_loads", lambda: dict.fromkeys(usable_cores(), 99.0))
    (skipped,) = doctor._neighbours()
    assert skipped.level == "info" and "busy" in skipped.found


def test_doctor_says_so_where_the_sentinel_cannot_be_watched(monkeypatch):
    monkeypatch.setattr("hwnas.profile.doctor.WATCHER", "raise SystemExit(3)")
    (told,) = [finding for finding in doctor.diagnose() if finding.topic == "steadiness"]
    assert told.level == "warning" and told.found.startswith("not tried: ")


def test_a_watcher_ends_with_its_parent():
    command = [sys.executable, "-c", doctor.WATCHER]
    done = subprocess.run(
        command, env=worker_environment(1), timeout=60, check=True, stdout=subprocess.PIPE, input=b"0.001\n"
    )
    assert json.loads(done.stdout)[0] > 0


def test_the_table_is_the_measurements(folder):
    table = CostTable.load(folder / "table.csv")
    assert {row["latency_ms"].verdict for row in table.rows.values()} <= {"steady", "noisy"}
    assert {row["memory_mib"].verdict for row in table.rows.values()} == {"computed"}
    assert table.metrics == ("latency_ms", "memory_mib")


def blocks(path) -> dict[int, int]:
    with Store(path, read_only=True) as store:
        counts: dict[int, int] = {}
        for _, item, _block in store.blocks(1):
            counts[item] = counts.get(item, 0) + 1
        return counts


def test_a_chooser_picks_batch_after_batch_and_a_killed_run_goes_on_with_its_picks(tmp_path):
    space, seen = get_space(SPACE), []

    class Pairs(Chooser):
        name = "pairs"

        def pick(self, run, request):
            held = len(run.networks()) if (run.folder / "networks.parquet").exists() else 0
            seen.append((held, request.left))
            return random_networks(space, 10, 5)[held : held + 2]

    class Killed(Pairs):
        def pick(self, run, request):
            if seen:
                raise KeyboardInterrupt
            return super().pick(run, request)

    class Refused(Pairs):
        def pick(self, run, request):
            pytest.fail("nothing is left")

    options = {"networks": 5, "effort": QUICK}
    with pytest.raises(KeyboardInterrupt):
        profile(SPACE, tmp_path / "run", choose=Killed(), **options)
    assert len(Run.load(tmp_path / "run").requests[0].chosen) == 2
    run = profile(SPACE, tmp_path / "run", choose=Pairs(), **options)
    assert seen == [(0, 5), (2, 3), (4, 1)]
    whole = profile(SPACE, tmp_path / "whole", choose=Pairs(), **options)
    wanted = [space.format(row) for row in random_networks(space, 5, 5)]
    assert list(run.requests[0].chosen) == wanted == run.networks()["arch"].to_pylist()
    assert len(run.requests) == 1 and whole.requests == run.requests == Run.load(run.folder).requests
    again = profile(SPACE, run.folder, choose=Refused(), **options)
    assert again.requests == run.requests
    fewer = profile(SPACE, run.folder, choose=Refused(), networks=3, effort=QUICK)
    assert [request.chosen for request in fewer.requests] == [tuple(wanted), tuple(wanted[:3])]


def test_a_request_takes_the_place_of_what_it_extends_alone():
    run = Run("run", Target("board", "fake"), (), "samples", 0.02)
    first, more, other = (Request(SPACE, 4, "mine", chosen=chosen) for chosen in (("a",), ("a", "b"), ("c",)))
    twice = Request(SPACE, 4, "mine", repeats=2, chosen=("a", "b"))
    assert run.asking(first).asking(more).requests == (more,)
    assert run.asking(first).asking(other).asking(twice).asking(more).requests == (more, other, twice)
    assert Request(SPACE, 5, "mine").continuing([first, other, twice]).chosen == ("a", "b")
    assert Request(SPACE, 1, "mine").continuing([more]).chosen == ("a",)
    assert Request(SPACE, 5, "mine", seed=1).continuing([more]).chosen == ()


def test_more_networks_leave_the_earlier_request_and_its_noise(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    run = profile(SPACE, tmp_path / "run", networks=5, effort=QUICK)
    assert [(r.networks, r.repeats, len(r.chosen)) for r in run.requests] == [(3, 2, 3), (5, 0, 5)]
    assert len(run.networks()) == 5 and run.noise().pairs == 2
