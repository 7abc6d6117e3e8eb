"""Registry, configuration, files, targets and cost tables."""

import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest

import hwnas
from hwnas.core.config import Config, load_config
from hwnas.core.documents import Document, stamp
from hwnas.core.errors import (
    InputError,
    MissingCostError,
    ParseError,
    TargetMismatchError,
    UnavailableError,
    UnknownNameError,
)
from hwnas.core.files import check_folder, read_json, replacing, write_json, write_text
from hwnas.core.registry import Registry
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.core.units import quantity_of
from hwnas.spaces import Primitive, get_space


def test_a_name_is_taken_once() -> None:
    things: Registry[int] = Registry("thing")
    things.register("one")(1)
    with pytest.raises(ValueError, match="registered twice"):
        things.register("one")(2)
    assert things.get("one") == 1
    with pytest.raises(UnknownNameError, match="did you mean 'one'"):
        things.get("onee")


def test_a_package_that_cannot_be_loaded_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "broken-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[hwnas.tools]\nlost = nowhere:Thing\nempty = json:Thing\nfound = json:dumps\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tools: Registry[object] = Registry("tool")
    tools.register("own")(1)
    assert list(tools) == ["found", "own"] and tools.get("found") is json.dumps
    for name, why in (("lost", "No module named 'nowhere'"), ("empty", "has no attribute 'Thing'")):
        with pytest.raises(UnavailableError, match=f"the tool '{name}' of the package broken cannot be loaded .*{why}"):
            tools.get(name)
        assert name not in tools


def test_quantities_are_read_from_suffixes() -> None:
    assert quantity_of("gold_6240_ms").name == "latency_ms"
    assert quantity_of("throughput_a100_ips").lower_is_better is False
    with pytest.raises(InputError, match="names no unit"):
        quantity_of("latency")


class Part(Config):
    path: str = ""


class Example(Config):
    epochs: int = 3
    space: str
    part: Part | None = None


def test_configuration_faults_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text, message in (
        ("epoch: 4\nspace: fbnet", "did you mean 'epochs'"),
        ("space: a\npart: {paht: b}", "part: unknown key 'paht': did you mean 'path'"),
        ("epochs: many\nspace: a", "epochs"),
        ("epochs: 3", "space"),
        ("a: [", "not readable as YAML"),
        ("- 1", "mapping"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            load_config(path, Example)
        assert "\n" not in str(caught.value)
    path.write_text("space: fbnet")
    assert load_config(path, Example) == Example(space="fbnet")


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_json(tmp_path / "file" / "inside.json", {})


def test_targets_differ_by_name() -> None:
    target = Target("cpu", "onnxruntime", "1.30")
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
    with pytest.raises(TargetMismatchError, match="batch 1 against 8"):
        target.require_same(Target("cpu", "onnxruntime", "1.30", batch=8), "table.csv")
    for bad in ({"device": "cpu"}, {**target.to_json(), "batch": "1"}, {**target.to_json(), "colour": 1}):
        with pytest.raises(InputError):
            Target.from_json(bad)


def table(**rows: Cost) -> CostTable:
    return CostTable(
        Target("cpu", "onnxruntime"), {key: {"latency_ms": cost} for key, cost in rows.items()}, {"seed": 1}
    )


def test_tables_survive_a_file(tmp_path: Path) -> None:
    written = table(a=Cost(1.5, 1.4, 1.6, 30, "steady"), b=Cost(math.nan, n=0, verdict="failed"), c=Cost(2.0))
    written.save(tmp_path / "t.csv")
    read = CostTable.load(tmp_path / "t.csv")
    assert read.target == written.target and read.manifest == {"seed": 1}
    assert read.rows["a"] == written.rows["a"]
    assert math.isnan(read.rows["b"]["latency_ms"].value) and read.rows["b"]["latency_ms"].verdict == "failed"


def test_a_missing_or_failed_cost_is_never_zero() -> None:
    space = get_space("nasbench-macro")
    keys = [p.key for p in space.primitives()]
    whole = CostTable(Target("cpu", "x"), {key: {"latency_ms": Cost(1.0)} for key in keys})
    np.testing.assert_array_equal(whole.vector(space, "latency_ms"), np.ones(len(keys)))
    failed = CostTable(whole.target, {**whole.rows, keys[3]: {"latency_ms": Cost(math.nan, verdict="failed")}})
    with pytest.raises(MissingCostError) as caught:
        failed.vector(space, "latency_ms")
    assert caught.value.missing == [keys[3]]
    with pytest.raises(InputError, match="no column 'energy_mj'"):
        whole.vector(space, "energy_mj")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("1.5", "-1.5", 2),
        ("1.5", "nan", 2),
        ("1.5", "inf", 2),
        ("1.4", "9", 2),
        ("30", "x", 2),
        ("steady", "sure", 2),
        ("latency_ms_low", "low", 1),
        ("steady", "steady,1", 2),
        ("latency_ms", "latency", 1),
    ],
)
def test_a_broken_table_names_its_line(tmp_path: Path, old: str, new: str, line: int) -> None:
    path = tmp_path / "t.csv"
    table(a=Cost(1.5, 1.4, 1.6, 30, "steady")).save(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ParseError, match=f"t.csv:{line}:"):
        CostTable.load(path)


def test_energy_above_rest_may_be_none(tmp_path: Path) -> None:
    costs = {"energy_mj": Cost(2.0), "above_idle_energy_mj": Cost(0.0)}
    CostTable(Target("board", "onnxruntime"), {"a": costs}).save(tmp_path / "t.csv")
    assert CostTable.load(tmp_path / "t.csv").rows["a"]["above_idle_energy_mj"].value == 0
    costs["energy_mj"] = Cost(0.0)
    CostTable(Target("board", "onnxruntime"), {"a": costs}).save(tmp_path / "t.csv")
    with pytest.raises(ParseError, match=r"energy_mj of a is '0\.0'"):
        CostTable.load(tmp_path / "t.csv")


def test_tables_merge_only_where_they_agree() -> None:
    a, b = table(a=Cost(1.0), b=Cost(2.0)), table(b=Cost(2.0), c=Cost(3.0))
    assert sorted(a.merge(b).rows) == ["a", "b", "c"]
    with pytest.raises(InputError, match="disagree"):
        a.merge(table(a=Cost(1.1)))
    unknown = float("nan")
    assert unknown is not math.nan and Cost(1.0, unknown, unknown).same(Cost(1.0)), "of any NaN"
    a.merge(table(a=Cost(1.0, unknown, unknown)))
    failed = Cost(unknown, verdict="failed")
    for merged in (table(a=failed).merge(a), a.merge(table(a=failed))):
        assert merged.rows["a"]["latency_ms"].value == 1.0, "a measurement that failed gives way"
    spaces = [CostTable(a.target, a.rows, {"spaces": [name]}) for name in ("fbnet", "mnasnet", "fbnet")]
    assert spaces[0].merge(spaces[1]).merge(spaces[2]).manifest["spaces"] == ["fbnet", "mnasnet"]
    other = CostTable(Target("gpu", "onnxruntime"), {}, name="other.csv")
    with pytest.raises(TargetMismatchError, match=r"other\.csv"):
        a.merge(other)


def test_bad_specs_and_keys_are_one_line() -> None:
    for spec in (
        "ofa-mbv4",
        "ofa-mbv3:wide=2",
        "ofa-mbv3:width",
        "ofa-mbv3:width=x",
        "ofa-mbv3:resolution=160/160",
        "fbnet:variant=imagnet",
        "ofa-mbv3:width=-1",
        "ofa-mbv3:resolution=",
    ):
        with pytest.raises(InputError) as caught:
            get_space(spec)
        assert "\n" not in str(caught.value)
    for key in (
        "",
        "conv",
        "1:convv[3x32x32] out=3",
        "9:conv[3x32x32] act=relu out=3",
        "1:conv[3x32] act=relu out=8",
        "1:conv[3x32x32] act=wavy out=8",
        "1:conv[3x32x32] act=relu",
    ):
        with pytest.raises(InputError):
            Primitive.from_key(key).to_onnx()


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ('{"kind": "search", "schema": 1}', r"schema 1 \(kind 'search', schema 1\)"),
        ('{"kind": "run", "schema": 2}', r"schema 1 \(kind 'run', schema 2\)"),
        ('{"kind": "run"', "not a readable run"),
        ("[]", "it holds a list"),
        (None, "run"),
    ],
)
def test_a_document_is_told_from_others(tmp_path: Path, found: str | None, why: str) -> None:
    document, path = Document("run", "run", "run.json"), tmp_path / "run.json"
    document.write(path, {"n": 1, **stamp()})
    assert document.read(path)["n"] == 1 and document.read(path)["hwnas"] == hwnas.__version__
    path.unlink() if found is None else path.write_text(found)
    with pytest.raises(InputError, match=why):
        document.read(path)


def test_only_files_are_replaced_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("before")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "after")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "after"
    os.mkfifo(tmp_path / "pipe")
    for other, what in (("pipe", "device"), (".", "folder")):
        with pytest.raises(InputError, match=f"it is a {what}"):
            write_text(tmp_path / other, "after")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / ("a" * 300), "after")
    with pytest.raises(InputError, match="cannot write"):
        check_folder(tmp_path / ("a" * 300))
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(InputError, match="stands twice"):
        read_json(tmp_path / "a.json")
