"""The sample store: append-only, shared, and one clear line when it cannot be used."""

import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hwnas.core.errors import StoreError
from hwnas.core.target import Target
from hwnas.profile.store import LEASE_S, RENEW_S, Sample, Store

TARGET = Target("board", "fake", "1.0")


def sample(round_: int = 0, times: tuple[int, ...] = (5, 6, 7)) -> Sample:
    return Sample(0, round_, time.time(), list(times), [9] * 14)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "samples.sqlite") as store:
        yield store


def test_samples_come_back_as_they_were(store):
    items = store.ask(store.target(TARGET), 0, ["a", "b", "a"])
    environment = store.environment({"host": "here"})
    kept = [sample(n, (n, 2**40, 3)) for n in range(3)]
    for each in kept:
        store.add(items["a"], environment, each)
    assert store.samples(items["a"]) == kept
    assert store.samples(items["b"]) == []
    assert [block.median_ms for *_, block in store.blocks(1)] == pytest.approx([3e-6] * 3)
    other = store.ask(store.target(replace(TARGET, device="another")), 0, ["a"])["a"]
    store.add(other, store.environment({"host": "there"}), sample())
    assert store.environments(1) == [{"host": "here"}] and store.environments(2) == [{"host": "there"}]


def test_blocks_are_read_once(store):
    item = store.ask(store.target(TARGET), 0, ["a"])["a"]
    environment = store.environment({})
    store.add(item, environment, sample())
    (first,) = store.blocks(1)
    store.add(item, environment, sample())
    (second,) = store.blocks(1, after=first[0])
    assert second[0] > first[0]


def test_targets_and_series_are_kept_apart(store):
    other = Target("board", "fake", "1.0", threads=2)
    numbers = store.target(TARGET), store.target(other)
    items = {store.ask(number, series, ["a"])["a"] for number in numbers for series in (0, 1)}
    assert len(items) == 4
    assert store.target(TARGET) == numbers[0]
    assert store.next_series(TARGET, ["a"]) == 2 and store.next_series(TARGET, ["new"]) == 0


def test_failures_and_compilations(store):
    item = store.ask(store.target(TARGET), 0, ["a"])["a"]
    store.compiled(item, 1.0)
    store.compiled(item, 3.0)
    store.fail(item, "because")
    assert store.failures(1) == {item: "because"}
    assert store.compile_seconds(1) == {item: 2.0}


def test_two_processes_never_hold_the_same_subject(store):
    items = list(store.ask(store.target(TARGET), 0, "abcd").values())
    with Store(store.path) as other:
        assert store.claim(items, 3) == items[:3]
        assert other.claim(items, 3) == items[3:]
        store.release()
        assert other.claim(items, 9) == items[:3]


def test_a_claim_ends_with_its_process(store):
    items = list(store.ask(store.target(TARGET), 0, "ab").values())
    code = (
        "import sys, os, signal\nfrom hwnas.profile.store import Store\n"
        f"Store(sys.argv[1]).claim({items}, 9)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.path)], check=False)
    assert store._all("SELECT COUNT(*) FROM claim") == [(2,)]
    assert store.claim(items, 9) == items


def test_a_claim_of_another_host_ends_with_its_lease(store):
    items = list(store.ask(store.target(TARGET), 0, "ab").values())
    for item, expires in zip(items, (time.time() - 1, time.time() + 99), strict=True):
        store._db.execute("INSERT INTO claim VALUES (?, 'x', 'elsewhere', 1, 0, ?)", (item, expires))
    assert store.claim(items, 9) == items[:1]


def test_a_lease_is_renewed_now_and_then(store, monkeypatch):
    (item,) = store.ask(store.target(TARGET), 0, "a").values()
    store.claim([item], 1)
    begun = time.time()
    for later, expires in (
        (60, 60 + LEASE_S),
        (60 + RENEW_S / 2, 60 + LEASE_S),
        (60 + RENEW_S, 60 + RENEW_S + LEASE_S),
    ):
        monkeypatch.setattr(time, "time", lambda now=begun + later: now)
        store.renew()
        assert store._all("SELECT expires FROM claim") == [(pytest.approx(begun + expires, abs=0.01),)]


def one_line(error: pytest.ExceptionInfo[StoreError]) -> str:
    assert "\n" not in str(error.value) and error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"this is not a database, and long enough to be looked at" * 40, b"SQLite format 3\0" + b"\xff" * 4000],
    ids=["text", "header only"],
)
def test_a_corrupt_store_is_one_line_and_left_alone(tmp_path, content):
    path = tmp_path / "samples.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError) as error:
        Store(path)
    assert "samples.sqlite" in one_line(error)
    assert path.read_bytes() == content


def test_a_store_damaged_in_the_middle(store):
    item = store.ask(store.target(TARGET), 0, ["a"])["a"]
    environment = store.environment({})
    for number in range(200):
        store.add(item, environment, sample(number, tuple(range(300))))
    store.close()
    data = bytearray(store.path.read_bytes())
    data[8192:-4096] = os.urandom(len(data) - 12288)
    store.path.write_bytes(data)
    with pytest.raises(StoreError) as error, Store(store.path) as damaged:
        list(damaged.blocks(1))
    assert "damaged" in one_line(error)


def test_another_program_s_database_is_refused(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(StoreError) as error:
        Store(path)
    assert "something else" in one_line(error)


def test_a_newer_store_is_refused(store):
    store._db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(StoreError) as error:
        Store(store.path)
    assert "version 99" in one_line(error)


def test_a_full_disk(store):
    item = store.ask(store.target(TARGET), 0, ["a"])["a"]
    environment = store.environment({})
    store._db.execute(f"PRAGMA max_page_count = {store._pragma('page_count') + 2}")
    with pytest.raises(StoreError) as error:
        for number in range(100):
            store.add(item, environment, sample(number, tuple(range(500))))
    assert "disk is full" in one_line(error)
    kept = store.samples(item)
    assert [each.round for each in kept] == list(range(len(kept)))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write")
def test_a_read_only_folder():
    with pytest.raises(StoreError) as error:
        Store("/proc/self/hwnas/samples.sqlite")
    assert "/proc/self/hwnas" in one_line(error)


def test_a_store_that_is_a_folder(tmp_path):
    with pytest.raises(StoreError) as error:
        Store(tmp_path)
    assert str(tmp_path) in one_line(error)


def test_reading_makes_nothing(tmp_path):
    with pytest.raises(StoreError, match="no sample store"):
        Store(tmp_path / "absent.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_sample_that_was_tampered_with(store):
    item = store.ask(store.target(TARGET), 0, ["a"])["a"]
    store.add(item, store.environment({}), sample())
    store._db.execute("UPDATE block SET times_ns = x'010203'")
    with pytest.raises(StoreError) as error:
        list(store.blocks(1))
    assert "damaged" in one_line(error)


def test_processes_that_make_one_store_at_once_all_open_it(tmp_path):
    code = "import sys, time; from hwnas.profile.store import Store\n"
    code += "time.sleep(max(0, float(sys.argv[1]) - time.time()))\n"
    code += "for i in range(20):\n    Store(f'{sys.argv[2]}/{i}').close()"
    start = str(time.time() + 3)
    both = [subprocess.Popen([sys.executable, "-c", code, start, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(90) for process in both] == [0, 0, 0]
