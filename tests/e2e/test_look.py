"""Commands that only look, run as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.spaces import get_space


def hwnas(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hwnas", *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture
def table(tmp_path: Path) -> CostTable:
    keys = [p.key for p in get_space("nasbench-macro").primitives()]
    rows = {key: {"latency_ms": Cost(1.0 + i, 0.99 + i, 1.01 + i, 9, "steady")} for i, key in enumerate(keys)}
    table = CostTable(Target("cpu", "onnxruntime", "1.30"), rows, {"seed": 0})
    table.save(tmp_path / "a.csv")
    return table


def test_help_needs_no_torch() -> None:
    code = "import sys; from hwnas.cli import run; run(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_spaces_as_json() -> None:
    report = json.loads(hwnas("spaces", "ofa-mbv3:width=0.5,resolution=64", "--json").stdout)
    assert report["space"] == "ofa-mbv3:width=0.5,resolution=64"
    assert len(report["primitives"]) == 96 and len(report["genes"]) == 46
    assert "fbnet" in hwnas("spaces").stdout


def test_tables_show_diff_merge(table: CostTable, tmp_path: Path) -> None:
    first = next(iter(table.rows))
    changed = CostTable(table.target, {**table.rows, first: {"latency_ms": Cost(2.0, 1.9, 2.1, 9, "steady")}})
    changed.save(tmp_path / "b.csv")
    a, b = str(tmp_path / "a.csv"), str(tmp_path / "b.csv")
    shown = json.loads(hwnas("tables", "show", a, "--json").stdout)
    assert shown["rows"][first]["latency_ms"]["value"] == 1.0
    differing = json.loads(hwnas("tables", "diff", a, b, "--json").stdout)
    assert [(row["key"], row["ratio"]) for row in differing["changed"]] == [(first, 2.0)]
    failed = CostTable(table.target, {**table.rows, first: {"latency_ms": Cost(float("nan"), verdict="failed")}})
    failed.save(tmp_path / "failed.csv")
    differing = json.loads(hwnas("tables", "diff", a, str(tmp_path / "failed.csv"), "--json").stdout)
    assert (differing["only_before"], differing["compared"]) == ([first], len(table.rows) - 1)
    conflict = hwnas("tables", "merge", a, b, "--out", str(tmp_path / "c.csv"))
    assert conflict.returncode == 2 and "disagree" in conflict.stderr and not (tmp_path / "c.csv").exists()
    assert hwnas("tables", "merge", a, a, "--out", str(tmp_path / "c.csv")).returncode == 0
    assert CostTable.load(tmp_path / "c.csv").rows == table.rows


def test_a_shipped_table_is_known_by_its_name() -> None:
    listed = json.loads(hwnas("tables", "list", "--json").stdout)["tables"]
    path = Path(listed[0]["path"])
    by_path = json.loads(hwnas("tables", "show", str(path), "--json").stdout)
    assert json.loads(hwnas("tables", "show", path.name, "--json").stdout) == by_path
    assert len(by_path["rows"]) == listed[0]["primitives"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("spaces", "fbnett"),
        ("spaces", "--jsn"),
        ("space",),
        ("tables", "show", "nowhere"),
        ("tables", "show", "nowhere.csv"),
        ("tables", "show", "pyproject.toml"),
        ("profile", "--out", "x"),
        ("profile", "--space", "fbnet", "--out", "x", "--device", "gpu", "--runtime", "none"),
        ("profile", "--space", "fbnet", "--out", "x", "--batch", "one"),
        ("profile", "--space", "fbnet", "--out", "x", "--threads", "9999"),
        ("predict", "nowhere", "00000000"),
        ("predict", "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = hwnas(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("hwnas: ")
    assert not Path("x").exists()
