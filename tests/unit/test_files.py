"""Files that are shared, left behind or damaged: locks, temporaries of killed processes, hostile documents."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hwnas.cli import run
from hwnas.core import files
from hwnas.core.bundle import MANIFEST, read_manifest
from hwnas.core.columns import numbers
from hwnas.core.config import MOST_VALUES, Config, parse_config, read_yaml
from hwnas.core.documents import RUN
from hwnas.core.errors import InputError, ParseError
from hwnas.core.files import claimed, read_json, replacing, scratch, write_json, write_text
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target

HOLD = """
import sys, time
from pathlib import Path
from hwnas.core.files import claimed, replacing, scratch
place = Path(sys.argv[2])
with {"replacing": replacing, "claimed": claimed, "scratch": lambda _: scratch()}[sys.argv[1]](place) as held:
    print(held, flush=True)
    time.sleep(60)
"""


@contextmanager
def holding(how: str, place: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that is writing `place`, and what it writes there meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, how, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    doomed, other = holding("replacing", tmp_path / "doomed"), holding("replacing", tmp_path / "a.json")
    with doomed as (process, dead), other as (_, living):
        process.kill()
        process.wait()
        assert dead.exists() and living.exists()
        files._clean.cache_clear()
        write_json(tmp_path / "a.json", {})
        assert not dead.exists() and living.exists()
    assert [path.name for path in tmp_path.iterdir() if path != living] == ["a.json"]


def test_a_folder_is_claimed_by_one_process(tmp_path: Path) -> None:
    with holding("claimed", tmp_path / "out") as (process, _):
        with pytest.raises(InputError, match=r"another process is at work in .*out"), claimed(tmp_path / "out"):
            pass
        process.kill()
        process.wait()
        with claimed(tmp_path / "out"):
            assert (tmp_path / "out").is_dir()


def test_temporary_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("hwnas-results", ".hwnas"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples.sqlite").touch()
    (tmp_path / ".hwnas-scratch-notes").touch()
    with holding("scratch", tmp_path) as (process, dead), holding("scratch", tmp_path) as (_, living):
        (dead / "model.onnx").touch()
        process.kill()
        process.wait()
        with scratch() as own:
            assert own.is_dir() and living.is_dir() and not dead.exists()
        assert not own.exists()
    assert len(list(tmp_path.rglob("samples.sqlite"))) == 2, "what a user called hwnas-something is no concern of ours"
    assert (tmp_path / ".hwnas-scratch-notes").is_file()


def test_without_locks_files_are_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where an open file can neither be renamed nor a folder opened."""
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files._clean.cache_clear()
    left = tmp_path / f".a.json.x{files.PART}"
    left.touch()
    write_json(tmp_path / "a.json", {})
    with claimed(tmp_path / "out"), claimed(tmp_path / "out"), scratch() as own:
        assert own.is_dir()
    assert left.exists() and read_json(tmp_path / "a.json") == {} and not own.exists()


def test_a_table_does_not_replace_another_document(tmp_path: Path) -> None:
    table = CostTable(Target("board", "onnxruntime"), {"block": {"latency_ms": Cost(1.0, 0.9, 1.1, 9, "steady")}}, {})
    write_text(tmp_path / "package.json", '{"name": "of the user"}')
    with pytest.raises(InputError, match=r"would replace .*package\.json"):
        table.save(tmp_path / "package.csv")
    assert read_json(tmp_path / "package.json") == {"name": "of the user"} and len(list(tmp_path.iterdir())) == 1
    for _ in range(2):
        table.save(tmp_path / "own.csv")


@pytest.mark.parametrize(
    "text, why",
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e400}', "1e400"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"a": ' + "[" * 100_000, "nested too deeply|not a readable"),
        ('{"a": 1, "a": 2}', "twice"),
    ],
)
def test_json_that_could_not_be_written_again_is_refused(tmp_path: Path, text: str, why: str) -> None:
    write_text(tmp_path / "x.json", text)
    with pytest.raises(InputError, match=why):
        read_json(tmp_path / "x.json")


def test_a_damaged_document_says_what_to_do(tmp_path: Path) -> None:
    write_text(tmp_path / "run.json", '{"kind": "profile_run", ')
    with pytest.raises(InputError, match=r"run.json:1: .*; delete it, repeat the command; the samples are kept"):
        RUN.read(tmp_path / "run.json")


class Settings(Config):
    space: str
    epochs: int = 1


@pytest.mark.parametrize(
    "text",
    [
        "epochs: 2020-13-45",
        "epochs: 2020-01-01T99:99:99Z",
        "epochs: 0x_",
        "epochs: !!float abc",
        "epochs: !!bool maybe",
        "epochs: !!timestamp abc",
        "epochs: " + "9" * 5000,
        "epochs: " + "[" * 5000,
        "epochs: &a [*a]",
    ],
)
def test_whatever_yaml_stumbles_over_is_one_line(tmp_path: Path, text: str) -> None:
    write_text(tmp_path / "c.yaml", text)
    with pytest.raises(InputError, match=r"c\.yaml.*not readable as YAML"):
        read_yaml(tmp_path / "c.yaml", "configuration")


def test_aliases_do_not_multiply_without_end(tmp_path: Path) -> None:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{new}: &{new} [{', '.join(['*' + old] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    write_text(tmp_path / "bomb.yaml", "\n".join([*lines, "space: *i"]))
    begun = time.perf_counter()
    with pytest.raises(InputError, match=f"more than {MOST_VALUES} values"):
        read_yaml(tmp_path / "bomb.yaml", "configuration")
    assert time.perf_counter() - begun < 10
    with pytest.raises(InputError) as fault:
        parse_config({"space": ["x" * 1000] * 1000}, Settings, "here")
    assert len(str(fault.value)) < 300


@pytest.mark.parametrize(
    "change, why",
    [
        ({"batch": 0}, "batch 0"),
        ({"threads": -4}, "-4 threads"),
        ({"precision": ""}, "precision ''"),
        ({"cache": "hot"}, "target.cache"),
        ({"origin": "heard"}, "target.origin"),
    ],
)
def test_no_device_runs_like_that(change: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        Target.from_json({"device": "board", "runtime": "torch", **change})


@pytest.mark.parametrize("entry", [0.5, {}, {"primitive": 1e308}, {"primitive": "a", "arch": "b"}])
def test_a_manifest_says_what_every_model_is(tmp_path: Path, entry: object) -> None:
    manifest = {"kind": "hwnas_bundle", "schema": 1, "models": {"p0": entry}}
    write_text(tmp_path / MANIFEST, json.dumps(manifest))
    with pytest.raises(ParseError, match="'p0' is neither"):
        read_manifest(tmp_path / MANIFEST)


def test_truth_is_no_number() -> None:
    with pytest.raises(InputError, match="no number"):
        numbers([1.0, True], "latency_ms", Path("x.csv"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "--space", "nasbench201", "--accuracy", "macs_m", "--cost", "a" * 5000, "--out", "found"],
        ["spaces", "nasbench-macro:resolution=1" + "0" * 400],
        ["spaces", "mnasnet:num_classes=1000000000000"],
        ["profile", "--space", "fbnet:head=1000000000000", "--device", "file", "--emit", "bundle"],
        ["profile", "--space", "nasbench201", "--out", "run", "--time-limit", "inf"],
        ["export", "x", "--space", "nasbench201", "--out", "n.onnx", "--batch", "99999999999999999999"],
    ],
)
def test_absurd_sizes_are_bad_input(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert len(capsys.readouterr().err) < 500 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_ends_as_ctrl_c_does(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hwnas", "profile", "--space", "nasbench201", "--out", str(tmp_path / "run")]
    own = {**os.environ, "TMPDIR": str(tmp_path)}
    here = signal.signal(number, signal.SIG_DFL)  # under nohup a hang-up is ignored, and by what is started here too
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=own) as it:
        signal.signal(number, here)
        while not (tmp_path / "run" / "samples.sqlite").exists():
            time.sleep(0.05)
        it.send_signal(number)
        _, said = it.communicate(timeout=60)
    assert it.returncode == 130 and said.splitlines()[-1] == "hwnas: interrupted; what was written so far is kept"
    assert not list(tmp_path.glob(f"{files.SCRATCH}*"))


def test_a_full_standard_output_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "hwnas", "spaces"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.startswith("hwnas: ") and "Traceback" not in done.stderr


def test_replacing_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, why",
    [
        (["profile", "--space", "nasbench201", "--device", "file", "--emit", "b", "--runtime", "nope"], "runtime nope"),
        (["verify", ".", "--store", "nowhere.sqlite"], "does not exist"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert why in capsys.readouterr().err and not list(tmp_path.iterdir())
